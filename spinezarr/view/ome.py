"""Which Zarr nodes make an OME-Zarr image of a scan, for the viewers of other projects?

::

    <scan_id>.ome.zarr/
      zarr.json               multiscales, omero
      0/                      the stored image, shard by shard
      1/ ...                  coarser levels
      labels/zarr.json        names the masks
      labels/vertebrae/       the mask ``label``: multiscales, image-label, and its levels
      labels/<mask>/          the same of each further mask

The image follows version 0.5 of the specification [1]_, on Zarr v3. Its positions are the
coordinates ``z``, ``y`` and ``x`` of the scan, which are RAS+ mm unless the scan is oblique. Scale
and translation cannot express an oblique affine, so the attribute ``spinezarr`` holds it.

The axes state their anatomical orientation [2]_, which ITK and Slicer read. With ngff-zarr, both
use the translation as the origin of ITK, whose axes point to left and posterior. For
them, there is a second tree with such translations, see :data:`ITK`.

References
----------
.. [1] https://ngff.openmicroscopy.org/0.5/
.. [2] https://ngff.openmicroscopy.org/rfc/4/
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import SHEAR_TOLERANCE_DEG, ShapeZYX, shear_deg
from spinezarr.scaling import Scaling
from spinezarr.store.layout import IMAGE, LABEL, BloscCodecSpec, fill_value, is_mask_name
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.store.sharding import encode_chunk
from spinezarr.vertebrae import BACKGROUND
from spinezarr.view.levels import COARSEST_VOXELS, Level, levels_of, piece_shape_zyx
from spinezarr.view.shown_labels import shown_labels
from spinezarr.view.windows import DEFAULT_WINDOW, WINDOWS_HU

__all__ = [
    "FOLDER_SUFFIX",
    "ITK",
    "LABELS",
    "OmeKey",
    "OmeTree",
    "encode_piece",
    "is_oblique",
    "levels_folder",
    "ome_tree",
    "parse_ome_key",
]

Node = dict[str, Any]
FOLDER_SUFFIX: Final = ".ome.zarr"
"""Ending of the folder of a scan."""
ITK: Final = "itk"
"""Folder of the trees whose translations are origins of ITK."""
LABELS: Final = "labels"
_MASK: Final = "vertebrae"
_MASK_PREFIX: Final = "mask-"
"""Beginning of the folder of a further mask that has the name of the folder of ``label``."""
_LEVEL: Final = re.compile(r"0|[1-9][0-9]?", re.ASCII)
_VERSION: Final = "0.5"
_FULL_COLOR: Final = 255
"""Largest value of a part of a color: red, green, blue or opacity."""
_ORIENTATIONS: Final = {
    "z": "inferior-to-superior",
    "y": "posterior-to-anterior",
    "x": "left-to-right",
}
"""Anatomical direction in which each axis increases."""
_ITK_SIGNS_ZYX: Final = (1, -1, -1)
"""Signs that turn RAS+ positions into LPS+ ones."""
_CODEC: Final = BloscCodecSpec("lz4", 5, "shuffle", 0)
"""Codec of coarse levels. It is fast, because a viewer waits for them."""
_OBLIQUE_WARNING: Final = (
    "The axes of this scan are oblique. OME-Zarr 0.5 has only scales and translations, so the "
    "position of the first voxel is right, and positions further away are wrong. The affine gives "
    "true positions."
)


@dataclass(frozen=True, slots=True, eq=False)
class OmeTree:
    """The Zarr nodes of a scan as an OME-Zarr image."""

    nodes: Mapping[str, Node]
    """Content of each ``zarr.json`` by the path of its folder; the path of the root is empty."""
    levels: tuple[Level, ...]
    """Levels of the image and of the mask."""


@dataclass(frozen=True, slots=True)
class OmeKey:
    """A key below a level of a scan."""

    array: str
    """Array of the level: ``image``, ``label`` or the name of a further mask."""
    level: int
    key_in_level: str
    """Rest of the key, after the folder of the level."""


def ome_tree(
    scan: ScanHandle,
    stored: Mapping[str, Node],
    *,
    for_itk: bool = False,
    masks: Collection[str] | None = None,
    coarsest_voxels: int = COARSEST_VOXELS,
) -> OmeTree:
    """Make the nodes of a scan.

    Parameters
    ----------
    scan
        The scan.
    stored
        Stored Zarr metadata of its image and its masks, by name.
    for_itk
        Whether translations are origins of ITK.
    masks
        Names of the masks in the tree; None for all.
    coarsest_voxels
        Most voxels of the coarsest level.
    """
    levels = levels_of(scan, coarsest_voxels)
    datasets = [_dataset(scan, level, for_itk=for_itk) for level in levels]
    nodes: dict[str, Node] = {}
    names = [name for name in scan.mask_names if masks is None or name in masks]
    for array in (scan.image, *map(scan.mask, names)):
        folder = levels_folder(array.name)
        for level in levels:
            nodes[f"{folder}{level.level}"] = _array_node(array, level, stored[array.name])
    if names:
        folders = [_mask_folder(name) for name in names]
        nodes[LABELS] = _group({"ome": {"version": _VERSION, "labels": folders}})
    for name in names:
        attributes = {"ome": _mask(scan, name, datasets), "spinezarr": _mask_provenance(scan, name)}
        nodes[f"{LABELS}/{_mask_folder(name)}"] = _group(attributes)
    root = _group({"ome": _image(scan, datasets), "spinezarr": _provenance(scan)})
    members = dict(sorted(nodes.items()))
    consolidated = {"kind": "inline", "must_understand": False, "metadata": members}
    nodes[""] = {**root, "consolidated_metadata": consolidated}
    return OmeTree(nodes, levels)


def parse_ome_key(key: str) -> OmeKey | None:
    """Parse a key below a scan; None if it is not below a level.

    Examples
    --------
    >>> parse_ome_key("labels/vertebrae/3/c/0/1/2")
    OmeKey(array='label', level=3, key_in_level='c/0/1/2')
    >>> parse_ome_key("labels/prediction/0/c/0/1/2").array
    'prediction'
    >>> parse_ome_key("labels/zarr.json"), parse_ome_key("00/c/0/0/0"), parse_ome_key("0")
    (None, None, None)
    """
    array, rest = IMAGE, key
    if key.startswith(f"{LABELS}/"):
        folder, _, rest = key.removeprefix(f"{LABELS}/").partition("/")
        name = LABEL if folder == _MASK else folder.removeprefix(_MASK_PREFIX)
        if folder != _mask_folder(name) or not (name == LABEL or is_mask_name(name)):
            return None
        array = name
    level, _, key_in_level = rest.partition("/")
    if _LEVEL.fullmatch(level) is None or not key_in_level:
        return None
    return OmeKey(array, int(level), key_in_level)


def levels_folder(array: str) -> str:
    """Return the folder of the levels of image or mask: empty, or with a final slash.

    Examples
    --------
    >>> levels_folder("image"), levels_folder("label"), levels_folder("prediction")
    ('', 'labels/vertebrae/', 'labels/prediction/')
    """
    return "" if array == IMAGE else f"{LABELS}/{_mask_folder(array)}/"


def _mask_folder(name: str) -> str:
    """Return the name of the folder of a mask, which viewers show."""
    if name == LABEL:
        return _MASK
    return f"{_MASK_PREFIX}{name}" if name == _MASK else name


def is_oblique(scan: ScanHandle) -> bool:
    """Whether scales and translations alone cannot express the positions of a scan's voxels."""
    return max(scan.attributes.oblique_deg, shear_deg(scan.affine)) > SHEAR_TOLERANCE_DEG


def encode_piece(array: ArraySpec, piece: npt.NDArray[Any]) -> bytes | None:
    """Encode a piece of a coarse level, ``(z, y, x)``, as a chunk.

    The result is None for background, which has no chunk.
    """
    if array.name != IMAGE and not piece.any():
        return None
    shape = piece_shape_zyx(array)
    if piece.shape != shape:
        padded = np.full(shape, fill_value(array.name, piece.dtype), piece.dtype)
        padded[tuple(slice(n) for n in piece.shape)] = piece
        piece = padded
    return encode_chunk(piece, _CODEC)


def _group(attributes: Node) -> Node:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _array_node(array: ArraySpec, level: Level, stored: Node) -> Node:
    if level.level == 0:
        return stored
    codecs = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {
            "name": "blosc",
            "configuration": {
                "typesize": array.stored_dtype.itemsize,
                "cname": _CODEC.cname,
                "clevel": _CODEC.clevel,
                "shuffle": _CODEC.shuffle,
                "blocksize": _CODEC.blocksize,
            },
        },
        {"name": "crc32c"},
    ]
    grid = {"name": "regular", "configuration": {"chunk_shape": list(piece_shape_zyx(array))}}
    return {**stored, "shape": list(level.shape_zyx), "chunk_grid": grid, "codecs": codecs}


def _dataset(scan: ScanHandle, level: Level, *, for_itk: bool) -> Node:
    first_zyx = scan.affine[:3, 3][::-1].tolist()
    spacing_zyx = scan.attributes.spacing_zyx_mm
    translation = [
        start + step * (factor - 1) / 2
        for start, step, factor in zip(first_zyx, spacing_zyx, level.factor_zyx, strict=True)
    ]
    if for_itk:
        translation = [s * t for s, t in zip(_ITK_SIGNS_ZYX, translation, strict=True)]
    transformations = [
        {"type": "scale", "scale": list(level.spacing_zyx_mm)},
        {"type": "translation", "translation": translation},
    ]
    return {"path": str(level.level), "coordinateTransformations": transformations}


def _multiscales(datasets: Sequence[Node], name: str, method: str) -> list[Node]:
    axes = [
        {
            "name": axis,
            "type": "space",
            "unit": "millimeter",
            "orientation": {"type": "anatomical", "value": _ORIENTATIONS[axis]},
        }
        for axis in "zyx"
    ]
    metadata = {"description": f"A voxel of a level is the {method} of a block of stored voxels."}
    return [
        {
            "name": name,
            "axes": axes,
            "datasets": list(datasets),
            "type": method,
            "metadata": metadata,
        }
    ]


def _image(scan: ScanHandle, datasets: Sequence[Node]) -> Node:
    facts = scan.attributes
    low, high = facts.image_range_hu or WINDOWS_HU[DEFAULT_WINDOW]
    default_window = WINDOWS_HU[DEFAULT_WINDOW]
    scaling = scan.image.scaling
    window = _window((low, high), default_window, scaling)
    return {
        "version": _VERSION,
        "multiscales": _multiscales(datasets, facts.scan_id, "mean"),
        "omero": _omero("CT", window, facts.shape_zyx),
    }


def _mask(scan: ScanHandle, name: str, datasets: Sequence[Node]) -> Node:
    # Masks have no omero metadata, because the plugin of napari cannot open masks that have them.
    labels = sorted(shown_labels(scan.attributes, name), key=lambda label: label.value)
    background = {"label-value": BACKGROUND}
    return {
        "version": _VERSION,
        "multiscales": _multiscales(datasets, _mask_folder(name), "mode"),
        "image-label": {
            "version": _VERSION,
            "colors": [{**background, "rgba": [0, 0, 0, 0]}]
            + [
                {
                    "label-value": label.value,
                    "rgba": [
                        *(round(_FULL_COLOR * part) for part in label.color),
                        _FULL_COLOR,
                    ],
                }
                for label in labels
            ],
            "properties": [{**background, "name": "background"}]
            + [{"label-value": label.value, "name": label.name} for label in labels],
            "source": {"image": "../../"},
        },
    }


def _mask_provenance(scan: ScanHandle, name: str) -> Node:
    """Return which mask of the store it is, and who or what made it."""
    facts = scan.attributes
    if name == LABEL:
        return {"mask": LABEL, "license": facts.license}
    record = facts.masks[name]
    return {
        "mask": name,
        "scheme": record.scheme,
        "license": record.license,
        "author": record.author,
        "model": record.model,
        "mask_checksum": facts.mask_checksum(name),
    }


def _window(
    range_hu: tuple[float, float], shown_hu: tuple[float, float], scaling: Scaling | None
) -> Node:
    """Return the default window in stored numbers."""
    ends = np.array([range_hu, shown_hu])
    if scaling is not None:
        ends = np.sort((ends - scaling.intercept) / scaling.slope)
    (low, high), (start, end) = ends.tolist()
    return {"min": low, "max": high, "start": start, "end": end}


def _omero(label: str, window: Node, shape_zyx: ShapeZYX) -> Node:
    """Return the omero metadata, which say how viewers first show an image."""
    return {
        "name": label,
        "channels": [
            {
                "label": label,
                "active": True,
                "color": "FFFFFF",
                "coefficient": 1,
                "family": "linear",
                "inverted": False,
                "window": window,
            }
        ],
        "rdefs": {"defaultT": 0, "defaultZ": shape_zyx[0] // 2, "model": "greyscale"},
    }


def _provenance(scan: ScanHandle) -> Node:
    facts = scan.attributes
    return {
        "dataset": facts.dataset,
        "scan_id": facts.scan_id,
        "license": facts.license,
        "citation": facts.citation,
        "content_checksum": scan.content_checksum,
        "affine": scan.affine.tolist(),
        "affine_columns": facts.affine_columns,
        "affine_space": "RAS+ mm",
        "is_oblique": is_oblique(scan),
        "warning": _OBLIQUE_WARNING if is_oblique(scan) else None,
        "image_scaling": facts.image_scaling,
    }
