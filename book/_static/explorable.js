/* What the figures that readers can touch have in common: their state is in the page's address, so that
   it can be shared and comes back; pointers drag; a figure is drawn again when its width changes. */
"use strict";

const explorable = (() => {
  const pending = {};
  let waiting = 0;

  /** Values of the page's address by name, as text. */
  const stored = () => Object.fromEntries(new URLSearchParams(location.search));

  function write() {
    const values = new URLSearchParams(location.search);
    for (const [name, value] of Object.entries(pending)) {
      if (value === null) values.delete(name);
      else values.set(name, value);
      delete pending[name];
    }
    const words = values.toString();
    try {
      history.replaceState(null, "", (words ? `?${words}` : location.pathname) + location.hash);
    } catch { /* the browser forbids it, e.g. for a file */ }
  }

  /** Put values into the page's address, a moment later; null removes a value. */
  function store(values) {
    Object.assign(pending, values);
    clearTimeout(waiting);
    waiting = setTimeout(write, 250); // browsers limit how often the address may change
  }

  /** Let pointers drag: `grab(event)` returns what follows the pointer, a function, or null. */
  function drag(frame, grab) {
    let follow = null;
    frame.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      follow = grab(event);
      if (!follow) return;
      frame.setPointerCapture(event.pointerId); // the frame stays, what is drawn in it does not
      if (event.pointerType === "mouse") event.preventDefault(); // selects no text
      follow(event);
    });
    frame.addEventListener("pointermove", (event) => { if (follow) follow(event); });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      frame.addEventListener(end, () => { follow = null; });
    }
  }

  /** Where a pointer is in an SVG, in its own units. */
  function place(event, svg) {
    const at = new DOMPoint(event.clientX, event.clientY);
    return at.matrixTransform(svg.getScreenCTM().inverse());
  }

  /** Call `draw` whenever the width of an element changes; drawing changes its height only. */
  function watch(host, draw) {
    let width = host.clientWidth;
    new ResizeObserver(() => {
      if (width !== host.clientWidth) requestAnimationFrame(draw);
      width = host.clientWidth;
    }).observe(host);
  }

  return { stored, store, drag, place, watch };
})();
