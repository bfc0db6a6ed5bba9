from pathlib import Path

import pytest

from spinezarr.catalog import CATALOG_VARIABLE, find_catalog, load_catalog
from spinezarr.errors import CatalogError
from spinezarr.recipe import Recipe
from spinezarr.resources import resource

ENTRY = "datasets:\n  spine:\n    recipe: {recipe}\n    raw: {raw}\n    store: {store}\n"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.delenv(CATALOG_VARIABLE, raising=False)
    monkeypatch.delenv("SPINE_DATA", raising=False)


def write_catalog(path, *, recipe="ctspine1k", raw="raw", store="s.zarr"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(ENTRY.format(recipe=recipe, raw=raw, store=store))
    return path


def entry(tmp_path, **values):
    return load_catalog(write_catalog(tmp_path / "home" / "c.yaml", **values)).get("spine")


def test_without_a_catalog_there_is_none():
    assert find_catalog() is None
    assert load_catalog() is None


def test_the_argument_wins_over_the_variable_and_the_variable_over_the_folder(
    tmp_path, monkeypatch
):
    here = write_catalog(Path("catalog.yaml"), raw="here")
    variable = write_catalog(tmp_path / "variable.yaml", raw="variable")
    argument = write_catalog(tmp_path / "argument.yaml", raw="argument")
    assert find_catalog() == here
    monkeypatch.setenv(CATALOG_VARIABLE, str(variable))
    assert find_catalog() == variable
    assert load_catalog().get("spine").raw == "variable"
    assert find_catalog(argument) == argument
    assert load_catalog(str(argument)).get("spine").raw == "argument"


def test_an_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv(CATALOG_VARIABLE, "")
    assert find_catalog() is None


def test_a_catalog_named_by_argument_must_exist(tmp_path):
    write_catalog(Path("catalog.yaml"))
    with pytest.raises(CatalogError, match=r"gone\.yaml: no such catalog file .*--catalog") as hit:
        load_catalog(tmp_path / "gone.yaml")
    assert "spinezarr init" in str(hit.value)


def test_a_catalog_named_by_variable_must_be_a_file(tmp_path, monkeypatch):
    write_catalog(Path("catalog.yaml"))
    monkeypatch.setenv(CATALOG_VARIABLE, str(tmp_path))
    with pytest.raises(CatalogError, match=f"named by {CATALOG_VARIABLE}"):
        load_catalog()


def test_a_folder_called_catalog_yaml_is_no_catalog():
    Path("catalog.yaml").mkdir()
    assert find_catalog() is None


def test_the_home_folder_may_be_abbreviated(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_catalog(tmp_path / "mine.yaml", raw="~/raw", store="~/s.zarr")
    assert find_catalog("~/mine.yaml") == path
    assert load_catalog(path).get("spine").raw_location == str(tmp_path / "raw")
    assert load_catalog(path).get("spine").store_location == str(tmp_path / "s.zarr")


def test_relative_paths_start_at_the_folder_of_the_catalog(tmp_path):
    found = entry(tmp_path, recipe="my/own.yaml", raw="raw/CTSpine1K", store="./s.zarr")
    home = tmp_path / "home"
    assert found.recipe_location == str(home / "my/own.yaml")
    assert found.raw_location == str(home / "raw/CTSpine1K")
    assert found.store_location == str(home / "s.zarr")


def test_a_catalog_given_by_a_relative_path_keeps_its_folder(tmp_path, monkeypatch):
    write_catalog(Path("sub/c.yaml"))
    catalog = load_catalog("sub/c.yaml")
    monkeypatch.chdir(tmp_path)
    assert catalog.get("spine").raw_location == str(tmp_path / "cwd/sub/raw")
    assert catalog.path == tmp_path / "cwd/sub/c.yaml"


@pytest.mark.parametrize(
    "location", ["/abs/olute", "s3://bucket/s.zarr", "https://host/s.zarr", "file:///x/s.zarr"]
)
def test_absolute_paths_and_urls_stay_as_they_are(tmp_path, location):
    found = entry(tmp_path, raw=location, store=location)
    assert found.raw_location == found.store_location == location


@pytest.mark.parametrize("written", ["${SPINE_DATA}/x", "$SPINE_DATA/x"])
def test_environment_variables_are_expanded(tmp_path, monkeypatch, written):
    monkeypatch.setenv("SPINE_DATA", "/data")
    found = entry(tmp_path, recipe="$SPINE_DATA/r.yml", raw=written, store=written)
    assert found.raw_location == found.store_location == "/data/x"
    assert found.recipe_location == "/data/r.yml"


def test_a_variable_may_hold_a_url(tmp_path, monkeypatch):
    monkeypatch.setenv("SPINE_DATA", "s3://bucket")
    assert entry(tmp_path, store="${SPINE_DATA}/s.zarr").store_location == "s3://bucket/s.zarr"


def test_a_variable_may_hold_a_dollar_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("SPINE_DATA", "/data/$old")
    assert entry(tmp_path, raw="${SPINE_DATA}/x").raw_location == "/data/$old/x"


@pytest.mark.parametrize("written", ["${SPINE_DATA}/x", "$SPINE_DATA/x", "a/${SPINE_DATA}"])
def test_an_unset_variable_is_named_with_its_dataset_and_file(tmp_path, written):
    found = entry(tmp_path, raw=written)
    assert found.store_location.endswith("s.zarr")
    with pytest.raises(CatalogError, match=r"c\.yaml: dataset 'spine' .* SPINE_DATA, .*not set"):
        _ = found.raw_location


def test_names_of_shipped_recipes_are_no_paths(tmp_path):
    assert entry(tmp_path).recipe_location == "ctspine1k"


def test_raw_and_licence_may_be_left_out(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("datasets:\n  spine: {recipe: ctspine1k, store: s.zarr}\n")
    found = load_catalog(path).get("spine")
    assert (found.raw, found.raw_location, found.licence) == (None, None, None)


def test_a_name_that_is_not_in_the_catalog_gives_none(tmp_path):
    assert load_catalog(write_catalog(tmp_path / "c.yaml")).get("spain") is None


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("dataset: {}\n", ["line 1, dataset: unknown key; did you mean 'datasets'?"]),
        ("datasets:\n  a: {recipe: r}\n", ["line 2, datasets.a.store: this key is missing"]),
        (
            "datasets:\n  a:\n    recipe: r\n    store: s\n    row: x\n",
            [
                "line 5, datasets.a.row: unknown key; did you mean 'raw'?",
                "licence, raw, raw_storage",
            ],
        ),
        ("datasets:\n  a: {recipe: r, store: 1}\n", ["line 2, datasets.a.store", "found 1"]),
        ("datasets:\n  a: &a {recipe: r, store: s}\n  a: *a\n", ["line 3: key 'a' is given twice"]),
        ("datasets: [\n", ["is not valid YAML"]),
        ("", ["is empty"]),
    ],
)
def test_a_catalog_that_does_not_load_says_where_and_why(tmp_path, text, fragments):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(CatalogError) as caught:
        load_catalog(path)
    assert str(path) in str(caught.value)
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)
    assert "Model" not in str(caught.value), "names of classes are no help"


def test_the_shipped_catalog_loads(monkeypatch):
    monkeypatch.setenv("SPINE_DATA", "/data")
    catalog = load_catalog(str(resource("catalog.yaml")))
    assert {"ctspine1k", "demo"} <= set(catalog.entries)
    assert catalog.get("ctspine1k").raw_location == "/data/CTSpine1K"
    assert catalog.get("ctspine1k").store_location == "/data/ctspine1k.zarr"
    for found in catalog.entries.values():
        assert Recipe.load(found.recipe_location).title
