"""An option is the same in every command that has it: its type, value and help."""

from collections import defaultdict

import pytest
from typer.main import get_command

from spinezarr.cli.export import app as export_app
from spinezarr.cli.main import app
from spinezarr.cli.options import Codec
from spinezarr.store.layout import PROFILES

DIFFERENT = {
    "--out": "each command writes something else there",
    "--layer": "some commands take one mask and others several",
    "--license": "of the data, or of the masks",
    "--masks": "predictions that are compared, or masks that are stored",
    "--against": "files of a raw folder, or a card",
    "--with": "the true mask, or a mask that is drawn on the left",
    "--workers": "scans that are worked on, or requests that are answered",
}
"""Options whose help differs between commands, and why."""
OF_ALL = {"--quiet", "--no-color", "--help"}
WITHOUT_JSON = {
    "serve": "it runs until it is ended, and has --log json",
    "init": "it writes one file",
    "demo": "it shows what the others do",
}


def commands():
    root = get_command(app)
    named = {name: root.get_command(None, name) for name in root.list_commands(None)}
    exports = get_command(export_app)
    del named["export"]
    return named | {f"export {name}": command for name, command in exports.commands.items()}


COMMANDS = commands()


def uses():
    """Return each option with what it is in each command."""
    found = defaultdict(dict)
    for command_name, command in COMMANDS.items():
        for parameter in command.params:
            if parameter.param_type_name == "option":
                facts = (parameter.metavar, parameter.multiple, parameter.is_flag, parameter.help)
                found[parameter.opts[0]][command_name] = facts
    return found


def test_an_option_has_one_meaning():
    several = {name for name, by_command in uses().items() if len(set(by_command.values())) > 1}
    assert several == {*DIFFERENT}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_that_is_a_sentence(command):
    for parameter in COMMANDS[command].params:
        if parameter.param_type_name == "option" and not parameter.opts[0].startswith("--raw-"):
            assert parameter.help, parameter.opts
            assert parameter.help[0].isupper(), parameter.help
            assert parameter.help.endswith("."), parameter.help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_options_of_all(command):
    names = {name for parameter in COMMANDS[command].params for name in parameter.opts}
    assert OF_ALL - {"--help"} <= names
    assert ("--json" in names) == (command not in WITHOUT_JSON)


def test_a_store_is_named_alike():
    for command in COMMANDS.values():
        for parameter in command.params:
            if parameter.param_type_name == "argument" and "store" in parameter.name:
                assert parameter.metavar in {"STORE", "[STORE]", "[STORE]..."}


def test_the_help_of_codecs_names_them():
    (option,) = Codec.__metadata__
    assert all(name in option.help for name in PROFILES)
