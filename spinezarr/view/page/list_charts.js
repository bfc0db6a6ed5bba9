/* Charts of the scans that the list shows: voxel spacing, and vertebrae in the masks. */

import { element, numberText } from "./common.js";
import { VERTEBRAE, colorOf } from "./vertebrae.js";

const SVG = "http://www.w3.org/2000/svg";
const STEPS_MM = [0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 2.5, 5, 10, 25, 50, 100];
const MAX_BINS = 24;
const WIDTH = 120;
const HEIGHT = 56;
const AXES = [
  { title: "Spacing z", key: "z", note: "Distance between voxels along z", of: (row) => row.spacing_zyx_mm[0] },
  {
    title: "Spacing yx", key: "yx", note: "Distance between voxels along y or x, whichever is larger",
    of: (row) => Math.max(row.spacing_zyx_mm[1], row.spacing_zyx_mm[2]),
  },
];

function svg(tag, fields) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(fields)) node.setAttribute(name, value);
  return node;
}

/** Charts of the scans of an index. `onvertebra` is called with the name of a clicked vertebra. */
export class Charts {
  constructor(index, onvertebra) {
    this._index = index;
    this._histograms = AXES.map((axis) => new Histogram(index.rows, axis));
    this._rates = new Rates(index, onvertebra);
    this.element = element("aside", { id: "charts", class: "charts", "aria-label": "Charts of the shown scans" },
      element("div", { class: "pair" }, ...this._histograms.map((histogram) => histogram.element)), this._rates.element);
  }

  /** Draw the charts of the shown scans. */
  show(positions, state) {
    for (const histogram of this._histograms) histogram.show(positions);
    this._rates.show(positions, state.vertebra);
  }
}

/** Histogram of the spacing of the shown scans, in front of that of all scans. */
class Histogram {
  constructor(rows, axis) {
    const values = rows.map(axis.of);
    const largest = values.reduce((a, b) => Math.max(a, b), 0);
    const smallest = values.reduce((a, b) => Math.min(a, b), rows.length ? Infinity : 0);
    const binsOf = (step) => binOf(largest, step) - binOf(smallest, step) + 1;
    this._step = STEPS_MM.find((step) => binsOf(step) <= MAX_BINS) ?? largest;
    this._first = binOf(smallest, this._step);
    this._bins = values.map((mm) => binOf(mm, this._step) - this._first);
    this._all = this._count(values.keys(), binsOf(this._step));
    this._top = Math.max(...this._all, 1);
    this._bars = this._all.map(() => svg("rect", { class: "bar-shown" }));
    this._body = element("tbody");
    const picture = svg("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "histogram", "aria-hidden": "true",
    });
    picture.append(
      ...this._all.map((count, bin) => svg("rect", { class: "bar-all", ...this._place(bin, count) })),
      ...this._bars);
    const heads = ["mm", "shown", "all"].map((text) => element("th", { scope: "col" }, text));
    this._details = element("details", { class: "figures", ontoggle: () => this._list() },
      element("summary", {}, "Table"),
      element("table", {}, element("thead", {}, element("tr", {}, ...heads)), this._body));
    this.element = element("section", { class: "chart", id: `spacing-${axis.key}` },
      element("h2", { title: axis.note }, axis.title, element("span", { class: "quiet" }, ", mm")),
      picture,
      element("p", { class: "axis quiet", "aria-hidden": "true" },
        element("span", {}, this._edge(0)), element("span", {}, this._edge(this._all.length))),
      this._details);
  }

  show(positions) {
    const counts = this._count(positions, this._all.length);
    counts.forEach((count, bin) => {
      for (const [name, value] of Object.entries(this._place(bin, count))) {
        this._bars[bin].setAttribute(name, value);
      }
    });
    this._counts = counts;
    if (this._details.open) this._list();
  }

  /** Fill the table of the counts, which happens only while it is open. */
  _list() {
    const counts = this._counts;
    this._body.replaceChildren(...this._all.flatMap((all, bin) => (all ? [this._row(bin, counts[bin], all)] : [])));
  }

  _row(bin, shown, all) {
    return element("tr", {},
      element("th", { scope: "row" }, `${this._edge(bin)} to ${this._edge(bin + 1)}`),
      element("td", {}, shown.toLocaleString("en")), element("td", {}, all.toLocaleString("en")));
  }

  _edge(bin) {
    return numberText((this._first + bin) * this._step);
  }

  _count(positions, bins) {
    const counts = new Array(bins).fill(0);
    for (const position of positions) counts[this._bins[position]] += 1;
    return counts;
  }

  _place(bin, count) {
    const width = WIDTH / this._all.length;
    const height = count ? Math.max(count / this._top * HEIGHT, 1.5) : 0;
    const gap = Math.min(1.5, width / 5);
    return { x: bin * width + gap / 2, y: HEIGHT - height, width: width - gap, height };
  }
}

/** Number of the bin of a length. On the edge of two bins it is the upper one, despite rounding. */
function binOf(mm, step) {
  return Math.floor(mm / step + 1e-6);
}

/** Percentage of scans that show each vertebra. Each bar is a button that filters by its vertebra. */
class Rates {
  constructor(index, onvertebra) {
    this._index = index;
    const present = VERTEBRAE.map((name, order) => [name, order])
      .filter(([, order]) => index.rows.some((_, position) => index.shows(position, order)));
    this._bars = present.map(([name, order]) => {
      const fill = element("span", { class: "fill" });
      fill.style.backgroundColor = colorOf(name);
      const percent = element("span", { class: "percent" });
      const button = element("button", { type: "button", class: "rate", "data-vertebra": name, "aria-pressed": "false", onclick: () => onvertebra(name) },
        element("span", { class: "name" }, name), element("span", { class: "track", "aria-hidden": "true" }, fill), percent);
      return { name, order, fill, percent, button };
    });
    const body = this._bars.length
      ? element("ul", { class: "rates" }, ...this._bars.map((bar) => element("li", {}, bar.button)))
      : element("p", { class: "quiet" }, "No mask shows a vertebra.");
    this.element = element("section", { class: "chart", id: "rates" },
      element("h2", { title: "Share of the scans whose mask shows the vertebra. Click to filter." }, "Scans that show a vertebra"), body);
  }

  show(positions, selected) {
    for (const { name, order, fill, percent, button } of this._bars) {
      let count = 0;
      for (const position of positions) count += this._index.shows(position, order);
      const share = positions.length ? 100 * count / positions.length : 0;
      const text = share > 0 && share < 1 ? "<1 %" : `${share > 99 && share < 100 ? 99 : Math.round(share)} %`;
      fill.style.width = `${share}%`;
      percent.textContent = text;
      button.setAttribute("aria-pressed", String(selected === name));
      button.title = `${name}: ${count.toLocaleString("en")} of ${positions.length.toLocaleString("en")} scans`;
    }
  }
}
