"""Tests of single requests for objects of a bucket, against an S3 server."""

import asyncio
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spinezarr.remote.errors import ChangedObjectError, NoSuchBucketError
from spinezarr.remote.object_request import ObjectRequest
from spinezarr.remote.transport import open_transport

DATA = bytes(range(256)) * 8
GENERAL = {"version_aware": False}
"""An option without effect that our own client does not support, so that s3fs is used."""


@pytest.fixture(scope="module")
def bucket(s3_server):
    name = s3_server.new_bucket()
    s3_server.client.put_object(Bucket=name, Key="folder/a", Body=DATA)
    return name


@pytest.fixture(params=["direct", "fsspec"])
def place(request, s3_server, bucket):
    general = GENERAL if request.param == "fsspec" else {}
    options = s3_server.storage_options | general
    transport, path = open_transport(f"s3://{bucket}/folder/", options)
    assert transport.uses_direct_client == (request.param == "direct")
    assert path == f"{bucket}/folder"
    return transport, path


def get(transport, path, *span):
    return bytes(asyncio.run(transport.get(path, *span)))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3000), st.integers(0, 3000))
def test_a_range_equals_the_slice_of_the_object(place, start, stop):
    transport, path = place
    assert get(transport, f"{path}/a", start, stop) == DATA[start:stop]
    assert get(transport, f"{path}/a") == DATA


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["a b", "a+b", "a%20b", "%41", "ä", "~a", "a#b", "[x]*'!", "a&b=c", "a:b"]))
def test_objects_with_any_key_can_be_read(place, s3_server, bucket, key):
    transport, path = place
    s3_server.client.put_object(Bucket=bucket, Key=f"folder/{key}", Body=key.encode())
    assert get(transport, f"{path}/{key}") == key.encode()


def test_an_object_is_read_in_one_version(place, s3_server, bucket):
    transport, path = place

    def version(*span, **asked):
        wanted = ObjectRequest(f"{path}/own", *span, limit_bytes=4096, **asked)
        return asyncio.run(transport.get_response(wanted))

    s3_server.client.put_object(Bucket=bucket, Key="folder/own", Body=DATA)
    first = version(5, 9)
    assert (bytes(first.data), first.size_bytes) == (DATA[5:9], len(DATA))
    assert abs(first.modified_s - time.time()) < 60
    assert bytes(version(7, 9, if_match=first.etag).data) == DATA[7:9]
    assert version(if_none_match=first.etag).is_not_modified
    s3_server.client.put_object(Bucket=bucket, Key="folder/own", Body=DATA[::-1])
    with pytest.raises(ChangedObjectError):
        version(5, 9, if_match=first.etag)
    second = version(if_none_match=first.etag)
    assert bytes(second.data) == DATA[::-1]
    assert second.etag != first.etag


def test_absent_and_refused_objects_raise_different_errors(place, s3_server):
    transport, path = place
    with pytest.raises(FileNotFoundError, match="no such object"):
        get(transport, f"{path}/b", 0, 5)
    with pytest.raises(OSError, match="no such bucket") as caught:
        get(transport, "bucket-that-is-not/a")
    assert type(caught.value) is NoSuchBucketError
    with pytest.raises(OSError, match=r"s3://a b/c"):
        get(transport, "a b/c")


def test_a_public_object_is_read_without_credentials(s3_server, bucket, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3_server.client.put_object(Bucket=bucket, Key="public", Body=DATA, ACL="public-read")
    for general in ({}, GENERAL):
        options = {"endpoint_url": s3_server.endpoint_url, "anon": True, **general}
        transport, path = open_transport(f"s3a://{bucket}/public", options)
        assert get(transport, path, 5, 9) == DATA[5:9]


def test_a_transport_reads_several_buckets(place, s3_server):
    other = s3_server.new_bucket()
    s3_server.client.put_object(Bucket=other, Key="a", Body=b"other")
    transport, path = place
    assert get(transport, f"{other}/a") == b"other"
    assert get(transport, f"{path}/a", 0, 5) == DATA[:5]
