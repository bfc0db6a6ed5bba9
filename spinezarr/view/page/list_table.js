/* The list of scans. Only the visible rows are in the page, for any number of scans. */

import { bytesText, element, numberText, request } from "./common.js";
import { LABEL } from "./list_state.js";
import { VERTEBRAE, colorOf, orderOf, rangesText } from "./vertebrae.js";

const ROW_PX = 48;
const SPARE_ROWS = 6;
/** Pictures are requested when scrolling stops, because rows that scroll past need none. */
const REST_MS = 90;
const PICTURE_PX = 96;
const SVG = "http://www.w3.org/2000/svg";
const SLOT_PX = 5;
const STRIP_PX = 12;
const END_CHARACTERS = 9;
/** The multiplication sign between sizes, with thin spaces. */
const TIMES = "\u2009×\u2009";

const COLUMNS = [
  { key: "picture", title: "Picture", isHidden: true },
  { key: "scan", title: "Scan", sorts: true },
  { key: "source", title: "Source", sorts: true },
  { key: "split", title: "Split", sorts: true },
  { key: "vertebrae", title: "Vertebrae", sorts: true },
  { key: "shape", title: "Shape", unit: "zyx", sorts: true },
  { key: "spacing", title: "Spacing", unit: "mm, zyx", sorts: true },
  { key: "anomaly", title: "Anomaly", sorts: true },
  { key: "erratum", title: "Erratum", sorts: true },
  { key: "audit", title: "Audit", sorts: true },
  { key: "size", title: "Size", sorts: true },
];
const AUDIT_MARKS = { ok: "✓", info: "i", warning: "!", error: "✕" };

/**
 * URL of the page of a scan.
 * @param {string} store
 * @param {Object} row of the scan
 * @param {string} order query string of the list from which it is opened
 * @param {string} mask mask in its picture, which the page fills if the scan has it
 */
function scanUrl(store, row, order, mask) {
  const path = `/scan/${encodeURIComponent(store)}/${encodeURIComponent(row.scan_id)}`;
  const params = new URLSearchParams();
  if (mask !== LABEL && row.masks.includes(mask)) params.set("mask", mask);
  if (order) params.set("list", order);
  const query = params.toString();
  return query ? `${path}?${query}` : path;
}

/** URL of the picture of a scan, with a mask if the scan has it. */
function pictureUrl(store, row, mask) {
  const params = new URLSearchParams({
    plane: "sagittal", size_px: PICTURE_PX, content_checksum: row.content_checksum,
  });
  if (!row.masks.includes(mask)) params.set("labels", "false");
  else if (mask !== LABEL) params.set("mask", mask);
  return `/v1/${encodeURIComponent(store)}/scans/${encodeURIComponent(row.scan_id)}/slice.png?${params}`;
}

/** Draw a strip with a slot for each vertebra from head to tail, so the strips of all rows align. */
function strip(names) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("class", "strip");
  picture.setAttribute("viewBox", `0 0 ${SLOT_PX * VERTEBRAE.length} ${STRIP_PX}`);
  picture.setAttribute("aria-hidden", "true");
  for (const name of names) {
    const slot = document.createElementNS(SVG, "rect");
    const title = document.createElementNS(SVG, "title");
    const fields = { x: orderOf(name) * SLOT_PX, width: SLOT_PX - 1, height: STRIP_PX, fill: colorOf(name) };
    for (const [key, value] of Object.entries(fields)) slot.setAttribute(key, value);
    title.textContent = name;
    slot.append(title);
    picture.append(slot);
  }
  return picture;
}

/** Split a name so that CSS can shorten its middle, because ids differ at their ends. */
function shortenedName(name) {
  if (name.length <= END_CHARACTERS) return [name];
  return [
    element("span", { class: "start" }, name.slice(0, -END_CHARACTERS)),
    element("span", { class: "end" }, name.slice(-END_CHARACTERS)),
  ];
}

function cell(key, column, ...children) {
  return element("td", { role: "cell", class: key, "aria-colindex": column }, ...children);
}

/**
 * The table.
 *
 * The active row always stays in the page, so that it keeps the focus during scrolling.
 */
export class ScanTable {
  /**
   * @param {string} store name
   * @param {ScanIndex} index of its scans
   * @param {{onsort: function(string), onmove: function(), onfail: function(string, Error)}} callbacks
   *   `onfail` is called with the id of a scan whose picture is missing, and the reason
   */
  constructor(store, index, { onsort, onmove, onfail }) {
    this._store = store;
    this._index = index;
    this._onmove = onmove;
    this._onfail = onfail;
    this._hasFurtherMasks = index.hasFurtherMasks;
    this._mask = LABEL;
    this._positions = [];
    this._order = "";
    this._active = 0;
    this._rows = new Map();
    this._heads = new Map();
    this._body = element("tbody", { role: "rowgroup" });
    this._table = element("table", {
      role: "table", "aria-label": "Scans", "aria-colcount": COLUMNS.length, class: "scans-table",
    }, element("thead", { role: "rowgroup" }, element("tr", { role: "row", "aria-rowindex": 1 },
      ...COLUMNS.map((column, at) => this._head(column, at + 1, onsort)))), this._body);
    this._empty = element("div", { class: "empty", hidden: true });
    this.element = element("div", { class: "scans", id: "scans" }, this._table, this._empty);
    this.element.addEventListener("scroll", () => this._scrolled(), { passive: true });
    this._body.addEventListener("keydown", (event) => this._pressed(event));
    this._body.addEventListener("click", (event) => this._clicked(event));
    this._body.addEventListener("auxclick", (event) => this._clicked(event));
    this._body.addEventListener("focusin", (event) => this._focused(event));
    this._height = 0;
    new ResizeObserver(() => {
      this._height = this.element.clientHeight;
      this._render();
      this._afterRest();
    }).observe(this.element);
  }

  /** The scan that keys act on; undefined if no row is shown. */
  get active() {
    return this._index.rows[this._positions[this._active]]?.scan_id;
  }

  /** Height of the rows above the window, in pixels. */
  get top() {
    return this.element.scrollTop;
  }

  /**
   * Show rows.
   * @param {number[]} positions of the rows in the index
   * @param {ListState} state by which they were selected
   * @param {string} order query string of that state, for the pages of the scans
   * @param {Node[]} empty elements that are shown if there are no rows
   */
  show(positions, state, order, empty) {
    const active = this.active;
    const top = this.element.scrollTop;
    const hasChanged = this._positions.length !== positions.length || positions.some((position, n) => position !== this._positions[n]);
    this._positions = positions;
    this._order = order;
    this._mask = state.picture || LABEL;
    for (const [key, head] of this._heads) {
      const isSorted = key === state.sort;
      if (isSorted) head.setAttribute("aria-sort", state.isDescending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    this._table.setAttribute("aria-rowcount", positions.length + 1);
    this._body.style.height = `${positions.length * ROW_PX}px`;
    this._table.hidden = positions.length === 0;
    this._empty.hidden = positions.length !== 0;
    this._empty.replaceChildren(...(positions.length ? [] : empty));
    if (hasChanged) {
      this._active = Math.max(0, positions.findIndex((position) => this._index.rows[position].scan_id === active));
      if (top) this.element.scrollTop = 0;
      if (this._active * ROW_PX > this._height) this._active = 0;
    }
    for (const row of this._rows.values()) this._drop(row);
    this._rows.clear();
    this._render(hasChanged ? 0 : top);
    this._afterRest();
  }

  /** Restore the scroll position and the active row. */
  restore(top, active) {
    this.element.scrollTop = top;
    const at = this._positions.findIndex((row) => this._index.rows[row].scan_id === active);
    if (at >= 0) this._setActive(at);
    this._render();
    if (at >= 0) this._link(at)?.focus({ preventScroll: true });
  }

  /** Give the focus to the active row. */
  focus() {
    if (this._positions.length) this._go(this._active);
  }

  _head({ key, title, unit, sorts, isHidden }, column, onsort) {
    const text = isHidden ? element("span", { class: "hidden-text" }, title) : title;
    const inner = sorts
      ? element("button", { type: "button", onclick: () => onsort(key) }, text,
        unit ? element("span", { class: "unit" }, unit) : "", element("span", { class: "arrow", "aria-hidden": "true" }))
      : text;
    const head = element("th", { role: "columnheader", scope: "col", class: key, "aria-colindex": column }, inner);
    if (sorts) this._heads.set(key, head);
    return head;
  }

  _scrolled() {
    this._render();
    this._afterRest(this._onmove);
  }

  /** Request pictures when nothing has changed for a moment, then call a function. */
  _afterRest(then = () => {}) {
    clearTimeout(this._restTimer);
    this._restTimer = setTimeout(() => {
      this._requestPictures();
      then();
    }, REST_MS);
  }

  /** Put the visible rows and the active row into the page. */
  _render(top = this.element.scrollTop) {
    const last = this._positions.length - 1;
    const first = Math.floor(top / ROW_PX) - SPARE_ROWS;
    const needed = new Set();
    for (let at = Math.max(0, first); at <= Math.min(last, first + this._windowRows + 2 * SPARE_ROWS); at += 1) needed.add(at);
    if (last >= 0) needed.add(this._active);
    for (const [at, row] of this._rows) {
      if (!needed.has(at)) {
        this._drop(row);
        this._rows.delete(at);
      }
    }
    const added = [...needed].filter((at) => !this._rows.has(at)).sort((a, b) => a - b);
    for (const at of added) this._rows.set(at, this._row(at));
    if (added.length) this._insert(added);
  }

  get _windowRows() {
    return Math.ceil((this._height || window.innerHeight) / ROW_PX);
  }

  /** Insert rows in their order, for screen readers. */
  _insert(added) {
    const rendered = [...this._rows.keys()].sort((a, b) => a - b);
    const isAdded = new Set(added);
    let next = null;
    for (const at of rendered.reverse()) {
      const row = this._rows.get(at);
      if (isAdded.has(at)) this._body.insertBefore(row, next);
      next = row;
    }
  }

  _row(at) {
    const row = this._index.rows[this._positions[at]];
    const isActive = at === this._active;
    const vertebraText = rangesText(row.vertebrae);
    const masks = row.masks.some((name) => name !== LABEL) ? row.masks : [];
    const about = masks.length ? `${row.scan_id}, masks ${masks.join(", ")}` : row.scan_id;
    const node = element("tr", {
      role: "row", "aria-rowindex": at + 2, "data-at": at, class: isActive ? "active" : null,
    },
    cell("picture", 1, element("span", { class: "tile" }, this._note(row))),
    element("th", { role: "rowheader", scope: "row", class: "scan", "aria-colindex": 2 },
      element("a", {
        href: scanUrl(this._store, row, this._order, this._mask), tabindex: isActive ? 0 : -1,
        title: about, "aria-label": about,
      }, ...shortenedName(row.scan_id)),
      masks.length ? element("span", { class: "masks", "aria-hidden": "true" }, masks.join(", ")) : null),
    cell("source", 3, element("span", { title: row.source }, row.source)),
    cell("split", 4, row.split),
    cell("vertebrae", 5, strip(row.vertebrae), element("span", { title: row.vertebrae.join(", ") }, vertebraText || "no vertebra")),
    cell("shape", 6, row.shape_zyx.join(TIMES)),
    cell("spacing", 7, row.spacing_zyx_mm.map((mm) => numberText(mm)).join(TIMES)),
    cell("anomaly", 8, row.anomaly && element("span", { title: row.anomaly }, row.anomaly)),
    cell("erratum", 9, row.erratum && element("span", { title: row.erratum }, row.erratum)),
    cell("audit", 10, this._verdict(row.audit)),
    cell("size", 11, bytesText(row.stored_bytes)));
    node.style.transform = `translateY(${at * ROW_PX}px)`;
    return node;
  }

  _verdict(verdict) {
    if (!verdict) return element("span", { class: "quiet", title: "This scan was not audited." }, "–");
    return element("span", { class: `verdict ${verdict}` },
      element("span", { class: "mark", "aria-hidden": "true" }, AUDIT_MARKS[verdict] ?? "?"), verdict);
  }

  /** Request the pictures of the visible rows. */
  _requestPictures() {
    const first = Math.floor(this.element.scrollTop / ROW_PX);
    const last = first + this._windowRows;
    for (const [at, node] of this._rows) {
      const tile = node.querySelector(".tile");
      if (tile.querySelector("img") || at < first - 1 || at > last + 1) continue;
      const row = this._index.rows[this._positions[at]];
      const image = element("img", { alt: "", loading: "lazy", decoding: "async" });
      image.addEventListener("error", () => this._explain(tile, image.src, row.scan_id));
      image.addEventListener("load", () => tile.classList.add("drawn"));
      image.src = pictureUrl(this._store, row, this._mask);
      tile.prepend(image);
    }
  }

  /** Say on the picture of a scan that the scan lacks the mask. Stores without further masks have no such notes. */
  _note(row) {
    const isExpected = this._hasFurtherMasks || this._mask !== LABEL;
    if (!isExpected || row.masks.includes(this._mask)) return null;
    const name = element("span", { class: "hidden-text" }, ` ${this._mask}`);
    return element("span", { class: "note", title: `This scan has no mask ${this._mask}.` }, "no mask", name);
  }

  /** Say why a picture is missing. An image element does not know the reason, so it is requested again. */
  async _explain(tile, url, scanId) {
    tile.classList.add("failed");
    try {
      await request(url);
    } catch (problem) {
      if (!tile.isConnected) return;
      const reason = element("span", { class: "hidden-text" }, `: ${problem.message}`);
      tile.querySelector(".note")?.remove();
      tile.append(element("span", { class: "note", title: problem.message }, "no picture", reason));
      this._onfail(scanId, problem);
    }
  }

  /** Remove a row from the page, and cancel its requests. */
  _drop(row) {
    const image = row.querySelector("img");
    if (image && !image.complete) image.removeAttribute("src");
    row.remove();
  }

  _link(at) {
    return this._rows.get(at)?.querySelector("a");
  }

  _setActive(at) {
    if (at === this._active) return;
    const before = this._rows.get(this._active);
    before?.classList.remove("active");
    before?.querySelector("a").setAttribute("tabindex", -1);
    this._active = at;
    const now = this._rows.get(at);
    now?.classList.add("active");
    now?.querySelector("a").setAttribute("tabindex", 0);
    this._onmove();
  }

  /** Make a row active, and scroll to it. */
  _go(at) {
    const head = this._table.tHead.offsetHeight;
    const room = this._height - head;
    const top = at * ROW_PX;
    if (top < this.element.scrollTop) this.element.scrollTop = top;
    else if (top + ROW_PX > this.element.scrollTop + room) this.element.scrollTop = top + ROW_PX - room;
    this._setActive(at);
    this._render();
    this._link(at).focus({ preventScroll: true });
  }

  _pressed(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const last = this._positions.length - 1;
    const page = Math.max(1, this._windowRows - 2);
    const places = {
      ArrowDown: this._active + 1, ArrowUp: this._active - 1, PageDown: this._active + page,
      PageUp: this._active - page, Home: 0, End: last,
    };
    if (!(event.key in places)) return;
    event.preventDefault();
    this._go(Math.max(0, Math.min(last, places[event.key])));
  }

  _focused(event) {
    const row = event.target.closest("tr");
    this.element.classList.add("used");
    if (row) this._setActive(Number(row.dataset.at));
  }

  /** A click anywhere in a row opens its scan, unless it selects text. */
  _clicked(event) {
    const row = event.target.closest("tr");
    if (!row || event.button > 1) return;
    this._setActive(Number(row.dataset.at));
    this._onmove(true);
    if (event.target.closest("a") || String(getSelection())) return;
    const link = row.querySelector("a");
    if (event.button === 1 || event.ctrlKey || event.metaKey) window.open(link.href, "_blank", "noopener");
    else link.click();
  }
}
