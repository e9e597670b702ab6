/* The interactive figures of the page on how a batch comes about. No library, no request.

   The arithmetic comes first and repeats pythia_core/data/order.py, NumPy's frozen RandomState included;
   the tests run it in node and compare. Below it each <div class="batch" data-batch="..."> becomes a
   figure to click and drag; without this script the static figures stand in its place. */
"use strict";

// --- arithmetic --------------------------------------------------------------------------------

/** NumPy's RandomState, as far as it shuffles: the Mersenne Twister and its bounded integers. */
class RandomState {
  constructor(seed) {
    this.key = new Uint32Array(624);
    this.key[0] = seed;
    for (let i = 1; i < 624; i++) {
      const last = this.key[i - 1] ^ (this.key[i - 1] >>> 30);
      this.key[i] = Math.imul(1812433253, last) + i;
    }
    this.place = 624;
  }

  next() {
    const { key } = this;
    if (this.place === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (key[i] & 0x80000000) | (key[(i + 1) % 624] & 0x7fffffff);
        key[i] = key[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.place = 0;
    }
    let y = key[this.place++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** A whole number in 0..most. */
  upTo(most) {
    const mask = 2 ** (32 - Math.clz32(most)) - 1;
    for (;;) {
      const value = (this.next() & mask) >>> 0;
      if (value <= most) return value;
    }
  }

  shuffle(list) {
    for (let i = list.length - 1; i > 0; i--) {
      const j = this.upTo(i);
      [list[i], list[j]] = [list[j], list[i]];
    }
    return list;
  }
}

/** The order of training: documents in stream order, where each begins, and the rows' order. */
function rowOrder(sizes, seqLen, seed, epochs) {
  const random = new RandomState(seed), tiled = [];
  for (let epoch = 0; epoch < epochs; epoch++) tiled.push(...sizes.keys());
  const documents = random.shuffle(tiled), begins = [0];
  for (const document of documents) begins.push(begins[begins.length - 1] + sizes[document]);
  const total = begins[documents.length], count = Math.floor((total - 1) / seqLen);
  const rows = random.shuffle([...Array(count).keys()]), ranks = new Array(count);
  rows.forEach((row, rank) => { ranks[row] = rank; });
  return { seqLen, documents, begins, total, rows, ranks };
}

/** The place in the list of documents that has token `position` of the stream. */
function placeOf(order, position) {
  let low = 0, high = order.documents.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (order.begins[middle + 1] > position) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Parts [document, first token, last token + 1, place in the list] of stream tokens [low, high). */
function parts(order, low, high) {
  const found = [];
  for (let place = placeOf(order, low); place < order.documents.length; place++) {
    const begin = order.begins[place], end = order.begins[place + 1];
    if (begin >= high) break;
    const first = Math.max(begin, low), stop = Math.min(end, high);
    if (first < stop) found.push([order.documents[place], first - begin, stop - begin, place]);
  }
  return found;
}

/** Parts of row `number` of the stream, its S + 1 tokens. */
const spans = (order, number) =>
  parts(order, number * order.seqLen, (number + 1) * order.seqLen + 1);

/** The rows of the stream with tokens of the document at a place, from first to last. */
function rowsOf(order, place) {
  const begin = order.begins[place], end = order.begins[place + 1], last = order.rows.length - 1;
  // the first token of a row is also the last one of the row before it
  const first = Math.max(0, Math.ceil(begin / order.seqLen) - 1), stop = Math.floor((end - 1) / order.seqLen);
  return Array.from({ length: Math.max(0, Math.min(stop, last) - first + 1) }, (_, k) => first + k);
}

// --- pictures ----------------------------------------------------------------------------------

const grouped = (x) => x.toLocaleString("en-US");
const escaped = (words) => words.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const hue = (document, count) => ((20 + 300 * document / Math.max(count - 1, 1)) % 360).toFixed(0);
const rect = (x, y, width, height, kind, style = "") =>
  `<rect x="${x.toFixed(2)}" y="${y}" width="${Math.max(width, 0.3).toFixed(2)}" ` +
  `height="${height}" class="${kind}" ${style}/>`;
const text = (x, y, words, kind = "") =>
  `<text x="${x.toFixed(1)}" y="${y}" class="${kind}">${words}</text>`;
const line = (x, top, bottom, kind) =>
  `<line x1="${x.toFixed(1)}" x2="${x.toFixed(1)}" y1="${top}" y2="${bottom}" class="${kind}"/>`;
const picture = (width, height, body, grab) =>
  `<svg width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" data-grab="${grab}">${body}</svg>`;

/** Everything about the chosen step and row. */
function chosen(figure) {
  const { data, state } = figure;
  const key = `${state.seed} ${state.epochs}`;
  if (figure.key !== key) {
    figure.key = key;
    figure.order = rowOrder(data.sizes, data.seqLen, state.seed, state.epochs);
  }
  const { order } = figure, first = state.step * data.batchSize;
  const numbers = order.rows.slice(first, first + data.batchSize);
  return { order, first, numbers, number: numbers[state.row] };
}

/** The document of the chosen token. */
function documentOf(figure) {
  const { order, number } = chosen(figure);
  return order.documents[placeOf(order, number * order.seqLen + figure.state.token)];
}

/** Ids of row `number` of the stream, which is the r-th of training. */
function idsOf(figure, number, r) {
  const { data, order } = figure;
  if (!data.documents.length) return data.rows[r];
  return spans(order, number).flatMap(([d, from, to]) => data.documents[d].slice(from, to));
}

function documentStrips(figure, width) {
  const { data, state } = figure, { order, number } = chosen(figure), n = data.sizes.length;
  const scale = width / order.total, tall = 22, named = n < 40;
  const file = order.documents.map((_, k) => k % n), key = `${figure.key} ${width} ${state.document}`;
  const strip = (documents, y) => {
    let at = 0;
    const frames = [], shapes = documents.map((document) => {
      const wide = data.sizes[document] * scale, x = at;
      at += wide;
      if (document === state.document) frames.push(rect(x - 1, y - 1.5, Math.max(wide + 2, 4), tall + 3, "frame"));
      const label = named && wide > 18 ? text(x + wide / 2, y + 15, document, "middle on") : "";
      return rect(x, y, named ? wide - 0.6 : wide, tall, "doc",
        `style="--hue:${hue(document, n)}" data-document="${document}"`) + label;
    });
    return [...shapes, ...frames].join("");
  };
  const x = (number + 0.5) * order.seqLen * scale;
  if (figure.strips?.key !== key) { // most changes leave them as they are
    figure.strips = { key, markup: text(0, 12, "in the file") + strip(file, 17) + text(0, 56, "shuffled") + strip(order.documents, 61) };
  }
  const body = figure.strips.markup + line(x, 58, 92, "mark") +
    `<path d="M${x - 5},98L${x + 5},98L${x},90Z" class="pointer"/>`;
  return picture(width, 100, body, "documents");
}

/** The tokens of the stream that the second picture shows: from one row before the chosen one on. */
function windowOf(figure) {
  const { order, number } = chosen(figure), S = order.seqLen;
  return [Math.max(0, (number - 1.2) * S), Math.min(order.total, (number + 2.2) * S)];
}

function streamWindow(figure, width) {
  const { data, state } = figure, { order, number } = chosen(figure), S = order.seqLen;
  const [low, high] = windowOf(figure);
  const x = (token) => width * (token - low) / (high - low), n = data.sizes.length;
  const shown = parts(order, low, high).map(([document, from, to, place]) => {
    const begin = x(order.begins[place] + from), wide = x(order.begins[place] + to) - begin;
    const label = wide > 90 ? `document ${document}` : wide > 24 ? document : "";
    return rect(begin, 16, wide - 0.8, 26, "doc", `style="--hue:${hue(document, n)}"`) +
      text(begin + wide / 2, 33, label, "middle on");
  });
  const cuts = [-1, 0, 1, 2].map((k) => (number + k) * S).filter((t) => t >= low && t <= high);
  const body = shown.join("") + cuts.map((token) => line(x(token), 10, 48, "cut")).join("") +
    rect(x(number * S), 14, x((number + 1) * S + 1) - x(number * S), 30, "frame") +
    line(x(number * S + state.token + 0.5), 16, 42, "mark") +
    text(x((number + 0.5) * S), 60, `row ${grouped(number)}`, "middle");
  return picture(width, 64, body, "stream");
}

function rowGrid(figure, width) {
  const { data, state } = figure, { order } = chosen(figure), n = data.sizes.length;
  const all = Math.floor(order.rows.length / data.batchSize);
  const steps = Math.min(all, figure.steps(), 24), from = Math.max(0, Math.min(state.step - 12, all - steps));
  const wide = width / steps, tall = 13, cells = [];
  for (let k = 0; k < steps; k++) {
    for (let i = 0; i < data.batchSize; i++) {
      const inside = spans(order, order.rows[(from + k) * data.batchSize + i]);
      const mine = from + k === state.step && i === state.row, middle = (k + 0.5) * wide - 1;
      cells.push(rect(k * wide, 4 + i * tall, wide - 2, tall - 1.5, mine ? "doc chosen" : "doc",
        `style="--hue:${hue(inside[0][0], n)}" data-cell="${from + k} ${i}"`));
      if (inside.some(([document]) => document === state.document)) {
        cells.push(`<circle cx="${middle.toFixed(1)}" cy="${8.5 + i * tall}" r="2.5" class="dot"/>`);
      }
    }
  }
  const height = data.batchSize * tall + 4, ticks = [0, steps - 1].map((k) =>
    text((k + 0.5) * wide, height + 14, from + k, "middle"));
  const body = cells.join("") + ticks.join("") +
    rect(Math.max(1, (state.step - from) * wide - 2), 1.5, wide, height, "frame");
  return picture(width, height + 18, body, "grid");
}

function batchList(figure) {
  const { data, state } = figure, { numbers, first, order } = chosen(figure), n = data.sizes.length;
  const rows = numbers.map((number, i) => {
    const bars = spans(order, number).map(([document, from, to]) =>
      `<i style="--hue:${hue(document, n)};flex:${to - from}"></i>`).join("");
    const words = idsOf(figure, number, first + i).map((id) => data.pieces[id] || " \u2311 ").join("");
    return `<li class="${i === state.row ? "chosen" : ""}" data-row="${i}"><b>${i}</b><span class="bar">${bars}` +
      `<em>${escaped(words.slice(0, 160))}</em></span></li>`;
  });
  const row = spans(order, numbers[state.row]), ids = idsOf(figure, numbers[state.row], first + state.row);
  let part = 0, left = row[0][2] - row[0][1];
  const tokens = ids.map((id, k) => {
    while (left === 0) {
      part += 1;
      left = row[part][2] - row[part][1];
    }
    left -= 1;
    const piece = data.pieces[id], last = k === ids.length - 1 ? " last" : "";
    const kind = (piece ? "token" : "token eod") + last + (k === state.token ? " now" : "");
    return `<span class="${kind}" data-token="${k}" title="id ${id}" ` +
      `style="--hue:${hue(row[part][0], n)}">${piece ? escaped(piece) : "end of document"}</span>`;
  });
  return `<ol class="rows">${rows.join("")}</ol><p class="legend">Row ${state.row}, token by token; ` +
    `framed: the last one, which is only predicted and also begins the next row of the stream.</p>` +
    `<p class="tokens">${tokens.join("")}</p>`;
}

/** How the chosen token came to its place: sentences, from the file to the batch. */
function path(figure) {
  const { data, state } = figure, { order, first, number } = chosen(figure), S = order.seqLen;
  const position = number * S + state.token, place = placeOf(order, position), document = order.documents[place];
  if (document !== state.document) return pathOfDocument(figure);
  const id = idsOf(figure, number, first + state.row)[state.token], piece = data.pieces[id];
  const name = piece ? `Token ${id}, \u201c${piece}\u201d,` : `The end-of-document token, ${id},`;
  const rank = first + state.row, copies = data.sizes.length * state.epochs;
  return [
    `${name} is token ${grouped(position - order.begins[place])} of document ${document}.`,
    `The first shuffle put document ${document} at place ${grouped(place)} of 0\u2013${grouped(copies - 1)}. ` +
      `${grouped(order.begins[place])} tokens come before it in the stream, so the token is number ${grouped(position)}.`,
    `${grouped(position)} = ${grouped(number)} \u00d7 ${S} + ${state.token}: token ${state.token} of row ${grouped(number)}.` +
      (state.token === S ? ` As the last of its row, it is only predicted; it is also token 0 of row ${grouped(number + 1)}.` : ""),
    `The second shuffle put row ${grouped(number)} at place ${grouped(rank)}. ${grouped(rank)} = ` +
      `${state.step} \u00d7 ${data.batchSize} + ${state.row}: row ${state.row} of batch ${state.step}.`,
  ];
}

/** Says where a document went if its text is not on the page. */
function pathOfDocument(figure) {
  const { data, state } = figure, { order } = chosen(figure), { document } = state;
  const places = [...order.documents.keys()].filter((place) => order.documents[place] === document);
  const rows = places.flatMap((place) => rowsOf(order, place));
  const batches = [...new Set(rows.map((row) => Math.floor(order.ranks[row] / data.batchSize)))].sort((a, b) => a - b);
  const shown = batches.slice(0, 12).map(grouped).join(", ") + (batches.length > 12 ? ", \u2026" : "");
  const [low, high] = [rows[0], rows[rows.length - 1]].map((row) => grouped(row ?? 0));
  const rest = !rows.length ? "It lies after the last whole row and is never read." : places.length === 1
    ? `Its tokens are in ${low === high ? `row ${low}` : `rows ${low}\u2013${high}`} of the stream.` : `${rows.length} rows have tokens of it.`;
  return [
    `Document ${document} has ${grouped(data.sizes[document])} tokens.`,
    `The first shuffle put it at place ${places.map(grouped).join(" and ")}. ${rest}`,
    ...(rows.length ? [`The second shuffle put these rows into batch${batches.length > 1 ? "es" : ""} ${shown}. ` +
      `This page has the text of batches 0\u2013${figure.steps() - 1} only.`] : []),
  ];
}

function says(figure) {
  const { data, state } = figure, { order, first, number } = chosen(figure);
  const where = spans(order, number).map(([document, from, to]) =>
    `document ${document}, tokens ${grouped(from)}\u2013${grouped(to - 1)}`);
  const original = state.seed === data.seed && state.epochs === data.epochs;
  const hash = original ? ` Hash of the batch: ${data.hashes[state.step]}.` : "";
  return `Batch ${state.step}: rows ${grouped(first)}\u2013${grouped(first + data.batchSize - 1)} of training. ` +
    `Row ${state.row} of it is row ${grouped(number)} of the stream: ${where.join("; ")}.${hash}`;
}

// --- controls and drawing ----------------------------------------------------------------------

const SEEDS = [1234, 1, 2, 3, 4, 5, 6, 7, 8, 9];
const range = (name, label) =>
  `<label><span>${label}</span><input type="range" min="0" data-set="${name}"><b></b></label>`;
const number = (name, label) =>
  `<label><span>${label}</span><input type="number" min="0" step="1" inputmode="numeric" data-set="${name}"><b></b></label>`;
const choice = (name, label, values) =>
  `<label><span>${label}</span><select data-set="${name}">` +
  values.map((value) => `<option>${value}</option>`).join("") + "</select></label>";
const CONTROLS = {
  follow: () => number("step", "step") + range("row", "row of the batch") + range("token", "token of the row") +
    number("document", "document"),
  shuffle: () => choice("seed", "seed", SEEDS) + choice("epochs", "epochs", [1, 2, 3]) +
    range("step", "step") + range("row", "row of the batch") + range("token", "token of the row") +
    number("document", "document"),
};

/** A figure's state and what limits it; `data` is what the page holds for it. */
function figureOf(name, data) {
  const [step, row] = data.first, state = { step, row, token: 0, seed: data.seed, epochs: data.epochs };
  const figure = { name, data, state };
  figure.steps = () => {
    const { order } = chosen(figure), all = Math.floor(order.rows.length / data.batchSize);
    return data.documents.length ? all : data.steps; // without documents, the page has text for these only
  };
  figure.most = {
    step: () => figure.steps() - 1, row: () => data.batchSize - 1, token: () => data.seqLen,
    document: () => data.sizes.length - 1,
  };
  /** Choose a token of the stream, if its row is on the page; else only its document. */
  figure.find = (position) => {
    const { order } = chosen(figure), S = data.seqLen, number = Math.floor(position / S);
    const rank = order.ranks[number] ?? Infinity;
    if (rank < figure.steps() * data.batchSize) {
      Object.assign(state, { step: Math.floor(rank / data.batchSize), row: rank % data.batchSize, token: position - number * S });
    }
    state.document = order.documents[placeOf(order, position)];
    return rank < figure.steps() * data.batchSize;
  };
  /** Choose a document, and the first of its tokens that is on the page. */
  const findDocument = (document) => {
    const { order } = chosen(figure);
    state.document = document;
    order.documents.some((each, place) => each === document && rowsOf(order, place).some((row) => {
      const position = Math.max(order.begins[place], row * data.seqLen);
      return Math.floor(position / data.seqLen) === row && figure.find(position);
    }));
  };
  figure.change = (key, value) => {
    const whole = Math.max(0, Math.trunc(Number(value)) || 0);
    if (key === "document") {
      findDocument(Math.min(whole, figure.most.document()));
      return;
    }
    state[key] = key === "epochs" ? Math.min(Math.max(whole, 1), 3) : Math.min(whole, 2 ** 32 - 1);
    for (const [each, most] of Object.entries(figure.most)) {
      if (each !== "document") state[each] = Math.min(state[each], most());
    }
    const { order, number } = chosen(figure);
    state.document = order.documents[placeOf(order, number * data.seqLen + state.token)];
  };
  figure.change("token", 0);
  return figure;
}

const HEADS = ["The documents are shuffled", "Their stream is cut into rows", "The rows are shuffled; a column is a batch", "The batch"];

function draw(host, figure) {
  const frame = host.querySelector(".picture"), width = Math.floor(frame.clientWidth), { state } = figure;
  if (!width) return; // nothing is drawn while hidden
  for (const input of host.querySelectorAll("[data-set]")) {
    const key = input.dataset.set, most = figure.most[key];
    if (most) {
      input.max = most();
      input.nextSibling.textContent = input.type === "number" ? `of 0\u2013${most()}` : figure.state[key];
    }
    if (input !== document.activeElement || input.type !== "number") input.value = figure.state[key];
  }
  const drawn = [documentStrips(figure, width), streamWindow(figure, width), rowGrid(figure, width)];
  [...drawn, batchList(figure)].forEach((markup, i) => {
    const part = frame.children[i];
    if (part.markup === markup) return; // what has not changed is not drawn again
    part.markup = markup;
    part.lastElementChild.innerHTML = markup;
  });
  const output = host.querySelector("output"), words = says(figure);
  if (output.textContent !== words) output.textContent = words;
  const title = state.document === documentOf(figure) ? `How token ${state.token} of row ${state.row} came here` :
    `Where document ${state.document} is`;
  host.querySelector(".path").innerHTML = `<h3>${title}</h3><ol>${path(figure).map((each) => `<li>${escaped(each)}</li>`).join("")}</ol>`;
}

/** Returns the state for the address; what is as at the start is null, which explorable.store removes. */
function kept(figure) {
  const { state, data, name } = figure;
  const start = { seed: data.seed, epochs: data.epochs, step: data.first[0], row: data.first[1], token: 0 };
  const values = Object.keys(start).map((key) => [`${name}.${key}`, state[key] === start[key] ? null : state[key]]);
  const apart = state.document === documentOf(figure) ? null : state.document;
  return { ...Object.fromEntries(values), [`${name}.document`]: apart };
}

function restore(figure, values) {
  for (const key of ["seed", "epochs", "step", "row", "token"]) {
    const value = values[`${figure.name}.${key}`];
    if (value && (key !== "seed" || SEEDS.includes(Number(value)))) figure.change(key, value);
  }
  const apart = Number(values[`${figure.name}.document`] ?? NaN); // it need not be on the page
  if (Number.isInteger(apart) && apart >= 0 && apart <= figure.most.document()) figure.state.document = apart;
}

/** What follows a pointer that goes down in a picture; null if nothing does. */
function grabbed(event, figure, act) {
  const one = "[data-row], [data-token], [data-cell], [data-document]";
  const stream = event.target.closest('[data-grab="stream"]');
  if (stream) {
    const [low, high] = windowOf(figure), box = stream.getBoundingClientRect();
    return (moved) => {
      const at = low + (high - low) * (moved.clientX - box.left) / box.width;
      act(() => figure.find(Math.trunc(Math.max(low, Math.min(at, high - 1)))));
    };
  }
  if (!event.target.closest(one)) return null;
  return (moved) => {
    const at = document.elementFromPoint(moved.clientX, moved.clientY), found = at && at.closest(one);
    if (!found) return;
    const { row, token, cell } = found.dataset;
    act(() => {
      if (cell) ["step", "row"].forEach((key, k) => figure.change(key, cell.split(" ")[k]));
      else if (row || token) figure.change(row ? "row" : "token", row || token);
      else figure.change("document", found.dataset.document);
    });
  };
}

function start() {
  for (const host of document.querySelectorAll(".batch[data-batch]")) {
    const figure = figureOf(host.dataset.batch, JSON.parse(host.dataset.values));
    restore(figure, explorable.stored());
    host.innerHTML = `<div class="controls">${CONTROLS[figure.name]()}</div>` +
      '<output aria-live="polite"></output><div class="picture">' + HEADS.map((head, i) =>
      `<section><h3>${i + 1} \u00b7 ${head}</h3><div ${i < 3 ? 'aria-hidden="true"' : ""}></div></section>`).join("") +
      '</div><div class="path" role="status"></div>';
    host.closest("figure").classList.add("explorable-live");
    const act = (action) => {
      const before = JSON.stringify(figure.state);
      action();
      if (JSON.stringify(figure.state) === before) return;
      draw(host, figure);
      explorable.store(kept(figure));
    };
    host.addEventListener("input", (event) => act(() => figure.change(event.target.dataset.set, event.target.value)));
    host.addEventListener("focusout", () => draw(host, figure)); // a typed number out of range
    explorable.drag(host.querySelector(".picture"), (event) => grabbed(event, figure, act));
    explorable.watch(host, () => draw(host, figure));
    draw(host, figure);
  }
}

if (typeof document !== "undefined") start();
if (typeof module !== "undefined") {
  module.exports = { RandomState, rowOrder, parts, spans, figureOf, chosen, idsOf, says, batchList, path, kept, restore };
}
