/* The page on checkpoints: a prompt, a slider over training, and what the control and two forks expect.

   checkpoints.model.js computes. Weights come from scripts that call pythiaCheckpoint(name, content),
   because a page that was opened as a file cannot fetch. Prompts and tokens are only ever set as
   textContent. No library, no request to another host. */
"use strict";

const pythiaPage = (() => {
  const TOP = 8, ROOM = 40, PAUSE = 900, LIMIT = 1000;

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
    share > 0 && share < 0.005 ? "<1 %" : `${(100 * share).toFixed(0)} %`;
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
      notes.push("The prompt ends with a space. Tokens of words begin with theirs, so remove it.");
    }
    if (ids.length > most - room) {
      ids = ids.slice(room - most);
      notes.push(`The prompt is long: the models read its last ${ids.length} tokens.`);
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

  /** A sampled continuation of the prompt, as text, and whether the document ends with it. */
  function continuation(page, name, prompt) {
    const { config, eod } = page.manifest, { values, state } = expect(page, name, prompt);
    state.length = prompt.ids.length; // of an earlier sample
    const { temperature, seed } = page.state, count = prompt.room;
    const options = { count, temperature, seed, eod };
    const ids = pythiaModel.sample(config, page.weights.get(name), state, values, options);
    const ended = ids[ids.length - 1] === eod;
    return { text: page.tokenizer.decode(ids), ended };
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
    const all = result.feminine + result.masculine, share = result.feminine / all;
    const box = make("div", "split");
    const words = make("p", "shares");
    words.append(make("b", "feminine", `she, her ${percent(share)}`), " ",
      make("b", "masculine", `${percent(1 - share)} he, his`));
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

  /** The prompt and its continuation, with pronouns in their colours. */
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
    const head = make("h3", "", label);
    head.append(make("small", "", step > page.manifest.fork ? what : "one model so far"));
    const left = make("div", "numbers"), right = make("div", "words");
    left.append(split(result, noun), bars(result));
    right.append(told(page, prompt, continuation(page, name, prompt)));
    box.append(head, left, right);
    return box;
  }

  /** A new element of a picture. */
  function drawn(tag, attributes, text) {
    const outer = make("div");
    outer.innerHTML = "<svg></svg>"; // has the namespace
    const element = document.createElementNS(outer.firstChild.namespaceURI, tag);
    for (const key of Object.keys(attributes)) element.setAttribute(key, attributes[key]);
    if (text) element.textContent = text;
    return element;
  }

  /** The share of feminine pronouns over training, as far as checkpoints are loaded. */
  function trace(page, prompt, noun) {
    const { timeline, manifest } = page, box = page.parts.trace, width = box.clientWidth;
    const x = (index) => 8 + (width - 16) * index / (timeline.length - 1), y = (share) => 62 - 56 * share;
    const svg = drawn("svg", { width, height: 68, "aria-hidden": "true" });
    for (const share of [0, 0.5, 1]) {
      svg.append(drawn("line", { x1: 8, x2: width - 8, y1: y(share), y2: y(share), class: "grid" }));
    }
    const fork = x(timeline.indexOf(manifest.fork)), now = x(page.state.index);
    svg.append(drawn("line", { x1: fork, x2: fork, y1: 0, y2: 68, class: "fork" }));
    svg.append(drawn("line", { x1: now, x2: now, y1: 0, y2: 68, class: "now" }));
    svg.append(drawn("text", { x: 10, y: 16 }, "all she"), drawn("text", { x: 10, y: 60 }, "all he"));
    if (noun) svg.append(drawn("circle", { cx: 4, cy: y(noun.share), r: 4, class: "read" }));
    for (const arm of Object.keys(manifest.arms)) {
      const places = [];
      timeline.forEach((step, index) => {
        const name = arm !== "control" && step === manifest.fork ? `control-${step}` : `${arm}-${step}`;
        if (!page.weights.has(name)) return;
        const { feminine, masculine } = expect(page, name, prompt);
        places.push([x(index), y(feminine / (feminine + masculine))]);
      });
      svg.append(drawn("polyline", { points: places.map((p) => p.join(",")).join(" "), class: `line ${arm}` }));
      for (const [cx, cy] of places) svg.append(drawn("circle", { cx, cy, r: 2.4, class: "point" }));
    }
    box.replaceChildren(svg);
  }

  function draw(page) {
    const { parts, state, manifest } = page, step = stepNow(page);
    const prompt = { text: state.prompt, ...read(page, state.prompt) };
    const noun = nounIn(manifest, state.prompt), notes = [...prompt.notes];
    if (noun) {
      notes.unshift(`In the text of training, ${percent(noun.share)} of the pronouns for ` +
        `\u201c${noun.noun}\u201d are feminine (the mark on the bars).`);
    }
    if (step <= manifest.fork) {
      notes.push(`Until update ${manifest.fork} there is one model; then swap and shuffle fork off.`);
    }
    parts.notes.textContent = notes.join(" ");
    const arms = armsAt(page, step);
    parts.arms.className = `arms of-${arms.length}`;
    parts.arms.replaceChildren(...arms.map((arm) => column(page, arm, step, prompt, noun)));
    parts.arms.removeAttribute("aria-busy");
    clearTimeout(page.later);
    page.later = setTimeout(() => {
      trace(page, prompt, noun);
      const words = summary(page, prompt);
      if (parts.status.textContent !== words) parts.status.textContent = words;
      prefetch(page);
    }, 250);
  }

  // --- loading ---------------------------------------------------------------------------------

  /** Load a script of the page's folder once; it calls pythiaCheckpoint with its content. */
  function load(page, name) {
    if (page.weights.has(name)) return Promise.resolve();
    if (!page.loading.has(name)) {
      page.loading.set(name, new Promise((done, failed) => {
        const script = make("script", "", undefined, { src: `${page.folder}${name}.js` });
        const finish = () => {
          page.loading.delete(name);
          script.remove();
          if (page.weights.has(name) || (name === "manifest" && page.manifest)) done();
          else failed(new Error(name));
        };
        script.onload = script.onerror = finish;
        document.head.append(script);
      }));
    }
    return page.loading.get(name);
  }

  const namesAt = (page, index) => {
    const step = page.timeline[index];
    return step === undefined ? [] : armsAt(page, step).map((arm) => `${arm}-${step}`);
  };

  function prefetch(page) {
    const idle = window.requestIdleCallback || ((work) => setTimeout(work, 300));
    const names = [1, -1].flatMap((by) => namesAt(page, page.state.index + by));
    idle(() => names.forEach((name) => load(page, name).catch(() => {})));
  }

  /** Show the page's state; load what it needs first. */
  function refresh(page) {
    const { parts } = page, names = namesAt(page, page.state.index);
    const step = stepNow(page), turn = ++page.turn;
    parts.range.value = page.state.index;
    parts.range.setAttribute("aria-valuetext", when(page, step));
    parts.when.textContent = when(page, step);
    for (const chip of parts.chips) {
      chip.setAttribute("aria-pressed", String(chip.textContent === page.state.prompt));
    }
    if (names.every((name) => page.weights.has(name))) {
      draw(page);
      return Promise.resolve(true);
    }
    parts.arms.setAttribute("aria-busy", "true");
    parts.notes.textContent = "Loading the checkpoint \u2026";
    return Promise.all(names.map((name) => load(page, name))).then(() => {
      if (turn === page.turn) draw(page);
      return turn === page.turn;
    }, (error) => {
      if (turn !== page.turn) return false;
      stop(page);
      parts.arms.replaceChildren();
      parts.arms.removeAttribute("aria-busy");
      parts.notes.textContent = `The checkpoint ${error.message} could not be loaded. Move the ` +
        "slider to try again; if that does not help, reload the page or build the site again.";
      return false;
    });
  }

  // --- controls --------------------------------------------------------------------------------

  function stop(page) {
    clearTimeout(page.clock);
    page.clock = 0;
    page.parts.play.textContent = "\u25b6 Play";
  }

  function play(page) {
    const last = page.timeline.length - 1;
    if (page.state.index === last) page.state.index = 0;
    page.parts.play.textContent = "\u275a\u275a Pause";
    const next = () => {
      page.clock = setTimeout(() => {
        page.state.index++;
        refresh(page).then((shown) => {
          if (!page.clock) return;
          if (shown && page.state.index < last) next();
          else stop(page);
        });
      }, PAUSE);
    };
    page.clock = -1;
    refresh(page).then((shown) => shown && page.clock && next());
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
    let group = null, kind = "";
    for (const [name, prompt] of page.manifest.presets) {
      if (name !== kind) {
        group = box.appendChild(make("div"));
        group.append(make("span", "", name));
        kind = name;
      }
      group.append(make("button", "chip", prompt, { type: "button" }));
    }
    return box;
  }

  /** A label with its control; the control comes back. */
  function labelled(parent, text, control, name) {
    const label = make("label", name, text);
    label.append(control);
    parent.append(label);
    return control;
  }

  function build(page) {
    const { host, state, timeline } = page, parts = page.parts = {};
    host.replaceChildren();
    parts.prompt = labelled(host, "Prompt", make("textarea", "", undefined, {
      rows: 2, maxlength: LIMIT, spellcheck: "false", autocomplete: "off", dir: "auto",
    }), "prompt");
    parts.prompt.value = state.prompt;
    const presets = host.appendChild(chips(page));
    parts.chips = [...presets.querySelectorAll("button")];
    const time = host.appendChild(make("div", "time"));
    const head = time.appendChild(make("div", "head"));
    parts.play = head.appendChild(make("button", "play", "\u25b6 Play", { type: "button" }));
    parts.when = head.appendChild(make("output", "when"));
    parts.range = labelled(time, "Training", make("input", "", undefined, {
      type: "range", min: 0, max: timeline.length - 1, step: 1,
    }), "slider");
    time.append(ticks(page));
    parts.trace = time.appendChild(make("div", "trace"));
    const key = time.appendChild(make("p", "key"));
    key.textContent = "Pronouns that the models expect, over training: ";
    for (const arm of Object.keys(page.manifest.arms)) {
      key.append(make("span", arm, page.manifest.arms[arm].label), " ");
    }
    key.append("as far as checkpoints are loaded; press Play for all.");
    parts.notes = host.appendChild(make("p", "notes"));
    parts.arms = host.appendChild(make("div", "arms"));
    const foot = host.appendChild(make("div", "foot"));
    parts.heat = labelled(foot, "Temperature", make("input", "", undefined, {
      type: "range", min: 0, max: 1.5, step: 0.1, value: state.temperature,
    }));
    parts.heat.after(parts.heatNow = make("b", "", state.temperature.toFixed(1)));
    parts.again = foot.appendChild(make("button", "", "Sample again", { type: "button" }));
    parts.seed = foot.appendChild(make("span", "seed"));
    parts.status = host.appendChild(make("p", "status", "", { role: "status", "aria-live": "polite" }));
    listen(page);
  }

  function listen(page) {
    const { parts, state, host } = page;
    const showSeed = () => {
      parts.seed.textContent = `Sample ${state.seed}; the same random numbers in every column.`;
    };
    showSeed();
    parts.prompt.addEventListener("input", () => {
      clearTimeout(page.typing);
      page.typing = setTimeout(() => {
        state.prompt = parts.prompt.value.slice(0, LIMIT);
        refresh(page);
      }, 120);
    });
    parts.range.addEventListener("input", () => {
      stop(page);
      state.index = Number(parts.range.value);
      refresh(page);
    });
    for (const chip of parts.chips) {
      chip.addEventListener("click", () => {
        clearTimeout(page.typing);
        parts.prompt.value = state.prompt = chip.textContent;
        refresh(page);
      });
    }
    parts.play.addEventListener("click", () => (page.clock ? stop(page) : play(page)));
    parts.heat.addEventListener("input", () => {
      state.temperature = Number(parts.heat.value);
      parts.heatNow.textContent = state.temperature.toFixed(1);
      refresh(page);
    });
    parts.again.addEventListener("click", () => {
      state.seed++;
      showSeed();
      refresh(page);
    });
    let width = host.clientWidth;
    new ResizeObserver(() => {
      if (host.clientWidth !== width) refresh(page);
      width = host.clientWidth;
    }).observe(host);
  }

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

  function start() {
    const host = document.querySelector(".checkpoints[data-folder]");
    if (!host) return;
    const page = pageOf(host, host.dataset.folder);
    window.pythiaCheckpoint = (name, content) => {
      if (name === "manifest") accept(page, content);
      else page.weights.set(name, pythiaModel.weights(page.manifest.layout, content));
    };
    host.hidden = false;
    host.append(make("p", "notes", "Loading \u2026"));
    load(page, "manifest").then(() => {
      const table = document.querySelector(".checkpoints-table");
      document.body.classList.add("checkpoints-live");
      if (table) table.open = false;
      build(page);
      return refresh(page);
    }).catch(() => {
      host.replaceChildren(make("p", "notes", "The checkpoints could not be loaded: reload the " +
        "page, or build the site again with jupyter-book build book/. The table below has a part."));
    });
  }

  return { read, nounIn, genderOf, expect, continuation, when, summary, accept, pageOf, start };
})();

if (typeof document !== "undefined") pythiaPage.start();
if (typeof module !== "undefined") module.exports = pythiaPage;
