/* Explains what a word or a citation refers to: on hover, on focus, on a first tap. A second tap, or a
   click of the mouse, follows the link. Without this script, the link and its title remain. */
"use strict";

(() => {
  const ID = "explanation", LINKS = "a.term, .bibtex-citation a[href]";
  const WAIT = 150; // milliseconds before a hovered link is explained, or left

  /** The explanation of a link as nodes: a definition of the glossary, or a reference. */
  function explanation(link) {
    if (link.dataset.said) return [document.createTextNode(link.dataset.said)];
    const name = link.getAttribute("href").split("#")[1];
    const source = document.getElementById("definitions");
    const found = source && source.content.querySelector(`[data-term="${CSS.escape(name || "")}"]`);
    return found ? [...document.importNode(found, true).childNodes] : [];
  }

  function start() {
    const tip = document.createElement("div");
    tip.id = ID;
    tip.className = "explanation";
    tip.setAttribute("role", "tooltip");
    tip.hidden = true;
    let current = null, waiting = 0, touched = false;

    function hide() {
      clearTimeout(waiting);
      if (current) current.removeAttribute("aria-describedby");
      current = null;
      tip.hidden = true;
    }
    function show(link) {
      clearTimeout(waiting);
      if (link === current) return;
      hide();
      const words = explanation(link);
      if (!words.length) return;
      current = link;
      tip.replaceChildren(...words);
      (link.closest("article") || document.body).append(tip);
      link.setAttribute("aria-describedby", ID);
      tip.hidden = false;
      const line = link.getClientRects()[0], wide = document.documentElement.clientWidth;
      const origin = tip.offsetParent.getBoundingClientRect();
      const left = Math.max(8, Math.min(line.left, wide - tip.offsetWidth - 8));
      const above = line.bottom + tip.offsetHeight + 10 > innerHeight && line.top > tip.offsetHeight + 10;
      tip.style.left = `${left - origin.left}px`;
      tip.style.top = `${(above ? line.top - tip.offsetHeight - 6 : line.bottom + 6) - origin.top}px`;
    }
    function later(action) {
      clearTimeout(waiting);
      waiting = setTimeout(action, WAIT);
    }

    for (const link of document.querySelectorAll(LINKS)) {
      if (link.title) {
        link.dataset.said = link.title;
        link.removeAttribute("title"); // else the browser shows it as well
      }
      link.addEventListener("pointerenter", (event) => {
        if (event.pointerType === "mouse") later(() => show(link));
      });
      link.addEventListener("pointerleave", (event) => {
        if (event.pointerType === "mouse") later(hide);
      });
      link.addEventListener("pointerdown", (event) => { touched = event.pointerType !== "mouse"; });
      link.addEventListener("focus", () => { if (!touched) show(link); });
      link.addEventListener("blur", hide);
      link.addEventListener("click", (event) => {
        if (touched && link !== current) {
          show(link);
          if (link === current) event.preventDefault();
        }
        touched = false;
      });
    }
    tip.addEventListener("pointerenter", () => clearTimeout(waiting));
    tip.addEventListener("pointerleave", () => later(hide));
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
    document.addEventListener("pointerdown", (event) => {
      if (current && !tip.contains(event.target) && !current.contains(event.target)) hide();
    });
  }

  start();
})();
