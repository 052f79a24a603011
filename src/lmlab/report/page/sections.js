// The sections of one protocol, D, within its page: each from the data, or gone where there is nothing to say.
const M = D.metric.name, SIGN = D.metric.higher ? -1 : 1, UNITS = { seconds: "s", "val/bpb": "bits per byte" };
const titled = (name) => (UNITS[name] ? `${name} (${UNITS[name]})` : name);
const body = (id) => page.querySelector(`#${id} .body`);
const drop = (id) => page.querySelector(`#${id}`).remove();
const G = D.groups, R = D.runs, P = D.params, O = D.objectives, FIRST = O.length ? `the best by ${M}` : "the best";
G.forEach((group, rank) => { group.rank = rank + 1; group.runs.forEach((i) => (R[i].group = group)); });

// Beyond this a configuration failed rather than differed: it would squeeze all others into a line.
const MEANS = G.map((g) => g.mean).sort((a, b) => SIGN * (a - b)), BEST = G.length ? MEANS[0] : 0, WORST = (() => {
  const last = MEANS[MEANS.length - 1];
  if (G.length < 4) return G.length ? last : 1;
  const middle = median(MEANS), far = middle + 3 * (middle - BEST);
  return SIGN * far < SIGN * last && middle !== BEST ? far : last;
})();
const clip = (v) => (SIGN * v > SIGN * WORST ? WORST : v);
const share = (v) => (WORST === BEST ? 0 : (clip(v) - BEST) / (WORST - BEST));
const tint = (v) => blend(share(v));
const beyond = G.filter((g) => clip(g.mean) !== g.mean).length;
const scoreScale = (pad) => scale(G.map((g) => clip(g.mean)), { pad });
const clipped = beyond ? ` ${beyond} worse than ${shown(WORST)} are drawn at that edge.` : "";

const spread = (g) => (g.low === null || g.low === undefined ? "" : ` ± ${shown((g.high - g.low) / 2, 2)}`);
const settings = (g) => P.map((p, i) => `${p.name} = ${shown(g.values[i]) || "none"}`).join("\n");
// Of a sweep's seeds, those that gave nothing; where one did not, the configuration cannot win.
const WAYS = { failed: "failed", pruned: "stopped early", unfinished: "to come", running: "to come", waiting: "to come", interrupted: "interrupted" };
const lacking = (g) => [...new Set(g.lacking.map((how) => WAYS[how]))].map((way) =>
  `${g.lacking.filter((how) => WAYS[how] === way).length} of ${g.seeds} seeds ${way}`).join(", ");
const told = (g) => `#${g.rank}  ${M} ${shown(g.mean, 5)}${spread(g)}${g.n > 1 ? `, n = ${g.n}` : ""}${g.lacking.length ? `, ${lacking(g)}` : ""}\n${settings(g)}`;

function words(i) {
  const found = [...new Set(G.map((g) => g.values[i]))].map((v) => (v === null ? "none" : v));
  return found.sort((a, b) => (a === "none") - (b === "none") || (a < b ? -1 : 1));
}
const value = (g, i) => (g.values[i] === null && !P[i].number ? "none" : g.values[i]);
const paramScale = (i, pad) =>
  P[i].number ? scale(G.map((g) => g.values[i]), { log: P[i].log, pad, exact: true }) : scale([], { words: words(i) });

function head() {
  const several = pages.length > 1, under = D.protocol && !several ? ` under ${D.protocol}` : "";
  const states = new Map();
  R.forEach((r) => { const s = r.state.split(":")[0]; states.set(s, (states.get(s) || 0) + 1); });
  const counted = [...states].sort((a, b) => b[1] - a[1]).map(([s, n]) => `${n} ${STATES[s] || s}`).join(", ");
  const replicated = G.some((g) => g.n > 1) ? `, ${G.length} configurations (runs that differ only in the seed are one)` : "";
  $("counts").textContent = `${counted}${several ? "" : replicated}. Measured by ${M}${under}, ${D.metric.higher ? "higher" : "lower"} is better. Made ${D.made}.`;
  const title = page.querySelector(".protocol"), links = make("div", {}, several ? `${D.protocol}: ` : "");
  title.textContent = `Measured under ${D.protocol}`;
  if (several) title.after(make("p", {}, `${D.members.length} runs${replicated}.`));
  else title.remove();
  for (const section of page.querySelectorAll("section")) {
    if (nth) section.id += `-${nth + 1}`;
    links.append(make("a", { href: "#" + section.id }, section.querySelector("h2").textContent));
  }
  $("contents").append(links);
}
const STATES = { budget: "trained to their budget", counted: "counted", max_time: "trained to their time" };

function winner() {
  if (!G.length || O.length) return drop("winner");
  const g = G[0], r = R[D.best], facts = make("div", { class: "facts" });
  const add = (name, text) => facts.append(make("div", {}, make("span", { class: "soft" }, name), make("b", {}, text)));
  add(M, shown(g.mean, 5) + spread(g));
  if (g.n > 1) add("replicates", `${g.n}`);
  if (g.lacking.length) add("no result of", lacking(g));
  for (const name of ["val/ppl", "parameters", "seconds", "tokens_per_s"]) if (g[name] != null) add(name, name === "val/ppl" ? shown(g[name]) : short(g[name]));
  for (const [name, floor] of Object.entries(D.floors)) add(`floor: ${name}`, shown(floor));
  P.forEach((p, i) => add(p.name, shown(g.values[i]) || "none"));
  const place = body("winner");
  place.append(facts);
  const n = g.n > 1 ? `± is half of the 95 % confidence interval of the mean (Student's t, n = ${g.n}). ` : "One run: no interval; replicates with other seeds would give one. ";
  place.append(make("p", { class: "soft" }, `${n}The run: ${r.run}`));
  const line = D.command.line;
  if (line) {
    const copy = make("button", { onclick: () => navigator.clipboard.writeText(line).then(() => (copy.textContent = "copied")) }, "copy");
    const note = D.command.exact ? "Repeats it: this composes to exactly what the run was asked." :
      "It asks for the same, or was typed then; that it trains the same today could not be shown (options of your own, another version of lmlab, or a run that was trained longer than first asked).";
    place.append(make("p", {}, note, " ", copy), make("pre", {}, line));
  }
  if (D.samples.length) place.append(make("p", {}, "What it writes:"));
  D.samples.forEach((text) => place.append(make("pre", {}, text)));
}

// Of several objectives: nobody is the best, and none of these is beaten in all of them.
function front() {
  if (!O.length || !G.length) return drop("front");
  const place = body("front"), known = G.filter((g) => g.objectives.every((v) => v !== null)), on = known.filter((g) => g.front);
  place.append(make("p", {}, `${O.map((o) => `${o.name} (${o.higher ? "higher" : "lower"} is better)`).join(", ")}: no configuration is better in all of them than any of these ${on.length} of ${known.length}.`));
  const columns = O.map((o, k) => ({ name: o.name, get: (g) => g.objectives[k], cell: (g) => shown(g.objectives[k], 5) }));
  P.forEach((p, i) => columns.push({ name: p.name, get: (g) => g.values[i], word: !p.number }));
  columns.push({ name: "runs", get: (g) => R[g.runs[0]].run, word: true, cell: (g) => g.runs.map((i) => R[i].run).join(", ") });
  table(place, columns, on);
  const grid = make("div", { class: "grid two" });
  place.append(grid);
  for (let a = 1; a < O.length; a++) for (let b = 0; b < a; b++) figure(grid, 320, `${O[b].name} against ${O[a].name}`, (ctx, width, height) => {
    const axis = (k) => { const v = known.map((g) => g.objectives[k]); return scale(v, { log: v.length > 0 && min(v) > 0 && max(v) / min(v) > 5 }); };
    const { px, py } = axes(ctx, width, height, axis(a), axis(b), titled(O[a].name), titled(O[b].name));
    const spot = (g) => ({ x: px(g.objectives[a]), y: py(g.objectives[b]), tip: () => `${O.map((o, k) => `${o.name} ${shown(g.objectives[k], 5)}`).join("\n")}\n${lacking(g)}${g.lacking.length ? "\n" : ""}${settings(g)}` });
    const line = [...on].sort((g, h) => g.objectives[a] - h.objectives[a]).map(spot);
    const rest = known.filter((g) => !g.front).map(spot);
    rest.forEach((s) => dot(ctx, s.x, s.y, 3, colour("worst")));
    ctx.strokeStyle = colour("hot"); ctx.lineWidth = 1.8;
    // Of more than two, the front is no line in any pair.
    if (O.length === 2) stroke(ctx, line.map((s) => [s.x, s.y]));
    line.forEach((s) => dot(ctx, s.x, s.y, 4.5, colour("hot")));
    return [...rest, ...line];
  });
  place.append(make("figcaption", {}, "Orange: the front."));
}

// A table whose heads sort. columns: [{name, get, word, cell}]
function table(parent, columns, rows, { first = 100, search } = {}) {
  let order = null, down = false, most = first, needle = "";
  const heads = columns.map((c) => make("th", { class: c.word ? "word" : "", title: "sort by this", onclick: () => {
    down = order === c ? !down : false; order = c; fill();
  } }, c.name));
  const rowsAt = make("tbody"), more = make("button", { onclick: () => { most = Infinity; fill(); } });
  function fill() {
    let found = needle ? rows.filter((row) => search(row).includes(needle)) : rows;
    if (order) {
      const empty = (v) => v === null || v === undefined || v === "";
      found = [...found].sort((a, b) => {
        const [x, y] = [order.get(a), order.get(b)];
        if (empty(x) || empty(y)) return empty(x) - empty(y);
        return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
      });
    }
    heads.forEach((th, i) => (columns[i] === order ? th.setAttribute("aria-sort", down ? "descending" : "ascending") : th.removeAttribute("aria-sort")));
    rowsAt.replaceChildren(...found.slice(0, most).map((row) => make("tr", {}, ...columns.map((c) =>
      make("td", { class: (c.word ? "word" : "") + (c.long ? " long" : "") }, c.cell ? c.cell(row) : shown(c.get(row)))))));
    more.textContent = `show all ${found.length}`;
    more.style.display = found.length > most ? "" : "none";
  }
  if (search && rows.length > 8) {
    parent.append(make("div", { class: "tools" }, make("input", { type: "search", placeholder: "only those that contain …", "aria-label": "filter",
      oninput: (event) => { needle = event.target.value.toLowerCase(); fill(); } })));
  }
  parent.append(make("div", { class: "wide" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), rowsAt)), more);
  fill();
}

function leaderboard() {
  if (!G.length) return drop("leaderboard");
  const low = min(G.map((g) => clip(g.low ?? g.mean))), high = max(G.map((g) => clip(g.high ?? g.mean)));
  const bar = (g) => {
    const at = (v) => 5 + (90 * (Math.min(Math.max(v, low), high) - low)) / (high - low || 1);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const part = (tag, a) => { const node = document.createElementNS(svg.namespaceURI, tag); for (const k in a) node.setAttribute(k, a[k]); svg.append(node); };
    svg.setAttribute("width", 100); svg.setAttribute("height", 14); svg.setAttribute("aria-hidden", "true");
    if (g.low != null) part("line", { x1: at(g.low), x2: at(g.high), y1: 7, y2: 7, stroke: "var(--soft)", "stroke-width": 2 });
    part("circle", { cx: at(g.mean), cy: 7, r: 3.5, fill: "var(--best)" });
    return svg;
  };
  const columns = [{ name: "#", get: (g) => g.rank }, { name: M, get: (g) => g.mean, cell: (g) => shown(g.mean, 5) }];
  if (G.some((g) => g.n > 1)) columns.push({ name: "± 95 %", get: (g) => (g.low == null ? null : (g.high - g.low) / 2), cell: (g) => spread(g).slice(3) }, { name: "n", get: (g) => g.n });
  columns.push({ name: "", get: (g) => g.mean, cell: bar, word: true });
  if (G.some((g) => g.lacking.length)) columns.push({ name: "no result of", get: lacking, word: true });
  O.forEach((o, k) => { if (o.name !== M) columns.push({ name: o.name, get: (g) => g.objectives[k], cell: (g) => shown(g.objectives[k], 5) }); });
  P.forEach((p, i) => columns.push({ name: p.name, get: (g) => g.values[i], word: !p.number }));
  for (const name of ["val/ppl", "parameters", "seconds", "tokens_per_s"].filter((name) => !O.some((o) => o.name === name)))
    if (G.some((g) => g[name] != null)) columns.push({ name, get: (g) => g[name], cell: (g) => (name === "val/ppl" ? shown(g[name]) : short(g[name] ?? NaN)) });
  columns.push({ name: "runs", get: (g) => R[g.runs[0]].run, word: true, cell: (g) => g.runs.map((i) => R[i].run).join(", ") });
  table(body("leaderboard"), columns, G, { search: (g) => (settings(g) + " " + g.runs.map((i) => R[i].run).join(" ")).toLowerCase() });
  const also = P.filter((p) => p.also.length).map((p) => `${p.name}: ${p.also.join(", ")}`).join("; ");
  if (also) body("leaderboard").append(make("p", { class: "soft" }, `Keys that change with another one, and have no column: ${also}.`));
}

function curves() {
  const C = D.curves, have = D.members.filter((i) => C.values[i] && C.values[i].length);
  if (!have.length) return drop("curves");
  const place = body("curves"), tools = make("div", { class: "tools" });
  place.append(tools);
  let axis = "tokens", close = have.length > 3;
  // They may be of another metric than runs are ranked by.
  const sign = C.higher ? -1 : 1, ends = have.map((i) => sign * min(C.values[i].map((v) => sign * v)));
  const top = have.includes(D.best) ? D.best : have[ends.indexOf(sign * min(ends.map((v) => sign * v)))];
  const { redraw } = figure(place, 420, `learning curves of ${have.length} runs`, (ctx, width, height) => {
    const xs = (i) => C[axis][i], all = have.flatMap((i) => C.values[i]), sorted = [...all].sort((a, b) => sign * (a - b));
    const edge = close ? sorted[Math.floor(sorted.length * 0.8)] : sorted[sorted.length - 1];
    const x = scale(have.flatMap(xs), { pad: 0.02 }), y = scale([sorted[0], edge], {});
    const { px, py, edge: e, w, h } = axes(ctx, width, height, x, y, axis === "tokens" ? "training tokens" : "seconds of training", titled(C.name));
    const line = (i) => C.values[i].map((v, k) => [px(xs(i)[k]), py(v)]);
    ctx.save(); ctx.beginPath(); ctx.rect(e.left, e.top, w, h); ctx.clip();
    ctx.lineJoin = "round"; ctx.globalAlpha = Math.max(0.12, Math.min(0.7, 30 / have.length)); ctx.lineWidth = 1;
    for (const i of [...have].reverse()) { ctx.strokeStyle = R[i].group ? tint(R[i].group.mean) : colour("worst"); stroke(ctx, line(i)); }
    ctx.globalAlpha = 1;
    if (have.length > 3) { ctx.strokeStyle = colour("text"); ctx.lineWidth = 2; ctx.setLineDash([6, 4]); stroke(ctx, middle(have, xs, C).map(([a, b]) => [px(a), py(b)])); ctx.setLineDash([]); }
    ctx.strokeStyle = colour("hot"); ctx.lineWidth = 2.5; stroke(ctx, line(top));
    ctx.restore();
    return have.flatMap((i) => line(i).map(([a, b], k) => ({ x: a, y: b, tip: () => `${R[i].run}\n${C.name} ${shown(C.values[i][k])} after ${short(xs(i)[k])} ${axis}${R[i].group ? "\n" + settings(R[i].group) : "\n" + R[i].state}` })).filter((s) => s.y > 0 && s.y < e.top + h));
  });
  const toggle = (text, get, set) => {
    const button = make("button", { "aria-pressed": get(), onclick: () => { set(); button.setAttribute("aria-pressed", get()); redraw(); } }, text);
    tools.append(button);
  };
  toggle("against seconds", () => axis === "seconds", () => (axis = axis === "seconds" ? "tokens" : "seconds"));
  toggle("close up", () => close, () => (close = !close));
  place.append(make("figcaption", {}, `Orange: ${top === D.best ? "the best run" : `the best by ${C.name}`} (${R[top].run}). ${have.length > 3 ? "Dashed: the median of the runs that have come so far. " : ""}All others by their result, from blue (best) to grey. Point at a curve for its run.`));
}

function middle(have, xs, C) {
  const last = max(have.map((i) => xs(i)[xs(i).length - 1])), found = [];
  for (let s = 1; s <= 60; s++) {
    const at = (last * s) / 60, values = [];
    for (const i of have) {
      const x = xs(i), y = C.values[i];
      if (x[0] > at || x[x.length - 1] < at * 0.999) continue;
      const k = x.findIndex((v) => v >= at);
      values.push(k < 1 ? y[k < 0 ? y.length - 1 : 0] : y[k - 1] + ((y[k] - y[k - 1]) * (at - x[k - 1])) / (x[k] - x[k - 1] || 1));
    }
    if (values.length >= Math.max(2, have.length / 4)) found.push([at, median(values)]);
  }
  return found;
}

function parallel() {
  if (!P.length || G.length < 2) return drop("parallel");
  const place = body("parallel"), brushes = new Map(), S = [...P.map((_, i) => paramScale(i, 0.03)), scoreScale(0.03)];
  const names = [...P.map((p) => p.name), M], at = (g, k) => (k < P.length ? S[k].of(value(g, k)) : S[k].of(clip(g.mean)));
  const kept = (g) => [...brushes].every(([k, [a, b]]) => { const v = at(g, k); return v !== undefined && v >= a && v <= b; });
  const note = make("figcaption"), edge = { left: 60, right: 70, top: 34, bottom: 12 }, height = 340;
  let xs = [], inner = height - edge.top - edge.bottom;
  const { canvas, redraw } = figure(place, height, "parallel coordinates", (ctx, width) => {
    const w = width - edge.left - edge.right, y = (share) => edge.top + (1 - share) * inner, spots = [];
    xs = names.map((_, k) => edge.left + (w * k) / (names.length - 1));
    ctx.lineWidth = 1.2;
    const sorted = [...G].reverse(), path = (g) => names.map((_, k) => [xs[k], at(g, k)]).filter(([, v]) => v !== undefined).map(([x, v]) => [x, y(v)]);
    for (const on of [false, true]) {
      for (const g of sorted) {
        if (kept(g) !== on) continue;
        ctx.globalAlpha = on ? Math.max(0.2, Math.min(0.85, 60 / G.length)) : 0.07;
        ctx.strokeStyle = on ? tint(g.mean) : colour("worst");
        const points = path(g);
        stroke(ctx, points);
        if (on) points.forEach(([px, py]) => spots.push({ x: px, y: py, tip: () => told(g) }));
      }
    }
    ctx.globalAlpha = 1;
    if (kept(G[0])) { ctx.strokeStyle = colour("hot"); ctx.lineWidth = 2.5; stroke(ctx, path(G[0])); }
    names.forEach((name, k) => {
      ctx.strokeStyle = colour("soft"); ctx.lineWidth = 1; stroke(ctx, [[xs[k], edge.top], [xs[k], edge.top + inner]]);
      const room = w / (names.length - 1) - 8;
      ctx.textAlign = "center"; ctx.fillStyle = colour("text"); ctx.textBaseline = "alphabetic";
      ctx.fillText(fitted(ctx, name.split(".").pop(), room), xs[k], edge.top - 18);
      if (name.includes(".")) { ctx.fillStyle = colour("soft"); ctx.fillText(fitted(ctx, name.slice(0, name.lastIndexOf(".")), room), xs[k], edge.top - 5); }
      ctx.fillStyle = colour("text"); ctx.textAlign = "left"; ctx.textBaseline = "middle"; ctx.lineWidth = 3; ctx.strokeStyle = colour("back");
      for (const [v, label] of S[k].ticks) { const text = fitted(ctx, label, room - 6); ctx.strokeText(text, xs[k] + 5, y(v)); ctx.fillText(text, xs[k] + 5, y(v)); }
      const brush = brushes.get(k);
      if (brush) { ctx.fillStyle = colour("hot"); ctx.globalAlpha = 0.35; ctx.fillRect(xs[k] - 6, y(brush[1]), 12, (brush[1] - brush[0]) * inner); ctx.globalAlpha = 1; }
    });
    const n = G.filter(kept).length;
    note.textContent = `Each line is a configuration, orange ${FIRST}. Drag along an axis to keep only those that pass there, click it to let go${brushes.size ? `; ${n} of ${G.length} kept` : ""}.${clipped}`;
    return spots;
  });
  let held = null;
  const spot = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, 1 - (event.clientY - box.top - edge.top) / inner]; };
  canvas.addEventListener("pointerdown", (event) => {
    const [x, v] = spot(event), k = xs.findIndex((a) => Math.abs(a - x) < 22);
    if (k >= 0) { held = { k, v }; canvas.setPointerCapture(event.pointerId); }
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!held) return;
    const v = spot(event)[1];
    if (Math.abs(v - held.v) > 0.015) { brushes.set(held.k, [Math.min(v, held.v), Math.max(v, held.v)]); redraw(); }
  });
  canvas.addEventListener("pointerup", (event) => {
    if (held && Math.abs(spot(event)[1] - held.v) <= 0.015) { brushes.delete(held.k); redraw(); }
    held = null;
  });
  place.append(note);
}

function importance() {
  const { values, together, note } = D.importance, bars = [...values, ["together (interactions)", together]];
  if (!values.length && !P.length) return drop("importance");
  const place = body("importance");
  if (values.length) {
    figure(place, 22 + 26 * bars.length, "importance of the parameters", (ctx, width) => {
      const left = Math.min(240, width * 0.4);
      bars.forEach(([name, part], k) => {
        const y = 12 + 26 * k;
        ctx.fillStyle = colour("text"); ctx.textBaseline = "middle"; ctx.textAlign = "right";
        ctx.fillText(fitted(ctx, name, left - 12), left - 8, y + 8);
        ctx.fillStyle = colour(k < values.length ? "best" : "soft"); ctx.fillRect(left, y, Math.max(1, part * (width - left - 60)), 16);
        ctx.fillStyle = colour("text"); ctx.textAlign = "left";
        ctx.fillText(`${Math.round(part * 100)} %`, left + part * (width - left - 60) + 6, y + 8);
      });
    });
    place.append(make("figcaption", {}, `Share of the variance of ${M} that each explains by itself, and that only several together do (fANOVA, Hutter et al. 2014; a few hundredths of it are the forest's own error), among these ${G.length} configurations: within the ranges that were tried.`));
  }
  if (note) place.append(make("p", { class: "soft" }, note));
}

function slices() {
  if (!P.length || G.length < 2) return drop("slices");
  const grid = make("div", { class: "grid" });
  body("slices").append(grid);
  const weight = new Map(D.importance.values), order = P.map((_, i) => i).sort((a, b) => (weight.get(P[b].name) || 0) - (weight.get(P[a].name) || 0));
  order.slice(0, 24).forEach((i) => figure(grid, 230, `${M} against ${P[i].name}`, (ctx, width, height) => {
    const x = paramScale(i), { px, py, w, h, edge } = axes(ctx, width, height, x, scoreScale(0.06), P[i].name, M);
    const inside = (y) => Math.min(Math.max(y, edge.top), edge.top + h);
    const jitter = x.words ? (g) => ((((g.rank * 0.618) % 1) - 0.5) * w * 0.5) / x.words.length : () => 0;
    return [...G].reverse().filter((g) => x.of(value(g, i)) !== undefined).map((g) => {
      const spot = { x: px(value(g, i)) + jitter(g), y: py(clip(g.mean)), tip: () => told(g) };
      ctx.globalAlpha = G.length > 200 ? 0.6 : 0.9;
      if (g.low != null && G.length <= 60) { ctx.strokeStyle = tint(g.mean); stroke(ctx, [[spot.x, inside(py(g.low))], [spot.x, inside(py(g.high))]]); }
      dot(ctx, spot.x, spot.y, G.length > 200 ? 2.5 : 3.5, g.rank === 1 ? colour("hot") : tint(g.mean));
      ctx.globalAlpha = 1;
      return spot;
    });
  }));
  body("slices").append(make("figcaption", {}, `Each point is a configuration${G.length <= 60 && G.some((g) => g.n > 1) ? ", its line the 95 % interval" : ""}; orange is ${FIRST}.${clipped}`));
}

function contour() {
  if (P.length < 2 || G.length < 6) return drop("contour");
  const weight = new Map(D.importance.values);
  const order = P.map((_, i) => i).sort((a, b) => P[b].number - P[a].number || (weight.get(P[b].name) || 0) - (weight.get(P[a].name) || 0));
  let [a, b] = order;
  const place = body("contour"), names = P.map((p) => p.name);
  place.append(make("div", { class: "tools" },
    choice("across", names, a, (i) => { a = i; redraw(); }), choice("up", names, b, (i) => { b = i; redraw(); })));
  const { redraw } = figure(place, 420, "two parameters at a time", (ctx, width, height) => {
    const x = paramScale(a, 0.05), y = paramScale(b, 0.05);
    const { px, py, edge, w, h } = axes(ctx, width, height, x, y, P[a].name, P[b].name);
    const points = G.map((g) => [x.of(value(g, a)), y.of(value(g, b)), clip(g.mean), g]).filter(([u, v]) => u !== undefined && v !== undefined);
    const nx = x.words ? x.words.length : 96, ny = y.words ? y.words.length : 72, bands = 9;
    // A mean of the neighbours, weighed by their distance; words are neighbours of nothing but themselves.
    const reaches = [0, 1].map((k) => reach(points.map((p) => p[k])));
    const far = (d, s, k) => (s.words ? (Math.abs(d) * s.words.length > 0.5 ? Infinity : 0) : d / reaches[k]);
    for (let i = 0; i < nx; i++) for (let j = 0; j < ny; j++) {
      const u = (i + 0.5) / nx, v = (j + 0.5) / ny;
      let sum = 0, total = 0;
      for (const [pu, pv, score] of points) {
        const d = far(u - pu, x, 0) ** 2 + far(v - pv, y, 1) ** 2;
        if (d < 16) { const k = Math.exp(-d / 2); sum += k; total += k * score; }
      }
      if (sum < 0.1) continue;
      ctx.fillStyle = blend(Math.round(share(total / sum) * bands) / bands);
      ctx.globalAlpha = 0.5;
      // Whole pixels: what overlaps would be seen twice.
      const [left, right] = [i, i + 1].map((k) => Math.round(edge.left + (w * k) / nx)), [low, high] = [j, j + 1].map((k) => Math.round(edge.top + h - (h * k) / ny));
      ctx.fillRect(left, high, right - left, low - high);
    }
    ctx.globalAlpha = 1;
    return points.reverse().map(([, , score, g]) => {
      const shift = (words, size) => (words ? ((((g.rank * 0.618) % 1) - 0.5) * size * 0.6) / words.length : 0);
      const spot = { x: px(value(g, a)) + shift(x.words, w), y: py(value(g, b)) + shift(y.words && !x.words ? y.words : null, h), tip: () => told(g) };
      dot(ctx, spot.x, spot.y, G.length > 200 ? 3 : 4.5, colour("back"));
      dot(ctx, spot.x, spot.y, G.length > 200 ? 2 : 3.5, g.rank === 1 ? colour("hot") : tint(score));
      return spot;
    });
  });
  place.append(make("figcaption", {}, `Points are configurations, by their result from blue (best, orange ${O.length ? FIRST : "the best of all"}) to grey; the surface is a mean of the neighbours, and says nothing where nothing was tried. Other parameters vary along.${clipped}`));
}

// How far a point's neighbourhood goes: to the next of few values, else by how many there are.
function reach(places) {
  const different = [...new Set(places)].sort((a, b) => a - b);
  if (different.length <= 12) return 0.45 * max(different.map((v, i) => (i ? v - different[i - 1] : 0.02)));
  return Math.max(0.04, 0.35 / Math.sqrt(places.length));
}

function pareto() {
  const sizes = ["seconds", "parameters"].filter((name) => new Set(G.map((g) => g[name]).filter((v) => v != null)).size > 1);
  if (G.length < 2 || !sizes.length) return drop("pareto");
  const grid = make("div", { class: "grid two" });
  body("pareto").append(grid);
  for (const name of sizes) figure(grid, 320, `${M} against ${name}`, (ctx, width, height) => {
    const known = G.filter((g) => g[name] > 0), values = known.map((g) => g[name]);
    const x = scale(values, { log: max(values) / min(values) > 5 });
    const { px, py } = axes(ctx, width, height, x, scoreScale(0.06), titled(name), titled(M));
    // Best first: on the front is what is cheaper than all that are better; what cannot win is not.
    let cheapest = Infinity;
    const front = known.filter((g) => !g.lacking.length).filter((g) => { const on = g[name] < cheapest; cheapest = Math.min(cheapest, g[name]); return on; });
    const spots = [...known].reverse().map((g) => {
      const spot = { x: px(g[name]), y: py(clip(g.mean)), tip: () => `${told(g)}\n${name} ${short(g[name])}` };
      ctx.globalAlpha = 0.65; dot(ctx, spot.x, spot.y, 3, tint(g.mean)); ctx.globalAlpha = 1;
      return spot;
    });
    ctx.strokeStyle = colour("hot"); ctx.lineWidth = 1.8;
    stroke(ctx, front.map((g) => [px(g[name]), py(clip(g.mean))]));
    front.forEach((g) => dot(ctx, px(g[name]), py(clip(g.mean)), 4.5, colour("hot")));
    return spots;
  });
  body("pareto").append(make("figcaption", {}, `On the line: nothing that costs less is better.${clipped}`));
}

function failures() {
  const bad = D.members.map((i) => R[i]).filter((r) => !r.group);
  if (!bad.length) return drop("failures");
  const columns = [{ name: "run", get: (r) => r.run, word: true }, { name: "state", get: (r) => r.state.split(":")[0], word: true },
    { name: "reason", get: (r) => r.reason || (r.state.includes(":") ? r.state.slice(r.state.indexOf(":") + 2) : ""), word: true, long: true },
    { name: "steps", get: (r) => r.steps }];
  table(body("failures"), columns, bad, { search: (r) => [r.run, r.state, r.reason].join(" ").toLowerCase() });
}

[winner, front, leaderboard, equal, scaling, curves, parallel, importance, slices, contour, pareto, failures, head].forEach((section) => section());
