"""Trackers: where the metrics and samples of a run go beside its own files.

    tensorboard   RUN/tensorboard
    wandb         Weights & Biases; with WANDB_MODE=offline, RUN/wandb
    trackio       trackio's local project, TRACKIO_DIR

A tracker never ends a run: the first error of one is said in a line, and the run goes on without
it. Libraries are imported only where a config names them.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import numpy as np
import numpy.typing as npt
import PIL.Image

from bytelm.modalities.audio import frames
from bytelm.modalities.base import Sample
from bytelm.modalities.image import deep_pixels
from bytelm.pipelines.errors import one_line
from bytelm.pipelines.runtime.optional_packages import can_import
from bytelm.pipelines.storage.files import write_atomic

if TYPE_CHECKING:
    from bytelm.pipelines.training.samples import SavedSample

TENSORBOARD, WANDB, TRACKIO = "tensorboard", "wandb", "trackio"
TENSORBOARD_FOLDER = "tensorboard"
IDENTITY_FILE = "trackers.json"
"""Names the run to trackers outside its folder, so that a resumed run continues there."""
PROJECT = "bytelm"
FINISH_SECONDS = 60.0
"""Time that wandb has to upload the rest at the end of a run; the data stay on disk in any case."""

Say = Callable[[str], None]


class Tracker(Protocol):
    """One place that metrics and samples go to."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values of a step by tag, as `train/loss`."""

    def samples(self, step: int, samples: Sequence[SavedSample]) -> None:
        """Record generated samples."""

    def close(self) -> None:
        """Write what is left."""


class Trackers:
    """The trackers of a run, each until its first error."""

    def __init__(
        self,
        names: Sequence[str],
        run: Path,
        config: Mapping[str, Any],
        done: int,
        say: Say,
    ) -> None:
        """Open the trackers.

        Args:
            config: of the run, as plain values.
            done: steps that an earlier process did and saved.
            say: shows a line to the user.
        """
        self._say = say
        self._active: dict[str, Tracker] = {}
        for name in names:
            self._attempt(name, partial(self._open, name, run, config, done))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values of a step by tag."""
        for name, tracker in list(self._active.items()):
            self._attempt(name, partial(tracker.log, step, values))

    def samples(self, step: int, samples: Sequence[SavedSample]) -> None:
        """Record generated samples."""
        for name, tracker in list(self._active.items()):
            self._attempt(name, partial(tracker.samples, step, samples))

    def close(self) -> None:
        """Close all trackers."""
        for name, tracker in list(self._active.items()):
            with _quiet():
                self._attempt(name, tracker.close)
        self._active = {}

    def _open(self, name: str, run: Path, config: Mapping[str, Any], done: int) -> None:
        if name == TENSORBOARD:
            self._active[name] = TensorBoard(run / TENSORBOARD_FOLDER, done)
            return
        identity = _identity(run)
        with _quiet():
            if name == WANDB:
                self._active[name] = Wandb(run, identity, config, done)
            else:
                self._active[name] = Trackio(run, identity, config, done)
        if name == TRACKIO:
            _say_warnings(TRACKIO, self._say)

    def _attempt(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # those of the libraries have no common base
            self._active.pop(name, None)
            self._say(f"{name} records no more of this run ({one_line(error)}); the run goes on")


def check_trackers(names: Sequence[str]) -> None:
    """Check that the libraries of trackers are there, and that none would ask for a login.

    Raises:
        ValueError: with the command that installs or logs in.
    """
    for name in names:
        with _quiet():
            is_there = can_import(name)
        if not is_there:
            # tensorboard is a requirement of bytelm itself and no extra.
            package = "tensorboard" if name == TENSORBOARD else f"bytelm[{name}]"
            raise ValueError(
                f"trackers names {name}, which is not installed: pip install '{package}', or "
                "leave it out"
            )
    if WANDB in names and not _wandb_may_start():
        raise ValueError(
            "trackers names wandb, which is not logged in here: run `wandb login`, set "
            "WANDB_MODE=offline, or leave it out"
        )


def _wandb_may_start() -> bool:
    """Whether wandb can begin a run without asking for an account."""
    import wandb

    if wandb.setup().settings.mode in ("offline", "disabled", "dryrun"):
        return True
    return wandb.login(prompt=False, verify=False)


class TensorBoard:
    """Event files in a folder."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _silence_writer_threads()
        self._writer = SummaryWriter(str(folder), purge_step=done + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def samples(self, step: int, samples: Sequence[SavedSample]) -> None:
        """Record images, sounds with their rate, and texts."""
        for saved in samples:
            sample, tag = saved.sample, _tag(saved)
            if sample.modality == "image":
                self._writer.add_image(tag, _pixels(sample), step, dataformats="HWC")
            elif sample.modality == "audio":
                wave = _waves(sample).mean(axis=1)  # it takes one channel
                self._writer.add_audio(tag, wave, step, sample_rate=sample.header.rate)
            else:
                self._writer.add_text(tag, _markdown(sample), step)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, run: Path, identity: str, config: Mapping[str, Any], done: int) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=identity,
            name=run.resolve().name,
            dir=str(run),
            config=dict(config),
            resume="allow" if done else None,
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=30, finish_timeout=FINISH_SECONDS
            ),
        )
        # A resumed run repeats steps, and wandb's own counter of steps never goes back.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars."""
        self._run.log({"step": step, **values})

    def samples(self, step: int, samples: Sequence[SavedSample]) -> None:
        """Record images, sounds and texts with their titles."""
        self._run.log({"step": step, **{_tag(s): self._media(s) for s in samples}})

    def close(self) -> None:
        """Upload what is left, for at most FINISH_SECONDS."""
        self._run.finish()

    def _media(self, saved: SavedSample) -> Any:
        sample = saved.sample
        if sample.modality == "image":
            # It drops axes of an array that have length 1.
            picture = PIL.Image.fromarray(_pixels(sample))
            return self._wandb.Image(picture, caption=saved.title)
        if sample.modality == "audio":
            rate = sample.header.rate
            return self._wandb.Audio(_waves(sample), sample_rate=rate, caption=saved.title)
        from markupsafe import escape

        return self._wandb.Html(f"<pre>{escape(_text(sample))}</pre>", inject=False)


class Trackio:
    """A run of trackio, in its local project."""

    def __init__(self, run: Path, identity: str, config: Mapping[str, Any], done: int) -> None:
        import trackio

        self._trackio = trackio
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            # It knows runs by name, and many runs have folders of one name.
            name=f"{run.resolve().name}-{identity}",
            config=dict(config),
            resume="allow" if done else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars."""
        self._run.log(dict(values), step=step)

    def samples(self, step: int, samples: Sequence[SavedSample]) -> None:
        """Record images, sounds and texts with their titles."""
        self._run.log({_tag(saved): self._media(saved) for saved in samples}, step=step)

    def close(self) -> None:
        """Write what is left."""
        self._trackio.finish()

    def _media(self, saved: SavedSample) -> Any:
        sample = saved.sample
        if sample.modality == "image":
            return self._trackio.Image(_pixels(sample), caption=saved.title)
        if sample.modality == "audio":
            pcm = (_waves(sample) * 32_767).astype(np.int16)
            rate = sample.header.rate
            return self._trackio.Audio(pcm, sample_rate=rate, format="wav", caption=saved.title)
        return self._trackio.Markdown(_markdown(sample))


# --- samples as the libraries take them ---


def _tag(saved: SavedSample) -> str:
    return f"samples/{saved.path.stem}"


def _pixels(sample: Sample) -> npt.NDArray[np.uint8]:
    """[h w 3] an image in eight bits; grey becomes three equal channels."""
    header = sample.header
    if sample.is_deep:
        pixels = (deep_pixels(sample) >> 8).astype(np.uint8)
    else:
        flat = np.frombuffer(sample.data, np.uint8)
        pixels = flat.reshape(header.height, header.width, header.channels)
    return np.broadcast_to(pixels, (header.height, header.width, 3))


def _waves(sample: Sample) -> npt.NDArray[np.float64]:
    """[n c] a sound in [-1, 1)."""
    values = frames(sample)
    return values / -float(np.iinfo(values.dtype).min)


def _text(sample: Sample) -> str:
    return sample.data.decode("utf-8", "replace")


def _markdown(sample: Sample) -> str:
    """A text as a block of code, which keeps its line breaks and shows no markup in it."""
    return "".join(f"    {line}\n" for line in _text(sample).splitlines())


# --- the libraries' ways ---


def _identity(run: Path) -> str:
    """The run's name for trackers, made at its first start."""
    path = run / IDENTITY_FILE
    if path.is_file():
        return str(json.loads(path.read_text())["id"])
    identity = secrets.token_hex(4)
    write_atomic(path, json.dumps({"id": identity}).encode())
    return identity


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what libraries print and warn of as they start and end from the user. Not for each step:
    Python forgets then which warnings of others it has shown."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _say_warnings(package: str, say: Say) -> None:
    """Say a package's warnings in a line: trackio's thread reports lost data by them alone."""
    show_of_others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if package in Path(filename).parts:
            say(" ".join(f"{package}: {message}".split()))
        else:
            show_of_others(message, category, filename, lineno, file, line)

    warnings.showwarning = show


def _silence_writer_threads() -> None:
    """Keep the traceback of TensorBoard's writing thread from the user: the next call raises its
    error, which is said in a line."""
    hook_of_others = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("tensorboard."):
            hook_of_others(failure)

    threading.excepthook = hook
