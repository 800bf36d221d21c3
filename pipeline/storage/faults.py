"""Which storage errors pass by themselves, which never do, and how each is told to a person."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import tenacity

from pipeline.errors import PipelineError

T = TypeVar("T")

TRANSIENT_CODES = frozenset(
    [
        "SlowDown",
        "ServiceUnavailable",
        "InternalError",
        "RequestTimeout",
        "RequestTimeTooSkewed",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "OperationAborted",
        "ConditionalRequestConflict",
        "BadDigest",
        "IncompleteBody",
        "500",
        "502",
        "503",
        "504",
        "429",
        "409",
    ]
)
"""S3 error codes after which the same request may succeed."""

TRANSIENT_ERRNOS = frozenset({errno.EBUSY, errno.EINTR, errno.EAGAIN, errno.ETIMEDOUT, errno.EREMOTEIO})

TRANSIENT_NAMES = frozenset(
    [
        "FSTimeoutError",
        "ClientPayloadError",
        "ServerDisconnectedError",
        "ClientOSError",
        "IncompleteReadError",
        "ResponseStreamingError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ConnectionClosedError",
        "EndpointConnectionError",
        "HTTPClientError",
        "ClosedError",
        "AioReadTimeoutError",
    ]
)
"""Exceptions of the HTTP clients, by name: their packages are not imported where no S3 is used."""

DEADLINE_SECONDS = 300.0
"""How long one operation is tried against transient faults before the run gives up on it."""


def s3_code(error: BaseException) -> str | None:
    """Return the S3 error code behind an exception of s3fs or botocore, or None."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            code = response.get("Error", {}).get("Code")
            return str(code) if code else None
    return None


def is_precondition_failure(error: BaseException) -> bool:
    """Whether a conditional PUT found the object there already."""
    return isinstance(error, FileExistsError) or s3_code(error) in ("PreconditionFailed", "412")


def is_transient(error: BaseException) -> bool:
    """Whether the same operation, tried again later, may succeed."""
    if isinstance(error, PipelineError | FileNotFoundError | PermissionError | FileExistsError):
        return False
    if s3_code(error) in TRANSIENT_CODES:
        return True
    for link in _chain(error):
        if isinstance(link, ConnectionError | TimeoutError) or type(link).__name__ in TRANSIENT_NAMES:
            return True
        if isinstance(link, OSError) and link.errno in TRANSIENT_ERRNOS:
            return True
    return False


def patiently(operation: Callable[[], T], deadline_seconds: float = DEADLINE_SECONDS) -> T:
    """Call until it succeeds, fails for good, or the deadline is over; full jitter between the tries."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=20),
        stop=tenacity.stop_after_delay(deadline_seconds),
        reraise=True,
    )
    return retrying(operation)


@contextmanager
def told_as(error_class: type[PipelineError], action: str, uri: str) -> Iterator[None]:
    """Turn what a store raises into one sentence that says what was tried, where, and what to do.

    Args:
        error_class: SourceError when reading input, StorageError at the output.
        action: an infinitive: `list the source`, `write the output`.
        uri: where.
    """
    try:
        yield
    except PipelineError:
        raise
    except ValueError as error:
        if "Protocol not known" not in str(error):
            raise
        raise error_class(f"cannot {action} {uri}: {_sentence(error, uri)}") from error
    except (OSError, ImportError) as error:
        raise error_class(f"cannot {action} {uri}: {_sentence(error, uri)}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in (
            "botocore",
            "aiobotocore",
            "aiohttp",
            "fsspec",
            "s3fs",
            "gcsfs",
        ):
            raise error_class(f"cannot {action} {uri}: {_sentence(error, uri)}") from error
        raise


def _sentence(error: BaseException, uri: str) -> str:
    code, name = s3_code(error), type(error).__name__
    if isinstance(error, ImportError):
        return f"this kind of store needs a package that is not installed: {error}"
    if "Protocol not known" in str(error):
        return f"no store is known by {uri.partition('://')[0]}://; s3://, gs://, file:// and plain paths are"
    if code in ("NoSuchBucket",) or (isinstance(error, FileNotFoundError) and "bucket" in str(error).lower()):
        return f"the bucket {_bucket(uri)} does not exist; check its name, or create it"
    if isinstance(error, PermissionError):
        detail = f" ({code})" if code else ""
        return f"access denied{detail}; check the credentials in the environment and the rights on this address"
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
    if any(type(link).__name__ in ("EndpointConnectionError", "ClientConnectorError") for link in _chain(error)):
        return "no answer from the storage endpoint; check AWS_ENDPOINT_URL and that the server is up"
    if isinstance(error, FileNotFoundError):
        return "there is nothing at this address"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if code is None else f"{error.strerror} ({code})"
    return f"{name}: {' '.join(str(error).split())}"


def _bucket(uri: str) -> str:
    return uri.split("://", 1)[-1].split("/", 1)[0]


def _chain(error: BaseException | None) -> Iterator[Any]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
