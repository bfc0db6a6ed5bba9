"""Lying stores, each made from its number: valid stores, and the lies put into them.

The liar can compute checksums: changed metadata are sealed again, unless the seal is the lie.
"""

import json
import os
import re
import shutil
import socket
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from forged_chunks import (
    WAYS,
    chunks_of,
    coding_of,
    entry_of,
    forged_rows,
    shard_of,
    with_crc,
    zstd_bomb,
)
from numcodecs import zstd
from numcodecs.blosc import compress as blosc_compress

from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store.blocks import encode_blocks
from spinezarr.store.bundle import TABLE_BUNDLE
from spinezarr.store.layout import BloscCodecSpec
from spinezarr.store.metadata import table_files
from spinezarr.store.sharding import crc32c, index_bytes
from spinezarr.testing import NiftiForm, verse_json, write_nifti

SECRET = "canary-8c1f0e"  # noqa: S105  nobody's
"""Text of every file outside a store, which must never be read or copied."""
RECIPE = """
name: lies
title: Spine CTs
license: CC-BY-4.0
citation: Somebody, somewhere
layouts:
  pairs:
    description: "image and mask side by side"
    image: "{scan}_ct.nii"
    label: "{scan}_seg.nii"
    mask: optional
    centroids: {files: "{scan}_ctd.json", convention: verse}
tables: {clinic: {files: clinic.csv, key: Scan, split: Part}}
labels: {scheme: canonical, state: all-visible, structures: {"30": hip}}
"""
SHAPES_ZYX = {"a": (20, 18, 12), "b": (130, 50, 20), "c": (12, 20, 16)}
"""Shapes of scans; b has two shards, of two and four chunks. Only later versions have scan c."""
AFFINE = np.array([[0.8, 0, 0, -7], [0, 0.9, 0, -8], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])
BASES = {
    "int16": (NiftiForm("LPS"), True, "balanced"),
    "float32": (NiftiForm("LPS", "float32"), True, "fast"),
    "scaled": (NiftiForm("LAS", "int16", slope=0.1, inter=3), True, "small"),
    "images": (NiftiForm("LPS", "uint16"), False, "balanced"),
}
"""Form of the images, whether there are masks, and codec profile of each base."""

Json = Any
Rng = np.random.Generator
SEALED = re.compile(rb'(, )?"metadata_crc32c": "[0-9a-f]{8}"')


def write_raw(folder: Path, base: str, scans: Iterable[str], version: int) -> None:
    """Write a folder of files to ingest."""
    form, masks, _ = BASES[base]
    rows = ["Scan,Part,Remark"]
    for scan in scans:
        shape = SHAPES_ZYX[scan]
        rng = np.random.default_rng([version, ord(scan)])
        values = rng.integers(0, 1500, shape).astype(np.float64)
        if base == "float32" and scan == "a":
            values[3, 4, 5:7] = np.nan, np.inf
        write_nifti(folder / f"{scan}_ct.nii", values, AFFINE, form)
        if masks:
            label = np.zeros(shape, np.uint8)
            label[2:6, 3:9, 2:5], label[6:9, 3:9, 2:8] = 20, 19
            label[9:11, 3:9, 2:8] = 30
            write_nifti(folder / f"{scan}_seg.nii", label, AFFINE, NiftiForm("LPS", "uint8"))
            points = {"L1": (-4.0, -3.0, 40.0), "T12": (-4.0, -3.0, 48.0)}
            size_ijk = shape[::-1]
            (folder / f"{scan}_ctd.json").write_text(
                verse_json(points, size_ijk, AFFINE, "verse"), encoding="utf-8"
            )
        rows.append(f"{scan},{'val' if scan == 'b' else 'train'},text of {scan}")
    (folder / "clinic.csv").write_text("\n".join(rows), encoding="utf-8")


@dataclass(frozen=True)
class Base:
    """A valid store, and the folders that are ingested into its lying copies."""

    name: str
    files: dict[str, bytes]
    store: Path
    raw: Path
    newer: Path
    recipe: Path


def make_bases(folder: Path) -> list[Base]:
    """Ingest the valid stores."""
    folder.mkdir()
    recipe = folder / "lies.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    found = []
    for name, (_, _, profile) in BASES.items():
        here = folder / name
        write_raw(here / "raw", name, "ab", 0)
        write_raw(here / "newer", name, "ac", 1)
        loaded = Recipe.load(str(recipe))
        store = here / "store.zarr"
        report = ingest(loaded, discover(loaded, str(here / "raw")), str(store), codec=profile)
        assert not report.failed, report.failed
        files = {
            str(path.relative_to(store)): path.read_bytes()
            for path in sorted(store.rglob("*"))
            if path.is_file()
        }
        found.append(Base(name, files, store, here / "raw", here / "newer", recipe))
    return found


RAW: list[bytes] = [
    *(b"NaN", b"Infinity", b"-Infinity", b"1e308", b"1e400", b"-0.0", b"1E5", b"9" * 5000),
    b"-" + b"9" * 400,
    b"1." + b"0" * 5000,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    b"[" * 900 + b"]" * 900,
    b"[" * 100_000,
    b"[" + b"0," * 300_000 + b"0]",
    b"{" + b",".join(b'"%d":%d' % (n, n) for n in range(50_000)) + b"}",
    b'"\x1b]0;owned\x07"',
    b'"\xff\xfe"',
    b'"\\ud800"',
    b'"\\u0000"',
    b"01",
    b"",
    b"null,",
    b"'text'",
    b"/**/1",
    b'"' + b"x" * 3_000_000 + b'"',
]
"""JSON texts, valid or not, that :mod:`json` does not write."""
TWICE = "@@twice@@"
"""Suffix of a key that is removed when written, to write a second key of the same name."""


def raw(number: int) -> str:
    """Return a placeholder for an entry of :data:`RAW`."""
    return f"@@raw{number}@@"


TERMINAL = [
    "\x1b]0;owned\x07\x1b[31mred\x1b[2J",
    "\x9b31mred",
    "a\u202egpj.exe",
    "\u2066x\u2069",
    "line\rover\x08\x08",
    "two\nlines",
    "nul\0here",
    "\x7f",
    "\x85\u2028\u2029",
    "\ufeff\u200b\u200d",
]
TEXTS = [
    *TERMINAL,
    *("", " ", ".", "..", "a.", "A", "a/b", "zarr.json", "__a__", "CON", "é", "e\u0301"),
    *("../../../canary.txt", "../../../../canary.txt", "../../../../../canary.txt"),
    *("../canary.txt", "../../canary.txt", "scans/../../canary.txt", "./x", "x//y", "c/0/0/0"),
    *("http://127.0.0.1:9/x", "file:///etc/hostname", "s3://bucket/key", "${HOME}", "~/x"),
    *("<script>alert(1)</script>", "[bold red]x[/]", "[/]", "[link=http://x]y[/link]", "=1+1"),
    *("S", "V0", "U0", "|O8", "object", "<M8[ns]", "complex128", "r16", "bool", "float16"),
    *("string", "int16", "uint8", "uint64", "float32", "float64", "int8", ">i2", "i2,i2", "O"),
    *("L1", "T13", "L9", "19", "-1", "1e9", "nan", "train", "x" * 300, "y" * 100_000),
    *("image", "label", "inf", "|", "`x`", "%s%n", "{0}", "\\u0000", "0-99999999999", "RAS"),
]
NUMBERS = [
    *(-1, 0, 1, 2, 3, 7, 8, 64, 255, 256, 32767, 32768, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**400, -(2**31), -(2**63) - 1),
    *(0.5, -0.5, 1e308, -1e308, 1e-308, 1e300, 3.5e38, 1e18),
]
OTHERS: list[Json] = [None, True, False, [], {}, [[]], {"": ""}, [None], [1] * 50_000, {"a": {}}]
SHAPES: list[Json] = [
    *([0, 1, 1], [-1, 4, 4], [2**30] * 3, [1, 1], [4], [1, 1, 1, 1], [10**5] * 3, [2**62, 4, 1]),
    *([2**21] * 3, [2**21, 2**21, 2**22], [1, 1, 1], [64, 32, 31], [2**31, 1, 1], [1, 1, 2**40]),
    *([2**32, 2**32, 1], [3, 5, 7], [20, 18, 12], [130, 50, 20], [64, 32, 32], [-64, -32, 32]),
    *([], [None] * 3, ["1", "1", "1"], [1.5, 2, 2], [True, 1, 1], [2000, 2000, 2000]),
    *([2**63, 1, 1], [2**64, 1, 1], [1, 2**33, 2**31], [128, 64, 32], [10**30, 1, 1]),
]
BYTES_CODEC = {"name": "bytes", "configuration": {"endian": "little"}}
CRC_CODEC = {"name": "crc32c"}
BLOSC_CODEC = {
    "name": "blosc",
    "configuration": {
        "typesize": 2,
        "cname": "lz4",
        "clevel": 5,
        "shuffle": "noshuffle",
        "blocksize": 32_768,
    },
}


def _sharded(chunk: Json, codecs: Json) -> Json:
    configuration = {
        "chunk_shape": chunk,
        "codecs": codecs,
        "index_codecs": [BYTES_CODEC, CRC_CODEC],
        "index_location": "end",
    }
    return {"name": "sharding_indexed", "configuration": configuration}


CODECS: list[Json] = [
    [],
    [BYTES_CODEC],
    [{"name": "bytes", "configuration": {"endian": "big"}}],
    [{"name": "pickle"}],
    [{"name": "numcodecs.pickle", "configuration": {"id": "pickle"}}],
    [BYTES_CODEC, {"name": "gzip", "configuration": {"level": 9}}],
    [BYTES_CODEC, {"name": "zstd", "configuration": {"level": 0, "checksum": False}}],
    [{"name": "transpose", "configuration": {"order": [2, 1, 0]}}, BYTES_CODEC],
    [{"name": "vlen-utf8"}],
    [{"name": "vlen-bytes"}],
    [_sharded([64, 32, 32], [BYTES_CODEC, BLOSC_CODEC, CRC_CODEC])],
    [_sharded([1, 1, 1], [BYTES_CODEC, BLOSC_CODEC, CRC_CODEC])],
    [_sharded([2**30] * 3, [BYTES_CODEC, BLOSC_CODEC, CRC_CODEC])],
    [_sharded([64, 32, 32], [_sharded([64, 32, 32], [BYTES_CODEC, BLOSC_CODEC, CRC_CODEC])])],
    [_sharded([0, 0, 0], [BYTES_CODEC, BLOSC_CODEC, CRC_CODEC])],
    ["bytes"],
    [{}],
    [None],
]


def pick(rng: Rng, among: Sequence[Any]) -> Any:
    """Choose one; raise IndexError if there is none."""
    if not among:
        raise IndexError("nothing to choose from")
    return among[int(rng.integers(len(among)))]


def hostile(rng: Rng, instead_of: Json, name: str) -> Json:  # noqa: PLR0911  one a kind
    """Make a hostile value to replace another one, which has a name."""
    if rng.random() < 0.5:
        if "shape" in name or "_zyx" in name or "_ijk" in name:
            return pick(rng, SHAPES)
        if "codecs" in name:
            return pick(rng, CODECS)
        if isinstance(instead_of, str):
            return pick(rng, TEXTS)
        if isinstance(instead_of, int | float):
            return pick(rng, NUMBERS)
        if isinstance(instead_of, list) and instead_of and rng.random() < 0.7:
            return [
                hostile(rng, value, "") if rng.random() < 0.5 else value for value in instead_of
            ]
    kind = rng.integers(4)
    if kind == 0:
        return raw(int(rng.integers(len(RAW))))
    return pick(rng, (TEXTS, NUMBERS, OTHERS)[int(kind) - 1])


def sealed(data: bytes) -> bytes:
    """Return metadata with the correct checksum, if they have one."""
    at = data.rfind(b'"metadata_crc32c"')
    last = SEALED.search(data, max(0, at - 2)) if at >= 0 else None
    if last is None:
        return data
    content = data[: last.start()] + data[last.end() :]
    mark = b'%s"metadata_crc32c": "%08x"' % (last[1] or b"", crc32c(content))
    return data[: last.start()] + mark + data[last.end() :]


def written(document: Json) -> bytes:
    """Return JSON with the entries of :data:`RAW` inserted, and a checksum if it had one."""
    text = json.dumps(document).encode()
    text = text.replace(TWICE.encode(), b"")
    text = re.sub(rb'"@@raw(\d+)@@"', lambda found: RAW[int(found[1])], text)
    return sealed(text)


@dataclass
class Node:
    """A link or special file in place of a file or folder."""

    kind: str
    to: str = ""


@dataclass
class Draft:
    """A store that is being forged."""

    base: Base
    rng: Rng
    canary: Path
    """A file outside the store."""
    files: dict[str, bytes] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    """Description of the lies."""
    keeps_manifest: bool = False
    keeps_bundle: bool = False

    def __post_init__(self) -> None:
        self.files = dict(self.base.files)
        self._documents: dict[str, Json] = {}

    def document(self, key: str) -> Json:
        """Return metadata that may be changed in place."""
        if key not in self._documents:
            self._documents[key] = json.loads(self.files[key])
        return self._documents[key]

    @property
    def scans(self) -> list[str]:
        """Return the ids of the valid store."""
        return ["a", "b"]

    def note(self, text: str) -> None:
        """Record a lie."""
        self.said.append(re.sub(r"[^ -~]", "?", text)[:200])

    def finish(self) -> None:
        """Write documents, manifests and the bundle, with correct checksums."""
        table = "table/zarr.json"
        groups = [k for k in self.files if re.fullmatch(r"scans/[^/]*/zarr\.json", k)] + [table]
        for key, document in self._documents.items():
            if key not in groups and key in self.files:
                self.files[key] = written(document)
        if not self.keeps_manifest:
            for key in groups:
                if key in self.files:
                    self._renew_manifest(key)
        for key in groups:
            if key in self._documents and key in self.files:
                self.files[key] = written(self._documents[key])
        inside = {k[6:]: d for k, d in self.files.items() if k.startswith("table/")}
        before = {k[6:]: d for k, d in self.base.files.items() if k.startswith("table/")}
        if inside != before and not self.keeps_bundle and TABLE_BUNDLE in self.files:
            texts = {k: b64encode(d).decode() for k, d in sorted(inside.items())}
            attributes = {"files": texts, "metadata_crc32c": "00000000"}
            bundle = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
            self.files[TABLE_BUNDLE] = written(bundle)

    def _renew_manifest(self, group: str) -> None:
        folder = group.removesuffix("zarr.json")
        changed = {
            key.removeprefix(folder): data
            for key, data in self.files.items()
            if key.startswith(folder) and key != group and self.base.files.get(key) != data
        }
        if not changed:
            return
        try:
            manifest = self.document(group)["attributes"]["manifest"]
            for key, data in changed.items():
                manifest[key] = {**manifest.get(key, {}), **entry_of(data)}
        except (ValueError, KeyError, TypeError):
            return


# Paths in documents


def paths_of(document: Json, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a document."""
    found = [above] if above else []
    if isinstance(document, dict):
        for key, value in document.items():
            found += paths_of(value, (*above, key))
    elif isinstance(document, list):
        for at, value in enumerate(document):
            found += paths_of(value, (*above, at))
    return found


def kind_of_path(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return one kind for the paths of similar values, such as entries of a manifest."""
    plain: list[Any] = []
    for step in path:
        many = isinstance(step, int) or plain[-1:] in (["manifest"], ["files"], ["metadata"])
        plain.append("*" if many and plain[-1:] != ["metadata"] else step)
    return tuple(plain)


def choose_path(rng: Rng, document: Json) -> tuple[Any, ...]:
    """Choose a path in a document; each kind is equally likely."""
    by_kind: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for path in paths_of(document):
        if path[-1] != "metadata_crc32c":
            by_kind.setdefault(kind_of_path(path), []).append(path)
    return pick(rng, by_kind[pick(rng, list(by_kind))])


def value_at(document: Json, path: tuple[Any, ...]) -> Json:
    """Return the value at a path."""
    for step in path:
        document = document[step]
    return document


def _first(mapping: dict[str, Json], key: str, value: Json) -> None:
    """Add a value before all others, so that a checksum stays the last."""
    old = dict(mapping)
    mapping.clear()
    mapping[key] = value
    mapping.update(old)


def change_at(draft: Draft, key: str, path: tuple[Any, ...], *, more: Sequence[str] = ()) -> None:
    """Change one value of a document in one of several ways, and equally in ``more`` documents."""
    rng = draft.rng
    document = draft.document(key)
    above, last = value_at(document, path[:-1]), path[-1]
    way = pick(rng, ("replace",) * 7 + ("delete", "rename", "twice", "add", "swap"))
    value = hostile(rng, above[last], str(last) if isinstance(last, str) else str(path[-2:]))
    draft.note(f"{key}: {way} {'.'.join(map(str, path))}: {str(value)[:60]}")
    for where in (key, *more):
        _apply(rng, draft.document(where), path, way, value)


def _apply(rng: Rng, document: Json, path: tuple[Any, ...], way: str, value: Json) -> None:
    try:
        above, last = value_at(document, path[:-1]), path[-1]
        if way == "replace":
            above[last] = value
        elif way == "delete":
            del above[last]
        elif isinstance(above, list):
            above.insert(last, value)
        elif way == "rename":
            _first(above, value if isinstance(value, str) else str(value)[:99], above.pop(last))
        elif way == "twice":
            _first(above, f"{last}{TWICE}", value)
        elif way == "add":
            name = value if isinstance(value, str) else str(value)[:99]
            _first(above, name, above[last])
        else:
            other = next(iter(above))
            above[last], above[other] = above[other], above[last]
    except (KeyError, IndexError, TypeError):
        return


# Lies


def lie_in_field(draft: Draft) -> None:
    """Change one value of one document."""
    rng = draft.rng
    kind = pick(
        rng, ("scan",) * 6 + ("array",) * 3 + ("table",) * 3 + ("column",) * 2 + OTHER_FILES
    )
    if kind == "scan":
        key = f"scans/{pick(rng, draft.scans)}/zarr.json"
    elif kind == "array":
        key = pick(rng, [k for k in draft.files if re.fullmatch(r"scans/.*/.*/zarr\.json", k)])
    elif kind == "table":
        key = "table/zarr.json"
    elif kind == "column":
        key = pick(rng, [k for k in draft.files if re.fullmatch(r"table/.*/zarr\.json", k)])
    else:
        key = str(kind)
    change_at(draft, key, choose_path(rng, draft.document(key)))


OTHER_FILES = (
    "zarr.json",
    "scans/zarr.json",
    "ingest/zarr.json",
    "audit/zarr.json",
    TABLE_BUNDLE,
)


def lie_in_array(draft: Draft) -> None:
    """Change the metadata of an array, in the scan's or the table's group and in its own."""
    rng = draft.rng
    if rng.random() < 0.7:
        folder = f"scans/{pick(rng, draft.scans)}/"
        names = ["image"] * 4 + ["label"] * 4 + ["sampling/label_chunks"] * 2 + ["x"]
        name = pick(rng, [n for n in names if f"{folder}{n}/zarr.json" in draft.files])
    else:
        folder = "table/"
        columns = [k for k in draft.files if re.fullmatch(r"table/[^/]*/zarr\.json", k)]
        name = pick(rng, columns).split("/")[1]
    group, own = f"{folder}zarr.json", f"{folder}{name}/zarr.json"
    together = draft.document(group)["consolidated_metadata"]["metadata"]
    path = choose_path(rng, together[name])
    state = rng.bit_generator.state
    change_at(draft, own, path)
    rng.bit_generator.state = state
    change_at(draft, group, ("consolidated_metadata", "metadata", name, *path))


def lie_about_type(draft: Draft) -> None:  # noqa: C901  one part after another
    """Change the type of an array everywhere, with voxels of the size of that type."""
    rng = draft.rng
    scan = pick(rng, draft.scans)
    name = pick(rng, ("image", "label") if BASES[draft.base.name][1] else ("image",))
    types = ["object", "|O8", "O", "S", "V0", "U0", "S0", "<M8[ns]", "complex128", "complex64"]
    types += ["r16", "bool", "float16", "float64", "int64", "uint64", "int8", "uint32", "string"]
    types += ["S8", "U2", "V8", "i2,i2", ">i2", "float128", "longdouble", "datetime64[ns]", "M8"]
    chosen = pick(rng, types)
    draft.note(f"scan {scan}: {name} is of type {chosen}, everywhere")
    group = draft.document(f"scans/{scan}/zarr.json")
    fill = pick(rng, (0, None, "NaN", "", -32768, [0, 0], False, "keep"))
    both = _both_documents(draft, scan, name)
    for own in both:
        own["data_type"] = chosen
        if fill != "keep":
            own["fill_value"] = fill
    if name == "image":
        which = int(rng.integers(4))
        if which & 1:
            group["attributes"]["image_dtype"] = chosen
        if which & 2:
            group["attributes"]["image_stored_dtype"] = chosen
    sizes = {"object": 8, "|O8": 8, "O": 8, "S": 0, "V0": 0, "U0": 0, "S0": 0}
    try:
        size = sizes.get(chosen, np.dtype(chosen).itemsize)
    except TypeError:
        size = 2
    if size and rng.random() < 0.8:
        chunk = _chunk_of_type(rng, size)
        for own in both:
            if rng.random() < 0.8:
                change = {"typesize": size, "cname": "lz4", "shuffle": "noshuffle"}
                _blosc_of(own).update({**change, "blocksize": 1 << 15})
        rebuild_shards(draft, scan, name, lambda _: chunk)
    if rng.random() < 0.5:
        table = sound_table(draft)
        for column in ("image_dtype", "image_stored_dtype"):
            table[column] = ("scan", np.full(table.sizes["scan"], chosen, object))
        store_table(draft, table)


def _chunk_of_type(rng: Rng, itemsize: int) -> bytes:
    """Return a chunk of numbers of any size."""
    voxels = rng.integers(0, 256, 64 * 32 * 32 * itemsize, np.uint8)
    if rng.random() < 0.5:
        voxels[:] = 0x41
    if itemsize in {1, 2, 4, 8}:
        codec = BloscCodecSpec("lz4", 1, "noshuffle", 1 << 15)
        return encode_blocks(voxels.view(f"u{itemsize}"), codec)
    return with_crc(bytes(blosc_compress(voxels, b"lz4", 1, 0, 0, min(itemsize, 255))))


def _both_documents(draft: Draft, scan: str, name: str) -> tuple[Json, Json]:
    """Return the metadata of an array in its scan's group, and its own."""
    together = draft.document(f"scans/{scan}/zarr.json")["consolidated_metadata"]["metadata"]
    return together[name], draft.document(f"scans/{scan}/{name}/zarr.json")


def _blosc_of(array: Json) -> Json:
    """Return the configuration of the blocks of an array."""
    return array["codecs"][0]["configuration"]["codecs"][1]["configuration"]


def rebuild_shards(
    draft: Draft, scan: str, name: str, remade: Callable[[bytes], bytes | None]
) -> None:
    """Replace the chunks of an array."""
    group = draft.document(f"scans/{scan}/zarr.json")
    coding = coding_of(group["consolidated_metadata"]["metadata"][name])
    shape = json.loads(draft.base.files[f"scans/{scan}/zarr.json"])["attributes"]["shape_zyx"]
    n_chunks = int(
        np.prod(
            [min(m, -(-n // c)) for m, n, c in zip((2, 16, 16), shape, (64, 32, 32), strict=True)]
        )
    )
    for key in [k for k in draft.files if k.startswith(f"scans/{scan}/{name}/c/")]:
        chunks = {p: remade(c) for p, c in chunks_of(draft.base.files[key], n_chunks).items()}
        kept = {p: c for p, c in chunks.items() if c is not None}
        data, entry = shard_of(kept, n_chunks, coding)
        draft.files[key] = data
        group["attributes"]["manifest"][key.removeprefix(f"scans/{scan}/")] = entry


def lie_about_blocks(draft: Draft) -> None:
    """Change how the blocks of an array are coded, with chunks of that coding or the old ones."""
    rng = draft.rng
    scan = pick(rng, draft.scans)
    name = pick(rng, ("image", "label") if BASES[draft.base.name][1] else ("image",))
    both = _both_documents(draft, scan, name)
    itemsize = _blosc_of(both[0])["typesize"]
    chunk_bytes = 64 * 32 * 32 * itemsize
    sizes = (chunk_bytes, chunk_bytes // 256, chunk_bytes // 512, 2048, 64, 8, itemsize, 1, 0, -1)
    sizes += (3, chunk_bytes * 2, 2**24, 2**31, 2**63, 24_576, 65_536)
    changes = {
        "blocksize": pick(rng, sizes),
        "cname": pick(rng, ("lz4", "lz4", "lz4hc", "zstd", "blosclz", "", None)),
        "shuffle": pick(rng, ("shuffle", "noshuffle", "noshuffle", "bitshuffle", None)),
        "typesize": pick(rng, (itemsize, itemsize, itemsize, 1, 2, 4, 8, 0, -1, 255, 2**40)),
    }
    changes = {key: value for key, value in changes.items() if rng.random() < 0.5}
    draft.note(f"scan {scan}: {name} has blocks of {changes}")
    for own in both:
        if rng.random() < 0.95:
            _blosc_of(own).update(changes)
    coding = coding_of(both[0])
    if not 0 < coding.block_bytes <= coding.chunk_bytes <= 2**24 or coding.n_blocks > 2**12:
        return
    voxels = rng.integers(0, 9, coding.chunk_bytes, np.uint8)
    codec = BloscCodecSpec(
        "lz4" if coding.is_lz4 else "zstd",
        1,
        "shuffle" if coding.is_shuffled else "noshuffle",
        coding.block_bytes,
    )
    made = encode_blocks(voxels.view(f"u{coding.itemsize}"), codec)
    keeps = rng.random() < 0.3
    rebuild_shards(draft, scan, name, lambda chunk: chunk if keeps else made)


def lie_about_chunks(draft: Draft) -> None:  # noqa: C901  one part after another
    """Change the shapes of chunks and shards, with matching tables of chunks."""
    rng = draft.rng
    scan = pick(rng, draft.scans)
    name = pick(rng, ("image", "label") if BASES[draft.base.name][1] else ("image",))
    group = draft.document(f"scans/{scan}/zarr.json")
    shape = pick(rng, [s for s in SHAPES if isinstance(s, list)])
    shard = shape if rng.random() < 0.6 else pick(rng, SHAPES)
    draft.note(f"scan {scan}: {name} has chunks {shape} and shards {shard}")
    both = _both_documents(draft, scan, name)
    for own in both:
        if rng.random() < 0.8:
            own["codecs"][0]["configuration"]["chunk_shape"] = shape
        if rng.random() < 0.8:
            own["chunk_grid"]["configuration"]["chunk_shape"] = shard
    try:
        n_chunks = int(np.prod([s // c for s, c in zip(shard, shape, strict=True)]))
        nbytes = int(np.prod(shape, dtype=object)) * 2
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return
    manifest = group["attributes"]["manifest"]
    for key in [k for k in draft.files if k.startswith(f"scans/{scan}/{name}/c/")]:
        inside = key.removeprefix(f"scans/{scan}/")
        if rng.random() < 0.2 or not 0 < n_chunks < 10**5:
            draft.files.pop(key)
            manifest.pop(inside, None)
            continue
        chunks = (
            list(chunks_of(draft.base.files[key], 6 if scan == "b" else 1).values())
            if (scan == "a")
            else [draft.base.files[key][:2000]]
        )
        chunk = chunks[0]
        if 0 < nbytes < 2**24:
            # Some blocks fit the shape, and others do not.
            size = pick(rng, (nbytes, 1 << 15, nbytes // 4, nbytes // 256, 2)) // 2 * 2
            codec = BloscCodecSpec("lz4", 1, "noshuffle", size)
            chunk = encode_blocks(np.zeros(nbytes // 2, "<u2"), codec)
            for own in both:
                change = {"cname": "lz4", "shuffle": "noshuffle", "blocksize": size}
                _blosc_of(own).update(change)
        elif rng.random() < 0.7:
            chunk = with_crc(chunk[:4] + struct.pack("<I", nbytes % 2**32) + chunk[8:-4])
        try:
            data, entry = shard_of({0: chunk}, n_chunks, coding_of(both[0]))
        except (OverflowError, ZeroDivisionError, MemoryError, ValueError):
            data, entry = shard_of(
                {0: chunk},
                n_chunks,
                coding_of(json.loads(draft.base.files[f"scans/{scan}/{name}/zarr.json"])),
            )
        draft.files[key], manifest[inside] = data, entry


def lie_about_shape(draft: Draft) -> None:
    """Change the shape everywhere, with the old shards or with none."""
    rng = draft.rng
    scan = pick(rng, draft.scans)
    shape = pick(rng, SHAPES)
    group = draft.document(f"scans/{scan}/zarr.json")
    emptied = pick(rng, (("image", "label"), ("label",), ()))
    draft.note(f"scan {scan}: shape {shape}; no shards of {emptied}")
    group["attributes"]["shape_zyx"] = shape
    together = group["consolidated_metadata"]["metadata"]
    for name in ("image", "label"):
        if name in together and (name in emptied or rng.random() < 0.9):
            together[name]["shape"] = shape
            draft.document(f"scans/{scan}/{name}/zarr.json")["shape"] = shape
    for name in emptied:
        for key in [k for k in draft.files if k.startswith(f"scans/{scan}/{name}/c/")]:
            del draft.files[key]
            del group["attributes"]["manifest"][key.removeprefix(f"scans/{scan}/")]
    if rng.random() < 0.6:
        table = sound_table(draft)
        with_shape = table.shape_zyx.to_numpy().astype("i8")
        try:
            with_shape[draft.scans.index(scan)] = shape
        except (ValueError, TypeError, OverflowError):
            return
        dtype = "i8" if rng.random() < 0.5 else "i4"
        table["shape_zyx"] = (("scan", "axis"), with_shape.astype(dtype))
        store_table(draft, table)


def lie_in_chunk_table(draft: Draft) -> None:
    """Change positions, checksums and sizes of blocks, the place of the index, and the size."""
    rng = draft.rng
    scan = pick(rng, draft.scans)
    group = draft.document(f"scans/{scan}/zarr.json")
    manifest = group["attributes"]["manifest"]
    key = pick(rng, [k for k, e in manifest.items() if "chunks" in e])
    entry = manifest[key]
    coding = coding_of(group["consolidated_metadata"]["metadata"][key.split("/")[0]])
    rows = np.frombuffer(b64decode(entry["chunks"]), coding.row_dtype).copy()
    rows = forged_rows(rng, rows)
    data = rows.tobytes()
    if rng.random() < 0.1:
        data = data[: int(rng.integers(len(data) + 1))]
    entry["chunks"] = b64encode(data).decode()
    if rng.random() < 0.7:
        n_chunks = 1 if scan == "a" else 4
        sizes = rows["block_sizes"].sum(dtype=np.int64) + len(rows) * coding.overhead_bytes
        entry["index_offset"] = int(sizes)
        entry["size_bytes"] = int(sizes) + index_bytes(n_chunks)
    if rng.random() < 0.3:
        entry["index_offset"] = pick(rng, NUMBERS)
    draft.keeps_manifest = True
    draft.note(f"scan {scan}: table of {key}: {rows[:3].tolist()}, {entry['size_bytes']} bytes")


def lie_in_chunk(draft: Draft) -> None:
    """Forge chunks, and give them correct checksums."""
    rng = draft.rng
    scan = pick(rng, draft.scans)
    name = pick(rng, ("image", "label") if BASES[draft.base.name][1] else ("image",))
    way = pick(rng, (*WAYS, "absent"))
    draft.note(f"scan {scan}: {name}: {way} of chunks is false")

    def remade(chunk: bytes) -> bytes | None:
        if way == "absent":
            return None if rng.random() < 0.5 else chunk
        return WAYS[way](rng, chunk)

    rebuild_shards(draft, scan, name, remade)


def lie_in_column(draft: Draft) -> None:
    """Put a bomb, or strings with false lengths, into a column of the table."""
    rng = draft.rng
    keys = [k for k in draft.files if re.fullmatch(r"table/[^/]*/c/.*", k)]
    key = pick(rng, keys)
    column = key.split("/")[1]
    own = draft.document(f"table/{column}/zarr.json")
    together = draft.document("table/zarr.json")["consolidated_metadata"]["metadata"]
    is_text = own["data_type"] == "string"
    way = pick(rng, ("bomb", "bomb", "garbage", "wide") + (("lengths",) * 5 if is_text else ()))
    draft.note(f"column {column}: {way}")
    if way == "bomb":
        size = pick(rng, (2**28, 2**30))
        data = zstd_bomb(size)
        if not is_text and rng.random() < 0.5:
            for one in (own, together[column]):
                one["chunk_grid"]["configuration"]["chunk_shape"][0] = size // 8
                if rng.random() < 0.5:
                    one["shape"][0] = size // 8
    elif way == "garbage":
        data = zstd.compress(rng.integers(0, 256, int(pick(rng, (0, 1, 7, 64, 4000))), np.uint8), 1)
    elif way == "wide":
        for one in (own, together[column]):
            one["chunk_grid"]["configuration"]["chunk_shape"] = [2**40] * len(own["shape"])
            if rng.random() < 0.5:
                one["shape"] = [2**40] * len(own["shape"])
        data = draft.files[key][:-4]
    else:
        count = pick(rng, (0, 1, 2, 3, 2**31, 2**32 - 1))
        data = struct.pack("<I", count)
        for _ in range(int(rng.integers(4))):
            text = pick(rng, TEXTS)[:500].encode("utf-8", "replace")
            text = pick(rng, (text, b"\xff\xfe", b"\xed\xa0\x80"))
            said = pick(rng, (len(text), len(text), 0, 2**31 - 1, 2**32 - 1, 2**31, 7))
            data += struct.pack("<I", said) + text
        data = zstd.compress(data, 1)
    draft.files[key] = with_crc(bytes(data))


@cache
def _table_of(store: Path) -> xr.Dataset:
    return xr.open_zarr(f"{store}/table", zarr_format=3).load()


def sound_table(draft: Draft) -> xr.Dataset:
    """Return the table of the valid store, with strings as objects."""
    return _table_of(draft.base.store).copy()


def store_table(draft: Draft, table: xr.Dataset) -> None:
    """Replace the table of the store."""
    texts = {
        name: variable.astype(np.dtypes.StringDType())
        for name, variable in table.variables.items()
        if variable.dtype.kind in "OU"
    }
    encoded = table.assign(texts).drop_encoding()
    encoded.attrs = {k: v for k, v in encoded.attrs.items() if k in TABLE_ATTRIBUTES}
    for key in [k for k in draft.files if k.startswith("table/")]:
        del draft.files[key]
        draft._documents.pop(key, None)
    for key, data in table_files(encoded, "/").items():
        draft.files[f"table/{key}"] = data


TABLE_ATTRIBUTES = ("dataset", "title", "license", "citation", "codec_profile")


def lie_in_table(draft: Draft) -> None:
    """Change values of the table, in well-formed columns."""
    rng = draft.rng
    table = sound_table(draft)
    for _ in range(int(rng.integers(1, 4))):
        name = str(pick(rng, list(table.variables)))
        variable = table[name]
        values = variable.to_numpy().copy()
        at = tuple(int(rng.integers(n)) for n in values.shape)
        way = pick(rng, ("one", "one", "all", "type", "drop"))
        if way == "drop":
            table = table.drop_vars(name)
            draft.note(f"table without {name}")
            continue
        if values.dtype.kind in "OUT":
            values = values.astype(object)
            value: Any = pick(rng, TEXTS).replace("\ud800", "")
        elif values.dtype.kind == "f":
            value = pick(rng, (0.0, -1.0, np.nan, np.inf, -np.inf, 1e308, 1e-308, 1e30, 5.0))
        else:
            limits = np.iinfo(values.dtype)
            value = int(pick(rng, (0, -1, 1, limits.max, limits.min, 10**6, 3, 2**31 - 1)))
            value = min(max(value, limits.min), limits.max)
        if way == "type":
            other = np.full(values.shape, pick(rng, ("x", 1.5, 2, True)))
            values = other.astype(object) if other.dtype.kind == "U" else other
        elif way == "all":
            values[...] = value
        else:
            values[at] = value
        draft.note(f"table: {way} {name} = {str(value)[:40]}")
        table[name] = (variable.dims, values)
    if rng.random() < 0.1:
        table = table.isel(scan=[0] * int(pick(rng, (0, 2, 3))))
        draft.note("table: rows repeated or gone")
    store_table(draft, table)


def lie_in_texts(draft: Draft) -> None:  # noqa: C901  one part after another
    """Put terminal control characters into every text for people."""
    rng = draft.rng
    text = pick(rng, [*TERMINAL, "<img src=x onerror=alert(1)>", "[bold]x[/]", "[/]"])
    draft.note(f"texts for people: {text!r}")
    root, table = draft.document("zarr.json"), draft.document("table/zarr.json")
    for name in ("title", "license", "citation", "homepage", "dataset"):
        if name != "dataset" or rng.random() < 0.2:
            root["attributes"][name] = f"{text}{name}"
            table["attributes"][name] = f"{text}{name}"
    for scan in draft.scans:
        attributes = draft.document(f"scans/{scan}/zarr.json")["attributes"]
        for name in ("patient_id", "source", "split", "license", "citation", "written_by"):
            if name != "split" or rng.random() < 0.3:
                attributes[name] = f"{text}{name}"
        attributes["notes"] = [text]
        attributes["columns"] = {text: text, "Remark": text}
        attributes["sidecar"] = {text: text}
        attributes["image_source"]["file"] = f"{text}.nii"
        if rng.random() < 0.5:
            attributes["structures"] = {"30": text}
    if rng.random() < 0.5:
        values = sound_table(draft)
        for name in ("patient_id", "source", "Remark", "erratum", "anomaly", "audit_findings"):
            if name in values and rng.random() < 0.7:
                values[name] = ("scan", np.full(values.sizes["scan"], text, object))
        said = dict(table["attributes"])
        store_table(draft, values)
        new = draft.document("table/zarr.json")["attributes"]
        for name in ("title", "license", "citation", "homepage", "dataset"):
            if name in said:
                _first(new, name, said[name])


def lie_about_name(draft: Draft) -> None:
    """Change the id of a scan everywhere."""
    rng = draft.rng
    old = pick(rng, draft.scans)
    new = pick(rng, [t for t in TEXTS if len(t) < 200])
    folder = new.replace("/", "_").replace("\0", "_").strip(".") or "_"
    draft.note(f"scan {old} is called {new!r}")
    document = draft.document(f"scans/{old}/zarr.json")
    document["attributes"]["scan_id"] = new
    for key in [k for k in draft.files if k.startswith(f"scans/{old}/")]:
        moved = f"scans/{folder}/{key.removeprefix(f'scans/{old}/')}"
        draft.files[moved] = draft.files.pop(key)
        if key in draft._documents:
            draft._documents[moved] = draft._documents.pop(key)
    table = sound_table(draft)
    names = table.scan.to_numpy().astype(object)
    names[draft.scans.index(old)] = new
    store_table(draft, table.assign_coords(scan=("scan", names)))


def lie_about_place(draft: Draft) -> None:
    """Set an impossible affine, spacing or scaling."""
    rng = draft.rng
    scan = pick(rng, draft.scans)
    attributes = draft.document(f"scans/{scan}/zarr.json")["attributes"]
    numbers = [0.0, -0.0, 1e308, -1e308, 1e-308, 1e30, 1e-30, raw(0), raw(1), raw(2), 1e10]
    what = pick(rng, ("affine", "affine", "spacing_zyx_mm", "scale", "source", "oblique_deg"))
    value = pick(rng, numbers)
    draft.note(f"scan {scan}: {what}: {value}")
    if what == "affine":
        for _ in range(int(rng.integers(1, 5))):
            attributes["affine"][int(rng.integers(4))][int(rng.integers(4))] = pick(rng, numbers)
        if rng.random() < 0.3:
            attributes["affine"] = pick(rng, ([], [[1.0]], [[1.0] * 4] * 4, [[1.0] * 3] * 3))
    elif what == "spacing_zyx_mm":
        attributes[what][int(rng.integers(3))] = value
    elif what == "oblique_deg":
        attributes[what] = value
    elif what == "source":
        source = attributes["image_source"]
        source["affine_ijk"][int(rng.integers(4))][int(rng.integers(4))] = value
        source["shape_ijk"] = pick(rng, (source["shape_ijk"], pick(rng, SHAPES)))
        source["orientation"] = pick(rng, ("LPS", "RAS", "XYZ", "", "LLL", "RASR"))
    else:
        attributes["image_scaling"] = [value, pick(rng, numbers)]
        document = draft.document(f"scans/{scan}/zarr.json")
        for own in (
            document["consolidated_metadata"]["metadata"]["image"],
            draft.document(f"scans/{scan}/image/zarr.json"),
        ):
            own["attributes"] |= {"scale_factor": value, "add_offset": pick(rng, numbers)}


def lie_about_labels(draft: Draft) -> None:
    """Add vertebrae, centers and label counts that do not exist."""
    rng = draft.rng
    scan = pick(rng, draft.scans)
    document = draft.document(f"scans/{scan}/zarr.json")
    attributes = document["attributes"]
    what = pick(rng, ("vertebrae", "centroids", "sampling", "sampling", "table", "other"))
    draft.note(f"scan {scan}: {what} are false")
    if what == "vertebrae":
        places = pick(rng, [s for s in SHAPES if len(s) == 3])
        attributes["vertebrae"][pick(rng, ("L1", "T12", "L9", "C1", ""))] = {
            "voxel_count": pick(rng, NUMBERS),
            "centroid_zyx": [float(pick(rng, (0, -1, 1e30, 1e308))) for _ in range(3)],
            "start_zyx": places,
            "stop_zyx": pick(rng, [s for s in SHAPES if len(s) == 3]),
        }
    elif what == "centroids":
        attributes["centroids"][pick(rng, ("L1", "T12", "L9", "C1", ""))] = {
            "position_zyx_mm": [pick(rng, (0.0, 1e30, -1e308, raw(0), raw(1))) for _ in range(3)],
            "label_distance_mm": pick(rng, (None, 0.0, -1.0, 1e308, raw(0))),
        }
    elif what == "other":
        names = ("19", "255", "256", "-1", "0", "x", "99999999999999999999")
        attributes["other_labels"] = {pick(rng, names): pick(rng, NUMBERS)}
        attributes["structures"] = {pick(rng, names): pick(rng, TEXTS)}
    elif what == "table":
        table = sound_table(draft)
        for name in ("bbox_start_zyx", "bbox_stop_zyx", "voxel_count", "centroid_zyx_mm"):
            values = table[name].to_numpy().copy()
            ends = (0, -1, 2**31 - 1, -(2**31), 10**6)
            values[...] = (
                pick(rng, ends)
                if values.dtype.kind == "i"
                else pick(rng, (np.nan, np.inf, 1e308, 0.0, -1e30))
            )
            if rng.random() < 0.6:
                table[name] = (table[name].dims, values)
        store_table(draft, table)
    else:
        key = f"scans/{scan}/sampling/label_chunks/c/0/0"
        if key not in draft.files:
            return
        rows = int(pick(rng, (1, 2, 3, 3, 3, 100, 10**6)))
        content = rng.integers(0, 3, (rows, 5)).astype("<u4")
        content[:, 0] = pick(rng, (19, 20, 0, 255, 2**32 - 1))
        at = int(rng.integers(1, 5))
        content[:, at] = pick(rng, (0, 1, 2, 2**31, 2**32 - 1, 10**6, 64))
        draft.files[key] = with_crc(blosc_compress(content, b"lz4", 5, 2, 0, 4))
        shape = [rows if rng.random() < 0.7 else pick(rng, (10**6, 2**40, -1, 0)), 5]
        for own in (
            document["consolidated_metadata"]["metadata"]["sampling/label_chunks"],
            draft.document(f"scans/{scan}/sampling/label_chunks/zarr.json"),
        ):
            own["shape"] = shape
            own["chunk_grid"]["configuration"]["chunk_shape"] = shape


def lie_in_manifest(draft: Draft) -> None:
    """Name files outside the store in manifests, with their true size and checksum."""
    rng = draft.rng
    key = pick(rng, TEXTS[:60])
    path = draft.canary
    keys = [key, f"../../../{path.name}", f"../../{path.name}", f"../{path.name}", str(path)]
    keys += [f"image/c/../../../../../{path.name}", f"image/../../../../{path.name}"]
    keys += [
        "image/c/9/9/9",
        "image/c/0/0/-1",
        "image/c/+1/0/0",
        "image/c/0/0/0/0",
        "image/c/٣/0/0",
    ]
    keys += [
        "image/c/0/0/99999999999999999999",
        "image//c/0/0/0",
        "IMAGE/zarr.json",
        "image/c/x/0/0",
    ]
    keys += ["label/c/00/0/0", "image/c.0.0.0", "/dev/zero", "../../zarr.json", "../b/zarr.json"]
    chosen = pick(rng, keys)
    data = path.read_bytes() if path.name in chosen else draft.base.files["zarr.json"]
    where = pick(rng, ("scan", "scan", "table", "bundle"))
    draft.note(f"manifest of {where} names {chosen!r}")
    entry: dict[str, Any] = entry_of(data)
    if rng.random() < 0.4:
        entry |= {"index_crc32c": "00000000", "chunks": ""}
    if rng.random() < 0.2:
        entry["size_bytes"] = pick(rng, NUMBERS)
    if where == "bundle":
        files = draft.document(TABLE_BUNDLE)["attributes"]["files"]
        files[chosen] = b64encode(data).decode()
        if rng.random() < 0.3:
            files["table/zarr.json"] = files.pop("zarr.json")
        return
    group = "table/zarr.json" if where == "table" else f"scans/{pick(rng, draft.scans)}/zarr.json"
    draft.document(group)["attributes"]["manifest"][chosen] = entry
    if where == "table" and rng.random() < 0.5:
        draft.files.pop(TABLE_BUNDLE)


def lie_in_ledger(draft: Draft) -> None:
    """Put values into the ledger or the findings that no ingest and no audit wrote."""
    rng = draft.rng
    if rng.random() < 0.5:
        document = draft.document("ingest/zarr.json")
        part = {
            "files": pick(rng, ("0-99999999999", "5-1", "-1", "0-9 0-9", *TEXTS)),
            "key": pick(rng, TEXTS),
            "number": pick(rng, (None, *NUMBERS)),
            "texts": {pick(rng, TEXTS): pick(rng, TEXTS)},
            "reason": pick(rng, TEXTS),
            "detail": pick(rng, TEXTS),
        }
        document["attributes"]["folders"][pick(rng, TEXTS)] = {"is_scan": True, "parts": [part]}
        scans = document["attributes"]["scans"]
        scans[pick(rng, TEXTS)] = dict(scans["a"])
        draft.note(f"ledger: {str(part)[:100]}")
        return
    identity = draft.document("ingest/zarr.json")["attributes"]["scans"]["a"]["identity"]
    finding = {
        "rule": pick(rng, TEXTS),
        "severity": pick(rng, ("info", "error", "fatal")),
        "vertebra": pick(rng, (None, *TEXTS)),
        "text": pick(rng, TEXTS),
        "voxel_zyx": pick(rng, (None, *SHAPES)),
        "position_xyz_mm": pick(rng, (None, [0.0, 1e308, raw(0)])),
        "facts": {pick(rng, TEXTS): pick(rng, (*TEXTS, *NUMBERS))},
        "others": {pick(rng, TEXTS): pick(rng, TEXTS)},
    }
    scans = {"a": {"identity": identity, "findings": [finding]}, pick(rng, TEXTS): 1}
    if rng.random() < 0.8:
        del scans[list(scans)[-1]]
    attributes = {"scans": scans, "metadata_crc32c": "00000000"}
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    draft.files["audit/zarr.json"] = written(document)
    draft.note(f"audit: {str(finding)[:100]}")


def lie_in_bytes(draft: Draft) -> None:
    """Damage the bytes of a file; in most cases its checksums are correct."""
    rng = draft.rng
    key = pick(rng, list(draft.files))
    data = bytearray(draft.files[key])
    way = pick(rng, ("flip", "flip", "cut", "extend", "zero", "empty", "other", "grow", "twice"))
    draft.note(f"{key}: {way}")
    if way == "flip":
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(len(data)))
            data[at] = data[at] ^ (1 << int(rng.integers(8)))
    elif way == "cut":
        del data[int(rng.integers(len(data))) :]
    elif way == "extend":
        data += rng.integers(0, 256, int(pick(rng, (1, 16, 5000))), np.uint8).tobytes()
    elif way == "zero":
        data[:] = bytes(len(data))
    elif way == "empty":
        data.clear()
    elif way == "other":
        data[:] = draft.files[pick(rng, list(draft.files))]
    elif way == "twice":
        data *= 2
    else:
        draft.nodes[key] = Node("grown", pick(rng, ("100", "100", "3000")))
        return
    seals = rng.random()
    draft.files[key] = bytes(data) if seals < 0.2 else sealed(bytes(data))
    if seals < 0.2:
        draft.keeps_manifest = True


LINKS = (
    *("file outside", "folder outside", "copy outside", "/dev/zero", "/dev/full", "/dev/null"),
    *("new file outside", "loop", "itself", "same store", "hard", "fifo", "socket", "folder"),
    *("file", "locked", "file outside", "/dev/zero", "fifo", "up"),
)
NEW_NAMES = (
    *("ingest.lock",) * 6,
    *("zarr.json.partial", "table/zarr.json.partial", "scans/a/zarr.json.partial", "ingest.late"),
    *("scans/c", "scans/c", "scans/c/zarr.json", "scans/c/image", "scans/c/image/c/0/0/0"),
    *("table_bundle/zarr.json.partial", "ingest/zarr.json.partial", "audit", "audit/zarr.json"),
    *("scans/a/image/c.0.0.0", "scans/a/label/c.0.0.0", "table/scan/c.0", "scans/a/extra"),
    *("scans/a/image/extra", "extra", "audit/zarr.json.partial", "scans/a/x/c.0"),
)


def lie_in_links(draft: Draft) -> None:
    """Put a link or a special file in place of a file or folder, or next to them."""
    rng = draft.rng
    for _ in range(1 if rng.random() < 0.8 else 3):
        files = list(draft.files)
        folders = sorted(
            {"/".join(k.split("/")[:n]) for k in files for n in range(1, k.count("/") + 1)}
        )
        named = [k for k in files if k.endswith("zarr.json") and k.count("/") < 3]
        key = pick(rng, pick(rng, (named, named, files, folders, list(NEW_NAMES), list(NEW_NAMES))))
        kind = pick(rng, LINKS)
        draft.note(f"{key} is {kind}")
        draft.nodes[key] = Node(kind, pick(rng, files))


LIES: dict[Callable[[Draft], None], int] = {
    lie_in_field: 6,
    lie_in_array: 4,
    lie_about_type: 2,
    lie_about_blocks: 3,
    lie_about_chunks: 2,
    lie_about_shape: 2,
    lie_in_chunk_table: 2,
    lie_in_chunk: 5,
    lie_in_column: 2,
    lie_in_table: 4,
    lie_in_texts: 2,
    lie_about_name: 2,
    lie_about_place: 2,
    lie_about_labels: 3,
    lie_in_manifest: 3,
    lie_in_ledger: 1,
    lie_in_bytes: 4,
    lie_in_links: 6,
}
"""Relative frequency of each lie."""
_WEIGHTED = [lie for lie, weight in LIES.items() for _ in range(weight)]


def lying_store(bases: Sequence[Base], number: int, store: Path, canary: Path) -> Draft:
    """Write the store of a number, and return its draft."""
    rng = np.random.default_rng([77, number])
    base = bases[int(rng.integers(len(bases)))]
    draft = Draft(base, rng, canary)
    if rng.random() < 0.3:
        attributes = {"scans": {}, "metadata_crc32c": "00000000"}
        group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        draft.files["audit/zarr.json"] = written(group)
    for _ in range(1 if rng.random() < 0.8 else 2):
        lie = pick(rng, _WEIGHTED)
        draft.said.append(lie.__name__)
        try:
            lie(draft)
        except (ValueError, KeyError, IndexError, TypeError) as problem:
            # An earlier lie has removed the target of this one.
            draft.note(f"nothing: {problem!r}")
    draft.finish()
    _write(draft, store)
    return draft


def _write(draft: Draft, store: Path) -> None:
    for key, data in draft.files.items():
        path = store / key
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except (OSError, ValueError):  # a name that is too long
            continue
    for key, node in draft.nodes.items():
        try:
            _put(draft, store, store / key, node)
        except (OSError, ValueError) as problem:
            draft.note(f"no {node.kind}: {type(problem).__name__}")


def _put(draft: Draft, store: Path, path: Path, node: Node) -> None:  # noqa: C901, PLR0912  one branch a kind
    """Replace a file or folder by a link or a special file."""
    outside = draft.canary.parent
    if node.kind == "grown":
        with path.open("r+b") as file:
            file.truncate(int(node.to) << 20)
        return
    if node.kind == "locked":
        path.chmod(0)
        return
    if node.kind == "copy outside":
        # The content is the same, but it lies elsewhere.
        copy = outside / "copy"
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copyfile(path, copy)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if node.kind == "hard":
        os.link(draft.canary, path)
    elif node.kind == "fifo":
        os.mkfifo(path)
    elif node.kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))
    elif node.kind == "folder":
        path.mkdir()
    elif node.kind == "file":
        path.write_bytes(b"a file")
    else:
        targets = {
            "file outside": str(draft.canary),
            "folder outside": str(outside / "home"),
            "copy outside": str(outside / "copy"),
            "new file outside": str(outside / "home" / "new"),
            "loop": str(path.parent),
            "itself": path.name,
            "same store": str(store / node.to),
            "up": "../" * 4,
        }
        path.symlink_to(targets.get(node.kind, node.kind))
