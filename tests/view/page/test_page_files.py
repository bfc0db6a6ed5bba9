"""Tests of the files of the page, and of its content security policy."""

import gzip
from importlib.resources import files

import pytest
from http_client import fetch

from spinezarr.serve.http import Request
from spinezarr.serve.page_files import answer_page_file

PAGE = files("spinezarr.view").joinpath("page")


def test_files_equal_those_of_the_package(served):
    for path, name in [("/", "list.html"), ("/scan/any/any", "scan.html")] + [
        (f"/page/{name}", name) for name in ("page.css", "common.js", "icon.svg")
    ]:
        status, fields, body = fetch(served + path)
        assert (status, body) == (200, PAGE.joinpath(name).read_bytes())
        packed = fetch(served + path, accept_encoding="gzip, br")
        if "content-encoding" in packed[1]:
            assert packed[1]["etag"] != fields["etag"]
            assert gzip.decompress(packed[2]) == body
        else:
            assert packed[2] == body
        assert fetch(served + path, if_none_match=fields["etag"])[0] == 304
        assert fetch(served + path, "HEAD")[2] == b""


@pytest.mark.parametrize("name", ["none.js", "..%2f__init__.py", "%2e%2e/facts.py", "", "__init__"])
def test_no_other_file_is_served(served, name):
    assert fetch(f"{served}/page/{name}")[0] == 404


def test_the_policy_allows_nothing_from_other_hosts(served):
    policy = fetch(served)[1]["content-security-policy"]
    words = {part.split()[0]: part.split()[1:] for part in policy.split(";")}
    assert words["default-src"] == ["'none'"]
    assert not any(place.startswith(("http", "*")) for places in words.values() for place in places)
    assert "'unsafe-inline'" not in policy
    assert "'unsafe-eval'" not in policy


def test_a_client_that_refuses_gzip_gets_the_file_uncompressed():
    request = Request("GET", "/", headers={"accept-encoding": "gzip;q=0, *;q=0.5"})
    assert "content-encoding" not in answer_page_file(request, "page.css").headers


def test_a_page_opens_without_errors(page, served):
    page.goto(served)
    assert page.locator(".home").inner_text() == "spinezarr"


def test_a_scan_page_opens_without_errors(page, served):
    page.goto(f"{served}/scan/ctspine1k/liver_0")
    page.wait_for_function("() => performance.getEntriesByName('first-view').length")
    assert page.locator("h1").inner_text() == "liver_0"
