import pytest

from spinezarr.ingestion.discovery.near_misses import near_misses
from spinezarr.recipe import Recipe

PAIRS = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="pairs")
BELOW = Recipe.from_pairs("{patient}/ct/{scan}.nii.gz", "{patient}/seg/{scan}.nii.gz", name="below")
IMAGE = "nearly fits the image pattern {scan}_ct.nii.gz, but "
MASK = "nearly fits the mask pattern {scan}_seg.nii.gz, but "


@pytest.mark.parametrize(
    ("path", "start", "step"),
    [
        ("a_CT.nii.gz", IMAGE + "capital letters differ.", "Rename it"),
        ("A_CT.NII.GZ", IMAGE + "capital letters differ.", "Rename it"),
        ("a_Seg.nii", MASK + "capital letters differ.", "Rename it"),
        ("x/y/a_ct.nii.gz", IMAGE + "it lies in a folder.", "'**/' at the start"),
        ("x/a_CT.nii", IMAGE + "capital letters differ and it lies in a folder.", "'**/'"),
        ("a_ct.nii.gz/b.nii", IMAGE + "it was unpacked into a folder under another", "Rename it"),
        ("a_ct.nhdr", IMAGE + "it is an NRRD file.", "SimpleITK"),
        ("a_ct.seg.nrrd", IMAGE + "it has the ending of another format.", r"{ext:nii\.gz|mha}"),
        ("a_CT.mgz", IMAGE + "it is an MGH file of FreeSurfer and capital letters", "nibabel"),
        ("a_ct.hdr", IMAGE + "it is one half of a .hdr/.img pair", "nibabel"),
        ("a_ct.nii.bz2", IMAGE + "it is bzip2 data.", "bunzip2"),
        ("a_ct.nii.gz.part", IMAGE + "it is an unfinished download.", "Let it finish"),
        ("a_ct.zip", IMAGE + "it is a ZIP archive.", "unzip"),
        ("a_seg.npy", MASK + "it is a NumPy array.", "Nifti1Image"),
        ("a_ct.mha", IMAGE + "it has the ending of another format.", r"{ext:nii\.gz|mha}"),
    ],
)
def test_a_file_that_nearly_fits_is_reported_with_reason_and_advice(path, start, step):
    reason = near_misses(PAIRS)(path)
    assert reason.startswith(start)
    assert step in reason


@pytest.mark.parametrize(
    "path",
    ["a.nii.gz", "notes.txt", "a_ct.png", "a_ct.json", "a_ct", "x/a_ct.nrrd", "a_ct.nii.gz.txt"],
)
def test_unrelated_files_are_not_reported_as_near_misses(path):
    assert near_misses(PAIRS)(path) == ""


def test_folders_can_nearly_fit_a_pattern():
    near = near_misses(BELOW)
    assert near("raw/p/ct/a.nii.gz").startswith(
        "nearly fits the image pattern {patient}/ct/{scan}.nii.gz, but it lies in a folder."
    )
    assert "capital letters differ" in near("p/CT/a.nii")
    assert near("ct/a.nii.gz") == ""


def test_a_file_that_fits_but_is_not_of_the_dataset_is_no_near_miss():
    near = near_misses(Recipe.load("ctspine1k"))
    assert near("data/liver/odd_name.nii.gz") == ""
    assert "capital letters differ" in near("Data/liver/liver_0.nii.gz")


def test_files_that_differ_only_in_digits_share_one_reason():
    near = near_misses(PAIRS)
    assert near("x/1_ct.nii.gz") == near("x/2_ct.nii.gz") != ""
