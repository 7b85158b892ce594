"""Several processes, one fit: each takes its rows of every batch, and gradients are averaged once a step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sbi_flows.losses import Batch
from sbi_flows.training.findings import Findings, findings_of
from sbi_flows.training.sources import BatchSource


class Processes:
    """The processes that fit together: those of ``torch.distributed`` where it is initialised, else this one alone.

    All hold the same data, settings and seed, draw the same batches, and take every ``size``-th row of each, so that the fit is that of one
    process with the joint batch, but for rounding (and for the noise of losses that draw any, of which each process has its own).

    Parameters
    ----------
    device : torch.device
        Of the flows: what is exchanged lies there.

    Attributes
    ----------
    rank, size : int
    """

    def __init__(self, device: torch.device):
        several = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        self._device = device

    @property
    def first(self) -> bool:
        """Whether this one writes files and shows progress."""
        return self.rank == 0

    def agree(self, settings: dict[str, Any], batch_rows: int) -> None:
        """``ValueError`` where processes were given different data or settings, or have not one row of a batch each."""
        if self.size == 1:
            return
        if batch_rows < self.size:
            raise ValueError(f"Expected batches of at least {self.size} rows, one a process; got {batch_rows}. Raise batch_size.")
        # As bytes in a tensor, which every backend can move.
        own = torch.tensor(list(json.dumps(settings, sort_keys=True, default=str).encode()), dtype=torch.int64, device=self._device)
        summary = torch.stack([own.sum(), (own * torch.arange(1, len(own) + 1, device=self._device)).sum(), own.new_tensor(len(own))])
        ends = torch.cat([summary, -summary])
        self._reduce(ends, dist.ReduceOp.MAX)
        if not torch.equal(ends[:3], -ends[3:]):
            raise ValueError(
                f"Expected the same data and settings in each of the {self.size} processes; they differ. Load the same rows in all of "
                "them, and give random_state: without it every process splits and starts by chance of its own."
            )

    def begin(self, tensors: list[Tensor], generator: torch.Generator) -> None:
        """Give all processes the first one's tensors and its generator's state."""
        if self.size == 1:
            return
        state = generator.get_state().to(self._device)
        for tensor in (*tensors, state):
            # Not every backend moves booleans.
            sent = tensor.byte() if tensor.dtype == torch.bool else tensor.detach().contiguous()
            self._guarded(dist.broadcast, sent, 0)
            with torch.no_grad():
                tensor.copy_(sent)
        generator.set_state(state.cpu())

    def same_epoch(self, epoch: int) -> None:
        """``ValueError`` where processes would go on from different checkpoints."""
        ends = torch.tensor([epoch, -epoch], dtype=torch.int64, device=self._device)
        self._reduce(ends, dist.ReduceOp.MAX)
        if ends[0] != -ends[1]:
            raise ValueError(
                f"Expected every process to find the checkpoint of the same epoch; they found {-int(ends[1])} to {int(ends[0])}. Put it on "
                "a file system that all of them see."
            )

    def share(self, source: BatchSource) -> BatchSource:
        """What this process sees of a source."""
        return source if self.size == 1 else _Share(source, self.rank, self.size)

    def noise(self, generator: torch.Generator, epoch: int) -> torch.Generator:
        """What losses draw from in an epoch: the loop's own generator, or one of this process that needs no saving."""
        if self.size == 1:
            return generator
        (seed,) = np.random.SeedSequence([generator.initial_seed(), epoch + 1, self.rank]).generate_state(1, np.uint64)
        return torch.Generator(generator.device).manual_seed(int(seed) >> 1)

    def joint(self, gradient: Tensor, losses: Tensor, n_rows: int) -> Tensor:
        """Average a gradient ``(members, P)`` in place over the rows of all processes, and return the losses ``(members,)`` so averaged."""
        if self.size == 1:
            return losses
        flat = torch.cat([gradient.flatten(), losses.detach().to(gradient.dtype), gradient.new_ones(1)]) * n_rows
        self._reduce(flat, dist.ReduceOp.SUM)
        flat /= flat[-1].clone()
        gradient.copy_(flat[: gradient.numel()].view_as(gradient))
        return flat[gradient.numel() : -1].to(losses.dtype)

    def total(self, sums: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over all processes, and the largest of each of some numbers."""
        if self.size > 1:
            self._reduce(sums, dist.ReduceOp.SUM)
            self._reduce(largest, dist.ReduceOp.MAX)
        return sums, largest

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        if self.size == 1:
            return here
        flag = torch.tensor([int(here)], device=self._device)
        self._reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def _reduce(self, tensor: Tensor, operation: Any) -> None:
        if self.size > 1:
            self._guarded(dist.all_reduce, tensor, operation)

    def _guarded(self, exchange: Any, tensor: Tensor, argument: Any) -> None:
        try:
            exchange(tensor, argument)
        except RuntimeError as error:  # of the backend, where a process has gone or does not answer
            raise ConnectionError(
                f"Process {self.rank} of {self.size} lost another one in the middle of a fit ({str(error).splitlines()[0][:200]}). See "
                "that one's message, then start all of them again: with checkpoint= the fit goes on from the last epoch written, without "
                "it from the beginning."
            ) from error


class _Share:
    """Every ``size``-th row of each batch of another source, from row ``rank`` on."""

    def __init__(self, source: BatchSource, rank: int, size: int):
        self._source, self._rank, self._size = source, rank, size
        self.n_rows = source.n_rows

    def to(self, device: torch.device, dtype: torch.dtype) -> _Share:
        return _Share(self._source.to(device, dtype), self._rank, self._size)

    def epoch(self, members: int, n_steps: int, generator: torch.Generator) -> Iterator[Batch]:
        for batch in self._source.epoch(members, n_steps, generator):
            yield self._own(batch)

    def validation(self, members: int) -> Iterator[Batch]:
        for batch in self._source.validation(members):
            own = self._own(batch)
            if own.x.shape[-2]:
                yield own

    def description(self) -> dict[str, Any]:
        return self._source.description()

    def findings(self) -> Findings:
        return findings_of(self._source)

    def state(self) -> dict[str, Tensor]:
        return self._source.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        self._source.restore(state)

    def _own(self, batch: Batch) -> Batch:
        rows = (slice(None),) * (batch.x.dim() - 2) + (slice(self._rank, None, self._size),)
        x, context, weights = (None if part is None else part[rows] for part in batch)
        return Batch(cast(Tensor, x), context, weights)
