"""Only the header fields that the privacy page lists are copied: planted strings are nowhere."""

import gzip
import json
import logging
import os
import struct
import subprocess
import sys
import warnings
import zlib

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID

import spinezarr
from spinezarr.errors import SpinezarrError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import DicomForm, write_dicom_series

RECIPE = """\
name: canaries
title: Canaries
license: none
citation: none
layouts:
  json:
    description: x
    image: "{scan:[^_/]*}_ct.{ext:nii|nii\\\\.gz}"
    label: "{scan}_seg.{ext}"
    mask: optional
    centroids: {files: "{scan}.json", convention: verse}
    sidecar: "{scan}_side.json"
    sidecar_keys: KVP
  lml:
    description: x
    image: "{scan:l[^_/]*}_ct.nii"
    mask: optional
    centroids: {files: "{scan}.lml", convention: lml}
  meta:
    description: x
    image: "{scan}_ct.{ext:mha|mhd}"
    mask: optional
    centroids: {files: "{scan}.lml", convention: lml}
    sidecar: "{scan}_side.json"
  series: {description: x, image: "{scan}/", mask: optional}
labels: {scheme: canonical, state: unknown}
"""


SHAPE = (6, 5, 4)
IMAGE = np.arange(120, dtype=np.int16).reshape(SHAPE, order="F")
MASK = np.where(IMAGE > 60, 20, 0).astype(np.uint8)
WINDOW = 5
"""Length of the pieces of a canary that are searched for."""


class Canaries:
    """Hands out strings of ten letters that occur nowhere else, and finds them again."""

    def __init__(self):
        self._numbers = np.random.default_rng(20)
        self.planted = {}

    def text(self, where):
        letters = self._numbers.choice(list("QXZJKVWqxzjkvw"), 10)
        return self.planted.setdefault(where, "".join(letters))

    def uid(self, where):
        return self.planted.setdefault(where, f"1.2.826.{self._numbers.integers(10**11, 10**12)}")

    def pieces(self):
        for where, text in self.planted.items():
            size = len(text) if text[0].isdecimal() else WINDOW
            for at in range(len(text) - size + 1):
                yield where, text[at : at + size].encode()

    def found_in(self, data):
        return sorted({where for where, piece in self.pieces() if piece in data})


def nifti_bytes(values, canaries, name, **fields):
    """Return a NIfTI-1 file with canaries in every text field and in extensions of many kinds."""
    image = nib.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0]))
    for field in ("descrip", "aux_file", "db_name", "intent_name", "data_type"):
        image.header[field] = canaries.text(f"{name} {field}").encode()
    for code in (0, 4, 6, 18, 40, 44):
        text = f'<a b="{canaries.text(f"{name} extension {code}")}"/>'.encode()
        image.header.extensions.append(nib.nifti1.Nifti1Extension(code, text))
    tags = Dataset()
    tags.PatientName = canaries.text(f"{name} extension 2")
    image.header.extensions.append(nib.nifti1.Nifti1DicomExtension(2, tags))
    data = bytearray(image.to_bytes())
    for at, packed in fields.values():
        data[at : at + len(packed)] = packed
    return bytes(data)


def gzip_bytes(data, canaries, name):
    """Compress data with a canary in FEXTRA, FNAME and FCOMMENT (RFC 1952, 2.3.1)."""
    extra = b"AB" + struct.pack("<H", 10) + canaries.text(f"{name} gzip extra").encode()
    deflate = zlib.compressobj(wbits=-15)
    return b"".join([
        b"\x1f\x8b\x08\x1c" + bytes(6),
        struct.pack("<H", len(extra)) + extra,
        canaries.text(f"{name} gzip name").encode() + b".nii\0",
        canaries.text(f"{name} gzip comment").encode() + b"\0",
        deflate.compress(data) + deflate.flush(),
        struct.pack("<II", zlib.crc32(data), len(data)),
    ])  # fmt: skip


def metaimage_bytes(canaries, name, values=IMAGE, **changed):
    """Return a .mha file with canaries in free and unknown keys."""
    keys = {
        "ObjectType": "Image",
        "NDims": "3",
        **{
            key: canaries.text(f"{name} {key}")
            for key in (
                "Comment", "Name", "PatientName", "PatientID", "ObjectSubType", "TransformType",
                "AnatomicalOrientation", "AcquisitionDate", "Modality", "SomeKey",
            )
        },
        canaries.text(f"{name} a key"): "1",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "2 2 3",
        "DimSize": " ".join(map(str, SHAPE)),
        "ElementType": "MET_SHORT",
        **changed,
        "ElementDataFile": changed.get("ElementDataFile", "LOCAL"),
    }  # fmt: skip
    data_file = keys.pop("ElementDataFile")
    lines = [f"{key} = {value}\n" for key, value in {**keys, "ElementDataFile": data_file}.items()]
    return "".join(lines).encode() + values.tobytes(order="F")


def write_dicom(folder, canaries, name, **form):
    """Write a series with canaries in names, dates, texts, UIDs, private tags and sequences."""
    values = np.arange(18 * 17 * 3, dtype=np.int16).reshape(18, 17, 3)
    affine = np.diag([-0.75, -0.5, 2.5, 1.0])
    paths = write_dicom_series(folder, values, affine, DicomForm(**form))
    series = {}
    for path in paths:
        dataset = pydicom.dcmread(path)
        for keyword in (
            "PatientName", "PatientID", "InstitutionName", "ReferringPhysicianName",
            "StudyDescription", "SeriesDescription", "AccessionNumber", "StationName",
            "ImageComments", "OtherPatientIDs", "ProtocolName", "Manufacturer", "RescaleType",
        ):  # fmt: skip
            setattr(dataset, keyword, canaries.text(f"{name} {keyword}"))
        dataset.PatientBirthDate = canaries.planted.setdefault(f"{name} birth", "19031207")
        dataset.StudyInstanceUID = canaries.uid(f"{name} study")
        dataset.FrameOfReferenceUID = canaries.uid(f"{name} frame")
        old = dataset.SeriesInstanceUID
        if old not in series:
            series[old] = canaries.uid(f"{name} series {len(series)}")
        dataset.SeriesInstanceUID = series[old]
        item = Dataset()
        item.PatientID = canaries.text(f"{name} in a sequence")
        dataset.RequestAttributesSequence = [item]
        block = dataset.private_block(0x0011, canaries.text(f"{name} creator"), create=True)
        block.add_new(1, "LO", canaries.text(f"{name} private"))
        dataset.preamble = canaries.text(f"{name} preamble").encode().ljust(128, b"\0")
        dataset.save_as(path)
    stray = folder / f"{canaries.text(f'{name} stray file')}.txt"
    stray.write_text(canaries.text(f"{name} in it"))
    return paths


def edit(path, **elements):
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=False)


def replace_bytes(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def write_good(raw, canaries):
    """Write a scan of every format that can be ingested."""
    plain, mask = nifti_bytes(IMAGE, canaries, "nifti"), nifti_bytes(MASK, canaries, "mask")
    (raw / "plain_ct.nii").write_bytes(plain)
    (raw / "plain_seg.nii").write_bytes(mask)
    packed = gzip_bytes(nifti_bytes(IMAGE, canaries, "inside"), canaries, "image")
    (raw / "packed_ct.nii.gz").write_bytes(packed)
    (raw / "packed_seg.nii.gz").write_bytes(gzip_bytes(mask, canaries, "mask"))
    (raw / "meta_ct.mha").write_bytes(metaimage_bytes(canaries, "meta"))
    header = metaimage_bytes(canaries, "header", ElementDataFile="split_ct.raw")
    (raw / "split_ct.mhd").write_bytes(header[: -IMAGE.nbytes])
    (raw / "split_ct.raw").write_bytes(IMAGE.tobytes(order="F"))
    for path in raw.glob("*_ct.*"):
        said = {canaries.text("sidecar key"): 1, "Name": canaries.text("sidecar name"), "KVP": 120}
        scan = path.name.partition("_")[0]
        (raw / f"{scan}_side.json").write_text(json.dumps(said))
    points = [
        {"direction": ["L", "P", "S"]},
        {"label": 20, "X": 1, "Y": 1, "Z": 3, "note": canaries.text("centroid key")},
    ]  # fmt: skip
    (raw / "plain.json").write_text(json.dumps(points))
    lines = (
        f"# {canaries.text('lml header')}\n200 L1_center 1 1 1\n999 {canaries.text('lml')} 1 1 1"
    )
    (raw / "meta.lml").write_text(lines)
    write_dicom(raw / "series", canaries, "dicom", secondary_capture=True, second_series=2)
    other = max((raw / "series").glob("*.dcm"))
    stray = raw / "series" / "99.dcm"
    stray.write_bytes(other.read_bytes())
    unknown = UID(canaries.uid("class"))
    dataset = pydicom.dcmread(stray)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = unknown
    dataset.save_as(stray)


def write_bad(raw, canaries):
    """Write scans with a wrong value in each field that a message mentions; it is a canary."""

    def text(name):
        return canaries.text(name).encode() * 9

    nifti = nifti_bytes(IMAGE, canaries, "damaged")
    fields = {
        "magic": (344, b"Jane"),
        "datatype": (70, b"\x99\x99"),
        "rank": (40, b"\x02\x00"),
        "size": (42, b"\x00\x00"),
        "offset": (108, struct.pack("<f", np.nan)),
        "sform": (280, struct.pack("<f", np.nan)),
    }
    files = {name: nifti_bytes(IMAGE, canaries, "damaged", x=fields[name]) for name in fields}
    files |= {"text": text("text as nifti"), "short": nifti[:200], "cut": nifti[:-9]}
    for name, data in files.items():
        (raw / f"n{name}_ct.nii").write_bytes(data)
    packed = gzip_bytes(nifti, canaries, "damaged")
    (raw / "gtext_ct.nii.gz").write_bytes(gzip.compress(text("text in gzip"), mtime=0))
    (raw / "gcut_ct.nii.gz").write_bytes(packed[:-20])
    (raw / "gtail_ct.nii.gz").write_bytes(packed + text("after gzip"))
    for at, key in enumerate(
        ("NDims", "DimSize", "ElementType", "DistanceUnits", "TransformMatrix", "Offset",
         "ElementSpacing", "CompressedData", "HeaderSize", "FileFormatVersion", "BinaryData",
         "ElementNumberOfChannels", "ElementDataFile"),
    ):  # fmt: skip
        changed = {key: canaries.text(f"meta {key}")}
        (raw / f"m{at}_ct.mha").write_bytes(metaimage_bytes(canaries, "meta", **changed))
    elsewhere = {"ElementDataFile": f"../{canaries.text('path in a header')}"}
    (raw / "mpath_ct.mha").write_bytes(metaimage_bytes(canaries, "meta", **elsewhere))
    twice = {"CompressedData": "False", "Origin": "1 1 1"}
    (raw / "mtwice_ct.mha").write_bytes(metaimage_bytes(canaries, "meta", **twice))
    (raw / "mtext_ct.mha").write_bytes(text("text as meta"))
    good = nifti_bytes(IMAGE, canaries, "points")
    points = {
        "list": text("points"),
        "keys": json.dumps({canaries.text("points key"): 1}),
        "direction": json.dumps([{"direction": canaries.text("direction")}]),
        "more": json.dumps([{"direction": "x", canaries.text("direction key"): 1}]),
        "entry": json.dumps([{"direction": ["L", "P", "S"]}, canaries.text("entry")]),
        "label": json.dumps([
            {"direction": ["L", "P", "S"]},
            {"label": canaries.text("label"), "X": 1, "Y": 1, "Z": 1},
        ]),
    }  # fmt: skip
    for name, said in points.items():
        (raw / f"c{name}_ct.nii").write_bytes(good)
        (raw / f"c{name}.json").write_bytes(said if isinstance(said, bytes) else said.encode())
    for name, line in {"lml": "# 0\n1 {} 1 1", "first": "{}"}.items():
        (raw / f"l{name}_ct.nii").write_bytes(good)
        (raw / f"l{name}.lml").write_text(line.format(canaries.text(f"lml {name}")))
    (raw / "sbroken_ct.nii").write_bytes(good)
    (raw / "sbroken_side.json").write_bytes(text("broken sidecar"))
    write_bad_dicom(raw, canaries)


def write_bad_dicom(raw, canaries):
    def series(name, **form):
        return write_dicom(raw / name, canaries, f"dicom {name}", **form)

    series("dtied", second_series=3)
    (raw / "dtext").mkdir()
    (raw / "dtext" / "1.dcm").write_text(canaries.text("text as dicom") * 20)
    edit(series("dcolor")[0], PhotometricInterpretation=canaries.text("photometric"))
    wrong = canaries.text("wrong number")
    path = series("dnumber")[0]
    edit(path, PixelSpacing=["1.25000000", "1.25000000"])
    replace_bytes(path, b"1.25000000", wrong.encode())
    path = series("dsyntax")[0]
    dataset = pydicom.dcmread(path)
    syntax = dataset.file_meta.TransferSyntaxUID
    replace_bytes(path, syntax.encode().ljust(20, b"\0"), canaries.uid("syntax").encode()[:20])
    path = series("dcut")[0]
    path.write_bytes(path.read_bytes()[:-100])
    path = series("dhead")[0]
    path.write_bytes(path.read_bytes()[:700])
    edit(series("dsize")[0], Rows=19)
    (raw / "dnone").mkdir()
    (raw / "dnone" / "1").write_text(canaries.text("in a stray file"))


def owner_marked(folder, canaries):
    """Set an extended attribute on every file; return whether the file system keeps them."""
    try:
        for path in folder.rglob("*"):
            os.setxattr(path, "user.owner", canaries.text("owner").encode())
    except (OSError, AttributeError):
        return False
    return True


def run(*arguments):
    program = "from spinezarr.cli.main import main; main()"
    command = [sys.executable, "-W", "always", "-c", program, "ingest", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, check=False)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    folder = tmp_path_factory.mktemp("canaries")
    canaries = Canaries()
    (folder / "raw").mkdir()
    (folder / "canaries.yaml").write_text(RECIPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of the values that are written wrongly
        write_good(folder / "raw", canaries)
        write_bad(folder / "raw", canaries)
    owner_marked(folder / "raw", canaries)
    done = [
        run(folder / "canaries.yaml", "--raw", folder / "raw", "--out", folder / "s.zarr", *further)
        for further in (["--json"], [])
    ]
    return folder, canaries, done


def test_more_than_thirty_strings_are_planted(ingested):
    folder, canaries, _ = ingested
    assert len(canaries.planted) > 100
    written = b"".join(path.read_bytes() for path in (folder / "raw").rglob("*") if path.is_file())
    names = "".join(map(str, (folder / "raw").rglob("*"))).encode()
    inside = canaries.found_in(written + names)
    packed = {where for where in canaries.planted if where.startswith(("inside", "text in gzip"))}
    assert set(canaries.planted) - set(inside) - packed <= {"owner"}


def test_good_scans_are_stored_and_bad_ones_reported(ingested):
    _, _, (done, again) = ingested
    report = json.loads(done.stdout)
    assert sorted(report["done"]) == ["meta", "packed", "plain", "sbroken", "series", "split"]
    assert len(report["failed"]) > 40
    assert all("Please report" not in failed["reason"] for failed in report["failed"])
    assert done.stderr.decode().count("Traceback") == 0
    assert (done.returncode, again.returncode) == (1, 1)


def test_no_planted_string_is_in_the_store(ingested, bytes_of_store):
    folder, canaries, _ = ingested
    assert canaries.found_in(bytes_of_store(folder / "s.zarr")) == []
    assert spinezarr.open(folder / "s.zarr").table.KVP.sel(scan="plain").item() == "120"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_no_planted_string_is_printed(ingested, stream):
    _, canaries, done = ingested
    for printed in done:
        assert canaries.found_in(getattr(printed, stream)) == []


def test_no_planted_string_is_logged(ingested, caplog, capfd):
    """This holds in a user's own program, whatever it does with logs of pydicom and nibabel."""
    folder, canaries, _ = ingested
    recipe = Recipe.load(str(folder / "canaries.yaml"))
    with caplog.at_level(logging.INFO):
        ingest(recipe, discover(recipe, str(folder / "raw")), str(folder / "logged.zarr"))
    assert canaries.found_in(caplog.text.encode()) == []
    assert canaries.found_in("".join(capfd.readouterr()).encode()) == []


SMALL = """\
name: small
title: Small
license: none
citation: none
layouts: {x: {description: x, image: "{scan}.nii"}}
labels: {scheme: canonical, state: unknown}
"""


@pytest.mark.parametrize(
    ("name", "content", "further"),
    [
        ("t.csv", "{},Age\na,61\n", "tables: {t: {files: t.csv, key: Id}}"),
        ("t.csv", "Id,Age\na,61,{}\n", "tables: {t: {files: t.csv, key: Id}}"),
        ("t.csv", 'Id,Age\na,"{}\n', "tables: {t: {files: t.csv, key: Id}}"),
        ("t.xlsx", "{}", "tables: {t: {files: t.xlsx, key: Id}}"),
        ("s.txt", "{}\n", "splits: {files: s.txt, sections: {a: train}, entry: '{scan}'}"),
        (
            "s.txt",
            "a:\n{0}\n{0}\n",
            "splits: {files: s.txt, sections: {a: train}, entry: '{scan}'}",
        ),
    ],
)
def test_errors_of_tables_and_lists_quote_no_value(tmp_path, name, content, further):
    canaries = Canaries()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.nii").touch()
    (tmp_path / "raw" / name).write_text(content.format(canaries.text("cell")))
    (tmp_path / "small.yaml").write_text(SMALL + further)
    with pytest.raises(SpinezarrError) as caught:
        discover(Recipe.load(str(tmp_path / "small.yaml")), str(tmp_path / "raw"))
    assert name in str(caught.value)
    assert canaries.found_in(str(caught.value).encode()) == []
