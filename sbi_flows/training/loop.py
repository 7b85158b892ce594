"""The only training loop of the package."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sbi_flows._random import RandomState, torch_generator
from sbi_flows._threads import CALL, threads_for
from sbi_flows._validation import choose, positive
from sbi_flows.losses import Loss, nll
from sbi_flows.results import FitHistory
from sbi_flows.training.adamw import AdamW
from sbi_flows.training.checkpoints import Checkpoint, FitState
from sbi_flows.training.findings import findings_of
from sbi_flows.training.lengths import n_epochs, steps_per_epoch
from sbi_flows.training.processes import Processes
from sbi_flows.training.schedules import SCHEDULES
from sbi_flows.training.sources import BatchSource
from sbi_flows.training.stacking import StackedFlows
from sbi_flows.training.verdict import verdict

_BAD_ROW_PENALTY = 1e3  # nats: no improvement elsewhere may pay for a validation row that lost its density


@dataclass(frozen=True)
class EpochReport:
    """What a callback is told after every epoch.

    Attributes
    ----------
    epoch, max_epochs : int
        Epochs done and allowed.
    train_loss, validation_loss, best_loss : ndarray (members,)
        In nats a row; the best so far is of the validation rows.
    learning_rate : float
    n_skipped : int
        Steps skipped so far.
    """

    epoch: int
    max_epochs: int
    train_loss: np.ndarray
    validation_loss: np.ndarray
    best_loss: np.ndarray
    learning_rate: float
    n_skipped: int


Callback = Callable[[EpochReport], bool | None]


def train(
    flows: nn.Module | Sequence[nn.Module],
    source: BatchSource,
    *,
    loss: Loss = nll,
    max_epochs: int | str = "auto",
    batch_size: int | str = "auto",
    learning_rate: float = 1e-2,
    schedule: str = "one-cycle",
    patience: int = 20,
    clip_norm: float = 5.0,
    weight_decay: float = 0.1,
    averaging: float = 0.1,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 10.0,
    progress: bool = False,
    random_state: RandomState = None,
) -> FitHistory:
    """Train a flow, or several of one architecture at once, in place.

    What is validated and kept is a running average of the weights over the last tenth of the steps, as an optimiser at a useful
    learning rate wanders about the minimum. Every member keeps the average with which its validation loss was lowest (the weights
    before training included; the last average where nothing is held out). A member whose validation loss has not fallen for
    ``patience`` epochs is done; the fit ends when all are. Steps whose loss or gradient is not finite add nothing but a count; a
    member that sees a whole epoch of them is ended with its best weights. Nothing in a step waits for the device.

    Where ``torch.distributed`` is initialised, its processes fit together, each a share of the rows of every batch: the same fit as that of
    one process, but for rounding. All must be given the same data, settings and ``random_state``; all end with the same weights.

    Parameters
    ----------
    flows : Flow or sequence of Flow
        On one device, of one dtype. Several train together with stacked weights under one optimiser.
    source : BatchSource
        ``ArraySource``, ``BlockSource`` (memory map, HDF5, Zarr), ``SimulatorSource`` or anything with their methods.
    loss : callable
        ``loss(flow, batch, generator) -> (n,)``.
    max_epochs : int or "auto"
        Length of the fit and of its schedule; "auto" aims at 1000 steps for up to 1e4 rows, growing as the fourth root beyond, in 10
        to 100 epochs.
    batch_size : int or "auto"
        Rows of a step, adjusted a little so that an epoch is a whole number of steps; "auto" is about 2.5 sqrt(rows), a power of
        two from 64 to 1024.
    learning_rate : float
        The schedule's peak. The default is high: together with averaging that halved the divergence from the truth that 3e-3 left
        (``benchmarks/defaults.py``).
    schedule : {"one-cycle", "cosine", "constant"}
    patience : int
        Epochs.
    clip_norm : float
        Largest Euclidean norm of a member's gradient; longer ones are shortened to it.
    weight_decay : float
        Decoupled, as in AdamW.
    averaging : float
        Share, in [0, 1), of the steps so far over which weights are averaged; 0 keeps the weights as they are.
    callbacks : sequence of callable
        Each gets an ``EpochReport``; returning True ends the fit.
    checkpoint : path, optional
        File to keep the fit in. If it is there already and holds this fit, the fit resumes, to the same bits as if it had never
        been interrupted; if it holds another, ``ValueError``.
    checkpoint_seconds : float
        Least time between two writes; 0 writes after every epoch.
    progress : bool
        Show a progress bar on standard error.
    random_state : int, generator or None
        Seeds batch order and the loss's noise.

    Returns
    -------
    FitHistory
        With a verdict in ``reliability``.

    Raises
    ------
    ValueError
        For settings out of range, flows that differ, a checkpoint of another fit, or processes with other data or settings.
    ConnectionError
        In the processes that are left when one of several has ended in the middle of a fit.

    Examples
    --------
    >>> import numpy as np
    >>> from sbi_flows.flows import maf
    >>> from sbi_flows.training import ArraySource, train
    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> flow = maf(2)
    >>> history = train(flow, ArraySource(x, validation_rows=np.arange(20)), max_epochs=2, random_state=0)
    >>> history.n_steps > 0
    True

    References
    ----------
    Loshchilov & Hutter 2019, "Decoupled weight decay regularization", arXiv:1711.05101 (the optimiser); Karras et al. 2024,
    "Analyzing and improving the training dynamics of diffusion models", arXiv:2312.02696 (the average, a power function).
    """
    members = [flows] if isinstance(flows, nn.Module) else list(flows)
    if not members:
        raise ValueError("Expected at least one flow to train; got an empty sequence.")
    choose("schedule", schedule, list(SCHEDULES))
    positive("learning_rate", learning_rate)
    positive("patience", patience, integer=True)
    positive("clip_norm", clip_norm)
    positive("weight_decay", weight_decay, zero=True)
    positive("averaging", averaging, zero=True)
    if averaging >= 1:
        raise ValueError(f"Expected averaging in [0, 1), a share of the steps so far; got {averaging!r}.")
    first = next(iter(members[0].parameters()))
    source = source.to(first.device, getattr(members[0], "data_dtype", first.dtype))
    n_steps = steps_per_epoch(source.n_rows, batch_size)
    epochs = n_epochs(source.n_rows, n_steps, max_epochs)
    processes = Processes(first.device)
    settings = {
        "max_epochs": epochs,
        "steps_per_epoch": n_steps,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "patience": patience,
        "clip_norm": clip_norm,
        "weight_decay": weight_decay,
        "averaging": averaging,
        "members": len(members),
        # Its rows are hashed only where somebody compares them.
        "source": None if checkpoint is None and processes.size == 1 else source.description(),
    }
    saver = None if checkpoint is None else Checkpoint(Path(checkpoint), settings)
    processes.agree({**settings, "random_state": random_state if isinstance(random_state, int) else None}, source.n_rows // n_steps)
    fit = _Fit(members, source, loss, settings, torch_generator(random_state, first.device), saver, processes)
    try:
        fit.run(callbacks, checkpoint_seconds, progress)
    finally:
        fit.release()  # on Ctrl-C too the flows are left with their best weights
    return fit.history()


class _Fit:
    """One run of the loop: the stacked flows, the optimiser, the source and the state between epochs."""

    def __init__(
        self,
        flows: Sequence[nn.Module],
        source: BatchSource,
        loss: Loss,
        settings: dict,
        generator: torch.Generator,
        saver: Checkpoint | None,
        processes: Processes,
    ):
        self.loss, self.settings, self.generator, self.saver, self.processes = loss, settings, generator, saver, processes
        self.stack = StackedFlows(flows, loss)
        processes.begin([self.stack.values, *self.stack.constants().values()], generator)
        self.stack.refresh_constants()
        self.source = processes.share(self.stack.entering(source))
        self.optimizer = AdamW(self.stack.values, settings["weight_decay"])
        self.state = FitState.start(self.stack.values)
        self.average = self.stack.values.detach().clone()
        self._rate = SCHEDULES[settings["schedule"]]

    def run(self, callbacks: Sequence[Callback], checkpoint_seconds: float, progress: bool) -> None:
        """Go through the epochs that are left."""
        state, epochs = self.state, self.settings["max_epochs"]
        if self.saver is not None and self.saver.path.exists():
            state = self.state = self._resume(self.saver)
        self.processes.same_epoch(state.epoch)
        if state.epoch == 0:
            loss, bad = self._validate()
            if loss is not None:
                state.best_loss, state.bad_validation = np.where(np.isfinite(loss), loss, np.inf), bad
        before, began = state.seconds, time.perf_counter()
        last_save = began
        bar = tqdm(total=epochs, initial=state.epoch, desc="training", unit="epoch", disable=not progress or not self.processes.first)
        with bar:
            while not state.finished:
                self._epoch()
                state.seconds = before + time.perf_counter() - began
                report = self._report()
                # Every callback hears of every epoch, also after one of them has asked to stop.
                if self.processes.any(any([bool(callback(report)) for callback in callbacks])):
                    state.finished = state.finished or "callback"
                bar.update()
                bar.set_postfix(loss=f"{state.train_loss[-1].mean():.3f}", validation=f"{state.validation_loss[-1].mean():.3f}")
                due = state.finished or time.perf_counter() - last_save >= checkpoint_seconds
                if self.saver is not None and self.processes.first and due:
                    self.saver.save(state, self._tensors())
                    last_save = time.perf_counter()

    def release(self) -> None:
        """Leave the flows with their best weights."""
        self.stack.write(self.state.best)
        self.stack.release()

    def history(self) -> FitHistory:
        """The record of the fit, with its verdict."""
        state = self.state
        return FitHistory(
            train_loss=np.array(state.train_loss),
            validation_loss=np.array(state.validation_loss),
            learning_rate=np.array(state.learning_rate),
            best_epoch=state.best_epoch.copy(),
            n_steps=state.n_steps,
            n_skipped=int(state.n_skipped.sum()),
            seconds=state.seconds,
            stopped=state.finished,
            reliability=verdict(state, findings_of(self.source)),
            loss=_name_of(self.loss),
        )

    def _epoch(self) -> None:
        state = self.state
        n_steps, total = self.settings["steps_per_epoch"], self.settings["max_epochs"] * self.settings["steps_per_epoch"]
        sums = torch.zeros(2, self.stack.members, dtype=torch.float64, device=self.stack.values.device)
        rate = 0.0
        noise = self.processes.noise(self.generator, state.epoch)
        for batch in self.source.epoch(self.stack.members, n_steps, self.generator):
            rate = self.settings["learning_rate"] * self._rate(state.n_steps / total)
            state.n_steps += 1
            with threads_for(self.stack.multiply_adds(batch)):
                self._step(batch, rate, sums, noise)
        total_loss, n_good = sums.cpu().numpy()  # the epoch's one look at the device, besides validation's
        n_bad = n_steps - n_good
        state.n_skipped = state.n_skipped + n_bad
        state.learning_rate.append(rate)
        with np.errstate(invalid="ignore", divide="ignore"):
            state.train_loss.append(np.where(n_good > 0, total_loss / n_good, np.nan))
        loss, bad = self._validate()
        self._judge(state.train_loss[-1] if loss is None else loss, bad, held_out=loss is not None, blank=n_good == 0)

    def _step(self, batch, rate: float, sums: Tensor, noise: torch.Generator) -> None:
        """One optimiser step. No value is read back from the device here."""
        rows = self.stack.losses(batch, noise)
        losses = (rows if batch.weights is None else rows * batch.weights).mean(dim=1)
        self.stack.backward(losses)
        losses = self.processes.joint(self.stack.gradient, losses, rows.shape[1])
        with torch.no_grad():
            gradient = self.stack.gradient
            norm = torch.linalg.vector_norm(gradient, dim=1)
            good = torch.isfinite(norm) & torch.isfinite(losses)
            gradient.mul_((self.settings["clip_norm"] / norm).clamp_(max=1.0)[:, None])
            gradient.masked_fill_(~good[:, None], 0.0)
            sums += torch.stack([torch.where(good, losses, 0.0), good])
        self.optimizer.step(gradient, rate, self.state.n_steps)
        window = max(1.0, self.settings["averaging"] * self.state.n_steps)
        self.average.lerp_(self.stack.values.detach(), 1 / window)

    @torch.no_grad()
    def _validate(self) -> tuple[np.ndarray | None, np.ndarray]:
        """Mean validation loss of each member's averaged weights and its rows without one; ``None`` where no rows are held out."""
        members = self.stack.members
        # The same noise every time, for losses that draw any: epochs are compared on equal terms, and training draws are untouched.
        generator = torch.Generator(self.generator.device).manual_seed(self.generator.initial_seed())
        with self.stack.holding(self.average):
            parts = [self._validation_part(batch, generator) for batch in self.source.validation(members)]
        nothing = torch.zeros(5, members, dtype=torch.float64, device=self.stack.values.device)
        nothing[4] = -torch.inf
        stacked = torch.stack([nothing, *parts])
        sums, largest = self.processes.total(stacked[:, :4].sum(0), stacked[:, 4].amax(0))
        total, bad_weight, weight, n_bad = sums.cpu().numpy()
        worst = largest.cpu().numpy()
        if not weight.any():
            return None, np.zeros(members)
        penalty = np.where(n_bad > 0, bad_weight * (np.where(np.isfinite(worst), worst, np.inf) + _BAD_ROW_PENALTY), 0.0)
        return (total + penalty) / weight, n_bad

    def _validation_part(self, batch, generator: torch.Generator) -> Tensor:
        with threads_for(self.stack.multiply_adds(batch), CALL):
            return _validation_sums(self.stack.losses(batch, generator), batch.weights)

    def _judge(self, loss: np.ndarray, bad: np.ndarray, *, held_out: bool, blank: np.ndarray) -> None:
        """Record an epoch's validation, keep improved weights, and see which members are done."""
        state = self.state
        state.validation_loss.append(loss if held_out else np.full(self.stack.members, np.nan))
        running = ~state.stopped & ~blank
        improved = running & np.isfinite(loss) & ((loss < state.best_loss) if held_out else True)
        if improved.any():
            chosen = torch.from_numpy(improved)[:, None].to(state.best.device)
            state.best = torch.where(chosen, self.average, state.best)
            state.best_loss = np.where(improved, loss, state.best_loss)
            state.bad_validation = np.where(improved, bad, state.bad_validation)
            state.best_epoch = np.where(improved, state.epoch - 1, state.best_epoch)
        state.failed = state.failed | (blank & ~state.stopped)
        late = state.epoch - 1 - state.best_epoch >= self.settings["patience"]
        state.stopped = state.stopped | state.failed | (late & held_out)
        if state.stopped.all():
            state.finished = "non-finite losses" if state.failed.all() else "early stopping"
        elif state.epoch >= self.settings["max_epochs"]:
            state.finished = "max_epochs"

    def _report(self) -> EpochReport:
        state = self.state
        return EpochReport(
            epoch=state.epoch,
            max_epochs=self.settings["max_epochs"],
            train_loss=state.train_loss[-1],
            validation_loss=state.validation_loss[-1],
            best_loss=state.best_loss,
            learning_rate=state.learning_rate[-1],
            n_skipped=int(state.n_skipped.sum()),
        )

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "values": self.stack.values,
            "average": self.average,
            "generator": self.generator.get_state(),
            **{f"adam.{name}": value for name, value in self.optimizer.tensors.items()},
            **{f"constant.{name}": value for name, value in self.stack.constants().items()},
            **{f"source.{name}": value for name, value in self.source.state().items()},
        }

    @torch.no_grad()
    def _resume(self, saver: Checkpoint) -> FitState:
        own = self._tensors()
        state, tensors = saver.load(own)
        for name, value in tensors.items():
            if name == "generator":
                self.generator.set_state(value)
            elif not name.startswith("source."):
                own[name].copy_(value)
        self.source.restore({name.removeprefix("source."): value for name, value in tensors.items() if name.startswith("source.")})
        self.stack.refresh_constants()
        state.best = state.best.to(self.stack.values.device)
        return state


def _name_of(loss: Loss) -> str:
    """Of a function, or of the function inside a partial one."""
    function = getattr(loss, "func", loss)
    return getattr(function, "__name__", type(function).__name__)


def _validation_sums(rows: Tensor, weights: Tensor | None) -> Tensor:
    """What a batch of losses ``(members, n)`` adds to the mean: loss, weight of rows without one, weight, count of those, worst."""
    rows = rows.double()
    weights = torch.ones_like(rows) if weights is None else weights.double().expand_as(rows)
    finite = torch.isfinite(rows)
    kept = torch.where(finite, rows, 0.0)
    worst = torch.where(finite, rows, -torch.inf).amax(dim=1)
    return torch.stack([(kept * weights).sum(1), (weights * ~finite).sum(1), weights.sum(1), (~finite).sum(1), worst])
