"""The training loop, and the sources of the batches it takes."""

from sbi_flows.training.disk import BlockSource, hdf5_arrays, zarr_arrays
from sbi_flows.training.loop import Callback, EpochReport, train
from sbi_flows.training.sources import ArraySource, BatchSource, SimulatorSource, rows_of

__all__ = [
    "ArraySource",
    "BatchSource",
    "BlockSource",
    "Callback",
    "EpochReport",
    "SimulatorSource",
    "hdf5_arrays",
    "rows_of",
    "train",
    "zarr_arrays",
]
