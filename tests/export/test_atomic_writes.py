"""Exports write only inside their folder, and each file whole or not at all."""

import os

import pytest

import spinezarr
from spinezarr.errors import UsageError
from spinezarr.export.atomic_file import write_atomically


@pytest.fixture
def precious(tmp_path):
    path = tmp_path / "precious"
    path.write_text("precious")
    return path


@pytest.mark.parametrize("name", ["x.json", "x.json.partial"])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_in_place_of_a_file_is_replaced_and_not_followed(name, link, precious, tmp_path):
    link(precious, tmp_path / name)
    with write_atomically(tmp_path / "x.json") as file:
        file.write(b"new")
    assert precious.read_text() == "precious"
    assert (tmp_path / "x.json").read_text() == "new"
    assert not (tmp_path / "x.json").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"precious", "x.json"}


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(TypeError), write_atomically(tmp_path / "x") as file:
        file.write("no bytes")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_exports_follow_no_link(ctspine1k_url, precious, tmp_path):
    store = spinezarr.open(ctspine1k_url)
    scan_id = str(store.table.scan.to_numpy()[0])
    out = tmp_path / "out"
    out.mkdir()
    for name in (f"{scan_id}.png", f"{scan_id}_ct.nii", f"{scan_id}_ct.nii.partial"):
        (out / name).symlink_to(precious)
    store.preview(out=out, scans=scan_id)
    store.export_nifti(out=out, scans=scan_id, compressed=False, overwrite=True)
    assert precious.read_text() == "precious"
    assert not any(path.is_symlink() for path in out.iterdir())


def test_an_nnunet_dataset_is_not_written_through_a_link(ctspine1k_url, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "Dataset501_x"
    folder.mkdir()
    (folder / "imagesTr").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="imagesTr: is a link"):
        spinezarr.open(ctspine1k_url).export_nnunet(out=tmp_path, name="x")
