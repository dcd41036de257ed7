"""Errors that several layers raise or catch; importing them costs nothing."""

from __future__ import annotations


class OnAllRanksError(RuntimeError):
    """An error that every rank raises alike, so that rank 0 alone says it."""


class DivergedError(OnAllRanksError):
    """Too many steps in a row whose loss or gradient was not finite."""


class CheckpointError(OnAllRanksError):
    """A checkpoint that could not be written; the ones before it are as they were."""


class DamageError(ValueError):
    """Stored bytes that are not what the index or the manifest says."""
