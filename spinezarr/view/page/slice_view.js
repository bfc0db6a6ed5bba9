/* Shows the planes as pictures that the server draws. They need neither time to load voxels nor
WebGL, and they are sharp while the browser has only a coarse level of the volume. */

import { PLANES, PLANE_NAMES } from "./plane_geometry.js";

const SIZE_STEP_PX = 128;
const LARGEST_PX = 2048;
const REST_MS = 150;

/**
 * Draws planes from pictures of the server; `VolumeView` draws planes in the browser.
 *
 * `show` is called with the whole state at each change.
 */
export class SliceView {
  /**
   * @param {import("./source.js").ScanSource} source
   * @param {function(string, ?Error)} onDrawn called with each plane that is drawn, or its error
   */
  constructor(source, onDrawn) {
    this.source = source;
    this.onDrawn = onDrawn;
    this.isHidden = false;
    this.hasLevel = false;
    this.planes = Object.fromEntries(
      PLANE_NAMES.map((plane) => [plane, { image: null, requested: "", drawn: "", isBusy: false }]),
    );
  }

  /** Set the tile of a plane. */
  attach(plane, tile) {
    const image = document.createElement("img");
    image.className = "slice";
    image.alt = "";
    image.draggable = false;
    image.hidden = true;
    tile.prepend(image);
    this.planes[plane].image = image;
  }

  /** Show the pictures of a state. */
  show(shown) {
    for (const [plane, onScreen] of Object.entries(shown.planes)) {
      const state = this.planes[plane];
      const [left, top, width, height] = onScreen.rectangle();
      Object.assign(state.image.style, {
        left: `${left}px`,
        top: `${top}px`,
        width: `${width}px`,
        height: `${height}px`,
        imageRendering: shown.isNearest ? "pixelated" : "auto",
      });
      const pixels = Math.max(width, height) * (globalThis.devicePixelRatio || 1);
      const sizePx = Math.min(LARGEST_PX, Math.ceil(pixels / SIZE_STEP_PX) * SIZE_STEP_PX);
      const index = shown.voxel[PLANES[plane].flat];
      state.requested = this.source.slicePath(plane, index, {
        window: shown.window,
        labels: shown.labelsText,
        mask: shown.mask,
        outline: shown.outline,
        sizePx: Math.max(SIZE_STEP_PX, sizePx),
      });
      const isDrawn = state.requested === state.drawn && !state.hasFailed;
      state.image.hidden = shown.hasLevel ? !isDrawn || !shown.matchesPictures : state.image.hidden;
      this.hasLevel = shown.hasLevel;
      clearTimeout(state.timer);
      if (!shown.hasLevel) this.#request(plane);
      else if (shown.matchesPictures) state.timer = setTimeout(() => this.#request(plane), REST_MS);
    }
  }

  /** Hide the pictures, because the other view draws the planes as sharply. */
  hide() {
    this.isHidden = true;
    for (const { image, timer } of Object.values(this.planes)) {
      clearTimeout(timer);
      image.hidden = true;
    }
  }

  /** Fetch the latest requested picture. A plane fetches one at a time, and skips older ones. */
  async #request(plane) {
    const state = this.planes[plane];
    if (state.isBusy || state.requested === state.drawn || this.isHidden) return;
    state.isBusy = true;
    const { requested } = state;
    try {
      const next = state.image.cloneNode();
      next.src = URL.createObjectURL(await this.source.picture(requested));
      await next.decode();
      next.style.cssText = state.image.style.cssText;
      // An older picture is better than none.
      next.hidden = this.isHidden || (this.hasLevel && state.requested !== requested);
      URL.revokeObjectURL(state.image.src);
      state.image.replaceWith(next);
      state.image = next;
      state.drawn = requested;
      state.hasFailed = false;
      this.onDrawn(plane, null);
    } catch (problem) {
      // No other picture is shown in place of the missing one.
      state.image.hidden = true;
      state.drawn = requested;
      state.hasFailed = true;
      this.onDrawn(plane, problem);
    } finally {
      state.isBusy = false;
      if (state.requested !== requested) this.#request(plane);
    }
  }

  /** Show pictures again, because the other view failed. */
  showAgain() {
    this.isHidden = false;
    this.retry();
  }

  /** Request the pictures again. */
  retry() {
    for (const [plane, state] of Object.entries(this.planes)) {
      state.drawn = "";
      this.#request(plane);
    }
  }
}
