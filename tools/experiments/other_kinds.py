"""Kinds of files that are not in the demo's sets, each with where it comes from.

    WORK/downloads/PACKAGE/    the packages that files are read out of
    WORK/kinds/NAME/           the files of a recorded kind
    WORK/kinds/NAME.set/       its shard set, all of it in `val`

A recorded kind is a few files of a package or of a script, so that it is the same on each machine
that has Debian 12 and reaches PyPI. A folder of one's own is a kind too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bytelm.modalities import MODALITIES
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare
from bytelm.tools.experiments import made_files
from bytelm.tools.experiments.package_files import DebianPackage, Package, Wheel, package_files

PYGAME = Wheel("pygame==2.6.1")
SKIMAGE = Wheel("scikit-image==0.26.0")
ISO_CODES = DebianPackage("iso-codes")


@dataclass(frozen=True)
class PackageKind:
    """Files of a package."""

    name: str
    modality: str
    package: Package
    patterns: tuple[str, ...]
    """Patterns of paths in the package."""

    @property
    def source(self) -> str:
        """Where the files come from."""
        return str(self.package)

    def files(self, downloads: Path) -> Iterable[tuple[str, bytes]]:
        """Path and content of each file; `ValueError` where the package cannot be had."""
        return package_files(self.package, self.patterns, downloads)


@dataclass(frozen=True)
class MadeKind:
    """Files that a function makes."""

    name: str
    modality: str
    make: Callable[[], Iterable[tuple[str, bytes]]]
    source: str = "made by made_files.py"

    def files(self, downloads: Path) -> Iterable[tuple[str, bytes]]:
        """Name and content of each file."""
        return self.make()


@dataclass(frozen=True)
class FolderKind:
    """Files of a folder of one's own."""

    folder: Path

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name

    @property
    def source(self) -> str:
        """Where the files come from."""
        return str(self.folder.absolute())


Kind = PackageKind | MadeKind | FolderKind

RECORDED: tuple[PackageKind | MadeKind, ...] = (
    PackageKind("json", "text", ISO_CODES, ("*/json/iso_3166-1.json", "*/json/iso_4217.json")),
    PackageKind("python", "text", Wheel("requests==2.34.2"), ("requests/*.py",)),
    PackageKind("html", "text", PYGAME, ("pygame/docs/generated/ref/m*.html",)),
    PackageKind("xml", "text", DebianPackage("xkb-data"), ("*/rules/base.xml",)),
    PackageKind("csv", "text", Wheel("scikit-learn==1.9.1"), ("sklearn/datasets/data/*.csv",)),
    PackageKind("c", "text", PYGAME, ("*/headers/*.h",)),
    PackageKind(
        "sayings", "text", DebianPackage("fortunes"), ("*/fortunes/law", "*/fortunes/wisdom")
    ),
    PackageKind(
        "icons",
        "image",
        DebianPackage("tango-icon-theme"),
        ("*/32x32/apps/*.png", "*/32x32/devices/*.png"),
    ),
    PackageKind(
        "photographs", "image", SKIMAGE, ("skimage/data/chelsea.png", "skimage/data/coffee.png")
    ),
    PackageKind(
        "grey",
        "image",
        SKIMAGE,
        ("skimage/data/coins.png", "skimage/data/camera.png", "skimage/data/cell.png"),
    ),
    PackageKind("scans", "image", SKIMAGE, ("skimage/data/page.png", "skimage/data/text.png")),
    PackageKind("screenshots", "image", PYGAME, ("*/_images/Bagic-[IP]*-sourcecode.png",)),
    MadeKind("plots", "image", made_files.plots),
    MadeKind("fractals", "image", made_files.fractals),
    MadeKind("tones", "audio", made_files.tones),
    MadeKind("noise", "audio", made_files.noise),
    PackageKind("announcements", "audio", DebianPackage("alsa-utils"), ("*/alsa/Front_*.wav",)),
    PackageKind("effects", "audio", PYGAME, ("pygame/examples/data/*.wav",)),
    PackageKind("signals", "audio", DebianPackage("sound-theme-freedesktop"), ("*/[bc]*.oga",)),
)
"""Three kinds and more of each modality. Sounds of `signals` were coded with loss before."""


def recorded_kinds(of_each: int) -> list[PackageKind | MadeKind]:
    """The first recorded kinds of each modality, `of_each` of them."""
    return [
        kind
        for modality in MODALITIES
        for kind in [kind for kind in RECORDED if kind.modality == modality][:of_each]
    ]


def kind_set(kind: Kind, work: Path, console: Console) -> Path:
    """The shard set of a kind, made unless it exists.

    All of its files are in `val`, but those of a folder that is divided into `train` and others.

    Raises:
        ValueError: where the kind's package cannot be had, or `prepare` refuses the files.
    """
    folder = kind.folder if isinstance(kind, FolderKind) else _recorded_files(kind, work)
    out = work / "kinds" / f"{kind.name}.set"
    prepare([folder], out, PrepareOptions(shares=(0.0, 1.0, 0.0)), console)
    return out


def _recorded_files(kind: PackageKind | MadeKind, work: Path) -> Path:
    """The folder of a recorded kind's files, which appears once all are in it."""
    folder = work / "kinds" / kind.name
    if folder.exists():
        return folder
    partial = folder.with_name(f".{kind.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path, content in kind.files(work / "downloads"):
        # A text of any kind is a text: `prepare` would read tables and captions as such.
        suffix = ".txt" if kind.modality == "text" else ""
        (partial / f"{path.replace('/', '_')}{suffix}").write_bytes(content)
    partial.rename(folder)
    return folder
