import gzip
import hashlib
import os
import re
import weakref
import zlib
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own pages call it so
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spinezarr.errors import FormatError
from spinezarr.formats.limits import Limits
from spinezarr.formats.volume import open_volume
from spinezarr.testing import DTYPES, MetaImageForm, all_axcodes, write_metaimage

REAL = Path(__file__).parents[3] / "shared/data/real/elastix/3DCT_lung_baseline_small.mha"

VALUES = (np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3) * 37) % 2000 - 1000
VOXELS = VALUES.astype("<i2").tobytes(order="F")
PACKED = zlib.compress(VOXELS)
PERMUTED = "0 1 0 0 0 1 1 0 0"
"""An asymmetric direction matrix, so that confusing rows and columns would show."""
FIELDS = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": PERMUTED,
    "Offset": "-40.5 12.25 -700",
    "ElementSpacing": "0.7 0.8 2.5",
    "DimSize": "5 4 3",
    "ElementType": "MET_SHORT",
}
LPS_TO_RAS = np.diag([-1, -1, 1, 1])


def lines_of(changes):
    """Compose the lines of a header; a change to None leaves a key out."""
    fields = {**FIELDS, **changes}
    data_file = fields.pop("ElementDataFile", "LOCAL")
    lines = [f"{key} = {value}" for key, value in fields.items() if value is not None]
    return [*lines, f"ElementDataFile = {data_file}"]


def header(**changes):
    return ("\n".join(lines_of(changes)) + "\n").encode()


def packed_header(packed=PACKED, **changes):
    return header(CompressedData="True", CompressedDataSize=len(packed), **changes)


def read(path, thicknesses=None):
    volume = open_volume(LocalFileSystem(), str(path))
    slabs = list(volume.slabs(thicknesses or [volume.grid.shape_ijk[2]]))
    assert all(slab.dtype == volume.dtype for slab in slabs)
    return volume, np.concatenate(slabs, axis=2)


def read_of(path, content):
    path.write_bytes(content)
    return read(path)


def read_back(path, content):
    return read_of(path, content)[1]


def assert_read_as_simpleitk_does(path, thicknesses=None):
    model = sitk.ReadImage(str(path))
    volume, values = read(path, thicknesses)
    expected = sitk.GetArrayFromImage(model).T
    assert volume.dtype == values.dtype == expected.dtype
    np.testing.assert_array_equal(values, expected)
    assert volume.grid.shape_ijk == model.GetSize()
    for corner in product(*((0, n - 1) for n in model.GetSize())):
        place_ras = LPS_TO_RAS @ [*model.TransformIndexToPhysicalPoint(corner), 1]
        np.testing.assert_allclose(volume.grid.affine_ijk @ [*corner, 1], place_ras, atol=1e-9)
    return volume


def refusal(path, content):
    """Return the error of ``open_volume``, or else of reading ``content`` to its end."""
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def refusal_unread(path, content):
    """Return the error of ``content`` that is raised before any voxel is read."""
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        open_volume(LocalFileSystem(), str(path))
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("metaimage")


@st.composite
def arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    values = rng.normal(0, 1000, shape).astype(dtype)
    values[rng.random(shape) < 0.1] = np.nan
    return values


@st.composite
def directions(draw):
    """Draw a rotation or reflection, most of them oblique, some along the axes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        return np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)


@st.composite
def partitions(draw, total):
    cuts = draw(st.sets(st.integers(1, max(1, total - 1)), max_size=3)) if total > 1 else ()
    return [b - a for a, b in pairwise([0, *sorted(cuts), total])]


@settings(max_examples=150)
@given(
    data=st.data(),
    stored=arrays(),
    direction=directions(),
    spacing=st.tuples(*[st.floats(0.1, 5)] * 3),
    origin=st.tuples(*[st.floats(-2000, 2000)] * 3),
    packed=st.booleans(),
    suffix=st.sampled_from([".mha", ".mhd"]),
)
def test_files_written_by_simpleitk_are_read_as_simpleitk_reads_them(
    *, folder, data, stored, direction, spacing, origin, packed, suffix
):
    image = sitk.GetImageFromArray(stored)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction.ravel().tolist())
    path = folder / f"itk{suffix}"
    sitk.WriteImage(image, str(path), packed)
    volume = assert_read_as_simpleitk_does(path, data.draw(partitions(stored.shape[0])))
    assert volume.notes == ()


@pytest.mark.parametrize("axcodes", all_axcodes())
def test_every_orientation_is_read_as_simpleitk_reads_it(folder, axcodes):
    path = folder / "turned.mha"
    write_metaimage(
        path, VALUES, np.diag([0.7, 0.8, 2.5, 1]), MetaImageForm(axcodes, oblique_deg=9)
    )
    volume = assert_read_as_simpleitk_does(path)
    assert volume.grid.axis_map.axcodes == axcodes
    np.testing.assert_array_equal(volume.grid.axis_map.to_zyx(read(path)[1]), VALUES)


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_file_is_read_as_simpleitk_reads_it(
    folder, dtype, big_endian, packed, suffix
):
    path = folder / f"kind{suffix}"
    form = MetaImageForm("PIR", dtype, oblique_deg=9, big_endian=big_endian, compressed=packed)
    write_metaimage(path, np.abs(VALUES) % 120, np.diag([0.7, 0.8, 2.5, 1]), form)
    assert assert_read_as_simpleitk_does(path, [1, 2]).dtype == np.dtype(dtype)


if REAL.exists():

    def test_a_real_file_is_read_as_simpleitk_reads_it():
        volume = assert_read_as_simpleitk_does(REAL, [1, 30, 33])
        assert volume.notes == ()
        assert volume.source_file().sha256 == hashlib.sha256(REAL.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("element", "dtype"), [("MET_LONG", "i4"), ("MET_ULONG", "u4"), ("MET_CHAR", "i1")]
)
def test_element_types_have_the_sizes_that_simpleitk_gives_them(folder, element, dtype):
    path = folder / "v.mha"
    voxels = (np.arange(60) * 4).astype(dtype).tobytes()
    path.write_bytes(header(ElementType=element) + voxels)
    assert assert_read_as_simpleitk_does(path).dtype == dtype


@pytest.mark.parametrize(
    ("field", "other"),
    [
        *product(["Offset"], ["Position", "Origin", "ImagePosition"]),
        *product(["TransformMatrix"], ["Rotation", "Orientation"]),
        ("ElementSpacing", "ElementSize"),
        ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"),
    ],
)
def test_other_names_of_fields_are_read_as_simpleitk_reads_them(folder, field, other):
    path = folder / "v.mha"
    value = "True" if "MSB" in field else FIELDS[field]
    expected, expected_values = read_of(path, header(**{field: value}) + VOXELS)
    for field_value in (None, value):
        path.write_bytes(header(**{field: field_value, other: value}) + VOXELS)
        found = assert_read_as_simpleitk_does(path)
        np.testing.assert_array_equal(found.grid.affine_ijk, expected.grid.affine_ijk)
        np.testing.assert_array_equal(read(path)[1], expected_values)


def test_element_spacing_overrides_element_size(folder):
    path = folder / "v.mha"
    path.write_bytes(header(ElementSize="1 1 9") + VOXELS)
    assert_read_as_simpleitk_does(path)


@pytest.mark.parametrize(
    ("other", "value"),
    [
        ("Position", "1 2 3"),
        ("Origin", "-40.5 12.25 -701"),
        ("Rotation", "1 0 0 0 1 0 0 0 1"),
        ("ElementByteOrderMSB", "True"),
    ],
)
def test_synonymous_fields_that_disagree_are_refused(folder, other, value):
    message = refusal_unread(folder / "v.mha", header(**{other: value}) + VOXELS)
    assert re.search(rf"says .* and {other} = '{value}'\. Find out which is right", message)


def test_a_field_given_twice_must_have_the_same_value(folder):
    path, twice = folder / "v.mha", b"Offset = -40.50 12.25 -7e2\n"
    np.testing.assert_array_equal(read_back(path, twice + header() + VOXELS), VALUES)
    assert "Offset = " in refusal_unread(path, twice.replace(b"7", b"8") + header() + VOXELS)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: "\r\n".join(lines) + "\r\n",
        lambda lines: "\n".join(line.replace(" = ", "=") for line in lines) + "\n",
        lambda lines: "\n".join(line.replace(" = ", " \t=  ") + " \t " for line in lines) + "\n",
        lambda lines: "\n".join("  " + line.replace(" = ", " : ") for line in lines) + "\n",
        lambda lines: "\n\n".join(lines) + "\n",
        lambda lines: "\n".join(["Comment = a = b: c", "0008|0005 = x", "Name =", *lines]) + "\n",
        lambda lines: "\n".join(["Comment = two", "lines", *lines]) + "\n",
        lambda lines: "\n".join([*lines[-2::-1], lines[-1]]) + "\n",
        lambda lines: "\n".join(lines).replace("LOCAL", "Local") + "\n",
        lambda lines: "\n".join(lines).replace("False", "0").replace("True", "t") + "\n",
        lambda lines: "Name = M\udcfcller\n" + "\n".join(lines) + "\n",
        lambda lines: "Comment = " + "x" * 10_000 + "\n" + "\n".join(lines) + "\n",
    ],
)
def test_headers_of_any_spacing_and_line_ends_are_read(folder, change):
    text = change(lines_of({})).encode("utf-8", "surrogateescape")
    volume, values = read_of(folder / "v.mha", text + VOXELS)
    np.testing.assert_array_equal(values, VALUES)
    np.testing.assert_array_equal(
        volume.grid.affine_ijk, read_of(folder / "w.mha", header() + VOXELS)[0].grid.affine_ijk
    )


@pytest.mark.parametrize(
    ("missing", "note"),
    [
        ("TransformMatrix", "no TransformMatrix.*assumed LPS"),
        ("Offset", "no Offset.*assumed 0, 0, 0"),
        ("BinaryDataByteOrderMSB", "no byte order; assumed little-endian"),
    ],
)
def test_missing_fields_of_a_header_get_a_note(folder, missing, note):
    path = folder / "v.mha"
    path.write_bytes(header(**{missing: None}) + VOXELS)
    (found,) = assert_read_as_simpleitk_does(path).notes
    assert re.search(note, found)


def test_the_byte_order_may_be_missing_for_single_bytes(folder):
    content = header(ElementType="MET_UCHAR", BinaryDataByteOrderMSB=None) + VOXELS[:60]
    assert read_of(folder / "v.mha", content)[0].notes == ()


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("size", [-1, 500, 5000])
def test_bytes_before_the_voxels_are_skipped(folder, beside, size):
    path = folder / ("v.mhd" if beside else "v.mha")
    text = header(HeaderSize=size, ElementDataFile="v.raw" if beside else "LOCAL")
    padding = b"\xff" * (abs(size) if beside or size < 0 else size - len(text))
    (folder / "v.raw").write_bytes(padding + VOXELS)
    path.write_bytes(text if beside else text + padding + VOXELS)
    assert_read_as_simpleitk_does(path)
    np.testing.assert_array_equal(read(path)[1], VALUES)


def test_compressed_voxels_may_follow_other_bytes(folder):
    (folder / "v.zraw").write_bytes(bytes(17) + PACKED)
    content = packed_header(HeaderSize=17, ElementDataFile="v.zraw")
    np.testing.assert_array_equal(read_back(folder / "v.mhd", content), VALUES)


@pytest.mark.parametrize("packed", [PACKED, gzip.compress(VOXELS), zlib.compress(VOXELS, 0)])
def test_both_kinds_of_stream_that_metaio_inflates_are_read(folder, packed):
    path = folder / "v.mha"
    path.write_bytes(packed_header(packed) + packed)
    assert_read_as_simpleitk_does(path)
    # SimpleITK returns uninitialized memory here; the end of the file is the end of the stream.
    for unstated in (None, 0):
        content = header(CompressedData="True", CompressedDataSize=unstated) + packed
        np.testing.assert_array_equal(read_back(path, content), VALUES)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("local", [False, True])
def test_the_hash_covers_header_and_data_file_in_order(folder, local, packed):
    path = folder / ("whole.mha" if local else "whole.mhd")
    write_metaimage(path, VALUES, np.eye(4), MetaImageForm(compressed=packed))
    parts = [path] if local else [path, path.with_suffix(".zraw" if packed else ".raw")]
    content = b"".join(part.read_bytes() for part in parts)
    source = read(path)[0].source_file()
    assert source.sha256 == hashlib.sha256(content).hexdigest()
    assert source.size_bytes == len(content)


def test_the_hash_is_known_only_after_the_voxels(folder):
    path = folder / "v.mha"
    path.write_bytes(header() + VOXELS)
    with pytest.raises(RuntimeError, match="before slabs"):
        open_volume(LocalFileSystem(), str(path)).source_file()


@pytest.mark.parametrize("packed", [False, True])
def test_slabs_are_parts_of_the_volume_in_file_order_and_may_be_read_again(folder, packed):
    path = folder / "v.mha"
    write_metaimage(path, VALUES, np.eye(4), MetaImageForm(compressed=packed))
    volume, whole = read(path)
    for thicknesses in ([1, 2, 2], [5]):
        slabs = list(volume.slabs(iter(thicknesses)))
        assert [slab.shape for slab in slabs] == [(3, 4, n) for n in thicknesses]
        np.testing.assert_array_equal(np.concatenate(slabs, axis=2), whole)


@pytest.mark.parametrize("big_endian", [False, True])
def test_a_slab_without_references_is_freed(folder, big_endian):
    path = folder / "v.mha"
    write_metaimage(path, VALUES, np.eye(4), MetaImageForm(big_endian=big_endian))
    slabs = open_volume(LocalFileSystem(), str(path)).slabs([1, 4])
    slab = next(slabs)
    memory = weakref.ref(slab if slab.base is None else slab.base)
    del slab
    assert memory() is None
    assert next(slabs).shape == (3, 4, 4)


def test_both_files_are_read_from_any_file_system():
    fs = MemoryFileSystem()
    fs.pipe_file("/formats/v.mhd", header(ElementDataFile="v.raw"))
    fs.pipe_file("/formats/v.raw", VOXELS)
    (values,) = open_volume(fs, "/formats/v.mhd").slabs([3])
    np.testing.assert_array_equal(values, VALUES)
    fs.rm("/formats", recursive=True)


def test_a_pair_in_the_current_folder_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("v.raw").write_bytes(VOXELS)
    np.testing.assert_array_equal(read_back(Path("v.mhd"), header(ElementDataFile="v.raw")), VALUES)


class SizelessFileSystem(MemoryFileSystem):
    """A file system without sizes, like a web server that sends no Content-Length."""

    def info(self, path, **kwargs):
        return {**super().info(path, **kwargs), "size": None}


def test_a_file_of_unknown_size_is_refused():
    fs = SizelessFileSystem()
    fs.pipe_file("/formats/v.mha", header() + VOXELS)
    with pytest.raises(FormatError, match=r"/formats/v\.mha: its size is not known\. Copy it"):
        open_volume(fs, "/formats/v.mha")
    fs.rm("/formats", recursive=True)


@pytest.mark.parametrize("name", ["V.MHA", "1.2.3.mha", "a b.mha", "v.mhd"])
def test_voxels_may_follow_the_header_in_a_file_of_any_name(folder, name):
    np.testing.assert_array_equal(read_back(folder / name, header() + VOXELS), VALUES)


@pytest.mark.parametrize("name", ["s p a c e.raw", "1.2.3.raw", "Müller.raw", "v", "a..b", "x:y=z"])
def test_any_plain_name_in_the_folder_may_hold_the_voxels(tmp_path, name):
    (tmp_path / name).write_bytes(VOXELS)
    np.testing.assert_array_equal(
        read_back(tmp_path / "v.mha", header(ElementDataFile=name)), VALUES
    )


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "../v.raw",
        "./v.raw",
        "sub/v.raw",
        "sub\\v.raw",
        "..\\v.raw",
        "C:\\v.raw",
        "file:///etc/passwd",
        "LIST",
        "LIST 2",
        "v%03d.raw 0 4 1",
        "v%d.raw",
        "..%2fv.raw",
        "v\0.raw",
        "v\x1b[2J.raw",
        "v" * 256,
        "ä" * 128,
    ],
)
def test_a_data_file_that_is_no_plain_name_is_refused(tmp_path, name):
    (tmp_path / "sub").mkdir()
    for place in (tmp_path / "sub", tmp_path, tmp_path.parent):
        (place / "v.raw").write_bytes(VOXELS)
    message = refusal_unread(tmp_path / "v.mhd", header(ElementDataFile=name))
    assert ", expected LOCAL, or the name of one file" in message
    assert name in {"", ".", "..", "LIST"} or name[:20] not in message
    assert "Join the files into one .mha" in message


def test_a_name_that_is_not_utf_8_is_refused(tmp_path):
    content = header(ElementDataFile="v.raw").replace(b"v.raw", b"M\xfcller.raw")
    assert "the name of one file" in refusal_unread(tmp_path / "v.mhd", content)


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_bytes(VOXELS)
    (tmp_path / "v.raw").symlink_to("elsewhere")
    message = refusal_unread(tmp_path / "v.mhd", header(ElementDataFile="v.raw"))
    assert re.search(r"names .*/v\.raw as its data file, which is a link to .*/elsewhere;", message)
    assert f"--follow-links {tmp_path}, or copy them." in message


@pytest.fixture
def cache(tmp_path):
    """Return a download in the cache of Hugging Face: links to files named by their hash."""
    dataset = tmp_path / "datasets--a--b"
    (dataset / "blobs").mkdir(parents=True)
    (dataset / "snapshots" / "1f").mkdir(parents=True)
    blobs = {"v.mhd": header(ElementDataFile="v.raw"), "v.raw": VOXELS}
    for name, content in blobs.items():
        (dataset / "blobs" / f"{len(content):x}").write_bytes(content)
        link = dataset / "snapshots" / "1f" / name
        link.symlink_to(f"../../blobs/{len(content):x}")
    return dataset


def test_a_link_into_an_allowed_folder_is_followed(cache):
    path = str(cache / "snapshots/1f/v.mhd")
    with pytest.raises(FormatError) as caught:
        open_volume(LocalFileSystem(), path)
    named = re.search(r"--follow-links (\S+),", str(caught.value))[1]
    assert named == str(cache)
    volume = open_volume(LocalFileSystem(), path, Limits(link_folders=("/nowhere", named)))
    (values,) = volume.slabs([volume.grid.shape_ijk[2]])
    np.testing.assert_array_equal(values, VALUES)


@pytest.mark.parametrize(
    "target", ["../../../datasets--a--bc/v", "../../../secret", "../../blobs/absent"]
)
def test_a_link_out_of_the_allowed_folder_is_not_followed(cache, target):
    for name in ("datasets--a--bc/v", "secret"):
        (cache.parent / name).parent.mkdir(exist_ok=True)
        (cache.parent / name).write_bytes(VOXELS)
    link = cache / "snapshots/1f/v.raw"
    link.unlink()
    link.symlink_to(target)
    with pytest.raises(FormatError, match=r"is a link to|is not there"):
        open_volume(
            LocalFileSystem(), str(link.with_suffix(".mhd")), Limits(link_folders=(str(cache),))
        )


def test_a_chain_of_links_is_judged_by_its_end(cache):
    (cache.parent / "secret").write_bytes(VOXELS)
    blob = cache / "blobs" / f"{len(VOXELS):x}"
    blob.unlink()
    blob.symlink_to("../../secret")
    limits = Limits(link_folders=(str(cache),))
    with pytest.raises(FormatError, match=r"which is a link to .*/secret;"):
        open_volume(LocalFileSystem(), str(cache / "snapshots/1f/v.mhd"), limits)


def test_a_header_may_be_a_link_but_not_lead_to_another_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "v.raw").write_bytes(VOXELS)
    (tmp_path / "sub" / "v.mhd").write_bytes(header(ElementDataFile="v.raw"))
    (tmp_path / "v.mhd").symlink_to("sub/v.mhd")
    with pytest.raises(FormatError, match="which is not there"):
        open_volume(LocalFileSystem(), str(tmp_path / "v.mhd"))
    (tmp_path / "v.raw").write_bytes(VOXELS)
    np.testing.assert_array_equal(read(tmp_path / "v.mhd")[1], VALUES)


def test_a_folder_or_pipe_is_not_read(tmp_path):
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("sub", "pipe"):
        message = refusal_unread(tmp_path / "v.mhd", header(ElementDataFile=name))
        assert "which is no file; expected a plain file" in message


def test_a_data_file_that_is_missing_is_refused(tmp_path):
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("v.raw", "dangling"):
        message = refusal_unread(tmp_path / "v.mhd", header(ElementDataFile=name))
        assert "names a data file (ElementDataFile) which is not there. Download" in message


@pytest.mark.parametrize("size", [0, 1, len(VOXELS) - 1, len(VOXELS) + 1, 10 * len(VOXELS)])
def test_uncompressed_voxels_of_another_size_are_refused_unread(folder, size):
    data = (VOXELS * 10)[:size]
    (folder / "v.raw").write_bytes(data)
    for content in (header(ElementDataFile="v.raw"), header() + data):
        message = refusal_unread(folder / "v.mhd", content)
        assert f"has {size} bytes for its voxels" in message
        assert "120 for (5, 4, 3) voxels of type int16. Download both again." in message


@pytest.mark.parametrize(
    ("size", "found"), [(-1, 0), (10_000, 0), (len(header(HeaderSize=999)) + 1, 119)]
)
def test_voxels_that_do_not_fit_after_the_header_size_are_refused(folder, size, found):
    content = header(HeaderSize=size) + VOXELS[: -1 if size < 0 else None]
    assert f"has {119 if size < 0 else found} bytes" in refusal_unread(folder / "v.mha", content)


@pytest.mark.parametrize("extra", [b"\0", b"\n", PACKED, b"tail" * 9])
def test_bytes_after_compressed_voxels_are_refused(folder, extra):
    path = folder / "v.mha"
    assert "goes on after its voxels" in refusal(
        path, header(CompressedData="True") + PACKED + extra
    )
    # The stream is shorter than CompressedDataSize says.
    longer = packed_header(PACKED + extra) + PACKED + extra
    assert "goes on after its voxels" in refusal(path, longer)
    message = refusal_unread(path, packed_header() + PACKED + extra)
    assert f"has {len(PACKED) + len(extra)} bytes for its voxels" in message


def test_a_file_that_grew_after_it_was_opened_is_refused(folder):
    path = folder / "v.mha"
    path.write_bytes(header() + VOXELS)
    volume = open_volume(LocalFileSystem(), str(path))
    path.write_bytes(header() + VOXELS + b"\0")
    with pytest.raises(FormatError, match="goes on after its voxels"):
        list(volume.slabs([3]))


def test_a_file_that_shrank_after_it_was_opened_is_refused(folder):
    path = folder / "v.mha"
    path.write_bytes(header() + VOXELS)
    volume = open_volume(LocalFileSystem(), str(path))
    path.write_bytes(header() + VOXELS[:-1])
    with pytest.raises(FormatError, match=r"cut short.*about 119 of 120 bytes"):
        list(volume.slabs([1, 2]))
    path.write_bytes(header()[:-9])
    with pytest.raises(FormatError, match="ends before its voxels start"):
        list(volume.slabs([3]))


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
def test_a_stream_of_more_or_fewer_voxels_is_refused(folder, pack):
    path = folder / "v.mha"
    for extra in (b"\0", VOXELS):
        packed = pack(VOXELS + extra)
        assert "more voxels than its header says" in refusal(path, packed_header(packed) + packed)
    packed = pack(VOXELS[:-1])
    message = refusal(path, packed_header(packed) + packed)
    assert "cut short: its voxels end after about 119 of 120 bytes" in message


@pytest.mark.parametrize("packed", [PACKED, zlib.compress(VOXELS, 0), gzip.compress(VOXELS)])
def test_a_compressed_stream_cut_at_any_byte_is_refused(folder, packed):
    path = folder / "v.mha"
    for size in range(len(packed)):
        refusal(path, header(CompressedData="True") + packed[:size])
        refusal_unread(path, packed_header(packed) + packed[:size])


@pytest.mark.parametrize("level", [0, 1, 9])
def test_a_changed_byte_of_a_compressed_stream_is_refused_or_changes_no_voxel(folder, level):
    path = folder / "v.mha"
    packed = zlib.compress(VOXELS, level)
    refused = 0
    for at in range(len(packed)):
        changed = bytearray(packed)
        changed[at] ^= 0x15
        found = values_or_refusal(path, packed_header(packed) + changed)
        # Padding bits of the last byte of deflate carry no data.
        refused += isinstance(found, str)
        if not isinstance(found, str):
            np.testing.assert_array_equal(found, VALUES)
    assert refused >= len(packed) - 1


@pytest.fixture(scope="module")
def large():
    """Return more bytes than any buffer holds, so that the end of the file is read last."""
    voxels = np.random.default_rng(0).integers(-1000, 1000, (256, 256, 40), np.int16)
    return zlib.compress(voxels.tobytes(), 1)


def slabs_before_refusal(path, packed, reason):
    path.write_bytes(header(DimSize="256 256 40", CompressedData="True") + packed)
    got = []
    with pytest.raises(FormatError, match=reason):
        got.extend(open_volume(LocalFileSystem(), str(path)).slabs([10] * 4))
    return len(got)


def test_a_large_stream_is_refused_where_it_breaks(folder, large):
    path = folder / "v.mha"
    wrong = large[:-1] + bytes([large[-1] ^ 1])
    for cut in (large[:-1], large[:-4]):
        assert slabs_before_refusal(path, cut, "cut short.*Download it again") >= 3
    assert slabs_before_refusal(path, wrong, "does not decompress") >= 3
    assert slabs_before_refusal(path, large + b"\0", "goes on after its voxels") == 4
    assert 0 < slabs_before_refusal(path, large[: len(large) // 2], "cut short") < 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty. Download it again"),
        (b"<!DOCTYPE html><html>404</html>" * 30, "is not a MetaImage: it looks like a web page"),
        (bytes(1000), "is not a MetaImage: it looks like a file of zeros"),
        (b"\n" * 1000, "is not a MetaImage"),
        (gzip.compress(header() + VOXELS), "is not a MetaImage|has no NDims"),
        (header()[:100], "first 100 bytes is 'ElementDataFile"),
        (b"x" * (1 << 20) + b"\n" + header() + VOXELS, "first 1048576 bytes"),
        (b"ElementDataFile = LOCAL\n", "has no NDims"),
        (header()[:-1], "has 0 bytes for its voxels"),
    ],
)
@pytest.mark.parametrize("name", ["v.mha", "v.mhd"])
def test_a_file_that_is_no_metaimage_is_refused(folder, name, content, reason):
    assert re.search(reason, refusal_unread(folder / name, content))


@pytest.mark.parametrize(
    ("field", "values", "expected"),
    [
        ("NDims", ["2", "11", "three", ""], "expected 3, or up to 10 where the further axes"),
        ("NDims", ["4"], "expected 4 whole numbers above 0"),
        ("ObjectType", ["Tube", "Scene"], "expected Image"),
        ("ElementNumberOfChannels", ["3", "0"], "expected 1"),
        ("DistanceUnits", ["cm", "um"], "expected mm"),
        ("FileFormatVersion", ["1"], "expected 0"),
        ("BinaryData", ["False"], "Write it again as binary"),
        ("BinaryData", ["maybe", ""], "expected True or False"),
        ("CompressedData", ["x"], "expected True or False"),
        ("BinaryDataByteOrderMSB", ["big"], "expected True or False"),
        ("ElementToIntensityFunctionSlope", ["2", "0"], "scales its values by"),
        ("ElementToIntensityFunctionOffset", ["-1024"], "adds -1024"),
        ("ElementToIntensityFunctionSlope", ["x", ""], "expected 1 numbers"),
        (
            "ElementType",
            ["MET_OTHER", "MET_UCHAR_ARRAY", "MET_STRING", "short", "", "MET_ASCII_CHAR"],
            "expected MET_CHAR or MET_UCHAR or .* or MET_DOUBLE",
        ),
        (
            "DimSize",
            ["5 4", "5 4 3 1", "5 4 0", "5 4 -3", "5 4 3.0", "5 4 x", "", "1e1 4 3", "5 4 1_0"],
            "expected 3 whole numbers above 0",
        ),
        (
            "DimSize",
            ["5 4 ٣", "5 4 " + "9" * 19, "5 4 " + "9" * 5000],
            "expected 3 whole numbers above 0",
        ),
        (
            "ElementSpacing",
            ["0 1 1", "1 -1 1", "1 1 1e-9", "1 1 -0"],
            "expected 3 distances in mm",
        ),
        (
            "ElementSpacing",
            ["nan 1 1", "1 inf 1", "1 1 1e999", "1 1 1e7", "1 1", "1 1 1 1", "0,5 1 1", "1 1 1_0"],
            "expected 3 numbers within 1e\\+06",
        ),
        (
            "Offset",
            ["nan 0 0", "0 0", "0 0 0 0", "0 0 1e308", "-1e7 0 0", "0x1 0 0", ""],
            "expected 3 numbers",
        ),
        ("TransformMatrix", ["1 0 0 0 1 0 0 0", "1 0 0 0 1 0 0 0 nan"], "expected 9 numbers"),
        ("TransformMatrix", ["2 0 0 0 1 0 0 0 1"], r"length \[2.0, 1.0, 1.0\].*expected 1"),
        ("TransformMatrix", ["0 0 0 0 0 0 0 0 0"], "expected 1"),
        ("TransformMatrix", ["1 0 0 1 0 0 0 0 1", "1 0 0 0 1 0 0.6 0.8 0"], "in one plane"),
        ("HeaderSize", ["-2", "-999"], "do not say where its voxels start"),
        ("HeaderSize", ["x", "1.5", ""], "expected a whole number"),
        ("HeaderSize", ["1", "100"], "lies inside its header of"),
        ("CompressedDataSize", ["-1"], "do not say where its voxels start"),
        ("CompressedDataSize", ["1e3", "x"], "expected a whole number"),
    ],
)
def test_a_header_of_no_volume_is_refused_with_the_reason(folder, field, values, expected):
    for value in values:
        message = refusal_unread(folder / "v.mha", header(**{field: value}) + VOXELS)
        assert re.search(expected, message), message


@pytest.mark.parametrize(
    ("changes", "size", "is_conflict"),
    [
        ({"ElementSize": "0.7 0.8 5"}, (0.7, 0.8, 5.0), True),
        ({"ElementSize": "0.7 0.8 2.5"}, (0.7, 0.8, 2.5), False),
        ({"ElementSize": "0.70001 0.8 2.5"}, (0.70001, 0.8, 2.5), False),
        ({"ElementSize": "0.7 0.8 2.5", "ElementSpacing": None}, (0.7, 0.8, 2.5), False),
        ({}, None, False),
    ],
)
def test_an_element_size_that_differs_from_the_spacing_gets_a_note(
    folder, changes, size, is_conflict
):
    volume, _ = read_of(folder / "size.mha", header(**changes) + VOXELS)
    assert volume.geometry.element_size_ijk_mm == size
    np.testing.assert_allclose(
        np.linalg.norm(volume.grid.affine_ijk[:3, :3], axis=0), (0.7, 0.8, 2.5)
    )
    note = (
        "ElementSize states voxels of 0.7 x 0.8 x 5 mm, but ElementSpacing states that they are "
        "0.7 x 0.8 x 2.5 mm apart; the spacing was used"
    )
    assert volume.notes == ((note,) if is_conflict else ())


def test_the_geometry_fields_of_a_header_are_returned(folder):
    stated, _ = read_of(folder / "a.mha", header() + VOXELS)
    assert (stated.geometry.states_orientation, stated.geometry.states_position) == (True, True)
    bare, _ = read_of(folder / "b.mha", header(TransformMatrix=None, Offset=None) + VOXELS)
    assert (bare.geometry.states_orientation, bare.geometry.states_position) == (False, False)
    other, _ = read_of(
        folder / "c.mha",
        header(TransformMatrix=None, Rotation=PERMUTED, Offset=None, Origin="0 0 0") + VOXELS,
    )
    assert (other.geometry.states_orientation, other.geometry.states_position) == (True, True)


WITH_TIME = {
    "NDims": "4",
    "TransformMatrix": "0 1 0 0 0 0 1 0 1 0 0 0 0 0 0 1",
    "Offset": "-40.5 12.25 -700 0",
    "ElementSpacing": "0.7 0.8 2.5 1",
    "DimSize": "5 4 3 1",
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"Offset": "-40.5 12.25 -700 9", "ElementSpacing": "0.7 0.8 2.5 0"},
        {"TransformMatrix": "0 1 0 0 0 0 1 0 1 0 0 0 0 0 0 -1"},
        {"ElementSpacing": None, "ElementSize": "0.7 0.8 2.5 1"},
        {"TransformMatrix": None, "Offset": None},
    ],
)
def test_further_axes_of_length_1_are_left_out(folder, changes):
    path = folder / "time.mha"
    volume, values = read_of(path, header(**{**WITH_TIME, **changes}) + VOXELS)
    np.testing.assert_array_equal(values, VALUES)
    assert "the header has 4 axes; those after the third, of length 1, are left out" in volume.notes
    left_out = {
        key: None for key, value in changes.items() if value is None and key != "ElementSpacing"
    }
    expected, _ = read_of(folder / "three.mha", header(**left_out) + VOXELS)
    np.testing.assert_array_equal(volume.grid.affine_ijk, expected.grid.affine_ijk)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_series_of_one_volume_that_simpleitk_writes_is_read(folder, compressed):
    rng = np.random.default_rng(5)
    image = sitk.GetImageFromArray(VALUES.T.copy())
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-40.5, 12.25, -700.0))
    image.SetDirection(np.linalg.qr(rng.normal(size=(3, 3)))[0].ravel().tolist())
    path = folder / "series.mha"
    sitk.WriteImage(sitk.JoinSeries([image]), str(path), compressed)
    volume, values = read(path)
    np.testing.assert_array_equal(values, VALUES)
    for corner in product((0, 4), (0, 3), (0, 2)):
        place = LPS_TO_RAS @ [*image.TransformIndexToPhysicalPoint(corner), 1]
        np.testing.assert_allclose(volume.grid.affine_ijk @ [*corner, 1], place, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"DimSize": "5 4 3 2"},
            "says DimSize = 5 4 3 2, expected 3 axes, or further .* each volume",
        ),
        ({"DimSize": "1 5 4 3"}, "says DimSize = 1 5 4 3, expected 3 axes"),
        ({"DimSize": "5 4 1 3"}, "says DimSize = 5 4 1 3, expected 3 axes"),
        ({"DimSize": "5 4 3 0"}, "expected 4 whole numbers above 0"),
        ({"DimSize": "5 4 3"}, "expected 4 whole numbers above 0"),
        ({"Offset": "0 0 0"}, "expected 4 numbers"),
        ({"ElementSpacing": "1 1 1"}, "expected 4 numbers"),
        ({"ElementSpacing": "1 1 0 1"}, "expected 4 distances in mm"),
        ({"TransformMatrix": PERMUTED}, "expected 16 numbers"),
        (
            {"TransformMatrix": "0 1 0 0 0 0 1 0 0.6 0 0 0.8 0 0 0 1"},
            "turns the first three axes into others",
        ),
        (
            {"TransformMatrix": "1 0 0 0 0 1 0 0 0 0 1 0 0 0 1 0"},
            "turns the first three axes into others",
        ),
    ],
)
def test_further_axes_with_a_position_or_direction_are_refused(folder, changes, reason):
    message = refusal_unread(folder / "v.mha", header(**{**WITH_TIME, **changes}) + VOXELS)
    assert re.search(reason, message), message


@pytest.mark.parametrize("field", ["NDims", "DimSize", "ElementSpacing", "ElementType"])
def test_a_header_without_a_required_field_is_refused(folder, field):
    message = refusal_unread(folder / "v.mha", header(**{field: None}) + VOXELS)
    assert f"has no {field.replace('Spacing', 'Size')}. Write it again" in message


def test_compressed_voxels_at_the_end_of_a_file_are_refused(folder):
    content = packed_header(HeaderSize=-1) + PACKED
    assert "do not say where its voxels start" in refusal_unread(folder / "v.mha", content)


@pytest.mark.parametrize("size", [8193, 100_000, 10**12, 10**17])
def test_a_volume_over_a_limit_is_refused_unread(folder, size):
    for sizes in (f"{size} 1 1", f"1 {size} 1", f"1 1 {size}"):
        for content in (header(DimSize=sizes) + VOXELS, packed_header(DimSize=sizes) + PACKED):
            message = refusal_unread(folder / "v.mha", content)
            assert re.search("at most 8192 along an axis.*--max-axis-voxels", message)


@pytest.mark.parametrize("size", [2000, 2500])
def test_a_volume_larger_than_its_file_can_hold_is_refused_unread(folder, size):
    sizes = f"{size} {size} {size}"
    plain = refusal_unread(folder / "v.mha", header(DimSize=sizes) + VOXELS)
    assert "has 120 bytes for its voxels" in plain
    packed = refusal_unread(folder / "v.mha", packed_header(DimSize=sizes) + PACKED)
    assert f"cannot inflate to the {2 * size**3} bytes of" in packed


def test_a_stream_of_the_highest_compression_ratio_is_read(folder):
    zeros = zlib.compress(bytes(1 << 23), 9)
    content = packed_header(zeros, DimSize="2048 2048 1") + zeros
    assert not read_back(folder / "v.mha", content).any()


def values_or_refusal(path, content):
    path.write_bytes(content)
    try:
        return read(path)[1]
    except FormatError as problem:
        return str(problem)


ODD = st.one_of(
    st.sampled_from(
        ["", "0", "-1", "1", "nan", "inf", "1e999", "9" * 30, "True", "LOCAL", "v.raw"]
    ),
    st.sampled_from(["5 4 3", "0 0 0", "1 1 1", "1e-7 1 1", "1e6 1e6 1e6", "60 1 1", PERMUTED]),
    st.sampled_from(["MET_UCHAR", "MET_DOUBLE", "MET_SHORT", "LIST", "..", "%d", "\0", "٣"]),
    st.lists(st.floats().map(str) | st.integers().map(str), max_size=9).map(" ".join),
    st.text(max_size=20),
)
KEYS = [*FIELDS, "ElementDataFile", "CompressedDataSize", "HeaderSize", "Position", "Rotation"]


@settings(max_examples=400)
@given(
    changes=st.lists(st.tuples(st.sampled_from(KEYS) | st.text(max_size=9), ODD), max_size=3),
    order=st.randoms(use_true_random=False),
    data=st.sampled_from([b"", VOXELS, VOXELS[:60], PACKED]),
)
@example(changes=[("DimSize", "9 " * 3), ("CompressedData", "1")], order=None, data=PACKED)
def test_any_header_is_read_or_refused_with_a_clear_error(folder, changes, order, data):
    fields = {**FIELDS, **dict(changes)}
    end = fields.pop("ElementDataFile", "LOCAL")
    lines = [f"{key} = {value}" for key, value in fields.items()]
    if order:
        order.shuffle(lines)
    text = "\n".join([*lines, f"ElementDataFile = {end}\n"]).encode("utf-8", "backslashreplace")
    (folder / "v.raw").write_bytes(VOXELS)
    path = folder / "v.mha"
    found = values_or_refusal(path, text + data)
    assert str(folder) in found if isinstance(found, str) else found.ndim == 3


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_clear_error(folder, content):
    refusal_unread(folder / "v.mha", content)


def test_an_absent_header_is_not_reported_as_a_broken_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_volume(LocalFileSystem(), str(tmp_path / "v.mha"))
