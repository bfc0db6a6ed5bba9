import csv
import io
import json

import matplotlib.image
import pytest
import yaml
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_nifti

PLOTS = {"detection.png", "volumes.png", "spacing.png"}


def run(*words, code=0):
    result = CliRunner().invoke(app, ["stats", *map(str, words)])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def own_card(store, tmp_path):
    """Return a card of the demo dataset, as its authors might publish it."""
    found = store.stats()
    spreads = {
        key: {name: [getattr(s[axis], name) for axis in "ijk"] for name in ("min", "median", "max")}
        for key, s in (("shape_ijk", found.shape_ijk), ("spacing_ijk_mm", found.spacing_ijk_mm))
    }
    rows = {
        name: {
            "scans": row.scans,
            "detection_percent": round(row.detection_percent, 2),
            "volume_cm3": {
                statistic: round(getattr(row.volume_cm3, statistic), 2)
                for statistic in ("min", "median", "max")
            },
        }
        for name, row in found.vertebrae.items()
    }
    card = {"name": "own", "title": "Own", "source": "here", "scans": 6, "patients": 6, **spreads}
    card |= {"slices": found.slices, "splits": found.scans_by_split, "vertebrae": rows}
    path = tmp_path / "own.card.yaml"
    path.write_text(yaml.safe_dump(card))
    return path


def test_nothing_is_cut_at_a_width_of_80_columns(ctspine1k_url):
    output = run(ctspine1k_url).output
    for text in ("COLONOG", "validation", "Median cm³", "Vertebra", "T12", "16.67%", "all 6 scans"):
        assert text in output
    assert "…" not in output


def test_each_format_is_one_document(ctspine1k_url, store, tmp_path):
    found = store.stats()
    words = [ctspine1k_url, "--json", "--plots", tmp_path / "plots"]
    as_json = json.loads(run(*words).stdout)
    assert as_json["slices"] == found.slices
    as_csv = csv.DictReader(io.StringIO(run(ctspine1k_url, "--format", "csv").stdout))
    values = {(row["group"], row["name"], row["statistic"]): row["value"] for row in as_csv}
    assert (
        float(values["vertebra", "L1", "volume_cm3_median"])
        == found.vertebrae["L1"].volume_cm3.median
    )
    as_markdown = run(ctspine1k_url, "--format", "markdown").stdout
    assert as_markdown.startswith("# CTSpine1K\n")
    assert "| Dataset Statistics | spacing (mm)" in as_markdown


def test_a_file_in_place_of_the_plot_folder_is_wrong_usage(ctspine1k_url, tmp_path):
    (tmp_path / "plots").write_text("mine")
    result = run(ctspine1k_url, "--plots", tmp_path / "plots" / "new", code=2)
    assert "Give the name of a folder" in result.stderr
    assert not result.stdout


def test_filters_restrict_counts_and_plots(ctspine1k_url, tmp_path):
    words = [ctspine1k_url, "--split", "train", "--source", "COLONOG", "--json"]
    assert json.loads(run(*words).stdout)["scans"] == 1
    assert "the store has" in run(ctspine1k_url, "--split", "x", code=2).stderr


def test_plots_are_png_files(ctspine1k_url, tmp_path):
    assert "spacing.png" in run(ctspine1k_url, "--plots", tmp_path / "new" / "plots").stderr
    pictures = list((tmp_path / "new" / "plots").iterdir())
    assert {path.name for path in pictures} == PLOTS
    for path in pictures:
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[:2] == (840, 1500)
        assert pixels.std() > 0.05


def test_the_demo_differs_from_the_card_of_ctspine1k(ctspine1k_url):
    result = run(ctspine1k_url, "--against", "card", code=1)
    assert "123 figures: differs" in result.output
    assert "printed as" in result.output
    assert "Note: C1 max cm³, C2 max cm³, C3 max cm³ and 22 more: printed as min\n" in result.output
    assert "│ median spacing k mm │ " in result.output, "the name must stay on one line"
    lines = json.loads(run(ctspine1k_url, "--against", "card", "--json", code=1).stdout)
    split = next(line for line in lines["lines"] if line["name"] == "train")
    assert (split["store"], split["card"], split["difference"]) == (3, 610, -607)
    assert not lines["agrees"]


@pytest.mark.parametrize("output", ["table", "markdown", "json", "csv"])
def test_a_store_agrees_with_its_own_card(ctspine1k_url, own_card, output):
    words = ["--against", own_card, *(["--json"] if output == "json" else ["--format", output])]
    result = run(ctspine1k_url, *words)
    assert "differs" not in result.stdout
    assert "equal" in result.stdout
    own_card.write_text(own_card.read_text().replace("patients: 6", "patients: 7"))
    assert "differs" in run(ctspine1k_url, *words, code=1).stdout


def test_wrong_usage_of_cards_exits_with_2(ctspine1k_url, own_card, tmp_path):
    words = [ctspine1k_url, "--against", "card"]
    assert "whole dataset" in run(*words, "--split", "train", code=2).stderr
    assert "whole dataset" in run(*words, "--source", "COLONOG", code=2).stderr
    assert "none.yaml" in run(ctspine1k_url, "--against", "none.yaml", code=2).stderr
    own_card.write_text("title: 3\n")
    assert "own.card.yaml" in run(ctspine1k_url, "--against", own_card, code=2).stderr


def test_the_error_says_that_a_dataset_has_no_card(tmp_path):
    phantom = make_phantom(
        PhantomSpec(shape_zyx=(20, 20, 20), spacing_zyx_mm=(6.0, 6.0, 6.0), levels=("L1", "L2"))
    )
    write_nifti(tmp_path / "a.nii.gz", phantom.image, phantom.affine_xyz, NiftiForm())
    out = tmp_path / "a.zarr"
    words = ["ingest", "pairs", "--raw", tmp_path, "--out", out, "--image", "{scan}.nii.gz"]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    stderr = " ".join(run(out, "--against", "card", code=2).stderr.split())
    assert "no published card" in stderr
    assert "--against FILE.card.yaml" in stderr
    assert "No scan has a mask" in run(out).stdout
    assert spinezarr.open(out).stats().scans_with_mask == 0
