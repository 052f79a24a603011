// Drawing: elements, numbers, axes and points on a canvas that follows the theme and the window.
const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function shown(value, digits = 4) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return Math.abs(value) < 1e4 ? String(value) : value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e4) return Math.round(value).toLocaleString("en");
  if (size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return String(+value.toPrecision(digits));
}

function short(value) {
  for (const [scale, letter] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= scale) return +(value / scale).toPrecision(3) + letter;
  return shown(value, 3);
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

// 0 is the best, 1 the worst.
function blend(share) {
  const stops = ["best", "fair", "poor", "worst"].map(colour);
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2);
  const [a, b] = [stops[i], stops[i + 1]].map((c) => [1, 3, 5].map((k) => parseInt(c.slice(k, k + 2), 16)));
  return "rgb(" + a.map((v, k) => Math.round(v + (b[k] - v) * (at - i))).join(",") + ")";
}

// A scale from values to 0..1: logarithmic, linear, or of words. exact: few values are their own ticks.
function scale(values, { log = false, words = null, pad = 0.04, exact = false } = {}) {
  if (words) {
    const place = new Map(words.map((word, i) => [word, (i + 0.5) / words.length]));
    return { of: (v) => place.get(v), ticks: words.map((w) => [place.get(w), w]), words };
  }
  const known = values.filter((v) => v !== null && v !== undefined && (!log || v > 0));
  const f = log ? Math.log10 : (v) => v;
  let [low, high] = known.length ? [f(min(known)), f(max(known))] : [0, 1];
  if (low === high) [low, high] = log ? [low - 0.5, high + 0.5] : [low - (Math.abs(low) || 1) * 0.05, high + (Math.abs(high) || 1) * 0.05];
  const margin = (high - low) * pad;
  [low, high] = [low - margin, high + margin];
  const of = (v) => (v === null || v === undefined || (log && v <= 0) ? undefined : (f(v) - low) / (high - low));
  const few = [...new Set(known)].sort((a, b) => a - b);
  return { of, ticks: (exact && few.length <= 6 ? few : ticks(low, high, log)).map((v) => [of(v), short(v)]) };
}

function ticks(low, high, log) {
  if (log) {
    const found = [];
    for (const factors of [[1], [1, 3], [1, 2, 5]]) {
      found.length = 0;
      for (let p = Math.floor(low); p <= Math.ceil(high); p++)
        for (const k of factors) { const v = Math.log10(k) + p; if (v >= low && v <= high) found.push(+(k * 10 ** p).toPrecision(2)); }
      if (found.length >= 3) return found;
    }
    return found.length > 1 ? found : [10 ** low, 10 ** high].map((v) => +v.toPrecision(2));
  }
  const raw = (high - low) / 4, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((s) => s >= raw);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) found.push(+v.toPrecision(10));
  return found;
}

// Not Math.min(...values): a hundred thousand arguments are too many.
const min = (values) => values.reduce((a, b) => (b < a ? b : a));
const max = (values) => values.reduce((a, b) => (b > a ? b : a));
function median(values) {
  const sorted = [...values].sort((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

const redraws = [];
// A canvas; draw(ctx, width, height) returns what can be pointed at: [{x, y, tip}] in pixels, or nothing.
function figure(parent, height, label, draw) {
  const canvas = make("canvas", { role: "img", "aria-label": label });
  parent.append(make("figure", {}, canvas));
  let spots = [];
  const redraw = () => {
    const width = canvas.clientWidth || 600, ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio; canvas.height = height * ratio; canvas.style.height = height + "px";
    const ctx = canvas.getContext("2d");
    ctx.scale(ratio, ratio);
    ctx.font = "12px system-ui, 'Noto Sans', 'Noto Sans CJK SC', sans-serif";
    spots = draw(ctx, width, height) || [];
  };
  canvas.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let nearest = null, least = 18 ** 2;
    for (const spot of spots) {
      const d = (spot.x - x) ** 2 + (spot.y - y) ** 2;
      if (d < least) { least = d; nearest = spot; }
    }
    tip(nearest && nearest.tip, event);
  });
  canvas.addEventListener("mouseleave", () => tip(null));
  redraws.push(redraw);
  redraw();
  return { canvas, redraw };
}

function tip(text, event) {
  const box = $("tip");
  box.style.display = text ? "block" : "none";
  if (!text) return;
  box.textContent = typeof text === "function" ? text() : text;
  const left = Math.min(event.clientX + 14, window.innerWidth - box.offsetWidth - 8);
  box.style.left = Math.max(left, 4) + "px";
  box.style.top = Math.max(Math.min(event.clientY + 14, window.innerHeight - box.offsetHeight - 8), 4) + "px";
}

window.addEventListener("resize", () => redraws.forEach((redraw) => redraw()));
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach((redraw) => redraw()));

// Axes with titles; returns where a value lies. Labels of words are shortened until they fit.
function axes(ctx, width, height, x, y, xTitle, yTitle) {
  const edge = { left: 58, right: 14, top: 10, bottom: 42 };
  const w = width - edge.left - edge.right, h = height - edge.top - edge.bottom;
  const px = (v) => edge.left + x.of(v) * w, py = (v) => edge.top + (1 - y.of(v)) * h;
  ctx.strokeStyle = colour("line"); ctx.fillStyle = colour("soft"); ctx.lineWidth = 1;
  ctx.textAlign = "right"; ctx.textBaseline = "middle";
  for (const [at, label] of y.ticks) {
    const level = edge.top + (1 - at) * h;
    stroke(ctx, [[edge.left, level], [edge.left + w, level]]);
    ctx.fillText(fitted(ctx, label, edge.left - 8), edge.left - 6, level);
  }
  ctx.textAlign = "center"; ctx.textBaseline = "top";
  let free = -Infinity;
  for (const [at, label] of x.ticks) {
    const place = edge.left + at * w, text = fitted(ctx, label, x.words ? w / x.ticks.length - 4 : 90);
    const half = ctx.measureText(text).width / 2;
    stroke(ctx, [[place, edge.top + h], [place, edge.top + h + 4]]);
    if (place - half < free) continue;
    ctx.fillText(text, place, edge.top + h + 7);
    free = place + half + 6;
  }
  stroke(ctx, [[edge.left, edge.top], [edge.left, edge.top + h], [edge.left + w, edge.top + h]]);
  ctx.fillStyle = colour("text");
  ctx.fillText(fitted(ctx, xTitle, w), edge.left + w / 2, height - 16);
  ctx.save(); ctx.translate(11, edge.top + h / 2); ctx.rotate(-Math.PI / 2); ctx.textBaseline = "middle";
  ctx.fillText(fitted(ctx, yTitle, h), 0, 0); ctx.restore();
  return { px, py, edge, w, h };
}

function fitted(ctx, text, room) {
  text = String(text);
  if (ctx.measureText(text).width <= room) return text;
  while (text.length > 1 && ctx.measureText(text + "…").width > room) text = text.slice(0, -1);
  return text + "…";
}

function stroke(ctx, points) {
  ctx.beginPath();
  points.forEach(([x, y], i) => (i ? ctx.lineTo(x, y) : ctx.moveTo(x, y)));
  ctx.stroke();
}

function dot(ctx, x, y, radius, fill) {
  ctx.beginPath(); ctx.arc(x, y, radius, 0, 2 * Math.PI); ctx.fillStyle = fill; ctx.fill();
}

function choice(label, options, chosen, then) {
  const select = make("select", { onchange: () => then(+select.value) });
  options.forEach((name, i) => select.append(make("option", { value: i, ...(i === chosen ? { selected: "" } : {}) }, name)));
  return make("label", {}, label + " ", select);
}
