"""An evaluation as a table."""

from __future__ import annotations

from rich.table import Table


def evaluation_table(
    metrics: dict[str, dict[str, float]], codecs: dict[str, dict[str, float]], title: str
) -> Table:
    """One line for each modality: bits per byte of the model, then of the codecs."""
    names = ["gzip", "xz", "PNG", "WebP", "FLAC"]
    table = Table(title=title, show_edge=False, pad_edge=False)  # fits 80 columns
    table.add_column("")
    for column in ("bits/byte", "coded", "bytes", *names):
        table.add_column(column, justify="right")
    for modality, figures in metrics.items():
        codec_bits = codecs.get(modality, {})
        table.add_row(
            modality,
            f"[bold]{figures['bits_per_byte']:.3f}[/bold]",
            f"{figures['coded_bits_per_byte']:.3f}",
            f"{int(figures['payload_bytes']):,}",
            *(f"{codec_bits[name]:.3f}" if name in codec_bits else "-" for name in names),
        )
    return table
