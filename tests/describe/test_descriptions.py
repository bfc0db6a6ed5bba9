"""Dataset card, Croissant and intake say what the store holds, whatever its texts are."""

import csv
import io
import json

import numpy as np
import pytest
import yaml
from small_scans import RECIPE, ingest_raw, make_store, write_raw
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.errors import UsageError

URL = "s3://lab/small.zarr"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("small"), ("bare", "box", "empty", "line", "oblique"))


@pytest.fixture(scope="module")
def files(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    spinezarr.open(small.url).export_card(out=folder, url=f"{URL}/")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def front_matter(text):
    _, front, rest = text.split("---\n", 2)
    return yaml.safe_load(front), rest


def test_the_front_matter_has_what_a_hub_reads(files):
    from huggingface_hub import DatasetCard  # noqa: PLC0415  slow

    text = files["README.md"].decode()
    fields, _ = front_matter(text)
    assert fields["license"] == "cc0-1.0"
    assert fields["pretty_name"] == "Small scans"
    assert fields["configs"][0]["data_files"] == [{"split": "scans", "path": "scans.csv"}]
    card = DatasetCard(text)
    assert card.data.license == "cc0-1.0"
    assert card.data.size_categories == ["n<1K"]


def test_the_card_names_license_citation_counts_and_picture(files, small):
    text = files["README.md"].decode()
    table = spinezarr.open(small.url).table
    assert f"{table.sizes['scan']} CT scans of {len(set(table.patient_id.values))} patients" in text
    for words in ("CC0-1.0", "nobody", r"https\://example.org", "](scan.png)"):
        assert words in text, words
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["train", "1"] in cells
    assert {"T12", "L1"} <= {cell for row in cells for cell in row}
    assert files["scan.png"].startswith(b"\x89PNG")
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert f"xr.open_zarr('{URL}/scans/bare')" in code


def test_the_list_of_scans_equals_the_table(files, small):
    rows = list(csv.DictReader(io.StringIO(files["scans.csv"].decode())))
    table = spinezarr.open(small.url).table
    assert [row["scan"] for row in rows] == table.scan.to_numpy().tolist()
    assert [row["url"] for row in rows] == [f"{URL}/scans/{name}" for name in table.scan.values]
    assert {row["license"] for row in rows} == {"CC0-1.0"}
    for column in ("patient_id", "source", "split", "label_state", "erratum"):
        assert [row[column] for row in rows] == table[column].to_numpy().tolist()
    sizes = [[int(row[f"size_{axis}"]) for axis in "zyx"] for row in rows]
    np.testing.assert_array_equal(sizes, table.shape_zyx)
    spacings = [[float(row[f"spacing_{axis}_mm"]) for axis in "zyx"] for row in rows]
    np.testing.assert_array_equal(spacings, table.spacing_zyx_mm)
    assert rows[1]["vertebrae"] == "T12 L1"


def test_a_part_of_a_store_is_described_alone(small, tmp_path):
    store = spinezarr.open(small.url)
    store.export_card(out=tmp_path / "card", url=URL, split="train")
    assert "1 CT scan of 1 patient" in (tmp_path / "card" / "README.md").read_text()
    assert len((tmp_path / "card" / "scans.csv").read_text().splitlines()) == 2
    catalog = yaml.safe_load((tmp_path / "card" / "intake.yaml").read_text())
    assert list(catalog["aliases"]) == ["table", "scans/box"]
    assert "scan.png" in {path.name for path in (tmp_path / "card").iterdir()}


def test_scans_that_must_not_be_shared_are_left_out(tmp_path):
    write_raw(tmp_path / "raw", ["box", "line"])
    ingest_raw(tmp_path / "raw", tmp_path / "small.zarr")
    recipe = tmp_path / "nd.yaml"
    recipe.write_text(RECIPE.replace("license: CC0-1.0", "license: CC-BY-NC-ND-4.0"))
    url = str(tmp_path / "nd.zarr")
    spinezarr.ingest(str(recipe), raw=tmp_path / "raw", out=url)
    store = spinezarr.open(url)
    with pytest.raises(UsageError, match="--include-restricted"):
        store.export_card(out=tmp_path / "card", url=URL)
    with pytest.raises(UsageError, match="--include-restricted"):
        store.push(tmp_path / "copy.zarr")
    store.export_card(out=tmp_path / "card", url=URL, include_restricted=True)
    fields, _ = front_matter((tmp_path / "card" / "README.md").read_text())
    assert fields["license"] == "cc-by-nc-nd-4.0"


HOSTILE = "<script>a</script> ---\n[x](http://evil) `b` {{c}}"


def test_texts_of_strangers_stay_texts(small, tmp_path):
    recipe = tmp_path / "odd.yaml"
    text = yaml.safe_load(RECIPE)
    text |= {"title": HOSTILE, "license": HOSTILE, "citation": HOSTILE, "homepage": None}
    recipe.write_text(yaml.safe_dump(text))
    store_url = str(tmp_path / "odd.zarr")
    spinezarr.ingest(str(recipe), raw=small.raw, out=store_url)
    spinezarr.open(store_url).export_card(out=tmp_path / "card", url=URL)
    fields, rest = front_matter((tmp_path / "card" / "README.md").read_text())
    assert fields["license"] == "other"
    assert "<script>" not in rest
    assert "](http://evil)" not in rest
    json.loads((tmp_path / "card" / "croissant.json").read_text())
    yaml.safe_load((tmp_path / "card" / "intake.yaml").read_text())


def test_a_store_on_disk_needs_the_url_that_it_will_have(small, tmp_path):
    store = spinezarr.open(small.url)
    with pytest.raises(UsageError, match="--url"):
        store.export_card(out=tmp_path)
    store.export_card(out=tmp_path, url=URL)
    with pytest.raises(UsageError, match="--overwrite"):
        store.export_card(out=tmp_path, url=URL)
    store.export_card(out=tmp_path, url=URL, overwrite=True)


def test_the_command_writes_the_files(small, tmp_path):
    words = ["export", "card", small.url, "--url", URL, "--out", str(tmp_path / "card")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert done.output.count("Wrote ") == 5
    assert CliRunner().invoke(app, words).exit_code == 2


def test_a_known_dataset_has_the_remarks_of_its_recipe(store, tmp_path):
    store.export_card(out=tmp_path, url=URL)
    text = (tmp_path / "README.md").read_text()
    assert "cc-by-nc-sa-4.0" in front_matter(text)[0]["license"]
    assert "Deng et al" in text
    assert 'The column "Min Volume" is larger' in text
