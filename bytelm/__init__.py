"""One MEGABYTE model on the raw bytes of images, audio and text.

    model = bytelm.load("small")  # comes with the package; or the folder of a run
    bits_per_byte = model.score("The whale").mean() / math.log(2)
    texts = model.generate("text", prompt="The whale ", count=2)
    packed = model.compress(data)

    shards = bytelm.prepare(["photos"], "sets/photos")
    shard_set = bytelm.open_set("sets/photos")

`import bytelm` is fast: torch and other heavy packages are imported by the functions that use them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from bytelm.language_model import LanguageModel
    from bytelm.pipelines.prepare.prepare import Prepared, PrepareOptions
    from bytelm.pipelines.shards.reader import ShardSet

__all__ = ["LanguageModel", "ShardSet", "__version__", "load", "open_set", "prepare"]
__version__ = "0.1.0"


def load(
    location: str | os.PathLike[str], device: str | torch.device | None = None
) -> LanguageModel:
    """Load a model.

    Args:
        location: a run's folder, an exported model's folder, the name of a bundled model (`small`,
            unless a run or a model is in a folder of that name), the URL of a run or of a
            checkpoint, the id of a Hugging Face repository, or `preset:NAME` for random weights
            that learn from what they compress.
        device: where the model computes; None takes the GPU if there is one.
    Raises:
        ValueError: for a model that is missing, damaged or of another format version.
        OSError: if an object store fails.
    """
    from bytelm.language_model import LanguageModel
    from bytelm.pipelines.checkpoints.load import load_model
    from bytelm.pipelines.checkpoints.untrained import adaptation_of

    model, dataset_info = load_model(os.fspath(location))
    on_device = model if device is None else model.to(device)
    return LanguageModel(on_device, dataset_info, adaptation_of(os.fspath(location)))


def open_set(path: str | os.PathLike[str]) -> ShardSet:
    """Open a shard set in a folder or at a URL.

    Raises ValueError for a set that is missing or of another format version, and DamageError for a
    damaged manifest.
    """
    from bytelm.pipelines.shards.reader import open_set

    return open_set(os.fspath(path))


def prepare(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    workers: int = os.cpu_count() or 1,
    on: str | None = None,
    captions: str | os.PathLike[str] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    text_field: str | None = None,
    image_field: str | None = None,
    audio_field: str | None = None,
    rate: int | None = None,
    channels: int | None = None,
    keep_depth: bool = False,
    keep_files: bool = False,
    shard_mb: float = 256,
    max_side: int = 65535,
    max_mb: float = 268,
    max_bad_share: float = 0.5,
    show_progress: bool = False,
) -> Prepared:
    """Make a shard set of files, as `bytelm prepare` does.

    One source or pattern may be given without a list.

    Args:
        sources: files, folders, WebDataset tars and tables (.jsonl, .csv, .parquet); tars and
            tables may lie at URLs.
        out: folder of the set, or its URL (s3, gs, az, hf, file). A set that is complete and of the
            same input is left as it is.
        workers: decoding processes.
        on: address of a Ray cluster that does the work, as `ray://HOST:PORT`; `ray` starts one of
            this machine.
        captions: JSON file that maps the names of files to captions.
        include: patterns of names, one of which a file must match; None lets all files in.
        exclude: patterns of names that no file may match.
        text_field: column of tables that holds the text; guessed where one column may hold it.
        image_field: the same for images, as bytes or paths.
        audio_field: the same for sounds.
        rate: resample sounds to this many samples per second.
        channels: 1 mixes sounds down to mono.
        keep_depth: keep 16 bits of images that have them, for the view `deep`, and 24 of sounds,
            for `s24be`; otherwise 8 and 16.
        keep_files: store the bytes of the files, and decode nothing.
        shard_mb: largest shard in millions of bytes; infinite for no limit.
        max_side: longest side of an image in pixels.
        max_mb: largest document in millions of bytes; infinite for no limit.
        max_bad_share: largest share that may be lost of the files, their bytes, and the pairs.
        show_progress: show a progress bar on stderr where that is a terminal.
    Returns:
        the root hash of the set and the report of what it holds and what was skipped.
    Raises:
        ValueError: for sources that are missing, no usable file, too many bad ones, and an `out`
            that holds something else.
    """
    from rich.console import Console

    from bytelm.pipelines.prepare.prepare import prepare

    options = prepare_options(
        workers=workers,
        captions=captions,
        include=include,
        exclude=exclude,
        text_field=text_field,
        image_field=image_field,
        audio_field=audio_field,
        rate=rate,
        channels=channels,
        keep_depth=keep_depth,
        keep_files=keep_files,
        shard_mb=shard_mb,
        max_side=max_side,
        max_mb=max_mb,
        max_bad_share=max_bad_share,
    )
    console = Console(stderr=True) if show_progress else None
    listed = [sources] if isinstance(sources, str | os.PathLike) else sources
    names = [os.fspath(source) for source in listed]
    if on is not None:
        from bytelm.pipelines.prepare.ray_prepare import prepare_on_ray
        from bytelm.pipelines.prepare.set_target import local_folder

        return prepare_on_ray(names, local_folder(out), options, on, console)
    return prepare(names, os.fspath(out), options, console)


def prepare_options(
    *,
    workers: int,
    captions: str | os.PathLike[str] | None,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    text_field: str | None,
    image_field: str | None,
    audio_field: str | None,
    rate: int | None,
    channels: int | None,
    keep_depth: bool,
    keep_files: bool,
    shard_mb: float,
    max_side: int,
    max_mb: float,
    max_bad_share: float,
) -> PrepareOptions:
    """The arguments of `prepare` as options of `bytelm.pipelines.prepare`.

    Raises ValueError where one is out of its range.
    """
    from bytelm.modalities.base import DecodeOptions, Limits
    from bytelm.pipelines.prepare.prepare import PrepareOptions
    from bytelm.pipelines.prepare.tables import TableFields

    decode = DecodeOptions(
        limits=Limits(max_bytes=_bytes_of("max_mb", max_mb), max_side=max_side),
        audio_rate=rate,
        audio_channels=channels,
        keep_depth=keep_depth,
        keep_files=keep_files,
    )
    return PrepareOptions(
        decode=decode,
        workers=workers,
        shard_bytes=_bytes_of("shard_mb", shard_mb),
        captions=None if captions is None else Path(captions),
        include=(include,) if isinstance(include, str) else tuple(include or ()),
        exclude=(exclude,) if isinstance(exclude, str) else tuple(exclude or ()),
        max_bad_share=max_bad_share,
        fields=TableFields(text_field, image_field, audio_field),
    )


def _bytes_of(name: str, millions: float) -> int:
    """A limit in millions of bytes as bytes; one that no file exceeds where it is infinite."""
    if not millions * 1e6 >= 1:
        raise ValueError(f"{name} is {millions}, and must be above 0 (inf sets no limit)")
    return int(min(millions * 1e6, 1 << 62))


def __getattr__(name: str) -> Any:
    """The classes of `__all__`, whose modules import heavy packages (PEP 562)."""
    if name == "LanguageModel":
        from bytelm.language_model import LanguageModel

        return LanguageModel
    if name == "ShardSet":
        from bytelm.pipelines.shards.reader import ShardSet

        return ShardSet
    raise AttributeError(f"module 'bytelm' has no attribute {name!r}")
