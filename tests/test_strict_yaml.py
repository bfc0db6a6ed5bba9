import os
import re
from pathlib import Path
from socket import AF_UNIX, socket

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.errors import UsageError
from spinezarr.strict_model import StrictModel
from spinezarr.strict_yaml import load_strict_yaml
from spinezarr.text import to_printable


class OddError(UsageError):
    pass


class Room(StrictModel):
    width: int
    color: str = "white"


class House(StrictModel):
    name: str
    rooms: dict[str, Room]
    doors: tuple[Room, ...] = ()
    porch: Room | None = None
    labels: dict[str, str] | None = None


GOOD = """\
name: home
rooms:
  hall:
    width: 3
  attic: {width: 2, color: red}
doors:
  - width: 1
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("yaml") / "house.yaml"


def load(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_strict_yaml(path, House, OddError)


def refusal(path, text):
    with pytest.raises(OddError) as caught:
        load(path, text)
    assert str(path) in str(caught.value)
    return str(caught.value).replace(str(path), "FILE")


def test_a_good_file_becomes_its_model(path):
    house = load(path, GOOD)
    assert house == House(
        name="home",
        rooms={"hall": Room(width=3), "attic": Room(width=2, color="red")},
        doors=(Room(width=1),),
    )


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks_of_windows_are_read(path, line_end, mark):
    assert load(path, mark + GOOD.replace("\n", line_end).encode()) == load(path, GOOD)


names = st.text("abcdefgh é:'\"#-{}[]", min_size=1, max_size=12)


@given(names, st.dictionaries(names, st.integers(-(2**53), 2**53), max_size=4))
def test_documents_that_yaml_writes_are_read_back(path, name, widths):
    data = {"name": name, "rooms": {room: {"width": width} for room, width in widths.items()}}
    house = load(path, yaml.safe_dump(data, allow_unicode=True))
    assert house.name == name
    assert {room: found.width for room, found in house.rooms.items()} == widths


@pytest.mark.parametrize(
    ("old", "new", "where", "fragments"),
    [
        ("width: 3", "widht: 3", "line 4, rooms.hall.widht", ["did you mean 'width'?"]),
        ("color: red", "colour: red", "line 5, rooms.attic.colour", ["did you mean 'color'?"]),
        ("  - width: 1", "  - width: 1\n    colr: x", "line 8, doors.0.colr", ["'color'"]),
        ("doors:", "porch: {depth: 1, width: 1}\ndoors:", "line 6, porch.depth", ["color, width"]),
        ("name: home", "name: home\nnaem: x", "line 2, naem", ["'name'", "doors, labels, name"]),
    ],
)
def test_the_error_of_an_unknown_key_names_its_line_and_the_known_keys(
    path, old, new, where, fragments
):
    message = refusal(path, GOOD.replace(old, new))
    assert f"FILE, {where}: unknown key" in message
    assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("    width: 3", "    color: red", "line 4, rooms.hall.width"),
        ("name: home\n", "", "line 1, name"),
        ("  - width: 1", "  - color: red", "line 7, doors.0.width"),
    ],
)
def test_the_error_of_a_missing_key_names_the_line_where_it_belongs(path, old, new, where):
    assert f"FILE, {where}: this key is missing." in refusal(path, GOOD.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "where", "found"),
    [
        ("width: 3", "width: '3'", "line 4, rooms.hall.width", "'3'"),
        ("width: 3", "width: 3.5", "line 4, rooms.hall.width", "3.5"),
        ("width: 3", "width: true", "line 4, rooms.hall.width", "True"),
        ("width: 3", "width:", "line 4, rooms.hall.width", "None"),
        ("name: home", "name: 12", "line 1, name", "12"),
        ("name: home", "name: [home]", "line 1, name", "['home']"),
        ("width: 2", "width: wide", "line 5, rooms.attic.width", "'wide'"),
        ("  - width: 1", "  - width: x", "line 7, doors.0.width", "'x'"),
        ("  - width: 1", "  - 17", "line 7, doors.0", "17"),
    ],
)
def test_the_error_of_a_wrong_type_shows_the_value_and_its_line(path, old, new, where, found):
    message = refusal(path, GOOD.replace(old, new))
    assert f"FILE, {where}: " in message
    assert f"found {found}" in message


def test_all_mistakes_are_reported_at_once(path):
    message = refusal(path, GOOD.replace("width: 3", "width: x").replace("name: home", "nmae: x"))
    assert len(message.splitlines()) == 3
    assert all(line.startswith("FILE, line ") for line in message.splitlines())


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        (GOOD + "name: again\n", 8, "name"),
        (GOOD.replace("width: 2,", "width: 2, width: 4,"), 5, "width"),
        (GOOD.replace("  attic:", "  hall:"), 5, "hall"),
        (GOOD.replace("  - width: 1", "  - width: 1\n    width: 1"), 8, "width"),
    ],
)
def test_the_error_of_a_repeated_key_names_the_second_line(path, text, line, key):
    assert refusal(path, text) == f"FILE, line {line}: key {key!r} is given twice; keep one."


def test_one_key_in_two_places_is_not_repeated(path):
    assert load(path, GOOD + "porch: {width: 3, color: home}\n").porch.width == 3


@pytest.mark.parametrize("text", ["", "\n", "# nothing but a comment\n", "---\n"])
def test_an_empty_file_is_refused(path, text):
    assert "FILE: is empty" in refusal(path, text)


@pytest.mark.parametrize(
    "text",
    [
        "name: [unclosed",
        "name: home\n\trooms: {}",
        "a: b: c",
        "a: 1\n---\nb: 2\n",
        "? [a]\n: b\n",
        "name: *nobody\n",
        "\0",
        b"name: \xff\xfe\n",
    ],
)
def test_invalid_yaml_is_refused(path, text):
    assert refusal(path, text).startswith("FILE: is not valid YAML: ")


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object:pathlib.Path {}",
        "!!python/object/apply:pathlib.Path.touch [&p !!python/object/apply:pathlib.Path [CANARY]]",
        "!!python/name:pathlib.Path ''",
        "!!python/tuple [a]",
        "!made-up x",
    ],
)
def test_no_yaml_tag_makes_a_python_object(path, tag):
    canary = path.parent / "canary"
    message = refusal(path, f"name: {tag.replace('CANARY', str(canary))}\n")
    assert "could not determine a constructor for the tag" in message
    assert not canary.exists()


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", "17\n"])
def test_the_error_of_a_file_that_is_no_mapping_names_its_line(path, text):
    message = refusal(path, text)
    assert message.startswith("FILE, line 1: ")
    assert "found" in message


@pytest.mark.parametrize("key", ["2020-01-01", "!!binary aGk=", "0010", "1.50", "no", "~"])
def test_a_key_that_yaml_does_not_read_as_text_is_refused(path, key):
    # Its text would differ from the one in the file: 0010 becomes 8, and no becomes false.
    assert "FILE, line 8" in refusal(path, GOOD + f"labels: {{{key}: spine}}\n")


def test_a_quoted_key_is_text(path):
    assert load(path, GOOD + "labels: {'0010': spine}\n").labels == {"0010": "spine"}


@pytest.mark.parametrize("value", ["&a [*a]", "[" * 2000 + "]" * 2000])
def test_endless_nesting_is_refused(path, value):
    refusal(path, f"name: {value}\n")


def test_a_date_is_read_as_text(path):
    assert load(path, GOOD.replace("home", "2020-01-01")).name == "2020-01-01"


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name):
    with pytest.raises(OddError, match=r"cannot be read \(.+\)"):
        load_strict_yaml(tmp_path / name, House, OddError)


def test_models_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Room(width=1).width = 2


def test_a_shared_anchor_is_read_in_both_places(path):
    text = GOOD.replace("hall:", "hall: &hall").replace("- width: 1", "- *hall")
    assert load(Path(path), text).doors == (Room(width=3),)


@pytest.mark.parametrize(
    "value",
    [
        "2020-13-45",
        "!!int x",
        "!!int ''",
        "!!bool maybe",
        "!!timestamp x",
        "!!float ''",
    ],
)
def test_an_invalid_number_or_date_is_refused(path, value):
    message = refusal(path, GOOD.replace("home", value))
    assert message.startswith("FILE: holds an invalid number, date or tagged value")
    assert "quotes" in message


def bomb(levels):
    """Return nested aliases, ten per level."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (bomb(9), "line 5: holds more than 10000 keys and values"),
        (
            f"a: &a {'x' * 3000}\nb: [{', '.join(['*a'] * 100)}]",
            "line 2: holds more than .* 262144",
        ),
        ("a: &a {b: c}\n" + "<<: *a\n" * 10_000, "line .*: holds more than 10000 keys"),
        (f"a: {'[' * 33}{']' * 33}", "line 1: is nested too deeply, expected at most 32 levels"),
        ("- " * 100, "line 1: is nested too deeply"),
        ("[" * 100_000, "line 1: is nested too deeply"),
        ("a: &a [*a]", "line 1: 'a' contains itself"),
        ("a: &a {b: [*a]}", "line 1: 'a' contains itself"),
        ("[" + "[]," * 10_000 + "]", "line 1: holds more than 10000 keys and values"),
        ("- x\n" * 10_000, "line 10000: holds more than 10000 keys and values"),
        (f"a: {'x' * 4001}", "line 1: holds a text of 4001 characters, expected at most 4000"),
        (f"{'x' * 4001}: a", "line 1: holds a text of 4001 characters"),
        ("#" * (128 << 10) + "\n", "has more than 131072 bytes"),
        ('a: "\\e[2J"', r"line 1: holds control characters, '\\\\x1b\[2J'"),
        ('a: "\\0"', "line 1: holds control characters"),
        ("a: b\u202ec", "line 1: holds control characters"),
        ('a: "\\ud800"', "line 1: holds control characters"),
        ('a:\n  "\\x9b1m": b', "line 2: holds control characters"),
        (
            "name: 9007199254740993",
            "line 1: holds the number 9007199254740993, expected a magnitude of at most",
        ),
        ("name: 0x" + "f" * 3900, "line 1: holds the number 0xfff"),
        ("name: " + "1:" * 1900 + "1", "line 1: holds the number 1:1:1"),
        ("name: .nan", "line 1: holds the number .nan"),
        ("name: -.inf", "line 1: holds the number -.inf"),
        ("name: 1.0e+999", "line 1: holds the number 1.0e"),
        ("name: !!binary aGk=", ".*invalid .*value .a bytes."),
        ("name: !!set {a}", ".*invalid .*value .a set."),
        ("a: &a b\nc: &a d", "is not valid YAML: found duplicate anchor"),
        ("a: [\x07", "is not valid YAML: "),
    ],
)
def test_bombs_are_refused_before_they_expand(path, text, reason):
    message = refusal(path, text)
    assert re.search(f"^FILE(: |, ){reason}", message), message
    assert all(line == to_printable(line) for line in message.splitlines())


def test_text_of_several_lines_is_read(path):
    assert load(path, GOOD.replace("home", "|\n  one\n  two")).name == "one\ntwo\n"


def test_files_at_the_limits_are_read(path):
    rooms = {f"room {n}": {"width": 1} for n in range(2_400)}
    text = yaml.safe_dump({"name": "x" * 4_000, "rooms": rooms}, default_flow_style=True, width=90)
    assert len(load(path, text).rooms) == 2_400


def test_an_error_of_many_mistakes_lists_the_first(path):
    message = refusal(path, "name: a\nrooms:\n" + "".join(f"  r{n}: {n}\n" for n in range(500)))
    assert len(message.splitlines()) == 21
    assert message.endswith("... and 480 more mistakes.")


def test_an_error_shortens_a_long_value(path):
    assert len(refusal(path, f"name: [{', '.join(['x'] * 3_000)}]\nrooms: {{}}")) < 400


def test_errors_of_model_checks_name_their_line(path):
    path.write_text(GOOD)
    for key, where in (
        (("rooms", "attic"), "line 5, rooms.attic"),
        (("doors", 0), "line 7, doors.0"),
    ):
        with pytest.raises(OddError, match=f"house.yaml, {where} is too small"):
            load_strict_yaml(
                path, House, OddError, check=lambda _, key=key: [(key, "is too small")]
            )


def bind_socket(path):
    with socket(AF_UNIX) as bound:
        bound.bind(str(path))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a FIFO"),
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (bind_socket, "a socket"),
    ],
)
def test_devices_pipes_sockets_and_folders_are_refused_at_once(tmp_path, monkeypatch, make, kind):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    make(Path("x.yaml"))
    with pytest.raises(OddError, match=rf"x\.yaml: cannot be read \(is {kind}, expected a regular"):
        load_strict_yaml(Path("x.yaml"), House, OddError)


def test_a_link_to_a_file_is_read(tmp_path):
    (tmp_path / "there.yaml").write_text(GOOD)
    (tmp_path / "here.yaml").symlink_to("there.yaml")
    assert load_strict_yaml(tmp_path / "here.yaml", House, OddError).name == "home"
