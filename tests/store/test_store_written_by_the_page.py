"""A store written from ``docs/reference/store-format.md`` alone is read by spinezarr as its own.

The writer below uses nothing of the package. Its section numbers are those of the page.
"""

import base64
import hashlib
import json
import struct
import zlib
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import xarray as xr
from numcodecs import blosc, lz4, zstd

import spinezarr
from spinezarr.verify.store import verify_store

PARTS = "vertebra_parts"
"""Name of the further mask of each scan."""
CHUNK, PER_SHARD = (8, 6, 4), (2, 1, 2)
"""Chunk shape, and chunks per shard, which spinezarr itself does not write."""
LEVELS = [
    *(f"C{n}" for n in range(1, 8)),
    *(f"T{n}" for n in range(1, 14)),
    *(f"L{n}" for n in range(1, 7)),
    *("S1", "S2", "sacrum", "coccyx"),
]
SPACING_ZYX, ORIGIN_ZYX = (2.5, 0.5, 0.75), (-40.0, 3.0, 7.5)


def as_json(value, **options):
    return json.dumps(value, **options).encode()


def crc32c(data):
    return google_crc32c.value(bytes(data))


def ended(data):
    """Append the CRC-32C of data to it."""
    return data + crc32c(data).to_bytes(4, "little")


def sealed(group):
    """Seal the metadata of a group (section 4)."""
    checksum = f"{crc32c(as_json(group)):08x}"
    return as_json({**group, "attributes": {**group["attributes"], "metadata_crc32c": checksum}})


def group_of(attributes, members=None):
    group = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    if members is None:
        return group
    together = {"kind": "inline", "must_understand": False, "metadata": members}
    return {**group, "consolidated_metadata": together}


def array_of(shape, chunks, data_type, fill, codecs, names, attributes):
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": attributes,
        "dimension_names": list(names),
    }


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
CRC32C = {"name": "crc32c"}


def blosc_codec(itemsize, block_bytes=0, shuffle="noshuffle"):
    options = {"typesize": itemsize, "cname": "lz4", "clevel": 1, "shuffle": shuffle}
    return {"name": "blosc", "configuration": {**options, "blocksize": block_bytes}}


def packed(values):
    """Encode values of a small array as a chunk with its checksum (section 8.1)."""
    values = np.ascontiguousarray(values)
    return ended(bytes(blosc.compress(values, b"lz4", 1, 0, 0, values.itemsize)))


def u32(*numbers):
    return struct.pack(f"<{len(numbers)}I", *numbers)


def block_bytes_of(dtype):
    """Return the bytes of two planes of int16, and of one plane of a mask."""
    return CHUNK[1] * CHUNK[2] * (4 if dtype.itemsize == 2 else 1)


def chunk_of_blocks(voxels):
    """Encode a chunk of image or mask; return it with its row of the manifest (sections 8.1, 6.3).

    Every other block is compressed, if that makes it smaller.
    """
    size, itemsize = block_bytes_of(voxels.dtype), voxels.itemsize
    content = voxels.tobytes()
    seal, blocks = crc32c(content), []
    n_streams = itemsize if size >= 128 * itemsize else 1
    for number, start in enumerate(range(0, len(content), size)):
        block = np.frombuffer(content[start : start + size], np.uint8)
        if itemsize > 1:  # shuffled
            block = block.reshape(-1, itemsize).T.ravel()
        streams = b""
        for part in np.split(block, n_streams):
            stream = lz4.compress(part.tobytes())[4:]  # numcodecs puts the size before it
            if number % 2 or len(stream) >= part.nbytes:
                stream = part.tobytes()
            streams += u32(len(stream)) + stream
        blocks.append(streams + u32(crc32c(u32(seal, number) + streams)))
    ends = (20 + 4 * len(blocks) + np.cumsum([0, *map(len, blocks)])).tolist()
    flags = (itemsize > 1) + 16 * (n_streams == 1) + 32
    header = bytes([2, 1, flags, itemsize]) + u32(len(content), size, ends[-1])
    chunk = ended(header + u32(*ends[:-1], seal) + b"".join(blocks))
    return chunk, u32(seal) + np.array([len(block) for block in blocks], "<u2").tobytes()


def entry_of(data):
    return {"size_bytes": len(data), "crc32": f"{zlib.crc32(data):08x}"}


def grid(shape, block):
    return [-(-n // b) for n, b in zip(shape, block, strict=True)]


def chunks_of(volume, fill, shape=CHUNK):
    """Yield index and voxels of each chunk in C order, padded."""
    for index in np.ndindex(*grid(volume.shape, shape)):
        whole = np.full(shape, fill, volume.dtype)
        start = [i * n for i, n in zip(index, shape, strict=True)]
        part = volume[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]
        whole[tuple(map(slice, part.shape))] = part
        yield index, whole


def shards_of(name, volume, fill, *, skips_background):
    """Yield key, bytes and manifest entry of each shard (sections 6.3 and 8.2)."""
    shards = {}
    for index, voxels in chunks_of(volume, fill):
        if skips_background and not voxels.any():
            continue
        shard = tuple(i // n for i, n in zip(index, PER_SHARD, strict=True))
        inside = [i % n for i, n in zip(index, PER_SHARD, strict=True)]
        position = int(np.ravel_multi_index(inside, PER_SHARD))
        shards.setdefault(shard, {})[position] = chunk_of_blocks(voxels)
    for shard, chunks in shards.items():
        index = np.full((np.prod(PER_SHARD), 2), 2**64 - 1, "<u8")
        rows, offset, data = b"", 0, b""
        for position in sorted(chunks):
            chunk, row = chunks[position]
            index[position] = offset, len(chunk)
            rows += u32(position) + row
            data += chunk
            offset += len(chunk)
        data += ended(index.tobytes())
        more = {
            "index_offset": offset,
            "index_crc32c": f"{crc32c(index.tobytes()):08x}",
            "chunks": base64.b64encode(rows).decode(),
        }
        yield f"{name}/c/" + "/".join(map(str, shard)), data, {**entry_of(data), **more}


def digest(data):
    return hashlib.sha256(data).hexdigest()[:32]


def sharded(volume, fill, attributes):
    shuffle = "noshuffle" if volume.itemsize == 1 else "shuffle"
    blosc = blosc_codec(volume.itemsize, block_bytes_of(volume.dtype), shuffle)
    inner = [BYTES, blosc, CRC32C]
    sharding = {"chunk_shape": list(CHUNK), "codecs": inner, "index_codecs": [BYTES, CRC32C]}
    codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    shape = [c * n for c, n in zip(CHUNK, PER_SHARD, strict=True)]
    name = volume.dtype.name
    return array_of(volume.shape, shape, name, fill, codecs, "zyx", attributes)


def small(values, names, attributes):
    codecs = [BYTES, blosc_codec(values.itemsize), CRC32C]
    shape = values.shape
    return array_of(shape, shape, values.dtype.name, 0, codecs, names, attributes)


def image_checksum(values, fill, chunk_shape):
    """Return the checksum of an image (section 8.5)."""
    checksums = [crc32c(chunk.tobytes()) for _, chunk in chunks_of(values, fill, chunk_shape)]
    return digest(np.array(checksums, "<u4").tobytes())


def content_checksum(scan):
    """Return the checksum of a scan's contents (section 8.5)."""
    mask = sorted(
        [key.replace(".", "/"), entry["size_bytes"], entry["crc32"]]
        for key, entry in scan["manifest"].items()
        if key.startswith(("label/c/", "label/c."))
    )
    grid = [scan[key] for key in ("shape_zyx", "affine", "image_dtype", "image_checksum")]
    return digest(as_json([*grid, mask]))


def mask_checksum(scan, name):
    """Return the checksum of a further mask (section 8.5)."""
    shards = sorted(
        [key.replace(".", "/"), entry["size_bytes"], entry["crc32"]]
        for key, entry in scan["manifest"].items()
        if key.startswith((f"{name}/c/", f"{name}/c."))
    )
    return digest(as_json([content_checksum(scan), shards]))


def identity_of(scan):
    """Return the identity of a scan (section 8.5)."""
    others = (f"{PARTS}/", f"sampling/{PARTS}_chunks/")
    manifest = {k: entry for k, entry in scan["manifest"].items() if not k.startswith(others)}
    kept = {key: value for key, value in scan.items() if key != "masks"}
    return digest(as_json({**kept, "manifest": manifest}, sort_keys=True))


def boxes_of(label):
    """Return count, center and box of each value."""
    found = {}
    for value in np.unique(label[label > 0]).tolist():
        at = np.argwhere(label == value)
        found[value] = {
            "voxel_count": len(at),
            "centroid_zyx": at.mean(0).tolist(),
            "start_zyx": at.min(0).tolist(),
            "stop_zyx": (at.max(0) + 1).tolist(),
        }
    return found


def counts_of(label):
    """Return the label counts of a mask (section 7.4)."""
    counts = [
        (value, *index, int((voxels == value).sum()))
        for index, voxels in chunks_of(label, 0)
        for value in np.unique(voxels[voxels > 0]).tolist()
    ]
    return np.array(sorted(counts), "<u4")


def write_scan(folder, scan_id, image, label, parts):
    """Write a scan and return its attributes (sections 6, 7 and 14)."""
    counts, part_counts = counts_of(label), counts_of(parts)
    z, y, x = SPACING_ZYX
    c, b, a = ORIGIN_ZYX
    affine = [[x, 0.0, 0.0, a], [0.0, y, 0.0, b], [0.0, 0.0, z, c], [0.0, 0.0, 0.0, 1.0]]
    values = sorted(np.unique(label[label > 0]).tolist())
    flags = {
        "long_name": "vertebra",
        "flag_values": [0, *values],
        "flag_meanings": " ".join(["background", *(f"L{value - 19}" for value in values)]),
    }
    part_flags = {
        "long_name": "vertebra parts",
        "flag_values": [0, 26, 41],
        "flag_meanings": "background upper_arch label_41",
    }
    directions = ("toward superior", "toward anterior", "toward the patient's right")
    columns = ["label", "chunk_z", "chunk_y", "chunk_x", "voxel_count"]
    members = {
        "image": sharded(image, -32768, {"long_name": "CT number", "units": "HU"}),
        "label": sharded(label, 0, flags),
        "sampling": group_of({}),
        "sampling/label_chunks": small(counts, ("entry", "column"), {"columns": columns}),
        PARTS: sharded(parts, 0, part_flags),
        f"sampling/{PARTS}_chunks": small(part_counts, ("entry", "column"), {"columns": columns}),
    }
    members[PARTS]["chunk_key_encoding"]["configuration"] = {"separator": "."}
    members[f"sampling/{PARTS}_chunks"]["chunk_key_encoding"]["configuration"] = {"separator": "."}
    files = {
        "sampling/label_chunks/c/0/0": packed(counts),
        f"sampling/{PARTS}_chunks/c.0.0": packed(part_counts),
    }
    axes = zip("zyx", image.shape, SPACING_ZYX, ORIGIN_ZYX, directions, strict=True)
    for axis, n, spacing, origin, direction in axes:
        positions = origin + spacing * np.arange(n)
        about = {"axis": axis.upper(), "long_name": direction, "units": "mm"}
        members[axis] = small(positions, (axis,), about)
        files[f"{axis}/c/0"] = packed(positions)
    files |= {f"{name}/zarr.json": as_json(metadata) for name, metadata in members.items()}
    manifest = {key: entry_of(data) for key, data in files.items()}
    for name, volume, fill, skips in (("image", image, -32768, False), ("label", label, 0, True)):
        for key, data, entry in shards_of(name, volume, fill, skips_background=skips):
            files[key], manifest[key] = data, entry
    for shard, data, entry in shards_of(PARTS, parts, 0, skips_background=True):
        key = f"{PARTS}/" + shard.partition("/")[2].replace("/", ".")
        files[key], manifest[key] = data, entry
    source = {
        "file": f"{scan_id}.nii.gz",
        "size_bytes": 5,
        "sha256": "0" * 64,
        "dtype": "int16",
        "shape_ijk": list(image.shape[::-1]),
        "affine_ijk": affine,
        "orientation": "RAS",
        "stored_dtype": "<i2",
        "scaling": None,
        "nifti": None,
        "metaimage": None,
    }
    attributes = {
        "dataset": "by-hand",
        "scan_id": scan_id,
        "patient_id": "P1",
        "source": "",
        "split": "train",
        "split_index": -1,
        "license": "CC0-1.0",
        "citation": "none",
        "affine": affine,
        "affine_columns": "x, y, z, 1",
        "shape_zyx": list(image.shape),
        "spacing_zyx_mm": list(SPACING_ZYX),
        "oblique_deg": 0.0,
        "label_state": "unknown",
        "image_dtype": "int16",
        "image_stored_dtype": "int16",
        "image_scaling": None,
        "image_range_hu": [float(image.min()), float(image.max())],
        "image_nan_voxels": 0,
        "image_infinite_voxels": 0,
        "image_checksum": image_checksum(image, -32768, CHUNK),
        "vertebrae": {f"L{value - 19}": box for value, box in boxes_of(label).items()},
        "other_labels": {},
        "structures": {},
        "centroids": {"L1": {"position_zyx_mm": [1.0, 2.0, 3.0], "label_distance_mm": 4.0}},
        "columns": {"scanner": "A", "erratum": "L2 is L3", "split": "fold 1"},
        "sidecar": {},
        "source_bytes": 10,
        "source_key": "",
        "image_source": {**source, "series": None},
        "label_source": {**source, "parts": [], "values": [], "rounded_voxels": 0},
        "centroid_source": None,
        "written_by": "a page",
        "notes": [],
        "masks": {
            PARTS: {
                "scheme": "custom",
                "labels": {
                    str(value): {**box, "name": {26: "upper arch", 41: ""}[value]}
                    for value, box in boxes_of(parts).items()
                },
                "license": "CC0-1.0",
                "author": "",
                "model": "by hand 1",
                "source": None,
                "source_key": "",
                "written_by": "a page",
                "notes": [],
            }
        },
        "manifest": manifest,
    }
    files["zarr.json"] = sealed(group_of(attributes, members))  # last: it makes the scan visible
    write(folder, files)
    return attributes


def write(folder, files):
    for key, data in files.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def texts(values):
    """Encode strings as vlen-utf8 (section 9)."""
    encoded = [value.encode() for value in values]
    lengths = [len(value).to_bytes(4, "little") for value in encoded]
    parts = [part for pair in zip(lengths, encoded, strict=True) for part in pair]
    return len(values).to_bytes(4, "little") + b"".join(parts)


def column_values(scans):
    """Return the values of each column, with its dimensions (section 9)."""
    shape = (len(scans), len(LEVELS))
    count, volume = np.zeros(shape, "i8"), np.full(shape, np.nan)
    center, annotated = np.full((*shape, 3), np.nan), np.full((*shape, 3), np.nan)
    distance = np.full(shape, np.nan)
    start, stop = np.full((*shape, 3), -1, "i4"), np.full((*shape, 3), -1, "i4")
    for row, scan in enumerate(scans):
        affine = np.array(scan["affine"])
        for name, box in scan["vertebrae"].items():
            at = row, LEVELS.index(name)
            count[at] = box["voxel_count"]
            volume[at] = box["voxel_count"] * abs(np.linalg.det(affine[:3, :3])) / 1000
            center[at] = (affine @ [*box["centroid_zyx"][::-1], 1])[2::-1]
            start[at], stop[at] = box["start_zyx"], box["stop_zyx"]
        for name, point in scan["centroids"].items():
            at = row, LEVELS.index(name)
            annotated[at], distance[at] = point["position_zyx_mm"], point["label_distance_mm"]

    def each(name, dtype=None):
        cells = [scan[name] for scan in scans]
        return ("scan",), cells if dtype is None else np.array(cells, dtype)

    by_axis, by_vertebra = ("scan", "axis"), ("scan", "vertebra")
    by_both = ("scan", "vertebra", "axis")
    stored = [sum(e["size_bytes"] for e in scan["manifest"].values()) for scan in scans]
    return {
        "scan": each("scan_id"),
        "vertebra": (("vertebra",), LEVELS),
        "axis": (("axis",), ["z", "y", "x"]),
        **{name: each(name) for name in ("patient_id", "source", "split")},
        "split_index": each("split_index", "i4"),
        "shape_zyx": (by_axis, each("shape_zyx", "i4")[1]),
        "spacing_zyx_mm": (by_axis, each("spacing_zyx_mm", "f8")[1]),
        "orientation": (("scan",), [scan["image_source"]["orientation"] for scan in scans]),
        **{name: each(name) for name in ("label_state", "image_dtype", "image_stored_dtype")},
        "image_min_hu": (("scan",), np.array([scan["image_range_hu"][0] for scan in scans])),
        "image_max_hu": (("scan",), np.array([scan["image_range_hu"][1] for scan in scans])),
        "image_nan_voxels": each("image_nan_voxels", "i8"),
        "image_infinite_voxels": each("image_infinite_voxels", "i8"),
        "other_label_voxels": (("scan",), np.zeros(len(scans), "i8")),
        "image_checksum": each("image_checksum"),
        "content_checksum": (("scan",), [content_checksum(scan) for scan in scans]),
        "masks": (("scan",), [PARTS for _ in scans]),
        "mask_checksums": (("scan",), [mask_checksum(scan, PARTS) for scan in scans]),
        "image_sha256": (("scan",), [scan["image_source"]["sha256"] for scan in scans]),
        "source_bytes": each("source_bytes", "i8"),
        "stored_bytes": (("scan",), np.array(stored, "i8")),
        "voxel_count": (by_vertebra, count),
        "volume_cm3": (by_vertebra, volume),
        "centroid_zyx_mm": (by_both, center),
        "annotated_centroid_zyx_mm": (by_both, annotated),
        "annotated_centroid_distance_mm": (by_vertebra, distance),
        "bbox_start_zyx": (by_both, start),
        "bbox_stop_zyx": (by_both, stop),
        "audit": (("scan",), [""] * len(scans)),
        "audit_findings": (("scan",), [""] * len(scans)),
        "anomaly": (("scan",), [""] * len(scans)),
        "erratum": (("scan",), [scan["columns"]["erratum"] for scan in scans]),
        "scanner": (("scan",), [scan["columns"]["scanner"] for scan in scans]),
        "split_in_source": (("scan",), [scan["columns"]["split"] for scan in scans]),
        **mask_column_values(scans),
    }


def mask_column_values(scans):
    """Return the columns of the only further mask, which has not been compared (section 9.1)."""
    n, by_mask, by_structure = len(scans), ("scan", "mask"), ("scan", "mask", "structure")
    facts = ("scheme", "license", "author", "model")
    texts_of = {
        f"mask_{fact}": (by_mask, [[scan["masks"][PARTS][fact]] for scan in scans])
        for fact in facts
    }
    not_compared = dict.fromkeys(("compared_with", "verdict", "verdict_text"), [[""]] * n)
    rates = dict.fromkeys(("mask_dice", "mask_identification_rate"), np.full((n, 1), np.nan))
    names = {"41": "label_41", "26": "upper_arch"}
    count, volume = np.zeros((n, 1, 2), "i8"), np.full((n, 1, 2), np.nan)
    for row, scan in enumerate(scans):
        voxel_mm3 = abs(np.linalg.det(np.array(scan["affine"])[:3, :3]))
        for value, label in scan["masks"][PARTS]["labels"].items():
            at = row, 0, list(names).index(value)
            count[at] = label["voxel_count"]
            volume[at] = label["voxel_count"] * voxel_mm3 / 1000
    return {
        "mask": (("mask",), [PARTS]),
        "structure": (("structure",), list(names.values())),
        **texts_of,
        **{f"mask_{name}": (by_mask, cells) for name, cells in not_compared.items()},
        **{name: (by_mask, values) for name, values in rates.items()},
        "mask_voxel_count": (by_structure, count),
        "mask_volume_cm3": (by_structure, volume),
    }


def attributes_of_columns():
    voxel, mm, byte, hu = ({"units": unit} for unit in ("voxel", "mm", "byte", "HU"))
    placed = {"units": "mm", "frame": "RAS+"}
    to_label = "to the nearest voxel of the vertebra's label"

    def named(text):
        return {"long_name": text}

    return {
        **dict.fromkeys(("shape_zyx", "bbox_start_zyx", "bbox_stop_zyx"), voxel),
        "spacing_zyx_mm": mm,
        **dict.fromkeys(("centroid_zyx_mm", "annotated_centroid_zyx_mm"), placed),
        "annotated_centroid_distance_mm": {**mm, **named(to_label)},
        "volume_cm3": {"units": "cm3"},
        **dict.fromkeys(("image_min_hu", "image_max_hu"), hu),
        **dict.fromkeys(("source_bytes", "stored_bytes"), byte),
        "orientation": named("directions of the source file's axes"),
        "image_stored_dtype": named("type of the stored numbers, before their scaling"),
        "image_nan_voxels": named("voxels of the image that are not a number"),
        "image_infinite_voxels": named("voxels of the image that are infinite"),
        "other_label_voxels": named("voxels of values outside the label scheme"),
        "content_checksum": named("hash of grid, type and voxels of image and mask"),
        "masks": named("names of the masks beside label"),
        "mask_checksums": named("hash of the voxels of each of these masks"),
        "image_sha256": named("sha256 of the source image file"),
        "audit": named("ok, or worst severity found; empty if not audited"),
        "split_in_source": named("split"),
        "mask_scheme": named("where the names of the labels come from"),
        "mask_license": named("license of the mask; empty if it is not known"),
        "mask_author": named("who made or annotated the mask"),
        "mask_model": named("program that made the mask"),
        "mask_compared_with": named(
            "true mask of the last saved comparison; empty if there is none"
        ),
        "mask_verdict": named("fault of the mask in that comparison"),
        "mask_verdict_text": named("the same in sentences"),
        "mask_dice": named("mean Dice coefficient of the vertebrae as named, in that comparison"),
        "mask_identification_rate": named("identification rate of VerSe, in that comparison"),
        "mask_volume_cm3": {"units": "cm3"},
    }


def table_files(root, scans):
    attributes = attributes_of_columns()
    members, files = {}, {}
    for name, (dims, values) in column_values(scans).items():
        if isinstance(values, list):
            flat = [cell for row in values for cell in row] if len(dims) > 1 else values
            shape = (len(values), 1)[: len(dims)]
            kind, fill, first = "string", "", {"name": "vlen-utf8"}
            data = texts(flat)
        else:
            kind, shape, first = values.dtype.name, values.shape, BYTES
            fill, data = "NaN" if kind == "float64" else 0, values.tobytes()
        codecs = [first, {"name": "zstd", "configuration": {"level": 3, "checksum": False}}, CRC32C]
        about = attributes.get(name, {})
        members[name] = array_of(shape, shape, kind, fill, codecs, dims, about)
        key = f"{name}/c/" + "/".join("0" * len(shape))
        files[key] = ended(bytes(zstd.compress(data, 3)))
    chunks = dict(files)
    files |= {f"{name}/zarr.json": as_json(metadata) for name, metadata in members.items()}
    said = {k: v for k, v in root.items() if v and k not in ("format", "format_version")}
    manifest = {key: entry_of(data) for key, data in files.items()}
    group = sealed(group_of({**said, "manifest": manifest}, members))
    return {**files, "zarr.json": group}, {**chunks, "zarr.json": group}


def write_store(place, scans):
    root = {
        "format": "spinezarr",
        "format_version": 7,
        "dataset": "by-hand",
        "title": "Written by hand",
        "license": "CC0-1.0",
        "citation": "none",
        "homepage": None,
    }
    write(place, {"zarr.json": sealed(group_of(root)), "scans/zarr.json": as_json(group_of({}))})
    written = [
        write_scan(place / "scans" / scan_id, scan_id, *pair) for scan_id, pair in scans.items()
    ]
    files, bundled = table_files(root, written)
    write(place / "table", files)
    bundle = {key: base64.b64encode(data).decode() for key, data in bundled.items()}
    write(place, {"table_bundle/zarr.json": sealed(group_of({"files": bundle}))})
    ledger = {}
    for scan in written:
        ledger[scan["scan_id"]] = {"inputs": "", "stamp": "", "identity": identity_of(scan)}
    write(place, {"ingest/zarr.json": sealed(group_of({"scans": ledger, "folders": {}}))})


@pytest.fixture(scope="module")
def scans():
    rng = np.random.default_rng(5)
    found = {}
    for scan_id, shape in (("scan_2", (19, 13, 11)), ("scan_10", (8, 6, 4))):
        image = rng.integers(-1024, 3071, shape).astype(np.int16)
        label = np.zeros(shape, np.uint8)
        label[3:7, 2:5, 1:3], label[-2:, -3:, -3:] = 20, 21
        parts = np.zeros(shape, np.uint8)
        parts[1:3, 1:5, :2], parts[-4:, -2:, :1] = 26, 41
        found[scan_id] = image, label, parts
    return found


@pytest.fixture(scope="module")
def place(scans, tmp_path_factory):
    place = tmp_path_factory.mktemp("page") / "by-hand.zarr"
    write_store(place, scans)
    return place


def test_verify_finds_no_fault_in_a_store_written_by_the_page(place):
    verification = verify_store(str(place))
    assert verification.faults == ()
    assert verification.leftovers == ()
    assert set(verification.scans) == {"scan_2", "scan_10"}


def test_spinezarr_and_xarray_read_a_store_written_by_the_page(place, scans):
    store = spinezarr.open(place)
    assert store.table.scan.to_numpy().tolist() == ["scan_2", "scan_10"]
    assert store.table.erratum.to_numpy().tolist() == ["L2 is L3"] * 2
    for scan_id, (image, label, parts) in scans.items():
        for scan in (store.scan(scan_id), xr.open_zarr(place / "scans" / scan_id)):
            np.testing.assert_array_equal(scan.image, image)
            np.testing.assert_array_equal(scan.label, label)
            np.testing.assert_array_equal(scan[PARTS], parts)
            assert scan[PARTS].flag_meanings == "background upper_arch label_41"
    table = xr.open_zarr(place / "table")
    for name, column in store.table.variables.items():
        np.testing.assert_array_equal(table[name].to_numpy(), column.to_numpy())


def test_spinezarr_streams_from_a_store_written_by_the_page(place, scans):
    patches = spinezarr.open(place).patches((6, 5, 4), batch_size=4, foreground=1.0, n_samples=8)
    for batch in patches:
        for scan_id, start, found in zip(batch.scan_id, batch.start_zyx, batch.label, strict=True):
            whole = np.pad(scans[scan_id][1], 8)
            box = tuple(slice(a + 8, a + 8 + n) for a, n in zip(start, found.shape, strict=True))
            np.testing.assert_array_equal(found, whole[box])


def test_hashes_of_images_of_any_type_follow_the_page(odd):
    table = spinezarr.open(odd.url).table
    for scan_id in odd.image:
        folder = Path(odd.url) / "scans" / scan_id
        group = json.loads((folder / "zarr.json").read_bytes())
        scan = group["attributes"]
        image = group["consolidated_metadata"]["metadata"]["image"]
        values = xr.open_zarr(folder).image.to_numpy()
        assert values.dtype == scan["image_dtype"]
        fill = image["fill_value"] if scan["image_scaling"] is None else np.nan
        chunk_shape = image["codecs"][0]["configuration"]["chunk_shape"]
        assert image_checksum(values, fill, chunk_shape) == scan["image_checksum"], scan_id
        assert content_checksum(scan) == table.content_checksum.sel(scan=scan_id)
