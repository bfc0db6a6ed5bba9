/* Shows the planes and the spine in 3D with NiiVue 0.69. This is the only file that uses NiiVue.

The source of a volume has the form `{levels, fetchChunk}`, as for `loadChunkedVolume` of NiiVue
1.0, which fetches only the chunks that it shows. Version 0.69 gets a whole level here. NiiVue gets
an unrotated volume at the origin, and the region of each plane. The page itself handles positions
in the body, oblique grids, zoom and pointers. */

import { AXIS_NAMES, PLANES } from "./plane_geometry.js";

const DATATYPES = { Int16Array: 4, Float32Array: 16, Uint8Array: 2 };
const LABEL_INTENT = 1002;
const HEADER_BYTES = 352;
const N_LABELS = 256;
/** Slice types of NiiVue. */
const SLICE_TYPES = { axial: 0, coronal: 1, sagittal: 2 };
const RENDER = 4;
/** Bytes of graphics memory for each voxel: color, gradient, label. */
const TEXTURE_BYTES = 12;
const MAX_TEXTURE_BYTES = 1.5e9;
/** Most voxels of one request. */
const SLAB_VOXELS = 16e6;
/** Most voxels of the box in which the spine is rendered. */
const RENDER_VOXELS = 3e6;
const ILLUMINATION = 0.6;
const FIRST_RENDER_ZOOM = 0.8;
/** Opacity inside outlines. NiiVue does not draw layers with an opacity of 0. */
const OUTLINE_OPACITY = 1e-3;

let loading = null;

/** Fetch NiiVue, once. */
function loadNiivue() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "/page/niivue.js";
    script.addEventListener("load", () => resolve(globalThis.niivue));
    script.addEventListener("error", () => reject(new TypeError("NiiVue could not be fetched.")));
    document.head.append(script);
  });
  return loading;
}

/** Fetch all voxels of a level. */
async function fetchLevel(chunked, levelIndex, options) {
  const [nx, ny, nz] = chunked.levels[levelIndex].shape;
  const depth = Math.max(1, Math.floor(SLAB_VOXELS / (nx * ny)));
  let whole = null;
  for (let z = 0; z < nz; z += depth) {
    const chunk = { levelIndex, texOrigin: [0, 0, z], texDims: [nx, ny, Math.min(depth, nz - z)] };
    const part = await chunked.fetchChunk(chunk, options);
    if (depth >= nz) return part;
    whole ??= new part.constructor(nx * ny * nz);
    whole.set(part, nx * ny * z);
  }
  return whole;
}

let largestTexture = null;

/** Longest axis of a volume that this browser can draw; 0 without WebGL 2. */
function largestTextureAxis() {
  if (largestTexture === null) {
    const gl = document.createElement("canvas").getContext("webgl2");
    largestTexture = gl === null ? 0 : gl.getParameter(gl.MAX_3D_TEXTURE_SIZE);
    gl?.getExtension("WEBGL_lose_context")?.loseContext();
  }
  return largestTexture;
}

/** Draws planes and 3D in the browser with NiiVue; `SliceView` shows pictures of the server. */
export class VolumeView {
  /**
   * @param {import("./source.js").ScanSource} source
   * @param {HTMLCanvasElement} canvas of the planes
   * @param {HTMLCanvasElement} renderCanvas of the spine in 3D
   */
  constructor(source, canvas, renderCanvas) {
    this.source = source;
    this.renderCanvas = renderCanvas;
    this.planes = null;
    this.attaching = this.#attach(canvas);
    this.render = null;
    /** Mask that is rendered in 3D; null before the first one. */
    this.renderMask = null;
    this.isRenderEmpty = false;
    this.levelIndex = null;
    /** Voxels of the shown level by array. */
    this.voxels = new Map();
    /** Masks of the layers above the image, from below. */
    this.masks = [];
    /** The masks that are loaded, as text. */
    this.masksKey = "";
    this.shown = null;
    this.drawnWindow = "";
    this.drawnLabels = "";
    this.drawnRenderLabels = "";
    this.turn = { azimuth: 200, elevation: 10, zoom: FIRST_RENDER_ZOOM };
  }

  /** Whether this browser has WebGL 2, which NiiVue needs. */
  static get isPossible() {
    return largestTextureAxis() > 0;
  }

  /** Return the levels that fit the textures and the graphics memory. */
  static fitting(levels) {
    return levels.filter(
      ({ shape, voxels }) =>
        Math.max(...shape) <= largestTextureAxis() &&
        voxels * TEXTURE_BYTES <= MAX_TEXTURE_BYTES,
    );
  }

  async #attach(canvas) {
    this.niivue = await loadNiivue();
    this.niivue.NVImage.prototype.calMinMax = windowOfHeader;
    const planes = await createNiivue(this.niivue, canvas);
    // The page decides which part of a plane is visible.
    const wholeRegion = planes.screenFieldOfViewExtendedVox.bind(planes);
    planes.screenFieldOfViewExtendedVox = (sliceType) => this.#region(sliceType, wholeRegion);
    planes.calculateWidthHeight = (_sliceType, _scale, width, height) => [width, height];
    leaveOutGradients(planes);
    outlineByLayer(planes);
    this.planes = planes;
  }

  /**
   * Fetch and show a level. If that fails, the shown level stays.
   * @param {number} levelIndex
   * @param {{mask: ?string, outline: ?string}} shownMasks
   * @param {{signal: AbortSignal=, onBytes: function(number)=}} options
   */
  async load(levelIndex, { mask, outline }, options = {}) {
    const level = this.source.levels[levelIndex];
    const masks = [mask, outline].filter((name) => name !== null);
    const arrays = ["image", ...masks];
    const fetched = Promise.all(
      arrays.map((array) => this.#levelOf(array, levelIndex, options)),
    );
    const [voxels] = await Promise.all([fetched, this.attaching]);
    const { shape, spacing } = level;
    const loaded = await Promise.all(
      voxels.map((values, layer) =>
        this.#volume(values, shape, spacing, "gray", layer ? [0, N_LABELS - 1] : this.shown.window),
      ),
    );
    this.voxels = new Map(arrays.map((array, layer) => [array, voxels[layer]]));
    this.masks = masks;
    this.masksKey = masksKey({ mask, outline });
    this.#color(loaded, this.shown);
    setVolumes(this.planes, loaded);
    this.levelIndex = levelIndex;
    this.level = level;
    this.planes.updateGLVolume();
    this.show(this.shown);
  }

  /** Return all voxels of a level of an array, which are fetched unless they are shown. */
  async #levelOf(array, levelIndex, options) {
    if (levelIndex === this.levelIndex && this.voxels.has(array)) return this.voxels.get(array);
    return fetchLevel(this.source.chunked(array), levelIndex, options);
  }

  /** Show a state. */
  show(shown) {
    this.shown = shown;
    if (this.levelIndex === null) return;
    const { volumes } = this.planes;
    if (this.drawnWindow !== String(shown.window)) {
      this.#color(volumes.slice(0, 1), shown);
      this.planes.refreshLayers(volumes[0], 0);
    }
    if (volumes.length > 1 && this.drawnLabels !== labelsKey(shown)) {
      this.#color(volumes, shown);
      // Each layer is drawn onto those below it.
      volumes.slice(1).forEach((volume, at) => this.planes.refreshLayers(volume, at + 1));
    }
    this.planes.opts.isNearestInterpolation = shown.isNearest;
    volumes.forEach((_, layer) => this.planes.updateInterpolation(layer));
    const sizeMm = this.level.shape.map((n, axis) => n * this.level.spacing[axis]);
    const { spacing } = this.source.grid;
    this.planes.scene.crosshairPos = shown.voxel.map(
      (index, axis) => ((index + 0.5) * spacing[axis]) / sizeMm[axis],
    );
    const { width, height } = shown.stage;
    this.planes.customLayout = Object.entries(shown.planes).map(([plane, onScreen]) => {
      const { left, top } = shown.tiles[plane];
      return {
        sliceType: SLICE_TYPES[plane],
        position: [
          left / width,
          top / height,
          onScreen.width / width,
          onScreen.height / height,
        ],
      };
    });
    this.planes.drawScene();
    this.#showRender();
  }

  /** Rotate and zoom the spine. */
  turnBy(azimuth, elevation, zoom = 1) {
    this.turn.azimuth = (this.turn.azimuth + azimuth + 360) % 360;
    this.turn.elevation = Math.max(-90, Math.min(90, this.turn.elevation + elevation));
    this.turn.zoom = Math.max(0.5, Math.min(6, this.turn.zoom * zoom));
    this.#showRender();
  }

  /** Prepare the 3D picture of a mask from its non-empty part. */
  async loadRender(mask) {
    const [levelIndex, coarse] = await this.#coarseLevelOf(mask);
    const box = nonEmptyBoxMm(coarse, this.source.levels[levelIndex], this.source.grid);
    if (box === null) {
      this.renderMask = mask;
      this.isRenderEmpty = true;
      return;
    }
    const chunk = this.#renderChunk(box);
    const label = await this.source.chunked(mask).fetchChunk(chunk, {});
    const { spacing } = this.source.levels[chunk.levelIndex];
    const volume = await this.#volume(label, chunk.texDims, spacing, "gray", [0, 255]);
    const labels = this.source.labelsOf(mask);
    volume.setColormapLabel(lookupTable(labels));
    volume.img = withoutHidden(label, labels, this.shown.visible);
    const isFirst = this.render === null;
    const render = this.render ?? (await createNiivue(this.niivue, this.renderCanvas));
    render.opts.sliceType = RENDER;
    setVolumes(render, [volume]);
    render.updateGLVolume();
    if (isFirst) await render.setVolumeRenderIllumination(ILLUMINATION);
    render.setCrosshairWidth(0);
    this.drawnRenderLabels = "";
    this.render = render;
    this.renderLabel = label;
    this.renderMask = mask;
    this.isRenderEmpty = false;
    this.#showRender();
  }

  /** Return the number and the voxels of a level of a mask in which its extent is found quickly. */
  async #coarseLevelOf(mask) {
    if (this.voxels.has(mask) && this.level.voxels <= RENDER_VOXELS) {
      return [this.levelIndex, this.voxels.get(mask)];
    }
    const last = this.source.levels.length - 1;
    return [last, await this.#levelOf(mask, last, {})];
  }

  #showRender() {
    const isLoaded = this.render !== null && this.renderMask === this.shown.mask;
    if (!isLoaded || this.isRenderEmpty || !this.shown.isRenderShown) return;
    const { mask, visible } = this.shown;
    const labels = `${mask} ${[...visible]}`;
    if (labels !== this.drawnRenderLabels) {
      this.drawnRenderLabels = labels;
      this.render.volumes[0].img = withoutHidden(this.renderLabel, this.source.labelsOf(mask), visible);
      this.render.refreshLayers(this.render.volumes[0], 0);
    }
    this.render.scene.renderAzimuth = this.turn.azimuth;
    this.render.scene.renderElevation = this.turn.elevation;
    this.render.scene.volScaleMultiplier = this.turn.zoom;
    this.render.drawScene();
  }

  /** Return the chunk of the box in the finest level in which it has few enough voxels. */
  #renderChunk(boxMm) {
    const chunks = this.source.levels.map((level, levelIndex) => {
      const origin = boxMm.map(([low], axis) => Math.floor(low / level.spacing[axis]) - 1);
      const dims = boxMm.map(
        ([, high], axis) => Math.ceil(high / level.spacing[axis]) + 1 - origin[axis],
      );
      return { levelIndex, texOrigin: origin, texDims: dims };
    });
    const small = ({ texDims }) => texDims.reduce((a, b) => a * b, 1) <= RENDER_VOXELS;
    return chunks.find(small) ?? chunks.at(-1);
  }

  /** Return the visible region of a plane as NiiVue describes it, in mm. */
  #region(sliceType, wholeRegion) {
    const region = wholeRegion(sliceType);
    const plane = Object.keys(SLICE_TYPES).find((name) => SLICE_TYPES[name] === sliceType);
    const onScreen = this.shown?.planes[plane];
    if (!onScreen) return region;
    const origin = this.planes.volumes[0].extentsMinOrtho;
    onScreen.rangesMm().forEach(([low, high], i) => {
      const edge = origin[PLANES[plane].axes[i]];
      region.mnMM[i] = edge + low;
      region.mxMM[i] = edge + high;
      region.fovMM[i] = high - low;
    });
    return region;
  }

  #color([image, ...layers], shown) {
    [image.cal_min, image.cal_max] = shown.window;
    this.drawnWindow = String(shown.window);
    layers.forEach((layer, at) => {
      const mask = this.masks[at];
      const labels = this.source.labelsOf(mask);
      const isOutline = mask === shown.outline;
      const isShown = isOutline || mask === shown.mask;
      const visible = isOutline ? shown.visibleOutline : shown.visible;
      layer.setColormapLabel(lookupTable(labels));
      // NiiVue also outlines transparent values, so hidden values are removed from the voxels.
      layer.img = withoutHidden(this.voxels.get(mask), labels, isShown ? visible : new Set());
      layer._opacity = isOutline ? OUTLINE_OPACITY : shown.opacity;
      layer.hasOutlines = isOutline || (shown.hasOutlines && shown.outline === null);
    });
    this.drawnLabels = labelsKey(shown);
  }

  #volume(voxels, shape, spacing, colormap, [low, high]) {
    const file = niftiFile(voxels, shape, spacing, [low, high]);
    return this.niivue.NVImage.new(file, "volume.nii", colormap, 1, null, low, high);
  }
}

/** Return a text that names the filled and the outlined mask. */
export function masksKey({ mask, outline }) {
  return `${mask} ${outline}`;
}

/** Make the color table of a mask. Values without a name are transparent. */
function lookupTable(vertebrae) {
  const table = { R: [], G: [], B: [], A: [], I: [], labels: [] };
  const byValue = new Map(vertebrae.map((vertebra) => [vertebra.value, vertebra]));
  for (let value = 0; value < N_LABELS; value += 1) {
    const vertebra = byValue.get(value);
    const color = Number.parseInt((vertebra?.color ?? "#000000").slice(1), 16);
    table.R.push(color >> 16);
    table.G.push((color >> 8) & 255);
    table.B.push(color & 255);
    table.A.push(vertebra ? 255 : 0);
    table.I.push(value);
    table.labels.push(vertebra?.name ?? "");
  }
  return table;
}

/** Return a mask without its hidden values. */
function withoutHidden(label, vertebrae, visible) {
  if (vertebrae.every(({ value }) => visible.has(value))) return label;
  const shown = new Uint8Array(N_LABELS);
  for (const value of visible) shown[value] = value;
  return label.map((value) => shown[value]);
}

/** Make a NiiVue that only draws, and does not handle mouse and keys. */
async function createNiivue(niivue, canvas) {
  const viewer = new niivue.Niivue({
    interactive: false,
    dragAndDropEnabled: false,
    logLevel: "error",
    backColor: [0, 0, 0, 1],
    isRadiologicalConvention: true,
    sagittalNoseLeft: true,
    isOrientationTextVisible: false,
    isOrientCube: false,
    isColorbar: false,
    showLegend: false,
    crosshairWidth: 0,
    show3Dcrosshair: false,
    loadingText: "",
  });
  await viewer.attachToCanvas(canvas, false);
  return viewer;
}

/**
 * Skip the gradients, which only 3D needs. They take longer than all other steps of drawing planes.
 *
 * NiiVue computes them for as many voxels as the header states, so the header states one.
 */
function leaveOutGradients(planes) {
  const texture = planes.rgbaTex.bind(planes);
  const refresh = planes.refreshLayers.bind(planes);
  planes.rgbaTex = (old, unit, dims, isCleared) => {
    const header = planes.volumes[0]?.hdr;
    const isGradient = header !== undefined && dims === header.dims;
    if (isGradient) header.dims = [3, 1, 1, 1, 1, 1, 1, 1];
    return texture(old, unit, isGradient ? header.dims : dims, isCleared);
  };
  planes.refreshLayers = (volume, layer) => {
    const { dims } = volume.hdr;
    refresh(volume, layer);
    volume.hdr.dims = dims;
  };
}

/** Draw outlines in the layers that have them; NiiVue itself has one setting for all layers. */
function outlineByLayer(planes) {
  const refresh = planes.refreshLayers.bind(planes);
  planes.refreshLayers = (volume, layer) => {
    planes.opts.atlasOutline = volume.hasOutlines ? 1 : 0;
    refresh(volume, layer);
  };
}

/** Replace all volumes at once, and draw once. */
function setVolumes(drawn, volumes) {
  [drawn.back, ...drawn.overlays] = volumes;
  drawn.volumes = volumes;
}

/** Replaces the search of NiiVue for a window, because the page sets the window. */
function windowOfHeader() {
  const { cal_min: low, cal_max: high } = this.hdr;
  Object.assign(this, { cal_min: low, cal_max: high, robust_min: low, robust_max: high });
  Object.assign(this, { global_min: low, global_max: high });
  return [low, high, low, high];
}

function labelsKey({ mask, outline, visible, visibleOutline, opacity, hasOutlines }) {
  return [mask, outline, ...visible, "", ...visibleOutline, opacity, hasOutlines].join(" ");
}

/** Return the box of a mask, in mm from the edge of the volume along each axis; null if it is empty. */
function nonEmptyBoxMm(label, level, grid) {
  const [nx, ny, nz] = level.shape;
  const low = [nx, ny, nz];
  const high = [-1, -1, -1];
  for (let z = 0, at = 0; z < nz; z += 1) {
    for (let y = 0; y < ny; y += 1) {
      for (let x = 0; x < nx; x += 1, at += 1) {
        if (label[at] === 0) continue;
        if (x < low[0]) low[0] = x;
        if (x > high[0]) high[0] = x;
        if (y < low[1]) low[1] = y;
        if (y > high[1]) high[1] = y;
        if (z < low[2]) low[2] = z;
        high[2] = z;
      }
    }
  }
  if (high[0] < 0) return null;
  // A thin part is not the most frequent value of all blocks that it reaches.
  return AXIS_NAMES.map((_, axis) => [
    Math.max(0, (low[axis] - 1) * level.spacing[axis]),
    Math.min(grid.sizeMm[axis], (high[axis] + 2) * level.spacing[axis]),
  ]);
}

/** Make a NIfTI file in memory. The first edge of its volume is at the origin. */
function niftiFile(voxels, shape, spacing, [low, high]) {
  const file = new ArrayBuffer(HEADER_BYTES + voxels.byteLength);
  const header = new DataView(file);
  const isLabel = voxels instanceof Uint8Array;
  header.setInt32(0, 348, true);
  [3, ...shape, 1, 1, 1, 1].forEach((n, i) => header.setInt16(40 + 2 * i, n, true));
  header.setInt16(68, isLabel ? LABEL_INTENT : 0, true);
  header.setInt16(70, DATATYPES[voxels.constructor.name], true);
  header.setInt16(72, 8 * voxels.BYTES_PER_ELEMENT, true);
  [1, ...spacing].forEach((mm, i) => header.setFloat32(76 + 4 * i, mm, true));
  header.setFloat32(108, HEADER_BYTES, true);
  header.setFloat32(112, 1, true);
  header.setUint8(123, 2);
  header.setFloat32(124, high, true);
  header.setFloat32(128, low, true);
  header.setInt16(254, 1, true);
  spacing.forEach((mm, axis) => {
    header.setFloat32(280 + 16 * axis + 4 * axis, mm, true);
    header.setFloat32(280 + 16 * axis + 12, mm / 2, true);
  });
  [0x6e, 0x2b, 0x31, 0].forEach((byte, i) => header.setUint8(344 + i, byte));
  const bytes = new Uint8Array(voxels.buffer, voxels.byteOffset, voxels.byteLength);
  new Uint8Array(file, HEADER_BYTES).set(bytes);
  return file;
}
