"""Reader of a web server's files, bounded by the requested length.

A web server is not trusted with memory: its answer is read up to the requested length, as it comes
over the wire. Redirects are followed here, so that each URL is checked before it is read.

Source: ours, on fsspec's reader for HTTP (https://filesystem-spec.readthedocs.io).
"""

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

from ernie_vilg.errors import InputError

_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 10
_READ_BYTES = 1 << 16


def web_filesystem() -> Any:
    """Return fsspec's reader of https URLs, with bounded answers."""
    from fsspec.implementations.http import HTTPFileSystem  # optional, as s3fs and gcsfs are

    class Web(HTTPFileSystem):
        """fsspec's reader, bounded by the requested length."""

        async def _cat_file(self, url: str, start: int, end: int, **options: Any) -> bytes:
            session = await self.set_session()
            headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}
            for _ in range(_MAX_REDIRECTS):
                target = self.encode_url(url)
                if target.scheme != "https":
                    raise InputError(f"it redirects to {target.scheme}://, which is not encrypted")
                request = session.get(target, headers=headers, allow_redirects=False, **self.kwargs)
                async with request as response:
                    if response.status in _REDIRECTS:
                        url = _redirected(url, response.headers)
                        continue
                    self._raise_not_found_for_status(response, url)
                    return await _bounded_body(response, end - start)
            raise InputError(f"it redirects more than {_MAX_REDIRECTS} times, in a circle perhaps")

    # aiohttp's default certificates are those that were trusted when it was imported.
    return Web(ssl=ssl.create_default_context(), skip_instance_cache=True)


def _redirected(url: str, headers: Mapping[str, str]) -> str:
    """Return the target of a redirect. User and password are sent to no other host."""
    target = headers.get("Location")
    if not target:
        raise InputError("it redirects without saying where (no Location)")
    own, following = urlsplit(url), urlsplit(urljoin(url, target))
    if following.netloc == own.netloc.rpartition("@")[2]:
        following = following._replace(netloc=own.netloc)
    return urlunsplit(following)


async def _bounded_body(response: Any, asked: int) -> bytes:
    """Return an answer's content, refusing one longer than requested."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):  # its bytes are not the file's
        raise InputError(
            f"the server answers compressed ({encoding:.20}) where the plain file was asked for: "
            "let it serve the file as it is"
        )
    if (response.content_length or 0) > asked:
        raise too_long(asked)
    content = bytearray()
    while part := await response.content.read(min(_READ_BYTES, asked + 1 - len(content))):
        content += part
        if len(content) > asked:
            raise too_long(asked)
    return bytes(content)


def too_long(asked: int) -> InputError:
    """Return the error of an answer that is longer than requested."""
    return InputError(
        f"the server answers with more than the {asked} bytes that were asked for: it must honour "
        "requests for a range of bytes"
    )
