"""The state of a fit, and its atomic file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_flows._files import check_shapes, load_tensors, save_tensors

_KIND = "fit checkpoint"
_VERSION = 1


@dataclass
class FitState:
    """What the loop carries from one epoch to the next, besides parameters, optimiser and generator.

    Attributes
    ----------
    best : Tensor (members, P)
        The parameters with the lowest validation loss so far.
    best_loss : ndarray (members,)
    best_epoch : ndarray (members,)
        -1 while the weights before training are the best.
    stopped : ndarray (members,) of bool
        Members that patience or failure has ended.
    failed : ndarray (members,) of bool
        Members that went through an epoch without one finite loss.
    bad_validation : ndarray (members,)
        Validation rows without a finite loss under the best weights.
    train_loss, validation_loss : list of ndarray (members,)
        One entry an epoch.
    learning_rate : list of float
    n_steps : int
    n_skipped : ndarray (members,)
        Steps whose loss or gradient was not finite.
    seconds : float
        Spent before the last interruption.
    finished : str
        Why the fit ended; empty while it goes on.
    """

    best: Tensor
    best_loss: np.ndarray
    best_epoch: np.ndarray
    stopped: np.ndarray
    failed: np.ndarray
    bad_validation: np.ndarray
    train_loss: list[np.ndarray] = field(default_factory=list)
    validation_loss: list[np.ndarray] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    n_steps: int = 0
    n_skipped: np.ndarray = field(default_factory=lambda: np.zeros(1))
    seconds: float = 0.0
    finished: str = ""

    @classmethod
    def start(cls, values: Tensor) -> FitState:
        """The state before the first epoch, ``values (members, P)`` being the best known."""
        m = len(values)
        return cls(
            best=values.detach().clone(),
            best_loss=np.full(m, np.inf),
            best_epoch=np.full(m, -1),
            stopped=np.zeros(m, bool),
            failed=np.zeros(m, bool),
            bad_validation=np.zeros(m),
            n_skipped=np.zeros(m),
        )

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.learning_rate)


_ARRAYS = ("best_loss", "best_epoch", "stopped", "failed", "bad_validation", "n_skipped")


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds a fit between two epochs.

    Attributes
    ----------
    path : Path
    description : dict
        The settings and data of the fit; a file that describes another fit is refused rather than resumed.
    """

    path: Path
    description: dict[str, Any]

    def save(self, state: FitState, tensors: dict[str, Tensor]) -> None:
        """Replace the file by the present state; ``tensors`` are the loop's own (parameters, optimiser, generator, source)."""
        arrays = {f"state.{name}": torch.from_numpy(np.asarray(getattr(state, name), dtype=np.float64)) for name in _ARRAYS}
        members = len(state.best)
        losses = {
            f"state.{name}": torch.from_numpy(np.array(getattr(state, name), dtype=np.float64).reshape(-1, members))
            for name in ("train_loss", "validation_loss")
        }
        header = {
            "fit": self.description,
            "learning_rate": state.learning_rate,
            "n_steps": state.n_steps,
            "seconds": state.seconds,
            "finished": state.finished,
        }
        everything = {**tensors, **arrays, **losses, "state.best": state.best}
        save_tensors(self.path, everything, header, kind=_KIND, version=_VERSION)

    def load(self, expected: dict[str, Tensor]) -> tuple[FitState, dict[str, Tensor]]:
        """The state and the loop's tensors; ``expected`` gives the names and shapes those must have."""
        tensors, header = load_tensors(self.path, kind=_KIND, version=_VERSION)
        if header["fit"] != self.description:
            different = [
                f"{key} was {header['fit'].get(key)!r} and is {self.description.get(key)!r}"
                for key in sorted({*header["fit"], *self.description})
                if header["fit"].get(key) != self.description.get(key)
            ]
            raise ValueError(f"{self.path} holds another fit: {'; '.join(different)}. Delete it to start afresh, or give another path.")
        kept = {name.removeprefix("state."): tensors.pop(name) for name in list(tensors) if name.startswith("state.")}
        check_shapes(self.path, tensors, expected)
        arrays: dict[str, Any] = {name: kept[name].numpy() for name in _ARRAYS}
        for name, kind in (("best_epoch", int), ("stopped", bool), ("failed", bool)):
            arrays[name] = arrays[name].astype(kind)
        state = FitState(
            best=kept["best"],
            train_loss=list(kept["train_loss"].numpy()),
            validation_loss=list(kept["validation_loss"].numpy()),
            learning_rate=header["learning_rate"],
            n_steps=header["n_steps"],
            seconds=header["seconds"],
            finished=header["finished"],
            **arrays,
        )
        return state, tensors
