/* Shows the planes as pictures that the server draws: at once, without WebGL, and sharp where only a
coarse level of the volume is here. */

import { PLANES, PLANE_NAMES } from "./plane_geometry.js";

const SIZE_STEP_PX = 128;
const LARGEST_PX = 2048;
const REST_MS = 150;

/**
 * Draws planes from pictures of the server; `VolumeView` draws them in the browser.
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
    this.isBacked = false;
    this.planes = Object.fromEntries(
      PLANE_NAMES.map((plane) => [plane, { image: null, wanted: "", drawn: "", isBusy: false }]),
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
      state.wanted = this.source.slicePath(plane, index, {
        window: shown.window,
        labels: shown.labelsText,
        sizePx: Math.max(SIZE_STEP_PX, sizePx),
      });
      const isThere = state.wanted === state.drawn && !state.hasFailed;
      state.image.hidden = shown.isBacked ? !isThere || !shown.isAsPictures : state.image.hidden;
      this.isBacked = shown.isBacked;
      clearTimeout(state.timer);
      if (!shown.isBacked) this.#bring(plane);
      else if (shown.isAsPictures) state.timer = setTimeout(() => this.#bring(plane), REST_MS);
    }
  }

  /** Remove the pictures: the other view draws the planes as sharply. */
  hide() {
    this.isHidden = true;
    for (const { image, timer } of Object.values(this.planes)) {
      clearTimeout(timer);
      image.hidden = true;
    }
  }

  /** Request the latest wanted picture. A plane has one request at a time, and skips the ones between. */
  async #bring(plane) {
    const state = this.planes[plane];
    if (state.isBusy || state.wanted === state.drawn || this.isHidden) return;
    state.isBusy = true;
    const { wanted } = state;
    try {
      const next = state.image.cloneNode();
      next.src = URL.createObjectURL(await this.source.picture(wanted));
      await next.decode();
      next.style.cssText = state.image.style.cssText;
      // An older picture is still nearer to the wanted one than none.
      next.hidden = this.isHidden || (this.isBacked && state.wanted !== wanted);
      URL.revokeObjectURL(state.image.src);
      state.image.replaceWith(next);
      state.image = next;
      state.drawn = wanted;
      state.hasFailed = false;
      this.onDrawn(plane, null);
    } catch (problem) {
      // The wanted picture is missing, so nothing is shown in its place.
      state.image.hidden = true;
      state.drawn = wanted;
      state.hasFailed = true;
      this.onDrawn(plane, problem);
    } finally {
      state.isBusy = false;
      if (state.wanted !== wanted) this.#bring(plane);
    }
  }

  /** Show pictures again, because the other view failed. */
  showAgain() {
    this.isHidden = false;
    this.retry();
  }

  /** Request again what failed. */
  retry() {
    for (const [plane, state] of Object.entries(this.planes)) {
      state.drawn = "";
      this.#bring(plane);
    }
  }
}
