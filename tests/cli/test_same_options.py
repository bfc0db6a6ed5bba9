"""Every command has a Python function with the same options and defaults."""

import inspect

import pytest
from typer.main import get_command

import spinezarr
from spinezarr import Store
from spinezarr.cli.export import app as export_app
from spinezarr.cli.main import app

VERBS = {
    "ingest": spinezarr.ingest,
    "derive": Store.derive,
    "info": Store.info,
    "audit": Store.audit,
    "verify": Store.verify,
    "bench": Store.bench,
    "stats": Store.stats,
    "compare": Store.compare,
    "preview": Store.preview,
    "push": Store.push,
    "pull": Store.pull,
    "export nifti": Store.export_nifti,
    "export nnunet": Store.export_nnunet,
    "export ome-zarr": Store.export_ome_zarr,
    "export card": Store.export_card,
}
WITHOUT_A_VERB = {
    "doctor": "it checks a machine; nothing of it is a store",
    "serve": "it runs until it is ended; Store.serve serves this program only",
    "init": "it writes a file to edit",
    "demo": "it shows what the others do",
    "add-labels": "Store.add_labels takes the name first and waits for other writers",
    "remove-labels": "Store.remove_labels removes the mask of one scan",
}
OF_S3 = {"endpoint_url", "profile", "no_sign_request"}
OF_RAW_S3 = {f"raw_{name}" for name in OF_S3}
PRINTING = {"as_json", "output", "quiet", "no_color"}
PLURAL = {"scan": "scans"}
"""Options that may be repeated, with the names of their parameters in Python."""
NEGATED = {"uncompressed": "compressed", "no_write": "write", "no_antialias": "antialias"}
"""Flags that turn something off, with the parameters of Python that turn it on."""


def parameters_of(command):
    root = get_command(export_app if " " in command else app)
    found = root.get_command(None, command.rpartition(" ")[2])
    return {parameter.name: parameter for parameter in found.params if parameter.name != "help"}


def options_of(command):
    """Return the names and defaults of a command's options, as Python must have them."""
    options = {}
    for name, parameter in parameters_of(command).items():
        default = None if parameter.required else parameter.default
        if name in NEGATED:
            options[NEGATED[name]] = not default
        elif name in OF_S3:
            options["storage_options"] = None
        elif name in OF_RAW_S3:
            options["raw_storage_options"] = None
        elif name not in PRINTING:
            options[PLURAL.get(name, name)] = default
    return options


@pytest.mark.parametrize("command", VERBS)
def test_a_command_and_its_function_have_the_same_options_and_defaults(command):
    options = options_of(command)
    verb = inspect.signature(VERBS[command]).parameters
    found = {name: None if one.default is one.empty else one.default for name, one in verb.items()}
    for name in ("self", "on_progress"):
        found.pop(name, None)
    if "self" in verb:
        # The store is open, with the options of its file system.
        for name in ("store", "stores", "catalog"):
            options.pop(name, None)
        if command not in {"derive", "push", "export ome-zarr"}:  # they may write to a bucket
            options.pop("storage_options")
    if command == "audit":
        assert found.pop("others") == ()  # replaces several stores
    assert found == options


def test_every_command_has_a_function_or_a_reason_against_it():
    commands = get_command(app).list_commands(None)
    exports = [f"export {name}" for name in get_command(export_app).list_commands(None)]
    assert {*commands, *exports} - {"export"} == {*VERBS, *WITHOUT_A_VERB}


@pytest.mark.parametrize("command", VERBS)
def test_required_options_are_required_in_both(command):
    required = {
        PLURAL.get(name, name)
        for name, parameter in parameters_of(command).items()
        if parameter.required and name not in {"store", "stores"}
    }
    verb = inspect.signature(VERBS[command]).parameters
    assert {n for n, one in verb.items() if one.default is one.empty and n != "self"} == required


@pytest.mark.parametrize("command", VERBS)
def test_every_long_command_has_a_progress_callback(command):
    takes_long = command not in {"info", "stats", "export card"}
    assert ("on_progress" in inspect.signature(VERBS[command]).parameters) == takes_long
