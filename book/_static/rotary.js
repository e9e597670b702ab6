/* The interactive figures of the page on rotary embeddings. No library, no request, no randomness.

   Each <div class="rotary" data-rotary="..."> becomes a picture with sliders, which can itself be dragged;
   without this script the static figures stand in its place. */
"use strict";

(() => {
const { REACH, CONTEXT, STRETCH, MODELS, WAYS, SAME, rotaryDims, inverseFrequencies, share, score, angle, errorCurve } = rotary;

// --- pictures: each gives SVG text for a width, and a sentence that says what it shows -----------

const state = { m: 20, n: 12, headDim: 64, pair: 2, position: 2047, learned: {} };
const hue = (i, pairs) => (385 - 170 * i / Math.max(pairs - 1, 1)) % 360;
const tone = (i, pairs) => `style="--hue:${hue(i, pairs).toFixed(0)}"`;
const fixed = (x, digits) => x.toFixed(digits).replace("-", "\u2212");
const grouped = (x) => x.toLocaleString("en-US", { maximumFractionDigits: x < 100 ? 1 : 0 });
const points = (pairs) => pairs.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
const tip = (turn, length) => [length * Math.sin(turn), -length * Math.cos(turn)];
const picture = (width, height, body, grab = "") =>
  `<svg width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" data-grab="${grab}">${body}</svg>`;
const text = (x, y, words, kind = "") => `<text x="${x}" y="${y}" class="${kind}">${words}</text>`;
const line = (x1, y1, x2, y2, kind) =>
  `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" class="${kind}"/>`;
const learnedOf = (pair) => state.learned[pair] || SAME;
const within = (x, low, high) => Math.max(low, Math.min(x, high));

/** A clock face with two hands [turn, class, length]; the smaller angle between them is shaded. */
function dial(hands, label, style, extra = "", grab = "") {
  const [[a], [b]] = hands, clockwise = Math.sin(a - b) > 0 ? 1 : 0;
  const wedge = `M0,0L${tip(b, 0.5)}A0.5,0.5 0 0 ${clockwise} ${tip(a, 0.5)}Z`;
  const drawn = hands.map(([turn, kind, length = 1]) => {
    const [x, y] = tip(turn, 0.92 * length);
    const knob = extra === "big" && kind === "query" ? `<circle cx="${x}" cy="${y}" r="0.11" class="knob"/>` : "";
    return `<line x2="${x}" y2="${y}" class="${kind}"/>${knob}`;
  });
  const tall = extra === "big" ? 2.5 : 2.9;
  return `<svg viewBox="-1.1 -1.1 2.2 ${tall}" class="dial ${extra}" ${style} ${grab}><circle r="1"/>` +
    `<path d="${wedge}"/>${drawn.reverse().join("")}<text y="${tall - 1.28}">${label}</text></svg>`;
}

/** The two hands of a pair. */
function handsOf(i, frequency) {
  const [degrees, percent] = learnedOf(i);
  const query = state.m * frequency + degrees * Math.PI / 180;
  return [[query, "query", percent / 100], [state.n * frequency, "key"]];
}

const MARGIN = 12, CURVE = { left: 34, right: 6, height: 210 };
const placeX = (position, width) => MARGIN + (width - 2 * MARGIN) * position / (REACH - 1);
const distanceX = (distance, width) =>
  CURVE.left + (width - CURVE.left - CURVE.right) * (distance + REACH - 1) / (2 * REACH - 2);

/** The row of tokens with the two that are compared. */
function track(width) {
  const { m, n } = state, [q, k] = [placeX(m, width), placeX(n, width)], y = 26;
  const ticks = [0, 32, 64, 96, 127].map((p) => text(placeX(p, width), 56, p, "middle quiet"));
  const middle = within((q + k) / 2, 44, width - 44);
  const body = line(MARGIN, y, width - MARGIN, y, "rail") + ticks.join("") +
    `<rect x="${Math.min(q, k)}" y="${y - 5}" width="${Math.abs(q - k)}" height="10" class="between" data-handle="both"/>` +
    text(middle, 12, `distance ${fixed(m - n, 0)}`, "middle") +
    `<g class="token-handle" data-handle="n"><circle cx="${k}" cy="${y}" r="16" class="hit"/>` +
    `<circle cx="${k}" cy="${y}" r="9" class="key"/>${text(k, y + 4, "k", "middle key")}</g>` +
    `<g class="token-handle" data-handle="m"><circle cx="${q}" cy="${y}" r="16" class="hit"/>` +
    `<circle cx="${q}" cy="${y}" r="9" class="query"/>${text(q, y + 4, "q", "middle query")}</g>`;
  return picture(width, 60, body, "track");
}

/** The score over the distance, and the chosen pair's own part of it. */
function curve(width) {
  const { m, n, headDim, pair, learned } = state, { height } = CURVE;
  const all = inverseFrequencies(headDim), frequency = all[pair];
  const x = (d) => distanceX(d, width), y = (s) => 14 + (height - 50) * (1 - s) / 2;
  const distances = Array.from({ length: 2 * REACH - 1 }, (_, k) => k - REACH + 1);
  const [whole, part] = [(d) => score(d, headDim, learned), (d) => share(d, frequency, learnedOf(pair))]
    .map((value) => points(distances.map((d) => [x(d), y(value(d))])));
  const ticks = [-100, -50, 0, 50, 100].map((d) =>
    line(x(d), y(-1), x(d), y(1), "grid") + text(x(d), height - 22, fixed(d, 0), "middle"));
  const levels = [-1, -0.5, 0, 0.5, 1].map((s) =>
    line(x(1 - REACH), y(s), x(REACH - 1), y(s), "grid") + text(29, y(s) + 4, fixed(s, 1), "end"));
  const now = score(m - n, headDim, learned);
  return picture(width, height, `<rect x="${x(1 - REACH)}" y="${y(1)}" width="${x(-0.5) - x(1 - REACH)}" ` +
    `height="${y(-1) - y(1)}" class="masked"/>` + ticks.join("") + levels.join("") +
    text(x(1 - REACH) + 6, y(-1) - 6, "key after query: masked", "quiet") +
    text(x(0), height - 5, "distance m \u2212 n", "middle") +
    `<polyline points="${part}" class="part" ${tone(pair, all.length)}/>` +
    `<polyline points="${whole}" class="curve"/>` + line(x(m - n), y(-1), x(m - n), y(now), "guide") +
    `<circle cx="${x(m - n)}" cy="${y(now)}" r="7" class="now"/>`, "curve");
}

function turning(width) {
  const { m, n, headDim, pair, learned } = state, frequencies = inverseFrequencies(headDim);
  const dials = frequencies.map((f, i) => dial(handsOf(i, f), i, tone(i, frequencies.length),
    i === pair ? "chosen" : "", `data-pair="${i}"`));
  const side = width > 520 ? 190 : Math.min(width, 220), beside = width > 520 ? width - side - 12 : width;
  const big = dial(handsOf(pair, frequencies[pair]), `pair ${pair}`, tone(pair, frequencies.length),
    "big", 'data-grab="hand"');
  const [degrees] = learnedOf(pair), turn = degrees + (m - n) * frequencies[pair] * 180 / Math.PI;
  const between = Math.abs(turn - 360 * Math.round(turn / 360));
  return {
    markup: track(width) + `<div class="dials">${dials.join("")}</div>` +
      `<div class="plane"><div style="flex:0 0 ${side}px">${big}</div>${curve(beside)}</div>` +
      '<p class="legend">Solid hand: query. Dashed: key. Shaded: the angle between them. Thin curve: the chosen pair alone.</p>',
    says: `m = ${m}, n = ${n}: distance ${fixed(m - n, 0)}, score ${fixed(score(m - n, headDim, learned), 3)}` +
      (m < n ? "; the model masks this one, because its key comes later. " : ". ") +
      `Pair ${pair}: ${fixed(between, 0)}\u00b0 between the hands, share ` +
      `${fixed(share(m - n, frequencies[pair], learnedOf(pair)), 2)}.`,
  };
}

function quarter(width) {
  const { headDim, pair } = state, dims = rotaryDims(headDim), half = dims / 2;
  const cell = (dim, count, y, kind) => `<rect x="${dim * width / count}" y="${y}" ` +
    `width="${width / count}" height="24" class="${kind}" ${tone(dim % half, half)}` +
    `${dim < dims ? ` data-pair="${dim % half}"` : ""}/>`;
  const cells = (count, y) => Array.from(
    { length: count }, (_, dim) => cell(dim, count, y, dim < dims ? "pair" : "rest")).join("");
  const wide = width / dims, center = (dim) => (dim + 0.5) * wide, top = 138;
  const others = Array.from({ length: half }, (_, i) => i).filter((i) => i !== pair);
  const arcs = [...others, pair].map((i) => // the chosen one on top
    `<path d="M${center(i)},${top}A${half * wide / 2},42 0 0 1 ${center(i + half)},${top}" ` +
    `class="arc ${i === pair ? "chosen" : ""}" ${tone(i, half)} data-pair="${i}"/>`);
  const every = wide > 20 ? 1 : wide > 10 ? 2 : 8;
  const names = Array.from({ length: dims }, (_, dim) => dim).filter((dim) => dim % every === 0);
  const body = cells(headDim, 20) +
    text(0, 13, `${dims} rotate`) + text(width, 13, `${headDim - dims} stay as they are`, "end") +
    line(0, 44, 0, top, "guide") + line(width * dims / headDim, 44, width, top, "guide") + arcs.join("") +
    cells(dims, top) + [pair, pair + half].map((dim) => cell(dim, dims, top, "pair chosen")).join("") +
    names.map((dim) => text(center(dim), top + 40, dim, "middle")).join("");
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
    (tall > 12 || i % 4 === 0 ? text(25, 18 + (i + 0.5) * tall + 4, i, "end") : "") +
    `<rect x="0" y="${18 + i * tall}" width="${width}" height="${tall}" class="hit" data-pair="${i}"/>`);
  const body = ticks.join("") + line(x(CONTEXT), 14, x(CONTEXT), bottom, "context") + bars.join("") +
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
    line(x(position), y(3), x(position), y(1e-4), "guide") +
    `<circle cx="${x(position)}" cy="${y(3)}" r="7" class="now"/>` + text(x(0), height - 5, "position");
  const faces = Object.keys(off).map((type) =>
    dial([[angle(position, frequency, type), type], [exact, "exact"]], type, "", "large"));
  return {
    markup: `<p class="legend">${legend.join(" ")}</p>` + picture(width, height, body, "error") +
      `<p class="legend">The chosen pair at the chosen position. Dashed hand: exact. Shaded: the error.</p>` +
      `<div class="dials wide">${faces.join("")}</div>`,
    says: `Pair ${pair} at position ${grouped(position)}: its hand is off by ` +
      `${fixed(Math.abs(off.fp16), 1)}\u00b0 in fp16, ${fixed(Math.abs(off.bf16), 1)}\u00b0 in bf16.`,
  };
}

// --- controls, drawing, dragging -----------------------------------------------------------------

const WIDGETS = { // picture, controls, what it shows
  turning: [turning, ["m", "n", "both", "headDim", "pair", "phi", "length"], ["m", "n", "learned"]],
  quarter: [quarter, ["headDim", "pair"], []],
  frequencies: [frequencies, ["headDim", "pair"], []],
  precision: [precision, ["position", "pair", "headDim"], ["position"]],
};
const CONTROLS = { // label, smallest value, largest, value
  m: ["query at m", () => 0, () => REACH - 1, () => state.m],
  n: ["key at n", () => 0, () => REACH - 1, () => state.n],
  both: ["move both", () => 0, () => REACH - 1 - Math.abs(state.m - state.n), () => Math.min(state.m, state.n)],
  pair: ["pair", () => 0, () => rotaryDims(state.headDim) / 2 - 1, () => state.pair],
  phi: ["its \u03c6, in \u00b0", () => -180, () => 180, () => learnedOf(state.pair)[0]],
  length: ["its |q| |k|, in %", () => 0, () => 100, () => learnedOf(state.pair)[1]],
  position: ["position", () => 0, () => CONTEXT - 1, () => state.position],
};

/** Change the state by name; values out of range are moved into it, other text changes nothing. */
function change(name, value) {
  const whole = Math.round(Number(value));
  if (!Number.isFinite(whole)) return;
  if (name === "headDim") {
    if (!(whole in MODELS)) return;
    if (state.headDim !== whole) state.learned = {};
    state.headDim = whole;
    state.pair = Math.min(state.pair, CONTROLS.pair[2]());
    return;
  }
  const [, least, most] = CONTROLS[name], [degrees, percent] = learnedOf(state.pair);
  const valid = within(whole, least(), most());
  if (name === "both") {
    const shift = valid - Math.min(state.m, state.n);
    state.m += shift;
    state.n += shift;
  } else if (name === "phi" || name === "length") {
    const learned = name === "phi" ? [valid, percent] : [degrees, valid];
    state.learned = { ...state.learned, [state.pair]: learned };
    if (String(learned) === String(SAME)) delete state.learned[state.pair];
  } else {
    state[name] = valid;
  }
}

/** Choose a distance, at the query's place if the key can follow. */
function moveApart(distance) {
  const n = state.m - within(Math.round(distance), 1 - REACH, REACH - 1);
  state.n = within(n, 0, REACH - 1);
  state.m += state.n - n;
}

/** Returns the state for the address; what is as at the start is null, which explorable.store removes. */
function kept() {
  const learned = Object.entries(state.learned).map(([i, [phi, length]]) => `${i}.${phi}.${length}`);
  const values = { dims: state.headDim, m: state.m, n: state.n, pair: state.pair, position: state.position };
  const start = { dims: 64, m: 20, n: 12, pair: 2, position: 2047 };
  for (const name of Object.keys(start)) if (values[name] === start[name]) values[name] = null;
  return { ...values, learned: learned.join("_") || null };
}

function restore(values) {
  if (values.dims) change("headDim", values.dims);
  for (const part of (values.learned || "").split("_")) {
    const found = part.match(/^(\d+)\.(-?\d+)\.(\d+)$/);
    if (!found || Number(found[1]) > CONTROLS.pair[2]()) continue;
    state.pair = Number(found[1]);
    change("phi", found[2]);
    change("length", found[3]);
  }
  if (values.learned) state.pair = Math.min(2, CONTROLS.pair[2]());
  for (const name of ["m", "n", "pair", "position"]) if (values[name]) change(name, values[name]);
}

function control(name) {
  const options = Object.keys(MODELS).map((d) => `<option value="${d}">${d} (${MODELS[d]})</option>`);
  return name === "headDim"
    ? `<label><span>head dims</span><select data-set="headDim">${options.join("")}</select></label>`
    : `<label><span>${CONTROLS[name][0]}</span><input type="range" data-set="${name}"><b></b></label>`;
}

function draw(host) {
  const [paint, names, shows] = WIDGETS[host.dataset.rotary], frame = host.querySelector(".picture");
  const width = Math.floor(frame.clientWidth);
  if (!width) return; // not shown, e.g. in print
  const key = JSON.stringify([width, state.headDim, state.pair, ...shows.map((name) => state[name])]);
  if (host.drawn === key) return;
  host.drawn = key;
  for (const input of host.querySelectorAll("[data-set]")) {
    const known = CONTROLS[input.dataset.set];
    if (known) {
      [input.min, input.max] = [known[1](), known[2]()];
      input.nextSibling.textContent = fixed(known[3](), 0);
    }
    input.value = known ? known[3]() : state.headDim;
  }
  const { markup, says } = paint(width);
  frame.innerHTML = markup;
  frame.setAttribute("aria-label", says);
  const output = host.querySelector("output");
  if (output.textContent !== says) output.textContent = says;
}

/** What follows a pointer that goes down in a picture; null if nothing does. */
function grabbed(event, act) {
  const svg = event.target.closest("svg"), pair = event.target.closest("[data-pair]");
  if (pair) {
    return (moved) => {
      const at = document.elementFromPoint(moved.clientX, moved.clientY);
      const other = at && at.closest("[data-pair]");
      if (other) act(() => change("pair", other.dataset.pair));
    };
  }
  const what = svg && svg.dataset.grab, wide = svg && svg.viewBox.baseVal.width;
  const box = svg && svg.getBoundingClientRect();
  const across = (moved) => (moved.clientX - box.left) * wide / box.width;
  if (what === "track") {
    const position = (moved) => (across(moved) - MARGIN) * (REACH - 1) / (wide - 2 * MARGIN);
    const held = event.target.closest("[data-handle]"), from = position(event), low = Math.min(state.m, state.n);
    const near = Math.abs(from - state.m) <= Math.abs(from - state.n) ? "m" : "n";
    const name = held ? held.dataset.handle : near;
    return (moved) => act(() => change(name, name === "both" ? low + position(moved) - from : position(moved)));
  }
  if (what === "curve") {
    const span = wide - CURVE.left - CURVE.right;
    return (moved) => act(() => moveApart((across(moved) - CURVE.left) * (2 * REACH - 2) / span + 1 - REACH));
  }
  if (what === "error") {
    return (moved) => act(() => change("position", (across(moved) - 42) * CONTEXT / (wide - 46)));
  }
  if (what === "hand") {
    return (moved) => {
      const x = (moved.clientX - box.left) * 2.2 / box.width - 1.1, y = (moved.clientY - box.top) * 2.2 / box.width - 1.1;
      const turned = state.m * inverseFrequencies(state.headDim)[state.pair] * 180 / Math.PI;
      const phi = Math.atan2(x, -y) * 180 / Math.PI - turned;
      act(() => {
        change("phi", phi - 360 * Math.round(phi / 360));
        change("length", 100 * Math.hypot(x, y) / 0.92);
      });
    };
  }
  return null;
}

function start() {
  const hosts = [...document.querySelectorAll(".rotary[data-rotary]")];
  restore(explorable.stored());
  for (const host of hosts) {
    const reset = host.dataset.rotary === "turning" ? '<button type="button">Reset</button>' : "";
    host.innerHTML = `<div class="controls">${WIDGETS[host.dataset.rotary][1].map(control).join("")}${reset}</div>` +
      '<output></output><div class="picture" role="img"></div>';
    host.closest("figure").classList.add("explorable-live");
    const act = (action) => {
      for (const each of hosts) { // only the figure in use speaks
        each.querySelector("output").setAttribute("aria-live", each === host ? "polite" : "off");
      }
      action();
      hosts.forEach(draw);
      explorable.store(kept());
    };
    host.addEventListener("input", (event) => act(() => change(event.target.dataset.set, event.target.value)));
    if (reset) {
      host.querySelector("button").addEventListener("click", () =>
        act(() => Object.assign(state, { m: 20, n: 12, headDim: 64, pair: 2, learned: {} })));
    }
    explorable.drag(host.querySelector(".picture"), (event) => grabbed(event, act));
    explorable.watch(host, () => draw(host));
  }
  hosts.forEach(draw);
}

start();
})();
