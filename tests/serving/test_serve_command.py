"""`bytelm serve` as a command: its address, its password, its limits and its end."""

from __future__ import annotations

import os
import signal
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import bytelm, status
from helpers.served import Server, serving, write_model

from bytelm.pipelines.serving.request_limits import make_room
from bytelm.pipelines.serving.server import listen

PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def server(model: Path, temporary: Path) -> Iterator[Server]:
    """A server that other machines can reach."""
    variables = {"BYTELM_PASSWORD": PASSWORD, "TMPDIR": str(temporary)}
    with serving(model, "--host", "0.0.0.0", **variables) as running:
        yield running


def fetch(url: str, data: bytes | None = None, **headers: str) -> tuple[int, str]:
    """The status and the body of an answer."""
    request = urllib.request.Request(url, data, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def local(server: Server, path: str = "") -> str:
    return f"http://127.0.0.1:{server.port}/{path}"


def test_a_taken_port_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert status(["serve", "model", "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"bytelm serve: cannot listen at port {port} of 127.0.0.1 (address already in use): "
        "choose another --port, or 0 for a free one\n"
    )


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="give an address of this machine"):
        listen("192.0.2.1", 0)
    with pytest.raises(ValueError, match=r"--host no\.such\.name\.invalid is no IP address"):
        listen("no.such.name.invalid", 0)


def test_an_address_that_others_reach_needs_a_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BYTELM_PASSWORD", raising=False)
    assert status(["serve", "model", "--host", "0.0.0.0", "--port", "0"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "set a password in BYTELM_PASSWORD" in line


def test_without_gradio_the_way_out_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert status(["serve", "model"]) == 2
    assert capsys.readouterr().err == (
        "bytelm serve: the playground needs gradio: pip install 'bytelm[serve]'\n"
    )


def test_a_model_that_is_missing_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    line = bytelm("serve", tmp_path / "empty", "--port", 0, status=2).stderr
    assert "is neither a run with a checkpoint nor an exported model" in line
    assert line.count("\n") == 1


def test_the_page_opens_with_the_password_alone(server: Server) -> None:
    assert fetch(local(server, "config"))[0] == 401
    assert fetch(local(server, "gradio_api/upload"), b"x")[0] == 401
    form = urllib.parse.urlencode({"username": "any", "password": "wrong"}).encode()
    assert fetch(local(server, "login"), form)[0] == 400
    form = urllib.parse.urlencode({"username": "any", "password": PASSWORD}).encode()
    assert fetch(local(server, "login"), form)[0] == 200


def test_a_request_of_100_megabytes_is_refused_before_it_is_read(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: 100000000\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
        assert fetch(local(server))[0] == 200


def test_a_request_that_hides_its_length_is_cut_at_the_limit(server: Server) -> None:
    head = (
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\n"
    )
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head)
        for _ in range(40):
            connection.sendall(chunk)
        assert connection.recv(100).startswith((b"HTTP/1.1 400", b"HTTP/1.1 413"))
    assert fetch(local(server))[0] == 200


def test_sigterm_ends_it_and_removes_its_files(server: Server, temporary: Path) -> None:
    assert list(temporary.glob("bytelm-serve-*"))
    code, errors = server.end(signal.SIGTERM)
    opened, last = errors.splitlines()
    assert code == 143
    assert opened.startswith(f"bytelm serve: every machine that reaches port {server.port} of ")
    assert last == "bytelm serve: ended by SIGTERM"
    assert not list(temporary.glob("bytelm-serve-*"))


def test_the_oldest_uploads_make_room(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    make_room(tmp_path, 25)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "middle"}
    make_room(tmp_path, 0)
    assert not list(tmp_path.iterdir())
