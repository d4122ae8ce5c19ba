"""How we talk to storage: the file system behind a URL, and what its errors mean to a user.

Endpoint, credentials, region, number of attempts are the client's own affair, by the AWS environment variables and
files. So are retries: botocore asks again after 429, 500, 502, 503, 504 and broken connections, with exponential
backoff and jitter; here they are counted and told of. What botocore leaves to its callers is an answer that breaks off
in its body: see `whole`. s3fs would try all of that five times over, at two levels; it is told not to.
"""

import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from torchrec_mt.errors import UserError, first_line

T = TypeVar("T")
_S3 = ("s3", "s3a")
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound")

_ATTEMPTS = 7
"""How often a request is tried where the environment does not say: gives up after 32 seconds on average, 63 at most."""
_BODIES = 5
"""How often an answer is asked for whose body breaks off."""
_BROKEN_BODIES = ("ClientPayloadError", "ResponseStreamingError", "IncompleteReadError", "AioReadTimeoutError")
_PHRASES = {int(status): status.phrase for status in HTTPStatus}


class StorageError(UserError):
    """What a storage refused, or did not answer."""


def is_url(path: object) -> bool:
    """Whether a path of a config or a command line names storage, not a local file."""
    return isinstance(path, str) and "://" in path


def file_system(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system behind a URL, and the URL's path in it.

    Raises:
        UserError: a kind of storage that is not known, or whose client is not installed.
    """
    protocol, _, rest = url.partition("://")
    if not rest.strip("/") or any(part in (".", "..") for part in rest.split("/")) or "\0" in url:
        raise UserError(f"{url!r} names nothing in a storage: give it as in 's3://bucket/folder'")
    try:
        options = {"session": _session(_aws_environment())} if protocol in _S3 else {}
        found, path = url_to_fs(url, **options)
    except ImportError as error:
        raise UserError(
            f"'{url}': the client of {protocol}:// is not installed ({first_line(error)}): "
            + ("pip install 'torchrec-mt[s3]'" if protocol in _S3 else "install what fsspec needs for it")
        ) from None
    except ValueError as error:
        raise UserError(f"'{url}': {protocol}:// is no kind of storage that we know ({first_line(error)})") from None
    if protocol in _S3:
        found.retries = 1
    return found, path.rstrip("/")


def _aws_environment() -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, value) for key, value in os.environ.items() if key.startswith("AWS_")))


@cache
def _session(environment: tuple[tuple[str, str], ...]) -> Any:
    """One session of the client as long as the environment says the same; it tells `_WATCH` of every attempt."""
    from aiobotocore.session import AioSession  # an extra of ours

    session = AioSession()
    if session.get_config_variable("max_attempts") is None:
        session.set_config_variable("max_attempts", _ATTEMPTS)
    session.register("needs-retry.s3", _WATCH.attempt)
    return session


class _Watch:
    """Counts failed attempts by request, and says once per reason that there are some."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed: Counter[tuple[str, str]] = Counter()
        self._said: set[str] = set()

    def attempt(
        self, *, response: Any, operation: Any, request_dict: Any, caught_exception: Exception | None, **_: object
    ) -> None:
        """What the client tells after each attempt, in its own thread."""
        request = (operation.name, request_dict["url"])
        status = 0 if response is None else response[0].status_code
        passing = caught_exception is not None or _is_passing(status)
        with self._lock:
            if not passing:
                self._failed.pop(request, None)
                return
            self._failed[request] += 1
        reason = type(caught_exception).__name__ if caught_exception is not None else _said(response[1], status)
        self.tell(reason, f"on {operation.name}")

    def tell(self, reason: str, where: str) -> None:
        """Says that it is tried again, once per reason."""
        with self._lock:
            if reason in self._said:
                return
            self._said.add(reason)
        print(f"storage: {reason} {where}; trying again, with growing pauses", file=sys.stderr, flush=True)

    def tries(self) -> int:
        """How often the request was tried that is being given up."""
        with self._lock:
            tries = max(self._failed.values(), default=1)
            self._failed.clear()
        return tries


_WATCH = _Watch()


def _is_passing(status: int) -> bool:
    return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _said(parsed: Any, status: int) -> str:
    """What the server said, for a message: "503 SlowDown (Please reduce your request rate.)"."""
    error = parsed.get("Error", {}) if isinstance(parsed, dict) else {}
    code, text = str(error.get("Code", "")), str(error.get("Message", ""))
    code = _PHRASES.get(status, "") if code in ("", str(status)) else code
    return f"{status} {code}" + (f" ({text[:200]})" if text and text != code else "")


def whole(read: Callable[[], T]) -> T:
    """What `read` returns, which is called anew where the body of an answer breaks off: 5 times, with growing pauses.

    Raises:
        Exception: what the last call raised, or any that another call cannot mend.
    """
    for attempt in range(1, _BODIES):
        try:
            return read()
        except Exception as error:
            broken = _from_client(error)
            if broken is None or type(broken).__name__ not in _BROKEN_BODIES:
                raise
            _WATCH.tell(type(broken).__name__, "in the middle of an answer")
        time.sleep(random.uniform(0, 2 ** (attempt - 2)))
    return read()


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Around any use of storage, `url` being what is read or written.

    Raises:
        StorageError: what the storage said and what to do about it; how often it was tried, if another try could help.
        OSError: unchanged, what the local disk said.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        from_client = _from_client(error)
        if from_client is None:
            raise
        raise StorageError(f"'{url}': {_explanation(from_client)}") from error


def lacks_bucket(error: BaseException) -> bool:
    """Whether it is not a file that is missing, but all of the bucket."""
    response = getattr(_from_client(error), "response", None) or {}
    return bool(response.get("Error", {}).get("Code") == "NoSuchBucket")


def _from_client(error: BaseException) -> BaseException | None:
    """The client's own error behind one that is being handled."""
    seen: BaseException | None = error
    while seen is not None:
        if type(seen).__module__.startswith(("botocore.", "aiobotocore.", "aiohttp.")):
            return seen
        seen = seen.__cause__
    return None


def _explanation(error: BaseException) -> str:
    kind, response = type(error).__name__, getattr(error, "response", None)
    if response is None:
        text = " ".join(str(error).split())[:300]
        if kind in _NO_CREDENTIALS:
            return f"no credentials ({text}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        if _is_broken_connection(error):
            return (
                f"no whole answer ({kind}: {text}), tried {_times(_tries(error))}: see to the network and to "
                "AWS_ENDPOINT_URL, then run again"
            )
        return f"the storage's client refuses it ({kind}: {text}): mend the URL or the AWS settings"
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said, code = _said(response, status), response.get("Error", {}).get("Code", "")
    if _is_passing(status):
        return (
            f"the server said {said}, tried {_times(_WATCH.tries())}: wait and run again, or let it be tried more "
            "often by AWS_MAX_ATTEMPTS"
        )
    if code == "NoSuchBucket":
        return f"there is no such bucket ({said}): make it, or name another"
    if status == HTTPStatus.NOT_FOUND:
        return f"there is nothing ({said}): was it written, or is the name mistyped?"
    if status in (HTTPStatus.FORBIDDEN, HTTPStatus.UNAUTHORIZED):
        return (
            f"no right to it, the server said {said}: give these credentials the right, or set others "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE)"
        )
    return f"the server refuses it: {said}"


def _is_broken_connection(error: BaseException) -> bool:
    return any(one.__name__ in ("HTTPClientError", "ConnectionError", "ClientError") for one in type(error).__mro__)


def _tries(error: BaseException) -> int:
    """How often it was tried; an answer whose body breaks off is none that botocore counts."""
    return _BODIES if type(error).__name__ in _BROKEN_BODIES else _WATCH.tries()


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
