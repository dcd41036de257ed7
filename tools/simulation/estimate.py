"""One line of the simulation's result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """What one thing costs at one scale."""

    name: str
    """Topic and thing, as `merge/write`."""
    value: float
    unit: str
    bound: str = ""
    """The resource that decides the value."""
    breaks: str = ""
    """Why this does not work at this scale, and the way out; empty where it works."""


def slowest(seconds: dict[str, float]) -> tuple[float, str]:
    """The longest of several times that overlap, and its name."""
    bound = max(seconds, key=lambda name: seconds[name])
    return seconds[bound], bound
