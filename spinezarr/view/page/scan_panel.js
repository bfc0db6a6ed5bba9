/* The panel next to the planes: vertebrae, findings of the audit, and facts of the scan. */

import { element, numberText, swatch } from "./common.js";
import { placeText } from "./source.js";

/** The panel. It changes the state, and shows its changes. */
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

  /** Hide the controls that have no effect on pictures of the server. */
  hideLabelControls() {
    if (!this.source.hasMask) return;
    this.outlines.hidden = true;
    this.opacity.parentElement.hidden = true;
  }

  /** Go to a label, and choose it. */
  choose(vertebra) {
    this.state.goTo(this.source.grid.voxelAt(vertebra.centroid_xyz_mm), { vertebra: vertebra.name });
  }

  #vertebrae() {
    const { source, state } = this;
    const section = element("section", { "aria-labelledby": "vertebrae-title" });
    const title = element("h2", { id: "vertebrae-title" }, "Vertebrae");
    section.append(title);
    for (const name of state.missingMasks) {
      section.append(element("p", { class: "warning missing-mask" }, `This scan has no mask ${name}.`));
    }
    if (!source.hasMask) {
      section.append(element("p", { class: "quiet" }, "This scan has no mask."));
      return section;
    }
    this.title = title;
    if (source.facts.masks.length > 1) section.append(...this.#masks());
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
    const search = element("input", {
      type: "search",
      placeholder: "Search, e.g. T12",
      "aria-label": "Search the vertebrae",
      oninput: () => this.#filter(),
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
        element("button", { type: "button", id: "all", onclick: () => state.showOnly(state.labels.map(({ name }) => name)) }, "All"),
        element("button", { type: "button", id: "none", onclick: () => state.showOnly([]) }, "None"),
        element("span", { class: "space" }),
        element("span", { class: "quiet" }, "volume, ml"),
      ),
      search,
    );
    this.search = search;
    this.list = element("ul", { class: "vertebrae", id: "vertebrae" });
    this.empty = element("p", { class: "quiet", hidden: true }, "No vertebra matches.");
    section.append(this.list, this.empty);
    return section;
  }

  /** The choice of the filled and of the outlined mask, and where the filled one comes from. */
  #masks() {
    const { source, state } = this;
    const names = source.facts.masks.map(({ name }) => name);
    const options = () => names.map((name) => element("option", { value: name }, name));
    this.mask = element("select", { id: "mask", onchange: () => state.setMask(this.mask.value) }, ...options());
    this.outline = element(
      "select",
      { id: "outline", onchange: () => state.set({ outline: this.outline.value || null, hasOutlines: true }) },
      element("option", { value: "" }, "none"),
      ...options(),
    );
    this.about = element("p", { class: "quiet about", id: "about-mask" });
    const choice = (text, select) => element("label", { class: "choice" }, element("span", { class: "quiet" }, text), select);
    return [
      element("div", { class: "row masks" }, choice("Mask", this.mask), choice("Outline", this.outline)),
      this.about,
    ];
  }

  /** List the labels of the shown masks. */
  #listLabels() {
    const { source, state } = this;
    const masks = `${state.mask} ${state.outline}`;
    if (masks === this.listedMasks) return;
    this.listedMasks = masks;
    const labels = state.labels;
    const isSpine = source.mask(state.mask).scheme === "vertebrae";
    this.title.replaceChildren(
      isSpine ? "Vertebrae" : "Labels",
      element("span", { class: "quiet" }, ` ${labels.length}`),
    );
    this.rows.clear();
    this.list.replaceChildren(...labels.map((label) => this.#row(label)));
    this.#filter();
    if (this.mask) this.#showMasks();
  }

  #showMasks() {
    const { source, state } = this;
    this.mask.value = state.mask;
    this.outline.value = state.outline ?? "";
    for (const option of this.outline.options) option.disabled = option.value === state.mask;
    const { model, author, license } = source.mask(state.mask);
    const parts = [model, author, license].filter(Boolean);
    this.about.textContent = parts.join(", ");
    this.about.hidden = parts.length === 0;
  }

  #row(vertebra) {
    const { state, source } = this;
    const isFilled = source.labelsOf(state.mask).includes(vertebra);
    // The audit checks the mask "label".
    const isAudited = state.mask === "label" && isFilled;
    const notes = isAudited ? source.facts.findings.filter((note) => note.vertebra === vertebra.name) : [];
    const box = element("input", {
      type: "checkbox",
      "aria-label": `Show ${vertebra.name}`,
      onchange: () => {
        const hidden = new Set(state.hidden);
        if (box.checked) hidden.delete(vertebra.name);
        else hidden.add(vertebra.name);
        state.set({ hidden, areLabelsOn: true });
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
        disabled: vertebra.centroid_xyz_mm === null,
        title: vertebra.centroid_xyz_mm ? `Go to ${vertebra.name}` : null,
        onclick: () => this.choose(vertebra),
      },
      swatch(vertebra.color),
      element("b", {}, vertebra.name),
      flag,
      element("span", { class: "ml" }, numberText(vertebra.volume_ml, 1)),
    );
    const only = element(
      "button",
      {
        type: "button",
        class: "only",
        "aria-label": `Show ${vertebra.name} only`,
        onclick: () => state.showOnly([vertebra.name]),
      },
      "only",
    );
    const more = element(
      "p",
      { class: "more", hidden: true },
      isFilled ? "" : `only in ${state.outline}, `,
      vertebra.centroid_xyz_mm ? `centroid ${placeText(vertebra.centroid_xyz_mm)} mm` : "",
      ...notes.flatMap((note) => [element("br"), note.text]),
    );
    const row = element(
      "li",
      { class: "vertebra", "data-name": vertebra.name },
      element("label", { class: "shown" }, box),
      go,
      only,
      more,
    );
    this.rows.set(vertebra.name, { row, box, go, more, vertebra });
    return row;
  }

  #filter() {
    const words = this.search.value.toLowerCase().split(/[\s,]+/).filter(Boolean);
    let count = 0;
    for (const { row, vertebra } of this.rows.values()) {
      const parts = vertebra.name.toLowerCase().split(" ");
      row.hidden = words.length > 0 && !words.some((word) => parts.some((part) => part.startsWith(word)));
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
        audit === "" ? "This version was not audited. Run spinezarr audit." : "The audit found nothing.";
      section.append(element("p", { class: "quiet" }, text));
      return section;
    }
    section.append(element("ul", { class: "notes", id: "findings" }, ...findings.map((note) => this.#note(note))));
    return section;
  }

  #note(note) {
    const vertebra = this.source.labelsOf("label").find(({ name }) => name === note.vertebra);
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
      ["Axes", facts.is_oblique ? `tilted by ${numberText(facts.oblique_deg, 1)}\u00b0; the planes follow the voxel grid` : null],
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
    if (this.list) this.#listLabels();
    this.labels?.setAttribute("aria-pressed", String(state.areLabelsOn));
    this.outlines?.setAttribute("aria-pressed", String(state.hasOutlines));
    if (this.opacity) this.opacity.value = String(state.opacity);
    for (const { row, box, more, vertebra } of this.rows.values()) {
      const isChosen = state.vertebra === vertebra.name;
      row.classList.toggle("chosen", isChosen);
      row.classList.toggle("off", !state.shows(vertebra.name));
      more.hidden = !isChosen;
      box.checked = !state.hidden.has(vertebra.name);
    }
  }
}
