"""The fault proxy tells S3 clients exactly the lies it was told to tell, and counts them."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from jobs.demo.local_s3 import LocalS3
from tests.chaos.proxy import Fault, FaultProxy, Rule

CONTENT = bytes(range(256)) * 64


@pytest.fixture
def proxy(s3: LocalS3) -> Iterator[FaultProxy]:
    with FaultProxy(s3.endpoint_url) as proxy:
        yield proxy


def impatient(s3: LocalS3, proxy: FaultProxy) -> Any:
    """Give an S3 client behind the proxy that tries everything once."""
    return botocore.session.get_session().create_client(
        "s3",
        endpoint_url=proxy.url,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        config=Config(retries={"total_max_attempts": 1}, read_timeout=5),
    )


@pytest.fixture
def client(s3: LocalS3, proxy: FaultProxy) -> Iterator[Any]:
    with closing(impatient(s3, proxy)) as client:
        yield client


def put(client: Any, bucket: str, key: str, **options: str) -> None:
    client.put_object(Bucket=bucket, Key=key, Body=CONTENT, **options)


def get(client: Any, bucket: str, key: str) -> bytes:
    content: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    return content


def test_without_rules_everything_passes_and_the_signature_stays_valid(
    proxy: FaultProxy, client: Any, bucket: str
) -> None:
    put(client, bucket, "中 文/1", IfNoneMatch="*")
    assert get(client, bucket, "中 文/1") == CONTENT
    assert client.head_object(Bucket=bucket, Key="中 文/1")["ContentLength"] == len(CONTENT)
    assert [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]] == ["中 文/1"]
    with pytest.raises(ClientError, match="PreconditionFailed"):
        put(client, bucket, "中 文/1", IfNoneMatch="*")
    client.delete_object(Bucket=bucket, Key="中 文/1")
    assert (proxy.requests, proxy.strikes) == (6, [])


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.INTERNAL_ERROR, "InternalError"),
        (Fault.SLOW_DOWN, "SlowDown"),
        (Fault.ACCESS_DENIED, "AccessDenied"),
        (Fault.EXPIRED_TOKEN, "ExpiredToken"),
    ],
)
def test_an_error_is_answered_in_place_of_the_server(
    proxy: FaultProxy, client: Any, bucket: str, fault: Fault, code: str
) -> None:
    proxy.set_rules([Rule(fault, count=1)])
    with pytest.raises(ClientError, match=code):
        put(client, bucket, "key")
    with pytest.raises(ClientError, match="NoSuchKey"):
        get(client, bucket, "key")
    assert proxy.hits == {fault.value: 1}


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATED, Fault.STALLED])
def test_a_broken_answer_is_an_error_of_the_client_and_passes(
    proxy: FaultProxy, client: Any, bucket: str, fault: Fault
) -> None:
    put(client, bucket, "key")
    proxy.set_rules([Rule(fault, count=1, seconds=0.1)])
    with pytest.raises((BotoCoreError, OSError)):
        get(client, bucket, "key")
    assert get(client, bucket, "key") == CONTENT
    assert proxy.hits == {fault.value: 1}


def test_a_lost_response_is_one_of_a_request_that_was_carried_out(proxy: FaultProxy, client: Any, bucket: str) -> None:
    proxy.set_rules([Rule(Fault.LOST_RESPONSE, frozenset({"PUT"}), path="/key", count=1)])
    with pytest.raises(BotoCoreError):
        put(client, bucket, "key", IfNoneMatch="*")
    assert get(client, bucket, "key") == CONTENT
    with pytest.raises(ClientError, match="PreconditionFailed"):
        put(client, bucket, "key", IfNoneMatch="*")
    assert [(strike.method, strike.path) for strike in proxy.strikes] == [("PUT", f"/{bucket}/key")]


def test_what_has_nothing_to_lose_is_passed_on_and_not_counted(proxy: FaultProxy, client: Any, bucket: str) -> None:
    proxy.set_rules([Rule(Fault.TRUNCATED, count=1)])
    put(client, bucket, "key")
    assert not proxy.hits
    with pytest.raises((BotoCoreError, OSError)):
        get(client, bucket, "key")
    assert proxy.hits == {Fault.TRUNCATED.value: 1}


def test_a_slow_answer_is_complete(proxy: FaultProxy, client: Any, bucket: str) -> None:
    proxy.set_rules([Rule(Fault.SLOW, seconds=0.05)])
    put(client, bucket, "key")
    assert get(client, bucket, "key") == CONTENT
    assert proxy.hits == {Fault.SLOW.value: 2}


def outcomes(client: Any, bucket: str, requests: int) -> list[bool]:
    """Return which of these requests were answered."""
    answered = []
    for _ in range(requests):
        try:
            client.head_bucket(Bucket=bucket)
        except ClientError:
            answered.append(False)
        else:
            answered.append(True)
    return answered


def test_skip_count_and_burst_choose_the_requests(proxy: FaultProxy, client: Any, bucket: str) -> None:
    proxy.set_rules([Rule(Fault.SLOW_DOWN, skip=2, count=3)])
    assert outcomes(client, bucket, 7) == [True, True, False, False, False, True, True]
    proxy.set_rules([Rule(Fault.SLOW_DOWN, methods=frozenset({"GET"}))])
    assert all(outcomes(client, bucket, 3))


def test_the_same_seed_strikes_the_same_requests(s3: LocalS3, client: Any, bucket: str, proxy: FaultProxy) -> None:
    rules = [Rule(Fault.SLOW_DOWN, probability=0.2, burst=3)]
    proxy.set_rules(rules)
    first = outcomes(client, bucket, 60)
    assert 10 < first.count(False) < 50
    with FaultProxy(s3.endpoint_url) as again, closing(impatient(s3, again)) as elsewhere:
        again.set_rules(rules)
        assert outcomes(elsewhere, bucket, 60) == first


def test_a_server_that_is_gone_is_a_reset(s3: LocalS3) -> None:
    with FaultProxy("http://127.0.0.1:1") as proxy, closing(impatient(s3, proxy)) as client:
        with pytest.raises(BotoCoreError):
            client.list_buckets()
        assert proxy.requests == 1
