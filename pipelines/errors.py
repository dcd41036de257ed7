"""Errors that one layer raises and another one catches. Importing them is cheap: no torch."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """Class and text of an unforeseen error, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def cause_of(error: BaseException) -> str:
    """Text of an error without line breaks; its class too, unless its text is written for users."""
    is_for_users = isinstance(error, ValueError | OSError)
    return " ".join(str(error).split()) if is_for_users else one_line(error)


class DamageError(ValueError):
    """Stored bytes do not match the index or the manifest."""


class OnAllRanksError(RuntimeError):
    """Every rank raises this error alike, so rank 0 alone prints it."""


class DivergedError(OnAllRanksError):
    """Loss or gradient was not finite in too many steps in a row."""


class CheckpointError(OnAllRanksError):
    """A checkpoint could not be written. Earlier ones are unchanged."""
