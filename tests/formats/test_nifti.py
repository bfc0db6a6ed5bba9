import gzip
import hashlib
import re
import zlib
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own pages call it so
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spinezarr.errors import FormatError
from spinezarr.formats.nifti import NiftiHeaderFields
from spinezarr.formats.source_file import SourceFile
from spinezarr.formats.volume import open_volume
from spinezarr.nifti_geometry import qform_affine, qform_sform_distance_mm
from spinezarr.testing import DTYPES, NiftiForm, all_axcodes, write_nifti

AFFINE = np.array([[0, -0.8, 0, 40.5], [-0.7, 0, 0.1, 12.25], [0, 0, 2.5, -700], [0, 0, 0, 1]])
VALUES = (np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3) * 37) % 2000 - 1000
HEADERS = {1: nib.Nifti1Header, 2: nib.Nifti2Header}


def header_of(stored, *, version=1, affine=AFFINE, big_endian=False, **fields):
    """Compose a header whose fields may have values that no writer would write."""
    header = HEADERS[version](endianness=">" if big_endian else "<")
    header.set_data_dtype(stored.dtype)
    header.set_data_shape(stored.shape)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    for name, value in fields.items():
        header[name] = value
    return header


def nifti_bytes(stored=VALUES, *, between=bytes(4), **fields):
    header = header_of(stored, **fields)
    voxels = stored.astype(stored.dtype.newbyteorder(header.endianness)).tobytes(order="F")
    return header.binaryblock + between + voxels


def read(path, thicknesses=None):
    volume = open_volume(LocalFileSystem(), str(path))
    slabs = list(volume.slabs(thicknesses or [volume.grid.shape_ijk[2]]))
    assert all(slab.dtype == volume.dtype for slab in slabs)
    return volume, np.concatenate(slabs, axis=2)


def assert_read_as_nibabel_does(path, thicknesses=None):
    model = nib.load(path, mmap=False)
    expected = np.asanyarray(model.dataobj)
    volume, values = read(path, thicknesses)
    np.testing.assert_array_equal(values, expected)
    assert volume.dtype == values.dtype == expected.dtype.newbyteorder("=")
    np.testing.assert_array_equal(volume.grid.affine_ijk, model.affine)
    assert volume.grid.shape_ijk == model.shape
    source = volume.source_file()
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.size_bytes == path.stat().st_size
    return volume


def refusal(path, data):
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def values_or_refusal(path):
    try:
        return read(path)[1]
    except FormatError as problem:
        return str(problem)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("nifti")


@st.composite
def arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    values = rng.normal(0, 1000, shape).astype(dtype)
    values[rng.random(shape) < 0.1] = np.nan
    return values


@st.composite
def partitions(draw, total):
    cuts = draw(st.sets(st.integers(1, max(1, total - 1)), max_size=4)) if total > 1 else ()
    ends = [0, *sorted(cuts), total]
    return [b - a for a, b in pairwise(ends)]


scalings = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {
            "scl_slope": st.sampled_from([0, 1, -1, 0.5, 1e-3, 2, np.nan]),
            "scl_inter": st.sampled_from([0, 1, -1024, 0.1, 7]),
        }
    ),
)
orientations = st.fixed_dictionaries(
    {
        "affine": st.sampled_from(all_axcodes()).map(
            lambda axcodes: (
                nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(axcodes), (5, 6, 7))
                @ AFFINE
            )
        ),
        "sform_code": st.sampled_from([0, 1, 2, 4]),
        "qform_code": st.sampled_from([0, 1, 3]),
    }
)


@settings(deadline=None, max_examples=250)
@given(
    data=st.data(),
    stored=arrays(),
    form=orientations,
    scaling=scalings,
    version=st.sampled_from([1, 2]),
    big_endian=st.booleans(),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
)
def test_every_kind_of_file_is_read_as_nibabel_reads_it(
    *, folder, data, stored, form, scaling, version, big_endian, suffix
):
    path = folder / f"any{suffix}"
    content = nifti_bytes(stored, version=version, big_endian=big_endian, **form, **scaling)
    path.write_bytes(gzip.compress(content, 1) if suffix == ".nii.gz" else content)
    assert_read_as_nibabel_does(path, data.draw(partitions(stored.shape[2])))


@settings(deadline=None, max_examples=40)
@given(arrays(), st.sampled_from([".nii", ".nii.gz"]), st.booleans())
def test_nifti_2_as_nibabel_writes_it_is_read(folder, stored, suffix, big_endian):
    path = folder / f"two{suffix}"
    header = nib.Nifti2Header(endianness=">" if big_endian else "<")
    nib.Nifti2Image(stored, AFFINE, header, dtype=stored.dtype).to_filename(path)
    assert_read_as_nibabel_does(path)


@pytest.mark.parametrize("axcodes", all_axcodes())
def test_every_orientation_is_read_as_nibabel_reads_it(folder, axcodes):
    path = folder / "turned.nii.gz"
    form = NiftiForm(axcodes, oblique_deg=9, slope=0.5, inter=-3)
    write_nifti(path, VALUES // 2, np.diag([0.7, 0.8, 2.5, 1]), form)
    volume = assert_read_as_nibabel_does(path, [1] * nib.load(path).shape[2])
    assert volume.grid.axis_map.axcodes == axcodes
    np.testing.assert_array_equal(volume.grid.axis_map.to_zyx(read(path)[1]), VALUES // 2)


def test_slabs_are_parts_of_the_volume_in_file_order_and_may_be_read_again(folder):
    path = folder / "v.nii"
    path.write_bytes(nifti_bytes(np.arange(2 * 3 * 6, dtype=np.int16).reshape(2, 3, 6)))
    volume = open_volume(LocalFileSystem(), str(path))
    _, whole = read(path)
    for thicknesses in ([1, 2, 3], [6]):
        slabs = list(volume.slabs(iter(thicknesses)))
        assert [slab.shape for slab in slabs] == [(2, 3, n) for n in thicknesses]
        np.testing.assert_array_equal(np.concatenate(slabs, axis=2), whole)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("tail", [b"", bytes(1000), bytes(3_000_000)], ids=len)
def test_hash_and_size_are_of_the_whole_file(folder, suffix, tail):
    path = folder / f"v{suffix}"
    content = nifti_bytes()
    path.write_bytes((gzip.compress(content) if suffix == ".nii.gz" else content) + tail)
    assert_read_as_nibabel_does(path, [1, 2])


def test_hash_and_size_are_unknown_before_the_voxels_are_read(folder):
    path = folder / "v.nii"
    path.write_bytes(nifti_bytes())
    with pytest.raises(RuntimeError, match="before slabs"):
        open_volume(LocalFileSystem(), str(path)).source_file()


def test_a_nifti_file_of_any_file_system_can_be_read():
    fs = MemoryFileSystem()
    fs.pipe_file("/formats/v.nii.gz", gzip.compress(nifti_bytes()))
    (values,) = open_volume(fs, "/formats/v.nii.gz").slabs([3])
    np.testing.assert_array_equal(values, VALUES)
    fs.rm("/formats", recursive=True)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("n_bytes", [16, 64, 1008])
def test_header_extensions_are_skipped(folder, version, n_bytes):
    size = {1: 348, 2: 540}[version]
    comment = np.array([n_bytes, 6], "<i4").tobytes() + b"\xff" * (n_bytes - 8)
    path = folder / "v.nii"
    offset = size + 4 + n_bytes
    between = b"\x01\0\0\0" + comment
    path.write_bytes(nifti_bytes(version=version, between=between, vox_offset=offset))
    assert_read_as_nibabel_does(path)


def test_a_vox_offset_of_0_means_right_after_the_header(folder):
    path = folder / "v.nii"
    path.write_bytes(nifti_bytes(vox_offset=0))
    np.testing.assert_array_equal(read(path)[1], VALUES)


def test_a_gzip_file_of_several_members_is_read_whole(folder):
    path = folder / "v.nii.gz"
    content = nifti_bytes()
    path.write_bytes(b"".join(gzip.compress(content[i : i + 90]) for i in range(0, 999, 90)))
    assert_read_as_nibabel_does(path, [1, 1, 1])


@pytest.mark.parametrize(
    ("name", "packed"), [("v.nii", True), ("v.nii.gz", False), ("V.NII.GZ", True)]
)
def test_the_contents_of_a_file_override_its_name(folder, name, packed):
    path = folder / name
    path.write_bytes(gzip.compress(nifti_bytes()) if packed else nifti_bytes())
    np.testing.assert_array_equal(read(path)[1], VALUES)


@pytest.mark.parametrize(("sform", "qform"), [(0, 1), (1, 0), (2, 3), (0, 0)])
def test_the_affine_is_chosen_as_nibabel_chooses(folder, sform, qform):
    path = folder / "v.nii"
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    header = header_of(VALUES, affine=affine)
    header.set_sform(AFFINE, code=sform)
    header["qform_code"] = qform
    path.write_bytes(header.binaryblock + bytes(4) + VALUES.tobytes(order="F"))
    volume = assert_read_as_nibabel_does(path)
    assert np.allclose(volume.grid.affine_ijk, AFFINE) == (sform > 0)
    assert len(volume.notes) == {(0, 1): 0, (1, 0): 1, (2, 3): 2, (0, 0): 1}[sform, qform]


SQUARE = np.array([[0, -0.8, 0, 40.5], [-0.7, 0, 0, 12.25], [0, 0, 2.5, -700], [0, 0, 0, 1]])


def conflicting(path, *, sform=SQUARE, qform=SQUARE, codes=(1, 1), **fields):
    """Write a header whose sform and qform differ."""
    header = header_of(VALUES, affine=qform)
    header.set_sform(sform, code=codes[0])
    header["qform_code"] = codes[1]
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + bytes(4) + VALUES.tobytes(order="F"))
    return assert_read_as_nibabel_does(path)


def test_pixdim_that_differs_from_the_sform_gets_a_note_and_is_not_taken(folder):
    path = folder / "v.nii"
    volume = conflicting(path, codes=(1, 0), pixdim=[1, 0.8, 0.7, 1, 0, 0, 0, 0])
    (note,) = volume.notes
    assert note.startswith(
        "pixdim states voxels of 0.8 x 0.7 x 1 mm, but the sform has voxels of 0.7 x 0.8 x 2.5 mm"
    )
    assert note.endswith("the sform was used")
    # The note is needed because ITK uses pixdim.
    assert sitk.ReadImage(str(path)).GetSpacing() == pytest.approx((0.8, 0.7, 1.0))


def test_a_negative_pixdim_by_which_itk_mirrors_the_volume_gets_a_note(folder):
    path = folder / "v.nii"
    affine = np.diag([0.75, 0.75, 2.5, 1.0])
    pixdim = [1, -0.75, 0.75, 2.5, 0, 0, 0, 0]
    (note,) = conflicting(path, sform=affine, qform=affine, codes=(1, 0), pixdim=pixdim).notes
    assert note.startswith("pixdim states voxels of -0.75 x 0.75 x 2.5 mm")
    assert sitk.ReadImage(str(path)).GetDirection()[0] == 1  # it would be -1 without the sform


@given(shift=st.floats(-1, 1), along=st.integers(0, 2))
def test_a_spacing_is_judged_by_the_shift_of_the_far_end(folder, shift, along):
    affine, n = np.diag([0.75, 0.75, 2.5, 1.0]), VALUES.shape[along]
    pixdim = [1.0, 0.75, 0.75, 2.5, 0, 0, 0, 0]
    pixdim[1 + along] += shift / 4
    volume = conflicting(folder / "v.nii", sform=affine, qform=affine, codes=(1, 0), pixdim=pixdim)
    moved = abs(np.float32(pixdim[1 + along]) - affine[along, along]) * (n - 1)
    assert any("pixdim states" in note for note in volume.notes) == bool(moved > 0.1 * 0.75)


def test_a_qform_that_differs_from_the_sform_gets_a_note_and_is_not_taken(folder):
    path, moved = folder / "v.nii", SQUARE.copy()
    moved[:3, 3] += [3, 4, 0]
    volume = conflicting(path, qform=moved)
    assert volume.notes == (
        "the qform places corners up to 5 mm away from those of the sform; the sform was used",
    )
    for codes in ((1, 0), (0, 1)):
        assert conflicting(path, qform=moved, codes=codes).notes == ()


@given(seed=st.integers(0, 2**32), flipped=st.booleans(), version=st.sampled_from([1, 2]))
def test_the_qform_equals_that_of_nibabel(seed, flipped, version):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn)) * (-1 if flipped else 1)
    affine = np.eye(4)
    affine[:3, :3] = turn * rng.uniform(0.2, 5, 3)
    affine[:3, 3] = rng.uniform(-900, 900, 3)
    header = header_of(VALUES, affine=affine, version=version)
    numbers = NiftiHeaderFields.from_header(header)
    np.testing.assert_allclose(qform_affine(numbers), header.get_qform(), atol=1e-5)
    assert qform_sform_distance_mm(numbers, VALUES.shape, header.get_sform()) is None
    far = header.get_sform() + 0.0
    far[0, 3] += 7
    assert qform_sform_distance_mm(numbers, VALUES.shape, far) == pytest.approx(7, abs=1e-3)


def test_huge_numbers_in_a_header_cause_a_note_and_no_warning(folder):
    path = folder / "v.nii"
    header = header_of(VALUES, version=2)
    header["pixdim"][1:4] = 1e300
    header["qoffset_x"] = -1e308
    path.write_bytes(header.binaryblock + bytes(4) + VALUES.tobytes(order="F"))
    pixdim, qform = assert_read_as_nibabel_does(path).notes
    assert pixdim.startswith("pixdim states voxels of 1e+300 x 1e+300 x 1e+300 mm")
    assert qform.startswith("the qform places corners up to 1")


def test_equally_mirrored_sform_and_qform_are_no_conflict(folder):
    mirrored = SQUARE @ np.diag([-1, 1, 1, 1])
    assert conflicting(folder / "v.nii", sform=mirrored, qform=mirrored).notes == ()


def test_a_file_without_orientation_gets_a_note(folder):
    path = folder / "v.nii"
    path.write_bytes(nifti_bytes(sform_code=0, qform_code=0))
    (note,) = read(path)[0].notes
    assert "no orientation" in note
    assert "LAS" in note
    assert read(path)[0].grid.axis_map.axcodes == "LAS"


def test_qfac_0_means_1(folder):
    # nifti1.h: "if pixdim[0]=0.0 (which should not occur), we take qfac=1".
    header = header_of(VALUES, affine=np.diag([1.0, 2.0, 3.0, 1.0]), sform_code=0)
    assert header["pixdim"][0] == 1
    header["pixdim"][0] = 0
    path = folder / "v.nii"
    path.write_bytes(header.binaryblock + bytes(4) + VALUES.tobytes(order="F"))
    np.testing.assert_allclose(read(path)[0].grid.affine_ijk, np.diag([1.0, 2.0, 3.0, 1.0]))


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"n", "is not a NIfTI file"),
        (b"\x1f", "is not a NIfTI file"),
        (b"<!DOCTYPE html><html>404</html>" * 30, "is not a NIfTI file: it looks like a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a NIfTI file"),
        (bytes(1000), "is not a NIfTI file"),
        (gzip.compress(b"", mtime=0), "is not a NIfTI file"),
        (gzip.compress(b"text" * 300, mtime=0), "it looks like text"),
        (nifti_bytes()[:340], "ends inside its 348-byte header"),
        (nifti_bytes(version=2)[:348], "ends inside its 540-byte header"),
        (nifti_bytes()[:350], "ends before its voxels start"),
        (b"\x1f\x8b\x08\x00garbage" + bytes(range(256)), "."),
    ],
)
def test_a_file_that_is_no_nifti_is_refused(folder, name, content, reason):
    assert re.search(reason, refusal(folder / name, content))


RGB = np.zeros((4, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"stored": RGB}, "holds RGB colors"),
        ({"stored": np.zeros((2, 2, 2), "c8")}, "holds complex64 values"),
        ({"stored": np.zeros((2, 2, 2), "c16")}, "holds complex128 values"),
        ({"datatype": 1536}, "holds |unknown"),
        ({"datatype": 1}, "holds |unknown"),
        ({"datatype": 0}, "holds |unknown"),
        ({"datatype": 777}, "unknown NIfTI datatype 777"),
        ({"stored": VALUES[0]}, r"has 2 dimensions \(4, 3\), expected 3"),
        ({"stored": VALUES[None]}, r"has 4 dimensions \(1, 5, 4, 3\), expected 3, or further"),
        ({"stored": VALUES[:, :, None]}, r"has 4 dimensions \(5, 4, 1, 3\), expected 3"),
        ({"dim": [4, 5, 4, 3, -1, 1, 1, 1]}, r"has 4 dimensions \(5, 4, 3, -1\), expected 3"),
        ({"dim": [5, 5, 4, 3, 1, 2, 1, 1]}, r"has 5 dimensions \(5, 4, 3, 1, 2\), .* of length 1"),
        ({"dim": [4, 5, 0, 3, 1, 1, 1, 1]}, r"has an empty dimension: \(5, 0, 3, 1\)"),
        ({"dim": [8, 5, 4, 3, 1, 1, 1, 1]}, "has 8 dimensions"),
        ({"stored": np.zeros((2, 2, 2, 9), "i2")}, r"has 4 dimensions .*one file for each volume"),
        ({"dim": [0] * 8}, "has 0 dimensions"),
        ({"dim": [-3, 5, 4, 3, 1, 1, 1, 1]}, r"has -\d+ dimensions"),
        ({"dim": [3, 5, 0, 3, 1, 1, 1, 1]}, r"has an empty dimension: \(5, 0, 3\)"),
        ({"dim": [3, 5, -4, 3, 1, 1, 1, 1]}, "has an empty dimension"),
        ({"scl_slope": 2, "scl_inter": np.nan}, "unusable scl_slope or scl_inter"),
        ({"scl_slope": 2, "scl_inter": np.inf}, "unusable scl_slope or scl_inter"),
        ({"scl_slope": np.inf}, "unusable scl_slope or scl_inter: inf"),
        ({"scl_slope": -np.inf}, "unusable scl_slope or scl_inter: -inf"),
        ({"srow_x": np.nan}, "is not finite, or an axis has no length"),
        ({"srow_z": [0, 0, np.inf, 0]}, "is not finite, or an axis has no length"),
        ({"srow_x": 0, "srow_y": 0, "srow_z": 0}, "is not finite, or an axis has no length"),
        ({"srow_x": [1, 0, 0, 0], "srow_y": [1, 0, 0, 0]}, "not finite|in one plane"),
        ({"srow_x": [1, 1, 0, 0], "srow_y": [1, 1, 0, 0]}, "axes lie in one plane"),
        (
            {"sform_code": 0, "pixdim": [1, 1, 0, 1, 0, 0, 0, 0]},
            "is not finite, or an axis has no length",
        ),
        (
            {"sform_code": 0, "pixdim": [1, 1, np.nan, 1, 0, 0, 0, 0]},
            "is not finite, or an axis has no length",
        ),
        ({"sform_code": 0, "quatern_b": 3}, "unusable orientation"),
        ({"sform_code": 0, "quatern_b": np.nan}, "unusable orientation|is not finite"),
        ({"vox_offset": 16}, "vox_offset 16 lies inside the header"),
        ({"vox_offset": -16}, "vox_offset -16 lies inside the header"),
        ({"vox_offset": 100_000}, "ends before its voxels start"),
        ({"vox_offset": 2**62}, "vox_offset|ends before its voxels start"),
        (
            {"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]},
            "at most 8192 along an axis.*--max-axis-voxels",
        ),
        ({"dim": [3, 8192, 8192, 8192, 1, 1, 1, 1]}, "1099.5 GB.*--max-volume-gb"),
        ({"dim": [3, 8192, 8193, 1, 1, 1, 1, 1]}, "at most 8192 along an axis"),
        ({"dim": [3, 8192, 8192, 100, 1, 1, 1, 1]}, "cut short: .* 120 of 13421772800 bytes"),
        ({"dim": [3, 8192, 8192, 9, 1, 1, 1, 1], "scl_slope": 2}, "slices of 8192 x 8192"),
    ],
)
def test_a_nifti_that_is_no_volume_is_refused_with_the_reason(folder, version, fields, reason):
    message = refusal(folder / "v.nii", nifti_bytes(version=version, **fields))
    assert re.search(reason, message), message


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("codes", [{}, {"sform_code": 0}, {"sform_code": 0, "qform_code": 0}])
@pytest.mark.parametrize("further", [(1,), (0,), (1, 1), (0, 0), (1, 0, 1, 1), (1,) * 4])
def test_further_axes_of_length_1_are_left_out_with_a_note(folder, version, codes, further):
    path, rank = folder / "further.nii", 3 + len(further)
    dim = [rank, *VALUES.shape, *further, *[1] * (4 - len(further))]
    path.write_bytes(nifti_bytes(version=version, dim=dim, **codes))
    volume, values = read(path)
    np.testing.assert_array_equal(values, VALUES)
    (note,) = (note for note in volume.notes if "axes" in note)
    assert note == f"the header has {rank} axes; those after the third, of length 1, are left out"
    np.testing.assert_array_equal(volume.grid.affine_ijk, nib.load(path).affine)
    if version == 1:  # SimpleITK reads no NIfTI-2
        model = sitk.ReadImage(str(path))
        assert volume.grid.shape_ijk == model.GetSize()
        np.testing.assert_array_equal(values, sitk.GetArrayFromImage(model).T)
    if 0 not in further:
        np.testing.assert_array_equal(values, np.asarray(nib.load(path).dataobj).reshape(5, 4, 3))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_series_of_one_volume_that_simpleitk_and_nibabel_write_is_read(folder, ending):
    image = sitk.GetImageFromArray(VALUES.T.copy())
    image.SetSpacing((0.7, 0.8, 2.5))
    sitk.WriteImage(sitk.JoinSeries([image]), str(folder / f"sitk{ending}"))
    nib.save(nib.Nifti1Image(VALUES[..., None, None], AFFINE), folder / f"nib{ending}")
    for name in ("sitk", "nib"):
        path = folder / f"{name}{ending}"
        volume, values = read(path)
        np.testing.assert_array_equal(values, VALUES)
        np.testing.assert_array_equal(volume.grid.affine_ijk, nib.load(path).affine)


@pytest.mark.parametrize("shape", [(5, 4, 1), (5, 1, 3), (1, 4, 3), (1, 1, 1)])
def test_an_axis_of_length_1_among_three_is_kept(folder, shape):
    path = folder / "slice.nii"
    path.write_bytes(nifti_bytes(VALUES[: shape[0], : shape[1], : shape[2]]))
    assert assert_read_as_nibabel_does(path).grid.shape_ijk == shape


@pytest.mark.parametrize("vox_offset", [np.nan, np.inf])
def test_a_vox_offset_that_is_no_number_is_refused(folder, vox_offset):
    assert "vox_offset" in refusal(folder / "v.nii", nifti_bytes(vox_offset=vox_offset))


@pytest.mark.parametrize(
    ("version", "magic"), [(1, b"ni1\0"), (2, b"ni2\0"), (1, b""), (2, b"n+1\0"), (1, b"n+2\0")]
)
def test_other_magic_is_refused(folder, version, magic):
    message = refusal(folder / "v.nii", nifti_bytes(version=version, magic=magic))
    assert "lacks the magic number b'n+" in message
    assert ".hdr/.img" in message


@pytest.mark.parametrize(
    "name", ["v.hdr", "v.img", "v.nhdr", "v", "v.gz", "v.nii.bz2", "v.nii.gz.x"]
)
def test_other_endings_are_refused(tmp_path, name):
    message = refusal(tmp_path / name, nifti_bytes())
    assert "its ending names no format that is read; it looks like " in message


def test_an_absent_file_is_not_reported_as_a_broken_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_volume(LocalFileSystem(), str(tmp_path / "v.nii"))


@pytest.mark.parametrize("version", [1, 2])
def test_an_uncompressed_file_cut_anywhere_is_refused(folder, version):
    content = nifti_bytes(version=version)
    for size in range(len(content)):
        message = refusal(folder / "v.nii", content[:size])
        voxels_start = {1: 352, 2: 544}[version]
        assert ("cut short" in message) == (size >= voxels_start)


def test_the_error_of_a_cut_file_says_how_many_bytes_it_has(folder):
    message = refusal(folder / "v.nii", nifti_bytes()[: 352 + 100])
    assert "after about 100 of 120 bytes. Download it again." in message


@pytest.mark.parametrize("level", [0, 1, 9])
def test_a_gzip_file_cut_anywhere_is_refused(folder, level):
    packed = gzip.compress(nifti_bytes(), level)
    for size in range(len(packed)):
        refusal(folder / "v.nii.gz", packed[:size])


@pytest.mark.parametrize("level", [0, 1, 9])
def test_a_changed_byte_of_a_gzip_file_is_refused_or_changes_no_voxel(folder, level):
    packed = gzip.compress(nifti_bytes(), level, mtime=0)
    path = folder / "v.nii.gz"
    for at in range(3, len(packed)):
        changed = bytearray(packed)
        changed[at] ^= 0x15
        path.write_bytes(changed)
        found = values_or_refusal(path)
        # Flags, time and operating system in the gzip header carry no data.
        if isinstance(found, str) or at >= 10:
            refusal(path, changed)
        else:
            np.testing.assert_array_equal(found, VALUES)


@pytest.fixture(scope="module")
def large():
    """Return more bytes than any buffer holds, so that the end of the file is read last."""
    voxels = np.random.default_rng(0).integers(-1000, 1000, (256, 256, 40), np.int16)
    return gzip.compress(nifti_bytes(voxels), 1)


def slabs_before_refusal(path, data):
    path.write_bytes(data)
    got = []
    with pytest.raises(FormatError, match=r"v\.nii\.gz: .*Download it again"):
        got.extend(open_volume(LocalFileSystem(), str(path)).slabs([10] * 4))
    return len(got)


@pytest.mark.parametrize("at", [-8, -5, -4, -1])
def test_a_wrong_checksum_or_length_is_refused(folder, large, at):
    changed = bytearray(large)
    changed[at] ^= 0x40
    assert slabs_before_refusal(folder / "v.nii.gz", changed) >= 3


@pytest.mark.parametrize("missing", range(1, 10))
def test_a_checksum_that_is_cut_off_is_refused(folder, large, missing):
    assert slabs_before_refusal(folder / "v.nii.gz", large[:-missing]) >= 3


def test_a_large_file_is_refused_where_it_is_cut(folder, large):
    assert 0 < slabs_before_refusal(folder / "v.nii.gz", large[: len(large) // 2]) < 3


@settings(deadline=None, max_examples=300)
@given(
    version=st.sampled_from([1, 2]),
    changes=st.dictionaries(st.integers(4, 347), st.binary(min_size=1, max_size=4), max_size=3),
    packed=st.booleans(),
)
@example(version=1, changes={108: b"\0\0\xc0\x7f"}, packed=False)  # vox_offset NaN
@example(version=1, changes={40: b"\x03\0\xff\x7f", 44: b"\xff\x7f\xff\x7f"}, packed=True)
def test_any_damaged_header_is_read_or_refused_with_a_clear_error(folder, version, changes, packed):
    content = bytearray(nifti_bytes(version=version))
    for at, block in changes.items():
        content[at : at + len(block)] = block
    path = folder / "v.nii.gz"
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    found = values_or_refusal(path)
    assert str(path) in found if isinstance(found, str) else found.ndim == 3


def test_a_zlib_stream_in_place_of_gzip_is_refused(folder):
    assert "is not a NIfTI file" in refusal(folder / "v.nii.gz", zlib.compress(nifti_bytes()))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("levels", [(6, 6), (1, 9)])
def test_a_file_that_was_compressed_twice_is_read(tmp_path, version, levels):
    once = gzip.compress(nifti_bytes(version=version), levels[0], mtime=0)
    (tmp_path / "once.nii.gz").write_bytes(once)
    twice = gzip.compress(once, levels[1], mtime=0)
    (tmp_path / "v.nii.gz").write_bytes(twice)
    expected, values = read(tmp_path / "once.nii.gz")
    volume, found = read(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(volume.grid.affine_ijk, expected.grid.affine_ijk)
    assert volume.source_file() == SourceFile(len(twice), hashlib.sha256(twice).hexdigest())


@pytest.mark.parametrize("layer", ["inner", "outer"])
def test_both_checksums_of_a_twice_compressed_file_are_checked(tmp_path, layer):
    def wrong(data):
        return data[:-8] + bytes(4) + data[-4:]

    once = gzip.compress(nifti_bytes(), mtime=0)
    twice = wrong(gzip.compress(once)) if layer == "outer" else gzip.compress(wrong(once))
    assert "CRC" in refusal(tmp_path / "v.nii.gz", twice)
    for cut in range(1, len(once), 7):
        whole = gzip.compress(once)
        for data in (gzip.compress(once[:-cut]), whole[:-cut]):
            assert "Download it again" in refusal(tmp_path / "v.nii.gz", data)


def test_a_file_compressed_three_times_is_refused_with_the_reason(tmp_path):
    data = nifti_bytes()
    for _ in range(3):
        data = gzip.compress(data)
    assert "it looks like gzip data. Unpack it with gunzip" in refusal(tmp_path / "v.nii.gz", data)
