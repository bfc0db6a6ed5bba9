/* The state of the list: which scans it shows, and in which order. The URL holds it. This module
changes no element of the page. */

import { orderOf } from "./vertebrae.js";

/** Filters of scans, besides the words of the search. */
export const FILTERS = Object.freeze(["split", "source", "vertebra", "mask", "anomaly", "erratum", "audit"]);
/** Values of the filter of a text column, for rows with any text and for rows without text. */
export const SOME = "true";
export const NONE = "false";
/** The mask in the pictures, unless another one is chosen. */
export const LABEL = "label";
/** Severities of the audit, from good to bad; a scan without an audit has "". */
export const VERDICTS = Object.freeze(["", "ok", "info", "warning", "error"]);
const SORTED = Object.freeze([
  "scan", "split", "source", "vertebrae", "shape", "spacing", "size", "anomaly", "erratum", "audit",
]);

/**
 * @typedef {Object} ListState
 * @property {string} store the chosen store; "" for none
 * @property {string} q words of the search
 * @property {string} sort column; "" for the order of the store's table
 * @property {boolean} isDescending
 * @property {string} picture mask in the pictures of the scans; "" for `label`
 * @property {string} split as for the other names of FILTERS: "" for all
 */

/** Parse the query of a URL. Unknown parameters are ignored. */
export function parseState(search) {
  const params = new URLSearchParams(search);
  const sort = params.get("sort") ?? "";
  const column = sort.replace(/^-/, "");
  const isKnown = SORTED.includes(column);
  const state = { store: params.get("store") ?? "", q: params.get("q") ?? "" };
  for (const name of FILTERS) state[name] = params.get(name) ?? "";
  const picture = params.get("picture") ?? "";
  state.picture = picture === LABEL ? "" : picture;
  state.sort = isKnown ? column : "";
  state.isDescending = isKnown && sort.startsWith("-");
  return state;
}

/** Write the query that `parseState` reads, without "?", and with or without the store. */
export function formatState(state, withStore = true) {
  const params = new URLSearchParams();
  if (withStore && state.store) params.set("store", state.store);
  if (state.q) params.set("q", state.q);
  for (const name of FILTERS) if (state[name]) params.set(name, state[name]);
  if (state.sort) params.set("sort", (state.isDescending ? "-" : "") + state.sort);
  if (state.picture) params.set("picture", state.picture);
  return params.toString();
}

/** Whether all scans are shown. */
export function isAll(state) {
  return !state.q.trim() && FILTERS.every((name) => !state[name]);
}

const SEARCHED = ["scan_id", "source", "split", "anomaly", "erratum", "label_state", "audit"];
const COMPARE = new Intl.Collator("en", { numeric: true }).compare;
const product = (values) => values.reduce((all, value) => all * value, 1);
const NUMBERS = {
  vertebrae: (row) => row.vertebrae.length + (row.vertebrae.length ? 1 - orderOf(row.vertebrae[0]) / 64 : 0),
  shape: (row) => product(row.shape_zyx),
  spacing: (row) => row.spacing_zyx_mm[0] * 1e6 + row.spacing_zyx_mm[1] * 1e3 + row.spacing_zyx_mm[2],
  size: (row) => row.stored_bytes,
  audit: (row) => VERDICTS.indexOf(row.audit),
};

/** An index of the scans of a store, fast enough to filter at each key press. */
export class ScanIndex {
  /** @param {Object[]} rows in the order of the server */
  constructor(rows) {
    this.rows = rows;
    this._texts = rows.map((row) => [...SEARCHED.map((name) => row[name]), ...row.masks].join("\n").toLowerCase());
    this._masks = Int32Array.from(rows, (row) =>
      row.vertebrae.reduce((mask, name) => mask | (orderOf(name) < 0 ? 0 : 1 << orderOf(name)), 0));
    this._keys = new Map();
  }

  /** Whether the mask of the row at a position shows the vertebra with a rank. */
  shows(position, order) {
    return (this._masks[position] >> order & 1) === 1;
  }

  /** Whether a scan has a mask besides `label`. */
  get hasFurtherMasks() {
    return this.rows.some((row) => row.masks.some((name) => name !== LABEL));
  }

  /** Masks of the scans, `label` first, each with its number of scans. */
  masks() {
    const counts = new Map();
    for (const row of this.rows) for (const name of row.masks) counts.set(name, (counts.get(name) ?? 0) + 1);
    const isLabel = (name) => Number(name === LABEL);
    return [...counts].sort(([a], [b]) => isLabel(b) - isLabel(a) || COMPARE(a, b));
  }

  /** Values of a column of texts in natural order, each with its number of scans. */
  valuesOf(name) {
    const counts = new Map();
    for (const row of this.rows) counts.set(row[name], (counts.get(row[name]) ?? 0) + 1);
    return [...counts].sort(([a], [b]) => COMPARE(a, b));
  }

  /** Positions of the rows that match a state, in its order. */
  select(state) {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const tests = FILTERS.filter((name) => state[name]).map((name) => this._test(name, state[name]));
    const positions = [];
    for (let position = 0; position < this.rows.length; position += 1) {
      if (words.every((word) => this._texts[position].includes(word)) && tests.every((test) => test(position))) {
        positions.push(position);
      }
    }
    return this._sorted(positions, state);
  }

  _test(name, value) {
    if (name === "vertebra") {
      const order = orderOf(value);
      return order < 0 ? () => false : (position) => this.shows(position, order);
    }
    if (name === "mask") {
      if (value === NONE) return (position) => this.rows[position].masks.length === 0;
      return (position) => this.rows[position].masks.includes(value);
    }
    if (value === SOME) return (position) => this.rows[position][name] !== "";
    if (value === NONE) return (position) => this.rows[position][name] === "";
    return (position) => this.rows[position][name] === value;
  }

  _sorted(positions, state) {
    if (state.sort === "" || state.sort === "scan") return state.isDescending ? positions.reverse() : positions;
    const keys = this._keysOf(state.sort);
    const sign = state.isDescending ? -1 : 1;
    return positions.sort((a, b) => {
      if (keys[a] === keys[b]) return a - b;
      if (keys[a] === Infinity || keys[b] === Infinity) return keys[a] - keys[b];
      return sign * (keys[a] - keys[b]);
    });
  }

  /** Numbers by which a column is sorted. For texts it is their rank; rows without a text come last. */
  _keysOf(column) {
    if (!this._keys.has(column)) {
      const number = NUMBERS[column];
      if (number) this._keys.set(column, Float64Array.from(this.rows, number));
      else {
        const places = new Map(this.valuesOf(column).map(([value], position) => [value, value ? position : Infinity]));
        this._keys.set(column, Float64Array.from(this.rows, (row) => places.get(row[column])));
      }
    }
    return this._keys.get(column);
  }
}
