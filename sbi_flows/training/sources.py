"""Where batches come from: arrays resident on the device, or a simulator (or an iterator) that never repeats itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sbi_flows._validation import as_float
from sbi_flows.losses import Batch
from sbi_flows.training.digests import digest_of_tensor

_ROWS_TO_MAP = 2**16


class BatchSource(Protocol):
    """What the training loop needs of its data.

    Attributes
    ----------
    n_rows : int
        Training rows a member sees in an epoch.
    """

    n_rows: int

    def to(self, device: torch.device, dtype: torch.dtype) -> BatchSource:
        """The same source yielding batches on that device and of that dtype."""
        ...

    def epoch(self, members: int, n_steps: int, generator: torch.Generator) -> Iterator[Batch]:
        """``n_steps`` batches, all randomness drawn from ``generator``; ``x`` is (n, d) or (members, n, d)."""
        ...

    def validation(self, members: int) -> Iterator[Batch]:
        """The held-out rows, the same every time; nothing where none are held out."""
        ...

    def description(self) -> dict[str, Any]:
        """JSON-able facts by which a resumed fit knows its data again."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep besides the generator, which the loop keeps itself."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from ``state()``."""
        ...


class ArraySource:
    """Arrays resident on the device; a batch is one gather from each.

    Parameters
    ----------
    x : array_like (n, d)
    context : array_like (n, c) or (n, ...), optional
    weights : array_like (n,), optional
        Sample weights; scaled to mean one over each member's training rows.
    train_rows, validation_rows : array_like of int, (rows,) or (members, rows), optional
        Which rows train and which judge; with two axes every member has its own. By default all rows train and none judge.
    validation_batch_size : int
        Rows of one validation call.

    Raises
    ------
    ValueError
        If lengths differ or an index is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> source = ArraySource(np.zeros((100, 2)), train_rows=np.arange(90), validation_rows=np.arange(90, 100))
    >>> source.n_rows
    90
    """

    def __init__(self, x, context=None, weights=None, train_rows=None, validation_rows=None, *, validation_batch_size: int = 8192):
        self.x = as_float(x, "x")
        self.context = None if context is None else as_float(context, "context")
        self.weights = None if weights is None else as_float(weights, "weights")
        n = len(self.x)
        if self.x.dim() != 2:
            raise ValueError(f"Expected x of shape (n, d); got {tuple(self.x.shape)}. For one column pass x[:, None].")
        for name, part in (("context", self.context), ("weights", self.weights)):
            if part is not None and len(part) != n:
                raise ValueError(f"Expected {name} with one row for each of the {n} rows of x; got {len(part)}.")
        if self.weights is not None and not bool(self.weights.isfinite().all()):
            raise ValueError("Expected finite weights; got NaN or infinite values among them. Set the weight of rows to leave out to 0.")
        self.train_rows = torch.arange(n) if train_rows is None else _as_index(train_rows, n, "train_rows")
        self.validation_rows = torch.arange(0) if validation_rows is None else _as_index(validation_rows, n, "validation_rows")
        self.validation_batch_size = validation_batch_size
        self.n_rows = self.train_rows.shape[-1]
        if self.n_rows == 0:
            raise ValueError("Expected at least one training row; got an empty train_rows or an empty x.")

    def to(self, device: torch.device, dtype: torch.dtype) -> ArraySource:
        """The same source on that device; nothing is copied where nothing changes."""
        moved = ArraySource.__new__(ArraySource)
        moved.__dict__.update(self.__dict__)
        moved.x = self.x.to(device, dtype)
        moved.context = None if self.context is None else self.context.to(device, dtype)
        moved.weights = None if self.weights is None else self.weights.to(device, dtype)
        moved.train_rows, moved.validation_rows = self.train_rows.to(device), self.validation_rows.to(device)
        return moved

    def mapped(self, function: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]) -> ArraySource:
        """The same rows after ``function(x, context)``, which treats each by itself."""
        moved = ArraySource.__new__(ArraySource)
        moved.__dict__.update(self.__dict__)
        contexts = [None] * len(self.x) if self.context is None else self.context.split(_ROWS_TO_MAP)
        parts = [function(*part) for part in zip(self.x.split(_ROWS_TO_MAP), contexts, strict=False)]
        moved.x = torch.cat([x for x, _ in parts])
        moved.context = None if self.context is None else torch.cat([context for _, context in parts if context is not None])
        return moved

    def epoch(self, members: int, n_steps: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of a fresh permutation a member; rows that do not fill a batch sit this epoch out."""
        size = self.n_rows // n_steps
        rows = self._own_rows(self.train_rows, members)
        order = [torch.randperm(self.n_rows, generator=generator, device=rows.device)[: n_steps * size] for _ in range(members)]
        shuffled = rows.gather(1, torch.stack(order)).view(members, n_steps, size).transpose(0, 1).contiguous()
        scale = self._weight_scale(rows)
        for step in range(n_steps):
            yield self._gather(shuffled[step], scale)

    def validation(self, members: int) -> Iterator[Batch]:
        """The validation rows in order."""
        rows = self._own_rows(self.validation_rows, members)
        scale = self._weight_scale(rows)
        for part in rows.split(self.validation_batch_size, dim=1):
            if part.shape[1]:
                yield self._gather(part, scale)

    def description(self) -> dict[str, Any]:
        """Shapes, and hashes of all rows in their order and of the choice of rows that train and judge."""
        data = {"x": self.x, "context": self.context, "weights": self.weights}
        parts = {**data, "train": self.train_rows, "validation": self.validation_rows}
        hashes = {name: digest_of_tensor(part) for name, part in parts.items() if part is not None}
        rows = [list(self.train_rows.shape), list(self.validation_rows.shape)]
        return {"kind": "arrays", "shape": list(self.x.shape), "rows": rows, "hashes": hashes}

    def state(self) -> dict[str, Tensor]:
        """Nothing: every epoch's permutation comes from the loop's generator."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing to restore."""

    def _own_rows(self, rows: Tensor, members: int) -> Tensor:
        if rows.dim() == 1:
            return rows.expand(members, -1)
        if len(rows) != members:
            raise ValueError(f"Expected row indices of shape (rows,) or ({members}, rows) for {members} flows; got {tuple(rows.shape)}.")
        return rows

    def _weight_scale(self, rows: Tensor) -> Tensor | None:
        """One over each member's mean weight, (members, 1)."""
        if self.weights is None or not rows.numel():
            return None
        return 1 / self.weights[rows].mean(dim=1, keepdim=True)

    def _gather(self, rows: Tensor, weight_scale: Tensor | None) -> Batch:
        members, size = rows.shape
        flat = rows.reshape(-1)
        lead = (size,) if members == 1 else (members, size)
        x = self.x.index_select(0, flat).view(*lead, *self.x.shape[1:])
        context = None if self.context is None else self.context.index_select(0, flat).view(*lead, *self.context.shape[1:])
        if self.weights is None or weight_scale is None:
            return Batch(x, context)
        weights = self.weights.index_select(0, flat).view(members, size) * weight_scale
        return Batch(x, context, weights.view(*lead))


class SimulatorSource:
    """Endless fresh rows from a simulator: no row is seen twice, so nothing can be overfitted.

    Parameters
    ----------
    simulate : callable
        ``simulate(n, generator)`` gives ``x (n, d)``, or a pair ``(x, context)``, or a ``Batch``. Randomness drawn from the
        torch ``generator`` it is given is part of a checkpoint, so that a resumed fit sees the same rows.
    n_rows : int
        Rows that make an epoch.
    n_validation : int
        Rows simulated once, before training, to judge by.
    validation_seed : int

    Examples
    --------
    >>> import torch
    >>> source = SimulatorSource(lambda n, g: torch.randn(n, 2, generator=g), n_rows=1000)
    >>> len(next(source.epoch(1, 10, torch.Generator().manual_seed(0))).x)
    100
    """

    def __init__(self, simulate: Callable[[int, torch.Generator], Any], n_rows: int, *, n_validation: int = 1000, validation_seed: int = 0):
        self.simulate = simulate
        self.n_rows = n_rows
        self.n_validation = n_validation
        self.validation_seed = validation_seed
        self._device = torch.device("cpu")
        self._dtype = torch.float32
        self._held_out: Batch | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> SimulatorSource:
        """The same simulator; what it returns is moved to ``device`` and ``dtype``."""
        moved = SimulatorSource(self.simulate, self.n_rows, n_validation=self.n_validation, validation_seed=self.validation_seed)
        moved._device, moved._dtype = device, dtype
        return moved

    def epoch(self, members: int, n_steps: int, generator: torch.Generator) -> Iterator[Batch]:
        """Fresh batches, shared by all members."""
        for _ in range(n_steps):
            yield self._draw(self.n_rows // n_steps, generator)

    def validation(self, members: int) -> Iterator[Batch]:
        """The rows simulated for validation."""
        if not self.n_validation:
            return
        if self._held_out is None:
            generator = torch.Generator(self._device).manual_seed(self.validation_seed)
            self._held_out = self._draw(self.n_validation, generator)
        yield self._held_out

    def description(self) -> dict[str, Any]:
        """Sizes; a simulator cannot be recognised by more."""
        return {
            "kind": "simulator",
            "n_rows": self.n_rows,
            "n_validation": self.n_validation,
            "validation_seed": self.validation_seed,
        }

    def state(self) -> dict[str, Tensor]:
        """Nothing: the loop's generator is all the state there is."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing to restore."""

    def _draw(self, n: int, generator: torch.Generator) -> Batch:
        drawn = self.simulate(n, generator)
        parts = drawn if isinstance(drawn, tuple) else (drawn,)
        named = zip(("x", "context", "weights"), parts, strict=False)
        moved = [None if part is None else as_float(part, name).to(self._device, self._dtype) for name, part in named]
        batch = Batch(*moved)  # type: ignore[arg-type]
        if batch.x.dim() != 2 or len(batch.x) != n:
            raise ValueError(f"Expected simulate({n}, generator) to return x of shape ({n}, d); got {tuple(batch.x.shape)}.")
        return batch


def rows_of(iterator: Iterator[Any]) -> Callable[[int, torch.Generator], Batch]:
    """A ``simulate`` for :class:`SimulatorSource` out of an iterator of chunks of any length.

    Each item is ``x (k, d)``, a pair ``(x, context)``, or a ``Batch``. An iterator cannot be set back: a resumed fit goes on with
    whatever it gives next, so only a fit that is never interrupted is reproducible.

    Examples
    --------
    >>> import itertools, torch
    >>> simulate = rows_of(torch.full((3, 1), float(i)) for i in itertools.count())
    >>> simulate(5, torch.Generator()).x[:, 0].tolist()
    [0.0, 0.0, 0.0, 1.0, 1.0]
    """
    held: list[tuple[Any, ...]] = []

    def simulate(n: int, generator: torch.Generator) -> Batch:
        while sum(map(_length, held)) < n:
            item = next(iterator, None)
            if item is None:
                raise ValueError("Expected an endless iterator; it ended. Use ArraySource for a finite set of rows.")
            parts = item if isinstance(item, tuple) else (item,)
            held.append(tuple(None if part is None else as_float(part, "a chunk") for part in parts))
        columns = [None if parts[0] is None else torch.cat(parts) for parts in zip(*held, strict=True)]
        held[:] = [tuple(None if column is None else column[n:] for column in columns)]
        return Batch(*(None if column is None else column[:n] for column in columns))  # type: ignore[arg-type]

    return simulate


def _length(chunk: tuple[Any, ...]) -> int:
    return 0 if chunk[0] is None else len(chunk[0])


def _as_index(rows: Any, n: int, name: str) -> Tensor:
    index = torch.as_tensor(np.asarray(rows) if not isinstance(rows, Tensor) else rows)
    if index.dtype == torch.bool or index.is_floating_point() or index.dim() not in (1, 2):
        raise ValueError(f"Expected {name} to be row numbers of shape (rows,) or (members, rows); got {index.dtype}, {tuple(index.shape)}.")
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= n):
        raise ValueError(f"Expected {name} within 0 .. {n - 1}; got {int(index.min())} .. {int(index.max())}.")
    return index.long()
