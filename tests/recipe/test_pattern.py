import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spinezarr.recipe import PathPattern, fill_template, filled_template_regex, template_regex

# Every character with a meaning in regular expressions, but the braces and stars of patterns.
literals = st.text("ab.+?()[]|^$\\ -_é/", min_size=1, max_size=5)
file_names = st.text("ab.+?()[]|^$\\ -_é{}*", min_size=1, max_size=5)
paths = st.lists(file_names, min_size=1, max_size=4).map("/".join)
parts = st.one_of(
    st.sampled_from(["{scan}", "{folder}", "*", "**/"]), st.sampled_from("ab./ "), literals
)


def matchings(pattern, path, known=()):
    """Yield every way in which a list of parts covers a path, by trying all, without a regex."""
    if not pattern:
        if path == "":
            yield dict(known)
        return
    part, *rest = pattern
    if part == "**/":
        ends = [0, *(at + 1 for at, letter in enumerate(path) if letter == "/")]
    elif part == "*" or part[0] == "{":
        first_slash = path.find("/") if "/" in path else len(path)
        ends = range(part != "*", first_slash + 1)
    else:
        ends = [len(part)] if path.startswith(part) else []
    for end in ends:
        if part[0] != "{":
            yield from matchings(rest, path[end:], known)
        elif dict(known).get(part[1:-1], path[:end]) == path[:end]:
            yield from matchings(rest, path[end:], {**dict(known), part[1:-1]: path[:end]})


def no_stars_side_by_side(pattern):
    """Return whether no stars are adjacent; ``**/`` counts as one part."""
    return all(pair != ("*", "*") for pair in pairwise(pattern))


@given(st.lists(parts, max_size=6).filter(no_stars_side_by_side), paths)
@example(["**/", "{scan}", ".nii"], "x/y.z/a.1.nii")
@example(["{scan}", "/", "{scan}", ".nii"], "a/b.nii")
@example(["{scan}", "/", "{scan}", ".nii"], "a/a.nii")
@example(["a", "**/", "b"], "a/b")
def test_a_pattern_matches_the_same_paths_as_trying_all_ways(pattern, path):
    ways = list(matchings(pattern, path))
    found = PathPattern("".join(pattern)).match(path)
    assert found in ways if ways else found is None


@given(literals, paths)
def test_literal_text_matches_itself_and_nothing_else(literal, path):
    assert PathPattern(literal).match(literal) == {}
    assert (PathPattern(literal).match(path) is not None) == (path == literal)


@given(file_names, file_names, literals)
@example("1.3.6.1.4.1.9328.50.4.0001", "colon", "/")
@example("volume-covid19-A-0202_0_ct", "COVID-19", "/")
@example("my scan {1}", "a b", ".x/")
def test_names_with_dots_spaces_and_braces_stay_whole(scan, folder, between):
    path = f"data/{folder}/{scan}.nii.gz"
    assert PathPattern("data/{folder}/{scan}.nii.gz").match(path) == {
        "folder": folder,
        "scan": scan,
    }
    for miss in (f"x{path}", f"{path}x", path.replace(".nii.gz", "xnii.gz"), f"data/{path}"):
        assert PathPattern("data/{folder}/{scan}.nii.gz").match(miss) is None
    assert PathPattern("{scan}").match(f"{scan}/{between}") is None


@pytest.mark.parametrize(
    ("pattern", "path", "texts"),
    [
        (r"{scan}.{ext:nii|nii\.gz}", "a.b.nii.gz", {"scan": "a.b", "ext": "nii.gz"}),
        (r"{scan}.{ext:nii|nii\.gz}", "a.nii", {"scan": "a", "ext": "nii"}),
        (r"{scan}.{ext:nii|nii\.gz}", "a.niixgz", None),
        (r"x{n:\d{3}}y", "x123y", {"n": "123"}),
        (r"x{n:\d{3}}y", "x12y", None),
        ("{top:raw_?data}/{scan}", "rawdata/a", {"top": "rawdata", "scan": "a"}),
        ("{top:raw_?data}/{scan}", "raw-data/a", None),
        ("{a:x|y}{a}", "xx", {"a": "x"}),
        ("{a:x|y}{a}", "xy", None),
        ("{a:x|y}z", "x", None),
        ("**/x", "a/b/x", {}),
        ("**/x", "x", {}),
        ("**/x", "ax", None),
        ("**/x", "new\nline/x", {}),
        ("a/**/x", "a/x", {}),
        ("*.txt", ".txt", {}),
        ("*.txt", "a/b.txt", None),
        ("", "", {}),
        ("", "a", None),
        ("{scan}", "", None),
    ],
)
def test_patterns_match_as_their_grammar_says(pattern, path, texts):
    assert PathPattern(pattern).match(path) == texts


def test_a_pattern_knows_its_names():
    assert PathPattern("{a}/*/{b:x|y}/{a}").names == {"a", "b"}


@pytest.mark.parametrize(
    "pattern", ["{scan", "scan}", "{}", "{a b}", "{a:}", "{a:(}", "{1a}", "{a:[}", "{{a}}"]
)
def test_the_error_of_a_broken_pattern_quotes_it(pattern):
    with pytest.raises(ValueError, match=re.escape(repr(pattern))):
        PathPattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("{a:x)(y}", "unbalanced parenthesis"),
        ("{a:(?P<b>x)?}", "names a group"),
        (r"{a:(x)\1}", r"refers to a group by number; write (?P=name)"),
        (r"{a:x}{b:\1}", "invalid group reference"),
        ("{a:(?P=b)}{b:x}", "unknown group name 'b'"),
        ("{a:x*+*}", "multiple repeat"),
    ],
)
def test_an_expression_that_changes_its_meaning_inside_a_pattern_is_refused(pattern, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        PathPattern(pattern)


def test_a_backslash_before_a_digit_may_be_escaped():
    assert PathPattern(r"{a:\\1}").match(r"\1") == {"a": r"\1"}


texts_of = st.fixed_dictionaries({"scan": file_names, "folder": paths})
filtered = [
    "{folder|lower}", "{scan|lower}", "{folder|join}", "{folder|join:-}", "{folder|lower|join:.*}",
    "{scan|join|lower}",
]  # fmt: skip
template_parts = st.one_of(
    st.sampled_from(["{scan}", *filtered, "*", "**/"]),
    st.sampled_from("ab./ "),
    st.text("ab.+?()[]|^$\\ -_é/", min_size=1, max_size=3),
)
templates = st.lists(template_parts, max_size=6).filter(no_stars_side_by_side)


def by_hand(part, texts):
    """Fill one part of a template."""
    if part[0] != "{":
        return part
    name, *filters = part[1:-1].split("|")
    text = texts[name]
    for item in filters:
        kind, _, by = item.partition(":")
        text = text.lower() if kind == "lower" else (by or "_").join(text.split("/"))
    return text


@given(templates, texts_of, paths, st.data())
@example(["{scan}", "_", "*"], {"scan": "a.1", "folder": "b"}, "a11_x", None)
@example(["**/", "{scan|lower}"], {"scan": "GL01", "folder": "b"}, "x/gl01", None)
def test_a_filled_template_matches_the_same_paths_as_trying_all_ways(template, texts, path, data):
    pieces = [by_hand(part, texts) for part in template]
    if data is not None and data.draw(st.booleans()):
        # Build a path that fits: each wild part becomes some text.
        wild = {"*": st.text("ab.", max_size=2), "**/": st.sampled_from(["", "a/", "b/a/"])}
        both = zip(template, pieces, strict=True)
        path = "".join(data.draw(wild[part]) if part in wild else piece for part, piece in both)
        assert filled_template_regex("".join(template), texts).fullmatch(path)
    literal_or_wild = [
        piece if part in {"*", "**/"} else f"={piece}"
        for part, piece in zip(template, pieces, strict=True)
    ]
    expected = any(ways_of_filled(literal_or_wild, path))
    assert (filled_template_regex("".join(template), texts).fullmatch(path) is not None) == expected
    if not {"*", "**/"} & set(template):
        assert fill_template("".join(template), texts) == "".join(pieces)


def ways_of_filled(pieces, path):
    """Yield True for every way in which pieces, literal after ``=``, cover a path."""
    if not pieces:
        if path == "":
            yield True
        return
    piece, *rest = pieces
    if piece == "**/":
        ends = [0, *(at + 1 for at, letter in enumerate(path) if letter == "/")]
    elif piece == "*":
        ends = range((path.find("/") if "/" in path else len(path)) + 1)
    else:
        ends = [len(piece) - 1] if path.startswith(piece[1:]) else []
    for end in ends:
        yield from ways_of_filled(rest, path[end:])


def test_a_template_with_a_missing_value_is_not_filled():
    assert fill_template("{scan}{other}", {"scan": "a"}) is None
    assert filled_template_regex("{other}*", {"scan": "a"}) is None


@given(
    st.lists(parts, max_size=5).filter(no_stars_side_by_side),
    st.lists(st.sampled_from(["{scan}", *filtered, "{folder}", "a", "_seg", "/", "."]), max_size=5),
    st.fixed_dictionaries({"scan": file_names, "folder": file_names}),
)
@example(["{scan}", ".nii"], ["{scan|lower}", "_seg"], {"scan": "GL01", "folder": "a"})
def test_the_filled_template_of_an_image_is_among_its_possible_paths(image, template, texts):
    wild = {"*": "", "**/": "x/"}
    path = "".join(wild[part] if part in wild else by_hand(part, texts) for part in image)
    remembered = PathPattern("".join(image)).match(path)
    assert remembered is not None
    filled = fill_template("".join(template), remembered)
    if filled is not None:
        assert template_regex("".join(template), "".join(image)).fullmatch(filled)


@pytest.mark.parametrize(
    ("template", "image", "fits", "misses"),
    [
        ("{scan}_seg.{ext}", r"{scan}.{ext:nii|nii\.gz}", "a_seg.nii.gz", "a_seg.png"),
        ("{scan|lower}_seg", "{scan:[A-Z]+}", "abc_seg", "a1_seg"),
        ("{stem}_seg", r"{folder:x\d}/{stem:(?P=folder)(?:_CT)?}", "x1_CT_seg", "y1_seg"),
        ("{base}m/{scan}", "{base:(?:.*/)?}{scan}.nii", "a/b/m/s", "a/bm/s"),
        ("{unknown}_seg", "{scan}.nii", "x_seg", "a/x_seg"),
        ("**/{scan}_*", "{scan}.nii", "a/b/x_1", "x"),
        ("{path|join}_seg", "{path:.+}/", "a_b_seg", "a/b_seg"),
    ],
)
def test_the_possible_paths_of_a_template_are_recognized(template, image, fits, misses):
    pattern = template_regex(template, image)
    assert pattern.fullmatch(fits)
    assert not pattern.fullmatch(misses)
