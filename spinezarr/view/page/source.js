/* A scan on the server: its facts, the voxels of its levels, and slices that the server draws. */

import { request, requestJson } from "./common.js";
import { AXIS_NAMES, Grid, PLANES } from "./plane_geometry.js";

const ARRAYS = { int16: Int16Array, float32: Float32Array, uint8: Uint8Array };

/** The server did not answer, or the answer ended early. */
export class LostError extends Error {}

/** A scan on the server. `openScan` makes it. */
export class ScanSource {
  /**
   * @param {string} store
   * @param {Object} facts the answer of `view`
   */
  constructor(store, facts) {
    this.store = store;
    this.scanId = facts.scan_id;
    this.facts = facts;
    this.levels = facts.levels.map((level) => ({
      level: level.level,
      shape: [...level.shape_zyx].reverse(),
      spacing: [...level.spacing_zyx_mm].reverse(),
      voxels: level.shape_zyx.reduce((a, b) => a * b, 1),
    }));
    this.grid = new Grid(this.levels[0].shape, this.levels[0].spacing, facts.levels[0].affine);
    this.path = `/v1/${encodeURIComponent(store)}/scans/${encodeURIComponent(facts.scan_id)}`;
  }

  get hasMask() {
    return this.facts.masks.length > 0;
  }

  /** Return the facts of a mask by its name; null if the scan has none. */
  mask(name) {
    return this.facts.masks.find((mask) => mask.name === name) ?? null;
  }

  /** Vertebrae and other structures of a mask; empty without one. */
  labelsOf(name) {
    return this.mask(name)?.vertebrae ?? [];
  }

  /**
   * Return the source of the voxels of an array, in the form of NiiVue 1.0's
   * `loadChunkedVolume`.
   * @param {string} array "image", or the name of a mask
   */
  chunked(array) {
    return {
      levels: this.levels,
      fetchChunk: (chunk, options) => this.fetchChunk(array, chunk, options),
    };
  }

  /**
   * Fetch a box of a level: voxels with x fastest. Voxels outside the level are zero.
   * @param {string} array "image", or the name of a mask
   * @param {{levelIndex: number, texOrigin: number[], texDims: number[]}} chunk x, y, z
   * @param {{signal: AbortSignal=, onBytes: function(number)=}} options
   */
  async fetchChunk(array, chunk, options = {}) {
    return withLostError(() => this.#fetchChunk(array, chunk, options));
  }

  async #fetchChunk(array, { levelIndex, texOrigin, texDims }, options) {
    const { shape } = this.levels[levelIndex];
    const first = texOrigin.map((at) => Math.max(0, at));
    const size = texDims.map((n, axis) =>
      Math.min(shape[axis], texOrigin[axis] + n) - first[axis],
    );
    const query = new URLSearchParams({
      array,
      start_zyx: [...first].reverse().join(","),
      size_zyx: [...size].reverse().join(","),
      content_checksum: this.facts.content_checksum,
    });
    if (array !== "image") query.set("mask_checksum", this.mask(array).checksum);
    const response = await request(`${this.path}/levels/${levelIndex}?${query}`, {
      signal: options.signal,
    });
    const Voxels = ARRAYS[response.headers.get("x-spinezarr-dtype")];
    const bytes = await readBytes(response, options.onBytes);
    const expected = size.reduce((a, b) => a * b, Voxels.BYTES_PER_ELEMENT);
    if (bytes.byteLength !== expected) throw new LostError("The answer ended early.");
    const voxels = new Voxels(bytes);
    const isWhole = size.every((n, axis) => n === texDims[axis]);
    return isWhole ? voxels : padded(voxels, size, first, texOrigin, texDims);
  }

  /**
   * Fetch the stored values of one voxel, for any shown level.
   * @param {number[]} voxel x, y, z
   * @param {string[]} masks names
   */
  async valuesAt(voxel, masks, signal) {
    const chunk = { levelIndex: 0, texOrigin: voxel, texDims: [1, 1, 1] };
    const [image, ...labels] = await Promise.all(
      ["image", ...masks].map((array) => this.fetchChunk(array, chunk, { signal })),
    );
    return { hu: image[0], labels: labels.map(([value]) => value) };
  }

  /**
   * Return the URL of a slice that the server draws.
   * @param {string} plane
   * @param {number} index of the slice
   * @param {{window: number[], labels: string, mask: ?string, outline: ?string, sizePx: number}} shown
   */
  slicePath(plane, index, { window, labels, mask, outline, sizePx }) {
    const { flat } = PLANES[plane];
    const query = new URLSearchParams({
      plane,
      mm: this.grid.positionMm(flat, index).toFixed(4),
      window: window.join(","),
      labels,
      size_px: String(sizePx),
      content_checksum: this.facts.content_checksum,
    });
    if (mask !== null && mask !== "label") {
      query.set("mask", mask);
      query.set("mask_checksum", this.mask(mask).checksum);
    }
    if (outline !== null) {
      query.set("outline", outline);
      query.set("outline_checksum", this.mask(outline).checksum);
    }
    return `${this.path}/slice.png?${query}`;
  }

  /** Fetch a picture of a slice. */
  async picture(path) {
    return withLostError(async () => (await request(path)).blob());
  }
}

/** Fetch the facts of a scan. */
export async function openScan(store, scanId) {
  const path = `/v1/${encodeURIComponent(store)}/scans/${encodeURIComponent(scanId)}/view`;
  return new ScanSource(store, await withLostError(() => requestJson(path)));
}

/** Format a position (x, y, z) in mm. */
export function placeText(mm) {
  return mm.map((value, axis) => `${AXIS_NAMES[axis]} ${value.toFixed(1)}`).join(", ");
}

/** Call a function; throw a `LostError` if the connection is lost. */
async function withLostError(fetchIt) {
  try {
    return await fetchIt();
  } catch (problem) {
    throw problem instanceof TypeError ? new LostError(problem.message) : problem;
  }
}

async function readBytes(response, onBytes) {
  if (!onBytes || !response.body) return response.arrayBuffer();
  const parts = [];
  let count = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    count += value.byteLength;
    onBytes(value.byteLength);
  }
  const all = new Uint8Array(count);
  let offset = 0;
  for (const part of parts) {
    all.set(part, offset);
    offset += part.byteLength;
  }
  return all.buffer;
}

/** Copy voxels into a larger box of zeros. */
function padded(voxels, size, first, origin, dims) {
  const box = new voxels.constructor(dims[0] * dims[1] * dims[2]);
  for (let z = 0; z < size[2]; z += 1) {
    for (let y = 0; y < size[1]; y += 1) {
      const source = (z * size[1] + y) * size[0];
      const target =
        ((z + first[2] - origin[2]) * dims[1] + y + first[1] - origin[1]) * dims[0] +
        first[0] -
        origin[0];
      box.set(voxels.subarray(source, source + size[0]), target);
    }
  }
  return box;
}
