"""Unsupported files are recognized by their bytes, and the advised conversion works."""

import bz2
import gzip
import io
import json
import lzma
import re
import subprocess
import sys
import tarfile
import zipfile

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from spinezarr.errors import FormatError
from spinezarr.formats.file_kinds import KIND_BYTES, detect_kind, kind_from_ending
from spinezarr.formats.volume import open_volume, unsupported_kind

AFFINE = np.array([[-1.0, 0, 0, 5], [0, -2, 0, 6], [0, 0, 3, -7], [0, 0, 0, 1]])
VALUES = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
IMAGE = nib.Nifti1Image(VALUES, AFFINE)


def packed(write):
    data = io.BytesIO()
    write(data)
    return data.getvalue()


def zipped(data):
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a.nii", IMAGE.to_bytes())


def tarred(data):
    with tarfile.open(fileobj=data, mode="w") as archive:
        member = tarfile.TarInfo("a.nii")
        archive.addfile(member, io.BytesIO())


def dicom_bytes():
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = pydicom.FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID = CTImageStorage
    return packed(lambda data: dataset.save_as(data, enforce_file_format=True))


def pair_header(kind):
    image = kind(VALUES, AFFINE)
    for name, holder in image.file_map.items():
        holder.fileobj = io.BytesIO()
        assert name in {"header", "image", "mat"}
    image.to_file_map()
    return image.file_map["header"].fileobj.getvalue()


KINDS = {
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "a Git LFS pointer",
        "git lfs pull",
    ),
    "git-annex": (
        b"/annex/objects/SHA256E-s1--4d7a.nii.gz\n",
        "a git-annex pointer",
        "git annex get",
    ),
    "JSON": (json.dumps({"error": "denied"}).encode(), "JSON text", "log in"),
    "JSON list": (b'\xef\xbb\xbf [{"a": 1}]', "JSON text", "log in"),
    "HTML": (b"\n<!DOCTYPE html><html>", "a web page", "log in"),
    "HTML without type": (b"<HTML><body>", "a web page", "log in"),
    "XML": (b'<?xml version="1.0"?><Error>', "XML text", "log in"),
    "gzip": (gzip.compress(b"x"), "gzip data", "gunzip"),
    "bzip2": (bz2.compress(b"x"), "bzip2 data", "bunzip2"),
    "xz": (lzma.compress(b"x"), "xz data", "xz -dc"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00", "zstd data", "zstd -dc"),
    "zip": (packed(zipped), "a ZIP archive", "unzip"),
    "tar": (packed(tarred), "a tar archive", "tar xf"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "a 7-Zip archive", "7z x"),
    "rar": (b"Rar!\x1a\x07\x01\x00", "a RAR archive", "unrar x"),
    "NRRD": (b"NRRD0004\n# Complete NRRD", "an NRRD file", "SimpleITK"),
    "MGH": (nib.MGHImage(VALUES, AFFINE).to_bytes(), "an MGH file of FreeSurfer", "nibabel"),
    "NIfTI pair": (pair_header(nib.Nifti1Pair), "one half of a .hdr/.img pair", "nibabel"),
    "Analyze": (pair_header(nib.Spm2AnalyzeImage), "one half of a .hdr/.img pair", "nibabel"),
    "NIfTI": (IMAGE.to_bytes(), "a NIfTI file", "Name it .nii"),
    "NIfTI-2": (nib.Nifti2Image(VALUES, AFFINE).to_bytes(), "a NIfTI file", "Name it .nii"),
    "MetaImage": (b"ObjectType = Image\nNDims = 3\n", "a MetaImage", "Name it .mha or .mhd"),
    "DICOM": (dicom_bytes(), "a DICOM file", "dcm2niix"),
    "NumPy": (packed(lambda data: np.save(data, VALUES)), "a NumPy array", "Nifti1Image(array"),
    "MATLAB": (b"MATLAB 5.0 MAT-file, Platform", "a MATLAB file", "Nifti1Image(array"),
    "HDF5": (b"\x89HDF\r\n\x1a\n\0", "an HDF5 file", "Nifti1Image(array"),
    "PNG": (b"\x89PNG\r\n\x1a\n", "a PNG picture", "in place of a picture"),
    "JPEG": (b"\xff\xd8\xff\xe0", "a JPEG picture", "in place of a picture"),
    "TIFF": (b"II*\0\x08\0\0\0", "a TIFF picture", "in place of a picture"),
    "PDF": (b"%PDF-1.4", "a PDF document", "in place of a picture"),
    "nothing": (b"", "an empty file", "Download it again"),
    "zeros": (bytes(1000), "a file of zeros", "never written"),
    "text": (b"Jane Doe, born 1970\n", "text", ""),
    "noise": (bytes(range(1, 256)), "binary data of no known kind", ""),
}


def refusal(path, data=None):
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        open_volume(LocalFileSystem(), str(path))
    return str(caught.value)


@pytest.mark.parametrize("case", KINDS)
def test_each_kind_is_recognized_by_its_first_bytes(case):
    data, name, step = KINDS[case]
    kind = detect_kind(data[:KIND_BYTES])
    assert kind.name.startswith(name)
    assert step in kind.next_step


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".mhd"])
@pytest.mark.parametrize(
    "case", [case for case in KINDS if case not in {"NIfTI", "NIfTI-2", "MetaImage", "nothing"}]
)
def test_a_file_of_another_kind_is_refused_with_its_next_step(tmp_path, ending, case):
    data, name, step = KINDS[case]
    path = tmp_path / f"a{ending}"
    message = refusal(path, data)
    if case == "gzip" and ending.startswith(".nii"):
        name, step = "text", "Download it again"  # the kind is that of the contents
    if case in {"NIfTI pair", "Analyze"} and ending.startswith(".nii"):
        name = "only single NIfTI files are read, not .hdr/.img pairs"
    assert message.startswith(f"{path}: ")
    assert name in message
    assert (step or "Download it again") in message
    assert "Jane" not in message


def test_the_kind_of_a_gzip_file_is_that_of_its_contents(tmp_path):
    message = refusal(tmp_path / "a.nii.gz", gzip.compress(packed(tarred)))
    assert "it looks like a tar archive. Unpack it: tar xf" in message


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.nhdr", "an NRRD file"),
        ("A.SEG.NRRD.GZ", "an NRRD file"),
        ("a.mgz", "an MGH file of FreeSurfer"),
        ("a.hdr", "one half of a .hdr/.img pair (NIfTI or Analyze)"),
        ("a.img.gz", "one half of a .hdr/.img pair (NIfTI or Analyze)"),
        ("1.2.3.dcm", "a DICOM file"),
        ("a.nii.bz2", "bzip2 data"),
        ("a.nii.zip", "a ZIP archive"),
        ("a.tar.gz", "a tar archive"),
        ("a.gz", "gzip data"),
        ("a.npy", "a NumPy array"),
        ("a.mat", "a MATLAB file"),
        ("a.raw", "voxels without a header"),
        ("a.nii.gz.part", "an unfinished download"),
        ("a.png", "a PNG picture"),
    ],
)
def test_unsupported_formats_are_recognized_by_the_file_name_ending(tmp_path, name, kind):
    assert kind_from_ending(f"x.nii/{name}").name == unsupported_kind(name).name == kind
    message = refusal(tmp_path / name, b"unread")
    assert f"its ending names no format that is read; it looks like {kind}" in message


@pytest.mark.parametrize("name", ["a.nii", "A.NII.GZ", "a.mhd", "a.MHA", "a/"])
def test_supported_formats_are_not_judged_by_the_file_name_ending(name):
    assert unsupported_kind(name) is None


@pytest.mark.parametrize(
    ("data", "kind", "step"),
    [
        (IMAGE.to_bytes(), "a NIfTI file", "Name it .nii or .nii.gz"),
        (dicom_bytes(), "a DICOM file", "end the pattern with '/'"),
        (b"anything", "text", "Files that are read: NIfTI (.nii, .nii.gz), MetaImage"),
    ],
)
def test_a_file_without_a_known_ending_is_recognized_by_its_contents(tmp_path, data, kind, step):
    for name in ("a", "a.xyz", "1.2.840"):
        message = refusal(tmp_path / name, data)
        assert f"it looks like {kind}. " in message
        assert step in message


def command_of(message, old):
    """Return the command that an error message advises, for an existing file."""
    command = re.search(r'python -c "(.*?)"\.', message)[1]
    assert old in command
    return command


def converted(folder, command, old):
    command = command.replace(old, str(folder / old.replace("IN", "a"))).replace(
        "OUT.nii.gz", str(folder / "out.nii.gz")
    )
    subprocess.run([sys.executable, "-c", command], check=True)
    volume = open_volume(LocalFileSystem(), str(folder / "out.nii.gz"))
    (slab,) = volume.slabs([volume.grid.shape_ijk[2]])
    return volume.grid.affine_ijk, slab


@pytest.mark.parametrize(
    ("name", "old", "write"),
    [
        ("a.mgz", "IN.mgz", lambda path: nib.save(nib.MGHImage(VALUES, AFFINE), path)),
        ("a.hdr", "IN.hdr", lambda path: nib.save(nib.Nifti1Pair(VALUES, AFFINE), path)),
        (
            "a.nhdr",
            "IN.nhdr",
            lambda path: SimpleITK.WriteImage(SimpleITK.ReadImage(str(path) + ".nii"), str(path)),
        ),
    ],
)
def test_the_advised_commands_convert_the_file(tmp_path, name, old, write):
    nib.save(IMAGE, tmp_path / "a.nhdr.nii")
    write(tmp_path / name)
    command = command_of(refusal(tmp_path / name), old)
    affine, values = converted(tmp_path, command, old)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-6)
    np.testing.assert_array_equal(values, VALUES)


def test_the_error_distinguishes_a_dangling_link_from_an_absent_file(tmp_path):
    (tmp_path / "a.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    assert "is a link to a file that is not there: put the file there" in refusal(
        tmp_path / "a.nii.gz"
    )
    target = "../.git/annex/objects/Xx/yY/SHA256E-s1--4d7a.nii.gz/SHA256E-s1--4d7a.nii.gz"
    (tmp_path / "b.mha").symlink_to(target)
    assert "run 'git annex get .'" in refusal(tmp_path / "b.mha")
    with pytest.raises(FileNotFoundError):
        open_volume(LocalFileSystem(), str(tmp_path / "c.nii"))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a"])
def test_the_error_says_that_a_folder_is_in_place_of_a_file(tmp_path, name):
    (tmp_path / name).mkdir()
    message = refusal(tmp_path / name)
    assert f"{name}: is a folder, expected a file" in message
    assert "ends with '/'" in message


def test_the_error_names_a_folder_in_place_of_a_file_on_other_file_systems():
    memory = MemoryFileSystem()
    memory.pipe_file("/kinds/a.nii/b.nii", b"x")
    with pytest.raises(FormatError, match=r"/kinds/a\.nii: is a folder, expected a file"):
        open_volume(memory, "/kinds/a.nii")


@pytest.mark.usefixtures("plain_user")
def test_the_error_says_that_a_file_may_not_be_read(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(IMAGE.to_bytes())
    path.chmod(0)
    message = refusal(path)
    assert (
        message == f"{path}: cannot be read: Permission denied. Let its owner allow it (chmod a+r)."
    )
