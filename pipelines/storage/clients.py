"""Reading remote objects through fsspec, and the meaning of its clients' errors.

Credentials, proxies and endpoints come from each client's usual places, never from here. The
clients' own retries are off where they can be: `remote.py` retries alike for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import aiohttp
import fsspec  # type: ignore[import-untyped]  # it has no types

TIMEOUT_SECONDS = 30.0
"""Longest wait for a connection, and for the next bytes of a read."""
CHUNK_BYTES = 1 << 23

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
"""Clients that are not among the dependencies."""


class TransientError(Exception):
    """A failure that may pass: another attempt is worthwhile."""

    def __init__(self, reason: str, final: type[Exception] = OSError):
        """`final` is the type of the error that is raised after the last attempt."""
        super().__init__(reason)
        self.final = final


def check_client(protocol: str, location: str) -> None:
    """Raise ValueError where the package for a protocol is not installed."""
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        package = _PACKAGES.get(protocol, "fsspec")
        raise ValueError(
            f"{location} needs the package {package}: pip install {package} ({error})"
        ) from error


def read_chunks(protocol: str, url: str) -> Iterator[bytes]:
    """The bytes of a remote object, in chunks of at most CHUNK_BYTES.

    Raises:
        TransientError: where another attempt may succeed.
        FileNotFoundError, PermissionError, OSError: where it cannot.
    """
    try:
        with _open(protocol, url) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except Exception as error:
        raise _meaning(error, url) from error


def find_objects(protocol: str, pattern: str) -> list[str]:
    """The URLs of the objects that match a pattern with `*`, and `**` for any folders, sorted.

    Raises OSError where the store cannot list them.
    """
    if protocol in ("http", "https"):
        raise OSError(f"{pattern}: a web server does not list its files; write {{000..012}}")
    try:
        found = fsspec.filesystem(protocol).glob(pattern)
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise OSError(f"{pattern} cannot be listed: {reason}") from error
    return sorted(f"{protocol}://{name.lstrip('/')}" for name in found)


def _open(protocol: str, url: str) -> Any:
    """A remote object as a file that is read once, from start to end. fsspec keeps one client for
    each process, thread and set of options."""
    wait = TIMEOUT_SECONDS
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=wait, sock_read=wait)
    ranged = {"block_size": CHUNK_BYTES, "cache_type": "none"}
    if protocol == "s3":
        config = {"connect_timeout": wait, "read_timeout": wait, "retries": {"max_attempts": 0}}
        s3 = fsspec.filesystem("s3", config_kwargs=config, use_listings_cache=False)
        s3.retries = 1
        return s3.open(url, "rb", **ranged)
    if protocol == "gs":
        gs = fsspec.filesystem("gs", requests_timeout=timeout, use_listings_cache=False)
        return gs.open(url, "rb", **ranged)
    if protocol in ("http", "https"):
        # One plain GET: a block size of 0 disables ranges, and a size, which a stream ignores,
        # avoids a request for it.
        web = fsspec.filesystem(
            protocol,
            client_kwargs={"timeout": timeout, "trust_env": True},
            headers={"Accept-Encoding": "identity"},
        )
        return web.open(url, "rb", block_size=0, size=1)
    if protocol == "hf":
        return fsspec.filesystem("hf", use_listings_cache=False).open(url, "rb", block_size=0)
    return fsspec.filesystem(protocol).open(url, "rb")


def _meaning(error: Exception, url: str) -> Exception:
    """The error that a client's error stands for, as `read_chunks` raises it."""
    status = _http_status(error)
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(f"{url} does not exist")
    # gcsfs has no type of its own for a refusal; boto and google each have one for credentials
    # that are missing.
    is_refused = str(error).startswith("Forbidden") or "Credentials" in type(error).__name__
    if isinstance(error, PermissionError) or status in (401, 403) or is_refused:
        return PermissionError(f"{url}: access is refused ({reason}): check the credentials")
    if isinstance(error, ValueError | TypeError | ImportError):
        return OSError(f"{url} cannot be read: {reason}")
    if status is not None and 400 <= status < 500 and status not in (408, 425, 429):
        return OSError(f"{url} cannot be read: status {status}, {reason}")
    return TransientError(reason)


def _http_status(error: Exception) -> int | None:
    """The HTTP status of the response behind an error."""
    for name in ("status", "code"):  # aiohttp, gcsfs
        if isinstance(getattr(error, name, None), int):
            return getattr(error, name)
    response = getattr(error, "response", getattr(error.__cause__, "response", None))
    if isinstance(response, dict):  # boto, under an OSError of s3fs
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return getattr(response, "status_code", None)  # huggingface_hub
