"""Tables on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_ANY_WIDTH = 100_000


def print_table(console: Console, table: Table) -> None:
    """Print a table that is never cut; a terminal that is narrower wraps its lines."""
    columns = console.width
    options = console.options.update(width=_ANY_WIDTH)
    console.width = max(columns, console.measure(table, options=options).maximum)
    try:
        console.print(table, crop=False)
    finally:
        console.width = columns
