"""Errors of object stores and web servers: the status, the chance of another attempt, the cause.

Source: ours, on the errors of s3fs, gcsfs and aiohttp.
"""

import re
from http import HTTPStatus

_URL = re.compile(r"(\w+://)(?:[^\s/'\"]*@)?([^\s'\"?#]*)[^\s'\"]*")
_TEMPORARY_STATUSES = (408, 425, 429)
_TEMPORARY_ERRORS = frozenset(
    {"aiohttp.ClientError", "botocore.HTTPClientError", "botocore.ConnectionError"}
)
"""Names of base classes of lost connections that are no OSError; the libraries are optional."""

_MAX_CAUSE_CHARACTERS = 300


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error, None without one.

    aiohttp's errors have a `status`, gcsfs's a `code`; those of s3fs are caused by botocore's,
    which have a `response`. For an answer that is not HTTP, aiohttp invents status 400.
    """
    if _is_garbled(error):
        return None
    if isinstance(error, OSError) and str(error).startswith("Forbidden:"):  # gcsfs
        return HTTPStatus.FORBIDDEN
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if isinstance(response, dict):
        value = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        value = getattr(error, "status", None) or getattr(error, "code", None)
    return int(str(value)) if str(value).isdecimal() else None


def _is_garbled(error: BaseException) -> bool:
    """Return whether the server's answer was not HTTP."""
    return type(error.__cause__).__module__ == "aiohttp.http_exceptions"


def is_temporary(error: Exception) -> bool:
    """Return whether another attempt may succeed."""
    status = status_of(error)
    if status is not None:
        return status >= 500 or status in _TEMPORARY_STATUSES
    # An untrusted certificate is a ValueError too.
    if isinstance(error, ValueError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    names = {
        f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}" for kind in type(error).__mro__
    }
    return isinstance(error, OSError) or not _TEMPORARY_ERRORS.isdisjoint(names)


def describe(error: Exception, timeout_seconds: float) -> str:
    """Return what happened in a few words, without the secret parts of a URL.

    Args:
        error: error of a request.
        timeout_seconds: how long its answer was waited for.
    """
    status = status_of(error)
    if status is not None:
        phrase = next((known.phrase for known in HTTPStatus if known == status), "")
        return f"HTTP {status} {phrase}".rstrip()
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_seconds:g} s"
    if _is_garbled(error):
        return "an answer that is not HTTP"
    text = _URL.sub(r"\1\2", str(error))[:_MAX_CAUSE_CHARACTERS]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
