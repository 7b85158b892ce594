"""Batches from arrays too large for memory: a NumPy memory map, HDF5 or Zarr, read in blocks of neighbouring rows."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_flows._validation import as_float, positive
from sbi_flows.losses import Batch
from sbi_flows.training.digests import digest_on_disk
from sbi_flows.training.findings import Findings, RowWatch


class BlockSource:
    """Rows of arrays on disk, shuffled in two stages: the order of the blocks, then the rows of some blocks held in memory.

    Whole blocks are held out for validation, so that neighbouring rows (of one chain, say) never sit on both sides. The next
    blocks are read while the present ones train. All members of an ensemble share the batches.

    Parameters
    ----------
    x : array on disk (n, d)
        ``np.memmap``, ``h5py.Dataset``, ``zarr.Array``: anything with ``shape`` that gives rows for ``x[start:stop]``.
    context : the same (n, c) or (n, ...), optional
    weights : the same (n,), optional
    validation_fraction : float
        Share of the blocks held out, in [0, 1); above zero at least one block.
    block_rows : int
        Rows read at once; a multiple of the file's chunk is best. Halved for short arrays until there are ten blocks.
    blocks_in_memory : int
        Blocks whose rows are shuffled together. The order of an epoch is more random the more there are.
    seed : int
        Chooses the validation blocks.

    Raises
    ------
    ValueError
        If lengths differ or there are no rows.

    Examples
    --------
    >>> import numpy as np
    >>> source = BlockSource(np.zeros((1000, 3)), block_rows=50)
    >>> source.n_rows
    900
    """

    def __init__(self, x, context=None, weights=None, *, validation_fraction=0.1, block_rows=8192, blocks_in_memory=32, seed=0):
        parts = {"x": x, "context": context, "weights": weights}
        self._arrays = {name: part for name, part in parts.items() if part is not None}
        n = int(x.shape[0])
        for name, part in self._arrays.items():
            if int(part.shape[0]) != n:
                raise ValueError(f"Expected {name} with one row for each of the {n} rows of x; got {part.shape[0]}.")
        if len(x.shape) != 2 or n == 0:
            raise ValueError(f"Expected x of shape (n, d) with some rows; got {tuple(x.shape)}.")
        if not 0 <= validation_fraction < 1:
            raise ValueError(f"Expected validation_fraction in [0, 1); got {validation_fraction!r}.")
        positive("block_rows", block_rows, integer=True)
        self._blocks_in_memory = positive("blocks_in_memory", blocks_in_memory, integer=True)
        while block_rows > 1 and n < 10 * block_rows:
            block_rows = (block_rows + 1) // 2
        starts = np.arange(0, n, block_rows)
        order = np.random.default_rng(seed).permutation(len(starts))
        n_held = min(max(round(validation_fraction * len(starts)), validation_fraction > 0), len(starts) - 1)
        blocks = [(int(start), int(min(start + block_rows, n))) for start in starts]
        self._held_out = [blocks[i] for i in sorted(order[:n_held])]
        self._training = [blocks[i] for i in sorted(order[n_held:])]
        self.n_rows = sum(stop - start for start, stop in self._training)
        self._mean_weight = self._measure_weight()
        self._device, self._dtype = torch.device("cpu"), torch.float32
        self._watch = RowWatch(self._arrays)

    def to(self, device: torch.device, dtype: torch.dtype) -> BlockSource:
        """The same source; blocks are moved to ``device`` and ``dtype`` as they are read."""
        moved = BlockSource.__new__(BlockSource)
        moved.__dict__.update(self.__dict__)
        moved._device, moved._dtype = device, dtype
        moved._watch = RowWatch(self._arrays)
        return moved

    def epoch(self, members: int, n_steps: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of shuffled rows; rows that do not fill a batch at the end of the epoch are left out."""
        size = self.n_rows // n_steps
        order = torch.randperm(len(self._training), generator=generator, device=generator.device).tolist()
        groups = [order[i : i + self._blocks_in_memory] for i in range(0, len(order), self._blocks_in_memory)]
        left: Batch | None = None
        n_given = 0
        with ThreadPoolExecutor(max_workers=1) as reader:
            pending = reader.submit(self._read, [self._training[i] for i in groups[0]])
            for g in range(len(groups)):
                rows = _join(left, pending.result())
                if g + 1 < len(groups):
                    pending = reader.submit(self._read, [self._training[i] for i in groups[g + 1]])
                shuffle = torch.randperm(len(rows.x), generator=generator, device=self._device)
                n_full = min(len(rows.x) // size, n_steps - n_given)
                for k in range(n_full):
                    yield _take(rows, shuffle[k * size : (k + 1) * size])
                n_given += n_full
                left = _take(rows, shuffle[n_full * size :])

    def validation(self, members: int) -> Iterator[Batch]:
        """The held-out blocks, one a batch."""
        for block in self._held_out:
            yield self._read([block])

    def sample(self, n: int = 10_000) -> Batch:
        """Up to ``n`` training rows from blocks spread over the arrays: enough for ``flow.fit_scaling(rows.x, rows.context)``."""
        per_block = self._training[0][1] - self._training[0][0]
        stride = max(1, len(self._training) * per_block // (2 * n))
        rows = self._read(self._training[::stride])
        n = min(n, len(rows.x))
        return _take(rows, torch.arange(n, device=self._device) * len(rows.x) // n)

    def description(self) -> dict[str, Any]:
        """Shapes, blocks, and hashes: of all weights, and of all rows of other arrays up to 256 MiB or else of 16 parts of them."""
        shapes = {name: list(map(int, part.shape)) for name, part in self._arrays.items()}
        hashes = {name: digest_on_disk(part, whole=name == "weights") for name, part in self._arrays.items()}
        return {"kind": "blocks", "shapes": shapes, "held_out": [list(b) for b in self._held_out], "hashes": hashes,
                "in_memory": self._blocks_in_memory, "block": self._training[0][1] - self._training[0][0]}  # fmt: skip

    def findings(self) -> Findings:
        """What is odd about the rows read so far: NaN, rows or chunks that were never written."""
        return self._watch.findings()

    def state(self) -> dict[str, Tensor]:
        """Nothing: every epoch's order comes from the loop's generator."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing to restore."""

    def _read(self, blocks: list[tuple[int, int]]) -> Batch:
        read = []
        for start, stop in blocks:
            own = {name: as_float(np.asarray(part[start:stop]), name).to(self._dtype) for name, part in self._arrays.items()}
            self._watch.look(start, own)
            read.append(own)
        found = {name: torch.cat([own[name] for own in read]).to(self._device) for name in self._arrays}
        if "weights" in found:
            found["weights"] = found["weights"] / self._mean_weight
        return Batch(**found)

    def _measure_weight(self) -> float:
        if "weights" not in self._arrays:
            return 1.0
        total = sum(float(np.asarray(self._arrays["weights"][start:stop], dtype=np.float64).sum()) for start, stop in self._training)
        if not np.isfinite(total):
            raise ValueError("Expected finite weights; got NaN or infinite values among them. Set the weight of rows to leave out to 0.")
        if not total > 0:
            raise ValueError("Expected some positive weights; got none in the training blocks, which leave nothing to fit.")
        return total / self.n_rows


def hdf5_arrays(path: str | Path, *names: str) -> tuple[Any, ...]:
    """Datasets of an HDF5 file, left on disk: ``BlockSource(*hdf5_arrays("simulations.h5", "theta", "x"))``.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file or a dataset is missing.
    """
    import h5py

    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected an HDF5 file at {path}; there is none.")
    return _pick(h5py.File(path, "r"), path, names)


def zarr_arrays(path: str | Path, *names: str) -> tuple[Any, ...]:
    """Arrays of a Zarr group, left on disk: ``BlockSource(*zarr_arrays("simulations.zarr", "theta", "x"))``.

    Raises
    ------
    ImportError
        If the optional package zarr is not installed.
    FileNotFoundError, ValueError
        If the group or an array is missing.
    """
    try:
        import zarr
    except ImportError as error:
        raise ImportError("Zarr arrays need the optional package zarr: pip install 'sbi_flows[zarr]'.") from error
    if not Path(path).exists():
        raise FileNotFoundError(f"Expected a Zarr group at {path}; there is none.")
    return _pick(zarr.open_group(str(path), mode="r"), path, names)


def _pick(group: Any, path: str | Path, names: tuple[str, ...]) -> tuple[Any, ...]:
    present = sorted(group.keys())
    missing = [name for name in names if name not in present]
    if missing or not names:
        wanted = f"no {', '.join(map(repr, missing))}" if missing else "no name was given"
        raise ValueError(f"Expected names of arrays in {path}; {wanted}. It holds {', '.join(map(repr, present)) or 'nothing'}.")
    return tuple(group[name] for name in names)


def _join(first: Batch | None, second: Batch) -> Batch:
    if first is None:
        return second
    return Batch(*(None if a is None or b is None else torch.cat([a, b]) for a, b in zip(first, second, strict=True)))  # type: ignore[arg-type]


def _take(rows: Batch, index: Tensor) -> Batch:
    return Batch(*(None if part is None else part.index_select(0, index) for part in rows))  # type: ignore[arg-type]
