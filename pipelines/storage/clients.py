"""Reading and writing remote objects through fsspec, and the meaning of its clients' errors.

Credentials, proxies and endpoints come from each client's usual places, never from here. The
clients' own retries are off where they can be: `remote.py` retries alike for all of them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bytelm.pipelines.storage.cache import StoreClosedError

TIMEOUT_SECONDS = 30.0
"""Longest wait for a connection, and for the next bytes of a read."""
CHUNK_BYTES = 1 << 23

PART_BYTES = 1 << 25
"""Bytes of a part of an upload in parts."""
SLOWEST_BYTES_PER_SECOND = 100_000
"""An upload that is slower than this is broken off."""
STOP_POLL_SECONDS = 0.1

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
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
        _fsspec().get_filesystem_class(protocol)
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
        found = _fsspec().filesystem(protocol).glob(pattern)
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise OSError(f"{pattern} cannot be listed: {reason}") from error
    return sorted(f"{protocol}://{name.lstrip('/')}" for name in found)


class Writer:
    """Writes, lists and deletes the objects of one protocol. Each call is one attempt.

    Each method raises TransientError where another attempt may succeed, FileNotFoundError,
    PermissionError or OSError where it cannot, and StoreClosedError once `stop` is set.
    """

    def __init__(self, protocol: str, stop: threading.Event):
        """
        Args:
            protocol: scheme of the URLs.
            stop: ends all calls once it is set.
        """
        self._protocol = protocol
        self._stop = stop

    def put_file(self, path: Path, url: str) -> None:
        """Upload a file, which becomes visible whole; large ones go in parts where the store has
        them."""
        options = {"chunksize": PART_BYTES} if self._protocol in ("s3", "gs") else {}
        self._call("put_file", url, str(path), url, size=path.stat().st_size, **options)

    def put_bytes(self, data: bytes, url: str, only_new: bool = False) -> None:
        """Write a small object; FileExistsError where it is there and `only_new` forbids it."""
        options = {"mode": "create"} if only_new else {}
        try:
            self._call("pipe_file", url, url, data, size=len(data), **options)
        except (OSError, TransientError) as error:
            if only_new and _is_refused_as_existing(error.__cause__):
                raise FileExistsError(f"{url} exists already") from error
            raise

    def info(self, url: str) -> dict[str, Any]:
        """Metadata of an object by its store: `size` in bytes, and more."""
        return self._call("info", url, url)

    def find(self, url: str) -> dict[str, int]:
        """Sizes of the objects below a folder, by their paths behind it."""
        try:
            found = self._call("find", url, url, detail=True)
        except FileNotFoundError:
            return {}
        prefix = (
            _fsspec().get_filesystem_class(self._protocol)._strip_protocol(url).rstrip("/") + "/"
        )
        return {name.removeprefix(prefix): entry["size"] for name, entry in found.items()}

    def delete(self, url: str) -> None:
        """Delete an object; does nothing where there is none."""
        try:
            self._call("rm_file", url, url)
        except FileNotFoundError:
            return

    def abort_uploads(self, url: str) -> None:
        """Abort the uploads in parts below a folder that S3 still keeps. Other stores drop them
        after a week."""
        if self._protocol != "s3":
            return
        bucket, key, _ = _filesystem("s3").split_path(url)
        prefix = {"Bucket": bucket, "Prefix": f"{key}/"}
        answer = self._call("call_s3", url, "list_multipart_uploads", **prefix)
        for upload in answer.get("Uploads", []):
            try:
                self._call("abort_mpu", url, bucket, upload["Key"], upload["UploadId"])
            except FileNotFoundError:  # it has ended meanwhile
                continue

    def _call(self, method: str, url: str, *arguments: Any, size: int = 0, **options: Any) -> Any:
        """Call a method of the protocol's client, and give its errors their meaning.

        Args:
            url: named in errors.
            size: bytes that are sent, which the time limit depends on.
        """
        limit = 10 * TIMEOUT_SECONDS + size / SLOWEST_BYTES_PER_SECOND
        try:
            client = _filesystem(self._protocol)
            if not client.async_impl:
                return getattr(client, method)(*arguments, **options)
            call = getattr(client, f"_{method}")(*arguments, **options)
            return self._wait(client, call, limit)
        except (StoreClosedError, TransientError):
            raise
        except Exception as error:
            raise _meaning(error, url, "written") from error

    def _wait(self, client: Any, call: Any, limit: float) -> Any:
        """The result of a coroutine that runs in fsspec's thread, which is cancelled where the
        wait ends early."""
        future = asyncio.run_coroutine_threadsafe(call, client.loop)
        end = time.monotonic() + limit
        try:
            while not concurrent.futures.wait([future], STOP_POLL_SECONDS).done:
                if self._stop.is_set():
                    raise StoreClosedError
                if time.monotonic() > end:
                    raise TransientError(f"no answer in {limit:.0f} seconds")
        except BaseException:
            future.cancel()
            raise
        return future.result()


def _fsspec() -> Any:
    """The package, which takes a tenth of a second to import: who reads local files needs none."""
    import fsspec  # type: ignore[import-untyped]  # it has no types

    return fsspec


def _filesystem(protocol: str) -> Any:
    """The client of a protocol. fsspec keeps one for each process, thread and set of options."""
    import aiohttp  # slow, as fsspec

    wait = TIMEOUT_SECONDS
    if protocol == "s3":
        config = {"connect_timeout": wait, "read_timeout": wait, "retries": {"max_attempts": 0}}
        s3 = _fsspec().filesystem("s3", config_kwargs=config, use_listings_cache=False)
        s3.retries = 1
        return s3
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=wait, sock_read=wait)
    if protocol == "gs":
        return _fsspec().filesystem("gs", requests_timeout=timeout, use_listings_cache=False)
    if protocol in ("http", "https"):
        return _fsspec().filesystem(
            protocol,
            client_kwargs={"timeout": timeout, "trust_env": True},
            headers={"Accept-Encoding": "identity"},
        )
    if protocol == "az":
        return _fsspec().filesystem("az", use_listings_cache=False)
    if protocol == "hf":
        return _fsspec().filesystem("hf", use_listings_cache=False)
    return _fsspec().filesystem(protocol)


def _open(protocol: str, url: str) -> Any:
    """A remote object as a file that is read once, from start to end."""
    client = _filesystem(protocol)
    if protocol in ("s3", "gs", "az"):
        return client.open(url, "rb", block_size=CHUNK_BYTES, cache_type="none")
    if protocol in ("http", "https"):
        # One plain GET: a block size of 0 disables ranges, and a size, which a stream ignores,
        # avoids a request for it.
        return client.open(url, "rb", block_size=0, size=1)
    if protocol == "hf":
        return client.open(url, "rb", block_size=0)
    return client.open(url, "rb")


def _is_refused_as_existing(error: BaseException | None) -> bool:
    """Whether a store has refused a conditional creation since the object exists."""
    if isinstance(error, FileExistsError):
        return True
    return isinstance(error, Exception) and _http_status(error) == 412


def _meaning(error: Exception, url: str, action: str = "read") -> Exception:
    """The error that a client's error stands for, as `read_chunks` raises it; `action` is what
    cannot be done."""
    status = _http_status(error)
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if _is_upload_gone(error):
        return TransientError(reason)
    if isinstance(error, FileNotFoundError) or status == 404:
        detail = "does not exist" if action == "read" else f"cannot be {action}: {reason}"
        return FileNotFoundError(f"{url} {detail}")
    # gcsfs has no type of its own for a refusal; boto and google each have one for credentials
    # that are missing.
    is_refused = str(error).startswith("Forbidden") or "Credentials" in type(error).__name__
    if isinstance(error, PermissionError) or status in (401, 403) or is_refused:
        return PermissionError(f"{url}: access is refused ({reason}): check the credentials")
    if isinstance(error, ValueError | TypeError | ImportError):
        return OSError(f"{url} cannot be {action}: {reason}")
    # A redirect that a client does not follow tells of a bucket in another region.
    if status is not None and 300 <= status < 500 and status not in (408, 409, 425, 429):
        return OSError(f"{url} cannot be {action}: status {status}, {reason}")
    return TransientError(reason)


def _is_upload_gone(error: BaseException) -> bool:
    """Whether S3 does not know an upload in parts: it was completed, and the answer lost. s3fs then
    aborts it, and raises that failure in place of the first one."""
    response = getattr(error.__cause__, "response", None)
    return isinstance(response, dict) and response.get("Error", {}).get("Code") == "NoSuchUpload"


def _http_status(error: Exception) -> int | None:
    """The HTTP status of the response behind an error."""
    for name in ("status", "code"):  # aiohttp, gcsfs
        if isinstance(getattr(error, name, None), int):
            return getattr(error, name)
    response = getattr(error, "response", getattr(error.__cause__, "response", None))
    if isinstance(response, dict):  # boto, under an OSError of s3fs
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return getattr(response, "status_code", None)  # huggingface_hub
