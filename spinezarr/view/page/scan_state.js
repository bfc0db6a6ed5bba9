/* The state of the page of a scan. The URL holds it. */

import { PLANE_NAMES } from "./plane_geometry.js";

export const LAYOUTS = {
  all: "All",
  sagittal: "Sagittal",
  coronal: "Coronal",
  axial: "Axial",
  render: "3D",
};
const DEFAULT_WINDOW = "bone";
/** Opacity of labels in the server's pictures. */
const PICTURE_OPACITY = 0.4;

/**
 * State of the page. It dispatches the event `change`.
 */
export class ScanState extends EventTarget {
  /**
   * @param {import("./source.js").ScanSource} source
   * @param {URLSearchParams} query of the URL
   */
  constructor(source, query) {
    super();
    this.source = source;
    const { windows } = source.facts;
    const masks = source.facts.masks.map(({ name }) => name);
    /** Mask that is filled with colors; null if the scan has none. */
    this.mask = masks.includes(query.get("mask")) ? query.get("mask") : (masks[0] ?? null);
    const outline = masks.includes(query.get("outline")) ? query.get("outline") : null;
    /** Mask that is outlined over it; null for none. */
    this.outline = outline === this.mask ? null : outline;
    const named = [query.get("mask"), query.get("outline")];
    /** Masks that the URL names, but the scan lacks. */
    this.missingMasks = [...new Set(named)].filter((name) => name && !masks.includes(name));
    /** Names of the labels that are not shown, in both masks. */
    this.hidden = this.#hiddenBy(query.get("labels"));
    const namedVertebra = this.labels.find((vertebra) => vertebra.name === query.get("vertebra"));
    const requestedMm = parseNumbers(query.get("at_mm"), 3);
    const mm = requestedMm ?? namedVertebra?.centroid_xyz_mm ?? source.facts.middle_mm;
    this.voxel = source.grid.voxelAt(mm);
    this.vertebra = namedVertebra?.name ?? null;
    this.windowName = Object.hasOwn(windows, query.get("window")) ? query.get("window") : null;
    const limits = parseNumbers(query.get("window"), 2);
    const isWindow = limits && limits[0] < limits[1];
    if (!isWindow) this.windowName ??= DEFAULT_WINDOW;
    this.window = this.windowName ? windows[this.windowName] : limits;
    this.areLabelsOn = query.get("labels") !== "false";
    this.opacity = parseFraction(query.get("opacity"), PICTURE_OPACITY);
    this.hasOutlines = query.get("outlines") !== "false";
    this.isNearest = query.get("interpolation") === "nearest";
    this.layout = Object.hasOwn(LAYOUTS, query.get("layout")) ? query.get("layout") : "all";
    this.plane = PLANE_NAMES.includes(this.layout) ? this.layout : "sagittal";
    this.level = query.get("level");
    this.list = query.get("list");
  }

  /** Change some fields of the state. */
  set(fields) {
    Object.assign(this, fields);
    this.dispatchEvent(new Event("change"));
  }

  /** Go to a voxel, or to the nearest one inside the volume. */
  goTo(voxel, fields = {}) {
    this.set({ voxel: this.source.grid.nearest(voxel), ...fields });
  }

  /** Move along an axis, in voxels. */
  step(axis, count) {
    const voxel = [...this.voxel];
    voxel[axis] += count;
    this.goTo(voxel);
  }

  /** Choose a window by name. */
  setWindow(name) {
    this.set({ windowName: name, window: this.source.facts.windows[name] });
  }

  /** Fill another mask. If it was the outlined one, the two change places. */
  setMask(mask) {
    this.set({ mask, outline: this.outline === mask ? this.mask : this.outline });
  }

  /** Labels of the filled mask, and those that the outlined one has beside them. */
  get labels() {
    const labels = [...this.source.labelsOf(this.mask)];
    // Each label of the outlined mask alone comes before the one that follows it in that mask.
    let place = labels.length;
    for (const label of [...this.source.labelsOf(this.outline)].reverse()) {
      const known = labels.findIndex(({ name }) => name === label.name);
      if (known < 0) labels.splice(place, 0, label);
      else place = known;
    }
    return labels;
  }

  /** Whether a label is shown. */
  shows(name) {
    return this.areLabelsOn && !this.hidden.has(name);
  }

  /** Values of a mask that are shown. */
  shownValues(mask) {
    const shown = this.source.labelsOf(mask).filter(({ name }) => this.shows(name));
    return new Set(shown.map(({ value }) => value));
  }

  /** Show these labels alone. */
  showOnly(names) {
    const hidden = this.labels.map(({ name }) => name).filter((name) => !names.includes(name));
    this.set({ hidden: new Set(hidden), areLabelsOn: true });
  }

  /** The shown labels, as in the query of the server's pictures. */
  get labelsText() {
    const names = this.labels.map(({ name }) => name).filter((name) => this.shows(name));
    if (names.length === 0) return "false";
    if (names.length === this.labels.length) return "true";
    return names.map(listedName).join(",");
  }

  /** The outlined mask; null if outlines are off. */
  get shownOutline() {
    return this.hasOutlines ? this.outline : null;
  }

  /** Whether pictures of the server show the labels in the same way. */
  get matchesPictures() {
    return (this.opacity === PICTURE_OPACITY && this.hasOutlines) || this.labelsText === "false";
  }

  /** The query of the URL: all values that differ from their defaults. */
  get query() {
    const query = new URLSearchParams();
    const { grid } = this.source;
    query.set("at_mm", grid.mmOf(this.voxel).map((mm) => Number(mm.toFixed(2))).join(","));
    query.set("window", this.windowName ?? this.window.join(","));
    if (this.mask !== (this.source.facts.masks[0]?.name ?? null)) query.set("mask", this.mask);
    if (this.outline !== null) query.set("outline", this.outline);
    if (this.vertebra) query.set("vertebra", this.vertebra);
    if (this.source.hasMask && this.labelsText !== "true") query.set("labels", this.labelsText);
    if (this.opacity !== PICTURE_OPACITY) query.set("opacity", String(this.opacity));
    if (!this.hasOutlines) query.set("outlines", "false");
    if (this.isNearest) query.set("interpolation", "nearest");
    if (this.layout !== "all") query.set("layout", this.layout);
    if (this.level !== null) query.set("level", this.level);
    if (this.list !== null) query.set("list", this.list);
    // Commas are not escaped, so that people can read the URL.
    return query.toString().replaceAll("%2C", ",");
  }

  #hiddenBy(text) {
    const names = text && text !== "true" && text !== "false" ? text.split(",") : null;
    const hidden = this.labels.filter(({ name }) => names !== null && !names.includes(listedName(name)));
    return new Set(hidden.map(({ name }) => name));
  }
}

/** Return a name as it is in a list that commas separate. */
function listedName(name) {
  return name.replaceAll(",", " ");
}

function parseNumbers(text, count) {
  const values = (text ?? "").split(",").map((part) => (part.trim() === "" ? NaN : Number(part)));
  return values.length === count && values.every(Number.isFinite) ? values : null;
}

function parseFraction(text, fallback) {
  const value = parseNumbers(text, 1)?.[0];
  return value === undefined ? fallback : Math.min(1, Math.max(0, value));
}
