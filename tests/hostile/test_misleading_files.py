"""Hand-made misleading files are refused for their lie in bounded memory, or read correctly."""

import gzip
import io
import json
import os
import re
import struct
import time
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import openpyxl
import pydicom
import pytest
from fsspec.implementations.local import LocalFileSystem
from harness import peak_bytes
from pydicom.encaps import encapsulate, get_frame

from spinezarr.errors import FormatError
from spinezarr.formats.centroids import read_centroids
from spinezarr.formats.limits import Limits
from spinezarr.formats.sheet import read_sheet
from spinezarr.formats.small_file import read_small_file
from spinezarr.formats.volume import open_volume
from spinezarr.geometry import Grid
from spinezarr.testing import (
    DicomForm,
    MetaImageForm,
    write_dicom_multiframe,
    write_dicom_objects,
    write_dicom_series,
    write_metaimage,
)

MOST_BYTES = 512 << 20
"""Maximum growth of resident memory."""
VALUES = (np.arange(20 * 18 * 3).reshape(20, 18, 3) * 37 % 2000 - 1000).astype(np.int16)
AFFINE = np.diag([-0.8, -0.9, 2.5, 1.0])
RESET = Path("/proc/self/clear_refs")
"""File of Linux that resets the peak of resident memory when 5 is written to it."""


def assert_bounded(work, record):
    """Run ``work``, and check that it stays within the memory limit."""
    if not RESET.exists():  # not Linux
        return work()
    RESET.write_text("5", encoding="ascii")
    before, began = peak_bytes(), time.monotonic()
    try:
        return work()
    finally:
        record("seconds", round(time.monotonic() - began, 3))
        record("megabytes", (peak_bytes() - before) >> 20)
        assert peak_bytes() - before < MOST_BYTES


def read_all(path, limits):
    """Read like the ingest: the grid, then all slabs to the end of the file."""
    volume = open_volume(LocalFileSystem(), str(path), limits)
    ni, nj, nk = volume.grid.shape_ijk
    thick = max(1, (8 << 20) // (ni * nj * volume.dtype.itemsize))
    thicknesses = [min(thick, nk - k) for k in range(0, nk, thick)]
    kept = [slab if slab.size < 1e6 else slab[:1, :1] for slab in volume.slabs(thicknesses)]
    return np.concatenate(kept, axis=2)


def nifti(version=1, voxels=VALUES, between=bytes(4), **fields):
    header = {1: nib.Nifti1Header, 2: nib.Nifti2Header}[version]()
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_sform(AFFINE, code=1)
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + between + voxels.tobytes(order="F")


def dims(*shape, version=1):
    padded = [3, *shape, 1, 1, 1, 1]
    return nifti(version, dim=padded)


ZEROS = gzip.compress(bytes(16 << 20), 6, mtime=0)
"""A gzip member that inflates to a thousand times its size; several members make one file."""


def packed(content, *after):
    return gzip.compress(content, 1, mtime=0) + b"".join(after)


def named_gzip(content):
    """Return a gzip file whose header has a file name of 50 MB."""
    plain = gzip.compress(content, 1, mtime=0)
    flags = bytes([plain[3] | 8])
    return plain[:3] + flags + plain[4:10] + b"n" * 50_000_000 + b"\0" + plain[10:]


PLAIN = "v.nii"
GZ = "v.nii.gz"
NIFTI = {
    "no voxels along an axis": (PLAIN, dims(20, 0, 3), "has an empty dimension"),
    "fewer than no voxels": (PLAIN, dims(20, -18, 3), "has an empty dimension"),
    "the largest int16 thrice": (PLAIN, dims(32767, 32767, 32767), "--max-axis-voxels"),
    "the same in gzip": (GZ, packed(dims(32767, 32767, 32767)), "--max-axis-voxels"),
    "a product that is 0 modulo 2**64": (
        PLAIN,
        dims(2**22, 2**21, 2**21, version=2),
        "--max-axis-voxels",
    ),
    "2**62 voxels": (PLAIN, dims(2**62, 1, 1, version=2), "--max-axis-voxels"),
    "a terabyte": (PLAIN, dims(8192, 8192, 8192), "1099.5 GB; expected at most 32.0 GB.*--max-v"),
    "slices of a gigabyte": (
        PLAIN, nifti(dim=[3, 8192, 8192, 2, 1, 1, 1, 1], scl_slope=2), "slices of 8192 x 8192",
    ),
    "30 GB that are not there": (PLAIN, dims(4096, 4096, 900), "cut short: .* 2160 of 3019898880"),
    "30 GB that gzip cannot hold": (GZ, packed(dims(4096, 4096, 900)), "cannot inflate to"),
    "gigabytes after the voxels": (GZ, packed(nifti(), *[ZEROS] * 640), "goes on after its voxels"),
    "gigabytes after them, not in gzip": (PLAIN, nifti() + bytes(5 << 20), "goes on after"),
    "another volume after the voxels": (PLAIN, nifti() + VALUES.tobytes(), "goes on after"),
    "gigabytes before the voxels": (
        GZ, packed(nifti(vox_offset=2**33), *[ZEROS] * 640), "vox_offset.*at most 67108864",
    ),
    "as much before them as a header may have": (
        GZ, packed(nifti(vox_offset=2**26)), "ends before its voxels start",
    ),
    "200,000 empty members": (GZ, packed(nifti(), gzip.compress(b"", mtime=0) * 200_000), None),
    "a name without end": (GZ, named_gzip(nifti()), "does not decompress"),
    "slope 0": (PLAIN, nifti(scl_slope=0), None),
    "slope NaN": (PLAIN, nifti(scl_slope=np.nan), None),
    "slope infinite": (PLAIN, nifti(scl_slope=np.inf), "unusable scl_slope"),
    "slope 1e30": (PLAIN, nifti(scl_slope=1e30), None),
    "slope beyond all numbers": (
        PLAIN, nifti(2, VALUES.astype("f8") * 1e10, scl_slope=1e300), "beyond the range of numbers",
    ),
    "intercept NaN": (PLAIN, nifti(scl_slope=1, scl_inter=np.nan), "unusable .* scl_inter"),
    "affine NaN": (PLAIN, nifti(srow_y=np.nan), "is not finite, or an axis has no length"),
    "affine too large to square": (PLAIN, nifti(2, srow_x=[1e300, 0, 0, 0]), "is not finite"),
    "affine flat": (PLAIN, nifti(srow_x=[1, 1, 0, 0], srow_y=[1, 1, 0, 0]), "lie in one plane"),
    "voxels of an atom": (PLAIN, nifti(srow_x=[1e-7, 0, 0, 0]), "voxels are 1e-07 x 0.9 x 2.5 mm"),
    "voxels of a house": (PLAIN, nifti(srow_z=[0, 0, 2e4, 0]), "0.8 x 0.9 x 2e"),
    "a patient on the moon": (PLAIN, nifti(srow_z=[0, 0, 1, 3.8e11]), "first voxel lies at"),
    "quaternion beyond all numbers": (
        PLAIN, nifti(2, sform_code=0, qform_code=1, quatern_b=1e300), "orientation|no voxel",
    ),
    "magic of a pair": (PLAIN, nifti(magic=b"ni1\0"), "lacks the magic"),
    "no magic": (PLAIN, nifti(magic=b"\xff\xff\xff\xff"), "lacks the magic"),
    "a type that is none": (PLAIN, nifti(datatype=4096), "unknown NIfTI datatype"),
    "128 bits a number": (PLAIN, nifti(datatype=1536), "expected integers or floats|unknown"),
    "7 axes": (PLAIN, nifti(dim=[7] * 8), "has 7 dimensions"),
    "30,000 axes": (PLAIN, nifti(dim=[30_000] * 8), "has 30000 dimensions \\(30000"),
    "voxels in the header": (PLAIN, nifti(vox_offset=4), "lies inside the header"),
    "voxels before the file": (PLAIN, nifti(vox_offset=-(2.0**40)), "lies inside the header"),
    "voxels at no number": (PLAIN, nifti(vox_offset=np.nan), "vox_offset is nan"),
    "an extension of 2 GB": (
        PLAIN, nifti(between=b"\1\0\0\0" + struct.pack("<ii", 2**31 - 1, 6)), "goes on after",
    ),
    "nothing": (PLAIN, b"", "is empty"),
    "gzip of nothing": (GZ, gzip.compress(b""), "is not a NIfTI file"),
    "half a gzip file": (GZ, packed(nifti())[:200], "is not a NIfTI file|ends inside"),
}  # fmt: skip


def bomb(mib):
    """Return a zlib stream of zeros, made of repeated independent blocks."""
    deflate = zlib.compressobj(9)
    first = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    again = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return first + again * (mib - 1)


RAW = VALUES.tobytes(order="F")
ZLIB = zlib.compress(RAW)


def metaimage(data=RAW, **changes):
    fields = {
        "NDims": "3",
        "DimSize": "20 18 3",
        "ElementSpacing": "0.8 0.9 2.5",
        "ElementType": "MET_SHORT",
        "BinaryDataByteOrderMSB": "False",
    } | changes
    data_file = fields.pop("ElementDataFile", "LOCAL")
    lines = [f"{key} = {value}" for key, value in fields.items()]
    return "\n".join([*lines, f"ElementDataFile = {data_file}\n"]).encode() + data


METAIMAGE = {
    "no voxels": (metaimage(DimSize="0 0 0"), "DimSize"),
    "9999999 voxels an axis": (metaimage(DimSize="9999999 9999999 9999999"), "--max-axis-voxels"),
    "20 digits": (metaimage(DimSize="99999999999999999999 1 1"), "DimSize"),
    "a terabyte": (metaimage(DimSize="8192 8192 8192"), "--max-volume-gb"),
    "30 GB that are not there": (metaimage(DimSize="4096 4096 900"), "has 2160 bytes"),
    "a billion axes": (metaimage(NDims="1000000000"), "NDims"),
    "spacing 0": (metaimage(ElementSpacing="0 1 1"), "ElementSpacing"),
    "spacing NaN": (metaimage(ElementSpacing="nan 1 1"), "ElementSpacing"),
    "voxels of an atom": (metaimage(ElementSpacing="1e-5 1 1"), "voxels are 1e-05 x 1 x 1 mm"),
    "voxels of a house": (metaimage(ElementSpacing="1e5 1 1"), "voxels are 1e[+]05 x 1 x 1 mm"),
    "offset beyond all numbers": (metaimage(Offset="1e999 0 0"), "Offset"),
    "directions of no length": (metaimage(TransformMatrix="0 0 0 0 0 0 0 0 0"), "TransformMatrix"),
    "a 9 of 100,000 digits": (metaimage(HeaderSize="9" * 100_000), "HeaderSize"),
    "HeaderSize beyond the file": (metaimage(HeaderSize=10**17), "has 0 bytes"),
    "HeaderSize beyond all files": (metaimage(HeaderSize=2**64), "HeaderSize"),
    "HeaderSize before the file": (metaimage(HeaderSize=-2), "HeaderSize"),
    "CompressedDataSize beyond": (
        metaimage(ZLIB, CompressedData="True", CompressedDataSize=10**17), "bytes for its voxels",
    ),
    "a bomb for 2 kB": (metaimage(bomb(4096), CompressedData="True"), "holds more voxels"),
    "a bomb cut short": (
        metaimage(bomb(256), CompressedData="True", DimSize="2048 2048 128"), "cut short",
    ),
    "30 GB that zlib cannot hold": (
        metaimage(ZLIB, CompressedData="True", DimSize="4096 4096 900"), "cannot inflate",
    ),
    "10 MB without a line": (b"N" * 10_000_000, "is not a MetaImage"),
    "100,000 keys": (b"a = 1\n" * 100_000 + metaimage(), None),
    "100,000 times NDims": (b"NDims = 3\n" * 99_000 + metaimage(), None),
    "a file of the machine": (metaimage(b"", ElementDataFile="/etc/passwd"), "ElementDataFile"),
    "a file of the folder above": (metaimage(b"", ElementDataFile="../v.raw"), "ElementDataFile"),
    "itself": (metaimage(b"", ElementDataFile="v.mha"), "bytes for its voxels"),
    "a pattern": (metaimage(b"", ElementDataFile="%03d.raw"), "ElementDataFile"),
    "a list": (metaimage(b"v.raw\n" * 9, ElementDataFile="LIST"), "ElementDataFile"),
    "its folder": (metaimage(b"", ElementDataFile="."), "ElementDataFile"),
}  # fmt: skip


def series(folder, syntax="explicit-le", **form):
    form = DicomForm(transfer_syntax=syntax, **form)
    write_dicom_series(folder, VALUES, np.diag([-0.8, -0.9, 2.5, 1.0]), form)
    return folder / "2.dcm"


def elements(syntax="explicit-le", **changes):
    def make(folder):
        path = series(folder, syntax)
        # Values that no writer would let pass are put in as bytes.
        dataset = pydicom.dcmread(path)
        for keyword, value in changes.items():
            tag = pydicom.datadict.tag_for_keyword(keyword)
            if isinstance(value, bytes):
                raw = pydicom.dataelem.RawDataElement(
                    pydicom.tag.Tag(tag), pydicom.datadict.dictionary_VR(tag), len(value), value,
                    0, False, True,
                )  # fmt: skip
                dataset._dict[pydicom.tag.Tag(tag)] = raw
            else:
                setattr(dataset, keyword, value)
        dataset.save_as(path)

    return make


def frame(syntax, change):
    """Return a function that writes a series and changes the code stream of one slice."""

    def make(folder):
        path = series(folder, syntax)
        dataset = pydicom.dcmread(path)
        code = bytearray(get_frame(dataset.PixelData, 0, number_of_frames=1))
        dataset.PixelData = encapsulate([bytes(change(code))])
        dataset.save_as(path)

    return make


def set_bytes(at, value):
    def change(code):
        code[at : at + len(value)] = value
        return code

    return change


def other_frame(code):
    """Give JPEG Lossless the frame marker of progressive JPEG."""
    return code.replace(b"\xff\xc3", b"\xff\xc2", 1)


def second_scan(code):
    return code[:-2] + code[code.index(b"\xff\xda") :]


def rle_bomb(code):
    return code[:64] + b"\x81\0" * 4_000_000


def raw_bytes(change):
    """Change the bytes of one file."""

    def make(folder):
        path = series(folder)
        path.write_bytes(change(path.read_bytes()))

    return make


def deflated_bomb(folder):
    path = series(folder, "deflated")
    data = path.read_bytes()
    start = 144 + struct.unpack("<I", data[140:144])[0]
    plain = zlib.decompress(data[start:], -zlib.MAX_WBITS)
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    first = deflate.compress(plain) + deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(data[:start] + first + block * 2000 + deflate.flush())


def nested(folder):
    """Nest sequences 5,000 deep before the tags that are read."""
    path = series(folder)
    data = path.read_bytes()
    at = data.index(b"\x08\0\x08\0CS")
    deep = b"\x08\0\x05\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 5000
    path.write_bytes(data[:at] + deep + data[at:])


def other_offset_table(folder):
    """Refer to a second code stream of another size in an extended offset table."""
    path = series(folder, "jpeg-ls")
    dataset = pydicom.dcmread(path)
    code = get_frame(dataset.PixelData, 0, number_of_frames=1)
    wide = bytearray(code)
    at = wide.index(b"\xff\xf7")
    wide[at + 5 : at + 9] = b"\x20\0\x20\0"
    dataset.PixelData = encapsulate([bytes(code), bytes(wide)], has_bot=False)
    start = 8 + len(code) + len(code) % 2
    dataset.ExtendedOffsetTable = struct.pack("<Q", start)
    dataset.ExtendedOffsetTableLengths = struct.pack("<Q", len(wide))
    dataset.save_as(path)


def waits_forever(folder):
    series(folder)
    os.mkfifo(folder / "4.dcm")


def link_to_nothing(folder):
    series(folder)
    (folder / "4.dcm").symlink_to(folder / "absent")


def coding(layers=1, block=4, precincts=b"", mark=b"\xff\x52"):
    """Change the coding style of a JPEG 2000 stream."""

    def change(code):
        at = code.index(b"\xff\x52")
        style = bytes([1 if precincts else 0])
        general = b"\0" + struct.pack(">HB", layers, 0) if mark == b"\xff\x52" else b""
        segment = style + general + bytes([5, block, block, 0, 1]) + precincts
        if mark != b"\xff\x52":
            at, segment = code.index(b"\xff\x5c"), b"\0" + segment
            return code[:at] + mark + struct.pack(">H", len(segment) + 2) + segment + code[at:]
        length = struct.unpack(">H", code[at + 2 : at + 4])[0]
        head = code[:at] + mark + struct.pack(">H", len(segment) + 2)
        return head + segment + code[at + 2 + length :]

    return change


def wide(change):
    """Damage a slice of 520 x 520 pixels."""

    def make(folder):
        values = np.zeros((520, 520, 2), np.int16)
        form = DicomForm(transfer_syntax="jpeg2000")
        write_dicom_series(folder, values, AFFINE, form)
        dataset = pydicom.dcmread(folder / "2.dcm")
        code = get_frame(dataset.PixelData, 0, number_of_frames=1)
        dataset.PixelData = encapsulate([change(code)])
        dataset.save_as(folder / "2.dcm")

    return make


def coding_of_a_tile(code):
    """Insert a coding style into the header of the first tile part."""
    at = code.index(b"\xff\x90")
    segment = b"\xff\x52" + struct.pack(">H", 12) + bytes([0, 0, 0, 1, 0, 5, 4, 4, 0, 1])
    return code[: at + 12] + segment + code[at + 12 :]


def frames(change, syntax="explicit-le"):
    """Write a multi-frame file, and change its data set."""

    def make(folder):
        path = write_dicom_multiframe(
            folder / "frames.dcm", VALUES, AFFINE, DicomForm(transfer_syntax=syntax)
        )
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)

    return make


def set_elements(**changes):
    def change(dataset):
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)

    return change


def of_frame(sequence, **changes):
    """Change an element of the second frame."""

    def change(dataset):
        item = dataset.PerFrameFunctionalGroupsSequence[1][sequence][0]
        set_elements(**changes)(item)

    return change


def more_frames_than_bytes(dataset):
    """Announce the positions of 5,000 frames, with pixels of three."""
    groups = dataset.PerFrameFunctionalGroupsSequence
    dataset.PerFrameFunctionalGroupsSequence = [groups[k % 3] for k in range(5000)]
    for group in dataset.PerFrameFunctionalGroupsSequence[3:]:
        group.PlanePositionSequence = groups[0].PlanePositionSequence
    dataset.NumberOfFrames = 5000


def many_groups(folder):
    """Put 400,000 empty frame items before the pixels."""
    path = write_dicom_multiframe(folder / "frames.dcm", VALUES, AFFINE, DicomForm())
    data = path.read_bytes()
    at = data.index(b"\x00\x52\x30\x92SQ")
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    header = data[at : at + 8] + struct.pack("<L", len(item) * 400_000)
    path.write_bytes(data[:at] + header + item * 400_000)


def fragments(change):
    """Change the fragments of a multi-frame file of JPEG-LS, the offset table first."""

    def make(folder):
        path = write_dicom_multiframe(
            folder / "frames.dcm", VALUES, AFFINE, DicomForm(transfer_syntax="jpeg-ls")
        )
        data = path.read_bytes()
        start = data.index(b"\xe0\x7f\x10\x00") + 12
        parts, at = [], start
        while data[at : at + 4] == b"\xfe\xff\x00\xe0":
            size = struct.unpack("<L", data[at + 4 : at + 8])[0]
            parts.append(data[at + 8 : at + 8 + size])
            at += 8 + size
        packed = [struct.pack("<HHL", 0xFFFE, 0xE000, len(p)) + p for p in change(parts)]
        path.write_bytes(data[:start] + b"".join(packed) + data[at:])

    return make


def split_frames(parts):
    """Cut each frame into pieces of 100 bytes, and leave the offset table empty."""
    pieces = [part[i : i + 100] for part in parts[1:] for i in range(0, len(part), 100)]
    return [b"", *pieces]


def bare(change, syntax="explicit-le"):
    """Change the bytes of a slice without a preamble."""

    def make(folder):
        form = DicomForm(transfer_syntax=syntax, preamble=False)
        path = write_dicom_series(folder, VALUES, AFFINE, form)[1]
        path.write_bytes(change(path.read_bytes()))

    return make


def with_other_object(modality, change):
    """Put another DICOM object next to the slices."""

    def make(folder):
        series(folder)
        (path,) = write_dicom_objects(folder, modality)
        path.write_bytes(change(path.read_bytes()))

    return make


DEEP = b"\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
SIZ = 2 + 2 + 2 + 2
"""Offset of Xsiz, behind SOC, SIZ, Lsiz and Rsiz."""
DICOM = {
    "65,535 rows": (elements(Rows=65535), "65535"),
    "no columns": (elements(Columns=0), "more than 0"),
    "a billion frames": (elements(NumberOfFrames="1000000000"), "1000000000 frames, but is no"),
    "a thousand frames": (elements(NumberOfFrames="1000"), "1000 frames, but is no Enhanced CT"),
    "frames without end": (elements(NumberOfFrames=b"9" * 400), "NumberOfFrames is not a finite"),
    "64 bits": (elements(BitsAllocated=64), "BitsAllocated 64"),
    "more bits than there are": (elements(BitsStored=17), "BitsStored 17"),
    "slope NaN": (elements(RescaleSlope=b"nan "), "RescaleSlope"),
    "slope 1e308": (elements(RescaleSlope=b"1e308 "), "RescaleSlope is"),
    "slope 0": (elements(RescaleSlope=0), "slope other than 0"),
    "a number of 1,000 digits": (elements(RescaleSlope=b"9" * 1000), "RescaleSlope|DICOM"),
    "a million numbers": (elements(PixelSpacing=b"1\\" * 10**4), "PixelSpacing has 20000 bytes"),
    "a name of a megabyte": (
        elements("implicit-le", RescaleType=b"n" * 10**6), "RescaleType has 1000000",
    ),
    "spacing 0": (elements(PixelSpacing=[0, 1]), "apart; expected more than 0"),
    "spacing of an atom": (
        lambda folder: [elements(PixelSpacing=["1e-7", "1e-7"])(folder)]
        and [p.write_bytes((folder / "2.dcm").read_bytes()) for p in [folder / "9.dcm"]],
        "differ in PixelSpacing",
    ),
    "position on the moon": (elements(ImagePositionPatient=["0", "0", "4e11"]), "within 1e[+]06"),
    "directions that are none": (elements(ImageOrientationPatient=[0] * 6), "Orientation"),
    "an element of 4 GB": (
        raw_bytes(lambda d: d.replace(b"\x60\0CS\2\0", b"\x60\0UN\0\0\xf0\xff\xff\xff")),
        "SeriesInstanceUID|Rows|DICOM",
    ),
    "sequences 5,000 deep": (nested, "DICOM|states no"),
    "deflated gigabytes": (deflated_bomb, "more than 67108864 bytes"),
    "RLE that expands to gigabytes": (frame("rle", rle_bomb), "RLE segment"),
    "RLE of 15 segments": (frame("rle", set_bytes(0, b"\x0f")), "15 RLE segments"),
    "RLE beyond its end": (frame("rle", set_bytes(4, b"\xff\xff\xff\x7f")), "RLE segment is at"),
    "progressive JPEG": (frame("jpeg-lossless", other_frame), "unexpected marker FFC2"),
    "JPEG of two scans": (frame("jpeg-lossless", second_scan), "marker FFDA within its pixels"),
    "JPEG-LS of other pixels": (other_offset_table, "."),
    "JPEG 2000 of 2**32 pixels": (
        frame("jpeg2000", set_bytes(SIZ, b"\xff\xff\xff\xff")), "code stream has",
    ),
    "JPEG 2000 of tiles of no size": (
        frame("jpeg2000", set_bytes(SIZ + 16, bytes(8))), "tiles of its code stream",
    ),
    "JPEG 2000 of tiles beside it": (
        frame("jpeg2000", set_bytes(SIZ + 24, b"\xff" * 8)), "tiles of its code stream",
    ),
    "JPEG 2000 of a pixel a precinct": (
        wide(coding(precincts=b"\0" * 6)), "cut into 270400 blocks",
    ),
    "JPEG 2000 of four pixels a precinct": (
        wide(coding(precincts=b"\xff" * 5 + b"\x11")), "cut into 67600 blocks",
    ),
    "the same for its one component": (
        wide(coding(precincts=b"\x11" * 6, mark=b"\xff\x53")), "cut into 67600 blocks",
    ),
    "the same for a tile": (wide(coding_of_a_tile), "tiles .* are coded in different ways"),
    "JPEG 2000 of 65,535 layers": (wide(coding(layers=65535)), "65535 layers"),
    "JPEG 2000 of tile parts in a ring": (
        frame("jpeg2000", lambda c: set_bytes(c.index(b"\xff\x90") + 6, b"\0\0\0\1")(c)),
        "no marker segment at byte",
    ),
    "a pipe": (waits_forever, None),
    "JPEG-LS behind two other bytes": (
        frame("jpeg-ls", lambda code: code + b"\xff\xff"), "cut short: it does not end",
    ),
    "an Enhanced CT of a billion frames": (
        frames(set_elements(NumberOfFrames="1000000000")), "1000000000 frames and positions of 3",
    ),
    "an Enhanced CT of no frames": (frames(set_elements(NumberOfFrames="0")), "holds 0 frames"),
    "an Enhanced CT of 65,535 rows": (frames(set_elements(Rows=65535)), "65535"),
    "5,000 frames in the bytes of three": (
        frames(more_frames_than_bytes), "repeated slices|cut short: it holds 2160 of",
    ),
    "frames that end early": (
        frames(lambda d: set_elements(PixelData=d.PixelData[:-2])(d)), "it holds 2158 of 2160",
    ),
    "400,000 frames that say nothing": (many_groups, "more than 200000 items"),
    "a frame at no place": (
        frames(of_frame("PlanePositionSequence", ImagePositionPatient=[])), "holds 0 numbers",
    ),
    "a frame on the moon": (
        frames(of_frame("PlanePositionSequence", ImagePositionPatient=["0", "0", "4e11"])),
        "within 1e[+]06",
    ),
    "a frame of another stack": (
        frames(of_frame("FrameContentSequence", StackID="2")), "to 2 stacks .StackID.",
    ),
    "a frame of another time": (
        frames(of_frame("FrameContentSequence", TemporalPositionIndex=2)), "to 2 times",
    ),
    "frames in fragments without an offset table": (fragments(split_frames), None),
    "frames under a false offset table": (
        fragments(lambda p: [struct.pack("<3L", 0, 7, 2**31), *p[1:]]), None,
    ),
    "a false offset table over split frames": (
        fragments(lambda p: [struct.pack("<3L", 0, 7, 2**31), *split_frames(p)[1:]]),
        "0 compressed frames, expected 3",
    ),
    "a frame too many": (fragments(lambda p: [b"", *p[1:], p[1]]), "4 compressed frames, expected"),
    "a frame too few": (fragments(lambda p: [b"", *p[1:3]]), "2 compressed frames, expected 3"),
    "no frames": (fragments(lambda _: [b""]), "0 compressed frames, expected 3"),
    "a frame of 100 MB": (
        fragments(lambda p: [b"", p[1] + bytes(100_000_000), *p[2:]]), "more than 67108864 bytes",
    ),
    "a million fragments": (
        fragments(lambda p: [b"", *p[1:], *[b""] * 1_000_000]), "more than 200000 fragments",
    ),
    "a bare slice of 65,535 rows": (
        bare(lambda d: d.replace(b"\x10\0US\2\0\x12\0", b"\x10\0US\2\0\xff\xff", 1)),
        "65535",
    ),
    "a bare slice of sequences 5,000 deep": (
        bare(lambda d: d[:30] + b"\x08\0\x05\x11SQ\0\0" + DEEP * 5000 + d[30:]), "DICOM",
    ),
    "a bare slice that goes on as text": (bare(lambda d: d[:9] + b"Dear Dr. " * 99), "is not a"),
    "a directory of sequences 5,000 deep": (
        with_other_object("DIRECTORY", lambda d: d + (b"\x04\0\x20\x12SQ\0\0" + DEEP) * 5000), None,
    ),
    "a report of sequences 5,000 deep": (
        with_other_object("SR", lambda d: d + (b"\x40\0\x30\xa7SQ\0\0" + DEEP) * 5000), None,
    ),
    "a report of 200 MB": (with_other_object("SR", lambda d: d + bytes(200_000_000)), None),
}  # fmt: skip


def check(work, expected, record):
    if expected is None:
        return assert_bounded(work, record)
    with pytest.raises(FormatError) as caught:
        assert_bounded(work, record)
    assert re.search(expected, str(caught.value), re.DOTALL), caught.value
    return None


@pytest.mark.parametrize("lie", NIFTI)
def test_misleading_nifti_files_are_refused_in_bounded_memory(lie, tmp_path, record_property):
    name, content, expected = NIFTI[lie]
    (tmp_path / name).write_bytes(content)
    values = check(lambda: read_all(tmp_path / name, Limits()), expected, record_property)
    assert values is None or values.shape == VALUES.shape
    assert values is None or np.isfinite(values).all()


@pytest.mark.parametrize("lie", METAIMAGE)
def test_misleading_metaimages_are_refused_in_bounded_memory(lie, tmp_path, record_property):
    content, expected = METAIMAGE[lie]
    (tmp_path / "v.mha").write_bytes(content)
    values = check(lambda: read_all(tmp_path / "v.mha", Limits()), expected, record_property)
    assert values is None or np.array_equal(values, VALUES)


@pytest.mark.parametrize("lie", DICOM)
def test_misleading_dicom_files_are_refused_in_bounded_memory(lie, tmp_path, record_property):
    make, expected = DICOM[lie]
    make(tmp_path)
    values = check(lambda: read_all(f"{tmp_path}/", Limits()), expected, record_property)
    assert values is None or np.array_equal(values, VALUES)


def test_a_slice_that_is_a_dangling_link_is_not_skipped(tmp_path):
    link_to_nothing(tmp_path)
    with pytest.raises(FormatError, match=r"/4\.dcm: is a link to a file that is not there"):
        read_all(f"{tmp_path}/", Limits())


GRID = Grid((20, 18, 3), AFFINE)
POINT = '{"label": 20, "X": 1, "Y": 2, "Z": 3}'
CENTROIDS = {
    "lists 100,000 deep": ("verse", b"[" * 100_000, "is not JSON"),
    "objects 100,000 deep": ("verse", b'{"a":' * 100_000, "is not JSON"),
    "a label of 5,000 digits": ("verse", f"[{POINT.replace('20', '9' * 5000)}]".encode(), "JSON"),
    "positions beyond all numbers": ("verse-2019-challenge", POINT.replace("1", "1e999"), None),
    "10,000 points": ("verse-2019-challenge", f"[{', '.join([POINT] * 10_000)}]".encode(), None),
    "10,000 levels": ("verse-2019-challenge", POINT.replace("20", "99"), None),
    "a line of a megabyte": ("lml", b"# 0\n200\tL1\t" + b"1" * 10**6 + b"\t2\t3", None),
    "half a million words": ("lml", b"# 0\n" + b"a " * 500_000, "expected an id"),
    "bytes that are no text": ("lml", bytes(range(128, 256)) * 9, "is no .lml file"),
}


@pytest.mark.parametrize("lie", CENTROIDS)
def test_misleading_centroid_files_are_refused_in_bounded_memory(lie, record_property):
    convention, content, expected = CENTROIDS[lie]
    if isinstance(content, str):
        content = f"[{', '.join([content] * 1000)}]".encode()

    def work():
        return read_centroids(content, "points", convention=convention, grid=GRID)

    found = check(work, expected, record_property)
    assert found is None or len(found.positions_xyz_mm) <= 1
    assert found is None or all(len(note) < 2000 for note in found.notes)


def workbook(change):
    """Write a small workbook and change the sheet in it."""
    book = openpyxl.Workbook()
    book.active.append(["scan", "age"])
    book.active.append(["s1", "61"])
    plain, out = io.BytesIO(), io.BytesIO()
    book.save(plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith("sheet1.xml") else content)
    return out.getvalue()


def rows(text):
    return lambda sheet: sheet.replace(b"</sheetData>", text + b"</sheetData>")


LAUGHS = b"".join(
    b'<!ENTITY a%d "%s">' % (n, b"&a%d;" % (n - 1) * 10 if n else b"ha") for n in range(12)
)


def entities(sheet):
    head, _, tail = sheet.partition(b"<worksheet")
    return (
        head + b"<!DOCTYPE worksheet [" + LAUGHS + b"]><worksheet"
        + tail.replace(b"</sheetData>", b"<row><c><v>&a11;</v></c></row></sheetData>")
    )  # fmt: skip


TABLES = {
    "a sheet of gigabytes": (workbook(rows(b" " * (100 << 20))), "t.xlsx", "it inflates to"),
    "a row at the end of the world": (
        workbook(rows(b'<row r="99999999999"><c><v>1</v></c></row>')), "t.xlsx", "has more than",
    ),
    "a cell at the end of the last row": (
        workbook(rows(b'<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>')), "t.xlsx",
        "has more than",
    ),
    "a wide row 200 times": (
        workbook(rows(b'<row><c r="XFD1"><v>1</v></c></row>' * 200)), "t.xlsx", "has more than",
    ),
    "entities of entities": (workbook(entities), "t.xlsx", "has a document type"),
    "16 million columns": (b";" * (16 << 20), "t.csv", "has more than .* cells"),
    "10 million rows": (b"\n" * (10 << 20), "t.csv", "has more than 200000 rows"),
    "10,000 columns of one name": (b";".join([b"a"] * 10_000), "t.csv", None),
    "a quote without end": (b'"' + b"a;" * 10**6, "t.csv", "is not a table"),
}  # fmt: skip


@pytest.mark.parametrize("lie", TABLES)
def test_misleading_tables_are_refused_in_bounded_memory(lie, record_property):
    content, name, expected = TABLES[lie]
    check(lambda: read_sheet(content, name, delimiter=";"), expected, record_property)


def test_small_files_are_read_only_up_to_their_size_limit(tmp_path, record_property):
    path = tmp_path / "points.json"
    with path.open("wb") as sparse:
        sparse.truncate(100 << 30)
    fs = LocalFileSystem()
    check(lambda: read_small_file(fs, str(path), 1 << 20), "more than 1048576", record_property)
    path.write_bytes(b"x" * 100)
    assert read_small_file(fs, str(path), 100) == b"x" * 100
    with pytest.raises(FormatError):
        read_small_file(fs, str(path), 99)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(axis_voxels=19), "--max-axis-voxels"),
        (Limits(volume_bytes=2 * VALUES.nbytes - 1), "--max-volume-gb"),
        (Limits(slice_bytes=2 * VALUES[..., 0].nbytes - 1), "slices of 20 x 18"),
        (Limits(spacing_range_mm=(0.81, 10)), "expected 0.81 to 10"),
        (Limits(spacing_range_mm=(0.1, 2.4)), "expected 0.1 to 2.4"),
        (Limits(dicom_files=2), "holds 3 files, expected at most 2"),
        (Limits(dicom_file_bytes=700), "more than 700 bytes"),
        (Limits(max_position_mm=2.49), "first voxel lies at"),
    ],
)
def test_each_limit_is_enforced_and_can_be_raised(limits, expected, tmp_path):
    affine = AFFINE + np.outer([0, 0, 1, 0], [0, 0, 0, 2.5])
    write_dicom_series(tmp_path / "series", VALUES, affine, DicomForm())
    np.testing.assert_array_equal(read_all(f"{tmp_path}/series/", Limits()), VALUES)
    with pytest.raises(FormatError, match=expected):
        read_all(f"{tmp_path}/series/", limits)


def test_values_exactly_at_the_limits_are_accepted(tmp_path):
    path = tmp_path / "v.nii"
    path.write_bytes(nifti())
    exact = Limits(
        axis_voxels=20,
        volume_bytes=VALUES.nbytes,
        slice_bytes=VALUES[..., 0].nbytes,
        spacing_range_mm=(0.79999, 2.50001),
        max_position_mm=0,
        header_bytes=352,
    )
    np.testing.assert_array_equal(read_all(path, exact), VALUES)
    with pytest.raises(FormatError, match="vox_offset"):
        read_all(path, Limits(header_bytes=351))
    write_metaimage(tmp_path / "v.mhd", VALUES.transpose(2, 1, 0), AFFINE, MetaImageForm())
    with pytest.raises(FormatError, match="HeaderSize"):
        read_all(tmp_path / "v.mhd", Limits(header_bytes=9))


def test_the_largest_public_scan_is_within_the_limits_in_any_type():
    grid = Grid((960, 2048, 2023), np.diag([0.2, 0.2, 0.2, 1.0]))
    Limits().check_grid(grid, 8, "v.nii")


def test_deeply_nested_json_is_a_note(tmp_path):
    """Python's own limits differ by version, and its errors must be caught."""
    deep = json.dumps("x") + "[" * 1_000_000
    with pytest.raises(FormatError):
        read_centroids(deep.encode(), "p", convention="verse", grid=GRID)
