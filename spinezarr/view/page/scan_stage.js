/* The four tiles: planes, sliders, lines where the planes cross, and the handling of pointers. */

import { element, hasNiivue } from "./common.js";
import { AXIS_NAMES, Camera, PLANES, PLANE_NAMES, PlaneOnScreen } from "./plane_geometry.js";
import { SliceView } from "./slice_view.js";
import { VolumeView, masksKey } from "./volume_view.js";

const ZOOM_STEP = 1.25;
const WHEEL_PX = 40;
const PAGE_SLICES = 10;
const TURN_DEG_PER_S = 24;
const TURN_STEP_DEG = 30;
/** Most voxels of the level that is shown first. */
const FIRST_VOXELS = 3e6;
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

/** Follows two fingers on the screen. */
class Pinch {
  /** Remember where the first two fingers are. */
  begin(fingers) {
    const [a, b] = fingers.values();
    this.middle = {
      clientX: (a.clientX + b.clientX) / 2,
      clientY: (a.clientY + b.clientY) / 2,
    };
    this.distance = Math.max(1, Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY));
  }

  /** Return how much their distance has grown since then, and how their midpoint moved, in pixels. */
  move(fingers) {
    const { middle, distance } = this;
    this.begin(fingers);
    const moved = [this.middle.clientX - middle.clientX, this.middle.clientY - middle.clientY];
    return { factor: this.distance / distance, moved };
  }
}

/** Draws planes and 3D into their tiles. Its events report problems and the shown level. */
export class Stage extends EventTarget {
  /**
   * @param {HTMLElement} root
   * @param {import("./source.js").ScanSource} source
   * @param {import("./scan_state.js").ScanState} state
   */
  constructor(root, source, state) {
    super();
    this.root = root;
    this.source = source;
    this.state = state;
    this.camera = new Camera(source.grid);
    this.canvas = root.querySelector("#planes");
    this.tiles = {};
    this.slices = new SliceView(source, (plane, problem) => this.#drawn(plane, problem));
    this.volume = null;
    this.loading = null;
    this.loadingLevel = null;
    this.loadingMasks = "";
    this.isRenderStarting = false;
    this.failedRender = null;
    /** Resolves when everything visible is drawn. */
    this.firstView = new Promise((resolve) => {
      this.resolveFirstView = resolve;
    });
    for (const plane of PLANE_NAMES) this.#addPlane(plane);
    this.#addRender();
    state.addEventListener("change", () => this.update());
    new ResizeObserver(() => this.update()).observe(root);
    // The first frame of a page comes late, so requests start before it.
    this.#update();
  }

  /** Whether the browser can draw volumes. The first check takes a while. */
  static get canDrawVolumes() {
    return hasNiivue && VolumeView.isPossible;
  }

  /** Explain in the tile of 3D what is missing. */
  explainMissingVolumes() {
    this.rotate.remove();
    this.tiles.render.picture.replaceChildren(this.#missingVolumesMessage());
  }

  /** Draw the state, at most once in each frame. */
  update() {
    if (this.isWaiting) return;
    this.isWaiting = true;
    requestAnimationFrame(() => {
      this.isWaiting = false;
      this.#update();
    });
  }

  zoom(factor) {
    this.camera.zoomAt(factor, this.state.plane, this.state.voxel);
    this.update();
  }

  zoomFit() {
    this.camera.reset();
    this.update();
  }

  /** Start to draw volumes, with a coarse level. */
  async startVolumes() {
    const fitting = VolumeView.fitting(this.source.levels);
    const first = fitting.find(({ voxels }) => voxels <= FIRST_VOXELS) ?? fitting.at(-1);
    const requested = fitting.find(({ level }) => String(level) === this.state.level);
    if (!first) return;
    this.volume = new VolumeView(this.source, this.canvas, this.renderCanvas);
    this.canvas.addEventListener("webglcontextlost", () => this.#onContextLost(), { once: true });
    this.volume.show(this.#shown());
    await this.loadLevel((requested ?? first).level, { isQuiet: true });
    await this.#startRender();
  }

  /** Load the masks that the state shows now, in the level that is shown or being loaded. */
  async #loadMasks() {
    try {
      await this.loadLevel(this.loadingLevel ?? this.volume.levelIndex, { isQuiet: true });
    } catch (problem) {
      this.dispatchEvent(new CustomEvent("problem", { detail: problem }));
    }
  }

  /** Load a level, and show it when it is complete. */
  async loadLevel(level, { isQuiet = false } = {}) {
    this.loading?.abort();
    const loading = new AbortController();
    this.loading = loading;
    this.loadingLevel = level;
    this.loadingMasks = masksKey(this.state);
    const total = this.bytesOf(level);
    let bytes = 0;
    const report = (share) =>
      this.dispatchEvent(new CustomEvent("progress", { detail: { level, share, isQuiet } }));
    report(0);
    try {
      await this.volume.load(level, this.state, {
        signal: loading.signal,
        onBytes: (count) => report(Math.min(1, (bytes += count) / total)),
      });
      if (level === this.finestLevel) this.slices.hide();
      for (const plane of PLANE_NAMES) this.#drawn(plane, null);
      performance.mark(`level-${level}`);
      this.root.dataset.level = String(level);
      this.update();
    } finally {
      if (this.loading === loading) {
        this.loading = null;
        this.loadingLevel = null;
      }
      report(null);
    }
  }

  /** Approximate size of a level in bytes. Masks are sent compressed. */
  bytesOf(level) {
    const masks = [this.state.mask, this.state.outline].filter((name) => name !== null);
    return this.source.levels[level].voxels * (2 + masks.length);
  }

  /** The finest level that fits. */
  get finestLevel() {
    return VolumeView.fitting(this.source.levels)[0]?.level ?? null;
  }

  /** Request the pictures again. */
  retry() {
    this.slices.retry();
  }

  /** Go back to the server's pictures. */
  #onContextLost() {
    this.loading?.abort();
    this.volume = null;
    this.slices.showAgain();
    delete this.root.dataset.level;
    this.update();
    const text = "The graphics memory is exhausted. The server draws the planes until you reload the page.";
    this.dispatchEvent(new CustomEvent("problem", { detail: new Error(text) }));
  }

  #shown() {
    const { state } = this;
    const stage = this.root.getBoundingClientRect();
    const planes = {};
    const tiles = {};
    for (const plane of PLANE_NAMES) {
      const { tile, picture } = this.tiles[plane];
      if (tile.hidden) continue;
      const box = picture.getBoundingClientRect();
      const left = Math.round(box.left - stage.left);
      const top = Math.round(box.top - stage.top);
      const width = Math.floor(box.width);
      const height = Math.floor(box.height);
      if (width < 2 || height < 2) continue;
      planes[plane] = new PlaneOnScreen(plane, this.camera, width, height);
      tiles[plane] = { left, top };
    }
    return {
      voxel: state.voxel,
      window: state.window,
      labelsText: state.labelsText,
      mask: state.mask,
      outline: state.shownOutline,
      visible: state.shownValues(state.mask),
      visibleOutline: state.shownValues(state.outline),
      opacity: state.opacity,
      hasOutlines: state.hasOutlines,
      isNearest: state.isNearest,
      hasLevel: this.volume?.levelIndex != null,
      matchesPictures: state.matchesPictures,
      isRenderShown: !this.tiles.render.tile.hidden,
      stage: { width: Math.round(stage.width), height: Math.round(stage.height) },
      planes,
      tiles,
    };
  }

  #update() {
    const { layout } = this.state;
    this.root.dataset.layout = layout;
    for (const [name, { tile, enlarge }] of Object.entries(this.tiles)) {
      tile.hidden = layout !== "all" && layout !== name;
      enlarge.setAttribute("aria-pressed", String(layout === name));
    }
    const shown = this.#shown();
    if (!this.slices.isHidden) this.slices.show(shown);
    this.volume?.show(shown);
    if (this.volume?.levelIndex != null) {
      // Masks that could not be loaded are not requested again at each change.
      const key = masksKey(this.state);
      if (this.volume.masksKey !== key && this.loadingMasks !== key) this.#loadMasks();
    }
    this.#showRenderState();
    for (const [plane, onScreen] of Object.entries(shown.planes)) this.#mark(plane, onScreen);
    if (layout === "render") this.#firstView();
    if (shown.isRenderShown && this.volume?.levelIndex != null) this.#startRender();
    this.dispatchEvent(new Event("shown"));
  }

  /** Draw the lines of the other planes, and write the position of this one. */
  #mark(plane, onScreen) {
    const { voxel } = this.state;
    const { flat } = PLANES[plane];
    const { lines, slider, place } = this.tiles[plane];
    const [x, y] = onScreen.pixelOf(voxel);
    lines.down.style.left = `${Math.round(x)}px`;
    lines.across.style.top = `${Math.round(y)}px`;
    slider.value = String(voxel[flat]);
    const text = `${AXIS_NAMES[flat]} ${this.source.grid.positionMm(flat, voxel[flat]).toFixed(1)} mm`;
    slider.setAttribute("aria-valuetext", text);
    place.textContent = text;
  }

  #drawn(plane, problem) {
    const { failed, tile } = this.tiles[plane];
    failed.hidden = problem === null;
    failed.textContent = problem === null ? "" : problem.message;
    tile.dataset.drawn = String(problem === null);
    const all = PLANE_NAMES.filter((name) => !this.tiles[name].tile.hidden);
    if (all.every((name) => this.tiles[name].tile.dataset.drawn === "true")) this.#firstView();
    if (problem !== null) this.dispatchEvent(new CustomEvent("problem", { detail: problem }));
  }

  /** Note that everything visible is drawn, so that loading of the rest starts. */
  #firstView() {
    if (this.isFirstShown) return;
    this.isFirstShown = true;
    performance.mark("first-view");
    this.root.dataset.first = "true";
    this.resolveFirstView();
  }

  #enlarge(name) {
    const enlarge = element(
      "button",
      {
        type: "button",
        title: "Show only this tile, or all",
        "aria-label": `${name === "render" ? "3D" : PLANES[name].title} only`,
        onclick: () => this.state.set({ layout: this.state.layout === name ? "all" : name }),
      },
      "\u2922",
    );
    return enlarge;
  }

  #addPlane(plane) {
    const { title, flat, axes, sides } = PLANES[plane];
    const slider = element("input", {
      type: "range",
      min: 0,
      max: this.source.grid.shape[flat] - 1,
      step: 1,
      "aria-label": `${title} plane, ${AXIS_NAMES[flat]} in mm`,
      oninput: () => {
        const voxel = [...this.state.voxel];
        voxel[flat] = Number(slider.value);
        this.state.goTo(voxel, { plane });
      },
      onfocus: () => (this.state.plane = plane),
      onkeydown: (event) => {
        const pages = { PageUp: PAGE_SLICES, PageDown: -PAGE_SLICES }[event.key];
        if (pages === undefined) return;
        event.preventDefault();
        this.state.step(flat, pages);
      },
    });
    const picture = element("div", { class: "picture" });
    const lines = {};
    // The horizontal line shows the plane across the vertical axis, and vice versa.
    for (const [name, axis] of [["down", axes[0]], ["across", axes[1]]]) {
      const other = PLANE_NAMES.find((name) => PLANES[name].flat === axis);
      lines[name] = element("div", { class: `line ${name}`, "data-of": other });
      lines[name].style.setProperty("--of", `var(--line-${other})`);
      picture.append(lines[name]);
    }
    ["left", "right", "top", "bottom"].forEach((side, i) =>
      picture.append(element("span", { class: `side ${side}`, "aria-hidden": "true" }, sides[i])),
    );
    const failed = element("div", { class: "failed", hidden: true });
    picture.append(failed);
    const place = element("output");
    const enlarge = this.#enlarge(plane);
    const strip = element("div", { class: "strip" }, element("h2", {}, title), place, slider, enlarge);
    const tile = element("div", { class: "tile", "data-plane": plane }, picture, strip);
    this.tiles[plane] = { tile, picture, slider, place, lines, failed, enlarge };
    this.slices.attach(plane, picture);
    this.#listen(plane, picture, slider);
    this.root.append(tile);
  }

  #listen(plane, picture, slider) {
    const { flat, axes } = PLANES[plane];
    const onScreen = () => {
      const { width, height } = picture.getBoundingClientRect();
      return new PlaneOnScreen(plane, this.camera, Math.floor(width), Math.floor(height));
    };
    const voxelUnder = (event) => {
      const box = picture.getBoundingClientRect();
      const at = [event.clientX - box.left, event.clientY - box.top];
      return onScreen().voxelAt(...at, this.state.voxel);
    };
    let drag = null;
    const fingers = new Map();
    const pinch = new Pinch();
    let voxelBefore = null;
    picture.addEventListener("pointerdown", (event) => {
      slider.focus({ preventScroll: true });
      event.preventDefault();
      picture.setPointerCapture(event.pointerId);
      if (event.pointerType === "touch") fingers.set(event.pointerId, event);
      if (fingers.size > 1) {
        // The first finger has moved the planes, but two fingers only zoom.
        if (drag === "place") this.state.goTo(voxelBefore, { plane });
        drag = "pinch";
        pinch.begin(fingers);
        return;
      }
      voxelBefore = [...this.state.voxel];
      drag = event.button === 0 && !event.shiftKey ? "place" : "pan";
      if (drag === "place") this.state.goTo(voxelUnder(event), { plane });
    });
    picture.addEventListener("pointermove", (event) => {
      if (fingers.has(event.pointerId)) fingers.set(event.pointerId, event);
      if (drag === "pinch" && fingers.size > 1) {
        const voxel = voxelUnder(pinch.middle);
        const { factor, moved } = pinch.move(fingers);
        this.camera.zoomAt(factor, plane, voxel);
        const { pixelsPerMm } = onScreen();
        if (this.camera.zoom > 1) this.camera.pan(plane, moved[0] / pixelsPerMm, moved[1] / pixelsPerMm);
        this.update();
      }
      if (drag === "place") this.state.goTo(voxelUnder(event), { plane });
      if (drag === "pan" && this.camera.zoom > 1) {
        const { pixelsPerMm } = onScreen();
        this.camera.pan(plane, event.movementX / pixelsPerMm, event.movementY / pixelsPerMm);
        this.update();
      }
    });
    for (const end of ["pointerup", "pointercancel"]) {
      picture.addEventListener(end, (event) => {
        fingers.delete(event.pointerId);
        // The finger that stays must not move the planes.
        if (fingers.size > 1) pinch.begin(fingers);
        else if (fingers.size === 0 || drag !== "pinch") drag = null;
      });
    }
    picture.addEventListener("contextmenu", (event) => event.preventDefault());
    let wheelPx = 0;
    picture.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        if (event.ctrlKey) {
          const voxel = voxelUnder(event);
          this.camera.zoomAt(ZOOM_STEP ** (-event.deltaY / 100), plane, voxel);
          this.update();
          return;
        }
        wheelPx += event.deltaMode === 0 ? event.deltaY : event.deltaY * WHEEL_PX;
        const count = Math.trunc(wheelPx / WHEEL_PX);
        if (count === 0) return;
        wheelPx -= count * WHEEL_PX;
        this.state.plane = plane;
        this.state.step(flat, -Math.sign(count) * Math.min(3, Math.abs(count)));
      },
      { passive: false },
    );
  }

  #addRender() {
    this.renderCanvas = element("canvas", {
      id: "render",
      role: "img",
      "aria-label": "The vertebrae in 3D. The panel lists them.",
    });
    const picture = element("div", { class: "picture" });
    this.rendering = element("div", { class: "waiting" }, "3D is loaded after the planes");
    picture.append(this.renderCanvas, this.rendering);
    const rotate = element(
      "button",
      { type: "button", id: "rotate", "aria-pressed": "false", disabled: true },
      "Rotate",
    );
    rotate.addEventListener("click", () => this.#rotate(rotate));
    this.rotate = rotate;
    const enlarge = this.#enlarge("render");
    const strip = element(
      "div",
      { class: "strip" },
      element("h2", {}, "3D"),
      element("span", { class: "space" }),
      rotate,
      enlarge,
    );
    strip.children[1].style.flex = "1";
    const tile = element("div", { class: "tile", "data-plane": "render" }, picture, strip);
    this.tiles.render = { tile, picture, enlarge };
    this.root.append(tile);
    if (!hasNiivue || !this.source.hasMask) this.explainMissingVolumes();
    let isDragging = false;
    picture.addEventListener("pointerdown", (event) => {
      isDragging = true;
      picture.setPointerCapture(event.pointerId);
    });
    picture.addEventListener("pointermove", (event) => {
      if (isDragging) this.#turn(event.movementX / 2, event.movementY / 2);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      picture.addEventListener(end, () => (isDragging = false));
    }
    picture.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.volume?.turnBy(0, 0, ZOOM_STEP ** (-event.deltaY / 100));
      },
      { passive: false },
    );
  }

  #missingVolumesMessage() {
    const content = !this.source.hasMask
      ? [element("h3", {}, "No mask"), "This scan has no vertebra mask, so there is nothing to show in 3D."]
      : !hasNiivue
        ? [
            element("h3", {}, "3D is not part of this build"),
            "NiiVue draws volumes. It is missing, because spinezarr was built without access to the npm " +
              "registry. The server draws the planes. For 3D and a smooth zoom, install a wheel from " +
              "PyPI, or build again on a machine where ",
            element("code", {}, "npm view @niivue/niivue"),
            " answers.",
          ]
        : [
            element("h3", {}, "3D needs WebGL 2"),
            "This browser offers no WebGL 2. Switch hardware acceleration on in its settings, or use " +
              "a current Firefox, Chrome, Edge or Safari. Until then, the server draws the planes.",
          ];
    return element("div", { class: "lacking" }, ...content);
  }

  async #startRender() {
    const { mask } = this.state;
    const isDone = this.volume?.renderMask === mask || this.failedRender === mask;
    if (this.tiles.render.tile.hidden || this.isRenderStarting || isDone || mask === null) return;
    this.isRenderStarting = true;
    this.failedRender = null;
    // The planes are drawn first, one frame before 3D.
    await new Promise((resolve) => setTimeout(resolve, 50));
    try {
      await this.volume?.loadRender(mask);
      performance.mark("render");
    } catch (problem) {
      this.failedRender = mask;
      this.renderProblem = problem.message;
      this.dispatchEvent(new CustomEvent("problem", { detail: problem }));
    } finally {
      this.isRenderStarting = false;
      this.update();
    }
  }

  /** Show 3D of the filled mask, or say why there is none. */
  #showRenderState() {
    const { mask } = this.state;
    if (!this.volume || mask === null) return;
    const isLoaded = this.volume.renderMask === mask;
    const isEmpty = isLoaded && this.volume.isRenderEmpty;
    const isShown = isLoaded && !isEmpty;
    this.renderCanvas.style.visibility = isShown ? "" : "hidden";
    this.rendering.hidden = isShown;
    this.rotate.disabled = !isShown;
    if (isEmpty) this.rendering.textContent = "The mask of this scan is empty";
    else if (this.failedRender === mask) this.rendering.textContent = this.renderProblem;
    else this.rendering.textContent = "3D is loaded after the planes";
    if (isLoaded) this.root.dataset.render = mask;
    else delete this.root.dataset.render;
  }

  #turn(azimuth, elevation) {
    this.volume?.turnBy(azimuth, elevation);
  }

  #rotate(button) {
    if (reducedMotion.matches) {
      this.#turn(TURN_STEP_DEG, 0);
      return;
    }
    const isOn = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(isOn));
    let before = performance.now();
    const turn = (now) => {
      if (button.getAttribute("aria-pressed") !== "true") return;
      this.#turn((TURN_DEG_PER_S * Math.min(200, now - before)) / 1000, 0);
      before = now;
      requestAnimationFrame(turn);
    };
    if (isOn) requestAnimationFrame(turn);
  }
}
