"""Which of several simulators made the data: probabilities by one amortised classifier, checked and tempered on held-out simulations."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sbi_flows._random import RandomState, seed_from
from sbi_flows._validation import as_float
from sbi_flows.estimators import ConditionalFlow
from sbi_flows.estimators.files import complete, load_estimator, plain, save_estimator
from sbi_flows.flows import MixedDensity
from sbi_flows.inference.layout import read_observations
from sbi_flows.inference.model_calibration import COLUMNS, Calibration, best_temperature, calibration
from sbi_flows.inference.observations import Observations
from sbi_flows.inference.simulations import in_order, read_names
from sbi_flows.results import FitHistory, Reliability, words

_HELD_OUT = 0.2  # of the simulations: half to temper the probabilities, half to check them
_FEW = 500
_KIND = "ModelClassifier"
_ALARM = 0.01  # chance that calibrated probabilities are called wrong
_HARMLESS = 0.02  # a mean error of the probabilities that no verdict depends on


@dataclass(frozen=True)
class ModelProbabilities:
    """Posterior model probabilities given one observation.

    Attributes
    ----------
    probabilities : dict of str to float
    log_bayes_factors : dict of str to float
        Natural log of each model's evidence over that of the most probable model.
    reliability : Reliability
    """

    probabilities: dict[str, float]
    log_bayes_factors: dict[str, float]
    reliability: Reliability

    @property
    def best(self) -> str:
        """The most probable model."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    def __repr__(self) -> str:
        rows = []
        for name, p in sorted(self.probabilities.items(), key=lambda item: -item[1]):
            log_bf = self.log_bayes_factors[name]
            rows.append(f"{name}: p = {p:.3g}" + ("" if name == self.best else f", ln B = {log_bf:.2f}: {words(log_bf)}"))
        return "\n    ".join([f"ModelProbabilities({self.best} is most probable)   {self.reliability}", *rows])


class ModelClassifier(BaseEstimator):
    """Amortised model comparison: p(model | x) learned from simulations of each model, parameters drawn from each model's prior.

    A classifier of simulations gives posterior model probabilities, and Bayes factors, without a likelihood or an evidence integral. They
    are tempered on one half of the held-out simulations and checked on the other.

    Parameters
    ----------
    prior : mapping of str to float, optional
        Prior odds of the models; equal by default, however many simulations each has.
    estimator : ConditionalFlow, optional
        Its ``hidden``, ``n_members``, ``max_epochs``, ... are those of the network; ``flow`` and ``layers`` are not used.
    embedding : str, nn.Module or None
        As in :class:`sbi_flows.NPE`.
    random_state : int, generator or None

    Attributes
    ----------
    models_ : tuple of str
    calibration_ : Calibration
    history_ : FitHistory
    estimator_ : ConditionalFlow
    observations_ : Observations

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x = {"narrow": rng.normal(size=(600, 2)), "wide": 2 * rng.normal(size=(600, 2))}
    >>> classifier = ModelClassifier(ConditionalFlow(hidden=(16,), max_epochs=3), random_state=0).fit(x)
    >>> classifier.compare([4.0, 4.0]).best
    'wide'

    References
    ----------
    Pudlo et al. 2016, "Reliable ABC model choice via random forests", arXiv:1406.6288; Radev et al. 2021, "Amortized Bayesian model
    comparison with evidential deep learning", arXiv:2004.10629; Guo et al. 2017, "On calibration of modern neural networks",
    arXiv:1706.04599 (temperature).
    """

    models_: tuple[str, ...]
    calibration_: Calibration
    history_: FitHistory
    estimator_: ConditionalFlow
    observations_: Observations

    def __init__(
        self,
        estimator: ConditionalFlow | None = None,
        *,
        prior: Mapping[str, float] | None = None,
        embedding: str | nn.Module | None = "auto",
        random_state: RandomState = None,
    ):
        self.estimator = estimator
        self.prior = prior
        self.embedding = embedding
        self.random_state = random_state

    def fit(self, x, models=None) -> ModelClassifier:
        """Learn from simulations.

        Parameters
        ----------
        x : mapping of str to array_like (n_k, ...), or array_like (n, ...)
            Simulations of each model, or of all of them in one array. NaN marks missing values; a simulation that is NaN throughout or
            infinite anywhere has failed and is left out.
        models : sequence (n,), optional
            Which model each row of one array is from.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            Fewer than two models, shapes that differ, fewer than ten simulations of a model that succeeded, prior odds of other models.

        Warns
        -----
        UserWarning
            For whatever speaks against the result.
        """
        names, x, labels, columns = _read(x, models)
        self.models_, self._x_names = tuple(names), columns
        self._log_prior = _log_prior(self.prior, self.models_)
        good = ~np.isinf(x).any(axis=tuple(range(1, x.ndim))) & ~np.isnan(x).all(axis=tuple(range(1, x.ndim)))
        failed = np.bincount(labels[~good], minlength=len(names))
        x, labels = x[good], labels[good]
        counts = np.bincount(labels, minlength=len(names))
        if counts.min() < 10:
            few = names[int(counts.argmin())]
            raise ValueError(
                f"Expected at least 10 simulations of every model that succeeded; got {counts.min()} of {few!r}. Simulate more."
            )
        estimator = ConditionalFlow() if self.estimator is None else clone(self.estimator)
        seed = seed_from(estimator.random_state if self.random_state is None else self.random_state)
        self.observations_, network = read_observations(x, columns, self.embedding, estimator.embedding)
        rows = self.observations_.transform(x)
        learn, temper, check = _split(labels, len(names), seed)
        estimator.set_params(flow=MixedDensity({0: len(names)}), embedding=network, random_state=seed)
        self.estimator_ = estimator.fit(rows[learn], labels[learn].astype(np.float64))
        self._log_shares = np.log(np.bincount(labels[learn], minlength=len(names)) / len(learn))
        self._temperature = best_temperature(self._log_ratios(rows[temper]), self._log_shares, labels[temper])
        stated = self._probabilities(rows[check], self._log_shares)
        self.calibration_ = calibration(stated, labels[check], self.models_, self._temperature)
        self.history_ = self._with_remarks(failed, len(x))
        return self

    def predict_proba(self, x_o) -> np.ndarray:
        """Posterior model probabilities in the order of ``models_``: ``(k,)`` for one observation, ``(m, k)`` for a batch."""
        x, single = self._observed(x_o)
        probabilities = self._probabilities(self.observations_.transform(x), self._log_prior)
        return probabilities[0] if single else probabilities

    def log_bayes_factors(self, x_o, reference: str | None = None) -> np.ndarray:
        """Natural log of each model's evidence over that of ``reference`` (the first model by default): ``(k,)`` or ``(m, k)``."""
        x, single = self._observed(x_o)
        if reference is not None and reference not in self.models_:
            raise ValueError(f"Expected reference to be one of {', '.join(self.models_)}; got {reference!r}.")
        ratios = self._log_ratios(self.observations_.transform(x)) / self._temperature
        ratios = ratios - ratios[:, [0 if reference is None else self.models_.index(reference)]]
        return ratios[0] if single else ratios

    def compare(self, x_o) -> ModelProbabilities:
        """Probabilities, Bayes factors and a verdict in words for one observation."""
        x, single = self._observed(x_o)
        if not single:
            shape = self.observations_.event_shape
            raise ValueError(f"Expected one observation of shape {shape}; got {len(x)}. Use predict_proba for many.")
        probabilities = self.predict_proba(x_o)
        best = self.models_[int(probabilities.argmax())]
        ratios = self.log_bayes_factors(x_o, best)
        fitted = self.history_.reliability
        notes = list(fitted.notes)
        beyond = np.log(self.calibration_.n)
        if (np.abs(ratios) > beyond).any():
            notes.append(
                f"odds beyond {self.calibration_.n} to 1 are an extrapolation: {self.calibration_.n} held-out simulations cannot check them"
            )
        return ModelProbabilities(
            dict(zip(self.models_, probabilities.tolist(), strict=True)),
            dict(zip(self.models_, ratios.tolist(), strict=True)),
            Reliability.from_reasons([*fitted.reasons, *self.observations_.reasons(x)], notes),
        )

    # --- Files -------------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write what was learned to one file (safetensors with a JSON header; no pickle). An embedding network of your own is code: its
        weights are in the file, it is not."""
        check_is_fitted(self, "history_")
        facts = {
            **self.estimator_.facts(),
            "models": list(self.models_),
            "x_names": self._x_names,
            "log_prior": self._log_prior.tolist(),
            "log_shares": self._log_shares.tolist(),
            "temperature": self._temperature,
            "observations": self.observations_.to_data(),
            "calibration": {**dataclasses.asdict(self.calibration_), "table": self.calibration_.table.to_dict("list")},
        }
        save_estimator(path, _KIND, self.estimator_.flow_, self.history_, self.estimator_.get_params(deep=False), plain(facts))

    @classmethod
    def load(cls, path: str | Path, embedding: nn.Module | None = None) -> ModelClassifier:
        """Read a file of :meth:`save`, onto the CPU. Loading runs no code.

        Parameters
        ----------
        path : str or Path
        embedding : nn.Module, optional
            The network it was fitted with, where that is one of your own.

        Raises
        ------
        FileNotFoundError, ValueError
            If the file is missing, truncated, altered, newer than this package, or its embedding is not given.
        """
        import pandas as pd

        with complete(path):
            flow, history, parameters, facts = load_estimator(path, _KIND, embedding)
            prior = dict(zip(facts["models"], np.exp(facts["log_prior"]).tolist(), strict=True))
            classifier = cls(prior=prior)
            classifier.estimator_ = ConditionalFlow.from_facts(flow, history, parameters, facts, embedding)
            classifier.models_, classifier._x_names = tuple(facts["models"]), facts["x_names"]
            classifier._log_prior, classifier._log_shares = np.array(facts["log_prior"]), np.array(facts["log_shares"])
            classifier._temperature, classifier.history_ = facts["temperature"], history
            classifier.observations_ = Observations.from_data(facts["observations"])
            found = facts["calibration"]
            classifier.calibration_ = Calibration(**{**found, "table": pd.DataFrame(found["table"])[COLUMNS]})
        return classifier

    # --- Parts -------------------------------------------------------------------------------------------------------------

    def _observed(self, x_o: Any) -> tuple[np.ndarray, bool]:
        check_is_fitted(self, "history_")
        return self.observations_.rows_of(in_order(x_o, self._x_names, "x_o"), "x_o")

    def _log_ratios(self, rows: np.ndarray) -> np.ndarray:
        """Log evidence of each model, ``(n, k)``, up to a constant a row."""
        log_probs = [self.estimator_.log_prob(rows, np.full(len(rows), float(k))) for k in range(len(self.models_))]
        return np.stack(log_probs, axis=1) - self._log_shares

    def _probabilities(self, rows: np.ndarray, log_prior: np.ndarray) -> np.ndarray:
        return special.softmax(self._log_ratios(rows) / self._temperature + log_prior, axis=1)

    def _with_remarks(self, failed: np.ndarray, n: int) -> FitHistory:
        found, reasons, notes = self.calibration_, [], list(self.observations_.notes)
        if found.p_value < _ALARM and found.error > _HARMLESS:
            reasons.append(
                f"stated probabilities are off by {found.error:.1%} on average on {found.n} held-out simulations "
                f"(p = {found.p_value:.1g}): simulate more, or give the network more members or another embedding"
            )
        if n < _FEW:
            reasons.append(f"{n} simulations are few to learn model probabilities from, and {found.n} to check them: simulate more")
        if failed.any():
            rates = ", ".join(f"{count} of {name}" for name, count in zip(self.models_, failed, strict=True) if count)
            notes.append(
                f"simulations that failed were left out ({rates}): probabilities are those of models in which what fails is impossible"
            )
        for reason in reasons:
            warnings.warn(reason, UserWarning, stacklevel=3)
        own = self.estimator_.history_
        reliability = Reliability.from_reasons([*own.reliability.reasons, *reasons], [*own.reliability.notes, *notes])
        return dataclasses.replace(own, reliability=reliability)


def _split(labels: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to learn from, to temper with and to check with, with equal shares of every model."""
    rng = np.random.default_rng([seed, 2])
    parts: list[list[np.ndarray]] = [[], [], []]
    for m in range(k):
        rows = rng.permutation(np.flatnonzero(labels == m))
        half = max(1, round(_HELD_OUT * len(rows) / 2))
        for part, own in zip(parts, (rows[2 * half :], rows[:half], rows[half : 2 * half]), strict=True):
            part.append(own)
    learn, temper, check = (np.sort(np.concatenate(part)) for part in parts)
    return learn, temper, check


def _read(x: Any, models: Any) -> tuple[list[str], np.ndarray, np.ndarray, list[str] | None]:
    """Names, simulations of all models ``(n, ...)``, the model of each ``(n,)``, and column names."""
    if isinstance(x, Mapping):
        if models is not None:
            raise ValueError("Expected models=None where x is a mapping of model name to simulations. Give one or the other.")
        columns = read_names(next(iter(x.values()), None))
        arrays = [as_float(in_order(part, columns, f"x[{name!r}]"), f"x[{name!r}]").double().cpu().numpy() for name, part in x.items()]
        names = [str(name) for name in x]
        if len({array.shape[1:] for array in arrays}) > 1:
            shapes = ", ".join(f"{name}: {array.shape}" for name, array in zip(names, arrays, strict=True))
            raise ValueError(f"Expected simulations of one shape from every model; got {shapes}. Summarise them alike.")
        labels = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
        array = np.concatenate(arrays) if arrays else np.empty((0, 1))
    else:
        if models is None:
            raise ValueError("Expected a mapping of model name to simulations, or models= with the model of every row of x; got neither.")
        columns = read_names(x)
        array, given = as_float(x, "x").double().cpu().numpy(), np.asarray(models)
        if given.shape != (len(array),):
            raise ValueError(f"Expected models of shape ({len(array)},), one for each row of x; got {given.shape}.")
        distinct, labels = np.unique(given, return_inverse=True)
        names = [str(name) for name in distinct]
    if len(names) < 2:
        raise ValueError(f"Expected simulations of at least two models; got {len(names)}. One model alone has probability one.")
    return names, array[:, None] if array.ndim == 1 else array, labels, columns


def _log_prior(prior: Mapping[str, float] | None, names: Sequence[str]) -> np.ndarray:
    if prior is None:
        return np.full(len(names), -np.log(len(names)))
    odds = np.array([float(prior.get(name, np.nan)) for name in names])
    if set(prior) != set(names) or not (np.isfinite(odds) & (odds > 0)).all():
        raise ValueError(
            f"Expected positive prior odds for {', '.join(names)}; got {dict(prior)}. To exclude a model leave out its simulations."
        )
    return np.log(odds / odds.sum())
