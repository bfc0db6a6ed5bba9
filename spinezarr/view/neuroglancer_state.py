"""Which state makes neuroglancer show a scan?

The state is a JSON value in the fragment of neuroglancer's URL. Its coordinates are RAS+ mm, as
in a store. The transform of each layer holds the affine, so the planes of an oblique scan follow
the axes of the patient and not those of the voxels. Voxel ``i`` of neuroglancer reaches from ``i``
to ``i + 1``, while that of a store is centered on ``i``, so the transform subtracts half a voxel.

Planes have radiological display: the patient's right is on the left, the nose is on the left in
sagittal planes, and the head is up. No single orientation of neuroglancer's four panels gives this,
so each plane is a view with a separate orientation.

References
----------
The state: https://github.com/google/neuroglancer/blob/master/python/neuroglancer/viewer_state.py
Names of segments: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/\
segment_properties.md
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from spinezarr.scaling import Scaling
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.layout import LABEL
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.vertebrae import ANATOMICAL_ORDER, LEVELS, hex_of
from spinezarr.view.shown_labels import shown_labels
from spinezarr.view.windows import DEFAULT_WINDOW, WINDOWS_HU

__all__ = [
    "SHOWN_DTYPES",
    "LayerUrls",
    "neuroglancer_state",
    "segment_properties",
    "state_fragment",
]

SHOWN_DTYPES: Final = frozenset({"int8", "int16", "int32", "uint8", "uint16", "uint32", "float32"})
"""Types of stored images that neuroglancer can draw."""
_IMAGE: Final = "CT"
_LABEL: Final = "vertebrae"
_PREFIX: Final = "mask "
"""Beginning of the name of the layer of a further mask that is called ``vertebrae``."""
_DIMENSIONS: Final = {axis: [0.001, "m"] for axis in "xyz"}
_QUATERNIONS: Final[Mapping[str, list[float]]] = {
    "axial": [0.0, 0.0, 1.0, 0.0],
    "coronal": [0.0, math.sqrt(0.5), -math.sqrt(0.5), 0.0],
    "sagittal": [-0.5, 0.5, -0.5, 0.5],
}
"""Quaternions ``(x, y, z, w)`` that rotate the axes right, down and inward of the screen to patient
axes."""
_VIEW_3D: Final = [-0.1773, 0.7997, -0.56, 0.1241]
"""Quaternion of the 3D view, from the front, 25 degrees to the left and 20 degrees above."""
_PANEL_PX: Final = 310
"""Height in pixels of the panel that shows the spine, in a window of 1280 x 720."""
_VERTEBRA_MM: Final = 25.0
"""Margin in mm beyond the centers of the first and last vertebra."""
_ALPHA: Final = 0.45
"""Opacity of a vertebra over the image."""


@dataclass(frozen=True, slots=True)
class LayerUrls:
    """URLs of the sources of the layers. They are folders, without a slash at the end."""

    image: str
    """URL of the image, a Zarr v3 array."""
    masks: Mapping[str, str]
    """URL of each mask, a Zarr v3 array, by name."""
    segments: Mapping[str, str]
    """URL of a folder for each mask whose ``info`` is the value of :func:`segment_properties`."""


def neuroglancer_state(scan: ScanHandle, urls: LayerUrls, title: str) -> dict[str, Any]:
    """Return the state that shows a scan.

    Parameters
    ----------
    scan
        The scan. The stored type of its image is one of :data:`SHOWN_DTYPES`.
    urls
        URLs of its arrays.
    title
        Title of the page.
    """
    facts = scan.attributes
    layers = [_image_layer(scan, urls)]
    layers += [_mask_layer(scan, name, urls) for name in scan.mask_names]
    # The first mask is visible, and a click shows others.
    for layer in layers[2:]:
        layer["visible"] = False
    selected = {"layer": layers[:2][-1]["name"], "visible": True}
    return {
        "title": title,
        "dimensions": _DIMENSIONS,
        "position": _center_mm(facts).round(3).tolist(),
        "crossSectionScale": _rounded(_height_mm(facts) / _PANEL_PX),
        "projectionOrientation": _VIEW_3D,
        "projectionScale": _rounded(_size_mm(facts)),
        "hideCrossSectionBackground3D": True,
        "layers": layers,
        "selectedLayer": selected,
        "layout": _layout([layer["name"] for layer in layers], _size_mm(facts)),
    }


def segment_properties(facts: ScanAttributes, mask: str = LABEL) -> dict[str, Any]:
    """Return the names and volumes of the segments of a mask, in neuroglancer's format.

    Vertebrae come first, from head to tail. Other values follow, by number.
    """
    labels = shown_labels(facts, mask)
    voxel_ml = abs(float(np.linalg.det(np.array(facts.affine)[:3, :3]))) / 1000
    volumes = [_rounded(label.voxel_count * voxel_ml) for label in labels]
    return {
        "@type": "neuroglancer_segment_properties",
        "inline": {
            "ids": [str(label.value) for label in labels],
            "properties": [
                {"id": "label", "type": "label", "values": [label.name for label in labels]},
                {
                    "id": "volume_ml",
                    "type": "number",
                    "data_type": "float32",
                    "description": "Volume in ml",
                    "values": volumes,
                },
            ],
        },
    }


def state_fragment(state: Mapping[str, Any]) -> str:
    """Return the fragment of neuroglancer's URL for a state.

    Examples
    --------
    >>> state_fragment({"title": "a b"})
    '!%7B%22title%22:%22a%20b%22%7D'
    """
    text = json.dumps(state, separators=(",", ":"), allow_nan=False)
    return f"!{quote(text, safe='!:,/[]|@.-_~')}"


def _image_layer(scan: ScanHandle, urls: LayerUrls) -> dict[str, Any]:
    return {
        "type": "image",
        "name": _IMAGE,
        "source": {"url": f"{urls.image}/|zarr3:", "transform": _transform(scan)},
        "tab": "rendering",
        "shader": "#uicontrol invlerp normalized\nvoid main() { emitGrayscale(normalized()); }\n",
        "shaderControls": {"normalized": {"range": _stored_range(scan.image)}},
    }


def _mask_layer(scan: ScanHandle, mask: str, urls: LayerUrls) -> dict[str, Any]:
    facts = scan.attributes
    # Other structures of ``label`` are listed, and not shown at first.
    labels = [
        label
        for label in shown_labels(facts, mask)
        if mask != LABEL or label.name in facts.vertebrae
    ]
    name = f"{_PREFIX}{mask}" if mask == _LABEL else mask
    return {
        "type": "segmentation",
        "name": _LABEL if mask == LABEL else name,
        "source": [
            {"url": f"{urls.masks[mask]}/|zarr3:", "transform": _transform(scan)},
            f"{urls.segments[mask]}/|neuroglancer-precomputed:",
        ],
        "tab": "segments",
        "selectedAlpha": _ALPHA,
        "notSelectedAlpha": 0,
        "segments": [str(label.value) for label in labels],
        "segmentColors": {str(label.value): hex_of(label.color) for label in labels},
    }


def _transform(scan: ScanHandle) -> dict[str, Any]:
    """Return the transform of voxels ``(z, y, x)`` of neuroglancer to rows x, y, z of RAS+ mm."""
    spacing_zyx = scan.attributes.spacing_zyx_mm
    linear_zyx, origin = scan.affine[:3, 2::-1], scan.affine[:3, 3]
    corner = origin - linear_zyx.sum(axis=1) / 2
    rows = np.column_stack([linear_zyx / spacing_zyx, corner])
    voxels = {axis: [mm / 1000, "m"] for axis, mm in zip("zyx", spacing_zyx, strict=True)}
    return {"matrix": rows.tolist(), "inputDimensions": voxels, "outputDimensions": _DIMENSIONS}


def _stored_range(image: ArraySpec) -> list[float]:
    """Return the default window in stored numbers, within the range of their type."""
    scaling = image.scaling or Scaling(1.0, 0.0)
    low, high = ((hu - scaling.intercept) / scaling.slope for hu in WINDOWS_HU[DEFAULT_WINDOW])
    if image.stored_dtype.kind == "f":
        return [low, high]
    limits = np.iinfo(image.stored_dtype)
    return [int(np.clip(round(number), limits.min, limits.max)) for number in (low, high)]


def _centers_mm(facts: ScanAttributes) -> npt.NDArray[np.float64]:
    """Return the centers of vertebrae from head to tail, shape ``(n, 3)``, x, y, z in RAS+ mm.

    They are those of the mask; without a mask, those of the annotation.
    """
    affine = np.array(facts.affine)
    centers = [
        affine[:3] @ (*facts.vertebrae[name].centroid_zyx[::-1], 1.0)
        for name in ANATOMICAL_ORDER
        if name in facts.vertebrae
    ] or [
        np.array(facts.centroids[name].position_zyx_mm[::-1])
        for name in LEVELS
        if name in facts.centroids
    ]
    return np.array(centers).reshape(-1, 3)


def _center_mm(facts: ScanAttributes) -> npt.NDArray[np.float64]:
    """Return the point where the planes cross: the center of the middle vertebra."""
    centers = _centers_mm(facts)
    if len(centers):
        middle = (centers.min(axis=0) + centers.max(axis=0)) / 2
        nearest: npt.NDArray[np.float64] = centers[
            np.linalg.norm(centers - middle, axis=1).argmin()
        ]
        return nearest
    last_xyz = np.array(facts.shape_zyx[::-1]) - 1
    center: npt.NDArray[np.float64] = np.array(facts.affine)[:3] @ (*last_xyz / 2, 1.0)
    return center


def _size_mm(facts: ScanAttributes) -> float:
    """Return the length of the longest edge of the scan."""
    return max(n * mm for n, mm in zip(facts.shape_zyx, facts.spacing_zyx_mm, strict=True))


def _height_mm(facts: ScanAttributes) -> float:
    """Return the height to show in a panel: that of the spine, or else of the scan."""
    centers = _centers_mm(facts)
    if len(centers) <= 1:
        return _size_mm(facts)
    return float(np.ptp(centers, axis=0).max()) + 2 * _VERTEBRA_MM


def _rounded(number: float) -> float:
    """Round a number to four significant digits."""
    return float(f"{number:.4g}")


def _layout(names: list[str], size_mm: float) -> dict[str, Any]:
    def orientation(plane: str) -> dict[str, Any]:
        return {"link": "unlinked", "value": _QUATERNIONS[plane]}

    def viewer(plane: str) -> dict[str, Any]:
        layers = {"type": "viewer", "layers": names, "layout": "xy"}
        return {**layers, "crossSectionOrientation": orientation(plane)}

    px = math.ceil(size_mm)
    cross_section = {"width": px, "height": px, "scale": {"link": "unlinked", "value": 1}}
    panel_3d = {
        "type": "3d",
        "orthographicProjection": True,
        "crossSections": {
            plane: {**cross_section, "orientation": orientation(plane)} for plane in _QUATERNIONS
        },
    }
    columns = [
        [viewer("axial"), {"type": "viewer", "layers": names, "layout": panel_3d}],
        [viewer("sagittal"), viewer("coronal")],
    ]
    return {
        "type": "row",
        "children": [{"type": "column", "children": children} for children in columns],
    }
