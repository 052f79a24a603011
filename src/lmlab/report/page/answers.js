// What runs answer beside which is best: families with something held equal, and how the loss scales.
const HELD = {
  parameters: "At equal parameters: each family with its best budget",
  tokens: "At equal training tokens: each family with its best size",
  seconds: "At equal seconds of training: the best that each family reaches in that time, at any size",
};

function equal() {
  if (!D.equal.length) return drop("equal");
  const place = body("equal"), names = [...new Set(D.equal.flatMap((row) => Object.keys(row.families)))].sort();
  const half = (one) => (one.low == null ? "" : ` ± ${shown((one.high - one.low) / 2, 2)}`);
  const from = (one) => (one.chosen_from > 1 ? `, best of ${one.chosen_from}` : "");
  for (const held of Object.keys(HELD)) {
    const rows = D.equal.filter((row) => row.held === held);
    if (!rows.length) continue;
    place.append(make("h3", {}, HELD[held]));
    const columns = [{ name: held, get: (row) => row.at, cell: (row) => short(row.at) }];
    for (const name of names) {
      const one = (row) => row.families[name];
      columns.push({ name: `${name}: ${M}`, get: (row) => one(row)?.mean, cell: (row) => (one(row) ? `${shown(one(row).mean, 5)}${half(one(row))}${from(one(row))}` : "") });
      for (const size of ["parameters", "tokens"]) if (size !== held)
        columns.push({ name: size, get: (row) => one(row)?.[size], cell: (row) => (one(row) ? short(one(row)[size]) : "") });
    }
    const proof = (row) => (row.half == null ? "" : ` ± ${shown(row.half, 2)}, p ${row.p_holm < 0.001 ? "< 0.001" : shown(row.p_holm, 2)}`);
    columns.push({ name: "better", get: (row) => row.winner, word: true, cell: (row) =>
      row.winner ? `${row.winner} by ${shown(row.by, 3)}${proof(row)}` : `not decided: ${shown(row.by, 2)}${proof(row)}` });
    table(place, columns, rows);
  }
  const single = D.equal.some((row) => row.half == null);
  place.append(make("p", { class: "soft" }, "Seconds: between a shorter and a longer run of the same kind, each trained with its own schedule to its end. ± is half of the 95 % interval; of a difference, Welch's; p is of his test, for all comparisons of this section together (Holm 1979), and decides below 0.05." + (single ? " Single runs have none: replicates would." : "")));
  const chosen = D.equal.some((row) => Object.values(row.families).some((one) => one.chosen_from > 1));
  if (chosen) place.append(make("p", { class: "soft" }, "Best of so many configurations of the family: chosen by the same numbers that are compared here, which flatters most whoever was chosen from most. The chosen on text that chose none of them settle it: lmlab compare A B split=test."));
}

function scaling() {
  if (!D.laws.length) return drop("scaling");
  const place = body("scaling"), between = ([v, low, high]) => `${shown(v, 3)} (${shown(low, 3)} to ${shown(high, 3)})`;
  for (const law of D.laws) {
    const { floor, alpha, beta, optimal } = law.numbers, facts = make("div", { class: "facts" });
    if (law.label) place.append(make("h3", {}, law.label));
    const add = (name, value) => facts.append(make("div", {}, make("span", { class: "soft" }, name), make("b", {}, value)));
    add("exponent of parameters", between(alpha)); add("exponent of tokens", between(beta));
    add("floor E", between(floor)); add("best size grows as C to the", between(optimal));
    place.append(facts);
    const sizes = law.lines.map((l) => l.parameters);
    const of = (n) => (sizes.length < 2 ? 0 : Math.log(n / sizes[0]) / Math.log(sizes[sizes.length - 1] / sizes[0]));
    const hue = (n) => blend(1 - Math.min(Math.max(of(n), 0), 1));
    figure(place, 400, "scaling law", (ctx, width, height) => {
      const all = law.lines.flatMap((l) => l.tokens), ys = [...law.points.map((p) => p[2]), ...law.lines.flatMap((l) => l.mean)];
      const x = scale(all, { log: true, pad: 0.02 }), y = scale(ys, { log: true, pad: 0.05 });
      const { px, py, edge, w, h } = axes(ctx, width, height, x, y, "training tokens", titled(M));
      ctx.save(); ctx.beginPath(); ctx.rect(edge.left, edge.top, w, h); ctx.clip();
      for (const l of law.lines) {
        const path = (key) => l.tokens.map((t, i) => [px(t), py(l[key][i])]);
        ctx.fillStyle = hue(l.parameters); ctx.globalAlpha = 0.15;
        ctx.beginPath(); [...path("low"), ...path("high").reverse()].forEach(([a, b], i) => (i ? ctx.lineTo(a, b) : ctx.moveTo(a, b))); ctx.fill();
        ctx.globalAlpha = 1; ctx.strokeStyle = hue(l.parameters); ctx.lineWidth = 1.6; stroke(ctx, path("mean"));
      }
      ctx.restore();
      ctx.textAlign = "right"; ctx.textBaseline = "bottom"; ctx.fillStyle = colour("text");
      let free = Infinity;
      [...law.lines].reverse().forEach((l) => {
        const k = l.tokens.length - 1, level = py(l.mean[k]) - 3;
        if (Math.abs(level - free) < 13) return;
        free = level; ctx.fillText(short(l.parameters), px(l.tokens[k]) - 4, level);
      });
      return law.points.map(([n, d, v]) => {
        const spot = { x: px(d), y: py(v), tip: () => `${short(n)} parameters, ${short(d)} tokens\n${M} ${shown(v, 5)}` };
        dot(ctx, spot.x, spot.y, 4.5, colour("back")); dot(ctx, spot.x, spot.y, 3.5, hue(n));
        return spot;
      });
    });
    place.append(make("figcaption", {}, `${M} = E + A / N^α + B / D^β (Hoffmann et al. 2022), fitted to ${law.n} runs, which scatter by ${shown(law.rms, 2)} about it. A line for each size N, labelled with its parameters, on to four times the tokens D that were tried; bands and brackets are 95 % intervals of the bootstrap.`));
  }
}
