"""A server that plays the part of the Hugging Face hub's API that uploads use."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_test"


class Hub:
    """Repositories in memory. A status in `script`, by a part of the path, is answered instead."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.script: dict[str, int] = {}
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.url = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        path = path.partition("?")[0]
        self.asked.append(f"{method} {path}")
        for part, status in self.script.items():
            if part in path:
                return status, {"error": f"scripted {status}"}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/preupload/main"):
            return 200, {"files": [_mode(file) for file in json.loads(body)["files"]]}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, self._batch(json.loads(body))
        if path.startswith("/large/"):
            self.large[path.rpartition("/")[2]] = body
            return 200, {}
        name = "/".join(path.split("/")[3:5])
        if path.endswith("/commit/main") and name in self.private:
            self._commit(name, body)
            url = f"{self.url}/{name}/commit/{'0' * 40}"
            return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": url}
        if path == f"/api/models/{name}" and name in self.private:
            return 200, {"id": name, "private": self.private[name], "siblings": []}
        return 404, {"error": "not found"}

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        name = f"{wanted['organization']}/{wanted['name']}"
        url = f"{self.url}/{name}"
        if name in self.private:
            return 409, {"error": "exists", "url": url}
        is_private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.private[name], self.files[name] = is_private, {}
        return 200, {"url": url}

    def _batch(self, wanted: dict[str, Any]) -> Any:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.url}/large/{entry['oid']}"}}}
            for entry in wanted["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _commit(self, name: str, body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.files[name][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                data = self.large[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"]
                self.files[name][value["path"]] = data


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}


@contextmanager
def model_hub() -> Iterator[Hub]:
    """Serve a hub at its `url` until the body ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path.startswith(("/api/models/", "/api/repos/")):
                hub.tokens.add(self.headers.get("Authorization"))
            status, answer = hub.answer(self.command, self.path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_HEAD = _handle

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
