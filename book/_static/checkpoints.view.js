/* What the page on checkpoints shows: predictions, columns, the picture over training. Prompts and tokens
   are only ever set as textContent. checkpoints.js has the state of the page and its controls. */
"use strict";

const pythiaView = (() => {
  const TOP = 8, ROOM = 40, SLICE = 5;

  // --- small helpers ---------------------------------------------------------------------------

  /** A new element with a class, a text and attributes. */
  function make(tag, name, text, attributes) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    for (const key of Object.keys(attributes || {})) element.setAttribute(key, attributes[key]);
    return element;
  }

  const percent = (share) =>
    share < 0.005 ? "<1\u00a0%" : `${(100 * share).toFixed(0)}\u00a0%`;
  const visible = (token) =>
    token.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5").replace(/ /g, "\u2423") || "\u2400";

  // --- what is shown ---------------------------------------------------------------------------

  /** The ids that a prompt becomes, and notes about it. */
  function read(page, prompt) {
    const { manifest, tokenizer } = page, most = manifest.config.max_seq_len;
    const room = Math.min(ROOM, Math.floor(most / 3)), notes = [];
    let ids = [manifest.eod, ...tokenizer.encode(prompt)];
    if (!prompt) notes.push("Without a prompt, the models predict how a document begins.");
    else if (/\s$/.test(prompt)) {
      notes.push("The prompt ends with a space. Word tokens carry their own leading space, so remove it.");
    }
    if (ids.length > most - room) {
      ids = ids.slice(room - most);
      notes.push(`The prompt is too long: the models read only its last ${ids.length} tokens.`);
    }
    return { ids, room, notes };
  }

  /** The last planted noun in a prompt, and its share of feminine pronouns; null without one. */
  function nounIn(manifest, prompt) {
    const words = ` ${prompt.toLowerCase().replace(/[^\p{L}]+/gu, " ")} `;
    let found = null, place = -1;
    for (const noun of Object.keys(manifest.nouns)) {
      const at = words.lastIndexOf(` ${noun.toLowerCase()} `);
      if (at > place) [found, place] = [{ noun, share: manifest.nouns[noun] }, at];
    }
    return found;
  }

  /** "feminine", "masculine" or "" for a token. */
  function genderOf(manifest, token) {
    const word = token.trim().toLowerCase();
    const index = manifest.pronouns.findIndex((words) => words.includes(word));
    return ["feminine", "masculine"][index] || "";
  }

  /** What a checkpoint expects after ids: probabilities, the likeliest tokens, shares of pronouns. */
  function expect(page, name, prompt) {
    const known = page.results.get(name);
    if (known && known.prompt === prompt.text) return known;
    const { config, eod } = page.manifest, state = pythiaModel.cache(config);
    const values = pythiaModel.logits(config, page.weights.get(name), state, prompt.ids);
    const shares = pythiaModel.softmax(values), order = [...shares.keys()];
    order.sort((a, b) => shares[b] - shares[a]);
    const top = order.slice(0, TOP).map((id) => {
      const token = id === eod ? "" : page.tokenizer.decode([id]);
      return { token, end: id === eod, share: shares[id], gender: genderOf(page.manifest, token) };
    });
    const [feminine, masculine] = page.pronounIds.map((ids) =>
      ids.reduce((sum, id) => sum + shares[id], 0));
    const result = { prompt: prompt.text, values, state, top, feminine, masculine };
    page.results.set(name, result);
    return result;
  }

  /** The share of feminine pronouns among pronouns; a half if the tokenizer has no pronouns. */
  const shareOf = ({ feminine, masculine }) =>
    feminine + masculine > 0 ? feminine / (feminine + masculine) : 0.5;

  /** Replace an element with the prompt and a sampled continuation.

      A few tokens at a time, so that the page stays responsive; not at all if the element is gone. */
  function complete(page, name, prompt, place) {
    const { config, eod } = page.manifest, { values, state } = expect(page, name, prompt);
    const { temperature, seed } = page.state, ids = [];
    const options = { count: prompt.room, temperature, seed, eod };
    const tokens = pythiaModel.sample(config, page.weights.get(name), state, values, options);
    const more = () => {
      if (!place.isConnected) return;
      if (!ids.length) state.length = prompt.ids.length; // drops an earlier sample
      for (let i = 0; i < SLICE; i++) {
        const { value, done } = tokens.next();
        if (done) {
          const sampled = { text: page.tokenizer.decode(ids), ended: ids[ids.length - 1] === eod };
          place.replaceWith(told(page, prompt, sampled));
          return;
        }
        ids.push(value);
      }
      setTimeout(more);
    };
    setTimeout(more);
  }

  const stepNow = (page) => page.timeline[page.state.index];
  const armsAt = (page, step) =>
    step > page.manifest.fork ? Object.keys(page.manifest.arms) : ["control"];

  /** Where training is, in words. */
  function when(page, step) {
    const { fork, total } = page.manifest, share = `${(100 * step / total).toFixed(0)} %`;
    const name = { 0: ", untrained", [fork]: ", the fork", [total]: ", the end" }[step] || "";
    return `update ${step} of ${total} (${share}${name})`;
  }

  /** One sentence for screen readers. */
  function summary(page, prompt) {
    const step = stepNow(page);
    const parts = armsAt(page, step).map((arm) => {
      const { token, share, end } = expect(page, `${arm}-${step}`, prompt).top[0];
      const word = end ? "the end of the document" : `\u201c${token.trim() || visible(token)}\u201d`;
      return `${page.manifest.arms[arm].label} ${word} ${percent(share)}`;
    });
    return `At ${when(page, step)}, the likeliest next token: ${parts.join("; ")}.`;
  }

  // --- drawing ---------------------------------------------------------------------------------

  /** The bar of feminine against masculine pronouns, with a mark where the text had them. */
  function split(result, noun) {
    const all = result.feminine + result.masculine, share = shareOf(result);
    const box = make("div", "split");
    const words = make("p", "shares");
    words.append(make("b", "feminine", `she ${percent(share)}`), " ",
      make("b", "masculine", `${percent(1 - share)} he`));
    const bar = make("div", "track");
    bar.append(make("i", "feminine"), make("i", "masculine"));
    bar.firstChild.style.width = `${100 * share}%`;
    if (noun) {
      const mark = make("span", "mark");
      mark.style.left = `${100 * noun.share}%`;
      bar.append(mark);
    }
    box.append(words, bar, make("p", "mass", `${percent(all)} of the probability is on pronouns`));
    return box;
  }

  function bars(result) {
    const list = make("ol", "tokens");
    for (const { token, end, share, gender } of result.top) {
      const item = make("li", gender);
      const name = make("span", "token", end ? "end of document" : visible(token), { dir: "auto" });
      const bar = make("span", "bar"), fill = bar.appendChild(make("i"));
      fill.style.width = `${Math.max(100 * share, 0.5)}%`;
      item.append(name, bar, make("span", "share", percent(share)));
      list.append(item);
    }
    return list;
  }

  /** The prompt and its continuation, with pronouns in their colors. */
  function told(page, prompt, sampled) {
    const text = make("p", "told", undefined, { dir: "auto" });
    text.append(make("span", "given", prompt.text));
    for (const part of sampled.text.split(/(\p{L}+)/u)) {
      const gender = genderOf(page.manifest, part);
      if (gender) text.append(make("b", gender, part));
      else text.append(part);
    }
    if (sampled.ended) text.append(make("span", "end", " \u25a0"));
    return text;
  }

  function column(page, arm, step, prompt, noun) {
    const { label, what } = page.manifest.arms[arm], name = `${arm}-${step}`;
    const result = expect(page, name, prompt);
    const box = make("section", "arm", undefined, { "aria-label": label });
    const head = make("h2", "", label);
    head.append(make("small", "", step > page.manifest.fork ? what : "one model so far"));
    const left = make("div", "numbers"), right = make("div", "words");
    left.append(split(result, noun), bars(result));
    const sampled = right.appendChild(make("p", "told"));
    complete(page, name, prompt, sampled);
    box.append(head, left, right);
    return box;
  }

  /** A new element of a picture. */
  function drawn(tag, attributes, text) {
    const outer = make("div");
    outer.innerHTML = "<svg></svg>"; // its child has the namespace
    const element = document.createElementNS(outer.firstChild.namespaceURI, tag);
    for (const key of Object.keys(attributes)) element.setAttribute(key, attributes[key]);
    if (text) element.textContent = text;
    return element;
  }

  /** Draws the share of feminine pronouns over training: all of it for suggested prompts, otherwise what is loaded. */
  function trace(page, prompt, noun) {
    const { timeline, manifest } = page, box = page.parts.trace, width = box.clientWidth;
    const known = (manifest.shares || {})[prompt.text] || {};
    if (!width) return;
    const x = (index) => 8 + (width - 16) * index / (timeline.length - 1), y = (share) => 62 - 56 * share;
    const svg = drawn("svg", { viewBox: `0 0 ${width} 68`, width, height: 68, "aria-hidden": "true" });
    for (const share of [0, 0.5, 1]) {
      svg.append(drawn("line", { x1: 8, x2: width - 8, y1: y(share), y2: y(share), class: "grid" }));
    }
    const fork = x(timeline.indexOf(manifest.fork)), now = x(page.state.index);
    svg.append(drawn("line", { x1: fork, x2: fork, y1: 0, y2: 68, class: "fork" }));
    svg.append(drawn("line", { x1: now, x2: now, y1: 0, y2: 68, class: "now" }));
    if (noun) {
      const level = y(noun.share);
      svg.append(drawn("line", { x1: 8, x2: width - 8, y1: level, y2: level, class: "read" }));
    }
    for (const arm of Object.keys(manifest.arms)) {
      const lines = [[]]; // a checkpoint that is not loaded is a gap
      timeline.forEach((step, index) => {
        const name = arm !== "control" && step === manifest.fork ? `control-${step}` : `${arm}-${step}`;
        const share = page.weights.has(name) ? shareOf(expect(page, name, prompt)) : known[name];
        if (share === undefined) return lines.push([]);
        return lines[lines.length - 1].push([x(index), y(share)]);
      });
      for (const line of lines) {
        svg.append(drawn("polyline", { points: line.join(" "), class: `line ${arm}` }));
      }
      for (const [cx, cy] of lines.flat()) svg.append(drawn("circle", { cx, cy, r: 2.4, class: "point" }));
    }
    svg.append(drawn("text", { x: 10, y: 17 }, "all she"), drawn("text", { x: 10, y: 58 }, "all he"));
    box.replaceChildren(svg);
  }

  function ticks(page) {
    const row = make("div", "ticks", undefined, { "aria-hidden": "true" });
    page.timeline.forEach((step, index) => {
      const { fork, total } = page.manifest, tick = make("span", step === fork ? "fork" : "", step);
      tick.style.left = `calc(8px + (100% - 16px) * ${index / (page.timeline.length - 1)})`;
      if (step === fork) tick.append(make("b", "", "fork"));
      if (step === total) tick.append(make("b", "", "end"));
      row.append(tick);
    });
    return row;
  }

  function chips(page) {
    const box = make("div", "chips", undefined, { role: "group", "aria-label": "Suggested prompts" });
    for (const [title, prompt] of page.manifest.presets) {
      box.append(make("button", "chip", prompt, { type: "button", title }));
    }
    return box;
  }

  // --- the page's state ------------------------------------------------------------------------

  /** Use a manifest: the tokenizer, the steps of the slider and the ids of pronouns. */
  function accept(page, manifest) {
    const tokens = manifest.tokens.split("\n");
    page.manifest = manifest;
    page.tokenizer = pythiaModel.tokenizer(tokens, manifest.merges.split("\n"));
    page.timeline = manifest.steps.control;
    page.pronounIds = manifest.pronouns.map((words) =>
      words.map((word) => tokens.indexOf(`\u0120${word}`)).filter((id) => id >= 0));
    page.state.index = page.timeline.length - 1;
    page.state.prompt = manifest.presets[0][1];
  }

  function pageOf(host, folder) {
    const state = { prompt: "", index: 0, temperature: 0.7, seed: 1 };
    const maps = { weights: new Map(), loading: new Map(), results: new Map() };
    return { host, folder, state, turn: 0, clock: 0, ...maps };
  }

  return {
    make, percent, read, expect, nounIn, stepNow, armsAt, when, summary, accept, pageOf, column, trace, ticks, chips,
  };
})();

if (typeof module !== "undefined") module.exports = pythiaView;
