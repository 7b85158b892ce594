"""What every figure shares: a palette, an empty figure, and a way to the disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from sbi_flows._files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's palette, distinguishable under every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#8C8C8C"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, free of pyplot's state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write the figure; the ending (.png, .pdf, .svg) chooses the format. The file appears whole or not at all."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Expected a folder to write {path.name} to; {path.parent.absolute()} does not exist. Make it first.")
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.removeprefix(".") or None, dpi=160)
    write_atomic(path, content.getvalue())
    return path
