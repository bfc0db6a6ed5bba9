"""Trainings on one server while the server, the trainers or the network fail."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from server_process import start_server
from timeouts import TIMEOUT_S

import spinezarr

pytestmark = pytest.mark.long

SUPPORT = Path(__file__).parents[1] / "support"
TRAIN = """if True:
    import json, sys, time
    import spinezarr
    url, rank, ranks, n = sys.argv[1], *map(int, sys.argv[2:])
    stream = spinezarr.open(url, transfer="patches").patches(24, n_samples=n, batch_size=2, seed=5)
    share = stream.shard(rank, ranks)
    for batch in share:
        sums = batch.image.sum((1, 2, 3), dtype=int) + 7 * batch.label.sum((1, 2, 3), dtype=int)
        print(json.dumps([batch.index.tolist(), sums.tolist()]), flush=True)
    assert share.client._refusal == ""
"""
"""A trainer: prints the samples of its rank, with sums that distinguish them."""


def trainer(url, rank, ranks, n):
    command = [sys.executable, "-c", TRAIN, url, str(rank), str(ranks), str(n)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def sums_of(url, n):
    stream = spinezarr.open(url).patches(24, n_samples=n, batch_size=2, seed=5)
    found = {}
    for batch in stream:
        sums = batch.image.sum((1, 2, 3), dtype=int) + 7 * batch.label.sum((1, 2, 3), dtype=int)
        found.update(zip(batch.index.tolist(), sums.tolist(), strict=True))
    return found


def samples_of(process):
    out, problems = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, problems
    assert not problems
    pairs = [json.loads(line) for line in out.splitlines()]
    return [pair for indices, sums in pairs for pair in zip(indices, sums, strict=True)]


@pytest.fixture
def server(ctspine1k_url):
    process, url = start_server(ctspine1k_url, "--workers", "2")
    yield f"{url}/ctspine1k"
    process.terminate()
    process.communicate(timeout=TIMEOUT_S)


@pytest.mark.parametrize("ranks", [2, 8])
def test_trainers_share_an_epoch(server, ctspine1k_url, ranks):
    n = 96
    running = [trainer(server, rank, ranks, n) for rank in range(ranks)]
    given = [pair for process in running for pair in samples_of(process)]
    assert len(given) == n
    assert dict(given) == sums_of(ctspine1k_url, n)


def test_a_trainer_that_dies_or_stalls_disturbs_no_other(server, ctspine1k_url):
    dying, stalling, other = (trainer(server, 0, 1, n) for n in (4000, 4000, 400))
    dying.stdout.readline()
    stalling.stdout.readline()
    stalling.send_signal(signal.SIGSTOP)
    dying.kill()
    try:
        assert dict(samples_of(other)) == sums_of(ctspine1k_url, 400)
    finally:
        stalling.kill()
        for process in (dying, stalling):
            process.communicate()


def test_trainers_lose_no_sample_if_the_server_is_killed_and_restarted(ctspine1k_url):
    process, url = start_server(ctspine1k_url)
    port = url.rpartition(":")[2]
    stream = spinezarr.open(f"{url}/ctspine1k", transfer="patches").patches(
        (20, 24, 28), n_samples=240, batch_size=2
    )
    expected = list(
        spinezarr.open(ctspine1k_url).patches((20, 24, 28), n_samples=240, batch_size=2)
    )
    given = []
    try:
        for batch in stream:
            given.append(batch)
            if len(given) in {3, 20}:
                process.kill()
                process.communicate()
                process = start_server(ctspine1k_url, port=port)[0] if len(given) == 3 else None
            if len(given) == 21 and process is None:
                time.sleep(0.5)
                process, _ = start_server(ctspine1k_url, port=port)
    finally:
        if process is not None:
            process.terminate()
            process.communicate(timeout=TIMEOUT_S)
    assert stream.client._refusal == ""
    assert [batch.index.tolist() for batch in given] == [b.index.tolist() for b in expected]
    for batch, right in zip(given, expected, strict=True):
        assert (batch.image == right.image).all()
        assert (batch.label == right.label).all()


def test_faults_of_the_network_change_no_sample(ctspine1k_url):
    code = """if True:
        import json, sys
        import numpy as np
        import spinezarr
        from proxy import Conditions, proxy
        url, path = sys.argv[1:]
        options = {"n_samples": 240, "batch_size": 2, "foreground": 0.3}
        expected = spinezarr.open(path).patches((20, 24, 28), **options)
        with proxy(upstream=url) as link:
            there = spinezarr.open(f"{link.url}/ctspine1k", transfer="patches")
            link.set(Conditions(fault_rate=0.15, stall_s=0.3))
            link.reset()
            stream = there.patches((20, 24, 28), **options)
            wrong = sum(
                not all(np.array_equal(getattr(a, name), getattr(b, name))
                        for name in ("image", "label", "index", "affine", "padding_zyx"))
                for a, b in zip(stream, expected, strict=True)
            )
            counts = link.counts()
        posts = sum(method == "POST" for method, *_ in counts.latest)
        print(json.dumps([wrong, counts.faults, posts, stream.client._refusal]))
    """
    process, url = start_server(ctspine1k_url)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, url, ctspine1k_url],
            cwd=SUPPORT, check=True, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)
    wrong, faults, posts, refused = json.loads(done.stdout)
    assert (wrong, refused) == (0, "")
    assert posts > 120
    assert np.sum([*faults.values()]) > 12
    assert {"flip", "cut", "short", "unavailable", "stall"} <= faults.keys()
