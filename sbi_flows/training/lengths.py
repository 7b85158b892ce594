"""How long a fit is, where its settings leave that open: epochs, and steps in each."""

from __future__ import annotations

import numpy as np

from sbi_flows._validation import positive


def steps_per_epoch(n_rows: int, batch_size: int | str) -> int:
    """Batches an epoch; "auto" makes a batch 2.5 sqrt(n) rows, as a power of two from 64 to 1024."""
    if batch_size == "auto":
        batch_size = int(2 ** np.clip(np.round(np.log2(np.sqrt(n_rows) * 2.5)), 6, 10))
    positive("batch_size", batch_size, integer=True)
    return max(1, round(n_rows / int(batch_size)))


def n_epochs(n_rows: int, n_steps: int, max_epochs: int | str) -> int:
    """Epochs at most; "auto" is a thousand steps and more for many rows, between 10 and 100 epochs."""
    if max_epochs == "auto":
        wanted = 1000 * max(1.0, (n_rows / 1e4) ** 0.25)
        return int(np.clip(round(wanted / n_steps), 10, 100))
    return int(positive("max_epochs", max_epochs, integer=True))


def auto_epochs(n_rows: int, batch_size: int | str = "auto") -> int:
    """What ``max_epochs="auto"`` of :func:`sbi_flows.training.train` stands for."""
    return n_epochs(n_rows, steps_per_epoch(n_rows, batch_size), "auto")
