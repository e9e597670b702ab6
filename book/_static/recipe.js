/* The calculator of the recipe: shape, batch and GPUs in; parameters, work, memory and time out.
   Without this script the static figure stands in its place. */
"use strict";

(() => {
const FIELDS = { // label, smallest and largest value
  layers: ["layers", 1, 400], width: ["width", 8, 65536], heads: ["heads", 1, 512], vocabulary: ["vocabulary", 2, 1e6],
  rows: ["rows per update", 1, 65536], seqLen: ["tokens per row", 1, 32768], updates: ["updates", 1, 1e8],
};
const CHOICES = { gpus: ["H100s of 80 GB", [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]], precision: ["precision", ["bf16", "fp32"]] };
const SHAPE = ["layers", "width", "heads", "vocabulary"];
const OWN = "own";

const LIMIT = 1e6; // the largest price

const grouped = (x) => Math.round(x).toLocaleString("en-US");
const escaped = (words) => String(words).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const short = (x, digits = 3) => (x >= 100 ? grouped(x) : Number(x.toPrecision(digits)).toString());
const counted = (n, one, more) => `${grouped(n)} ${n === 1 ? one : more}`;
const gigabytes = (x) => `${short(x / 1e9)} GB`;
function power(x) {
  const [digits, exponent] = x.toExponential(2).split("e");
  return `${digits} \u00d7 10<sup>${Number(exponent)}</sup>`;
}
function duration(seconds) {
  const [size, name] = [[86400, "days"], [3600, "hours"], [60, "minutes"]].find(([each]) => seconds >= 2 * each) || [1, "seconds"];
  return `${short(seconds / size)} ${name}`;
}

/** The state that a page starts with. */
function initial(c, size = "70m", gpus = 8) {
  const [layers, width, heads, vocabulary] = c.sizes[size];
  return { size, layers, width, heads, vocabulary, rows: c.rows, seqLen: c.seqLen, updates: c.updates, gpus, precision: "bf16", price: 0 };
}

/** Change one value by name; numbers out of range are moved into it, other text changes nothing. */
function change(c, state, name, value) {
  if (name === "size") {
    if (value === OWN) state.size = OWN;
    else if (Object.hasOwn(c.sizes, value)) {
      state.size = value;
      c.sizes[value].forEach((each, i) => { state[SHAPE[i]] = each; });
    }
  } else if (name in CHOICES) {
    const found = CHOICES[name][1].find((each) => String(each) === String(value));
    if (found !== undefined) state[name] = found;
  } else if (name === "price") {
    if (Number.isFinite(Number(value))) state.price = Math.max(0, Math.min(Number(value), LIMIT));
  } else if (name in FIELDS) {
    const [, least, most] = FIELDS[name], whole = Math.round(Number(value));
    if (!Number.isFinite(whole) || value === "") return;
    state[name] = Math.max(least, Math.min(whole, most));
    const same = Object.keys(c.sizes).find((size) => c.sizes[size].every((each, i) => each === state[SHAPE[i]]));
    state.size = same || OWN;
  }
}

/** Returns the state for the address; what is as at the start is null, which explorable.store removes. */
function kept(c, state) {
  const start = initial(c), own = state.size === OWN;
  return Object.fromEntries(Object.entries(state).map(([name, value]) =>
    [name, value === start[name] || (SHAPE.includes(name) && !own) ? null : value]));
}

function restore(c, state, values) {
  if (values.size) change(c, state, "size", values.size);
  for (const name of [...SHAPE, "rows", "seqLen", "updates", "gpus", "precision", "price"]) {
    if (values[name]) change(c, state, name, values[name]);
  }
}

/** The results as pairs of a name and HTML. */
function results(c, state) {
  const found = recipe.plan(c, state), hours = found.seconds && found.seconds * state.gpus / 3600;
  const gpuHours = (seconds) => (seconds * state.gpus >= 36000 ? grouped(seconds * state.gpus / 3600) : short(seconds * state.gpus / 3600, 2));
  const times = (seconds) => `${duration(seconds)}, ${gpuHours(seconds)} GPU-hours`;
  const copies = found.split === 1 ? "whole on each GPU" : `split over ${found.split} GPUs`;
  return { found, lines: [
    ["Parameters", grouped(found.all)],
    ["without the vocabulary\u2019s matrices", grouped(found.inside)],
    ["Tokens", `${grouped(found.tokens)}, ${short(found.tokens / found.all)} per parameter`],
    ["FLOP of the matrix products", power(found.flop)],
    ["by the rule 6NT", power(found.rule)],
    ...(found.microBatch ? [["Training state", copies]] : []),
    ...(found.microBatch ? [["Rows per pass", `${found.microBatch}, ${counted(Math.ceil(found.rows / found.microBatch), "pass", "passes")} per update`],
      ["Memory per GPU", `${gigabytes(found.memory)} of ${gigabytes(c.gpuBytes)}`]] : []),
    ...(found.seconds ? [["Time, by the cost model", times(found.seconds)]] : []),
    ...(found.fixed ? [[`Time, at ${100 * c.utilization} % of the peak`, times(found.fixed)]] : []),
    ...(hours && state.price ? [["Price", `${grouped(hours * state.price)} at ${escaped(state.price)} per GPU-hour`]] : []),
  ] };
}

/** Memory per GPU: a bar for each part, and all parts as a share of the GPU's memory. */
function bars(c, found, width) {
  const left = 148, wide = width - left - 64, largest = Math.max(...Object.values(found.parts));
  const x = (bytes) => left + wide * bytes / Math.max(found.memory, c.gpuBytes), end = (bytes) => left + wide * bytes / largest;
  const rows = Object.entries(c.parts).map(([part, [label, color]], i) =>
    `<text x="${left - 8}" y="${i * 22 + 16}" class="end">${escaped(label)}</text>` +
    `<rect x="${left}" y="${i * 22 + 4}" width="${Math.max(0.5, end(found.parts[part]) - left).toFixed(1)}" height="16" fill="${color}"/>` +
    `<text x="${(end(found.parts[part]) + 6).toFixed(1)}" y="${i * 22 + 16}">${gigabytes(found.parts[part])}</text>`);
  const bottom = rows.length * 22 + 8;
  let at = 0;
  const whole = Object.entries(c.parts).map(([part, [, color]]) => {
    const shape = `<rect x="${x(at).toFixed(1)}" y="${bottom}" width="${(x(found.parts[part]) - left).toFixed(1)}" height="20" fill="${color}"/>`;
    at += found.parts[part];
    return shape;
  });
  const limit = x(c.gpuBytes).toFixed(1);
  return `<svg width="${width}" height="${bottom + 26}" viewBox="0 0 ${width} ${bottom + 26}" role="img" aria-label="Memory by part">` +
    rows.join("") + `<text x="${left - 8}" y="${bottom + 14}" class="end strong">in all, of ${gigabytes(c.gpuBytes)}</text>` + whole.join("") +
    `<line x1="${limit}" x2="${limit}" y1="${bottom - 4}" y2="${bottom + 24}" class="limit"/></svg>`;
}

/** What is wrong with the number that is being typed; "" if it counts. */
function outOfRange(host) {
  const input = document.activeElement;
  if (!host.contains(input) || input.type !== "number" || input.validity.valid && input.value) return "";
  const label = input.closest("label").textContent, most = grouped(Number(input.max));
  return `The ${label} must be between ${input.min} and ${most}; the results are for ${grouped(input.dataset.used)}.`;
}

function draw(host, c, state) {
  for (const input of host.querySelectorAll("[data-set]")) {
    input.dataset.used = state[input.dataset.set];
    if (input !== document.activeElement || input.tagName === "SELECT") input.value = state[input.dataset.set];
  }
  const { found, lines } = results(c, state), frame = host.querySelector(".picture");
  host.querySelector("table").innerHTML = lines.map(([name, value]) => `<tr><th scope="row">${name}</th><td>${value}</td></tr>`).join("");
  frame.innerHTML = found.microBatch && frame.clientWidth ? bars(c, found, Math.floor(frame.clientWidth)) : "";
  host.querySelector("output").textContent = outOfRange(host) || found.problem ||
    `${grouped(found.all)} parameters: ${gigabytes(found.memory)} on each GPU, ${duration(found.seconds)}.`;
}

function start() {
  for (const host of document.querySelectorAll(".recipe[data-recipe]")) {
    const c = JSON.parse(host.dataset.values), state = initial(c);
    restore(c, state, explorable.stored());
    const options = (values) => values.map((each) => `<option>${escaped(each)}</option>`).join("");
    const field = (name, label, least, most) => `<label><span>${label}</span>` +
      `<input type="number" inputmode="decimal" min="${least}" max="${most}" data-set="${name}"></label>`;
    const select = (name, label, values) => `<label><span>${label}</span><select data-set="${name}">${options(values)}</select></label>`;
    host.innerHTML = `<div class="controls">${select("size", "size", [...Object.keys(c.sizes), OWN])}` +
      Object.entries(FIELDS).map(([name, [label, least, most]]) => field(name, label, least, most)).join("") +
      Object.entries(CHOICES).map(([name, [label, values]]) => select(name, label, values)).join("") +
      `${field("price", "your price per GPU-hour", 0, LIMIT)}</div><output aria-live="polite"></output>` +
      '<div class="sides"><table></table><div class="picture"></div></div>';
    host.closest("figure").classList.add("explorable-live");
    host.addEventListener("input", (event) => {
      change(c, state, event.target.dataset.set, event.target.value);
      draw(host, c, state);
      explorable.store(kept(c, state));
    });
    host.addEventListener("focusout", () => draw(host, c, state)); // a typed number out of range
    explorable.watch(host, () => draw(host, c, state));
    draw(host, c, state);
  }
}

if (typeof document !== "undefined") start();
if (typeof module !== "undefined") module.exports = { initial, change, kept, restore };
})();
