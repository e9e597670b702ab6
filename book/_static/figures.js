/* Shows the values behind a figure: at the pointer, at a tap, and with the arrow keys.

   Each panel of a drawing has an element <g class="panel" data-values="..."> with the points of its
   series, see _values in pythia_book/site/figures.py. Nothing is loaded, and all text is set as text. */
"use strict";

(() => {
const SVG = "http://www.w3.org/2000/svg";
const REACH = 28; // how far a point may be from the pointer, in points of the drawing

/** A number for readers: digits grouped, a true minus sign. */
function numberText(value) {
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-4)) {
    const [digits, power] = value.toExponential(2).split("e");
    return `${digits.replace(/\.?0+$/, "")} \u00d7 10^${Number(power)}`.replace(/-/g, "\u2212");
  }
  const [whole, rest] = String(value).split(".");
  const grouped = size >= 1e4 ? whole.replace(/\B(?=(\d{3})+$)/g, ",") : whole;
  return (rest ? `${grouped}.${rest}` : grouped).replace("-", "\u2212");
}

/** The points of a series: places are stored in tenths, each as the step from the place before. */
function rowsOf([left, top, ...others]) {
  let x = 0, y = 0;
  return left.map((step, i) => {
    x += step;
    y += top[i];
    return [x / 10, y / 10, ...others.map((column) => column[i])];
  });
}

/** The points of a drawing's panels, in the order in which the arrow keys walk.

    A panel with `moved` has the points of the same panel of the layout `whole`, stretched and shifted. */
function pointsOf(panels, whole = panels) {
  return panels.flatMap((panel, p) => {
    const [scaleX, shiftX, scaleY, shiftY] = panel.moved || [1, 0, 1, 0];
    return (panel.series || whole[p].series).flatMap(([name, color, flat, columns], s) =>
      rowsOf(columns).map(([left, top, along, value, low, high]) => {
        const x = scaleX * left + shiftX, y = scaleY * top + shiftY;
        return { panel, p, s, name, color, flat, x, y, along, value, low, high };
      }));
  });
}

/** What is said about a point: its series, its place, its value with the interval. */
function linesOf(point) {
  const { panel, flat } = point;
  const [place, unit] = flat ? [panel.y, panel.x] : [panel.x, panel.y];
  const along = typeof point.along === "string" ? point.along
    : `${place || "x"}: ${numberText(point.along)}`;
  const ends = point.low == null ? ""
    : ` [${numberText(point.low)}, ${numberText(point.high)}]`;
  return { title: point.name || panel.title, along, value: `${unit || "value"}: ${numberText(point.value)}${ends}` };
}

/** The point nearest to a place in the drawing, or null if none is in reach. */
function nearest(points, x, y, reach) {
  let best = null, least = reach * reach;
  for (const point of points) {
    const distance = (point.x - x) ** 2 + (point.y - y) ** 2;
    if (distance < least) [best, least] = [point, distance];
  }
  return best;
}

/** The point that an arrow key leads to: left and right along a series, up and down to others. */
function neighbor(points, current, key) {
  if (!points.length) return null;
  if (key === "Home" || !current) return points[0];
  if (key === "End") return points[points.length - 1];
  const i = points.indexOf(current);
  if (key === "ArrowRight") return points[Math.min(i + 1, points.length - 1)];
  if (key === "ArrowLeft") return points[Math.max(i - 1, 0)];
  const step = key === "ArrowDown" ? 1 : -1;
  const starts = points.filter((point, k) => !k || point.s !== points[k - 1].s || point.p !== points[k - 1].p);
  const now = starts.findIndex((point) => point.s === current.s && point.p === current.p);
  const next = starts[Math.min(Math.max(now + step, 0), starts.length - 1)];
  const same = points.filter((point) => point.s === next.s && point.p === next.p);
  return nearest(same, current.x, current.y, Infinity) || next;
}

/** All points of a named series, in every panel: they are ringed, so that the eye finds it in a crowd. */
function seriesOf(points, { name, color }) {
  return name ? points.filter((point) => point.name === name && point.color === color) : [];
}

/** Where all labeled panels share a label, the others have it too: it is drawn once for a column or a row. */
function shareLabels(panels) {
  for (const axis of ["x", "y"]) {
    const labels = new Set(panels.map((panel) => panel[axis]).filter(Boolean));
    if (labels.size === 1) for (const panel of panels) panel[axis] = [...labels][0];
  }
  return panels;
}

function readPanels(svg) {
  return shareLabels([...svg.querySelectorAll(".panel")].map((element) => {
    try {
      return JSON.parse(element.getAttribute("data-values"));
    } catch {
      return { series: [] }; // keeps its place: panels of the two layouts belong together by number
    }
  }));
}

function setUp(figure) {
  const drawing = figure.querySelector(".drawing");
  const layouts = [...drawing.querySelectorAll("svg")].map((svg) => ({ svg, points: null }));
  if (!drawing.querySelector(".panel")) return;
  const tip = figure.appendChild(document.createElement("div"));
  const said = figure.appendChild(document.createElement("div"));
  tip.className = "value-tip";
  tip.hidden = true;
  said.className = "value-said";
  said.setAttribute("role", "status");
  drawing.tabIndex = 0;
  drawing.setAttribute("aria-keyshortcuts", "ArrowRight ArrowLeft ArrowUp ArrowDown Escape");
  let current = null, rings = null;

  function layout() {
    const shown = layouts.find(({ svg }) => svg.getClientRects().length) || layouts[0];
    for (const each of [shown, layouts[0]]) each.panels ||= readPanels(each.svg);
    shown.points ||= pointsOf(shown.panels, layouts[0].panels);
    return shown;
  }
  function hide() {
    current = null;
    tip.hidden = true;
    if (rings) rings.remove();
  }
  function ringAt(point, r) {
    const ring = document.createElementNS(SVG, "circle");
    ring.setAttribute("r", r);
    ring.setAttribute("cx", point.x);
    ring.setAttribute("cy", point.y);
    return ring;
  }
  function show(point, svg, speak) {
    current = point;
    const { title, along, value } = linesOf(point);
    tip.replaceChildren(...[["b", title], ["span", along], ["span", value]].map(([tag, text]) => {
      const line = document.createElement(tag);
      line.textContent = text;
      return line;
    }));
    tip.style.setProperty("--series", point.color);
    tip.hidden = false;
    rings = rings || document.createElementNS(SVG, "g");
    rings.setAttribute("class", "value-rings");
    const series = seriesOf(layout().points, point);
    rings.replaceChildren(...series.map((each) => ringAt(each, 2.2)), ringAt(point, 5));
    svg.append(rings);
    const frame = figure.getBoundingClientRect(), box = svg.getBoundingClientRect();
    const scale = box.width / svg.viewBox.baseVal.width;
    const x = box.left - frame.left + point.x * scale, y = box.top - frame.top + point.y * scale;
    const left = x + 14 + tip.offsetWidth > frame.width ? x - 14 - tip.offsetWidth : x + 14;
    tip.style.left = `${Math.max(0, Math.min(left, frame.width - tip.offsetWidth))}px`;
    tip.style.top = `${Math.max(0, y - tip.offsetHeight - 10)}px`;
    if (speak) said.textContent = [point.panel.title, title, along, value].filter(Boolean).join("; ");
  }
  function point(event) {
    const { svg, points } = layout(), box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const found = nearest(points, (event.clientX - box.left) * scale, (event.clientY - box.top) * scale, REACH);
    if (!found) hide();
    else if (found !== current) show(found, svg, false);
  }

  drawing.addEventListener("pointermove", (event) => { if (!event.buttons) point(event); });
  drawing.addEventListener("click", point);
  drawing.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  drawing.addEventListener("blur", hide);
  addEventListener("resize", hide); // the other layout may be shown now
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  drawing.addEventListener("keydown", (event) => {
    if (!/^(Arrow(Left|Right|Up|Down)|Home|End)$/.test(event.key)) return;
    const { svg, points } = layout(), next = neighbor(points, current, event.key);
    if (next) {
      event.preventDefault();
      show(next, svg, true);
    }
  });
}

/** Copies a command; without permission, shows and selects it. */
function copyCommand(button) {
  const code = button.parentElement.querySelector("code.redraw"), text = button.dataset.command;
  const select = () => {
    code.hidden = false;
    getSelection().selectAllChildren(code);
  };
  if (!navigator.clipboard) return select();
  navigator.clipboard.writeText(text).then(() => {
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Command"; }, 2000);
  }, select);
}

if (typeof document !== "undefined") {
  const start = () => {
    document.querySelectorAll(".pythia-figure").forEach(setUp);
    document.querySelectorAll("button.tool.command").forEach((button) =>
      button.addEventListener("click", () => copyCommand(button)));
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
}

if (typeof module !== "undefined") {
  module.exports = { numberText, pointsOf, linesOf, nearest, neighbor, seriesOf, shareLabels };
}
})();
