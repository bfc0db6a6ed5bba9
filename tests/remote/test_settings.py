import math
from dataclasses import fields, replace

import pytest

import spinezarr
from spinezarr.errors import UsageError
from spinezarr.remote.settings import RemoteSettings

MAY_BE_ZERO = {"least_gap_bytes", "most_gap_bytes", "whole_shard_bytes"}


@pytest.mark.parametrize("name", [field.name for field in fields(RemoteSettings)])
def test_settings_out_of_range_are_refused(name):
    for value in (-1, math.inf, math.nan) if name not in MAY_BE_ZERO else (-1,):
        with pytest.raises(UsageError, match=f"{name} {value}: must"):
            replace(RemoteSettings(), **{name: value})
    if name in MAY_BE_ZERO:
        assert getattr(RemoteSettings(**{"least_gap_bytes": 0, name: 0}), name) == 0
    else:
        with pytest.raises(UsageError, match=f"{name} 0: must be a number above 0"):
            replace(RemoteSettings(), **{name: 0})


@pytest.mark.parametrize(
    ("least", "most"),
    [("least_gap_bytes", "most_gap_bytes"), ("first_backoff_s", "longest_backoff_s")],
)
def test_a_minimum_above_its_maximum_is_refused(least, most):
    with pytest.raises(UsageError, match=f"{least} 9: must not be above {most} 8"):
        RemoteSettings(**{least: 9, most: 8})


def test_settings_reach_the_requests_of_a_store(tmp_path, proxies, ctspine1k_url):
    with proxies.proxy(folder=tmp_path) as served:
        remote = RemoteSettings(requests_in_flight=3, deadline_s=60)
        (tmp_path / "one.zarr").symlink_to(ctspine1k_url)
        store = spinezarr.open(f"{served.url}/one.zarr", remote=remote)
        assert store._reader.objects.settings is remote
