import copy
import json
import math
import pickle
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from spinezarr.text import (
    MultilineText,
    count_noun,
    escape_markdown,
    to_ascii_json,
    to_nfc,
    to_printable,
)

letters = st.text(st.characters(codec="utf-8"), max_size=8)


@given(letters)
def test_all_unicode_forms_of_a_name_are_composed_to_one(name):
    forms = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")}
    assert {to_nfc(form) for form in forms} == {unicodedata.normalize("NFC", name)}


PERSIAN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
"""A Persian name with a non-joiner between two letters."""
HARMLESS = {"Zs", "Co", *"LMNPS"}
"""Unicode categories, or their first letters, of characters that are printed unchanged."""
every_text = st.text(st.characters(), max_size=12) | st.text(
    "a\\é日\u0301\u0627\u200c\u200d\u0600\x1b\x9b\x7f\n\u202e\u2066\u2028\ufeff\u00ad\u3164"
    "\U000e0041\U0010ffff\ud800\udcff\U0001f469\ufe0f",
    max_size=12,
)

# JSON cannot distinguish two halves of a character from the whole character.
distinguishable = every_text.filter(
    lambda text: not re.search("[\ud800-\udbff][\udc00-\udfff]", text)
)


@given(every_text)
def test_printable_text_holds_no_control_characters(text):
    shown = to_printable(text)
    assert shown.encode("utf-8").decode("utf-8") == shown
    for char in shown:
        category = unicodedata.category(char)
        assert category in HARMLESS or category[0] in HARMLESS or char in "\u200c\u200d\u0600"
        assert char not in "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
    assert to_printable(shown) == shown
    assert not re.search("(^|[\\x00-\\x7f\u200c\u200d])[\u200c\u200d]", shown)
    assert not re.search("[\u200c\u200d]($|[\\x00-\\x7f])", shown)


@given(every_text, st.integers(8, 40))
def test_long_texts_are_shortened_to_the_limit(text, longest):
    shown = to_printable(text * 4, longest)
    assert len(shown) <= longest
    assert len(to_printable(text * 300)) <= 2000
    assert to_printable(text * 300, None) == to_printable(to_printable(text * 300, None), None)


@given(st.lists(every_text, max_size=5))
def test_lines_of_a_text_are_kept_and_not_added(texts):
    lines = MultilineText(*texts)
    assert lines.split("\n") == ([to_printable(text) for text in texts] or [""])
    assert to_printable(lines) == lines == pickle.loads(pickle.dumps(lines))  # noqa: S301  our own
    assert isinstance(copy.deepcopy(lines), MultilineText)


def test_the_rest_of_many_lines_is_counted():
    assert MultilineText(*"x" * 300).split("\n")[-1] == "... and 100 more lines"


@given(
    st.recursive(
        distinguishable | st.floats(),
        lambda of: st.lists(of) | st.dictionaries(distinguishable, of),
    )
)
@example({"\x7f": ["\x7f\x9b\u202e\udcff", math.nan]})
def test_json_is_ascii_and_restores_every_text(value):
    text = to_ascii_json(value)
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    assert repr(json.loads(text)) == repr(_null_for_no_number(value))


def _null_for_no_number(value):
    if isinstance(value, dict):
        return {key: _null_for_no_number(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_null_for_no_number(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@given(every_text | st.text("ab1 \\`*_{}[]<>()#+-=.!|~$@&:/w\"'", max_size=20))
@example("www.x.org http://x.org <b> &amp; a@b.org")
def test_rendered_markdown_shows_a_text_literally(text):
    page = (
        MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .parse(f"x{escape_markdown(text)}x")
    )
    assert [token.type for token in page] == ["paragraph_open", "inline", "paragraph_close"]
    parts = page[1].children
    assert {part.type for part in parts} <= {"text"}
    assert "".join(part.content for part in parts) == f"x{to_printable(text)}x"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Müller 1", "Müller 1"),
        ("a\n\t\x1b[0m\x7f\x85", r"a\x0a\x09\x1b[0m\x7f\x85"),
        ("a\udcff\udc80", r"a\xff\x80"),
        ("a\u2028\u202eb", r"a\u2028\u202eb"),
        ("\ud800", r"\ud800"),
        ("日本", "日本"),
        ("שלום عليكم", "שלום عليكم"),
        (PERSIAN, PERSIAN),
        ("क\u094d\u200dष", "क\u094d\u200dष"),
        ("👩\u200d⚕\ufe0f👨\u200d👩\u200d👧", "👩\u200d⚕\ufe0f👨\u200d👩\u200d👧"),
        ("e\u0301\u06dd", "e\u0301\u06dd"),
        ("ad\u200dmin\u200b\ufeff", r"ad\u200dmin\u200b\ufeff"),
        ("a\U000e0041\U0010ffff", r"a\U000e0041\U0010ffff"),
    ],
)
def test_control_characters_in_names_are_escaped(name, shown):
    assert to_printable(name) == shown


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 scans"), (1, "1 scan"), (2, "2 scans"), (1005, "1005 scans")]
)
def test_counts_have_a_singular_or_plural_noun(count, text):
    assert count_noun(count, "scan") == text
    assert count_noun(count, "box", "boxes") == text.replace("scans", "boxes").replace(
        "scan", "box"
    )
