import os
import re
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


def test_without_a_catalog_file_no_catalog_is_loaded():
    assert find_catalog() is None
    assert load_catalog() is None


def test_the_argument_overrides_the_variable_and_the_variable_the_folder(tmp_path, monkeypatch):
    here = write_catalog(Path("catalog.yaml"), raw="here")
    variable = write_catalog(tmp_path / "variable.yaml", raw="variable")
    argument = write_catalog(tmp_path / "argument.yaml", raw="argument")
    assert find_catalog() == (here, False)
    monkeypatch.setenv(CATALOG_VARIABLE, str(variable))
    assert find_catalog() == (variable, True)
    assert load_catalog().get("spine").raw == "variable"
    assert find_catalog(argument) == (argument, True)
    assert load_catalog(str(argument)).get("spine").raw == "argument"


def test_an_empty_catalog_variable_counts_as_unset(monkeypatch):
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


def test_a_catalog_named_by_variable_must_have_an_absolute_path(monkeypatch):
    write_catalog(Path("c.yaml"))
    monkeypatch.setenv(CATALOG_VARIABLE, "c.yaml")
    with pytest.raises(
        CatalogError, match=rf"c\.yaml: is a relative .*{CATALOG_VARIABLE}.* absolute"
    ):
        load_catalog()


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (Path.mkdir, "a folder"),
        (os.mkfifo, "a FIFO"),
        (lambda path: path.symlink_to("gone"), "a link to nothing"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
    ],
)
def test_the_error_names_a_catalog_yaml_that_is_no_file(make, kind):
    make(Path("catalog.yaml"))
    with pytest.raises(CatalogError, match=rf"catalog\.yaml: is {kind}, expected .*--catalog FILE"):
        find_catalog()
    with pytest.raises(CatalogError, match=rf"catalog\.yaml: is {kind}, expected .*--catalog"):
        find_catalog("catalog.yaml")


def test_the_home_folder_may_be_abbreviated(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_catalog(tmp_path / "mine.yaml", raw="~/raw", store="~/s.zarr")
    assert find_catalog("~/mine.yaml") == (path, True)
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
def test_absolute_paths_and_urls_are_unchanged(tmp_path, location):
    found = entry(tmp_path, raw=location, store=location)
    assert found.raw_location == found.store_location == location


def test_the_home_folder_of_an_unknown_user_is_not_expanded(tmp_path):
    assert entry(tmp_path, raw="~nobody-here/x").raw_location == f"{tmp_path}/home/~nobody-here/x"


def test_environment_variables_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("SPINE_DATA", "/data")
    written = "${SPINE_DATA}/x"
    found = entry(tmp_path, recipe="${SPINE_DATA}/r.yml", raw=written, store=written)
    assert found.raw_location == found.store_location == "/data/x"
    assert found.recipe_location == "/data/r.yml"


def test_a_variable_may_hold_a_url(tmp_path, monkeypatch):
    monkeypatch.setenv("SPINE_DATA", "s3://bucket")
    assert entry(tmp_path, store="${SPINE_DATA}/s.zarr").store_location == "s3://bucket/s.zarr"


def test_a_variable_may_hold_a_dollar_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("SPINE_DATA", "/data/$old")
    assert entry(tmp_path, raw="${SPINE_DATA}/x").raw_location == "/data/$old/x"


@pytest.mark.parametrize("key", ["recipe", "raw", "store"])
def test_a_variable_without_braces_is_refused(tmp_path, key):
    with pytest.raises(CatalogError, match=rf"{key}: variables are written \$\{{SPINE_DATA\}}"):
        entry(tmp_path, **{key: "$SPINE_DATA/x"})


@pytest.mark.parametrize("written", ["a\\nb", "a" * 256, "é" * 128])
def test_texts_that_are_no_valid_path_are_refused(tmp_path, written):
    with pytest.raises(
        CatalogError, match=r"line 4, datasets\.spine\.raw: it is not a path or URL"
    ):
        entry(tmp_path, raw=f'"{written}"')


@pytest.mark.parametrize("written", ["${SPINE_DATA}/x", "a/${SPINE_DATA}"])
def test_the_error_of_an_unset_variable_names_it_with_dataset_and_file(tmp_path, written):
    found = entry(tmp_path, raw=written)
    assert found.store_location.endswith("s.zarr")
    with pytest.raises(CatalogError, match=r"c\.yaml: dataset 'spine' .* SPINE_DATA, .*not set"):
        _ = found.raw_location


def test_names_of_shipped_recipes_are_not_taken_for_paths(tmp_path):
    assert entry(tmp_path).recipe_location == "ctspine1k"


def test_raw_and_license_may_be_left_out(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("datasets:\n  spine: {recipe: ctspine1k, store: s.zarr}\n")
    found = load_catalog(path).get("spine")
    assert (found.raw, found.raw_location, found.license) == (None, None, None)


def test_an_unknown_name_gives_no_catalog_entry(tmp_path):
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
                "license, raw, raw_storage",
            ],
        ),
        ("datasets:\n  a: {recipe: r, store: 1}\n", ["line 2, datasets.a.store", "found 1"]),
        ("datasets:\n  a: &a {recipe: r, store: s}\n  a: *a\n", ["line 3: key 'a' is given twice"]),
        ("datasets: [\n", ["is not valid YAML"]),
        ("", ["is empty"]),
    ],
)
def test_the_error_of_an_invalid_catalog_says_where_and_why(tmp_path, text, fragments):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(CatalogError) as caught:
        load_catalog(path)
    assert str(path) in str(caught.value)
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)
    assert "Model" not in str(caught.value), "the error must not name classes"


FOUND = "datasets:\n  spine:\n    recipe: ctspine1k\n"


def found_entry(text):
    Path("catalog.yaml").write_text(FOUND + text)
    return load_catalog().get("spine")


@pytest.mark.parametrize(
    ("text", "what", "next_step"),
    [
        ("store: https://host/${AWS_SECRET_ACCESS_KEY}", "uses the .* AWS_SECRET_ACCESS_KEY", ""),
        ("store: '${AWS_SECRET_ACCESS_KEY}/s.zarr'", "uses the .* AWS_SECRET_ACCESS_KEY", ""),
        ("store: s3://bucket/s.zarr", "your keys would be sent", "add 'anon: true' to it, or"),
        ("store: s3a://bucket/s.zarr", "your keys would be sent", "add 'anon: true' to it, or"),
        (
            "store: s3://bucket/s.zarr\n    raw_storage_options: {anon: true}",
            "your keys would be sent",
            "add 'anon: true' to it, or",
        ),
        (
            "store: s3://b/s.zarr\n    storage_options: {anon: true, endpoint_url: 'https://host'}",
            "names its own endpoint_url",
            "",
        ),
        (
            "store: s3://b/s.zarr\n    storage_options: {anon: true, profile: lab}",
            "names its own profile",
            "",
        ),
        ("store: hf://datasets/a/b", "has a URL with hf://", ""),
        ("store: gs://bucket/s.zarr", "has a URL with gs://", ""),
        ("store: simplecache::s3://b/s.zarr", "has a URL with simplecache::s3://", ""),
    ],
)
def test_a_catalog_found_in_the_folder_may_not_send_variables_or_keys(
    monkeypatch, text, what, next_step
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-mine")
    found = found_entry(f"    {text}\n")
    with pytest.raises(CatalogError) as hit:
        _ = found.store_location
    assert re.search(rf"catalog\.yaml: dataset 'spine' .*{what}", str(hit.value))
    assert f"{next_step} name it: --catalog catalog.yaml" in str(hit.value)
    assert "secret-of-mine" not in str(hit.value)


@pytest.mark.parametrize("key", ["raw", "recipe"])
def test_raw_folder_and_recipe_of_a_found_catalog_may_not_send_variables_or_keys(monkeypatch, key):
    monkeypatch.setenv("KEY", "secret")
    write_catalog(Path("catalog.yaml"), **{key: "'${KEY}.yaml'"})
    found = load_catalog().get("spine")
    with pytest.raises(CatalogError, match="uses the environment variable KEY"):
        getattr(found, f"{key}_location")


def test_options_of_the_raw_folder_apply_only_to_it():
    text = "    store: s.zarr\n    raw: s3://bucket/raw\n    raw_storage_options: {anon: true}\n"
    assert found_entry(text).raw_location == "s3://bucket/raw"
    found = found_entry(text.replace("raw_storage_options: {anon: true}", "license: free"))
    with pytest.raises(CatalogError, match="your keys would be sent"):
        _ = found.raw_location


@pytest.mark.parametrize(
    ("store", "options"),
    [
        ("s.zarr", "{}"),
        ("/abs/s.zarr", "{}"),
        ("https://host/s.zarr", "{}"),
        ("file:///x/s.zarr", "{}"),
        ("s3://bucket/s.zarr", "{anon: true}"),
    ],
)
def test_a_catalog_found_in_the_folder_may_name_public_buckets(store, options):
    found = found_entry(f"    store: {store}\n    storage_options: {options}\n")
    assert found.store_location.endswith(store)
    assert not found.is_trusted


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_a_catalog_that_the_user_names_is_trusted(monkeypatch, how):
    monkeypatch.setenv("BUCKET", "mine")
    text = "    store: 's3://${BUCKET}/s'\n    storage_options: {endpoint_url: 'https://lab'}\n"
    found_entry(text)
    if how == "variable":
        monkeypatch.setenv(CATALOG_VARIABLE, str(Path("catalog.yaml").resolve()))
    catalog = load_catalog("catalog.yaml" if how == "argument" else None)
    assert catalog.get("spine").store_location == "s3://mine/s"
    assert catalog.get("spine").storage_options == {"endpoint_url": "https://lab"}


def test_the_shipped_catalog_loads():
    path = resource("catalog.yaml")
    Path("catalog.yaml").write_text(path.read_text())
    catalog = load_catalog()
    assert {"ctspine1k", "demo"} <= set(catalog.entries)
    here = Path.cwd()
    assert catalog.get("ctspine1k").raw_location == f"{here}/data/CTSpine1K"
    assert catalog.get("ctspine1k").store_location == f"{here}/data/ctspine1k.zarr"
    for found in catalog.entries.values():
        assert Recipe.load(found.recipe_location).title
