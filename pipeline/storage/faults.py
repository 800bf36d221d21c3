"""Which storage errors pass by themselves, which never do, and how each is told to a person."""

import errno
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import fsspec
import tenacity

from pipeline.errors import PipelineError, in_a_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRANSIENT_CODES = frozenset(
    [
        "SlowDown",
        "ServiceUnavailable",
        "InternalError",
        "RequestTimeout",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "OperationAborted",
        "ConditionalRequestConflict",
        "BadDigest",
        "IncompleteBody",
        "XAmzContentSHA256Mismatch",
        "500",
        "502",
        "503",
        "504",
        "429",
        "409",
    ]
)
"""S3 error codes after which the same request may succeed; the numbers are answers without a body, as to HEAD."""

TRANSIENT_STATUSES = frozenset({429, 500, 502, 503, 504})
"""HTTP answers of which the same is true, whatever code a gateway puts into them."""

EXPIRED_CODES = frozenset(
    ["ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "InvalidToken", "400"]
)
"""S3 error codes after which a fresh credential may succeed. A HEAD is answered 400 without saying why."""

CREDENTIAL_SOURCE_NAMES = frozenset(["CredentialRetrievalError", "MetadataRetrievalError"])
"""botocore's exceptions when the program or the service that gives credentials has failed."""

TRANSIENT_ERRNOS = frozenset({errno.EBUSY, errno.EINTR, errno.EAGAIN, errno.ETIMEDOUT, errno.EREMOTEIO})

TRANSIENT_NAMES = frozenset(
    [
        "HTTPClientError",
        "ClientConnectionError",
        "ClientPayloadError",
        "IncompleteReadError",
        "ResponseParserError",
        "FSTimeoutError",
    ]
)
"""Roots of what the HTTP clients raise when an answer does not come or is cut off, by name: their packages are not
imported where no S3 is used."""

FINAL_NAMES = frozenset(["SSLError", "ClientSSLError", "InvalidProxiesConfigError"])
"""Their kin that does not pass: a certificate that is not trusted."""

DEADLINE_SECONDS = 300.0
"""How long one operation is tried against transient faults before the run gives up on it. One request may take four
attempts of the client's own, at most 30 s of silence each, so that no operation outlives 8 minutes by it."""

WAIT = tenacity.wait_random_exponential(multiplier=0.5, max=20)
"""Full jitter: many workers that were refused together must not come back together."""

RENEWALS = 3
"""How often one operation asks for a fresh credential; the old one may come back while it is being replaced."""

RETRIES: Counter[str] = Counter()
"""How often this process has tried something again, by the kind of fault."""

_renewing = threading.Lock()


def s3_code(error: BaseException) -> str | None:
    """Return the S3 error code behind an exception of s3fs or botocore, or None."""
    return _s3_answer(error)[0]


def _s3_answer(error: BaseException) -> tuple[str | None, int]:
    """Return the error code and the HTTP status of the answer behind an exception; None and 0 without an answer."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            code = response.get("Error", {}).get("Code")
            return str(code) if code else None, int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return None, 0


def is_precondition_failure(error: BaseException) -> bool:
    """Whether a conditional request found another object there, or one where there should be none."""
    return isinstance(error, FileExistsError) or s3_code(error) in ("PreconditionFailed", "412")


def is_expired(error: BaseException) -> bool:
    """Whether a fresh credential may help: the store refuses this one for its age, or its source failed."""
    if isinstance(error, PipelineError):
        return False
    code = s3_code(error)
    if code is not None:
        return code in EXPIRED_CODES
    return any(
        _names(link) & CREDENTIAL_SOURCE_NAMES or (isinstance(link, RuntimeError) and "still expired" in str(link))
        for link in _chain(error)
    )


def is_transient(error: BaseException) -> bool:
    """Whether the same operation, tried again later, may succeed."""
    if isinstance(error, PipelineError):
        return False
    code, status = _s3_answer(error)
    if code is not None:
        return code in TRANSIENT_CODES or status in TRANSIENT_STATUSES
    if isinstance(error, FileNotFoundError | PermissionError | FileExistsError):
        return False
    for link in _chain(error):
        if _names(link) & FINAL_NAMES:
            return False
        if isinstance(link, ConnectionError | TimeoutError) or _names(link) & TRANSIENT_NAMES:
            return True
        if isinstance(link, OSError) and link.errno in TRANSIENT_ERRNOS:
            return True
    return False


def patiently(
    operation: Callable[[], T], filesystem: fsspec.AbstractFileSystem, deadline_seconds: float = DEADLINE_SECONDS
) -> T:
    """Call until it succeeds, fails for good, or the deadline is over; full jitter between the tries.

    Args:
        operation: asks something of the filesystem; must bear being asked twice.
        filesystem: gets a fresh credential when the store says that the old one has expired.
        deadline_seconds: no try begins later than this.
    """
    renewals, is_stale, session = 0, False, None

    def may_pass(error: BaseException) -> bool:
        nonlocal renewals, is_stale
        is_stale = "s3" in filesystem.protocol and is_expired(error) and renewals < RENEWALS
        renewals += is_stale
        return is_stale or is_transient(error)

    def attempt() -> T:
        nonlocal session
        if is_stale:
            renew_credentials(filesystem, session)
        session = getattr(filesystem, "session", None)
        return operation()

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(may_pass),
        wait=WAIT,
        stop=tenacity.stop_before_delay(deadline_seconds),
        before_sleep=_count_retry,
        reraise=True,
    )
    return retrying(attempt)


def _count_retry(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    kind = (s3_code(error) or type(error).__name__) if error else "unknown"
    RETRIES[kind] += 1
    wait_seconds = state.next_action.sleep if state.next_action else 0.0
    logger.warning("event=storage_retry kind=%s attempt=%d wait_seconds=%.2f", kind, state.attempt_number, wait_seconds)


def renew_credentials(filesystem: fsspec.AbstractFileSystem, refused: object) -> None:
    """Read the credential anew from where it came from: environment, profile, process, role.

    The filesystem itself stays, and with it every file that is open on it; its next request is signed anew.

    Args:
        filesystem: of s3fs.
        refused: its session at the time; if it has another one now, another thread was here before.
    """
    with _renewing:
        if refused is None or filesystem.session is refused:
            filesystem.connect(refresh=True)


CLIENT_PACKAGES = ("botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs", "gcsfs")
"""Whose exceptions are about the store and not about this program."""


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
        if type(error).__module__.partition(".")[0] in CLIENT_PACKAGES or is_expired(error):
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
    if is_expired(error) and code != "400":
        return f"the credential has expired ({code or name}) and its source gives no fresh one; renew it and run again"
    if code == "RequestTimeTooSkewed":
        return "the clock of this machine is not that of the store, which refuses what it signs; set the clock"
    if isinstance(error, PermissionError):
        detail = f" ({code})" if code else ""
        return f"access denied{detail}; check the credentials in the environment and the rights on this address"
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
    if any(type(link).__name__ in ("EndpointConnectionError", "ClientConnectorError") for link in _chain(error)):
        return "no answer from the storage endpoint; check AWS_ENDPOINT_URL and that the server is up"
    if isinstance(error, FileNotFoundError):
        return "there is nothing at this address"
    if code == "400":
        return "the store refuses the request and does not say why; an expired or malformed credential does this"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if code is None else f"{error.strerror} ({code})"
    return f"{name}: {in_a_line(error)}"


def _bucket(uri: str) -> str:
    return uri.split("://", 1)[-1].split("/", 1)[0]


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _chain(error: BaseException | None) -> Iterator[Any]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
