"""Compares size, decoding speed and patch speed of chunk codecs and chunk shapes, on CT and mask.

Every candidate encodes the chunks of the same scans, which are read back and compared voxel by
voxel. Then each candidate decodes all chunks and reads the same random patches once in each round.
Speeds are those of one core: bytes of the volume, or patches, per processor time of the thread,
which a busy machine changes less than wall time. The results are ratios to the default codec in the
same round. As in a store, background chunks of masks are not stored, and the crc32c of every chunk
is checked before it is decoded.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from common import machine, phantom_pair
from draws import boxes
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numcodecs import Blosc, Delta, GZip, Shuffle, Zstd, blosc
from numcodecs.pcodec import PCodec
from rich.console import Console
from rich.table import Table

from spinezarr.geometry import Box, ShapeZYX
from spinezarr.store.blocks import BlockCoding, encode_blocks
from spinezarr.store.layout import PROFILES, BloscCodecSpec, chunk_grid, fill_value
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.store.sharding import CHECKSUM_BYTES, crc32c, index_bytes
from spinezarr.stream.read.plan import plan_reads

Voxels = np.ndarray[Any, Any]

SHAPES: tuple[ShapeZYX, ...] = (
    (64, 32, 32), (64, 48, 48), (64, 64, 64), (64, 64, 32), (32, 48, 48), (32, 32, 32),
)  # fmt: skip
KINDS = {"128^3": 6, "96^3": 12, "axial": 4, "sagittal": 4}
"""Number of patches of each kind that every candidate reads in a turn."""
SLOW = frozenset({"blosc zstd 9 byte", "gzip 6", "pcodec 12", "delta, shuffle, zstd 9"})
"""Codecs that are measured only with the chunk shapes of the profiles."""
MASK_CODEC = "blosc zstd 5 -"
"""Codec of the mask if the image codec does not support uint8."""
COLORS = {
    "blosc lz4": "#6baed6", "blosc lz4hc": "#08519c", "blosc zstd": "#d94801", "zstd": "#fdae6b",
    "gzip": "#969696", "numcodecs": "#74c476", "pcodec": "#6a3d9a",
}  # fmt: skip
HALO = [withStroke(linewidth=3, foreground="white")]
CONSOLE = Console(width=140)
KIB = 1024
BLOSC: tuple[tuple[Any, ...], ...] = (
    ("lz4", 5, "bitshuffle", 16 * KIB), ("lz4", 5, "shuffle", 0), ("lz4", 5, "noshuffle", 0),
    ("lz4hc", 3, "shuffle", 0), ("lz4hc", 5, "shuffle", 0), ("lz4hc", 7, "shuffle", 0),
    ("lz4hc", 9, "shuffle", 16 * KIB), ("lz4hc", 9, "shuffle", 0), ("lz4hc", 9, "bitshuffle", 0),
    ("zstd", 1, "shuffle", 1024 * KIB), ("zstd", 3, "shuffle", 16 * KIB),
    ("zstd", 3, "shuffle", 32 * KIB), ("zstd", 3, "shuffle", 1024 * KIB),
    ("zstd", 5, "shuffle", 64 * KIB), ("zstd", 5, "shuffle", 0), ("zstd", 6, "shuffle", 0),
    ("zstd", 7, "shuffle", 0), ("zstd", 8, "shuffle", 128 * KIB), ("zstd", 9, "shuffle", 0),
    ("zstd", 5, "bitshuffle", 1024 * KIB), ("zstd", 8, "noshuffle", 0),
)  # fmt: skip
"""Compressor, level, shuffle, and block size in bytes; Blosc chooses the size if it is 0."""
SPECIFIED = frozenset({"blosc lz4", "blosc lz4hc", "blosc zstd", "zstd", "gzip"})
"""Codec families in the Zarr v3 specification."""
SHUFFLES = {"noshuffle": "-", "shuffle": "byte", "bitshuffle": "bit"}


@dataclass(frozen=True, slots=True)
class Codec:
    """Functions that encode and decode a chunk."""

    name: str
    family: str
    encode: Callable[[Voxels], bytes]
    decode: Callable[[bytes, Voxels], object]


def blosc_name(spec: BloscCodecSpec) -> str:
    """Return a short name of a Blosc codec; blocks of 0 KiB mean Blosc's own choice."""
    size = f" {spec.blocksize // 1024}K" if spec.blocksize else ""
    return f"blosc {spec.cname} {spec.clevel} {SHUFFLES[spec.shuffle]}{size}"


def blosc_codec(spec: BloscCodecSpec) -> Codec:
    """Return a candidate of C-Blosc 1."""
    shuffle = list(SHUFFLES).index(spec.shuffle)
    codec = Blosc(spec.cname, spec.clevel, shuffle, spec.blocksize)
    return Codec(blosc_name(spec), f"blosc {spec.cname}", codec.encode, blosc.decompress)


def stored_codec(spec: BloscCodecSpec) -> Codec:
    """Return a codec as a store uses it: in blocks, each with a checksum."""

    def encode(chunk: Voxels) -> bytes:
        return encode_blocks(chunk, spec)[:-CHECKSUM_BYTES]

    return Codec(blosc_name(spec), f"blosc {spec.cname}", encode, blosc.decompress)


def chain(name: str, family: str, *codecs: Any) -> Codec:  # noqa: ANN401
    """Return a candidate that chains codecs of numcodecs."""

    def encode(chunk: Voxels) -> bytes:
        data: Any = chunk
        for codec in codecs:
            data = codec.encode(data)
        return bytes(data)

    def decode(data: bytes, out: Voxels) -> None:
        value: Any = data
        for codec in codecs[:0:-1]:
            value = codec.decode(value)
        if len(codecs) > 1:
            out.reshape(-1)[...] = np.asarray(codecs[0].decode(value)).view(out.dtype).reshape(-1)
        else:
            codecs[0].decode(value, out)

    return Codec(name, family, encode, decode)


def candidates(itemsize: int, *, quick: bool) -> list[Codec]:
    """Return all candidates for voxels of ``itemsize`` bytes, the reference first."""
    chosen = [
        *(stored_codec(spec) for spec in dict.fromkeys(_profile_codecs())),
        blosc_codec(BloscCodecSpec("lz4hc", 9, "bitshuffle", 16 * KIB)),
        blosc_codec(BloscCodecSpec("zstd", 5, "noshuffle", 0)),
        chain("zstd 3", "zstd", Zstd(3)),
    ]
    if not quick:
        chosen += [blosc_codec(BloscCodecSpec(*values)) for values in BLOSC]
        chosen += [
            chain("gzip 6", "gzip", GZip(6)),
            chain("zstd 9", "zstd", Zstd(9)),
            chain("shuffle, zstd 9", "numcodecs", Shuffle(itemsize), Zstd(9)),
        ]
    if itemsize > 1:
        chosen += [
            chain(
                "delta, shuffle, zstd 9", "numcodecs", Delta(f"<i{itemsize}"), Shuffle(2), Zstd(9)
            ),
            chain("pcodec 8", "pcodec", PCodec(8)),
        ]
        if not quick:
            chosen += [chain(f"pcodec {level}", "pcodec", PCodec(level)) for level in (4, 12)]
    by_name: dict[str, Codec] = {}
    for codec in chosen:
        by_name.setdefault(codec.name, codec)
    return list(by_name.values())


def _profile_codecs() -> Iterator[BloscCodecSpec]:
    for profile in PROFILES.values():
        yield from (profile.image, profile.label)


@dataclass(frozen=True, slots=True)
class Source:
    """An array of a scan, and the size of its file."""

    scan: str
    array: str
    voxels: Voxels
    source_bytes: int


def load(scan: str, array: str, path: Path) -> Source:
    """Read a NIfTI file into the voxels that an ingest stores."""
    image = nib.as_closest_canonical(nib.load(path))
    voxels = np.asanyarray(image.dataobj).transpose(2, 1, 0)
    dtype = np.dtype(np.int16 if array == "image" else np.uint8)
    if not np.array_equal(voxels.astype(dtype), voxels):
        raise SystemExit(f"{path}: does not fit {dtype}")
    return Source(scan, array, np.ascontiguousarray(voxels, dtype), path.stat().st_size)


def cut_chunks(source: Source, shape_zyx: ShapeZYX) -> Iterator[tuple[ShapeZYX, Voxels]]:
    """Yield the chunks that a store holds, with its padding."""
    fill = fill_value(source.array, source.voxels.dtype)
    for index in product(*map(range, chunk_grid(source.voxels.shape, shape_zyx))):
        slices = tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, shape_zyx, strict=True))
        voxels = source.voxels[slices]
        if source.array == "label" and not voxels.any():
            continue
        chunk = np.full(shape_zyx, fill, source.voxels.dtype)
        chunk[tuple(slice(0, n) for n in voxels.shape)] = voxels
        yield index, chunk


class EncodedArray:
    """A source encoded by one codec with one chunk shape."""

    def __init__(self, source: Source, shape_zyx: ShapeZYX, codec: Codec) -> None:
        self.codec = codec
        self._source = source
        chunks = list(cut_chunks(source, shape_zyx))
        started = time.thread_time()
        encoded = [codec.encode(chunk) for _, chunk in chunks]
        self.encode_s = time.thread_time() - started
        self._chunks = {
            index: (data, crc32c(data)) for (index, _), data in zip(chunks, encoded, strict=True)
        }
        shape = source.voxels.shape
        shard = tuple(n * c for n, c in zip(chunk_grid(shape, shape_zyx), shape_zyx, strict=True))
        dtype, chunk_bytes = source.voxels.dtype, int(np.prod(shape_zyx)) * source.voxels.itemsize
        # Only the plan is used: chunks are decoded whole.
        coding = BlockCoding(chunk_bytes, chunk_bytes, dtype.itemsize, False, False)
        self._spec = ArraySpec(
            source.scan, source.array, "", shape, dtype, shape_zyx, shard, {}, "/", coding, {}
        )
        self._out = np.empty(shape_zyx, source.voxels.dtype)
        n_chunks = int(np.prod(chunk_grid(shape, shape_zyx)))
        self.stored_bytes = sum(len(data) + 4 for data in encoded) + index_bytes(n_chunks)
        whole = Box((0, 0, 0), shape)
        if not np.array_equal(self.read(whole), source.voxels):
            raise AssertionError(f"{codec.name} does not decode to the same voxels")

    def _decode(self, index: ShapeZYX) -> Voxels:
        data, checksum = self._chunks[index]
        if crc32c(data) != checksum:
            raise AssertionError("a chunk is damaged")
        self.codec.decode(data, self._out)
        return self._out

    def decode_all(self) -> float:
        """Decode every chunk, and return the processor time in seconds."""
        started = time.thread_time()
        for index in self._chunks:
            self._decode(index)
        return time.thread_time() - started

    def read(self, box: Box) -> Voxels:
        """Read a box with any codec: plan, decode whole chunks, copy parts."""
        out = np.empty(box.shape_zyx, self._source.voxels.dtype)
        plan = plan_reads([(self._spec, box)])
        for chunk in range(len(plan)):
            index = plan.chunk_index(chunk)
            ((_, within_chunk, within_box),) = plan.pieces(chunk)
            is_stored = index in self._chunks
            values = self._decode(index)[within_chunk.slices] if is_stored else 0
            out[within_box.slices] = values
        return out

    def read_all(self, patches: Iterable[Box]) -> float:
        """Read patches, and return the processor time in seconds."""
        started = time.thread_time()
        for box in patches:
            self.read(box)
        return time.thread_time() - started


def spread(seconds: list[float], amount: float) -> dict[str, float]:
    """Return median, lowest and highest of ``amount`` per second."""
    rates = [amount / max(s, 1e-9) for s in seconds]
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}


def measure(
    source: Source, shape_zyx: ShapeZYX, codecs: list[Codec], rounds: int
) -> list[dict[str, Any]]:
    """Measure all codecs once in each round, on one source and chunk shape."""
    arrays = [EncodedArray(source, shape_zyx, codec) for codec in codecs]
    decode_s: list[list[float]] = [[] for _ in arrays]
    patch_s: list[dict[str, list[float]]] = [{kind: [] for kind in KINDS} for _ in arrays]
    for turn in range(rounds):
        for array, seconds in zip(arrays, decode_s, strict=True):
            seconds.append(array.decode_all())
        for kind, n in KINDS.items():
            patches = boxes(kind, source.voxels.shape, turn, n)
            for array, by_kind in zip(arrays, patch_s, strict=True):
                by_kind[kind].append(array.read_all(patches))
    reference_s = statistics.median(decode_s[0])
    return [
        {
            "scan": source.scan,
            "array": source.array,
            "chunk_shape_zyx": shape_zyx,
            "codec": array.codec.name,
            "family": array.codec.family,
            "specified": array.codec.family in SPECIFIED,
            "stored_bytes": array.stored_bytes,
            "source_bytes": source.source_bytes,
            "encode_mb_s": source.voxels.nbytes / 1e6 / array.encode_s,
            "decode_mb_s": spread(seconds, source.voxels.nbytes / 1e6),
            "decode_times_reference": reference_s / statistics.median(seconds),
            "patches_s": {kind: spread(times, KINDS[kind]) for kind, times in by_kind.items()},
        }
        for array, seconds, by_kind in zip(arrays, decode_s, patch_s, strict=True)
    ]


def join_rows(rows: list[dict[str, Any]], scan: str) -> list[dict[str, Any]]:
    """Join each image row of a scan with that of its mask; bytes and times add up."""
    label_rows = {
        (tuple(row["chunk_shape_zyx"]), row["codec"]): row
        for row in rows
        if (row["scan"], row["array"]) == (scan, "label")
    }
    return [
        _join(row, label_rows, row["codec"])
        for row in rows
        if (row["scan"], row["array"]) == (scan, "image")
    ]


def _join(
    image: dict[str, Any], label_rows: dict[tuple[ShapeZYX, str], dict[str, Any]], mask_codec: str
) -> dict[str, Any]:
    shape = tuple(image["chunk_shape_zyx"])
    label = label_rows.get((shape, mask_codec), label_rows.get((shape, MASK_CODEC)))
    rows = [image] if label is None else [image, label]

    def joint_rate(rate: Callable[[dict[str, Any]], float]) -> float:
        return 1 / sum(1 / rate(row) for row in rows)

    return {
        "codec": image["codec"],
        "mask_codec": None if label is None else label["codec"],
        "family": image["family"],
        "specified": image["specified"],
        "chunk_shape_zyx": shape,
        "size": sum(r["stored_bytes"] for r in rows) / sum(r["source_bytes"] for r in rows),
        "encode_mb_s": image["encode_mb_s"],
        "decode_mb_s": image["decode_mb_s"]["median"],
        "patches_s": {
            kind: joint_rate(lambda row, kind=kind: row["patches_s"][kind]["median"])
            for kind in KINDS
        },
    }


def frontier(points: list[dict[str, Any]], speed: Callable[[dict[str, Any]], float]) -> list[int]:
    """Return the points for which no other is both smaller and faster, smallest first."""
    order = sorted(range(len(points)), key=lambda i: (points[i]["size"], -speed(points[i])))
    fastest, indices = 0.0, []
    for i in order:
        if speed(points[i]) > fastest:
            fastest = speed(points[i])
            indices.append(i)
    return indices


def profile_names(points: list[dict[str, Any]]) -> dict[int, str]:
    """Return the names of the profiles whose image codecs are points, by index of the point."""
    names_by_point: dict[int, list[str]] = {}
    for profile in PROFILES.values():
        key = (blosc_name(profile.image), profile.chunk_shape_zyx)
        for i, point in enumerate(points):
            if (point["codec"], point["chunk_shape_zyx"]) == key:
                names_by_point.setdefault(i, []).append(profile.name)
    return {i: " = ".join(names) for i, names in names_by_point.items()}


def parse_scan(text: str) -> tuple[str, Path, Path | None]:
    """Split ``CT.nii.gz,MASK.nii.gz`` or ``CT.nii.gz``."""
    image, _, label = text.partition(",")
    name = Path(image).name.removesuffix(".nii.gz").removesuffix("_ct")
    return name, Path(image), Path(label) if label else None


def measure_scan(
    name: str, image: Path, label: Path | None, options: argparse.Namespace, *, is_first: bool
) -> list[dict[str, Any]]:
    """Measure the first scan with every chunk shape, and others with those of the profiles."""
    of_profiles = tuple(dict.fromkeys(profile.chunk_shape_zyx for profile in PROFILES.values()))
    all_shapes = tuple(dict.fromkeys((*of_profiles, *SHAPES)))
    shapes = all_shapes if is_first and not options.quick else of_profiles
    sources = [load(name, "image", image)]
    if label is not None:
        sources.append(load(name, "label", label))
    rows = []
    for source, shape in product(sources, shapes):
        CONSOLE.log(f"{name} {source.array} {shape}")
        codecs = candidates(source.voxels.itemsize, quick=options.quick)
        if shape not in of_profiles:
            codecs = [codec for codec in codecs if codec.name not in SLOW]
        rows += measure(source, shape, codecs, options.rounds)
    return rows


def print_points(points: list[dict[str, Any]], scan: str) -> None:
    """Print image and mask together, smallest first; a star marks a profile."""
    names = profile_names(points)
    reference = next(p for p in points if p["codec"] == points[0]["codec"])
    table = Table(
        "codec", "chunk z, y, x", "size", "encode MB/s", "decode MB/s", *KINDS, title=scan
    )
    for i in sorted(range(len(points)), key=lambda i: points[i]["size"]):
        point = points[i]
        table.add_row(
            point["codec"] + (f"  * {names[i]}" if i in names else ""),
            " x ".join(map(str, point["chunk_shape_zyx"])),
            f"{point['size']:.3f}",
            f"{point['encode_mb_s']:.0f}",
            f"{point['decode_mb_s']:.0f}",
            *(f"{point['patches_s'][k] / reference['patches_s'][k]:.2f} x" for k in KINDS),
            style=None if point["specified"] else "dim",
        )
    CONSOLE.print(table)


def draw(points: list[dict[str, Any]], scan: str, path: Path) -> None:
    """Draw size against speeds, up to the size of the source, with names on the frontier."""
    figure = Figure((12, 6.2), dpi=90, facecolor="white", layout="constrained")
    panels = figure.subplots(1, 2)
    _draw_panel(panels[0], points, lambda p: p["decode_mb_s"], "decoded MB/s of one core")
    _draw_panel(
        panels[1], points, lambda p: p["patches_s"]["128^3"], "128³ patches a second of one core"
    )
    panels[0].legend(loc="upper left", fontsize=8, title="large: chunk shape of the profiles")
    figure.suptitle(f"{scan}, image and mask: smaller to the left, faster to the top", fontsize=11)
    figure.savefig(path)


def _draw_panel(
    axes: Axes, points: list[dict[str, Any]], speed: Callable[[dict[str, Any]], float], text: str
) -> None:
    profile_shapes = {profile.chunk_shape_zyx for profile in PROFILES.values()}
    for family, color in COLORS.items():
        for is_large in (True, False):
            chosen = [
                p
                for p in points
                if p["family"] == family and (p["chunk_shape_zyx"] in profile_shapes) == is_large
            ]
            axes.scatter(
                [p["size"] for p in chosen],
                [speed(p) for p in chosen],
                s=38 if is_large else 10,
                alpha=0.9 if is_large else 0.4,
                color=color,
                linewidths=0,
                label=family if is_large and chosen else None,
            )
    on_frontier = frontier(points, speed)
    xs, ys = [points[i]["size"] for i in on_frontier], [speed(points[i]) for i in on_frontier]
    axes.step(xs, ys, where="post", color="0.55", linewidth=1, zorder=0)
    for i, name in profile_names(points).items():
        xy = (points[i]["size"], speed(points[i]))
        axes.scatter(*xy, s=190, marker="*", color="black", zorder=4)
        axes.annotate(
            name,
            xy,
            (12, -4),
            textcoords="offset points",
            weight="bold",
            fontsize=11,
            path_effects=HALO,
        )
    line_height = max(ys) / 28
    label_ys = [speed(points[i]) for i in profile_names(points)]
    for i in on_frontier:
        point = points[i]
        z, y, x = point["chunk_shape_zyx"]
        xy = (point["size"], speed(point))
        if any(abs(xy[1] - label_y) < line_height for label_y in label_ys):
            continue
        label_ys.append(xy[1])
        axes.annotate(
            f"{point['codec'].removeprefix('blosc ')}, {z}·{y}·{x}",
            xy,
            (7, -3),
            textcoords="offset points",
            fontsize=8,
            color="0.2",
            path_effects=HALO,
        )
    axes.set_xlabel("stored bytes / bytes of the .nii.gz files")
    axes.set_ylabel(text)
    axes.set_ylim(bottom=0)
    axes.set_xlim(right=1.02)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)


def main() -> None:
    """Measure, print a table, write JSON and a plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "scans", nargs="*", help="CT.nii.gz,MASK.nii.gz or CT.nii.gz (default: a phantom)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="measure few candidates and one chunk shape"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--png", type=Path, help="file for the chart of the first scan")
    parser.add_argument("--again", type=Path, help="show the figures of an earlier --json")
    options = parser.parse_args()
    blosc.set_nthreads(1)
    if options.again:
        rows = json.loads(options.again.read_text())["rows"]
    else:
        rows = measure_scans([parse_scan(text) for text in options.scans], options)
    first = rows[0]["scan"]
    points = join_rows(rows, first)
    print_points(points, first)
    if options.png:
        draw(points, first, options.png)


def measure_scans(
    scans: list[tuple[str, Path, Path | None]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure scans, and a phantom; write the figures after each."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        if not options.quick or not scans:
            scans.append(("phantom", *phantom_pair(Path(folder))))
        for name, image, label in scans:
            rows += measure_scan(name, image, label, options, is_first=name == scans[0][0])
            if options.json:
                options.json.write_text(json.dumps({**machine(), "rows": rows}, indent=1))
    return rows


if __name__ == "__main__":
    main()
