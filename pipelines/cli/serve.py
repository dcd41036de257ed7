"""`bytelm serve`: a page on which a model completes, scores and compresses files."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bytelm.pipelines.cli.arguments import Number, WholeNumber, add_model
from bytelm.pipelines.runtime.optional_packages import can_import
from bytelm.pipelines.serving.jobs import DEFAULT_SECONDS

if TYPE_CHECKING:
    from bytelm.pipelines.serving.server import Address

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 7860
PASSWORD_VARIABLE = "BYTELM_PASSWORD"
HELP = "Open a playground in the browser: complete, score and compress with a model."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model(parser)
    parser.add_argument(
        "--port", type=WholeNumber(0, 65535), default=DEFAULT_PORT, help="port; 0 for a free one"
    )
    parser.add_argument(
        "--host",
        default=DEFAULT_HOST,
        help="address to listen at; one that other machines reach needs a password",
    )
    parser.add_argument(
        "--password",
        help=f"password that users have to give; other users of this machine do not see it where "
        f"it stands in the environment, as {PASSWORD_VARIABLE}",
    )
    parser.add_argument(
        "--seconds",
        type=Number(0, 1e6, is_least_allowed=False),
        default=DEFAULT_SECONDS,
        help="limit of the time of one request",
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Serve the page until the command is ended."""
    from bytelm.pipelines.serving.server import NO_TELEMETRY, listen, serve

    os.environ |= NO_TELEMETRY  # read by the libraries that gradio imports
    if not can_import("gradio"):
        raise ValueError("the playground needs gradio: pip install 'bytelm[serve]'")
    from bytelm.pipelines.checkpoints.load import load_model
    from bytelm.pipelines.serving.drawing import LoadedModel

    password = options.password or os.environ.get(PASSWORD_VARIABLE)
    address = listen(options.host, options.port)
    if not address.is_local and not password:
        raise ValueError(
            f"--host {options.host} lets other machines in: set a password in {PASSWORD_VARIABLE} "
            f"or by --password, or leave out --host"
        )
    model, dataset_info = load_model(options.model)
    path = Path(options.model)
    name = "/".join(path.resolve().parts[-2:]) if path.is_dir() else options.model
    loaded = LoadedModel(model, dataset_info, name)
    serve(loaded, address, password, options.seconds, lambda: _announce(address))
    return 0


def _announce(address: Address) -> None:
    if not address.is_local:
        print(
            f"bytelm serve: every machine that reaches port {address.port} of {address.host} can "
            "open the page; whoever has the password uses this model and this machine's "
            "processor. The connection is not encrypted.",
            file=sys.stderr,
        )
    print(f"{address.url} is open; Ctrl-C ends it", flush=True)
