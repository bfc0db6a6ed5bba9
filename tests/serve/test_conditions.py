"""Tests of ranges and conditions, as RFC 9110 specifies them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.serve.conditions import check_conditions

TAG = '"3f-a"'
SIZE = 10

RANGES = {
    # one range
    "bytes=0-0": (206, 0, 1),
    "bytes=0-9": (206, 0, 10),
    "bytes=3-5": (206, 3, 6),
    "bytes=9-9": (206, 9, 10),
    "bytes=0-10": (206, 0, 10),
    "bytes=0-99999999999999999": (206, 0, 10),
    "bytes=007-008": (206, 7, 9),
    # open end
    "bytes=0-": (206, 0, 10),
    "bytes=9-": (206, 9, 10),
    # the last bytes
    "bytes=-1": (206, 9, 10),
    "bytes=-10": (206, 0, 10),
    "bytes=-11": (206, 0, 10),
    "bytes=-99999999999999999": (206, 0, 10),
    # the unit is not case sensitive, spaces are as in lists
    "Bytes=1-2": (206, 1, 3),
    "BYTES=-2": (206, 8, 10),
    "bytes= 1-2": (206, 1, 3),
    "bytes=1-2 ": (206, 1, 3),
    "bytes=\t1-2": (206, 1, 3),
    # ranges without a byte
    "bytes=10-": (416, 0, 0),
    "bytes=10-10": (416, 0, 0),
    "bytes=11-20": (416, 0, 0),
    "bytes=-0": (416, 0, 0),
    "bytes=-00": (416, 0, 0),
    # not ranges
    "bytes=": (416, 0, 0),
    "bytes=-": (416, 0, 0),
    "bytes=5-2": (416, 0, 0),
    "bytes=a-b": (416, 0, 0),
    "bytes=1": (416, 0, 0),
    "bytes=1-2-3": (416, 0, 0),
    "bytes=--1": (416, 0, 0),
    "bytes=+1-2": (416, 0, 0),
    "bytes=1.0-2": (416, 0, 0),
    "bytes=0x1-2": (416, 0, 0),
    "bytes=1-2;": (416, 0, 0),
    "bytes=\u0661-": (416, 0, 0),
    "bytes=" + "9" * 20 + "-": (416, 0, 0),
    "bytes=0-" + "9" * 20: (416, 0, 0),
    "bytes=-" + "9" * 20: (416, 0, 0),
    "bytes=" + "1" * 8000: (416, 0, 0),
    # other units, or several ranges, give the whole
    "items=0-1": (200, 0, 10),
    "bytes 0-1": (200, 0, 10),
    "byte=0-1": (200, 0, 10),
    "=0-1": (200, 0, 10),
    "": (200, 0, 10),
    "none": (200, 0, 10),
    "bytes=0-1,3-4": (200, 0, 10),
    "bytes=0-0, -1": (200, 0, 10),
    "bytes=,": (200, 0, 10),
    "bytes=0-1,": (200, 0, 10),
}


@pytest.mark.parametrize("asked", RANGES)
def test_a_range_gives_the_expected_status_and_bytes(asked):
    found = check_conditions("GET", {"range": asked}, etag=TAG, size_bytes=SIZE)
    assert (found.status.value, found.start, found.stop) == RANGES[asked]


@pytest.mark.parametrize("asked", RANGES)
def test_a_range_of_a_head_request_is_ignored(asked):
    found = check_conditions("HEAD", {"range": asked}, etag=TAG, size_bytes=SIZE)
    assert (found.status.value, found.start, found.stop) == (200, 0, 10)


@pytest.mark.parametrize("asked", ["bytes=0-", "bytes=0-0", "bytes=-1", "bytes=1-"])
def test_every_range_of_an_empty_file_is_refused(asked):
    assert check_conditions("GET", {"range": asked}, etag=TAG, size_bytes=0).status == 416


@given(st.integers(0, 60), st.integers(0, 70), st.integers(0, 70), st.sampled_from("ab-"))
def test_a_range_equals_the_slice_of_the_file(size, first, last, form):
    data = bytes(range(size))
    text, expected = {
        "a": (f"bytes={first}-{last}", data[first : last + 1]),
        "b": (f"bytes={first}-", data[first:]),
        "-": (f"bytes=-{last}", data[max(size - last, 0) :]),
    }[form]
    found = check_conditions("GET", {"range": text}, etag=TAG, size_bytes=size)
    assert found.status == (206 if expected else 416)
    assert data[found.start : found.stop] == expected


CONDITIONS = {
    # If-Match compares strongly, and comes first
    ("if-match", TAG): 206,
    ("if-match", "*"): 206,
    ("if-match", f'"x", {TAG}'): 206,
    ("if-match", f",, {TAG} ,"): 206,
    ("if-match", f"W/{TAG}"): 412,
    ("if-match", '"x"'): 412,
    ("if-match", "3f-a"): 412,
    ("if-match", ""): 412,
    ("if-match", f"{TAG} {TAG}"): 412,
    ("if-match", f"{TAG}x"): 412,
    # If-None-Match compares weakly
    ("if-none-match", TAG): 304,
    ("if-none-match", f"W/{TAG}"): 304,
    ("if-none-match", "*"): 304,
    ("if-none-match", f'"x",W/{TAG}'): 304,
    ("if-none-match", '"x"'): 206,
    ("if-none-match", ""): 206,
    ("if-none-match", "3f-a"): 206,
    # If-Range is a strong tag, or the whole
    ("if-range", TAG): 206,
    ("if-range", f" {TAG} "): 206,
    ("if-range", f"W/{TAG}"): 200,
    ("if-range", '"x"'): 200,
    ("if-range", "Sun, 29 Nov 2026 06:41:56 GMT"): 200,
    ("if-range", "*"): 200,
    ("if-range", ""): 200,
}


@pytest.mark.parametrize(("name", "value"), CONDITIONS)
def test_a_condition_gives_the_expected_status(name, value):
    headers = {"range": "bytes=1-2", name: value}
    assert (
        check_conditions("GET", headers, etag=TAG, size_bytes=SIZE).status
        == CONDITIONS[name, value]
    )


def test_if_match_is_checked_before_if_none_match_before_range():
    both = {"if-match": '"x"', "if-none-match": TAG, "range": "bytes=90-"}
    assert check_conditions("GET", both, etag=TAG, size_bytes=SIZE).status == 412
    assert (
        check_conditions("GET", {**both, "if-match": TAG}, etag=TAG, size_bytes=SIZE).status == 304
    )
    assert check_conditions("HEAD", {"if-none-match": TAG}, etag=TAG, size_bytes=SIZE).status == 304


@pytest.mark.parametrize("text", ['"a",' * 2000, ", " * 4000 + "x", '"' * 8000, "W/" * 4000])
def test_long_headers_are_parsed_in_linear_time(text):
    """The grammar of a list of tags is unambiguous, so parsing it never backtracks."""
    for name in ("if-match", "if-none-match", "if-range", "range"):
        check_conditions("GET", {name: text}, etag=TAG, size_bytes=SIZE)
