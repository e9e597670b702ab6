/* The page on checkpoints: a prompt, a slider over training, and what the control and two forks expect.

   checkpoints.model.js computes and checkpoints.view.js draws. Weights come from scripts that call
   pythiaCheckpoint(name, content): a page that was opened as a file can load only scripts. */
"use strict";

(() => {
  const PAUSE = 900, LIMIT = 1000;
  const { make, read, nounIn, stepNow, armsAt, when, percent } = pythiaView;

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

  const promptNow = (page) => ({ text: page.state.prompt, ...read(page, page.state.prompt) });
  const pause = () => new Promise((done) => setTimeout(done));
  const idle = () => new Promise((done) =>
    (window.requestIdleCallback ? requestIdleCallback(() => done()) : setTimeout(done, 300)));

  /** Load checkpoints and compute what they expect, each in a task of its own, so that the page stays responsive. */
  async function prepare(page, names, turn, wait) {
    for (const name of names) {
      await load(page, name);
      await wait();
      if (turn !== page.turn) return;
      pythiaView.expect(page, name, promptNow(page));
    }
  }

  /** Prepare the checkpoints before and after the one shown when nothing else is to be done. */
  async function prepareNeighbors(page, turn) {
    for (const by of [1, -1]) {
      await idle();
      await prepare(page, namesAt(page, page.state.index + by), turn, idle).catch(() => {});
    }
  }

  // --- showing ---------------------------------------------------------------------------------

  function draw(page) {
    const { parts, state, manifest } = page, step = stepNow(page);
    const prompt = promptNow(page);
    const noun = nounIn(manifest, state.prompt), notes = [...prompt.notes];
    if (noun) {
      notes.unshift(`In the training text, ${percent(noun.share)} of the pronouns for ` +
        `\u201c${noun.noun}\u201d are feminine (mark on the bars, the thin line above).`);
    }
    if (step <= manifest.fork) {
      notes.push(`Until update ${manifest.fork} there is one model; then swap and shuffle fork off.`);
    }
    parts.notes.textContent = notes.join(" ");
    const arms = armsAt(page, step);
    parts.arms.className = `arms of-${arms.length}`;
    parts.arms.replaceChildren(...arms.map((arm) => pythiaView.column(page, arm, step, prompt, noun)));
    parts.arms.removeAttribute("aria-busy");
    clearTimeout(page.later);
    const turn = page.turn;
    page.later = setTimeout(() => {
      const redraw = () => turn === page.turn && pythiaView.trace(page, prompt, noun);
      if (turn !== page.turn) return;
      const words = pythiaView.summary(page, prompt);
      if (parts.status.textContent !== words) parts.status.textContent = words;
      redraw();
      prepareNeighbors(page, turn).then(redraw);
    }, 200);
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
    names.forEach((name) => load(page, name).catch(() => {})); // all at once
    return prepare(page, names, turn, pause).then(() => {
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

  /** A label with its control; the control comes back. */
  function labeled(parent, text, control, name) {
    const label = make("label", name, text);
    label.append(control);
    parent.append(label);
    return control;
  }

  function build(page) {
    const { host, state, timeline } = page, parts = page.parts = {};
    host.replaceChildren();
    parts.prompt = labeled(host, "Prompt", make("textarea", "", undefined, {
      rows: 1, maxlength: LIMIT, spellcheck: "false", autocomplete: "off", dir: "auto",
    }), "prompt");
    parts.prompt.value = state.prompt;
    const presets = host.appendChild(pythiaView.chips(page));
    parts.chips = [...presets.querySelectorAll("button")];
    const time = host.appendChild(make("div", "time"));
    const head = time.appendChild(make("div", "head"));
    parts.play = head.appendChild(make("button", "play", "\u25b6 Play", { type: "button" }));
    parts.when = head.appendChild(make("output", "when"));
    parts.range = labeled(time, "Training", make("input", "", undefined, {
      type: "range", min: 0, max: timeline.length - 1, step: 1,
    }), "slider");
    time.append(pythiaView.ticks(page));
    parts.trace = time.appendChild(make("div", "trace"));
    const key = time.appendChild(make("p", "key"));
    key.textContent = "Share of feminine pronouns over training: ";
    for (const arm of Object.keys(page.manifest.arms)) {
      key.append(make("span", arm, page.manifest.arms[arm].label), " ");
    }
    key.append("(with a prompt of your own, only for loaded checkpoints; press Play to load all).");
    parts.notes = host.appendChild(make("p", "notes"));
    parts.arms = host.appendChild(make("div", "arms"));
    const foot = host.appendChild(make("div", "foot"));
    parts.heat = labeled(foot, "Temperature", make("input", "", undefined, {
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
      parts.seed.textContent = `Sample ${state.seed}, with the same random numbers in every column.`;
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

  function start() {
    const host = document.querySelector(".checkpoints[data-folder]");
    if (!host) return;
    const page = pythiaView.pageOf(host, host.dataset.folder);
    window.pythiaCheckpoint = (name, content) => {
      if (name === "manifest") pythiaView.accept(page, content);
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
      host.classList.add("failed");
      host.replaceChildren(make("p", "notes", "The checkpoints could not be loaded. Reload the " +
        "page, or build the site again with jupyter-book build book/. The table below shows some of the predictions."));
    });
  }

  start();
})();
