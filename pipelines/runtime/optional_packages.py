"""Optional packages: whether one can be imported here."""

from __future__ import annotations

import importlib


def can_import(name: str) -> bool:
    """Whether a package is installed and its import succeeds; imports it.

    A package that is there and does not fit the others of the environment raises in its import,
    often something other than an ImportError. For the caller it is as good as missing.
    """
    try:
        importlib.import_module(name)
    except Exception:
        return False
    return True
