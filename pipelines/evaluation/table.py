"""The evaluation as a table for people."""

from __future__ import annotations

from rich.table import Table


def evaluation_table(
    metrics: dict[str, dict[str, float]], codecs: dict[str, dict[str, float]], title: str
) -> Table:
    """A line for each modality: the model's bits per byte and, beside it, the codecs'."""
    names = ["gzip", "xz", "PNG", "WebP", "FLAC"]
    table = Table(title=title, show_edge=False, pad_edge=False)  # within 80 columns
    table.add_column("")
    for column in ("bits/byte", "coded", "bytes", *names):
        table.add_column(column, justify="right")
    for modality, figures in metrics.items():
        beside = codecs.get(modality, {})
        table.add_row(
            modality,
            f"[bold]{figures['bits_per_byte']:.3f}[/bold]",
            f"{figures['coded_bits_per_byte']:.3f}",
            f"{int(figures['payload_bytes']):,}",
            *(f"{beside[name]:.3f}" if name in beside else "-" for name in names),
        )
    return table
