/* Beside the planes: the vertebrae, what the audit found, and the facts of the scan. */

import { element, numberText, swatch } from "./common.js";
import { placeText } from "./source.js";

/** The panel; it changes the state and follows it. */
export class Panel {
  /**
   * @param {HTMLElement} root
   * @param {import("./source.js").ScanSource} source
   * @param {import("./scan_state.js").ScanState} state
   */
  constructor(root, source, state) {
    this.source = source;
    this.state = state;
    this.rows = new Map();
    root.replaceChildren(...[this.#vertebrae(), this.#findings(), this.#facts()].filter(Boolean));
    state.addEventListener("change", () => this.#update());
    this.#update();
  }

  /** Hide the controls that pictures of the server cannot follow. */
  leaveLooksToServer() {
    if (!this.source.hasMask) return;
    this.outlines.hidden = true;
    this.opacity.parentElement.hidden = true;
  }

  /** Go to a vertebra, and choose it. */
  choose(found) {
    this.state.goTo(this.source.grid.voxelAt(found.centroid_xyz_mm), { vertebra: found.name });
  }

  #vertebrae() {
    const { source, state } = this;
    const section = element("section", { "aria-labelledby": "vertebrae-title" });
    const title = element("h2", { id: "vertebrae-title" }, "Vertebrae");
    section.append(title);
    if (!source.hasMask) {
      section.append(element("p", { class: "quiet" }, "This scan has no mask."));
      return section;
    }
    if (source.facts.masks.length > 1) {
      // Choice between several masks; one is drawn at a time.
      section.append(element("p", { class: "quiet" }, `Mask ${source.facts.masks[0].name}`));
    }
    title.append(element("span", { class: "quiet" }, ` ${source.vertebrae.length}`));
    this.labels = element(
      "button",
      {
        type: "button",
        id: "labels",
        title: "Labels on and off (l)",
        onclick: () => state.set({ areLabelsOn: !state.areLabelsOn }),
      },
      "Labels",
    );
    this.outlines = element(
      "button",
      {
        type: "button",
        id: "outlines",
        title: "Outlines of labels (o)",
        onclick: () => state.set({ hasOutlines: !state.hasOutlines }),
      },
      "Outlines",
    );
    this.opacity = element("input", {
      type: "range",
      id: "opacity",
      min: 0,
      max: 1,
      step: 0.05,
      oninput: () => state.set({ opacity: Number(this.opacity.value) }),
    });
    const all = (visible) => state.set({ visible: new Set(visible), areLabelsOn: true });
    const search = element("input", {
      type: "search",
      placeholder: "Search, e.g. T12",
      "aria-label": "Search the vertebrae",
      oninput: () => this.#filter(search.value),
      onkeydown: (event) => {
        const first = [...this.rows.values()].find(({ row, go }) => !row.hidden && !go.disabled);
        if (event.key === "Enter" && first) first.go.click();
      },
    });
    section.append(
      element(
        "div",
        { class: "row" },
        this.labels,
        this.outlines,
        element("label", { class: "opacity" }, element("span", { class: "quiet" }, "Opacity"), this.opacity),
      ),
      element(
        "div",
        { class: "row" },
        element("button", { type: "button", id: "all", onclick: () => all(source.vertebrae.map((v) => v.value)) }, "All"),
        element("button", { type: "button", id: "none", onclick: () => all([]) }, "None"),
        element("span", { class: "space" }),
        element("span", { class: "quiet" }, "volume, ml"),
      ),
      search,
      element("ul", { class: "vertebrae", id: "vertebrae" }, ...source.vertebrae.map((v) => this.#row(v))),
    );
    this.empty = element("p", { class: "quiet", hidden: true }, "No vertebra matches.");
    section.append(this.empty);
    return section;
  }

  #row(found) {
    const { state, source } = this;
    const notes = source.facts.findings.filter((note) => note.vertebra === found.name);
    const box = element("input", {
      type: "checkbox",
      "aria-label": `Show ${found.name}`,
      onchange: () => {
        const visible = new Set(state.visible);
        if (box.checked) visible.add(found.value);
        else visible.delete(found.value);
        state.set({ visible, areLabelsOn: true });
      },
    });
    const flag = notes.length
      ? element("span", {
          class: `flag ${notes[0].severity}`,
          title: notes.map((note) => note.text).join("\n"),
          role: "img",
          "aria-label": `${notes[0].severity}: ${notes[0].text}`,
        })
      : null;
    const go = element(
      "button",
      {
        type: "button",
        class: "go",
        disabled: found.centroid_xyz_mm === null,
        title: found.centroid_xyz_mm ? `Go to ${found.name}` : null,
        onclick: () => this.choose(found),
      },
      swatch(found.color),
      element("b", {}, found.name),
      flag,
      element("span", { class: "ml" }, numberText(found.volume_ml, 1)),
    );
    const only = element(
      "button",
      {
        type: "button",
        class: "only",
        "aria-label": `Show ${found.name} only`,
        onclick: () => state.set({ visible: new Set([found.value]), areLabelsOn: true }),
      },
      "only",
    );
    const more = element(
      "p",
      { class: "more", hidden: true },
      found.centroid_xyz_mm ? `centroid ${placeText(found.centroid_xyz_mm)} mm` : "",
      ...notes.flatMap((note) => [element("br"), note.text]),
    );
    const row = element(
      "li",
      { class: "vertebra", "data-name": found.name },
      element("label", { class: "shown" }, box),
      go,
      only,
      more,
    );
    this.rows.set(found.name, { row, box, go, more, found });
    return row;
  }

  #filter(text) {
    const words = text.toLowerCase().split(/[\s,]+/).filter(Boolean);
    let count = 0;
    for (const { row, found } of this.rows.values()) {
      row.hidden = words.length > 0 && !words.some((word) => found.name.toLowerCase().startsWith(word));
      if (!row.hidden) count += 1;
    }
    this.empty.hidden = count > 0;
  }

  #findings() {
    const { findings, audit } = this.source.facts;
    const section = element("section", { "aria-labelledby": "findings-title" });
    section.append(element("h2", { id: "findings-title" }, "Audit"));
    if (findings.length === 0) {
      const text =
        audit === "" ? "This version was not audited: run spinezarr audit." : "Nothing was found.";
      section.append(element("p", { class: "quiet" }, text));
      return section;
    }
    section.append(element("ul", { class: "notes", id: "findings" }, ...findings.map((note) => this.#note(note))));
    return section;
  }

  #note(note) {
    const vertebra = this.source.vertebrae.find(({ name }) => name === note.vertebra);
    const place = note.position_xyz_mm ?? vertebra?.centroid_xyz_mm;
    const go = () =>
      this.state.goTo(this.source.grid.voxelAt(place), { vertebra: vertebra?.name ?? this.state.vertebra });
    const text = note.vertebra && !note.text.includes(note.vertebra) ? `${note.vertebra}: ${note.text}` : note.text;
    return element(
      "li",
      { title: note.rule },
      element("span", { class: `flag ${note.severity}`, "aria-hidden": "true" }),
      element(
        "span",
        {},
        element("span", { class: "hidden-text" }, `${note.severity}: `),
        place ? element("button", { type: "button", onclick: go }, text) : text,
      ),
    );
  }

  #facts() {
    const { facts, grid } = this.source;
    const pairs = [
      ["Dataset", facts.dataset],
      ["Patient", facts.patient_id],
      ["Split", facts.split],
      ["Source", facts.source],
      ["Shape", `${grid.shape.join(" \u00d7 ")} voxels (x, y, z)`],
      ["Spacing", `${grid.spacing.map((mm) => numberText(mm, 3)).join(" \u00d7 ")} mm`],
      ["Axes", facts.is_oblique ? `tilted by ${numberText(facts.oblique_deg, 1)}\u00b0: planes are of its grid` : null],
      ["Values", facts.image_range_hu ? `${facts.image_range_hu.map((hu) => numberText(hu, 1)).join(" to ")} HU` : null],
      ["Not finite", facts.image_nan_voxels + facts.image_infinite_voxels || null],
      ["Mask", facts.label_state],
      ["Anomaly", facts.anomaly],
      ["Erratum", facts.erratum],
      ["Version", facts.content_checksum.slice(0, 12)],
    ];
    const list = element("dl", { class: "facts" });
    for (const [name, value] of pairs) {
      if (value) list.append(element("dt", {}, name), element("dd", {}, String(value)));
    }
    const section = element("section", { "aria-labelledby": "facts-title" });
    section.append(element("h2", { id: "facts-title" }, "Scan"), list);
    return section;
  }

  #update() {
    const { state } = this;
    this.labels?.setAttribute("aria-pressed", String(state.areLabelsOn));
    this.outlines?.setAttribute("aria-pressed", String(state.hasOutlines));
    if (this.opacity) this.opacity.value = String(state.opacity);
    for (const { row, box, more, found } of this.rows.values()) {
      const isChosen = state.vertebra === found.name;
      row.classList.toggle("chosen", isChosen);
      row.classList.toggle("off", !state.shownValues.has(found.value));
      more.hidden = !isChosen;
      box.checked = state.visible.has(found.value);
    }
  }
}
