import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.card import FigureKey
from spinezarr.errors import UsageError
from spinezarr.stats.statistics import Spread, compute_statistics, to_file_axes
from spinezarr.store.selection import ScanSelection
from spinezarr.vertebrae import LEVELS, NAME_OF_VALUE

names = st.sampled_from(["", "a", "b", 'ü|,"'])
lengths = st.floats(0.1, 9, allow_nan=False)
rows = st.fixed_dictionaries(
    {
        "patient": st.sampled_from("pqrs"),
        "source": names,
        "split": names,
        "codes": st.sampled_from(["LPS", "RAS", "PIR", "LAS", "PSR", "SRA", "IPL", "RSA", "ARS"]),
        "size": st.tuples(*[st.integers(1, 2**30)] * 3),
        "spacing": st.tuples(lengths, lengths, lengths),
        "mask": st.booleans(),
        "volumes": st.dictionaries(st.sampled_from(LEVELS), st.floats(1e-3, 200)),
        "centroids": st.sets(st.sampled_from(LEVELS)),
    }
)


def spread_of(values):
    """Return the spread of values by sorting."""
    ordered = sorted(values)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return Spread(ordered[0], pytest.approx(middle), ordered[-1])


@given(made=st.lists(rows, min_size=1, max_size=9))
def test_figures_equal_those_counted_from_the_rows(table_of, made):
    found = compute_statistics(table_of(made))
    frame = pd.DataFrame(made)
    assert found.scans == len(made)
    assert found.scans_with_mask == frame["mask"].sum()
    assert found.patients == frame.patient.nunique()
    assert found.slices == sum(row["size"][2] for row in made)
    assert found.scans_by_split == frame.split.value_counts().to_dict()
    assert found.scans_by_source == frame.source.value_counts().to_dict()
    for at, axis in enumerate("ijk"):
        assert found.shape_ijk[axis] == spread_of(row["size"][at] for row in made)
        assert found.spacing_ijk_mm[axis] == spread_of(row["spacing"][at] for row in made)
    seen = {name for row in made for name in (*row["volumes"], *row["centroids"])}
    assert list(found.vertebrae) == [name for name in LEVELS if name in seen]
    for name, vertebra in found.vertebrae.items():
        volumes = [row["volumes"][name] for row in made if name in row["volumes"]]
        assert vertebra.scans == len(volumes)
        assert vertebra.detection_percent == pytest.approx(100 * len(volumes) / len(made))
        assert vertebra.volume_cm3 == (spread_of(volumes) if volumes else None)
        assert vertebra.annotated_centroids == sum(name in row["centroids"] for row in made)
        assert NAME_OF_VALUE.get(vertebra.value, name) == name
    for region, initial in (("cervical", "C"), ("thoracic", "T"), ("lumbar", "L")):
        shown = sum(name[0] == initial for row in made for name in row["volumes"])
        assert found.vertebrae_by_region[region] == shown


@given(made=st.lists(rows, min_size=1, max_size=9), split=names, source=names)
def test_a_part_has_the_figures_of_its_rows(table_of, made, split, source):
    part = [row for row in made if (row["split"], row["source"]) == (split, source)]
    if {split} <= {r["split"] for r in made} and {source} <= {r["source"] for r in made}:
        table = table_of(made)
        chosen = table.isel(scan=ScanSelection.of(split=split, source=source).rows(table, "it"))
        assert compute_statistics(chosen).scans == len(part)
        if part:
            assert compute_statistics(chosen) == compute_statistics(table_of(part))
    else:
        with pytest.raises(UsageError, match="the store has"):
            ScanSelection.of(split=split, source=source).rows(table_of(made), "it")


@given(made=st.lists(rows, max_size=5))
def test_columns_are_returned_in_file_order(table_of, made):
    sizes = to_file_axes(table_of(made), "shape_zyx")
    assert sizes.tolist() == [list(row["size"]) for row in made]


@given(made=st.lists(rows, max_size=5))
def test_figures_list_every_number_once(table_of, made):
    found = compute_statistics(table_of(made))
    figures = found.figures()
    assert figures[FigureKey("all", "", "slices")] == found.slices
    for name, row in found.vertebrae.items():
        assert figures[FigureKey("vertebra", name, "scans")] == row.scans
        key = FigureKey("vertebra", name, "volume_cm3_median")
        assert figures.get(key) == (row.volume_cm3 and row.volume_cm3.median)
    for axis, spread in found.spacing_ijk_mm.items():
        assert figures[FigureKey("axis", axis, "spacing_ijk_mm_max")] == spread.max
        assert figures[FigureKey("axis", axis, "shape_ijk_min")] == found.shape_ijk[axis].min
    expected = (
        4 + len(found.scans_by_split) + len(found.scans_by_source) + 6 * len(found.shape_ijk) + 3
    )
    expected += sum(3 + 3 * (row.volume_cm3 is not None) for row in found.vertebrae.values())
    assert len(figures) == expected


def test_a_table_without_scans_has_figures(table_of):
    found = compute_statistics(table_of([]))
    assert (found.scans, found.patients, found.slices) == (0, 0, 0)
    assert found.shape_ijk == found.spacing_ijk_mm == found.vertebrae == {}


def test_a_store_has_the_figures_of_its_raw_files(store, ctspine1k_raw):
    """The raw masks are counted with nibabel and pandas alone."""
    measured, headers = [], []
    for scan in ctspine1k_raw[1]:
        image, mask = nib.load(scan.image_path), nib.load(scan.label_path)
        headers.append((*image.shape, *(float(mm) for mm in image.header.get_zooms())))
        values, counts = np.unique(np.asarray(mask.dataobj), return_counts=True)
        cm3 = abs(np.linalg.det(mask.affine[:3, :3])) / 1000
        measured += [(NAME_OF_VALUE[v], n * cm3) for v, n in zip(values, counts, strict=True) if v]
    found = store.stats()
    frame = pd.DataFrame(headers)
    assert found.scans == found.scans_with_mask == len(headers)
    assert found.slices == frame[2].sum()
    for at, axis in enumerate("ijk"):
        for statistic in ("min", "median", "max"):
            size, spacing = (
                getattr(s[axis], statistic) for s in (found.shape_ijk, found.spacing_ijk_mm)
            )
            assert size == getattr(frame[at], statistic)()
            assert spacing == pytest.approx(getattr(frame[at + 3], statistic)(), abs=1e-5)
    by_name = pd.DataFrame(measured, columns=["name", "cm3"]).groupby("name").cm3
    assert set(found.vertebrae) == set(by_name.groups)
    for name, volumes in by_name:
        row = found.vertebrae[name]
        assert row.scans == len(volumes)
        assert row.detection_percent == pytest.approx(100 * len(volumes) / len(headers))
        assert row.volume_cm3.min == pytest.approx(volumes.min())
        assert row.volume_cm3.median == pytest.approx(volumes.median())
        assert row.volume_cm3.max == pytest.approx(volumes.max())


def test_statistics_can_be_restricted_to_a_split_or_source(store):
    assert store.stats(split="train").scans_by_split == {"train": 3}
    assert store.stats(source="COLONOG").scans == store.splits["train"]
    with pytest.raises(UsageError, match="'Train': the store has 'test', 'train', 'validation'"):
        store.stats(split="Train")
    with pytest.raises(UsageError, match="source 'liver'"):
        store.stats(source="liver")
