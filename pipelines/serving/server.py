"""The playground's web server: its address, its start and its end."""

from __future__ import annotations

import errno
import gc
import hmac
import ipaddress
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bytelm.pipelines.serving.drawing import LoadedModel
from bytelm.pipelines.serving.jobs import JobQueue
from bytelm.pipelines.serving.limits import MAX_UPLOAD_BYTES

if TYPE_CHECKING:
    import uvicorn

NO_TELEMETRY = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Environment in which gradio and huggingface_hub report to nobody."""
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
"""Hosts by which a browser on this machine names it."""
FAILED_LOGIN_SECONDS = 1.0
"""Delay of the answer to a wrong password."""
END_SECONDS = 2.0
"""How long the end waits for the running job, and then for the server."""
MAX_CONNECTIONS = 256


@dataclass(frozen=True)
class Address:
    """A socket that listens, and where it can be reached."""

    socket: socket.socket
    host: str
    """As the user named it."""
    port: int

    @property
    def is_local(self) -> bool:
        """Whether other machines cannot reach it."""
        return ipaddress.ip_address(self.socket.getsockname()[0]).is_loopback

    @property
    def url(self) -> str:
        """The address of the page."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"


def listen(host: str, port: int) -> Address:
    """Listen at a port of an IP address or of localhost; port 0 takes a free one.

    Names of other hosts are not looked up, which can take minutes. ValueError where it cannot be.
    """
    flags = socket.AI_PASSIVE | (0 if host == "localhost" else socket.AI_NUMERICHOST)
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=flags
        )[0]
        listening = socket.create_server((str(address[0]), port), family=family)
    except socket.gaierror as error:
        raise ValueError(
            f"--host {host} is no IP address: give one of this machine, or 0.0.0.0 for all of them"
        ) from error
    except OSError as error:
        way_out = "give an address of this machine"
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            way_out = "choose another --port, or 0 for a free one"
        cause = os.strerror(error.errno or 0).lower()
        raise ValueError(f"cannot listen at port {port} of {host} ({cause}): {way_out}") from error
    return Address(listening, host, listening.getsockname()[1])


def serve(
    loaded: LoadedModel,
    address: Address,
    password: str | None,
    seconds: float,
    announce: Callable[[], object],
) -> None:
    """Serve the page until this thread is interrupted, which ends all jobs.

    Args:
        password: what a user has to give; None lets everybody in.
        seconds: limit of each request's time.
        announce: called once the page can be opened.
    """
    import uvicorn

    queue = JobQueue(seconds)
    with tempfile.TemporaryDirectory(prefix="bytelm-serve-", ignore_cleanup_errors=True) as folder:
        app = _application(loaded, queue, address, password, Path(folder))
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="critical",
            access_log=False,
            ws="none",
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        has_ended = _start(server, address.socket)
        try:
            while not server.started and not has_ended.wait(0.01):
                pass
            if server.started:
                announce()
            has_ended.wait()
        finally:
            queue.close(END_SECONDS)
            server.should_exit = True
            has_ended.wait(END_SECONDS)
            # Python's last collection would visit all objects of torch and gradio, for a second.
            gc.freeze()
    raise RuntimeError("the web server has ended by itself")


def _start(server: uvicorn.Server, listening: socket.socket) -> threading.Event:
    """Start a thread that runs the server; returns an event of its end.

    An event, since an interrupted `join` of Python 3.11 takes a running thread for an ended one.
    """
    has_ended = threading.Event()

    def run() -> None:
        try:
            server.run([listening])
        finally:
            has_ended.set()

    threading.Thread(target=run, name="server", daemon=True).start()
    return has_ended


def _application(
    loaded: LoadedModel, queue: JobQueue, address: Address, password: str | None, folder: Path
) -> Any:
    """The web application, which keeps uploads below a folder and calls no other machine."""
    os.environ |= NO_TELEMETRY | {"GRADIO_TEMP_DIR": str(folder)}
    import fastapi
    import gradio
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from bytelm.pipelines.serving.page import build_page, page_css, page_theme
    from bytelm.pipelines.serving.request_limits import RequestLimits

    app = fastapi.FastAPI(openapi_url=None)
    app.add_middleware(RequestLimits, folder=folder)
    if address.is_local:
        # A page of another site, whose name its owner lets point to this machine, stays out.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL_NAMES, address.host])
    gradio.mount_gradio_app(
        app,
        build_page(loaded, queue),
        path="/",
        server_name=address.host,
        server_port=address.port,
        footer_links=[],
        run_history=False,
        auth=_login(password) if password else None,
        auth_message="Any name, and the password that `bytelm serve` was given.",
        max_file_size=MAX_UPLOAD_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=page_theme(),
        css=page_css(),
    )
    return app


def _login(password: str) -> Callable[[str, str], bool]:
    """A check of a login; it answers late where the password is wrong."""

    def is_right(name: str, given: str) -> bool:
        right = hmac.compare_digest(given.encode(), password.encode())
        if not right:
            time.sleep(FAILED_LOGIN_SECONDS)
        return right

    return is_right
