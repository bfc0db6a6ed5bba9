import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).parents[2] / "benchmarks"
ROWS = json.loads((FOLDER / "overview.json").read_text())["rows"]


def draw(folder, rows):
    figures, picture = folder / "overview.json", folder / "overview.png"
    figures.write_text(json.dumps({"rows": rows}))
    command = [sys.executable, FOLDER / "overview.py", "--json", figures, "--png", picture]
    subprocess.run(command, check=True, capture_output=True)
    return picture


def test_the_overview_is_drawn_from_its_figures(tmp_path):
    picture = draw(tmp_path, ROWS)
    assert picture.stat().st_size < 150_000
    first = picture.read_bytes()
    with Image.open(picture) as image:
        assert image.width >= 700
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    changed = [{**ROWS[0], "ratio": ROWS[0]["ratio"] + 1}, *ROWS[1:]]
    assert draw(tmp_path, changed).read_bytes() != first


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_the_figures_of_the_overview_are_those_of_the_tables(row):
    page = (FOLDER / "README.md").read_text()
    ours, theirs = row["rates"]
    for rate in (ours, theirs):
        assert f"{rate:,}" in page or str(rate) in page
    assert str(row["ratio"]) in page
    assert row["commit"] in page
    assert ours / theirs == pytest.approx(row["ratio"], rel=0.12), "medians of ratios are near"
    assert (row["ratio"] > 1) is (ours > theirs)
