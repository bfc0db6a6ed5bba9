import json
import re
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from spinezarr.errors import FormatError
from spinezarr.formats.centroids import misordered_levels, read_centroids
from spinezarr.geometry import Grid
from spinezarr.testing import all_axcodes, lml_text, verse_json
from spinezarr.vertebrae import LEVELS, NAME_OF_VALUE, VALUE_OF_NAME

CONVENTIONS = ("verse", "verse-2019-challenge", "verse-2020-challenge", "lml")
CHALLENGES = CONVENTIONS[1:3]
REAL = Path(__file__).parents[3] / "shared/data/real"

LPS = Grid(
    (11, 21, 31), np.array([[-2.0, 0, 0, 90], [0, -1, 0, 80], [0, 0, 0.5, -700], [0, 0, 0, 1]])
)
"""Grid in LPS, with an extent of 22 x 21 x 15.5 mm."""
OBLIQUE = np.array([[0.9, -0.06, 0.3, -40.5], [0.05, 0.7, 0.4, 12.25], [-0.2, -0.1, 2.4, -700]])
POINTS = {"T12": (6.0, 5.0, 14.0), "L1": (5.0, 6.0, 10.0), "L2": (5.5, 4.0, 2.5)}


def orthogonal(matrix):
    """Make the voxel axes orthogonal and keep their lengths."""
    lengths = np.linalg.norm(matrix, axis=0)
    u, _, v = np.linalg.svd(matrix / lengths)
    return u @ v * lengths


def oblique_ras(shape):
    affine = np.eye(4)
    affine[:3] = OBLIQUE
    affine[:3, :3] = orthogonal(OBLIQUE[:, :3])
    return Grid(shape, affine)


def turned(grid, axcodes):
    """Return the same voxels in another orientation, as nibabel would store them."""
    turn = ornt_transform(io_orientation(grid.affine_ijk), axcodes2ornt(tuple(axcodes)))
    shape = apply_orientation(np.empty(grid.shape_ijk, bool), turn).shape
    return Grid(shape, grid.affine_ijk @ inv_ornt_aff(turn, grid.shape_ijk))


def written(positions_xyz_mm, grid, convention, decimals):
    if convention == "lml":
        return lml_text(positions_xyz_mm, grid.affine_ijk, decimals).encode()
    text = verse_json(positions_xyz_mm, grid.shape_ijk, grid.affine_ijk, convention, decimals)
    return text.encode()


def read(text, convention="verse", grid=LPS):
    text = text if isinstance(text, bytes) else text.encode()
    return read_centroids(text, "scan.ctd", convention=convention, grid=grid)


def entry(label=20, x=5.0, y=6.0, z=7.0):
    return {"label": label, "X": x, "Y": y, "Z": z}


def verse(*entries, direction="LPS"):
    return json.dumps([{"direction": list(direction)}, *entries])


def lml(*lines, header="# 0", end="\r\n"):
    return end.join([header, *lines, ""])


def refusal(text, convention="verse"):
    with pytest.raises(FormatError) as caught:
        read(text, convention)
    assert str(caught.value).startswith("scan.ctd: ")
    return str(caught.value)


def random_points(grid, levels, seed):
    inside = np.random.default_rng(seed).uniform(0, np.array(grid.shape_ijk) - 1, (len(levels), 3))
    return dict(zip(levels, apply_affine(grid.affine_ijk, inside).tolist(), strict=True))


def levels_of(convention):
    if convention == "lml":
        return [level for level in LEVELS if level not in {"T13", "L6", "sacrum", "coccyx"}]
    return list(VALUE_OF_NAME)


@pytest.mark.parametrize("axcodes", all_axcodes())
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_points_keep_their_position_in_every_orientation(axcodes, convention):
    grid = turned(oblique_ras((30, 40, 17)), axcodes)
    points = random_points(grid, levels_of(convention), seed=1)
    exact = read(written(points, grid, convention, 12), convention, grid)
    assert exact.notes == ()
    assert list(exact.positions_xyz_mm) == [level for level in LEVELS if level in points]
    for level, point in points.items():
        np.testing.assert_allclose(exact.positions_xyz_mm[level], point, rtol=0, atol=1e-6)


@pytest.mark.parametrize("axcodes", all_axcodes())
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_points_are_as_exact_as_the_digits_of_published_files(axcodes, convention):
    grid = turned(oblique_ras((30, 40, 17)), axcodes)
    points = random_points(grid, levels_of(convention), seed=2)
    decimals = None if convention == "lml" else 1
    rounded = read(written(points, grid, convention, decimals), convention, grid)
    # Half a unit of the last digit along each axis: voxels, mm, or 6 digits below 100 mm.
    bound = {"verse": 0.05 * np.linalg.norm(voxel_sizes(grid.affine_ijk)), "lml": 0.5e-4 * 3**0.5}
    errors = [
        np.linalg.norm(np.subtract(rounded.positions_xyz_mm[level], point))
        for level, point in points.items()
    ]
    assert 0 < max(errors) <= bound.get(convention, 0.05 * 3**0.5) + 1e-9


@given(
    shape=st.tuples(*[st.integers(1, 600)] * 3),
    spacing=st.tuples(*[st.floats(0.19, 5)] * 3),
    origin=st.tuples(*[st.floats(-2000, 2000)] * 3),
    axcodes=st.sampled_from(all_axcodes()),
    convention=st.sampled_from(CONVENTIONS),
    share=st.tuples(*[st.floats(0, 1)] * 3),
)
def test_points_keep_their_position_on_any_grid(
    *, shape, spacing, origin, axcodes, convention, share
):
    affine = oblique_ras(shape).affine_ijk @ np.diag([*spacing, 1])
    affine[:3, 3] = origin
    grid = turned(Grid(shape, affine), axcodes)
    point = apply_affine(grid.affine_ijk, np.array(share) * (np.array(grid.shape_ijk) - 1))
    found = read(written({"L1": point}, grid, convention, 12), convention, grid)
    np.testing.assert_allclose(found.positions_xyz_mm["L1"], point, rtol=0, atol=1e-6)
    assert found.notes == ()


@pytest.mark.parametrize("axcodes", all_axcodes())
def test_a_voxel_is_found_again_after_the_image_was_reoriented(axcodes):
    voxels = np.zeros((4, 5, 6), np.uint8)
    voxels[1, 3, 4] = 1
    image = nib.Nifti1Image(voxels, oblique_ras(voxels.shape).affine_ijk)
    direction = nib.aff2axcodes(image.affine)
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(axcodes)))
    later = image.as_reoriented(turn)
    (index,) = np.argwhere(np.asarray(later.dataobj))
    found = read(
        verse(entry(20, 1, 3, 4), direction=direction), grid=Grid(later.shape, later.affine)
    )
    np.testing.assert_allclose(found.positions_xyz_mm["L1"], apply_affine(later.affine, index))


@pytest.mark.parametrize(
    ("convention", "lps_mm"),
    [("verse-2019-challenge", (7, 6, 15.5 - 5)), ("verse-2020-challenge", (22 - 7, 5, 15.5 - 6))],
)
@pytest.mark.parametrize("axcodes", all_axcodes())
def test_challenge_files_are_read_by_the_published_rule(convention, lps_mm, axcodes):
    found = read(json.dumps([entry(20, 5, 6, 7)]), convention, turned(LPS, axcodes))
    left, posterior, superior = lps_mm
    expected = (90 - left, 80 - posterior, -700 + superior)
    np.testing.assert_allclose(found.positions_xyz_mm["L1"], expected, rtol=0, atol=1e-9)
    assert found.notes == ()


@pytest.mark.parametrize("convention", CONVENTIONS[:3])
def test_a_direction_entry_overrides_the_convention(convention):
    found = read(verse(entry(20, 1, 2, 3), direction="PIR"), convention)
    np.testing.assert_allclose(
        found.positions_xyz_mm["L1"], apply_affine(LPS.affine_ijk, (10 - 3, 1, 30 - 2))
    )


def test_lml_coordinates_run_along_the_axes_of_the_file():
    found = read(lml("200\tL1_center\t3\t4\t5"), "lml", turned(LPS, "ASR"))
    # Spacing and position enter only through the affine: 3 mm to A, 4 to S, 5 to R.
    corner = (90 - 20, 80 - 20, -700)
    np.testing.assert_allclose(found.positions_xyz_mm["L1"], np.add(corner, (5, 3, 4)))


@pytest.mark.parametrize("label", range(-1, 31))
def test_labels_follow_the_scheme(label):
    found = read(verse(entry(label), entry(float(label))))
    if label in NAME_OF_VALUE:
        assert list(found.positions_xyz_mm) == [NAME_OF_VALUE[label]]
    else:
        assert found.positions_xyz_mm == {}
        about = "ignored, because no level has this label"
        assert found.notes == (f"{about}: {label}, {float(label)}",)


@pytest.mark.parametrize("decimals", [None, 3])
def test_placeholders_for_missing_positions_are_skipped(decimals):
    text = verse_json(
        {"L1": (np.nan,) * 3, "L2": (70.0, 70.0, -690.0)},
        LPS.shape_ijk,
        LPS.affine_ijk,
        "verse",
        decimals,
    )
    assert "NaN" in text
    found = read(text)
    assert list(found.positions_xyz_mm) == ["L2"]
    assert found.notes == ("ignored, because they have no position: L1",)


@pytest.mark.parametrize("axis", "xyz")
@pytest.mark.parametrize("number", [None, np.nan, np.inf, -np.inf, 1e300, -1e300, 10**400, 1e6 + 1])
def test_impossible_positions_are_skipped(axis, number):
    found = read(verse(entry(20, **{axis: number}), entry(21)))
    assert list(found.positions_xyz_mm) == ["L2"]
    assert found.notes == ("ignored, because they have no position: L1",)


@pytest.mark.parametrize("number", ["NaN", "nan", "Inf", "-inf", "1e999", "9" * 5000, "-1e7"])
def test_impossible_positions_in_lml_files_are_skipped(number):
    found = read(lml(f"200 L1_center 1 {number} 3", "210 L2_center 1 2 3"), "lml")
    assert list(found.positions_xyz_mm) == ["L2"]
    assert found.notes == ("ignored, because they have no position: L1",)


@pytest.mark.parametrize("convention", ["verse", "lml"])
def test_a_repeated_level_keeps_its_first_point_with_a_note_of_the_distance(convention):
    again = {
        "verse": verse(entry(20, 5, 6, 7), entry(21), entry(20, 5, 6, 9)),
        "lml": lml("200 L1_center 10 6 3.5", "210 L2_center 5 5 5", "200 L1_center 10 6 4.5"),
    }[convention]
    found = read(again, convention)
    np.testing.assert_allclose(
        found.positions_xyz_mm["L1"], apply_affine(LPS.affine_ijk, (5, 6, 7))
    )
    assert found.notes == ("named more than once; the first counts: L1 (1.0 mm apart)",)


@pytest.mark.parametrize(
    ("index", "note"),
    [
        ((0, 0, 0), None),
        ((10, 20, 30), None),
        ((-1, 21, 31), None),
        ((-1.1, 5, 5), "2.2"),
        ((-1.5, 5, 5), "3.0"),
        ((5, 23, 5), "3.0"),
        ((13, 5, -3), "6.2"),
        ((5, 5, 30030), "15000.0"),
    ],
)
def test_points_outside_the_image_are_kept_with_a_note_of_the_distance(index, note):
    found = read(verse(entry(20, *index)))
    np.testing.assert_allclose(found.positions_xyz_mm["L1"], apply_affine(LPS.affine_ijk, index))
    assert found.notes == (() if note is None else (f"outside the image: L1 (by {note} mm)",))


@pytest.mark.parametrize("convention", CHALLENGES)
def test_a_file_without_points_has_no_centroids(convention):
    assert read("[]", convention).positions_xyz_mm == {}
    assert read(verse(), convention).positions_xyz_mm == {}
    assert read(lml(), "lml").positions_xyz_mm == {}


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("between", ["\t", " ", "  \t "])
@pytest.mark.parametrize("after", ["", "\t", "\t0.93 seen"])
@pytest.mark.parametrize("header", ["# 0", "# 2", "", "spine", "a b c d e"])
def test_lml_files_may_use_any_whitespace_and_line_ends(end, between, after, header):
    rows = [("190", "T12_center", "1", "2.5", "3"), ("200", "L1_center", "1e0", "-.5", "+2.E-1")]
    lines = ["", *(between.join(row) + after for row in rows), "  ", ""]
    found = read(lml(*lines, header=header, end=end), "lml", Grid((9, 9, 9), np.eye(4)))
    assert found.positions_xyz_mm == {"T12": (1.0, 2.5, 3.0), "L1": (1.0, -0.5, 0.2)}
    assert found.notes == ()


def test_every_lml_id_and_name_is_known():
    levels = [*(f"C{n}" for n in range(1, 8)), *(f"T{n}" for n in range(1, 13))]
    levels += [*(f"L{n}" for n in range(1, 6)), "S1", "S2"]
    for number, level in enumerate(levels, 1):
        named = read(lml(f"{10 * number} {level}_center 1 2 3"), "lml")
        assert list(named.positions_xyz_mm) == [level]
        assert named.notes == ()
        by_id = read(lml(f"{10 * number} spine 1 2 3"), "lml")
        assert by_id.positions_xyz_mm == named.positions_xyz_mm
        quoted = f"a text of 5 characters with id '{10 * number}' ({level})"
        note = f"names that are no level; the ids count: {quoted}"
        assert by_id.notes == (note,)


@pytest.mark.parametrize("level", LEVELS)
def test_the_name_of_a_landmark_overrides_its_id(level):
    identifier = "180" if level != "T11" else "190"
    found = read(lml(f"{identifier} {level}_center 1 2 3"), "lml")
    assert list(found.positions_xyz_mm) == [level]
    (note,) = found.notes
    assert note.startswith("names that contradict their ids; the names count: ")
    assert read(lml(f"990 {level} 1 2 3"), "lml").notes == ()


@pytest.mark.parametrize("identifier", ["0", "185", "270", "-10"])
def test_lml_points_of_no_level_are_skipped(identifier):
    found = read(lml(f"{identifier} L7_center 1 2 3", "200 L1_center 1 2 3"), "lml")
    assert list(found.positions_xyz_mm) == ["L1"]
    about = "ignored, because neither name nor id is a level"
    assert found.notes == (f"{about}: 'L7_center' with id '{identifier}'",)


def test_a_landmark_in_place_of_the_heading_is_noted():
    found = read(lml("210 L2_center 1 2 3", header="200 L1_center 1 2 3"), "lml")
    assert list(found.positions_xyz_mm) == ["L2"]
    assert found.notes == ("ignored, because line 1 is the header of an .lml file: a landmark",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        (" \r\n", "is empty"),
        ("[", "is not JSON .*looks like JSON text"),
        ("<!DOCTYPE html>", "is not JSON"),
        (b"\xff\xfe\xfd", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        (f"[{'9' * 5000}]", "is not JSON"),
        ("3", "holds the value 3, expected VerSe's list"),
        ("null", "holds the value None"),
        ('{"markups": []}', r"an object with the keys \['markups'\].*Slicer"),
        ('{"centroids": {"centroids": []}}', r"the keys \['centroids'\].*TPTBox"),
        ("[]", f"states no 'direction'.*{', '.join(CONVENTIONS)}"),
        (json.dumps([entry()]), "states no 'direction'"),
        ('[{"vert_label": "8", "85": "(1, 2, 3)"}]', r"entry 1 is .*\['vert_label', '85'\]"),
        ('[{"coordinate_system": "itk"}]', "entry 1 is .*coordinate_system"),
        ('[{"direction": ["P","I","R"], "zoom": [1,1,1], "format": "POI"}]', "zoom.*TPTBox"),
        (json.dumps([entry(), {"direction": list("PIR")}]), r"entry 2 is .*\['direction'\]"),
        (verse([20, 1, 2, 3]), "entry 2 is a list of 4 values, expected label, X, Y, Z"),
        (verse(entry(), {"label": 20, "X": 1, "Y": 2}), "entry 3 is an object with the keys"),
        (verse(entry(x="5")), "entry 2: its X is '5', expected a number"),
        (verse(entry(z=[5])), "entry 2: its Z is a list of 1 value"),
        (verse(entry("L1")), "entry 2: its label is a text of 2 characters"),
        (verse(entry(label=True)), "entry 2: its label is the value True"),
        (verse(entry(y=False)), "entry 2: its Y is the value False"),
        *(
            (json.dumps([{"direction": found}]), "its direction is .*expected three letters")
            for found in (None, "PIR", "", 5, [], ["P", "I"], [*"PIRL"], [*"PIS"], [*"PPR"])
        ),
        (json.dumps([{"direction": ["P", "I", 1]}]), "its direction is"),
        (json.dumps([{"direction": ["P", "I", "r"]}]), "its direction is"),
        (json.dumps([{"direction": ["P", "I", "RL"]}]), "its direction is"),
        (json.dumps([{"direction": ["P", "I", ""]}]), "its direction is"),
    ],
)
def test_invalid_verse_files_are_refused(text, reason):
    assert re.search(reason, refusal(text))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("<html>404</html>", "is no .lml file.*its first line"),
        (verse(entry()), "is no .lml file"),
        (lml("200 L1_center 1 2"), "line 2 is no landmark, expected an id, a name"),
        (lml("", "", "200 L1_center 1 2 z"), "line 4 is no landmark"),
        *(
            (lml(f"200 L1_center 1 {number} 3"), "line 2 is")
            for number in (
                "1_0",
                "1,5",
                "0x10",
                "\u0661",
                "e5",
                ".",
                "1e",
                "--1",
                "9" * 100_000 + "x",
            )
        ),
        ("# 0\n# 0\n", "line 2 is no landmark"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "line 2 is"),
        (lml("200\tL1_center\t1\t2\t3").encode("utf-16"), "line 2 is"),
        (bytes(range(256)) * 4, "line|is no .lml"),
    ],
)
def test_invalid_lml_files_are_refused(text, reason):
    assert re.search(reason, refusal(text, "lml"))


def assert_read_or_refused(text, convention):
    try:
        found = read(text, convention)
    except FormatError as problem:
        message = str(problem)
    else:
        assert set(found.positions_xyz_mm) <= set(LEVELS)
        assert np.isfinite([*found.positions_xyz_mm.values()]).all()
        assert all(
            isinstance(mm, float) for point in found.positions_xyz_mm.values() for mm in point
        )
        return
    assert re.fullmatch(r"scan\.ctd: .*\.", message, re.DOTALL)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
nearly_points = st.fixed_dictionaries(
    {}, optional={key: st.integers(-2, 30) | anything for key in ("label", "X", "Y", "Z")}
)
nearly_verse = st.lists(
    st.fixed_dictionaries({"direction": st.permutations("PIR") | anything})
    | nearly_points
    | st.builds(entry, *[st.integers(0, 30) | st.floats()] * 4)
    | anything,
    max_size=5,
)
lml_columns = st.sampled_from(["200", "L1_center", "7", "nan", "-1e5", "x", "#"]) | st.text(
    max_size=3
)
nearly_lml = st.lists(
    st.lists(lml_columns, max_size=7).map("\t".join)
    | st.tuples(lml_columns, lml_columns, *[st.floats().map(str)] * 3).map(" ".join),
    max_size=5,
).map("\r\n".join)


@given(st.binary(), st.sampled_from(CONVENTIONS))
@example(b"\xef\xbb\xbf[]", "verse-2019-challenge")
@example(b'"\\ud800"', "verse")
@example(b'[{"direction": ["\\ud800"]}]', "verse")
@example(b"\x1c", "lml")
def test_any_bytes_are_read_or_refused(text, convention):
    assert_read_or_refused(text, convention)


@given(anything | nearly_verse, st.sampled_from(CONVENTIONS[:3]))
def test_any_json_is_read_or_refused(content, convention):
    assert_read_or_refused(json.dumps(content).encode(), convention)


@given(nearly_lml)
def test_any_lines_are_read_or_refused(text):
    assert_read_or_refused(text.encode("utf-8", "surrogatepass"), "lml")


@given(st.sets(st.sampled_from(LEVELS)))
def test_an_upright_spine_is_in_order_whichever_levels_it_shows(levels):
    upright = {level: (0.0, 0.0, -10.0 * LEVELS.index(level)) for level in levels}
    assert misordered_levels(upright) == ()
    # Upside down, every compared pair is wrong; parts of the sacrum are not compared.
    above = [level for level in LEVELS[:-4] if level in levels]
    sacral = [level for level in LEVELS[-4:] if level in levels][:1]
    upside_down = {level: (x, y, -z) for level, (x, y, z) in upright.items()}
    assert misordered_levels(upside_down) == tuple(pairwise([*above, *sacral]))


def test_levels_exchanged_or_at_one_height_are_out_of_order():
    heights = {"C7": 50, "T1": 30, "T2": 40, "T3": 20, "T4": 20, "S1": 25, "S2": 60}
    points = {level: (0.0, 0.0, float(z)) for level, z in reversed(heights.items())}
    assert misordered_levels(points) == (("T1", "T2"), ("T3", "T4"), ("T4", "S1"))


def test_t13_lies_between_t12_and_l1():
    assert misordered_levels({"L1": (0, 0, 1), "T13": (0, 0, 2), "T12": (0, 0, 3)}) == ()
    assert misordered_levels({"L1": (0, 0, 2), "T13": (0, 0, 1), "T12": (0, 0, 3)}) == (
        ("T13", "L1"),
    )


if (REAL / "msr-lml").exists():

    @pytest.mark.parametrize(
        "path", sorted((REAL / "msr-lml").rglob("*.lml")), ids=lambda path: path.stem
    )
    def test_published_lml_files_are_read_whole(path):
        rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
        expected = {row[1].removesuffix("_center"): tuple(map(float, row[2:])) for row in rows}
        found = read(path.read_bytes(), "lml", Grid((200, 200, 600), np.eye(4)))
        assert len(rows) > 6
        assert found.positions_xyz_mm == expected
        assert found.notes == ()
        assert misordered_levels(found.positions_xyz_mm) == ()
        # The testing writer composes the same bytes.
        header = path.read_text().partition("\n")[0]
        assert lml_text(expected, np.eye(4), header=header).encode() == path.read_bytes()


if (REAL / "verse").exists():
    MASK = REAL / "verse/sub-verse004_seg-vert_msk.nii.gz"
    CENTROIDS = REAL / "verse/sub-verse004_seg-subreg_ctd.json"

    @pytest.fixture(scope="module")
    def mask():
        return nib.load(MASK)

    @pytest.mark.parametrize("axcodes", ["PIR", "LPS", "RAS", "SLA"])
    def test_published_verse_points_lie_inside_their_own_labels(mask, axcodes):
        turn = ornt_transform(io_orientation(mask.affine), axcodes2ornt(tuple(axcodes)))
        later = mask.as_reoriented(turn)
        labels = np.asanyarray(later.dataobj)
        found = read(CENTROIDS.read_bytes(), grid=Grid(later.shape, later.affine))
        assert {VALUE_OF_NAME[level] for level in found.positions_xyz_mm} == {
            *np.unique(labels)
        } - {0}
        assert found.notes == ()
        assert misordered_levels(found.positions_xyz_mm) == ()
        for level, point in found.positions_xyz_mm.items():
            index = np.rint(apply_affine(np.linalg.inv(later.affine), point)).astype(int)
            assert labels[tuple(index)] == VALUE_OF_NAME[level]

    def test_the_testing_writer_composes_the_published_verse_file(mask):
        found = read(CENTROIDS.read_bytes(), grid=Grid(mask.shape, mask.affine))
        text = verse_json(found.positions_xyz_mm, mask.shape, mask.affine, "verse")
        assert text.encode() == CENTROIDS.read_bytes()

    def test_a_challenge_file_of_verse004_agrees_within_a_voxel(mask):
        grid = Grid(mask.shape, mask.affine)
        # The values are whole mm in https://github.com/luiserrador/IndVertSeg_VerSe, issue 2.
        quoted = json.dumps([entry(16, 42.0, 78.0, 57.0)])
        point = read(quoted, "verse-2019-challenge", grid).positions_xyz_mm["T9"]
        index = apply_affine(np.linalg.inv(mask.affine), point)
        np.testing.assert_allclose(index, (78.0, 41.0, 31.5), rtol=0, atol=0.01)
        rounding = 0.5 / voxel_sizes(mask.affine)
        assert (abs(index - (79.1, 40.9, 32.3)) <= 1 + rounding).all()
        assert np.asanyarray(mask.dataobj)[tuple(np.rint(index).astype(int))] == 16
