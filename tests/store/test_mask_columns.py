"""The scan table lists the labels and makers of further masks, as their scans have them."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spinezarr.errors import CorruptStoreError
from spinezarr.store import mask_columns
from spinezarr.store.mask_columns import mask_column_forms
from spinezarr.store.metadata import table_files
from spinezarr.store.records import MaskRecord
from spinezarr.store.table import build_table, update_table
from spinezarr.store.table_reader import read_table
from spinezarr.vertebrae import LEVELS

NAMES = ("L1", "T9", "T10", "", "left rib", "left  rib", "b10", "b9")
WORDS = {"left rib": "left_rib", "left  rib": "left_rib"}
TEXTS = ("scheme", "license", "author", "model")

counts = st.integers(1, 2**40)
labels = st.dictionaries(st.integers(1, 255), st.tuples(st.sampled_from(NAMES), counts), max_size=4)
facts = st.tuples(*[st.text("ab é", max_size=3)] * len(TEXTS))
masks = st.dictionaries(
    st.sampled_from(["prediction", "ribs", "x1"]), st.tuples(facts, labels), max_size=3
)


def record_of(said, given_labels):
    """Return the record of a mask with these facts and these voxels of each value."""
    box = {"centroid_zyx": (0.0, 0.0, 0.0), "start_zyx": (0, 0, 0), "stop_zyx": (1, 1, 1)}
    return MaskRecord(
        **dict(zip(TEXTS, said, strict=True)),
        labels={
            str(value): {**box, "name": name, "voxel_count": count}
            for value, (name, count) in given_labels.items()
        },
        source=None,
        source_key="",
        written_by="a test",
        notes=(),
    )


def with_masks(scan, drawn):
    records = {name: record_of(*drawn[name]) for name in sorted(drawn)}
    return scan.model_copy(update={"masks": records})


def expected_counts(drawn):
    """Return the voxels of each label of each mask, by the names that the table has."""
    found = {}
    for mask, (_, given_labels) in drawn.items():
        for value, (name, count) in given_labels.items():
            word = WORDS.get(name, name) or f"label_{value}"
            found[mask, word] = found.get((mask, word), 0) + count
    return found


def stored(table, folder):
    """Write a table, and read it as spinezarr and as plain xarray do."""
    for key, data in table_files(table, "/").items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)

    def read(paths):
        found = {path: folder.parent / path for path in paths}
        return {path: file.read_bytes() for path, file in found.items() if file.exists()}

    return read_table(read, folder.name, "the table").to_xarray(), xr.open_zarr(folder).load()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.lists(masks, min_size=3, max_size=3), after=masks, row=st.integers(0, 2))
def test_the_table_has_the_labels_of_every_mask_and_no_others(
    store, tmp_path_factory, before, after, row
):
    reader = store._reader
    ids = reader.table.scan.to_numpy().tolist()[:3]
    scans = [
        with_masks(reader.scan(name).attributes, m) for name, m in zip(ids, before, strict=True)
    ]
    known, _ = stored(build_table(reader.root, scans), tmp_path_factory.mktemp("t") / "table")
    drawn = [*before[:row], after, *before[row + 1 :]]
    scans[row] = with_masks(scans[row], after)
    table = update_table(reader.root, known, {ids[row]: scans[row]}, {})
    xr.testing.assert_identical(table, build_table(reader.root, scans))
    for found in stored(table, tmp_path_factory.mktemp("t") / "table"):
        names = sorted({name for each in drawn for name in each})
        if not names:
            assert not mask_column_forms().keys() & set(found.variables)
            assert set(found.sizes) == {"scan", "vertebra", "axis"}
            continue
        assert found.mask.to_numpy().tolist() == names
        for at, scan_id in enumerate(ids):
            of_scan, expected = found.sel(scan=scan_id), expected_counts(drawn[at])
            voxel_cm3 = abs(np.linalg.det(np.array(scans[at].affine)[:3, :3])) / 1000
            for mask in names:
                for structure in found.structure.to_numpy():
                    cell = of_scan.sel(mask=mask, structure=structure)
                    count = expected.pop((mask, structure), 0)
                    assert int(cell.mask_voxel_count) == count
                    volume = count * voxel_cm3 if count else np.nan
                    np.testing.assert_allclose(cell.mask_volume_cm3, volume)
                said = drawn[at][mask][0] if mask in drawn[at] else [""] * len(TEXTS)
                of_mask = of_scan.sel(mask=mask)
                assert [of_mask[f"mask_{name}"].item() for name in TEXTS] == list(said)
                assert (of_mask.mask_verdict.item(), np.isnan(of_mask.mask_dice)) == ("", True)
            assert not expected
        order = found.structure.to_numpy().tolist()
        levels = [name for name in LEVELS if name in order]
        assert order[: len(levels)] == levels
        if {"b9", "b10"} <= set(order):
            assert order.index("b9") < order.index("b10")


def test_a_table_that_would_be_too_large_leaves_the_labels_out(store, tmp_path, monkeypatch):
    reader = store._reader
    ids = reader.table.scan.to_numpy().tolist()[:2]
    drawn = {"ribs": (("custom", "", "", "net"), {1: ("a", 5), 2: ("b", 6)})}
    scans = [with_masks(reader.scan(name).attributes, drawn) for name in ids]
    monkeypatch.setattr(mask_columns, "LARGEST_MASK_COUNTS", 3)
    for found in stored(build_table(reader.root, scans), tmp_path / "table"):
        assert "mask_voxel_count" not in found.variables
        assert found.mask_model.to_numpy().tolist() == [["net"], ["net"]]
    known, _ = stored(build_table(reader.root, scans), tmp_path / "table")
    smaller = update_table(reader.root, known, {ids[0]: scans[0].without_masks()}, {})
    assert "structure" not in smaller.variables, "the labels of the other scan are not known"


@pytest.mark.parametrize("name", ["mask", "mask_model", "mask_volume_cm3"])
def test_a_table_without_a_column_of_its_masks_is_refused(store, tmp_path, name):
    scan = store._reader.scan("liver_0").attributes
    drawn = {"ribs": (("custom", "", "", "net"), {1: ("a", 5)})}
    table = build_table(store._reader.root, [with_masks(scan, drawn)])
    with pytest.raises(CorruptStoreError, match=f"{name}: no such column"):
        stored(table.drop_vars(name), tmp_path / "table")


@pytest.mark.parametrize(
    ("column", "values", "found"),
    [
        ("mask", ["other"], "other names"),
        ("structure", ["a", "a"], "a name twice"),
        ("mask_voxel_count", [[[-1, 6]]], "a negative count"),
        ("masks", [""], "such a column"),
    ],
)
def test_impossible_columns_of_masks_are_refused(store, tmp_path, column, values, found):
    scan = store._reader.scan("liver_0").attributes
    drawn = {"ribs": (("custom", "", "", "net"), {1: ("a", 5), 2: ("b", 6)})}
    table = build_table(store._reader.root, [with_masks(scan, drawn)])
    old = table[column]
    changed = table.assign({column: (old.dims, np.array(values, old.dtype), old.attrs)})
    if column == "masks":
        changed = changed.assign(mask_checksums=(("scan",), np.array([""], old.dtype)))
    with pytest.raises(CorruptStoreError, match=found):
        stored(changed, tmp_path / "table")
