"""The planes of a scan page as pixels, and the pixels of voxels in them."""

import io

import numpy as np
from PIL import Image

from spinezarr.view.windows import gray_of

__all__ = [
    "PLANES",
    "SHADE_ERROR",
    "assert_drawn",
    "picture",
    "voxel_pixels",
    "wait_for_volume",
    "without_niivue",
]

PLANES = {"sagittal": (0, (1, 2)), "coronal": (1, (0, 2)), "axial": (2, (0, 1))}
"""Axis across each plane, and the axes that run to the left and upward on the screen."""
SHADE_ERROR = 2
"""Largest difference of shades. NiiVue rounds the shades of its table, and again those between two
of them; the expected shade is rounded, too. Most neighbors in noise differ by more."""
_LEAST_PX = 4
"""Fewest pixels along a voxel; smaller voxels cannot be distinguished on the screen."""


def wait_for_volume(tab):
    """Wait until NiiVue shows the planes."""
    tab.wait_for_selector("#stage[data-level]")


def without_niivue(tab):
    """Hide NiiVue from the page, as in a build that lacks it."""

    def answer(route):
        answered = route.fetch()
        body = answered.text().replace('data-niivue="true"', 'data-niivue="false"')
        route.fulfill(response=answered, body=body)

    tab.route("**/scan/**", answer)
    tab.route("**/page/niivue.js", lambda route: route.abort())


def picture(tab, plane):
    """Return the pixels of a tile, RGB, without the lines and letters on it."""
    tab.evaluate(
        "() => { for (const e of document.querySelectorAll('.line, .side')) e.hidden = true; }"
    )
    tab.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
    box = tab.locator(f".tile[data-plane={plane}] .picture").bounding_box()
    data = tab.screenshot(clip=box)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def voxel_pixels(pixels, plane, shape_xyz, spacing_xyz_mm):
    """Return the pixel at the center of each voxel of a plane, along its two axes."""
    height, width = pixels.shape[:2]
    u, v = PLANES[plane][1]
    size_mm = [n * s for n, s in zip(shape_xyz, spacing_xyz_mm, strict=True)]
    scale = min(width / size_mm[u], height / size_mm[v])
    assert scale * min(spacing_xyz_mm) > _LEAST_PX, "voxels are too small on the screen"
    columns, rows = (
        size / 2
        + (size_mm[axis] / 2 - (np.arange(shape_xyz[axis]) + 0.5) * spacing_xyz_mm[axis]) * scale
        for axis, size in ((u, width), (v, height))
    )
    return pixels[rows.astype(int)[None, :], columns.astype(int)[:, None]]


def assert_drawn(tab, image, voxel, window_hu, spacing_xyz_mm, shade_error=SHADE_ERROR):
    """Compare the shade of each voxel of the three planes through a voxel with the stored one."""
    for plane, (flat, _) in PLANES.items():
        shades = gray_of(np.take(image, voxel[flat], axis=flat), window_hu)
        found = voxel_pixels(picture(tab, plane), plane, image.shape, spacing_xyz_mm)
        assert (np.ptp(found, axis=2) == 0).all(), f"{plane}: not gray"
        difference = np.abs(found[..., 0] - shades)
        assert difference.max() <= shade_error, (plane, difference.max())
