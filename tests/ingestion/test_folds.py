"""Folds of a cross-validation become a column, and choose scans as splits do."""

import json

import pytest

import spinezarr
from spinezarr.errors import FormatError, UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.recipe import Recipe
from spinezarr.testing import write_ctspinopelvic1k, write_msr


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("spinopelvic")
    write_ctspinopelvic1k(root)
    return root


def test_the_folds_of_ctspinopelvic1k_choose_scans(raw, tmp_path):
    report = spinezarr.ingest("ctspinopelvic1k", raw=raw, out=tmp_path / "s.zarr")
    store = spinezarr.open(tmp_path / "s.zarr")
    document = json.loads((raw / "splits_5fold.json").read_text())
    fold_of = {
        int(token): str(number)
        for number, fold in enumerate(document["folds"])
        for token in fold["val_tokens"]
    }
    tokens = [int(scan_id[:4]) for scan_id in store.table.scan.to_numpy()]
    assert store.table.fold.to_numpy().tolist() == [fold_of.get(token, "") for token in tokens]
    tests = [token in map(int, document["test_tokens"]) for token in tokens]
    assert [split == "test" for split in store.table.split.to_numpy()] == tests
    assert set(store.table.split.to_numpy()) == {"train", "test"}
    (use,) = (use for use in report.tables if use.name == "folds")
    assert (use.rows, use.matched, use.unmatched) == (3, 3, ())
    assert "splits_5fold.json" not in [note.path for note in report.ignored]
    for number in sorted(set(fold_of.values())):
        chosen = store.stats(split=f"fold {number}").scans
        assert chosen == store.table.fold.to_numpy().tolist().count(number)
    drawn = store.patches(16, batch_size=4, split=["fold 0", "fold 1"])
    scans = {"0001", "0004_spine", "0004_pelvic"}
    assert set(drawn[0].scan_id) <= scans
    assert store.stats(split=["fold 0", "fold 1"]).scans == 3
    with pytest.raises(UsageError, match="'fold 0', 'fold 1'"):
        store.stats(split="fold 7")


def test_names_in_the_manifest_come_before_those_of_files(raw, tmp_path):
    """In later deposits, files are named by volume, and folds name patients."""
    (tmp_path / "raw").mkdir()
    for path in raw.rglob("*.nii.gz"):
        target = tmp_path / "raw" / path.relative_to(raw)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    rows = "token,ct_file\n77,ct/0001_ct.nii.gz\n78,ct/0149_ct.nii.gz\n"
    (tmp_path / "raw/manifest.csv").write_text(rows)
    folds = {
        "folds": [{"fold": 0, "train": [78], "val": ["77"]}, {"train": ["77"], "val": [78, 4]}]
    }
    (tmp_path / "raw/splits_5fold.json").write_text(json.dumps(folds))
    found = discover(Recipe.load("ctspinopelvic1k"), str(tmp_path / "raw"))
    folds = {scan.scan_id: (scan.columns["fold"], scan.split) for scan in found.scans}
    assert folds == {
        "0001": ("0", "train"),
        "0149": ("1", "train"),
        "0004_spine": ("1", "train"),
        "0004_pelvic": ("1", "train"),
    }


def test_a_download_without_the_file_has_no_folds(raw, tmp_path):
    folder = tmp_path / "raw"
    for path in raw.rglob("0001*.nii.gz"):
        target = folder / path.relative_to(raw)
        target.parent.mkdir(exist_ok=True, parents=True)
        target.write_bytes(path.read_bytes())
    found = discover(Recipe.load("ctspinopelvic1k"), str(folder))
    assert [(scan.split, scan.columns) for scan in found.scans] == [("", {})]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "is not JSON"),
        ("[]", "expected an object"),
        ('{"folds": {}}', "a list of folds under 'folds'"),
        ('{"folds": [{"train_tokens": []}]}', "'val_tokens' or 'val' in fold 0"),
        ('{"folds": [{"val": [[1]]}]}', "a list of names under 'val'"),
        ('{"folds": [], "test_tokens": "1"}', "a list of names under 'test_tokens'"),
    ],
)
def test_a_wrong_file_is_named(raw, tmp_path, text, found):
    folder = tmp_path / "raw"
    for path in raw.rglob("0001*.nii.gz"):
        target = folder / path.relative_to(raw)
        target.parent.mkdir(exist_ok=True, parents=True)
        target.write_bytes(path.read_bytes())
    (folder / "splits_5fold.json").write_text(text)
    with pytest.raises(FormatError, match=rf"splits_5fold.json: .*{found}"):
        discover(Recipe.load("ctspinopelvic1k"), str(folder))


def test_the_folds_of_microsoft_choose_scans(tmp_path):
    write_msr(tmp_path / "raw")
    spinezarr.ingest("msr", raw=tmp_path / "raw", out=tmp_path / "s.zarr")
    store = spinezarr.open(tmp_path / "s.zarr")
    for fold in ("1", "2"):
        expected = [fold in text.split("; ") for text in store.table.fold.to_numpy()]
        assert store.stats(split=f"fold {fold}").scans == sum(expected)
