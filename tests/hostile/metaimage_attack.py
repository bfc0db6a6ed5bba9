"""MetaImage headers that name data files which a reader must not read.

Each function writes one scan in the form of the first release of the Microsoft/UW dataset, and
moves or damages its data file. Except in the last function, the named file has the right size, so
only a reader that checks the name refuses it.
"""

from pathlib import Path
from typing import Final

from spinezarr.testing.metaimage import MetaImageForm, write_metaimage
from spinezarr.testing.phantom import PhantomSpec, make_phantom

__all__ = [
    "plant_absolute_data_file",
    "plant_data_file_elsewhere",
    "plant_data_file_of_other_size",
    "plant_linked_data_file",
]

_SCAN: Final = "patient0099/9999999/9999999.mhd"
_SPEC: Final = PhantomSpec(99, (12, 12, 12), (8.0, 12.0, 12.0), ("L1", "L2", "L3"))


def plant_absolute_data_file(root: Path, target: Path) -> Path:
    """Write a header that names ``target`` by its absolute path, and return the header's path."""
    header, data = _write(root)
    _move(data, target)
    _rename_data_file(header, data.name, str(target.absolute()))
    return header


def plant_data_file_elsewhere(root: Path) -> Path:
    """Write a header that names a file two folders up, and return the header's path."""
    header, data = _write(root)
    name = f"../../{data.name}"
    _move(data, header.parent / name)
    _rename_data_file(header, data.name, name)
    return header


def plant_linked_data_file(root: Path, target: Path) -> Path:
    """Replace the data file by a symbolic link to ``target``, and return the header's path."""
    header, data = _write(root)
    _move(data, target)
    data.symlink_to(target.absolute())
    return header


def plant_data_file_of_other_size(root: Path, extra_bytes: int) -> Path:
    """Lengthen or cut the data file by ``extra_bytes``, and return the header's path."""
    header, data = _write(root)
    voxels = data.read_bytes()
    data.write_bytes(voxels[: len(voxels) + min(extra_bytes, 0)] + bytes(max(extra_bytes, 0)))
    return header


def _write(root: Path) -> tuple[Path, Path]:
    """Write a valid scan; return header and data file."""
    header = root / _SCAN
    phantom = make_phantom(_SPEC)
    write_metaimage(header, phantom.image, phantom.affine_xyz, MetaImageForm())
    return header, header.with_suffix(".raw")


def _move(data: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data.read_bytes())
    data.unlink()


def _rename_data_file(header: Path, old: str, new: str) -> None:
    text = header.read_text(encoding="utf-8")
    line = f"ElementDataFile = {old}\n"
    header.write_text(text.replace(line, f"ElementDataFile = {new}\n"), encoding="utf-8")
