"""The header parser, compared with pydicom."""

import io
import logging
import struct
import time
import warnings
import zlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import ImplicitVRLittleEndian

from spinezarr.formats.dicom_data_set import HeaderError
from spinezarr.formats.dicom_fragments import TruncatedPixelsError, read_fragments
from spinezarr.formats.dicom_header import inflate_data_set, is_bare_data_set, read_header
from spinezarr.formats.dicom_keywords import KEYWORDS
from spinezarr.testing import DICOM_TRANSFER_SYNTAXES

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
NUMERIC = {b"DS", b"IS", b"US", b"UL"}
ONLY_OURS = {"ExplVR_LitEndNoMeta.dcm", "rtstruct.dcm"}
"""Files without a preamble, which pydicom reads only with ``force=True``."""
NOT_DICOM = {"ExplVR_BigEndNoMeta.dcm", "no_meta.dcm"}
"""Files that are no DICOM: big endian without a preamble, and a data set behind a stray byte."""


def header_of(data, **options):
    limits = {"max_bytes": 1 << 25, "max_inflated_bytes": 1 << 26, **options}
    return read_header(lambda a, b: data[a:b], len(data), **limits)


def values_of(dataset, keyword, vr):
    """Return the values of an element from pydicom, as a list."""
    value = dataset.get(keyword)
    values = value if isinstance(value, MultiValue | list) else [value]
    if value in (None, ""):
        return []
    # Blanks around a value are padding (PS3.5 section 6.2), which pydicom leaves within lists.
    return [float(item) if vr in NUMERIC else str(item).strip() for item in values]


def assert_as_pydicom_reads(header, dataset):
    for keyword, (_, vr) in KEYWORDS.items():
        if vr == b"SQ" or keyword in ("MediaStorageSOPClassUID", "TransferSyntaxUID"):
            continue
        assert (keyword in header.data) == (keyword in dataset), keyword
        found = (header.data.numbers if vr in NUMERIC else header.data.texts)(keyword)
        assert [*found] == values_of(dataset, keyword, vr), keyword


def files_with_pydicom():
    return sorted(path.name for path in TEST_FILES.glob("*.dcm") if path.name != "badVR.dcm")


@pytest.mark.parametrize("name", files_with_pydicom())
def test_headers_of_all_files_of_pydicom_are_parsed_as_pydicom_parses_them(name):
    data = (TEST_FILES / name).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            if name in NOT_DICOM:
                assert header_of(data) is None
                return
            dataset = pydicom.dcmread(io.BytesIO(data), force=name in ONLY_OURS)
            header = header_of(data)
            assert_as_pydicom_reads(header, dataset)
        finally:
            logging.disable(logging.NOTSET)
    assert (header.pixels is not None) == ("PixelData" in dataset)
    if header.pixels is None or header.transfer_syntax == DICOM_TRANSFER_SYNTAXES["deflated"]:
        return
    start, size = header.pixels.start, header.pixels.size_bytes
    if size is None:
        assert data[start : start + 4] == b"\xfe\xff\x00\xe0"
    else:
        assert data[start : start + size] == dataset.PixelData


def test_the_error_of_an_invalid_number_does_not_quote_it():
    header = header_of((TEST_FILES / "badVR.dcm").read_bytes())
    with pytest.raises(HeaderError) as caught:
        header.data.numbers("NumberOfFrames")
    assert str(caught.value) == "NumberOfFrames is not a number"


# Data sets of all kinds


def encoded(dataset, *, implicit=False, big_endian=False):
    """Write a data set without anything before it."""
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, implicit_vr=implicit, little_endian=not big_endian)
    return out.getvalue()


def file_of(body, syntax):
    """Put preamble and meta information before a data set."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CT
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = syntax
    out = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(out, meta)
    return bytes(128) + b"DICM" + out.getvalue() + body


numbers = st.floats(-1e6, 1e6).map(lambda x: float(f"{x:.6g}"))
words = st.text("ABCDE_ 09", max_size=12).map(str.strip)
leaves = st.fixed_dictionaries(
    {},
    optional={
        "ImageType": st.lists(words.filter(bool), min_size=1, max_size=4),
        "SeriesDescription": words,
        "SliceThickness": numbers,
        "SeriesNumber": st.integers(-9, 10**6),
        "Rows": st.integers(0, 65535),
        "RescaleSlope": numbers,
        "ImagePositionPatient": st.lists(numbers, min_size=3, max_size=3),
        "PatientName": words,
        "ImageComments": st.text("ABC ", max_size=400).map(str.strip),
        "InstanceCreatorUID": st.just("1.2.3.4"),
    },
)
sequences = st.recursive(
    leaves,
    lambda inner: st.tuples(
        leaves, st.sampled_from(["ReferencedSeriesSequence", "SourceImageSequence"]),
        st.lists(inner, max_size=3),
    ),
    max_leaves=12,
)  # fmt: skip


def data_set(tree, *, undefined):
    """Build a data set with sequences, each item and sequence with or without a length."""
    plain, keyword, items = tree if isinstance(tree, tuple) else (tree, None, [])
    dataset = Dataset()
    for name, value in plain.items():
        setattr(dataset, name, value)
    if keyword is not None:
        setattr(dataset, keyword, [data_set(item, undefined=undefined) for item in items])
        dataset[keyword].is_undefined_length = undefined
        for item in dataset[keyword].value:
            item.is_undefined_length_sequence_item = undefined
    return dataset


@given(
    tree=sequences,
    undefined=st.booleans(),
    form=st.sampled_from(["implicit-le", "explicit-le", "explicit-be", "deflated"]),
    after=st.booleans(),
)
def test_any_data_set_is_parsed_as_pydicom_parses_it(tree, undefined, form, after):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of texts that are no proper values
        dataset = data_set(tree, undefined=undefined)
        dataset.SOPClassUID = CT
        if after:
            block = dataset.private_block(0x0019, "SOMEBODY", create=True)
            block.add_new(1, "OB", bytes(300))
        body = encoded(dataset, implicit=form == "implicit-le", big_endian=form == "explicit-be")
        if form == "deflated":
            deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            body = deflate.compress(body) + deflate.flush()
        data = file_of(body, DICOM_TRANSFER_SYNTAXES[form])
        header = header_of(data)
        assert_as_pydicom_reads(header, pydicom.dcmread(io.BytesIO(data)))
    assert header.sop_classes == (CT, CT)
    assert header.pixels is None


@pytest.mark.parametrize("implicit", [False, True])
def test_headers_of_other_classes_are_read_only_up_to_their_series(implicit):
    dataset = Dataset()
    dataset.SOPClassUID = MR
    dataset.SeriesInstanceUID = "1.2.3.4"
    dataset.SeriesNumber = 7
    dataset.Rows = 12
    body = encoded(dataset, implicit=implicit)
    data = file_of(body, DICOM_TRANSFER_SYNTAXES["implicit-le" if implicit else "explicit-le"])
    data = data.replace(CT.encode() + b"\0", MR.encode() + b"\0")
    header = header_of(data, classes=[CT])
    assert header.sop_classes == (MR, MR)
    assert header.data.text("SeriesInstanceUID") == "1.2.3.4"
    assert "Rows" not in header.data
    assert "Rows" in header_of(data, classes=[CT, MR]).data


def test_elements_of_implicit_vr_within_explicit_ones_are_skipped():
    inner = struct.pack("<HHL4s", 0x0008, 0x0100, 4, b"CODE")
    item = struct.pack("<HHL", 0xFFFE, 0xE000, len(inner)) + inner
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    for vr in (b"SQ", b"UN"):
        sequence = struct.pack("<HH2sHL", 0x0008, 0x1032, vr, 0, 0xFFFFFFFF) + item + end
        rows = struct.pack("<HH2sHH", 0x0028, 0x0010, b"US", 2, 77)
        data = file_of(sequence + rows, DICOM_TRANSFER_SYNTAXES["explicit-le"])
        assert header_of(data).data.numbers("Rows") == (77,)


# Without a preamble


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("with_length", [False, True])
def test_a_data_set_without_preamble_is_distinguished_from_other_files(implicit, with_length):
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.SOPClassUID = CT
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows = 5
    body = encoded(dataset, implicit=implicit)
    if with_length:  # older writers put the length of the group first
        head = (0x0008, 0x0000, 4) if implicit else (0x0008, 0x0000, b"UL", 4)
        body = struct.pack("<HHL" if implicit else "<HH2sH", *head) + bytes(4) + body
    assert is_bare_data_set(body)
    header = header_of(body)
    assert header.data.numbers("Rows") == (5,)
    assert (header.transfer_syntax == ImplicitVRLittleEndian) == implicit


def test_file_meta_information_without_a_preamble_is_used():
    dataset = Dataset()
    dataset.Rows = 5
    data = file_of(encoded(dataset), DICOM_TRANSFER_SYNTAXES["explicit-le"])[132:]
    assert is_bare_data_set(data)
    assert header_of(data).sop_classes == (CT,)


@given(st.binary(max_size=300))
def test_random_bytes_are_not_taken_for_a_data_set(data):
    assert not is_bare_data_set(data)


@given(st.binary(min_size=2, max_size=300))
def test_invalid_bytes_behind_the_first_group_are_no_data_set(data):
    assert not is_bare_data_set(b"\x08\0" + data)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        bytes(2000),
        b"<!DOCTYPE html><html>",
        b"Dear colleague, thank you",
        b"\x08\0\x16\0UI\x1a\0" + CT.encode()[:-2],  # cut short
        b"\x08\0\x16\0UI\x1a\0" + CT.encode()[:-3] + b".\0\0\0",
        b"\x08\0\x16\0UI\x08\0Jane Doe",
        b"\x08\0\x18\0UI\x02\x001\0\x08\0\x16\0UI\x04\x001.2\0",  # not ascending
        b"\x10\0\x10\0PN\x08\0Jane Doe",
    ],
)
def test_files_that_only_begin_like_a_data_set_are_refused(start):
    assert not is_bare_data_set(start)


# Limits


def element(group, number, value, vr=b"UN"):
    return struct.pack("<HH2sHL", group, number, vr, 0, len(value)) + value


def test_an_overlong_value_of_a_needed_element_is_refused():
    data = file_of(element(0x0028, 0x0030, b"1\\" * 3000), DICOM_TRANSFER_SYNTAXES["explicit-le"])
    with pytest.raises(HeaderError, match="PixelSpacing has 6000 bytes, expected at most 4096"):
        header_of(data)


def test_values_of_other_elements_are_not_read():
    size = 1 << 30
    rows = struct.pack("<HH2sHH", 0x0028, 0x0010, b"US", 2, 9)
    start = file_of(b"", DICOM_TRANSFER_SYNTAXES["explicit-le"])
    start += struct.pack("<HH2sHL", 0x0019, 0x1001, b"OB", 0, size)
    reads = []

    def read(first, stop):
        """Return bytes of a virtual file of a gigabyte."""
        reads.append(stop - first)
        whole = start[first:stop].ljust(stop - first, b"\xaa")
        at = len(start) + size - first
        return whole[:at] + rows if 0 <= at <= stop - first else whole

    header = read_header(
        read, len(start) + size + len(rows), max_bytes=1 << 20, max_inflated_bytes=1 << 20
    )
    assert header.data.numbers("Rows") == (9,)
    assert sum(reads) < 1 << 16


def nested(depth):
    """Return nested sequences, none of which ends."""
    start = struct.pack("<HH2sHL", 0x0008, 0x1115, b"SQ", 0, 0xFFFFFFFF)
    return (start + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)) * depth


def groups_of(count):
    """Return a sequence of ``count`` empty frames."""
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    return struct.pack("<HH2sHL", 0x5200, 0x9230, b"SQ", 0, len(item) * count) + item * count


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (nested(5000), "sequences are nested more than 64 deep"),
        (nested(10), "cut short within a sequence"),
        (groups_of(300_000), "more than 200000 items"),
        (element(0x0028, 0x0010, b"")[:-4] + b"\xff\xff\xff\x7f", "Rows has 2147483647 bytes"),
        (nested(1)[:12] + b"\xfe\xff\xdd\xe1" + bytes(9), "an item without the tag"),
    ],
)
def test_hostile_headers_are_refused_quickly(body, expected):
    began = time.process_time()
    with pytest.raises(HeaderError, match=expected):
        header_of(file_of(body, DICOM_TRANSFER_SYNTAXES["explicit-le"]))
    assert time.process_time() - began < 10


def test_a_header_is_read_no_further_than_the_limit():
    start = struct.pack("<HH2sHL", 0x0008, 0x1115, b"SQ", 0, 0xFFFFFFFF)
    body = start + struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 200_000
    data = file_of(body, DICOM_TRANSFER_SYNTAXES["explicit-le"])
    with pytest.raises(HeaderError, match="header is too long"):
        header_of(data, max_bytes=100_000)


def test_a_read_of_another_length_than_requested_is_refused():
    """A server without ranges returns too much, and a file that was cut returns too little."""
    long = element(0x0019, 0x1001, bytes(1 << 15))
    rows = struct.pack("<HH2sHH", 0x0028, 0x0010, b"US", 2, 9)
    data = file_of(long + rows, DICOM_TRANSFER_SYNTAXES["explicit-le"])
    limits = {"max_bytes": 1 << 20, "max_inflated_bytes": 1 << 20}
    for read, size in ((lambda *_: data, len(data)), (lambda a, b: data[a:b], len(data) + 99)):
        with pytest.raises(HeaderError, match=r"bytes were read, expected"):
            read_header(read, size, **limits)


def test_a_deflated_bomb_is_not_inflated():
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    packed = deflate.compress(bytes(10_000_000)) + deflate.flush()
    with pytest.raises(HeaderError, match="it inflates to more than 1000000 bytes"):
        inflate_data_set(packed, 1_000_000)
    with pytest.raises(HeaderError, match="does not inflate"):
        inflate_data_set(b"\xff" * 20, 1_000_000)


def item(value, tag=0xE000):
    return struct.pack("<HHL", 0xFFFE, tag, len(value)) + value


def test_fragments_are_found_with_their_first_bytes():
    data = (
        b"before" + item(b"") + item(b"\xff\xd8abcd") + item(b"xy") + item(b"", 0xE0DD) + b"after"
    )
    found = read_fragments(lambda a, b: data[a:b], len(data), 6)
    assert [data[part.start : part.start + part.size_bytes] for part in found] == [
        b"", b"\xff\xd8abcd", b"xy"
    ]  # fmt: skip
    assert [part.first_bytes for part in found] == [b"", b"\xff\xd8ab", b"xy"]


@pytest.mark.parametrize("cut", [1, 8, 9, 12])
def test_fragments_without_an_end_are_reported_as_cut(cut):
    data = item(b"") + item(b"abcd") + item(b"", 0xE0DD)
    with pytest.raises(TruncatedPixelsError, match="its pixels do not end"):
        read_fragments(lambda a, b: data[:-cut][a:b], len(data) - cut, 0)
