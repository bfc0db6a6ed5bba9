import json

import nibabel as nib
import numpy as np
import pytest

from spinezarr.errors import UsageError
from spinezarr.testing import lml_text, verse_json

AFFINE = np.array([[0, 0, 2.0, -90], [-1, 0, 0, 80], [0, -0.5, 0, -700], [0, 0, 0, 1]])
"""Affine with axes toward P, I and R, and voxels of 1 x 0.5 x 2 mm."""
SHAPE_IJK = (20, 40, 30)


def place(i, j, k):
    return tuple(nib.affines.apply_affine(AFFINE, (i, j, k)).tolist())


POINTS = {"L1": place(3, 10, 7), "T13": place(3.04, 4, 8)}


@pytest.mark.parametrize(
    ("convention", "xyz"),
    [
        ("verse", [[3, 10, 7], [3, 4, 8]]),
        # In mm, for an extent of 20 x 20 x 60: l = 58 - 2k, p = i, s = 19.5 - j / 2.
        ("verse-2019-challenge", [[20 - 14.5, 3, 58 - 14], [20 - 17.5, 3, 58 - 16]]),
        ("verse-2020-challenge", [[3, 20 - 14.5, 60 - 44], [3, 20 - 17.5, 60 - 42]]),
    ],
)
def test_verse_files_equal_the_published_form(convention, xyz):
    found = json.loads(verse_json(POINTS, SHAPE_IJK, AFFINE, convention))
    header = [{"direction": ["P", "I", "R"]}] if convention == "verse" else []
    points = [
        {"label": label, **dict(zip("XYZ", numbers, strict=True))}
        for label, numbers in zip((20, 28), xyz, strict=True)
    ]
    assert found == [*header, *points]


def test_verse_numbers_have_the_given_number_of_decimals():
    for decimals, x in ((0, 3.0), (1, 3.0), (2, 3.04), (None, pytest.approx(3.04, abs=1e-12))):
        text = verse_json(POINTS, SHAPE_IJK, AFFINE, "verse", decimals)
        assert json.loads(text)[2]["X"] == x


def test_a_missing_position_is_written_as_nan():
    text = verse_json({"C1": (np.nan,) * 3}, SHAPE_IJK, AFFINE, "verse")
    assert text == '[{"direction": ["P", "I", "R"]}, {"label": 1, "X": NaN, "Y": NaN, "Z": NaN}]'


def test_lml_files_equal_the_published_form():
    points = {"C7": place(3, 10, 7), "T12": place(1 / 3, 4, 8), "S2": place(0, 39, 1)}
    assert lml_text(points, AFFINE, header="# 2") == (
        "# 2\r\n70\tC7_center\t3\t5\t14\r\n190\tT12_center\t0.333333\t2\t16\r\n"
        "260\tS2_center\t0\t19.5\t2\r\n"
    )
    assert lml_text({"L5": place(1 / 3, 4, 8)}, AFFINE, 2) == (
        "# 0\r\n240\tL5_center\t0.33\t2.00\t16.00\r\n"
    )


def test_levels_that_a_format_cannot_name_are_refused():
    with pytest.raises(UsageError, match=r"S1, S2: no label in VerSe; choose among C1, "):
        verse_json({"L5": (0, 0, 0), "S1": (0, 0, 0), "S2": (0, 0, 0)}, SHAPE_IJK, AFFINE, "verse")
    with pytest.raises(UsageError, match=r"L6: no known id in \.lml files; choose among C1, "):
        lml_text({"L6": (0, 0, 0)}, AFFINE)
