import re
import signal
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spinezarr.errors import RecipeError, RecipeLimitError
from spinezarr.recipe import Layout, PathPattern, Recipe, compile_bounded, fill_template
from spinezarr.recipe.bounded_regex import BoundedRegex, TimeBudget
from spinezarr.recipe.model import Lookup
from spinezarr.recipe.pattern import template_regex_text
from spinezarr.recipe.table import Table
from spinezarr.resources import recipe_names

NAME = "a" * 255
EVIL = [
    "(?:a|aa)+b",
    "(?:a|a)*c|(?:a|aa)+b",
    "(?=(?:a|aa)+b)a*",
    "(?!(?:a|aa)+b)a",
    "(?P<x>(?:a|aa)+)(?P=x)b",
]


def made(text):
    """Return an expression with a small time budget of its own."""
    return BoundedRegex(text, ignore_case=False, budget=TimeBudget(full_s=0.1))


@pytest.mark.parametrize("text", EVIL)
def test_the_error_of_an_endless_match_names_the_expression(text):
    with pytest.raises(RecipeLimitError) as hit:
        made(text).fullmatch(NAME)
    assert f"{text[:20]}" in str(hit.value)
    assert "'aaaaaa" in str(hit.value)
    assert "Make it simpler" in str(hit.value)


def test_an_endless_search_is_stopped():
    with pytest.raises(RecipeLimitError, match="takes too long"):
        made("(?:a|aa)+b").findall(NAME * 10)


def test_many_slow_matches_together_are_stopped():
    slow = made("(?:[^/]*_)?" + "[^/]*_" * 5 + "[^/]*x")
    names = ("_" * 60 + f"{n}x" + "y" for n in range(1_000_000))
    with pytest.raises(RecipeLimitError, match="takes too long"):
        any(map(slow.fullmatch, names))


def test_time_in_which_the_process_was_stopped_does_not_count():
    stops = []

    def stop(*_):
        stops.append(1)
        time.sleep(1)

    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        for _ in range(20):  # the timer may be coarser than a search takes
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.001)  # after a millisecond of work
            found = made("a").findall("a" * 30_000)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            assert len(found) == 30_000
            if stops:
                break
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert stops


def matched(budget, length, took_s, times):
    """Charge a budget with the time of some matches."""
    for _ in range(times):
        budget.grant(length)
        budget.spend(took_s)


def test_fast_matches_do_not_use_up_the_budget():
    budget = TimeBudget(full_s=1.0)
    matched(budget, 0, 1e-5, 200_000)
    matched(budget, 100, 1e-4, 20_000)
    with pytest.raises(TimeoutError):
        matched(budget, 20, 5e-4, 4_000)
    assert budget.grant(20) == pytest.approx(1.0), "another recipe must have a full budget"
    with pytest.raises(TimeoutError):
        matched(budget, 0, 1e-4, 20_000)


def test_expressions_share_the_budget_of_their_process():
    budgets = {id(compile_bounded(text)._budget) for text in ("a", "b")}
    assert len(budgets) == 1
    assert id(made("a")._budget) not in budgets


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_stay_far_below_the_limits(name):
    recipe = Recipe.load(name)
    characters = sum(
        len(text)
        for layout in recipe.layouts.values()
        for _, template in recipe._templates_of_files(layout)
        for text in recipe._possible_expressions(layout, template)
    )
    assert characters < 5_000


pieces = st.recursive(
    st.sampled_from(
        ["a", "b", ".", r"\d", "[ab]", "[^/]", r"\.", "a?", "b*", "a+", "a{2}", "b{1,3}"]
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda ways: f"(?:{'|'.join(ways)})"),
        inner.map(lambda text: f"(?:{text})?"),
    ),
    max_leaves=6,
)


@given(pieces, st.text("ab/.1", max_size=6), st.booleans())
@example("(?!b).*", "ab", False)
@example("(?P<x>a|b)(?P=x)", "bb", False)
@example("(?P<x>a|b)(?P=x)", "bB", True)
@example("[^/]*?(?P<n>[0-9]+)", "ab11", False)
def test_expressions_match_like_those_of_python(text, name, ignore_case):
    flags = re.DOTALL | (re.IGNORECASE if ignore_case else 0)
    expected = re.compile(text, flags).fullmatch(name)
    found = compile_bounded(text, ignore_case=ignore_case).fullmatch(name)
    assert (found is None) == (expected is None)
    assert found is None or found.groupdict() == expected.groupdict()
    assert compile_bounded(f"(?s:{text})").findall(name) == [
        match[0] for match in re.finditer(f"(?s:{text})", name)
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a{1000000000}", "its repetitions have more than"),
        ("(?:a{60}){99}", "its repetitions have more than"),
        ("(?:(?:a{20}){20}){20}", "its repetitions have more than"),
        ("a{4009}", "its repetitions have more than"),
        ("(?:" * 13 + "a" + "+)" * 13, "its repetitions have more than"),
        ("(" * 2_000 + ")" * 2_000, "nested too deeply"),
        ("(?:foo){e<=3}", "a brace must hold a count"),
        ("[[:alpha:]]", "Possible nested set"),
        ("(?x: a {90})", "the flag x"),
        ("(?#()a)b", "cannot be told apart|unbalanced"),
        (r"\p{L}", "bad escape"),
        ("(?R)", "unknown extension"),
        ("(a", "missing"),
        ("a" * 20_001, "it has 20001 characters"),
    ],
)
def test_ambiguous_or_exploding_expressions_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        compile_bounded(text)


@pytest.mark.parametrize(
    "text", [r"\d{7}", "(?:[0-9]+[.])+[0-9]+", r"[{]\{x}", "a{,3}", "[]{}]{2}"]
)
def test_usual_expressions_are_accepted(text):
    assert compile_bounded(text).text == text


@pytest.mark.parametrize(
    "make",
    [
        lambda text: Layout(description="", image=(f"{{scan:{text}}}.nii",)),
        lambda text: Lookup(inputs="scan", values={f"{{x:{text}}}": "y"}),
        lambda text: Table(files=("t.csv",), scan_regex=text),
        lambda text: Layout(description="", image=("{scan}.nii",), sidecar_keys=(f"{{x:{text}}}",)),
    ],
)
@pytest.mark.parametrize("text", ["(?:a{60}){99}", "a" * 20_001])
def test_bad_expressions_are_refused_wherever_a_recipe_may_hold_one(make, text):
    with pytest.raises(ValueError, match=r"its repetitions have|has 200\d\d characters"):
        make(text)


def test_the_text_of_a_filled_template_is_limited():
    assert len(fill_template("{a}" * 8, {"a": "x" * 1_000})) == 8_000
    with pytest.raises(RecipeLimitError, match=r"'\{a\}\{a\}.* gives a text of 9000 char.* 8192"):
        fill_template("{a}" * 9, {"a": "x" * 1_000})


def test_the_text_of_nested_lookups_is_limited():
    layout = {"description": "", "image": ("{l0}.nii",)}
    lookups = {f"l{n + 1}": Lookup(inputs=(f"l{n}",), values={"{x}": "{x}" * 9}) for n in range(20)}
    recipe = Recipe(
        name="n", title="", license="", citation="", layouts={"a": layout}, lookups=lookups,
        labels={"scheme": "canonical", "state": "unknown"},
    )  # fmt: skip
    with pytest.raises(RecipeLimitError, match="gives a text of"):
        recipe.resolve_lookups({"l0": "abc"})


def test_the_text_of_nested_back_references_is_limited():
    image = "{a:xx}" + "".join(
        f"{{{b}:(?P={a})(?P={a})}}"
        for a, b in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
    )
    with pytest.raises(RecipeLimitError, match=r"the expression of .* is too long"):
        template_regex_text("{p}", image)


RECIPE = """\
name: mine
title: T
license: L
citation: C
labels: {scheme: canonical, state: unknown}
layouts:
  only:
    description: a
    image: IMAGE
    label: LABEL
"""


def load(tmp_path, image, label, more=""):
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.replace("IMAGE", image).replace("LABEL", label) + more)
    return Recipe.load(str(path))


def test_too_many_pairs_of_image_and_mask_templates_are_refused(tmp_path):
    images = ", ".join(f'"{{scan:{"x" * 90}}}{n}.nii"' for n in range(200))
    labels = ", ".join(f'"{{scan}}{n}.nii"' for n in range(200))
    with pytest.raises(RecipeError, match=r"mine\.yaml, line 8, layouts\.only describes too many"):
        load(tmp_path, f"[{images}]", f"[{labels}]")


def test_too_large_lookups_are_refused(tmp_path):
    values = ", ".join(f'"{"x" * 90}{n}": "{"y" * 90}{n}"' for n in range(500))
    lookups = f"lookups: {{l: {{inputs: scan, values: {{{values}}}}}}}"
    with pytest.raises(RecipeError, match=r"layouts\.only describes too many.*lookup 'l' have"):
        load(tmp_path, '"{scan}.nii"', '"{l}.nii"', lookups)


@pytest.mark.parametrize("name", ["../x.csv", "/etc/passwd", "a/b", "..", "", "a\\\\b"])
@pytest.mark.parametrize("key", ["card: NAME", "tables: {t: {shipped: NAME}}"])
def test_a_file_next_to_a_recipe_must_be_a_plain_name(tmp_path, name, key):
    with pytest.raises(RecipeError, match=r"mine\.yaml, line \d+, .*is no name of a file next to"):
        load(tmp_path, '"{scan}.nii"', '"{scan}_m.nii"', key.replace("NAME", f'"{name}"'))


def test_the_error_of_a_slow_pattern_names_the_recipe_file(tmp_path):
    from spinezarr.ingestion.discovery.discover import discover  # noqa: PLC0415  heavy

    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / ("a" * 250 + ".nii")).touch()
    recipe = load(tmp_path, '"{scan:(?:a|aa)+}b.nii"', '"{scan}_m.nii"')
    with pytest.raises(RecipeLimitError, match=r"mine\.yaml: the regular expression .* too long"):
        discover(recipe, str(raw))


def test_too_long_patterns_are_refused(tmp_path):
    assert PathPattern("a" * 2_000).match("b") is None
    with pytest.raises(ValueError, match=r"the pattern 'aaa.*has 2001 characters"):
        PathPattern("a" * 2_001)
