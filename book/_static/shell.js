/* The frame of a page: boxes that scroll get a name and a stop of the Tab key while they scroll, the
   menus above a page close on Escape and on clicks elsewhere, and links into a fold open it. */
'use strict';

(() => {
  /** The words that name a table or an equation: its caption, or the heading above it. */
  function nameOf(box, headings) {
    const caption = box.querySelector('caption, .caption-text');
    if (caption && caption.textContent.trim()) return caption.textContent.trim();
    let above = null;
    for (const heading of headings) {
      if (heading.compareDocumentPosition(box) & Node.DOCUMENT_POSITION_FOLLOWING) above = heading;
    }
    const kind = box.matches('.math') ? 'Equation' : 'Table';
    const words = above ? above.textContent.replace(/#$/, '').trim() : '';
    return words ? `${kind}: ${words}` : kind;
  }

  /** Make boxes that scroll focusable regions with unique names, and undo it when they fit. */
  function nameScrollers(article) {
    const headings = article.querySelectorAll('h1, h2, h3, h4');
    const boxes = [...article.querySelectorAll('.scrolls, .pst-scrollable-table-container, div.math, figure')]
      .filter((box) => !box.closest('details:not([open])')); // until it is opened, it has no size
    // all sizes are read before anything changes: the page is laid out once
    const scrolling = boxes.map((box) => box.scrollWidth > box.clientWidth + 1);
    const seen = new Map();
    boxes.forEach((box, place) => {
      const region = !box.matches('figure'); // a figure has a role and a name of its own
      if (!scrolling[place]) {
        for (const name of ['tabindex', ...(region ? ['role', 'aria-label'] : [])]) box.removeAttribute(name);
        return;
      }
      box.setAttribute('tabindex', '0');
      if (!region) return;
      const name = nameOf(box, headings);
      seen.set(name, (seen.get(name) || 0) + 1);
      box.setAttribute('role', 'region');
      box.setAttribute('aria-label', seen.get(name) > 1 ? `${name} (${seen.get(name)})` : name);
    });
  }

  /** Close open menus on Escape and on clicks elsewhere. */
  function closeMenus(event) {
    for (const menu of document.querySelectorAll('.page-menu[open]')) {
      if (event.type === 'keydown' ? event.key !== 'Escape' : menu.contains(event.target)) continue;
      menu.open = false;
      if (event.type === 'keydown') menu.querySelector('summary').focus();
    }
  }

  /** Open what hides the target of the address, such as the code of a figure, and go there. */
  function reveal() {
    const target = document.querySelector(':target');
    if (!target) return;
    const folds = [];
    for (let fold = target.closest('details'); fold; fold = fold.parentElement.closest('details')) {
      if (!fold.open) folds.push(fold);
    }
    for (const fold of folds) fold.open = true;
    if (folds.length) target.scrollIntoView();
  }

  const article = document.querySelector('.bd-article');
  if (article) {
    let waiting = 0;
    const later = () => {
      cancelAnimationFrame(waiting);
      waiting = requestAnimationFrame(() => nameScrollers(article));
    };
    new ResizeObserver(later).observe(article);
    addEventListener('load', later);
    article.addEventListener('toggle', later, true);
  }
  document.addEventListener('click', closeMenus);
  document.addEventListener('keydown', closeMenus);
  addEventListener('hashchange', reveal);
  reveal();
})();
