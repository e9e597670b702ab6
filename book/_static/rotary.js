/* The interactive figures of the page on rotary embeddings. No library, no request, no randomness.

   The arithmetic comes first and repeats pythia_core/kernels/rotary.py; the tests run it in node and
   compare. Below it each <div class="rotary" data-rotary="..."> becomes a picture with sliders;
   without this script the static figures stand in its place. */
(() => {
"use strict";

// --- arithmetic --------------------------------------------------------------------------------

const BASE = 10000, FRACTION = 0.25, CONTEXT = 2048, REACH = 128, STRETCH = 32;
const MODELS = {
  32: "14M, 31M", 64: "70M, 160M, 410M", 80: "2.8B", 128: "1.4B, 6.9B, 12B", 256: "1B",
};
// significant bits, exponent of the smallest normal number
const TYPES = { bf16: [8, -126], fp16: [11, -14], fp32: [24, -126] };
const WAYS = {
  "bf16": "bf16 throughout", "fp16": "fp16 throughout",
  "fp32, bf16": "angle in fp32, then bf16", "fp32, fp16": "angle in fp32, then fp16",
};

function rotaryDims(headDim) {
  return Math.floor(FRACTION * headDim);
}

/** Radians per position of every pair. */
function inverseFrequencies(headDim) {
  const dims = rotaryDims(headDim);
  return Array.from({ length: dims / 2 }, (_, i) => BASE ** (-2 * i / dims));
}

/** Turn the first dims of a head's vector; dim i is paired with dim i + rotaryDims / 2. */
function rotate(vector, position) {
  const turned = vector.slice(), frequencies = inverseFrequencies(vector.length);
  const half = frequencies.length;
  frequencies.forEach((frequency, i) => {
    const cos = Math.cos(position * frequency), sin = Math.sin(position * frequency);
    turned[i] = vector[i] * cos - vector[i + half] * sin;
    turned[i + half] = vector[i + half] * cos + vector[i] * sin;
  });
  return turned;
}

/** Score of a query at m and a key at n, at most 1: both are one hand of length 1 in every pair. */
function score(m, n, headDim) {
  const half = rotaryDims(headDim) / 2;
  const vector = Array.from({ length: headDim }, (_, i) => (i < half ? 1 : 0));
  const query = rotate(vector, m), key = rotate(vector, n);
  return query.reduce((sum, x, i) => sum + x * key[i], 0) / half;
}

/** The nearest number of a floating-point type, ties to even. */
function round(x, type) {
  if (x === 0) return 0;
  const [bits, lowest] = TYPES[type];
  const step = 2 ** (Math.max(Math.floor(Math.log2(Math.abs(x))), lowest) - bits + 1);
  const nearest = Math.round(x / step);
  return step * (Math.abs((x / step) % 1) === 0.5 && nearest % 2 ? nearest - 1 : nearest);
}

/** The angle of a position with everything in one type. */
function angle(position, frequency, type) {
  return round(round(position, type) * round(frequency, type), type);
}

/** The larger error of cos and sin; `way` is a key of WAYS. */
function tableError(position, frequency, way) {
  const [first, last] = [way.split(", ")[0], way.split(", ").pop()];
  const got = angle(position, frequency, first), exact = position * frequency;
  return Math.max(
    Math.abs(round(Math.cos(got), last) - Math.cos(exact)),
    Math.abs(round(Math.sin(got), last) - Math.sin(exact)));
}

/** The largest error of any pair in each stretch of positions. */
function errorCurve(headDim, way) {
  const tops = new Array(CONTEXT / STRETCH).fill(0), frequencies = inverseFrequencies(headDim);
  for (let position = 0; position < CONTEXT; position++) {
    const k = Math.floor(position / STRETCH);
    for (const frequency of frequencies) {
      tops[k] = Math.max(tops[k], tableError(position, frequency, way));
    }
  }
  return tops;
}

// --- pictures: each gives SVG text for a width, and a sentence that says what it shows -----------

const state = { m: 20, n: 12, headDim: 64, pair: 2, position: 2047 };
const hue = (i, pairs) => (385 - 170 * i / Math.max(pairs - 1, 1)) % 360;
const tone = (i, pairs) => `style="--hue:${hue(i, pairs).toFixed(0)}"`;
const fixed = (x, digits) => x.toFixed(digits).replace("-", "\u2212");
const grouped = (x) => x.toLocaleString("en-US", { maximumFractionDigits: x < 100 ? 1 : 0 });
const points = (pairs) => pairs.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
const tip = (turn, length) => [length * Math.sin(turn), -length * Math.cos(turn)];
const picture = (width, height, body) =>
  `<svg width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">${body}</svg>`;
const text = (x, y, words, kind = "") => `<text x="${x}" y="${y}" class="${kind}">${words}</text>`;
const line = (x1, y1, x2, y2, kind) =>
  `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" class="${kind}"/>`;

/** A clock face with two hands [turn, class]; the smaller angle between them is shaded. */
function dial(hands, label, style, extra = "") {
  const [[a], [b]] = hands, clockwise = Math.sin(a - b) > 0 ? 1 : 0;
  const wedge = `M0,0L${tip(b, 0.5)}A0.5,0.5 0 0 ${clockwise} ${tip(a, 0.5)}Z`;
  const drawn = hands.map(([turn, kind]) => {
    const [x, y] = tip(turn, 0.92);
    return `<line x2="${x}" y2="${y}" class="${kind}"/>`;
  });
  return `<svg viewBox="-1.1 -1.1 2.2 2.9" class="dial ${extra}" ${style}><circle r="1"/>` +
    `<path d="${wedge}"/>${drawn.reverse().join("")}<text y="1.62">${label}</text></svg>`;
}

function turning(width) {
  const { m, n, headDim } = state, frequencies = inverseFrequencies(headDim);
  const dials = frequencies.map((f, i) =>
    dial([[m * f, "query"], [n * f, "key"]], i, tone(i, frequencies.length)));
  const height = 210, x = (d) => 34 + (width - 40) * (d + REACH - 1) / (2 * REACH - 2);
  const y = (s) => 14 + (height - 50) * (1 - s) / 1.5;
  const curve = Array.from({ length: 2 * REACH - 1 }, (_, k) => k - REACH + 1).map(
    (d) => [x(d), y(d < 0 ? score(0, -d, headDim) : score(d, 0, headDim))]);
  const ticks = [-100, -50, 0, 50, 100].map((d) =>
    line(x(d), y(-0.5), x(d), y(1), "grid") + text(x(d), height - 22, fixed(d, 0), "middle"));
  const levels = [-0.5, 0, 0.5, 1].map((s) =>
    line(x(1 - REACH), y(s), x(REACH - 1), y(s), "grid") + text(29, y(s) + 4, fixed(s, 1), "end"));
  const now = score(m, n, headDim);
  const body = `<rect x="${x(1 - REACH)}" y="${y(1)}" width="${x(-0.5) - x(1 - REACH)}" ` +
    `height="${y(-0.5) - y(1)}" class="masked"/>` + ticks.join("") + levels.join("") +
    text(x(1 - REACH) + 6, y(-0.5) - 6, "key after query: masked", "quiet") +
    text(x(0), height - 5, "distance m \u2212 n", "middle") +
    `<polyline points="${points(curve)}" class="curve"/>` +
    line(x(m - n), y(-0.5), x(m - n), y(now), "guide") +
    `<circle cx="${x(m - n)}" cy="${y(now)}" r="6" class="now"/>`;
  return {
    markup: '<p class="legend">Solid hand: query at m. Dashed hand: key at n. ' +
      "Shaded: the angle between them.</p>" +
      `<div class="dials">${dials.join("")}</div>` + picture(width, height, body),
    says: `m = ${m}, n = ${n}: distance ${fixed(m - n, 0)}, score ${fixed(now, 3)}` +
      (m < n ? "; the model masks this one, its key comes later." : "."),
  };
}

function quarter(width) {
  const { headDim, pair } = state, dims = rotaryDims(headDim), half = dims / 2;
  const cell = (dim, count, y, kind) => `<rect x="${dim * width / count}" y="${y}" ` +
    `width="${width / count}" height="24" class="${kind}" ${tone(dim % half, half)}/>`;
  const cells = (count, y) => Array.from(
    { length: count }, (_, dim) => cell(dim, count, y, dim < dims ? "pair" : "rest")).join("");
  const wide = width / dims, centre = (dim) => (dim + 0.5) * wide, top = 138;
  const others = Array.from({ length: half }, (_, i) => i).filter((i) => i !== pair);
  const arcs = [...others, pair].map((i) => // the chosen one on top
    `<path d="M${centre(i)},${top}A${half * wide / 2},42 0 0 1 ${centre(i + half)},${top}" ` +
    `class="arc ${i === pair ? "chosen" : ""}" ${tone(i, half)}/>`);
  const every = wide > 20 ? 1 : wide > 10 ? 2 : 8;
  const names = Array.from({ length: dims }, (_, dim) => dim).filter((dim) => dim % every === 0);
  const body = cells(headDim, 20) +
    text(0, 13, `${dims} rotate`) + text(width, 13, `${headDim - dims} stay as they are`, "end") +
    line(0, 44, 0, top, "guide") + line(width * dims / headDim, 44, width, top, "guide") + arcs.join("") +
    cells(dims, top) + [pair, pair + half].map((dim) => cell(dim, dims, top, "pair chosen")).join("") +
    names.map((dim) => text(centre(dim), top + 40, dim, "middle")).join("");
  return {
    markup: picture(width, top + 48, body),
    says: `Head of ${headDim} dims: the first ${dims} rotate. ` +
      `Pair ${pair} is dim ${pair} with dim ${pair + half}.`,
  };
}

function frequencies(width) {
  const { headDim, pair } = state, turns = inverseFrequencies(headDim).map((f) => 2 * Math.PI / f);
  const tall = turns.length > 16 ? 9 : turns.length > 10 ? 15 : 22, bottom = turns.length * tall + 18;
  const x = (turn) => 30 + (width - 44) * Math.log10(turn) / 5;
  const ticks = [0, 1, 2, 3, 4, 5].map((power) =>
    line(x(10 ** power), 18, x(10 ** power), bottom, "grid") +
    text(x(10 ** power), bottom + 16, power < 4 ? grouped(10 ** power) : `${10 ** (power - 3)}k`, "middle"));
  const bars = turns.map((turn, i) =>
    `<rect x="${x(1)}" y="${18 + i * tall + 1}" width="${x(turn) - x(1)}" height="${tall - 2}" ` +
    `class="pair ${i === pair ? "chosen" : ""}" ${tone(i, turns.length)}/>` +
    (tall > 12 || i % 4 === 0 ? text(25, 18 + (i + 0.5) * tall + 4, i, "end") : ""));
  const body = ticks.join("") + bars.join("") + line(x(CONTEXT), 14, x(CONTEXT), bottom, "context") +
    text(x(CONTEXT), 10, `context ${grouped(CONTEXT)}`, "middle") +
    text(x(1), bottom + 33, "tokens for one full turn (logarithmic)");
  return {
    markup: picture(width, bottom + 40, body),
    says: `Pair ${pair} turns once in ${grouped(turns[pair])} tokens: ` +
      `${fixed(CONTEXT / turns[pair], 2)} turns in the context of ${grouped(CONTEXT)}.`,
  };
}

const curves = {}; // head dim -> error curves, computed once
function precision(width) {
  const { headDim, pair, position } = state, frequency = inverseFrequencies(headDim)[pair];
  curves[headDim] ??= Object.keys(WAYS).map((way) => errorCurve(headDim, way));
  const wide = width - 46, height = 230;
  const x = (p) => 42 + wide * p / CONTEXT, y = (e) => 10 + (height - 50) * (0.5 - Math.log10(e)) / 4.5;
  const ticks = [0, 500, 1000, 1500, 2000].map((p) =>
    line(x(p), y(3), x(p), y(1e-4), "grid") +
    text(x(p), height - 22, grouped(p), p < 2000 ? "middle" : "end"));
  const levels = [1, 0.1, 0.01, 0.001, 0.0001].map((e) =>
    line(x(0), y(e), x(CONTEXT), y(e), "grid") + text(38, y(e) + 4, String(e), "end"));
  const drawn = Object.keys(WAYS).map((way, k) => `<polyline class="way way${k}" points="` +
    points(curves[headDim][k].map((e, i) => [x((i + 0.5) * STRETCH), y(e)])) + '"/>');
  const legend = Object.values(WAYS).map((label, k) =>
    `<span><svg width="26" height="8"><line x2="26" y1="4" y2="4" class="way way${k}"/></svg> ` +
    `${label}</span>`);
  const exact = position * frequency, off = {};
  for (const type of ["fp16", "bf16"]) {
    const turn = (angle(position, frequency, type) - exact) / (2 * Math.PI);
    off[type] = 360 * (turn - Math.round(turn));
  }
  const body = ticks.join("") + levels.join("") + drawn.join("") +
    line(x(position), y(3), x(position), y(1e-4), "guide") + text(x(0), height - 5, "position");
  const faces = Object.keys(off).map((type) =>
    dial([[angle(position, frequency, type), type], [exact, "exact"]], type, "", "large"));
  return {
    markup: `<p class="legend">${legend.join(" ")}</p>` + picture(width, height, body) +
      `<p class="legend">The chosen pair at the chosen position. Dashed hand: exact. Shaded: the error.</p>` +
      `<div class="dials wide">${faces.join("")}</div>`,
    says: `Pair ${pair} at position ${grouped(position)}: its hand is off by ` +
      `${fixed(Math.abs(off.fp16), 1)}\u00b0 in fp16, ${fixed(Math.abs(off.bf16), 1)}\u00b0 in bf16.`,
  };
}

// --- sliders and drawing -----------------------------------------------------------------------

const WIDGETS = {
  turning: [turning, ["m", "n", "both", "headDim"]],
  quarter: [quarter, ["headDim", "pair"]],
  frequencies: [frequencies, ["headDim", "pair"]],
  precision: [precision, ["position", "pair", "headDim"]],
};
const CONTROLS = { // label, largest value, value
  m: ["query at m", () => REACH - 1, () => state.m],
  n: ["key at n", () => REACH - 1, () => state.n],
  both: ["move both", () => REACH - 1 - Math.abs(state.m - state.n), () => Math.min(state.m, state.n)],
  pair: ["pair", () => rotaryDims(state.headDim) / 2 - 1, () => state.pair],
  position: ["position", () => CONTEXT - 1, () => state.position],
};

function change(name, value) {
  if (name === "both") {
    const shift = value - Math.min(state.m, state.n);
    state.m += shift;
    state.n += shift;
  } else {
    state[name] = value;
    state.pair = Math.min(state.pair, CONTROLS.pair[1]());
  }
}

function control(name) {
  const options = Object.keys(MODELS).map((d) => `<option value="${d}">${d} (${MODELS[d]})</option>`);
  return name === "headDim"
    ? `<label><span>head dims</span><select data-set="headDim">${options.join("")}</select></label>`
    : `<label><span>${CONTROLS[name][0]}</span>` +
      `<input type="range" min="0" data-set="${name}"><b></b></label>`;
}

function draw(host) {
  const paint = WIDGETS[host.dataset.rotary][0], frame = host.querySelector(".picture");
  if (!frame.clientWidth) return; // not shown, e.g. in print
  for (const input of host.querySelectorAll("[data-set]")) {
    const known = CONTROLS[input.dataset.set];
    if (known) {
      input.max = known[1]();
      input.nextSibling.textContent = known[2]();
    }
    input.value = known ? known[2]() : state.headDim;
  }
  const { markup, says } = paint(Math.floor(frame.clientWidth));
  frame.innerHTML = markup;
  frame.setAttribute("aria-label", says);
  const output = host.querySelector("output");
  if (output.textContent !== says) output.textContent = says;
}

function start() {
  const hosts = [...document.querySelectorAll(".rotary[data-rotary]")];
  for (const host of hosts) {
    host.innerHTML = `<div class="controls">${WIDGETS[host.dataset.rotary][1].map(control).join("")}</div>` +
      '<output></output><div class="picture" role="img"></div>';
    host.closest("figure").classList.add("rotary-live");
    host.addEventListener("input", (event) => {
      for (const each of hosts) { // only the figure in use speaks
        each.querySelector("output").setAttribute("aria-live", each === host ? "polite" : "off");
      }
      change(event.target.dataset.set, Number(event.target.value));
      hosts.forEach(draw);
    });
    let width = host.clientWidth; // drawing changes the height only
    new ResizeObserver(() => {
      if (width !== host.clientWidth) requestAnimationFrame(() => draw(host));
      width = host.clientWidth;
    }).observe(host);
  }
  hosts.forEach(draw);
}

if (typeof document !== "undefined") start();
if (typeof module !== "undefined") {
  module.exports = { MODELS, rotaryDims, inverseFrequencies, rotate, score, round, tableError, errorCurve };
}
})();
