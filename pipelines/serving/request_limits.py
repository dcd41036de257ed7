"""Limits of what a browser sends, enforced while it arrives."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bytelm.pipelines.serving.limits import MAX_REQUEST_BYTES, MAX_UPLOADS_BYTES


class RequestTooLargeError(Exception):
    """A request's body goes on beyond MAX_REQUEST_BYTES."""


class RequestLimits:
    """ASGI middleware that refuses large bodies, and keeps the folder of uploads small."""

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self._app = app
        self._folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; answer it with 413 where it is too large."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"].endswith("/upload"):
            make_room(self._folder, MAX_UPLOADS_BYTES - MAX_REQUEST_BYTES)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        received, has_begun = 0, False

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_REQUEST_BYTES:
                raise RequestTooLargeError
            return message

        async def noted_send(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            if declared.isdigit() and int(declared) > MAX_REQUEST_BYTES:
                raise RequestTooLargeError
            await self._app(scope, limited_receive, noted_send)
        except RequestTooLargeError:
            if not has_begun:
                text = f"A request may have {MAX_REQUEST_BYTES:,} bytes."
                await PlainTextResponse(text, 413)(scope, receive, send)


def make_room(folder: Path, max_bytes: int) -> None:
    """Remove the oldest files below a folder until they have at most `max_bytes` bytes."""
    files = [(path.stat(), path) for path in folder.rglob("*") if path.is_file()]
    total = sum(status.st_size for status, _ in files)
    for status, path in sorted(files, key=lambda file: file[0].st_mtime):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= status.st_size
