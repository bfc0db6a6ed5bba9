"""The specification of the format names every field of the models and of the scan table."""

import base64
import re
from pathlib import Path
from types import NoneType
from typing import get_args

import numpy as np
import pytest

from spinezarr.remote.settings import METADATA_BYTES
from spinezarr.store import layout
from spinezarr.store.attributes import (
    CentroidRecord,
    DerivationRecord,
    FileRecord,
    ImageSourceRecord,
    LabelSourceRecord,
    MetaImageRecord,
    NiftiRecord,
    RootAttributes,
    ScanAttributes,
    VertebraRecord,
)
from spinezarr.store.audit_log import AUDIT_FILE, AuditedScan, AuditLog, FindingRecord
from spinezarr.store.blocks import ChunkFrame, encode_blocks
from spinezarr.store.bundle import TABLE_BUNDLE
from spinezarr.store.ledger import LEDGER_FILE, FolderPart, FolderRecord, Ledger, LedgerEntry
from spinezarr.store.lock import LATE_FILE, LOCK_FILE, _Holder
from spinezarr.store.manifest import ManifestEntry, ShardEntry
from spinezarr.store.mask_columns import (
    LARGEST_MASK_COUNTS,
    MaskCells,
    mask_column_forms,
    mask_columns,
)
from spinezarr.store.records import ComparisonRecord, LabelRecord, MaskRecord
from spinezarr.store.sharding import crc32c
from spinezarr.store.table import build_table, fixed_columns
from spinezarr.vertebrae import LEVELS, NAME_OF_VALUE

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "store-format.md").read_text()
NAME = re.compile(r"`([^`]+)`")


def tables(text):
    """Return the cells of each table of a page, without its heading, row by row."""
    found, rows = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip()[1:-1])
            rows.append([cell.strip() for cell in cells])
        elif rows:
            found.append(rows[2:])
            rows = []
    return found


def section(heading):
    """Return the text of a section, down to the next heading of any level."""
    title = rf"^#+ (?:[\d.]+ )?{re.escape(heading)}\n"
    (text,) = re.findall(rf"{title}(.*?)(?=^#+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return text


def fields(heading, number=0):
    """Return the rows of a table of fields, by the name in their first cell."""
    rows = tables(section(heading))[number]
    return {NAME.fullmatch(row[0])[1]: row[1:] for row in rows}


MODELS = [
    ("Root group", 0, [RootAttributes]),
    ("Attributes", 0, [ScanAttributes]),
    ("Vertebra", 0, [VertebraRecord]),
    ("Further mask", 0, [MaskRecord]),
    ("Label of a mask", 0, [LabelRecord]),
    ("Comparison", 0, [ComparisonRecord]),
    ("Origin", 0, [DerivationRecord]),
    ("Centroid", 0, [CentroidRecord]),
    ("Source", 0, [ImageSourceRecord, LabelSourceRecord]),
    ("NIfTI", 0, [NiftiRecord]),
    ("MetaImage", 0, [MetaImageRecord]),
    ("Small file", 0, [FileRecord]),
    ("Manifest", 0, [ManifestEntry, ShardEntry]),
    ("Audit log", 0, [AuditLog]),
    ("Audit log", 1, [AuditedScan]),
    ("Audit log", 2, [FindingRecord]),
    ("Ingest ledger", 0, [Ledger]),
    ("Ingest ledger", 1, [LedgerEntry]),
    ("Ingest ledger", 2, [FolderRecord]),
    ("Ingest ledger", 3, [FolderPart]),
    ("Lock files", 0, [_Holder]),
]


@pytest.mark.parametrize(
    ("heading", "number", "models"), MODELS, ids=[models[0].__name__ for *_, models in MODELS]
)
def test_every_attribute_is_specified(heading, number, models):
    specified = fields(heading, number)
    known = {name: field for model in models for name, field in model.model_fields.items()}
    assert set(specified) == set(known)
    optional = {name for name, (_, meaning) in specified.items() if "optional" in meaning}
    assert optional == {
        name
        for name, field in known.items()
        if not field.is_required() and (heading, name) != ("Root group", "format")
    }


@pytest.mark.parametrize(
    ("heading", "number", "models"), MODELS, ids=[models[0].__name__ for *_, models in MODELS]
)
def test_the_page_says_which_attributes_may_be_null(heading, number, models):
    known = {name: field for model in models for name, field in model.model_fields.items()}
    for name, (kind, _) in fields(heading, number).items():
        assert ("null" in kind) == (NoneType in get_args(known[name].annotation)), name


def test_every_column_of_the_table_is_specified():
    known = {"Scan table": fixed_columns(), "Columns of further masks": mask_column_forms()}
    for heading, columns in known.items():
        specified = {
            name: (tuple(dims.split(", ")), kind)
            for name, (dims, kind, _) in fields(heading).items()
        }
        assert specified == {
            name: (dims, "string" if dtype.kind == "T" else dtype.name)
            for name, (dims, dtype) in columns.items()
        }
    assert f"more than {LARGEST_MASK_COUNTS:,} values" in PAGE


def test_the_page_has_the_column_attributes_of_the_code():
    specified = {}
    for columns, attributes in tables(section("Scan table"))[1][:-1]:
        words = NAME.findall(attributes.partition("; with")[0])
        for column in NAME.findall(columns):
            specified[column] = dict(zip(words[::2], words[1::2], strict=True))
    root = dict.fromkeys(("dataset", "title", "license", "citation"), "")
    table = build_table(RootAttributes(format_version=layout.FORMAT_VERSION, **root), [])
    assert specified == {name: v.attrs for name, v in table.variables.items() if v.attrs}
    own = mask_columns([{"x1": MaskCells({}, {}, {})}])
    specified = {}
    for column, attributes in tables(section("Columns of further masks"))[1]:
        words = NAME.findall(attributes)
        specified[NAME.fullmatch(column)[1]] = dict(zip(words[::2], words[1::2], strict=True))
    assert specified == {name: attrs for name, (_, _, attrs) in own.items() if attrs}


def test_the_page_has_the_version_and_the_keys_of_the_code():
    assert PAGE.startswith(f"# Store format, version {layout.FORMAT_VERSION}\n")
    assert f"`{layout.FORMAT_VERSION}`" in fields("Root group")["format_version"][1]
    keys = set(NAME.findall(section("Keys")))
    assert {AUDIT_FILE, LEDGER_FILE, TABLE_BUNDLE, LOCK_FILE, LATE_FILE} <= keys
    scan = layout.scan_key("<scan_id>")
    arrays = (layout.IMAGE, layout.LABEL, layout.LABEL_CHUNKS)
    assert {f"{scan}/{array}/zarr.json" for array in arrays} <= keys


def test_the_page_has_the_limits_of_the_code():
    numbers = {int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", section("Limits"))}
    assert {
        layout.LARGEST_AXIS,
        layout.LARGEST_CHUNK_BLOCKS,
        layout.LARGEST_CHUNK_BYTES,
        layout.LARGEST_SCANS,
        layout.LARGEST_SHARD_CHUNKS,
        METADATA_BYTES,
    } <= numbers


def test_the_page_has_the_codec_profiles_of_the_code():
    rows = {
        NAME.fullmatch(name)[1]: cells for name, *cells in tables(section("Encoding of a chunk"))[2]
    }
    said = {}
    for name, profile in layout.PROFILES.items():
        codecs = (profile.image, profile.label)
        said[name] = [
            f"{codec.cname}, level {codec.clevel}, {codec.shuffle}"
            + (", block size 0" if codec.blocksize == 0 else "")
            for codec in codecs
        ]
        assert profile.image.blocksize in {0, 32_768}
        assert profile.label.blocksize in {0, 16_384}
    assert rows == said
    small = layout.SMALL_ARRAY
    assert f"with {small.cname}, level {small.clevel}, {small.shuffle} in every profile" in PAGE


def test_the_page_has_the_mask_values_of_the_code():
    said = {}
    for values, names in tables(section("`image` and `label`"))[0]:
        first, _, last = values.partition(" to ")
        for value in range(int(first), int(last or first) + 1):
            said[value] = names
    for value, name in NAME_OF_VALUE.items():
        letter = name[0] if name[1:].isdigit() else name
        assert letter in said[value], name
    assert f"the {len(LEVELS)} level names" in PAGE
    assert f"the {len(NAME_OF_VALUE)} names" in PAGE


def test_the_page_has_the_chunk_and_shard_shapes_of_the_code():
    image = fields("Arrays of a scan")["image"]
    chunk, per_shard = (re.findall(r"\d+", cell) for cell in image[3:5])
    assert tuple(map(int, chunk)) == layout.BALANCED.chunk_shape_zyx
    assert tuple(map(int, per_shard)) == (1, *layout.BALANCED.max_shard_chunks_zyx)


def test_the_page_lays_out_the_bytes_of_a_chunk_as_the_code_does():
    """The table's offsets hold for ``n`` blocks."""
    codec = layout.BloscCodecSpec("lz4", 1, "shuffle", 512)
    voxels = np.arange(1024, dtype="<i2") // 9
    encoded = encode_blocks(voxels, codec)
    frame = ChunkFrame.of(encoded)
    n = frame.coding.n_blocks
    rows = tables(section("Encoding of a chunk"))[1]
    said = [(offset, size) for offset, size, _ in rows]
    known = {0: 2, 1: 1, 2: 1 + 32, 3: 2, 4: 2048, 8: 512, 12: len(encoded) - 4}
    for at, (offset, size) in zip(known, said[:7], strict=True):
        assert int(offset) == at
        assert int.from_bytes(encoded[at : at + int(size)], "little") == known[at]
    assert said[7:] == [("16", "4 *n*"), ("16 + 4 *n*", "4"), ("20 + 4 *n*", ""), ("last 4", "4")]
    starts = np.frombuffer(encoded, "<u4", n, 16).tolist()
    assert starts == [20 + 4 * n + sum(frame.block_sizes[:i]) for i in range(n)]
    assert int.from_bytes(encoded[16 + 4 * n :][:4], "little") == crc32c(voxels.tobytes())
    assert int.from_bytes(encoded[-4:], "little") == crc32c(encoded[:-4])


def test_the_example_of_a_chunk_table_on_the_page_is_right():
    text = section("Manifest")
    (encoded,) = re.findall(r"Example: `([A-Za-z0-9+/=]+)`", text)
    row = np.dtype([("position", "<u4"), ("voxels_crc32c", "<u4"), ("block_sizes", "<u2", 4)])
    rows = np.frombuffer(base64.b64decode(encoded), row)
    offset = 0
    for (position, checksum, sizes), said in zip(rows.tolist(), tables(text)[2], strict=True):
        size = 24 + 4 * 4 + sum(sizes.tolist())
        assert said[:2] == [str(position), f"`{checksum:08x}`"]
        assert said[2] == ", ".join(map(str, sizes.tolist()))
        assert [int(n) for n in said[3:]] == [size, offset]
        offset += size
    assert f"{offset + 16 * len(rows) + 4:,} bytes" in text
