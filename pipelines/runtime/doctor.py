"""A look at this machine: what bytelm will use, what is missing, and what brings it.

It imports nothing but the standard library, and each package in another process (`import_probe`).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bytelm.pipelines.runtime import platforms
from bytelm.pipelines.runtime.import_probe import Probe, probe_imports
from bytelm.pipelines.runtime.memory import host_free_bytes, host_limit_bytes

OK, NOTE, MISSING, BROKEN, FAILED = "ok", "note", "missing", "broken", "FAILED"
"""`missing` and `broken` are optional parts, `FAILED` is what bytelm needs."""
LEAST_PYTHON = (3, 11)
LEAST_FREE = 1_000_000_000
"""Free bytes of memory and of a disk below which there is a note."""
LEAST_SHM = 64_000_000
TRAINING_ONLY = ("deepspeed", "webdataset", "tensorboard", "torchaudio", "system")
"""Checks without which a model is still loaded, scored and generated."""
IMPORT_NAMES = {"pillow": "PIL", "pyyaml": "yaml"}
EXTRAS = {
    "tables": "prepare: .parquet and .jsonl.zst",
    "media": "prepare: HEIC, AAC, and the sound of videos",
    "codecs": "evaluate: JPEG XL, PPMd, brotli and zstd beside the model",
    "serve": "the playground",
    "wandb": "the tracker wandb",
    "trackio": "the tracker trackio",
    "s3": "sets at s3://",
    "gs": "sets at gs://",
}
PROGRAMS = {
    "flac": ("flac", "tests: confirms sizes of FLAC"),
    "wavpack": ("wavpack", "evaluate: WavPack beside the model"),
    "cjxl": ("libjxl-tools", "evaluate: JPEG XL, in place of the library"),
    "cwebp": ("webp", "evaluate: WebP, in place of the library"),
    "chromium": ("chromium", "tests: looks at pages"),
}
"""Programs, with Debian's package and what they are for."""
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^\]]*\])?\s*([^;]*)(?:;.*extra == [\"'](\w+)[\"'])?")


@dataclass(frozen=True)
class Check:
    """One line of the result."""

    section: str
    name: str
    status: str
    """OK, NOTE, MISSING, BROKEN or FAILED."""
    value: str
    remedy: str = ""
    """The command, or what to do."""


@dataclass(frozen=True)
class Diagnosis:
    """The result of all checks."""

    checks: list[Check]
    probe: Probe

    @property
    def can_train(self) -> bool:
        """Whether nothing that bytelm needs has failed."""
        return not any(check.status == FAILED for check in self.checks)

    @property
    def can_generate(self) -> bool:
        """Whether a model can be loaded, score and generate."""
        failed = {check.name for check in self.checks if check.status == FAILED}
        return failed <= set(TRAINING_ONLY)

    @property
    def verdict(self) -> str:
        """A sentence that says which work is possible here."""
        failed = ", ".join(check.name for check in self.checks if check.status == FAILED)
        if self.can_train and self.probe.device:
            device = self.probe.device
            on = f"the CPU (threads: {device['threads']})"
            if device["names"]:
                on = f"GPUs ({', '.join(device['names'])})"
            return f"bytelm can train and generate here, on {on} in {device['precision']}"
        if self.can_generate:
            return f"bytelm can generate here, and cannot train: {failed}"
        return f"bytelm cannot work here: {failed}"


def diagnose() -> Diagnosis:
    """Look at the machine, the packages and the programs."""
    needed, extras = requirements()
    names = [*needed, *(name for group in extras.values() for name in group)]
    present = [name for name in dict.fromkeys(names) if _version(name)]
    probe = probe_imports([_module(name) for name in present])
    checks = [*_system_checks(), *_device_checks(probe)]
    checks += map(_space_check, _SPACE_CHECKS)
    checks += [_package_check(name, wanted, probe) for name, wanted in needed.items()]
    if not needed:
        remedy = "pip install -e . in the repository"
        checks.append(Check("packages", "bytelm", FAILED, "is not installed", remedy))
    checks += [_extra_check(extra, list(group), probe) for extra, group in extras.items()]
    checks += [_program_check(program) for program in PROGRAMS]
    return Diagnosis(checks, probe)


def requirements() -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Distributions that bytelm needs, with the versions that fit, and those of each of EXTRAS.

    Both are empty where bytelm is not installed.
    """
    try:
        lines = importlib.metadata.requires("bytelm") or []
    except importlib.metadata.PackageNotFoundError:
        return {}, {}
    needed: dict[str, str] = {}
    extras: dict[str, dict[str, str]] = {extra: {} for extra in EXTRAS}
    for match in map(_REQUIREMENT.match, lines):
        assert match is not None
        name, versions, extra = match.groups()
        if extra is None:
            needed[name] = versions.strip()
        elif extra in extras:
            extras[extra][name] = versions.strip()
    return needed, extras


# --- the machine ---


def _system_checks() -> Iterator[Check]:
    section = "machine"
    system = f"{platforms.system_name()} {platform.release()}, {platform.machine()}"
    if platforms.is_supported():
        yield Check(section, "system", OK, system)
    else:
        value = f"{system}: {platforms.limits_elsewhere()}"
        yield Check(section, "system", FAILED, value, platforms.WAY_OUT)
    least = ".".join(map(str, LEAST_PYTHON))
    is_new = sys.version_info[:2] >= LEAST_PYTHON
    value = f"{platform.python_version()} ({sys.executable})"
    remedy = (
        "" if is_new else f"bytelm needs Python {least} or later: install one, and bytelm in it"
    )
    yield Check(section, "python", OK if is_new else FAILED, value, remedy)
    compiler = _first(("c++", "g++", "clang++"))
    if compiler:
        yield Check(section, "compiler", OK, _first_line([compiler, "--version"]) or compiler)
    else:
        value = "none: train.compile and the DeepSpeed configs with offload need one"
        yield Check(section, "compiler", MISSING, value, "apt-get install g++")


def _device_checks(probe: Probe) -> Iterator[Check]:
    section, device = "machine", probe.device
    cores = _cores()
    value = f"{cores} usable cores"
    if quota := _cpu_quota():
        value += f", limited to the time of {quota:g} by the control group"
    if device:
        value += f"; torch uses {device['threads']} threads"
    if limit := os.environ.get("OMP_NUM_THREADS"):
        value += f" (OMP_NUM_THREADS={limit})"
    yield Check(section, "threads", OK, value)
    if device is None:
        yield Check(section, "device", NOTE, "unknown, since torch cannot be imported")
        return
    precision = device["precision"]
    if device["names"]:
        gpus = zip(device["names"], device["memory"], strict=True)
        value = ", ".join(f"{name} with {_size(memory)}" for name, memory in gpus)
        yield Check(section, "device", OK, f"{value}; CUDA {device['cuda']}")
    elif Path("/dev/nvidia0").exists() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        value = "the CPU: there is a GPU, and this torch cannot use it"
        remedy = "install the torch that fits the driver: pytorch.org/get-started"
        yield Check(section, "device", NOTE, value, remedy)
    else:
        yield Check(section, "device", OK, "the CPU (no GPU that torch can use)")
    what = "bf16 instructions" if precision == "bf16" else "no bf16 instructions"
    yield Check(section, "bf16", OK, f"{what}: train.precision auto is {precision}")
    yield _compile_check(is_gpu=bool(device["names"]))


def _compile_check(is_gpu: bool) -> Check:
    """Whether `torch.compile` has its parts: Triton and a C compiler for a GPU, else C++."""
    missing = {}
    if is_gpu and _version("triton") is None:
        missing["Triton"] = "pip install triton"
    compilers = ("cc", "gcc", "clang") if is_gpu else ("c++", "g++", "clang++")
    if not _first(compilers):
        missing["compiler"] = "apt-get install g++"
    if missing:
        value = f"no {' and no '.join(missing)}: training is not compiled"
        return Check("machine", "train.compile", MISSING, value, "; ".join(missing.values()))
    value = "auto is on" if is_gpu else "auto is off on a CPU; on is possible"
    return Check("machine", "train.compile", OK, value)


def _space_check(name: str) -> Check:
    """One check of memory or of a folder; an error of the system is its value."""
    try:
        return _SPACE_CHECKS[name]()
    except (OSError, AttributeError) as error:  # a folder that is gone; another system
        return Check("space", name, NOTE, f"cannot be told ({error})")


def _memory_check() -> Check:
    free = host_free_bytes()
    value = f"{_size(free)} free of {_size(host_limit_bytes())}"
    return Check("space", "memory", OK if free >= LEAST_FREE else NOTE, value)


def _temporary_check() -> Check:
    try:
        folder = Path(tempfile.gettempdir())
    except OSError as error:
        remedy = "set TMPDIR to a folder that you can write to"
        return Check("space", "TMPDIR", FAILED, f"no usable folder ({error.strerror})", remedy)
    wanted = os.environ.get("TMPDIR")
    if wanted and Path(wanted).resolve() != folder.resolve():
        value = f"{wanted} cannot be written to; {folder} is used"
        return Check("space", "TMPDIR", NOTE, value, f"mkdir -p {wanted}, or unset TMPDIR")
    return _disk_check("TMPDIR", folder)


def _shared_memory_check() -> Check:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Check("space", "/dev/shm", NOTE, "absent: only several GPUs (NCCL) need it")
    free = shutil.disk_usage(folder).free
    if free < LEAST_SHM:
        value = f"{_size(free)} free; several GPUs (NCCL) need more"
        return Check("space", "/dev/shm", NOTE, value, "docker run --shm-size 1g")
    return Check("space", "/dev/shm", OK, f"{_size(free)} free")


def _disk_check(name: str, folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    is_writable = os.access(folder, os.W_OK)
    value = f"{_size(free)} free in {folder}" + ("" if is_writable else ", which is read-only")
    is_good = is_writable and free >= LEAST_FREE
    return Check("space", name, OK if is_good else NOTE, value)


_SPACE_CHECKS = {
    "memory": _memory_check,
    "disk": lambda: _disk_check("disk", Path.cwd()),
    "TMPDIR": _temporary_check,
    "/dev/shm": _shared_memory_check,
}


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_quota() -> float | None:
    """Processors whose time the control group (version 2) grants; None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # absent, or "max"
        return None


# --- packages and programs ---


def _package_check(name: str, wanted: str, probe: Probe) -> Check:
    version = _version(name)
    if version is None:
        remedy = f"pip install '{name}{wanted}'"
        return Check("packages", name, FAILED, "is not installed", remedy)
    if error := probe.errors.get(_module(name)):
        remedy = f"pip install --force-reinstall '{name}{wanted}'"
        return Check("packages", name, FAILED, f"{version}, broken: {error}", remedy)
    if not _fits(version, wanted):
        return Check(
            "packages", name, FAILED, f"{version}, not {wanted}", f"pip install '{name}{wanted}'"
        )
    return Check("packages", name, OK, version)


def _extra_check(extra: str, names: Sequence[str], probe: Probe) -> Check:
    purpose, remedy = EXTRAS[extra], f"pip install 'bytelm[{extra}]'"
    missing = [name for name in names if _version(name) is None]
    broken = [
        f"{name} {_version(name)} is broken: {error}"
        for name in names
        if (error := probe.errors.get(_module(name)))
    ]
    if missing:
        value = f"no {', '.join(missing)}; for {purpose}"
        return Check("optional", extra, MISSING, value, remedy)
    if broken:
        again = f"pip install --force-reinstall {' '.join(names)}"
        return Check("optional", extra, BROKEN, f"{'; '.join(broken)}; for {purpose}", again)
    value = ", ".join(f"{name} {_version(name)}" for name in names)
    return Check("optional", extra, OK, value)


def _program_check(program: str) -> Check:
    package, purpose = PROGRAMS[program]
    path = shutil.which(program)
    if path:
        return Check("programs", program, OK, path)
    remedy = f"apt-get install {package}"
    return Check("programs", program, MISSING, f"for {purpose}", remedy)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except Exception:  # also metadata that is damaged
        return None


def _fits(version: str, wanted: str) -> bool:
    """Whether a version is one of those wanted; True where that cannot be told."""
    try:
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(wanted).contains(version, prereleases=True)
    except Exception:  # no such package, or a version by no rule
        return True


def _module(distribution: str) -> str:
    return IMPORT_NAMES.get(distribution.lower(), distribution.replace("-", "_"))


def _first(programs: Sequence[str]) -> str | None:
    return next((path for name in programs if (path := shutil.which(name))), None)


def _first_line(command: Sequence[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.partition("\n")[0].strip()


def _size(count: float) -> str:
    """A number of bytes for people."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
