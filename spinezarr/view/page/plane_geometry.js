/* The positions of the voxels of three planes on the screen. Both views use them.

Positions are voxel indices (x, y, z) of level 0, which are whole numbers at the centers of voxels.
The axes point to the right, to anterior and to superior. Planes have radiological display: the head
is up, the patient's right is on the left, and anterior is up or on the left. So both axes of each
plane have the opposite direction to those of the screen. */

/** The three planes: the axis across each, its axes on the screen, and the names of its sides. */
export const PLANES = {
  sagittal: { title: "Sagittal", flat: 0, axes: [1, 2], sides: ["A", "P", "S", "I"] },
  coronal: { title: "Coronal", flat: 1, axes: [0, 2], sides: ["R", "L", "S", "I"] },
  axial: { title: "Axial", flat: 2, axes: [0, 1], sides: ["R", "L", "A", "P"] },
};
export const PLANE_NAMES = Object.keys(PLANES);
export const AXIS_NAMES = ["x", "y", "z"];
const MIN_ZOOM = 1;
const MAX_ZOOM = 40;

/** The grid of level 0: number, size and position of its voxels. */
export class Grid {
  /**
   * @param {number[]} shapeXyz voxels along each axis
   * @param {number[]} spacingXyzMm distance between neighboring voxels
   * @param {number[][]} affine 4 x 4, voxel (x, y, z, 1) to RAS+ mm
   */
  constructor(shapeXyz, spacingXyzMm, affine) {
    this.shape = shapeXyz;
    this.spacing = spacingXyzMm;
    this.affine = affine;
    this.sizeMm = shapeXyz.map((n, axis) => n * spacingXyzMm[axis]);
    this.inverse = inverse3x3(affine);
  }

  /** Position of a voxel in RAS+ mm. */
  mmOf(voxel) {
    return this.affine.slice(0, 3).map((row) => dot(row, voxel) + row[3]);
  }

  /** The voxel nearest to a position in RAS+ mm. For a position outside, it is a voxel at the edge. */
  voxelAt(mm) {
    const offset = mm.map((value, axis) => value - this.affine[axis][3]);
    return this.nearest(this.inverse.map((row) => dot(row, offset)));
  }

  /** The nearest voxel inside of the volume. */
  nearest(voxel) {
    return voxel.map((value, axis) =>
      Math.min(this.shape[axis] - 1, Math.max(0, Math.round(value))),
    );
  }

  /** Coordinate of a voxel along an axis in mm, as the server computes it. It is not exact on oblique axes. */
  positionMm(axis, index) {
    return this.affine[axis][3] + this.spacing[axis] * index;
  }
}

/** The visible part of the planes, shared by all three. */
export class Camera {
  constructor(grid) {
    this.grid = grid;
    this.reset();
  }

  reset() {
    this.zoom = 1;
    this.centerMm = this.grid.sizeMm.map((size) => size / 2);
  }

  /** Zoom, and keep a voxel in its place on the screen. */
  zoomAt(factor, plane, voxel) {
    const before = this.zoom;
    this.zoom = Math.min(MAX_ZOOM, Math.max(MIN_ZOOM, before * factor));
    if (this.zoom === MIN_ZOOM) return this.reset();
    for (const axis of PLANES[plane].axes) {
      const mm = (voxel[axis] + 0.5) * this.grid.spacing[axis];
      this.centerMm[axis] = mm + ((this.centerMm[axis] - mm) * before) / this.zoom;
    }
    const { flat } = PLANES[plane];
    this.centerMm[flat] = (voxel[flat] + 0.5) * this.grid.spacing[flat];
    this.#stayInside();
  }

  /** Move by mm along the axes of a plane. */
  pan(plane, rightMm, downMm) {
    const [u, v] = PLANES[plane].axes;
    this.centerMm[u] += rightMm;
    this.centerMm[v] += downMm;
    this.#stayInside();
  }

  #stayInside() {
    this.centerMm = this.centerMm.map((mm, axis) =>
      Math.min(this.grid.sizeMm[axis], Math.max(0, mm)),
    );
  }
}

/** A plane in a tile of the screen, of some width and height in CSS pixels. */
export class PlaneOnScreen {
  constructor(plane, camera, width, height) {
    this.plane = plane;
    this.camera = camera;
    this.width = width;
    this.height = height;
    const { grid } = camera;
    const [u, v] = PLANES[plane].axes;
    this.pixelsPerMm =
      Math.min(width / grid.sizeMm[u], height / grid.sizeMm[v]) * camera.zoom;
  }

  /** Position of the center of a voxel in pixels. Edges of voxels are at half voxels. */
  pixelOf(voxel) {
    const { grid, centerMm } = this.camera;
    const [right, down] = PLANES[this.plane].axes.map(
      (axis) => (centerMm[axis] - (voxel[axis] + 0.5) * grid.spacing[axis]) * this.pixelsPerMm,
    );
    return [this.width / 2 + right, this.height / 2 + down];
  }

  /** Voxel position of a pixel, with fractions. Across the plane, it is that of `voxel`. */
  voxelAt(x, y, voxel) {
    const { grid, centerMm } = this.camera;
    const position = [...voxel];
    const offset = [x - this.width / 2, y - this.height / 2];
    PLANES[this.plane].axes.forEach((axis, i) => {
      const mm = centerMm[axis] - offset[i] / this.pixelsPerMm;
      position[axis] = mm / grid.spacing[axis] - 0.5;
    });
    return position;
  }

  /** Left, top, width and height of the whole plane on the screen, in pixels. */
  rectangle() {
    const { grid } = this.camera;
    const [u, v] = PLANES[this.plane].axes;
    const first = [0, 0, 0];
    first[u] = grid.shape[u] - 0.5;
    first[v] = grid.shape[v] - 0.5;
    const [left, top] = this.pixelOf(first);
    return [left, top, grid.sizeMm[u] * this.pixelsPerMm, grid.sizeMm[v] * this.pixelsPerMm];
  }

  /** The visible range of each axis of the plane, in mm from the edge of the first voxel. */
  rangesMm() {
    const { centerMm } = this.camera;
    const [u, v] = PLANES[this.plane].axes;
    return [
      [centerMm[u], this.width],
      [centerMm[v], this.height],
    ].map(([mm, size]) => {
      const half = size / 2 / this.pixelsPerMm;
      return [mm - half, mm + half];
    });
  }
}

function dot(row, vector) {
  return row[0] * vector[0] + row[1] * vector[1] + row[2] * vector[2];
}

/** Invert the 3 x 3 part of an affine. */
function inverse3x3(m) {
  const [[a, b, c], [d, e, f], [g, h, i]] = m;
  const determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  return [
    [e * i - f * h, c * h - b * i, b * f - c * e],
    [f * g - d * i, a * i - c * g, c * d - a * f],
    [d * h - e * g, b * g - a * h, a * e - b * d],
  ].map((row) => row.map((value) => value / determinant));
}
