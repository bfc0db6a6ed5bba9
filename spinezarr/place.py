"""What lies at a path where a user expects a store, and what is the next step?"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from spinezarr.text import count_noun, similar_names

__all__ = ["INGEST_ADVICE", "describe_place", "enclosing_store", "is_archive", "similar_path"]

_METADATA: Final = "zarr.json"
_ENDING: Final = ".zarr"
INGEST_ADVICE: Final = " 'spinezarr ingest' makes a store."
"""Next step of a user who has no store; it follows a sentence."""
_FILE: Final = "a file, and a store is a folder"
_ARCHIVES: Final = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")
_IMAGES: Final = (".nii.gz", ".nii", ".mhd", ".mha", ".nrrd", ".dcm")
_EXAMPLES: Final = 3
_MOST_NAMES: Final = 10_000
"""Most names of a folder that are read."""


def describe_place(path: Path) -> str:
    """Return one or two sentences about a path that is no store, with the next step.

    Examples
    --------
    >>> describe_place(Path("/no/such/folder/a.zarr"))
    "There is no such path. 'spinezarr ingest' makes a store."
    >>> describe_place(Path(__file__))
    'It is a file, and a store is a folder.'
    """
    try:
        return _describe(path)
    except OSError as problem:
        return f"It cannot be looked into: {problem.strerror or problem}."


def _describe(path: Path) -> str:
    if path.is_file():
        kind = "an archive. Unpack it, and give the folder" if is_archive(path.name) else _FILE
        return f"It is {kind}."
    if not path.is_dir():
        return f"There is no such path.{similar_path(path) or INGEST_ADVICE}"
    return enclosing_store(path) or _describe_folder(path, list(_names(path)))


def _describe_folder(path: Path, names: list[str]) -> str:
    stores = [str(path / name) for name in names if _is_store(path / name)]
    if stores:
        return f"The folder holds {count_noun(len(stores), 'store')}: give {_examples(stores)}."
    images = [name for name in names if name.lower().endswith(_IMAGES)]
    if images:
        ending = next(kind for kind in _IMAGES if images[0].lower().endswith(kind))
        return (
            f"The folder holds image files, such as {images[0]!r}. This makes a store of them: "
            f"spinezarr ingest pairs --raw {path} --image '{{scan}}{ending}' --out NEW.zarr"
        )
    content = f"holds {_examples(names)}" if names else "is empty"
    return f"The folder {content}.{INGEST_ADVICE}"


def is_archive(name: str) -> bool:
    """Whether a file of this name must be unpacked first.

    Examples
    --------
    >>> is_archive("a.ZIP"), is_archive("a.nii.gz")
    (True, False)
    """
    return name.lower().endswith(_ARCHIVES)


def enclosing_store(path: Path) -> str:
    """Return a sentence that names the store in which a path lies, or an empty text."""
    outer = next((folder for folder in path.absolute().parents if _is_store(folder)), None)
    return "" if outer is None else f"It lies inside a store. Give {str(outer)!r}."


def similar_path(path: Path) -> str:
    """Return a question with the paths next to a path that have a similar name, or an empty text.

    Examples
    --------
    >>> similar_path(Path(__file__).with_name("geometri.py")).endswith("geometry.py'?")
    True
    """
    try:
        by_stem = {name.removesuffix(_ENDING): name for name in _names(path.parent)}
    except OSError:
        return ""
    alike = similar_names(path.name.removesuffix(_ENDING), by_stem)
    choices = " or ".join(repr(str(path.parent / by_stem[stem])) for stem in alike)
    return f" Did you mean {choices}?" if choices else ""


def _names(folder: Path) -> Iterator[str]:
    return islice((entry.name for entry in sorted(folder.iterdir())), _MOST_NAMES)


def _is_store(folder: Path) -> bool:
    return (folder / _METADATA).is_file() and (folder / "scans").is_dir()


def _examples(names: list[str]) -> str:
    more = ", ..." if len(names) > _EXAMPLES else ""
    return f"{', '.join(map(repr, names[:_EXAMPLES]))}{more}"
