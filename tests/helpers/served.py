"""A tiny model for the playground, and the running command."""

from __future__ import annotations

import re
import signal
import struct
import subprocess
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from bytelm.modalities.base import Header
from bytelm.model.config import ModelConfig, StageConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.data.dataset_info import FINISHED, NEW, DatasetInfo
from helpers.commands import command, environment

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}
SAMPLING = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
DATASET_INFO = DatasetInfo(
    VIEWS,
    {"image": [Header(32, 32, 3), Header(16, 24, 1)], "audio": [Header(channels=1, rate=8000)]},
    frozenset({("text", "image"), ("image", "text")}),
    frozenset(VIEWS),
    {"image": {NEW: {**SAMPLING, "temperature": 0.9}, FINISHED: {**SAMPLING, "temperature": 1.1}}},
)


TINY = ModelConfig((StageConfig(16, 1, 2), StageConfig(16, 1, 2)), (8,), context=256)


def write_model(folder: Path, config: ModelConfig = TINY) -> Path:
    """Write an untrained model that names three modalities and two kinds of pairs."""
    torch.manual_seed(2)
    save_pretrained(Megabyte(config), config, folder, DATASET_INFO.to_extra())
    return folder


class Server:
    """`bytelm serve` in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], first_line: str) -> None:
        self.process = process
        self.first_line = first_line
        match = re.search(r"http://\S+", first_line)
        assert match, f"{first_line}{process.communicate(timeout=20)[1]}"
        self.url = match.group()
        self.port = int(self.url.rstrip("/").rpartition(":")[2])

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal, and return the exit status and stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@contextmanager
def serving(*arguments: object, **variables: str) -> Iterator[Server]:
    """Run `bytelm serve ARGUMENTS` until the body ends; `variables` join its environment."""
    env: Mapping[str, str] = environment() | variables
    process = subprocess.Popen(
        command("serve", *arguments, "--port", 0),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert process.stdout
    try:
        yield Server(process, process.stdout.readline())
    finally:
        process.terminate()  # it removes its uploads' folder
        try:
            process.communicate(timeout=30)
        finally:
            process.kill()


def png_bomb() -> bytes:
    """A small PNG that says it has 50,000 x 50,000 pixels, with a megabyte of them as zeros."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1 << 20), 9)), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
