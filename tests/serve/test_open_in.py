"""Other programs that open a scan: links that can be followed, and code that runs."""

import json

import numpy as np
import pytest
from http_client import fetch

import spinezarr
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.serve.tokens import new_token
from spinezarr.view.open_in import ServedScan, open_in_options

PATH = "/v1/ctspine1k/scans/liver_0/open-in"


@pytest.fixture(scope="module", params=["open", "token"])
def server(request, ctspine1k_url, tmp_path_factory):
    """Return the server's URL, and the token that it requires, if any."""
    token = file = None
    if request.param == "token":
        file = tmp_path_factory.mktemp("tokens") / "tokens"
        token = new_token(file, "client")
    settings = ServeSettings(paths=(ctspine1k_url,), token_file=file and str(file))
    with BackgroundServer(settings) as running:
        yield running.url, token


def options_at(url, token, **headers):
    asked = {"authorization": f"Bearer {token}"} if token else {}
    status, fields, body = fetch(f"{url}{PATH}", **asked, **headers)
    assert (status, fields["cache-control"]) == (200, "no-store")
    return {option["name"]: option for option in json.loads(body)["options"]}


def test_every_link_can_be_followed(server):
    url, token = server
    asked = {"authorization": f"Bearer {token}"} if token else {}
    links = [
        option["text"] for option in options_at(url, token).values() if option["kind"] == "link"
    ]
    assert len(links) == 3
    for link in links:
        assert link.startswith("/")
        assert not link.startswith("//")
        assert fetch(f"{url}{link}", "HEAD", **asked)[0] in {200, 303}


@pytest.mark.parametrize("name", ["Python", "xarray"])
def test_every_code_sample_runs_unchanged(server, store, name):
    url, token = server
    code = options_at(url, token)[name]["text"]
    assert ("TOKEN" in code) == (token is not None)
    namespace = {}
    exec(code.replace("TOKEN", token or ""), namespace)  # noqa: S102  that is the test
    image = namespace["scan"].image
    np.testing.assert_array_equal(image.values, store.scan("liver_0").image.values)


def test_code_samples_name_the_server_by_the_requested_host(ctspine1k_url, tmp_path):
    token = new_token(tmp_path / "tokens", "client")
    settings = ServeSettings(paths=(ctspine1k_url,), token_file=str(tmp_path / "tokens"))
    with BackgroundServer(settings) as running:
        asked = {"host": "data.example.org", "x_forwarded_proto": "https"}
        options = options_at(running.url, token, **asked)
        ome = "https://data.example.org/ome/ctspine1k/liver_0.ome.zarr"
        assert options["napari"]["text"] == f"napari --plugin napari-ome-zarr {ome}"
        assert options["3D Slicer"]["text"] == ome.replace("liver_0", "itk/liver_0")
        assert "signed URL" in options["napari"]["hint"]
        headers = {"authorization": f"Bearer {token}", "host": "a b"}
        assert fetch(f"{running.url}{PATH}", **headers)[0] == 400


def test_hostile_names_run_no_command_when_pasted():
    """Whatever a store and a scan are called, a line pasted into a shell is a single command."""
    for name in ("a b", "x;rm -rf ~", "$(id)", "`id`", "'q'", '"', "ä/ö", "-v"):
        scan = ServedScan("http://h", "s t", name, has_label=False, needs_token=True)
        options = {option.name: option.text for option in open_in_options(scan)}
        assert set(options["napari"]) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%:/ '"
        )
        assert "NIfTI, mask" not in options
        for code in (options["Python"], options["xarray"]):
            compile(code, "pasted", "exec")
            assert code.count("\n") == 5 - (code == options["xarray"])


def test_the_mask_is_offered_only_if_there_is_one(server):
    assert "NIfTI, mask" in options_at(*server)


def test_the_served_store_opens_by_its_short_url(server):
    url, token = server
    if token is None:
        assert spinezarr.open(f"{url}/ctspine1k").scan("liver_0").sizes["x"]
