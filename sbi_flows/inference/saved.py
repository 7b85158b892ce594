"""What the files of ``NPE``, ``NLE`` and ``NRE`` have in common: the prior, names, and how a method is made of them again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sbi_flows.distributions import Distribution, as_prior
from sbi_flows.distributions.files import prior_from_data, prior_to_data
from sbi_flows.estimators.files import complete
from sbi_flows.inference.simulations import Simulations
from sbi_flows.results import FitHistory


class SavedMethod(BaseEstimator, ABC):
    """Base of the methods that are saved and loaded; they say what they have learned, and their documentation is here."""

    prior: Any
    prior_: Distribution
    history_: FitHistory
    theta_names_: tuple[str, ...]
    n_simulations_: int
    _x_names: list[str] | None
    _simulations: Simulations | None

    # --- What a method must say ----------------------------------------------------------------------------------------------

    @abstractmethod
    def _write(self, path: str | Path, facts: dict[str, Any]) -> None:
        """One file with what was learned and, beside its own, these facts."""

    @classmethod
    @abstractmethod
    def _read(cls, path: str | Path, embedding: nn.Module | None) -> tuple[Any, FitHistory, dict, dict]:
        """What was learned, its history, the settings of its estimator, and the facts."""

    @abstractmethod
    def _restore(self, path: str | Path, learned: Any, parameters: dict, facts: dict, embedding: nn.Module | None) -> None:
        """Set everything else: the prior, names and history are there."""

    # --- Files ---------------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write what was learned to one file (safetensors with a JSON header; no pickle).

        Simulations are not in it, nor is what is code: an embedding network's (its weights are), and a prior's unless it is made of
        ``BoxUniform``, ``MultivariateNormal`` and ``Product``.
        """
        check_is_fitted(self, "history_")
        facts = {
            "prior": prior_to_data(self.prior_),
            "theta_names": list(self.theta_names_),
            "x_names": self._x_names,
            "n_simulations": self.n_simulations_,
        }
        self._write(path, facts)

    @classmethod
    def load(cls, path: str | Path, *, prior: Any = None, embedding: nn.Module | None = None) -> Self:
        """Read a file of :meth:`save`, onto the CPU. Loading runs no code.

        ``fit`` goes on from the weights with the simulations it is given then: pass the old ones again beside the new.

        Parameters
        ----------
        path : str or Path
        prior : optional
            The prior it was fitted with, where that is code.
        embedding : nn.Module, optional
            The network it was fitted with, if it was.

        Raises
        ------
        FileNotFoundError, ValueError
            If the file is missing, truncated, altered, newer than this package, or its prior or embedding is not given.
        """
        with complete(path):
            learned, history, parameters, facts = cls._read(path, embedding)
            if prior is None and facts["prior"] is None:
                raise ValueError(f"{path} was fitted with a prior that is code and not in the file: pass it as prior=.")
            method: Any = cls(prior_from_data(facts["prior"]) if prior is None else prior)
            method.prior_ = as_prior(method.prior)
            names = facts["theta_names"]
            if method.prior_.features != len(names):
                raise ValueError(
                    f"Expected the prior that {path} was fitted with, of {len(names)} parameters; got one of {method.prior_.features}."
                )
            method.history_, method.theta_names_, method._x_names = history, tuple(names), facts["x_names"]
            method.n_simulations_, method._simulations = facts["n_simulations"], None
            method._restore(path, learned, parameters, facts, embedding)
        return method
