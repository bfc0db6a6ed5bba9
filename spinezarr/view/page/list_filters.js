/* The search and the filters above the list. */

import { element } from "./common.js";
import { FILTERS, LABEL, NONE, SOME, VERDICTS, isAll } from "./list_state.js";
import { scansText } from "./list_stores.js";
import { VERTEBRAE, orderOf } from "./vertebrae.js";

const MAX_TEXTS = 60;
const NAMES = {
  split: "Split", source: "Source", vertebra: "Vertebra", mask: "Mask", anomaly: "Anomaly", erratum: "Erratum", audit: "Audit",
};
const WITHOUT = {
  split: "No split", source: "No source", anomaly: "Without anomaly", erratum: "Without erratum", audit: "Not audited",
};
const withCount = (text, count) => `${text} (${count.toLocaleString("en")})`;
const pictureText = (mask) => `Pictures: ${mask || LABEL}`;

/** Show a value in a select, also one that only the URL names. */
function choose(select, value, text) {
  if (value && ![...select.options].some((option) => option.value === value)) {
    select.append(element("option", { value }, text));
  }
  select.value = value;
  select.classList.toggle("set", value !== "");
}

/** Controls of the filters. `onchange` is called with the changed part of the state. */
export class Filters {
  constructor(index, onchange) {
    this._index = index;
    this._onchange = onchange;
    this._hasFurtherMasks = index.hasFurtherMasks;
    this.search = element("input", {
      type: "search", id: "search", "aria-label": "Search scans", placeholder: "Search id, source, anomaly …",
      autocomplete: "off", spellcheck: "false", "aria-keyshortcuts": "/", oninput: () => onchange({ q: this.search.value }),
    });
    this._selects = new Map(FILTERS.map((name) => [name, this._select(name)]));
    this._clear = element("button", {
      type: "button", id: "clear", onclick: () => {
        onchange(Object.fromEntries([["q", ""], ...FILTERS.map((name) => [name, ""])]));
        this.search.focus();
      },
    }, "Clear");
    this._picture = this._pictureSelect();
    this._shown = element("p", { class: "shown", role: "status" });
    this.element = element("form", { class: "filters", role: "search", "aria-label": "Scans", onsubmit: (event) => event.preventDefault() },
      element("label", { class: "search" }, this.search, element("kbd", { "aria-hidden": "true" }, "/")),
      ...this._selects.values(), this._clear, this._picture);
    this.count = this._shown;
  }

  /** Show a state, and the number of scans that match it. */
  show(state, shown) {
    if (this.search.value !== state.q) this.search.value = state.q;
    for (const [name, select] of this._selects) {
      choose(select, state[name], state[name]);
    }
    choose(this._picture, state.picture, pictureText(state.picture));
    this._picture.hidden = !this._hasFurtherMasks && !state.picture;
    this._clear.disabled = isAll(state);
    const all = this._index.rows.length;
    this._shown.textContent = shown === all ? scansText(all) : `${shown.toLocaleString("en")} of ${scansText(all)}`;
  }

  _select(name) {
    const options = this._options(name).map(([value, text]) => element("option", { value }, text));
    return element("select", {
      name, "aria-label": NAMES[name], title: `Filter by ${name}`, disabled: options.length === 0,
      hidden: name === "mask" && !this._hasFurtherMasks,
      onchange: (event) => this._onchange({ [name]: event.target.value }),
    }, element("option", { value: "" }, NAMES[name]), ...options);
  }

  /** The choice of the mask in the pictures of the scans, which filters none. */
  _pictureSelect() {
    const further = this._index.masks().map(([name]) => name).filter((name) => name !== LABEL);
    const options = ["", ...further].map((name) => element("option", { value: name }, pictureText(name)));
    return element("select", {
      name: "picture", "aria-label": "Mask in the pictures", title: "Mask in the pictures",
      onchange: (event) => this._onchange({ picture: event.target.value }),
    }, ...options);
  }

  _options(name) {
    if (name === "vertebra") return this._vertebrae();
    if (name === "mask") return this._masks();
    const values = this._index.valuesOf(name);
    const without = values.filter(([value]) => value === "").map(([, count]) => [NONE, withCount(WITHOUT[name], count)]);
    const texts = values.filter(([value]) => value !== "");
    if (name === "audit") {
      texts.sort(([a], [b]) => VERDICTS.indexOf(b) - VERDICTS.indexOf(a));
      return [...texts.map(([value, count]) => [value, withCount(`Audit: ${value}`, count)]), ...without];
    }
    const isMark = name === "anomaly" || name === "erratum";
    const total = texts.reduce((sum, [, count]) => sum + count, 0);
    const some = isMark && total ? [[SOME, withCount(`With ${name}`, total)]] : [];
    const listed = isMark && texts.length > MAX_TEXTS ? [] : texts;
    return [...some, ...without, ...listed.map(([value, count]) => [value, withCount(value, count)])];
  }

  _masks() {
    const masks = this._index.masks().map(([value, count]) => [value, withCount(value, count)]);
    const without = this._index.rows.filter((row) => row.masks.length === 0).length;
    return without ? [...masks, [NONE, withCount("Without a mask", without)]] : masks;
  }

  _vertebrae() {
    const { rows } = this._index;
    const counts = VERTEBRAE.map((name) => rows.reduce((n, _, at) => n + this._index.shows(at, orderOf(name)), 0));
    return VERTEBRAE.flatMap((name, order) => (counts[order] ? [[name, withCount(name, counts[order])]] : []));
  }
}
