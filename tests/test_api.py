import importlib
import inspect
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import xarray as xr

import spinezarr
from spinezarr.api import DrawOptions
from spinezarr.catalog import locate_store
from spinezarr.errors import CatalogError, SpinezarrError, StoreNotFoundError, UsageError

CATALOG = """\
datasets:
  ctspine1k:
    recipe: ctspine1k
    store: {store}
  absent:
    recipe: ctspine1k
    store: stores/absent.zarr
"""


@pytest.fixture
def catalog(ctspine1k_url, tmp_path, monkeypatch):
    """Write a catalog that names the store, into a folder of its own."""
    monkeypatch.delenv("SPINEZARR_CATALOG", raising=False)
    path = tmp_path / "catalog.yaml"
    path.write_text(CATALOG.format(store=ctspine1k_url))
    return path


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Change to an empty folder without a catalog."""
    monkeypatch.delenv("SPINEZARR_CATALOG", raising=False)
    empty = tmp_path / "nowhere"
    empty.mkdir()
    monkeypatch.chdir(empty)
    return empty


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


# Opening


@pytest.mark.parametrize(
    "form",
    [str, Path, "{}/".format, "file://{}".format, "local://{}".format],
    ids=["text", "Path", "slash at the end", "file URL", "local URL"],
)
def test_a_store_opens_by_path_and_url(nowhere, ctspine1k_url, form):
    store = spinezarr.open(form(ctspine1k_url))
    assert store.table.sizes["scan"] == 6
    assert store.scan("liver_0").image.shape == (35, 64, 64)
    assert store.patches(8)[0].image.shape == (1, 8, 8, 8)


def test_a_store_opens_by_a_relative_path(ctspine1k_url, monkeypatch):
    monkeypatch.chdir(Path(ctspine1k_url).parent)
    assert spinezarr.open("ctspine1k.zarr").table.sizes["scan"] == 6


def test_a_store_opens_by_its_name_in_a_catalog(nowhere, catalog, ctspine1k_url, monkeypatch):
    assert spinezarr.open("ctspine1k", catalog=catalog).url == ctspine1k_url
    assert spinezarr.open("ctspine1k", catalog=str(catalog)).url == ctspine1k_url
    monkeypatch.setenv("SPINEZARR_CATALOG", str(catalog))
    assert spinezarr.open("ctspine1k").url == ctspine1k_url
    monkeypatch.delenv("SPINEZARR_CATALOG")
    monkeypatch.chdir(catalog.parent)
    assert spinezarr.open("ctspine1k").url == ctspine1k_url


def test_an_existing_path_is_preferred_to_a_catalog_name(nowhere, catalog, ctspine1k_url):
    (nowhere / "ctspine1k").symlink_to(ctspine1k_url)
    assert locate_store("ctspine1k", catalog) == ("ctspine1k", {})
    assert locate_store("s3://bucket/x.zarr", catalog) == ("s3://bucket/x.zarr", {})


def test_the_error_of_an_unknown_name_says_what_was_tried(nowhere, catalog):
    with pytest.raises(StoreNotFoundError) as problem:
        spinezarr.open("verse")
    assert str(problem.value) == (
        "'verse' is not a store: there is no such path, and no dataset of this name "
        "(no catalog was found). 'spinezarr ingest' makes a store."
    )
    with pytest.raises(StoreNotFoundError) as problem:
        spinezarr.open("verse", catalog=catalog)
    assert str(problem.value) == (
        "'verse' is not a store: there is no such path, and no dataset of this name "
        f"({catalog} names ctspine1k, absent). 'spinezarr ingest' makes a store."
    )
    catalog.write_text("datasets: {}\n")
    with pytest.raises(StoreNotFoundError, match="names no dataset"):
        spinezarr.open("verse", catalog=catalog)


def test_the_error_names_a_catalog_store_that_does_not_exist(catalog):
    with pytest.raises(StoreNotFoundError, match=r"stores/absent\.zarr: there is no store"):
        spinezarr.open("absent", catalog=catalog)


def test_the_error_names_a_catalog_that_does_not_exist(nowhere):
    with pytest.raises(CatalogError, match=r"gone\.yaml: no such catalog file"):
        spinezarr.open("ctspine1k", catalog="gone.yaml")


def test_the_error_of_a_missing_store_is_also_a_builtin_error(nowhere):
    for family in (SpinezarrError, FileNotFoundError, OSError):
        with pytest.raises(family):
            spinezarr.open("absent.zarr")


# Descriptions of a store


def test_the_repr_of_a_store_describes_it(store):
    assert repr(store) == "<spinezarr.Store ctspine1k: 6 scans (1 test, 3 train, 2 validation)>"
    assert store.splits == {"test": 1, "train": 3, "validation": 2}


def test_a_store_knows_its_dataset(store, ctspine1k_url):
    assert store.url == ctspine1k_url
    assert store.attrs["format"] == "spinezarr"
    assert store.attrs["dataset"] == "ctspine1k"
    assert store.attrs["license"] == "CC-BY-NC-SA-4.0"
    assert "2105.14711" in store.attrs["citation"]
    assert isinstance(store.table, xr.Dataset)
    assert store.table is store.table


# The package


def test_public_names_exist_and_are_documented():
    names = {"Batch", "PatchStream", "SpinezarrError", "Store", "__version__", "open"}
    names |= {"CacheSettings", "RemoteSettings", "ingest", "load_dataset"}
    assert set(spinezarr.__all__) == names
    for name in spinezarr.__all__:
        found = getattr(spinezarr, name)
        if name != "__version__":
            assert found.__doc__
            assert len(found.__doc__.splitlines()[0]) > 10
    for thing in (spinezarr.Store, spinezarr.PatchStream, spinezarr.Batch):
        for name, member in vars(thing).items():
            if not name.startswith("_") and (callable(member) or isinstance(member, property)):
                assert member.__doc__, f"{thing.__name__}.{name}"


def test_spinezarr_ingest_is_the_function_after_any_import():
    code = "import spinezarr.ingestion.run, spinezarr; assert spinezarr.ingest.__name__ == 'ingest'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_in_all_of_a_module_exists():
    package = Path(spinezarr.__file__).parent
    modules = [
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in package.rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert len(modules) > 20
    for name in modules:
        module = importlib.import_module(name)
        assert module.__doc__
        for public in getattr(module, "__all__", ()):
            assert hasattr(module, public), f"{name}.{public}"


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'spinezarr' has no attribute 'opne'"):
        _ = spinezarr.opne


def test_importing_spinezarr_imports_nothing_heavy():
    code = "import json, sys, spinezarr; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(run_python(code)))
    heavy = {"numpy", "xarray", "zarr", "dask", "matplotlib", "nibabel", "fsspec", "pydantic"}
    assert "spinezarr" in loaded
    assert not loaded & {*heavy, "importlib.metadata"}


def test_a_first_batch_imports_little(ctspine1k_url):
    code = (
        "import json, sys, spinezarr; "
        f"stream = spinezarr.open({ctspine1k_url!r}).patches(8, batch_size=2); "
        "next(iter(stream)); print(json.dumps(sorted(sys.modules)))"
    )
    loaded = set(json.loads(run_python(code)))
    heavy = {"xarray", "pandas", "dask", "zarr", "nibabel", "scipy", "matplotlib", "pydicom"}
    heavy |= {"openpyxl", "torch", "starlette", "aiohttp", "s3fs", "yaml", "regex", "rich", "typer"}
    heavy |= {"spinezarr.stream.read.batch_limits", "spinezarr.recipe", "spinezarr.formats"}
    assert "spinezarr.stream.read.engine" in loaded
    assert not loaded & heavy


def test_a_fresh_python_opens_a_store_without_warnings(ctspine1k_url):
    code = (
        "import warnings; warnings.simplefilter('error'); import spinezarr; "
        f"store = spinezarr.open({ctspine1k_url!r}); "
        "print(store, store.patches(8)[0].image.shape, store.scan('liver_0').image.shape)"
    )
    assert "6 scans" in run_python(code)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nothing://bucket/a.zarr", "nothing://"),
        ("s3://bucket/a.zarr", r"pip install 'spinezarr\[s3\]'"),
    ],
)
def test_the_error_of_an_unsupported_url_says_what_to_install(url, message, monkeypatch):
    for name in ("s3fs", "botocore.exceptions", "botocore.session"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "spinezarr.remote.s3_filesystem", raising=False)
    with pytest.raises(UsageError, match=message):
        spinezarr.open(url)


def test_a_path_may_start_with_a_tilde(ctspine1k_url, monkeypatch):
    url = Path(ctspine1k_url)
    monkeypatch.setenv("HOME", str(url.parent))
    assert spinezarr.open(f"~/{url.name}").table.sizes["scan"] == 6


def test_a_folder_that_is_no_store_does_not_hide_a_name_of_the_catalog(
    ctspine1k_url, tmp_path, monkeypatch
):
    (tmp_path / "demo").mkdir()
    (tmp_path / "catalog.yaml").write_text(
        f"datasets:\n  demo: {{recipe: ctspine1k, store: {ctspine1k_url}}}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert spinezarr.open("demo").url == ctspine1k_url
    with pytest.raises(StoreNotFoundError, match="there is no store"):
        spinezarr.open("./demo")


def test_importing_on_windows_is_an_error_that_says_what_to_do():
    # What Python itself imports on the way must not take this machine for Windows.
    code = "import sys, tempfile; sys.platform = 'win32'; import spinezarr"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: spinezarr runs on Linux and macOS" in done.stderr
    assert "WSL" in done.stderr


def test_patches_and_slices_show_their_common_options():
    hidden = {"self", "axes", "size", "size_mm", "spacing_mm", "flat_axis"}
    hidden |= {"neighbors", "neighbor_step_mm"}
    expected = {
        name: (one.annotation, one.default)
        for name, one in inspect.signature(spinezarr.Store._draw).parameters.items()
        if name not in hidden
    }
    assert list(expected) == list(DrawOptions.__annotations__)
    for method in (spinezarr.Store.patches, spinezarr.Store.slices):
        shown = inspect.signature(method).parameters
        assert "options" not in shown
        assert (
            expected.items()
            <= {name: (one.annotation, one.default) for name, one in shown.items()}.items()
        )
        assert all(name in method.__doc__ for name in expected)


def test_an_unknown_option_of_patches_is_refused(store):
    with pytest.raises(TypeError, match="'sied'"):
        store.patches(8, sied=3)


# Import contracts


def test_the_contracts_on_imports_leave_no_module_out():
    package = Path(spinezarr.__file__).parent
    text = (package.parent / "pyproject.toml").read_text()
    contracts = {
        contract["name"]: set(contract.get("source_modules", ()))
        for contract in tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    }
    below_api, above_testing = set(), set()
    for path in package.iterdir():
        if path.suffix == ".py" and path.stem not in {"__init__", "api"}:
            below_api.add(f"spinezarr.{path.stem}")
        elif (path / "__init__.py").exists() and path.name not in {"cli", "accessor"}:
            below_api |= {f"spinezarr.{path.name}", f"spinezarr.{path.name}.**"}
    commands = {f"spinezarr.cli.{path.stem}" for path in (package / "cli").glob("*.py")}
    commands -= {"spinezarr.cli.__init__", "spinezarr.cli.demo"}
    commands |= {"spinezarr.cli.reports", "spinezarr.cli.reports.**"}
    above_testing = {name for name in below_api if "spinezarr.testing" not in name}
    above_testing |= {"spinezarr.accessor", "spinezarr.accessor.**", "spinezarr.api", *commands}
    assert contracts["nothing below the api imports the package's facade"] == below_api
    name = "only the demo, tests and benchmarks use synthetic data"
    assert contracts[name] == above_testing
