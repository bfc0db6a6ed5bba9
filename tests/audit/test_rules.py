from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spinezarr.audit.cross_scan_rules import ScanKey, same_image, same_patient
from spinezarr.audit.levels import scan_levels
from spinezarr.audit.run import _FACT_RULES
from spinezarr.audit.voxel_measurements import Component, VoxelMeasurements, connected_components
from spinezarr.audit.voxel_rules import several_pieces, stray_voxels
from spinezarr.geometry import Box, oblique_angle_deg
from spinezarr.store.attributes import (
    CentroidRecord,
    MetaImageRecord,
    NiftiRecord,
    ScanAttributes,
)
from spinezarr.testing.phantom import connected_part
from spinezarr.vertebrae import ANATOMICAL_ORDER, NAME_OF_VALUE, VALUE_OF_NAME

AFFINE = np.array([[4.0, 0, 0, -80], [0, 4.0, 0, 30.5], [0, 0, 3.0, -600], [0, 0, 0, 1]])
SPINE = ("T7", "T8", "T9", "T10", "T11", "T12", "L1", "L2")
STEP, HEIGHT = 8, 7
"""Slices from block to block (24 mm), and slices of a block (21 mm)."""

REAL = Path(__file__).parents[3] / "shared/data/real"
REAL_MASKS = {
    "lidc": REAL / "lidc-idri/lidc-idri-0001_seg.nii.gz",
    "totalseg": REAL / "totalsegmentator/example_seg.nii.gz",
    "tptbox": REAL / "tptbox/sub-ct_seg-vert_label-22_msk.nii.gz",
    "verse004": REAL / "verse/sub-verse004_seg-vert_msk.nii.gz",
}
REAL_MASKS = {name: path for name, path in REAL_MASKS.items() if path.exists()}


def measured(label):
    """Return the measures of each vertebra with NumPy, and the voxel counts of other values."""
    at = np.argwhere(label)
    values = label[tuple(at.T)]
    vertebrae, other = {}, {}
    for value in np.unique(values).tolist():
        own = at[values == value]
        if value not in NAME_OF_VALUE:
            other[str(value)] = len(own)
            continue
        vertebrae[NAME_OF_VALUE[value]] = {
            "voxel_count": len(own),
            "centroid_zyx": tuple(own.mean(axis=0).tolist()),
            "start_zyx": tuple(own.min(axis=0).tolist()),
            "stop_zyx": tuple((own.max(axis=0) + 1).tolist()),
        }
    return {"vertebrae": vertebrae, "other_labels": other, "shape_zyx": label.shape}


def scan_of(label, affine=AFFINE, **changes):
    z, y, x = np.linalg.norm(affine[:3, :3], axis=0)[::-1].tolist()
    source = {
        "file": "a_ct.nii",
        "size_bytes": 1,
        "sha256": "0" * 64,
        "dtype": "int16",
        "shape_ijk": label.shape[::-1],
        "affine_ijk": tuple(map(tuple, affine.tolist())),
        "orientation": "RAS",
        "stored_dtype": "<i2",
        "scaling": None,
        "nifti": None,
        "metaimage": None,
    }
    facts = {
        "dataset": "blocks",
        "scan_id": "a",
        "patient_id": "a",
        "source": "",
        "split": "",
        "split_index": -1,
        "license": "MIT",
        "citation": "",
        "affine": tuple(map(tuple, affine.tolist())),
        "spacing_zyx_mm": (z, y, x),
        "oblique_deg": oblique_angle_deg(affine),
        "label_state": "all-visible",
        "image_dtype": "int16",
        "image_stored_dtype": "int16",
        "image_scaling": None,
        "image_range_hu": (-1024.0, 1800.0),
        "image_nan_voxels": 0,
        "image_infinite_voxels": 0,
        "image_checksum": "0",
        "structures": {},
        "centroids": {},
        "columns": {},
        "image_source": source,
        "label_source": {**source, "parts": (), "values": (), "rounded_voxels": 0},
        "centroid_source": None,
        "sidecar": {},
        "source_bytes": 1,
        "source_key": "",
        "written_by": "test",
        "notes": (),
        "manifest": {},
    }
    return ScanAttributes.model_validate({**facts, **measured(label), **changes})


def blocks(levels=SPINE, *, gap_below=None):
    """Return vertebrae of 29.6 cm3, one below the other, away from all faces."""
    n = len(levels) + (gap_below is not None)
    label = np.zeros((n * STEP + 2, 20, 30), np.uint8)
    top = label.shape[0] - 2
    for name in levels:
        label[top - HEIGHT : top, 6:14, 8:19] = VALUE_OF_NAME[name]
        top -= STEP * (2 if name == gap_below else 1)
    return label


def findings_of(scan):
    return [finding for rule in _FACT_RULES for finding in rule(scan)]


def short(findings):
    return [(f.rule, f.severity, f.vertebra) for f in findings]


def found(scan):
    return short(findings_of(scan))


def only(scan):
    (finding,) = findings_of(scan)
    return finding


def assert_at(finding, voxel_zyx, affine=AFFINE):
    assert finding.voxel_zyx == tuple(voxel_zyx)
    position = (affine @ [*voxel_zyx[::-1], 1])[:3]
    np.testing.assert_allclose(finding.position_xyz_mm, position, atol=1e-3)


def relabeled(scan, names):
    """Give vertebrae other names; None removes the label."""
    changed = {names.get(name, name): record for name, record in scan.vertebrae.items()}
    changed.pop(None, None)
    return scan.model_copy(update={"vertebrae": changed})


def center_of(label, name):
    """Return the voxel in the middle of a block."""
    at = np.argwhere(label == VALUE_OF_NAME[name])
    return tuple(np.rint(at.mean(axis=0)).astype(int).tolist())


# Levels


@pytest.mark.parametrize(
    "levels",
    [
        SPINE,
        SPINE[2:4],
        ("T12", "T13", "L1", "L2"),
        ("T11", "T12", "L1"),
        ("L3", "L4", "L5", "L6", "sacrum", "coccyx"),
        ("L4", "L5", "sacrum"),
    ],
)
def test_whole_vertebrae_one_below_the_other_have_no_findings(levels):
    label = blocks(levels)
    assert found(scan_of(label)) == []


@pytest.mark.parametrize("name", SPINE[1:-1])
def test_an_unlabeled_vertebra_is_reported_as_a_skipped_level(name):
    label = blocks()
    where = center_of(label, name)
    label[label == VALUE_OF_NAME[name]] = 0
    finding = only(scan_of(label))
    assert short([finding]) == [("skipped-level", "error", name)]
    assert "unlabeled" in finding.text
    assert_at(finding, where)
    assert finding.facts["distance_mm"] == pytest.approx(48)
    assert finding.facts["usual_step_mm"] == pytest.approx(24)


def test_two_adjacent_skipped_levels_are_one_finding():
    label = blocks()
    label[np.isin(label, (17, 18))] = 0
    finding = only(scan_of(label))
    assert (finding.vertebra, finding.facts["missing"]) == ("T10", ["T10", "T11"])
    assert "T10 to T11 are missing" in finding.text


@pytest.mark.parametrize("name", SPINE[1:-1])
def test_a_jump_in_the_numbers_is_an_error_except_without_t12(name):
    finding = only(scan_of(blocks(tuple(level for level in SPINE if level != name))))
    expected = "info" if name == "T12" else "error"
    assert short([finding]) == [("skipped-level", expected, name)]
    assert ("variant" if name == "T12" else "labels jump") in finding.text


def test_a_jump_in_the_numbers_without_other_steps_to_compare_is_a_warning():
    finding = only(scan_of(blocks(("T11", "L1"))))
    assert short([finding]) == [("skipped-level", "warning", "T12")]
    assert found(scan_of(blocks(("L2", "L3", "L4", "sacrum")))) == [
        ("skipped-level", "warning", "L5")
    ]


def test_an_unlabeled_vertebra_between_consecutive_numbers_is_found():
    finding = only(scan_of(blocks(gap_below="T10")))
    assert short([finding]) == [("far-apart", "error", "T10")]
    assert finding.facts["pair"] == ["T10", "T11"]


def test_one_other_step_suffices_to_find_a_gap():
    assert found(scan_of(blocks(("T9", "T10", "T11"), gap_below="T10"))) == [
        ("far-apart", "error", "T10")
    ]


@pytest.mark.parametrize("gap_below", ["L4", "L5"])
def test_the_step_to_the_sacrum_may_be_larger(gap_below):
    assert found(scan_of(blocks(("L4", "L5", "sacrum"), gap_below=gap_below))) == []


def test_swapped_labels_do_not_change_the_usual_step():
    label = blocks()
    label[label == VALUE_OF_NAME["T12"]] = 0
    names = {"T9": "T10", "T10": "T9"}
    assert found(relabeled(scan_of(label), names)) == [
        ("skipped-level", "error", "T12"),
        ("label-order", "error", "T9"),
    ]


@pytest.mark.parametrize(("upper", "lower"), list(pairwise(SPINE)))
def test_swapped_labels_are_one_finding_with_their_place(upper, lower):
    label = blocks()
    swapped = label.copy()
    swapped[label == VALUE_OF_NAME[upper]] = VALUE_OF_NAME[lower]
    swapped[label == VALUE_OF_NAME[lower]] = VALUE_OF_NAME[upper]
    finding = only(scan_of(swapped))
    assert short([finding]) == [("label-order", "error", upper)]
    assert_at(finding, center_of(label, lower))
    assert f"{upper} lies 24 mm below {lower}" in finding.text


def test_a_mask_upside_down_is_one_finding():
    finding = only(scan_of(blocks()[::-1]))
    assert short([finding]) == [("label-order", "error", "T7")]
    assert "upside down" in finding.text


def test_order_is_judged_in_the_world_not_along_the_stored_axis():
    turned = np.array([[0, 0, 3.0, 0], [4.0, 0, 0, 0], [0, -4.0, 0, 0], [0, 0, 0, 1]])
    lying = scan_of(blocks(), turned)
    # All vertebrae lie at one height, so none lies below another.
    assert "label-order" not in {rule for rule, *_ in found(lying)}


# Sizes


def shrink(label, name, n):
    """Keep only the n voxels in the middle of a vertebra."""
    at = np.argwhere(label == VALUE_OF_NAME[name])
    near = np.argsort(((at - at.mean(axis=0)) ** 2).sum(axis=1), kind="stable")
    label[tuple(at[near[n:]].T)] = 0
    return label


def test_a_fragment_inside_the_volume_is_an_error():
    label = shrink(blocks(), "T10", 9)
    finding = only(scan_of(label))
    assert short([finding]) == [("fragment", "error", "T10")]
    assert finding.facts["voxel_count"] == 9
    assert_at(finding, center_of(label, "T10"))


def test_a_fragment_at_the_end_is_a_warning():
    label = blocks()[: -2 - HEIGHT + 1]
    label[-1, :, 12:] = 0
    assert found(scan_of(label)) == [
        ("fragment", "warning", "T7"),
        ("border-contact", "info", "T7"),
    ]


def test_a_cut_vertebra_is_a_warning_only_if_all_should_be_whole():
    label = blocks()[: -2 - HEIGHT + 4]
    _, y, x = center_of(label, "T7")
    for state, severity in {
        "all-visible": "info",
        "unknown": "info",
        "whole-only": "warning",
    }.items():
        finding = only(scan_of(label, label_state=state))
        assert short([finding]) == [("border-contact", severity, "T7")]
        assert finding.facts["faces"] == ["superior"]
        assert_at(finding, (label.shape[0] - 1, y, x))


@pytest.mark.parametrize(
    ("cut", "face"),
    [
        (np.s_[:, 6:], "posterior"),
        (np.s_[:, :14], "anterior"),
        (np.s_[:, :, 8:], "left"),
        (np.s_[:, :, :19], "right"),
    ],
)
def test_border_contact_names_the_side_of_the_volume(cut, face):
    findings = findings_of(scan_of(blocks()[cut], label_state="whole-only"))
    assert {(f.rule, f.severity, *f.facts["faces"]) for f in findings} == {
        ("border-contact", "info", face)
    }
    assert [f.vertebra for f in findings] == list(SPINE)


def test_border_contact_at_the_lower_end_is_inferior():
    label = blocks()[3:]
    lowest = np.argwhere(label)[:, 0].min()
    finding = only(scan_of(label[lowest:]))
    assert finding.facts["faces"] == ["inferior"]
    assert finding.voxel_zyx[0] == 0


def test_an_incomplete_vertebra_inside_the_volume_is_a_warning():
    finding = only(scan_of(shrink(blocks(), "T10", 150)))
    assert short([finding]) == [("small-vertebra", "warning", "T10")]


@pytest.mark.parametrize("upper", SPINE[1:-2])
def test_two_vertebrae_under_one_label_are_a_warning(upper):
    lower = SPINE[SPINE.index(upper) + 1]
    label = blocks()
    label[label == VALUE_OF_NAME[lower]] = VALUE_OF_NAME[upper]
    large = [f for f in findings_of(scan_of(label)) if f.rule == "large-vertebra"]
    assert short(large) == [("large-vertebra", "warning", upper)]
    assert 1.6 < large[0].facts["times_expected"] < 2.6
    assert len(large[0].facts["neighbors"]) == 4


def test_a_vertebra_is_judged_as_large_only_against_whole_neighbors():
    label = blocks(("T11", "T12", "L1", "L2"))
    label[label == VALUE_OF_NAME["T12"]] = VALUE_OF_NAME["T11"]
    assert ("large-vertebra", "warning", "T11") in found(scan_of(label))
    cut = label[np.argwhere(label)[:, 0].min() :]
    assert "large-vertebra" not in {rule for rule, *_ in found(scan_of(cut))}


def test_a_small_patient_has_no_findings():
    shrunk = np.diag([0.7, 0.7, 0.7, 1]) @ AFFINE
    assert found(scan_of(blocks(), shrunk)) == []


def test_a_vertebra_of_usual_size_in_a_large_patient_has_no_finding():
    grown = np.diag([1.25, 1.25, 1.25, 1]) @ AFFINE  # a voxel has 0.094 cm3
    assert found(scan_of(shrink(blocks(), "T10", 160), grown)) == []
    findings = found(scan_of(shrink(blocks(), "T10", 140), grown))
    assert findings == [("small-vertebra", "warning", "T10")]


def test_a_mask_of_a_single_fragment_is_found():
    label = shrink(blocks(("L3",)), "L3", 5)
    assert found(scan_of(label)) == [("fragment", "error", "L3")]


@pytest.mark.parametrize("at", [(3, 3, 3), (40, 10, 25), (0, 10, 10)])
def test_stray_voxels_of_a_level_are_one_error(at):
    label = blocks()
    label[at] = VALUE_OF_NAME["C1"]
    findings = [f for f in findings_of(scan_of(label)) if f.rule != "border-contact"]
    assert short(findings) == [("stray-label", "error", "C1")]
    assert_at(findings[0], at)


def test_a_mask_without_vertebrae_is_found():
    nothing = np.zeros((9, 9, 9), np.uint8)
    assert found(scan_of(nothing)) == [("empty-mask", "error", None)]
    assert found(scan_of(nothing, label_state="none", label_source=None)) == [
        ("no-mask", "info", None)
    ]


# Annotated centers


def centroids_of(scan, *, off_mm=0.0, distance=0.0, without=()):
    """Return the centers of the labels, shifted upward."""
    points = {}
    for name, record in scan.vertebrae.items():
        x, y, z = (np.array(scan.affine) @ [*record.centroid_zyx[::-1], 1])[:3].tolist()
        if name not in without:
            points[name] = CentroidRecord(
                position_zyx_mm=(z + off_mm, y, x), label_distance_mm=distance
            )
    return points


def with_centroids(scan, centroids):
    return scan.model_copy(update={"centroids": centroids})


@pytest.mark.parametrize(
    ("distance", "severity"), [(0.0, None), (6.4, None), (6.5, "warning"), (10.1, "error")]
)
def test_centers_more_than_a_voxel_outside_their_label_are_found(distance, severity):
    scan = scan_of(blocks())  # a voxel's diagonal is 6.403 mm
    points = centroids_of(scan)
    record = points["T9"].model_copy(update={"label_distance_mm": distance})
    findings = findings_of(with_centroids(scan, {**points, "T9": record}))
    expected = [("centroid-outside", severity, "T9")] if severity else []
    assert short(findings) == expected
    for finding in findings:
        z, y, x = record.position_zyx_mm
        assert finding.position_xyz_mm == pytest.approx((x, y, z), abs=1e-3)
        assert finding.voxel_zyx == center_of(blocks(), "T9")


def test_centers_without_label_and_labels_without_center_are_found():
    label = blocks()
    points = centroids_of(scan_of(label), without=["T8"])
    sacrum = CentroidRecord(position_zyx_mm=(-700.0, 0.0, 0.0), label_distance_mm=None)
    points |= {"L3": sacrum, "S1": sacrum.model_copy(update={"position_zyx_mm": (-720, 0, 0)})}
    findings = findings_of(with_centroids(scan_of(label), points))
    assert short(findings) == [
        ("centroid-unmatched", "info", "T8"),
        ("centroid-unmatched", "info", "L3"),
    ]
    assert findings[0].voxel_zyx == center_of(label, "T8")
    assert findings[1].position_xyz_mm == (0, 0, -700)


def test_centers_out_of_order_are_found():
    scan = scan_of(blocks())
    points = centroids_of(scan)
    points["T9"], points["T10"] = points["T10"], points["T9"]
    finding = only(with_centroids(scan, points))
    assert short([finding]) == [("centroid-order", "error", "T9")]
    assert finding.facts == {"pair": ["T9", "T10"], "depth_mm": 24.0}


# Image


@pytest.mark.parametrize(
    ("found_range", "severity", "words"),
    [
        (None, None, ""),
        ((0.0, 0.0), "error", "constant"),
        ((0.0, 1.0), "error", "scaled"),
        ((-1.0, 1.0), "error", "scaled"),
        ((-2.5, 11.0), "error", "standardized"),
        ((0.0, 255.0), "error", "8-bit"),
        ((0.0, 4095.0), "error", "intercept"),
        ((-1024.0, 240.0), "warning", "no bone"),
        ((-200.0, 800.0), "warning", "no air"),
        ((-1000.0, 1979.0), None, ""),
        ((-1207.0, 3382.0), None, ""),
        ((-1030.0, 1961.0), None, ""),
    ],
)
def test_images_without_ct_numbers_are_found(found_range, severity, words):
    findings = findings_of(scan_of(blocks(), image_range_hu=found_range))
    assert short(findings) == ([("image-values", severity, None)] if severity else [])
    assert all(words in finding.text for finding in findings)


@pytest.mark.parametrize(
    ("mm", "severity"),
    [
        (0.19, None),
        (5.0, None),
        (0.1, "warning"),
        (6.0, "warning"),
        (0.0007, "error"),
        (700.0, "error"),
    ],
)
def test_spacings_unusual_for_ct_are_found(mm, severity):
    scan = scan_of(blocks(), spacing_zyx_mm=(1.0, 1.0, mm))
    assert found(scan) == ([("spacing", severity, None)] if severity else [])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-1500.0, 4095.0, []),
        (-2000.0, 3071.0, [("info", "GE's scanners")]),
        (-2048.0, 3071.0, [("info", "signed 12-bit number")]),
        (-3024.0, 3071.0, [("info", "-2000 with an intercept of -1024")]),
        (-2311.0, 3071.0, [("info", "padding that was interpolated")]),
        (-1500.5, 3071.0, [("info", "padding that was interpolated")]),
        (-4096.0, 3071.0, [("info", "padding that was interpolated")]),
        (-4097.0, 3071.0, [("error", "no CT number: these run from -1024 to 3071 HU")]),
        (-9758.0, 3071.0, [("error", "the lowest value is -9758, which is no CT number")]),
        (-9758.0, 13568.0, [("warning", "streaks next to metal"), ("info", "metal")]),
        (-10241.0, 13568.0, [("error", "no CT number"), ("info", "metal")]),
        (-32768.0, 3071.0, [("warning", "the lowest 16-bit number")]),
        (-32767.0, 3071.0, [("warning", "the lowest 16-bit number")]),
        (-40000.0, 3071.0, [("error", "no CT number")]),
        (-1024.0, 4096.0, [("info", "metal, on an extended scale")]),
        (-1024.0, 30710.0, [("info", "metal, on an extended scale")]),
        (-1024.0, 32767.0, [("warning", "extended scales end at 30710")]),
        (-1024.0, 61439.0, [("warning", "extended scales end at 30710")]),
        (-1024.0, 62512.0, [("error", "62512, which is -3024 read as an unsigned number")]),
        (-1024.0, 64512.0, [("error", "64512, which is -1024 read as an unsigned number")]),
        (-1024.0, 65535.0, [("error", "65535, which is -1 read as an unsigned number")]),
        (-1024.0, 65536.0, [("error", "at most 16 bits")]),
        (-3.4e38, 3.4e38, [("error", "no CT number"), ("error", "at most 16 bits")]),
    ],
)
def test_extreme_values_unusual_for_ct_are_found(low, high, expected):
    findings = findings_of(scan_of(blocks(), image_range_hu=(low, high)))
    assert short(findings) == [("extreme-values", severity, None) for severity, _ in expected]
    for finding, (_, words) in zip(findings, expected, strict=True):
        assert words in finding.text
        assert finding.facts == {"lowest_hu": low, "highest_hu": high}


@pytest.mark.parametrize(
    ("nan", "infinite", "text"),
    [
        (3, 0, "voxels of the image that are not numbers: 3 NaN"),
        (0, 2, "voxels of the image that are not numbers: 2 infinite"),
        (3, 2, "voxels of the image that are not numbers: 3 NaN and 2 infinite"),
    ],
)
def test_nonfinite_values_are_counted(nan, infinite, text):
    counts = {"image_nan_voxels": nan, "image_infinite_voxels": infinite}
    finding = only(scan_of(blocks(), **counts))
    assert (finding.rule, finding.severity, finding.text) == ("not-finite", "error", text)
    assert finding.facts == {"nan_voxels": nan, "infinite_voxels": infinite}
    nothing = only(scan_of(blocks(), **counts, image_range_hu=None))
    assert (nothing.rule, nothing.severity) == ("not-finite", "error")
    assert nothing.text.startswith("no voxel of the image is a finite number: ")


def test_images_that_int16_cannot_hold_and_odd_grids_are_noted():
    wide = {"image_dtype": "float32", "image_stored_dtype": "float32"}
    assert found(scan_of(blocks(), **wide)) == [("image-type", "info", None)]
    scaled = {
        "image_dtype": "float64",
        "image_stored_dtype": "uint8",
        "image_scaling": (0.3, -10.0),
    }
    assert only(scan_of(blocks(), **scaled)).text == (
        "the image is stored as uint8 with a slope of 0.3 and an intercept of -10: int16 cannot "
        "hold its values"
    )
    narrow = {"image_dtype": "float64", "image_stored_dtype": "int16", "image_scaling": (0.5, 0.0)}
    assert found(scan_of(blocks(), **narrow)) == [("image-type", "info", None)]
    angle = np.radians(16)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert found(scan_of(blocks(), turn @ AFFINE)) == [("oblique", "info", None)]


@pytest.mark.parametrize(("angle", "severity"), [(0.5, "info"), (5, "warning"), (15, "warning")])
def test_a_sheared_grid_is_not_reported_as_oblique(angle, severity):
    sheared = AFFINE.copy()
    sheared[1, 2] = 3 * np.tan(np.radians(angle))
    finding = only(scan_of(blocks(), sheared))
    assert (finding.rule, finding.severity) == ("sheared", severity)
    assert finding.facts["shear_deg"] == pytest.approx(angle)


def test_mirrored_axes_have_no_finding():
    assert found(scan_of(blocks(), np.diag([-1, 1, 1, 1]) @ AFFINE)) == []


SQUARE = {
    "version": 1,
    "sform_code": 1,
    "qform_code": 1,
    "pixdim": (1.0, 2.0, 2.0, 3.0),
    "quatern_bcd": (0.0, 0.0, 0.0),
    "qoffset_xyz": (0.0, 0.0, 0.0),
    "xyzt_units": 2,
}


def with_headers(image=None, mask=None, affine=None, kind="nifti"):
    """Replace the headers of a scan's files; None keeps one."""
    scan = scan_of(blocks())
    changes = {}
    for field, header in (("image_source", image), ("label_source", mask)):
        record = getattr(scan, field)
        if header is not None:
            record = record.model_copy(update={kind: header})
        if affine is not None:
            record = record.model_copy(update={"affine_ijk": tuple(map(tuple, affine.tolist()))})
        changes[field] = record
    return scan.model_copy(update=changes)


def nifti(**changes):
    # The sform is AFFINE, and the qform has the same spacing and position.
    x, y, z = np.linalg.norm(AFFINE[:3, :3], axis=0).tolist()
    same = {"pixdim": (1.0, x, y, z), "qoffset_xyz": tuple(AFFINE[:3, 3].tolist())}
    return NiftiRecord.model_validate({**SQUARE, **same, **changes})


def test_consistent_headers_have_no_finding():
    assert found(with_headers(nifti(), nifti())) == []
    assert found(with_headers(nifti(sform_code=0), nifti(qform_code=0))) == []


def test_different_spacings_of_pixdim_and_sform_are_found():
    (spacing, qform) = findings_of(with_headers(nifti(pixdim=(1.0, 1.0, 1.0, 1.0))))
    assert (spacing.rule, spacing.severity) == ("spacing-conflict", "warning")
    taken = np.linalg.norm(AFFINE[:3, :3], axis=0)
    words = " x ".join(f"{mm:.4g}" for mm in taken)
    assert spacing.text == (
        "the image's header states a spacing of 1 x 1 x 1 mm in pixdim and of "
        f"{words} mm in the sform"
    )
    assert spacing.facts["pixdim_mm"] == [1.0, 1.0, 1.0]
    assert spacing.facts["sform_spacing_mm"] == pytest.approx(taken)
    assert (qform.rule, qform.severity) == ("qform-conflict", "warning")
    lone = with_headers(mask=nifti(pixdim=(1.0, 1.0, 1.0, 1.0), qform_code=0))
    assert only(lone).text.startswith(
        "the mask's header states a spacing of 1 x 1 x 1 mm in pixdim"
    )
    placed_by_qform = nifti(pixdim=(1.0, 1.0, 1.0, 1.0), sform_code=0)
    assert found(with_headers(placed_by_qform)) == []


def test_different_positions_of_qform_and_sform_are_found():
    x, y, z = AFFINE[:3, 3].tolist()
    finding = only(with_headers(nifti(qoffset_xyz=(x + 3, y + 4, z))))
    assert (finding.rule, finding.severity) == ("qform-conflict", "warning")
    assert finding.facts == {"file": "image", "distance_mm": pytest.approx(5)}
    assert found(with_headers(nifti(qoffset_xyz=(x + 1e-3, y, z)))) == []


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0])])
def test_files_with_default_affines_are_found(affine):
    findings = findings_of(with_headers(affine=affine))
    assert short(findings) == [("unplaced", "warning", None)] * 2
    assert [finding.facts["file"] for finding in findings] == ["image", "mask"]
    assert found(with_headers(affine=affine @ np.diag([1, 1, 1.25, 1]))) == []
    assert found(with_headers(affine=affine[[1, 0, 2, 3]])) == []
    moved = affine.copy()
    moved[2, 3] = 1e-3
    assert found(with_headers(affine=moved)) == []


def test_headers_without_orientation_are_found():
    finding = only(with_headers(nifti(sform_code=0, qform_code=0)))
    assert (finding.rule, finding.severity) == ("unplaced", "warning")
    assert "LAS was assumed" in finding.text
    stated = {"element_size_ijk_mm": None, "states_orientation": True, "states_position": True}
    bare = MetaImageRecord.model_validate({**stated, "states_orientation": False})
    assert "LPS was assumed" in only(with_headers(bare, kind="metaimage")).text
    known = MetaImageRecord.model_validate(stated)
    assert found(with_headers(known, kind="metaimage")) == []


def test_an_element_size_that_differs_from_the_spacing_is_found():
    x, y, z = np.linalg.norm(AFFINE[:3, :3], axis=0).tolist()
    stated = {"states_orientation": True, "states_position": True}
    same = MetaImageRecord.model_validate({**stated, "element_size_ijk_mm": (x, y, z)})
    assert found(with_headers(same, kind="metaimage")) == []
    thick = MetaImageRecord.model_validate({**stated, "element_size_ijk_mm": (x, y, 2 * z)})
    finding = only(with_headers(thick, kind="metaimage"))
    assert (finding.rule, finding.severity) == ("element-size", "info")
    assert finding.facts["element_size_ijk_mm"] == [x, y, 2 * z]


# Pieces


masks = hnp.arrays(
    np.bool_, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9), elements=st.booleans()
)


@given(masks, st.tuples(*[st.integers(0, 99)] * 3))
def test_pieces_equal_those_of_a_flood_fill(mask, start):
    expected, left = [], mask.copy()
    while left.any():
        part = connected_part(left, tuple(np.argwhere(left)[0]))
        at = np.argwhere(part) + start
        expected.append((len(at), tuple(at.min(0).tolist()), tuple((at.max(0) + 1).tolist())))
        left &= ~part
    pieces = list(connected_components(mask, start))
    key = [(p.voxel_count, p.box.start_zyx, p.box.stop_zyx) for p in pieces]
    assert sorted(key) == sorted(expected)
    for piece in pieces:
        inside = tuple(a - b for a, b in zip(piece.voxel_zyx, start, strict=True))
        assert connected_part(mask, inside).sum() == piece.voxel_count


def piece(n, start=(0, 0, 0)):
    return Component(n, Box.at(start, (2, 2, 2)), start)


def pieces_found(n_by_piece, *, gap=0, label=None):
    """Return the findings for T10 (616 voxels of 48 mm3) in pieces ``gap`` voxels apart."""
    scan = scan_of(blocks() if label is None else label)
    pieces = tuple(piece(n, (0, 0, i * (2 + gap))) for i, n in enumerate(n_by_piece))
    facts = VoxelMeasurements({"T10": pieces}, {}, None)
    return [*several_pieces(scan, facts), *stray_voxels(scan, facts)]


@pytest.mark.parametrize(
    ("sizes", "gap", "expected"),
    [
        ((616,), 0, []),
        ((554, 62), 0, [("pieces", "error", "T10")]),
        ((556, 60), 0, [("pieces", "warning", "T10")]),
        ((613, 3), 0, [("pieces", "warning", "T10")]),
        ((614, 2), 2, [("stray-voxels", "info", "T10")]),
        ((614, 2), 3, [("stray-voxels", "warning", "T10")]),
        ((500, 100, 2), 1, [("pieces", "error", "T10"), ("stray-voxels", "warning", "T10")]),
    ],
)
def test_pieces_and_stray_voxels_are_distinguished_by_size_and_distance(sizes, gap, expected):
    assert short(pieces_found(sizes, gap=gap)) == expected


def test_the_place_of_stray_voxels_is_that_of_the_furthest():
    (finding,) = pieces_found((612, 2, 2), gap=3)
    assert finding.text == "T10 has 4 stray voxels in 2 pieces, up to 32 mm away"
    assert_at(finding, (0, 0, 10))


def test_pieces_are_listed_with_volume_fraction_and_position():
    (finding,) = pieces_found((431, 185), gap=1)
    assert finding.text == "T10 is in 2 pieces: 70 %, 30 %"
    assert finding.facts["pieces"] == 2
    assert finding.facts["largest"][1] == {
        "voxel_count": 185,
        "volume_mm3": 185 * 48.0,
        "share": pytest.approx(185 / 616, abs=1e-6),
        "voxel_zyx": [0, 0, 3],
        "position_xyz_mm": [-68.0, 30.5, -600.0],
    }
    assert_at(finding, (0, 0, 3))


def test_pieces_of_a_cut_vertebra_have_no_finding():
    label = blocks(SPINE[3:])[: -2 - HEIGHT + 4]
    assert short(pieces_found((200, 100), label=label)) == [("pieces", "info", "T10")]


# Several scans


def key(scan_id, split="", *, url="a.zarr", dataset="d", patient="", image=""):
    return ScanKey(url, dataset, scan_id, patient or scan_id, split, image or scan_id)


def test_equal_images_are_errors_in_two_splits_and_otherwise_warnings():
    one = key("x", "train", image="i")
    for other, severity in [
        (key("y", "test", image="i"), "error"),
        (key("y", "train", image="i"), "warning"),
        (key("y", "", image="i"), "warning"),
        (key("x", "test", image="i", url="b.zarr"), "error"),
        (key("y", "test", image="i", dataset="e", url="b.zarr"), "warning"),
    ]:
        pairs = list(same_image([one, key("z", "test"), other]))
        named = [(about.scan_id, finding.scan_id) for about, finding in pairs]
        assert named == [("x", "x"), (other.scan_id, other.scan_id)]
        assert {f.severity for _, f in pairs} == {severity}
        same_store = one.url == other.url
        assert pairs[0][1].others == ((other.scan_id,) if same_store else ())
        assert pairs[0][1].facts["others"][0]["store"] == other.url


def test_patients_in_two_splits_are_errors_within_a_dataset():
    one = key("x", "train", patient="p")
    for other, severity in [
        (key("y", "test", patient="p"), "error"),
        (key("y", "test", patient="p", url="b.zarr"), "error"),
        (key("y", "train", patient="p"), None),
        (key("y", "", patient="p"), None),
        (key("y", "test", patient="p", dataset="e"), None),
    ]:
        pairs = list(same_patient([one, other]))
        assert [f.severity for _, f in pairs] == ([severity] * 2 if severity else [])


# Real masks


EXPECTED = {
    "lidc": [
        ("fragment", "warning", "C5"),
        *(("border-contact", "info", name) for name in ("C5", "C6", "C7", "L2", "L3")),
    ],
    "totalseg": [
        ("fragment", "warning", "T11"),
        *(("border-contact", "info", name) for name in ("T11", "T12")),
    ],
    "tptbox": [("border-contact", "info", "L2"), ("border-contact", "info", "L4")],
    "verse004": [],
}


def levels_in(scan):
    return [name for name in ANATOMICAL_ORDER if name in scan.vertebrae]


@pytest.fixture(scope="module", params=sorted(REAL_MASKS))
def real(request):
    """A real mask as (name, scan)."""
    image = nib.as_closest_canonical(nib.load(REAL_MASKS[request.param]))
    label = np.asarray(image.dataobj).astype(np.uint8).transpose(2, 1, 0)
    state = "whole-only" if request.param == "verse004" else "all-visible"
    return request.param, scan_of(label, image.affine, label_state=state)


class TestRealMasks:
    """These tests run only where the real files are."""

    __test__ = bool(REAL_MASKS)

    def test_real_masks_have_only_their_known_findings(self, real):
        name, scan = real
        assert found(scan) == EXPECTED[name]

    def test_every_removed_vertebra_of_a_real_mask_is_found(self, real):
        _, scan = real
        known = found(scan)
        for name in levels_in(scan)[2:-2]:
            findings = findings_of(relabeled(scan, {name: None}))
            new = [f for f in findings if (f.rule, f.severity, f.vertebra) not in known]
            assert short(new) == [("skipped-level", "error", name)]
            assert "unlabeled" in new[0].text

    def test_two_vertebrae_under_one_label_in_a_real_mask_are_found(self, real):
        _, scan = real
        whole = [level.name for level in scan_levels(scan) if not level.faces]
        for upper, lower in pairwise(whole if len(whole) > 3 else []):
            both = [scan.vertebrae[name] for name in (upper, lower)]
            count = sum(record.voxel_count for record in both)
            merged = both[0].model_copy(update={"voxel_count": count})
            one = {upper: merged, lower: None}
            vertebrae = {n: one.get(n, record) for n, record in scan.vertebrae.items()}
            vertebrae = {n: record for n, record in vertebrae.items() if record is not None}
            findings = findings_of(scan.model_copy(update={"vertebrae": vertebrae}))
            assert [f.vertebra for f in findings if f.rule == "large-vertebra"] == [upper]

    def test_swapped_neighbors_in_a_real_mask_are_found(self, real):
        _, scan = real
        for upper, lower in pairwise(levels_in(scan)[1:]):
            findings = findings_of(relabeled(scan, {upper: lower, lower: upper}))
            assert ("label-order", upper) in {(f.rule, f.vertebra) for f in findings}
            assert not {f.rule for f in findings} & {"far-apart", "skipped-level"}

    def test_eleven_thoracic_vertebrae_are_reported_as_a_variant(self, real):
        _, scan = real
        thoracic = ANATOMICAL_ORDER[: ANATOMICAL_ORDER.index("T12") + 1]
        one_up = {lower: upper for upper, lower in pairwise(thoracic)}
        findings = findings_of(relabeled(scan, one_up))
        skipped = [f for f in findings if f.rule == "skipped-level"]
        both = {"T12", "L1"} <= set(scan.vertebrae)
        assert short(skipped) == ([("skipped-level", "info", "T12")] if both else [])
