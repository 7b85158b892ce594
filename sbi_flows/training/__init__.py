"""The training loop, and the sources of the batches it takes."""

from sbi_flows.training.loop import Callback, EpochReport, train
from sbi_flows.training.sources import ArraySource, BatchSource, SimulatorSource

__all__ = ["ArraySource", "BatchSource", "Callback", "EpochReport", "SimulatorSource", "train"]
