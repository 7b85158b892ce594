"""The waist of the package: plain frozen records that fits, samplers and evidence write and everything else reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sbi_flows import weights as importance
from sbi_flows.chain_record import Chains as Chains
from sbi_flows.reliability import Reliability as Reliability

if TYPE_CHECKING:
    import pandas


# Above the first neither a mean of weights nor its error converges at a useful rate (Vehtari et al. 2024); below the second an error bar is
# itself uncertain by more than 7 %.
_LEAST_ESS = 100


# Twice ln B at which the words of Kass & Raftery change.
_STEPS = (2.0, 6.0, 10.0)
_WORDS = ("bare mention", "positive", "strong", "very strong")


@dataclass(frozen=True)
class WeightedSamples:
    """Draws with importance weights.

    Attributes
    ----------
    samples : ndarray (n, d)
    log_weights : ndarray (n,)
        Natural-log weights: ln of the target, unnormalised perhaps, minus ln of the normalised density of the draws; -inf marks a draw of
        no weight.
    names : tuple of str
    source : Reliability or None
        The verdict on what they were drawn from, which is part of their own: weights cannot tell of what was never drawn.
    info : mapping of str to str or number
        As in :class:`Chains`.
    evidence : Evidence or None
        What the run that made them found of ln Z, where they are no independent draws: the weights of nested sampling's points are steps
        of one shrinking volume, and say nothing of its randomness. ``log_z`` and ``log_z_err`` are then its, and ``pareto_k`` is NaN.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(5000, 1))
    >>> moved = WeightedSamples(x, 0.5 * x[:, 0] - 0.125, ("a",))       # weights of a normal of mean 1/2, normalised
    >>> moved.reliability.ok, bool(abs(moved.log_z) < 5 * moved.log_z_err)
    (True, True)
    """

    samples: np.ndarray
    log_weights: np.ndarray
    names: tuple[str, ...]
    source: Reliability | None = None
    info: Mapping[str, Any] = field(default_factory=dict, repr=False)
    evidence: Evidence | None = None

    @property
    def weights(self) -> np.ndarray:
        """Weights that sum to one, (n,); raises ``ValueError`` where no row has weight, or a log-weight is NaN or +inf."""
        top = np.max(self.log_weights, initial=-np.inf)
        if not np.isfinite(top):
            raise ValueError(
                f"Expected log_weights below +inf with at least one above -inf; their maximum is {top}. "
                "Drop the rows at fault, or look at how the weights were made."
            )
        shifted = np.exp(self.log_weights - top)
        return shifted / shifted.sum()

    @property
    def ess(self) -> float:
        """Kish's effective sample size, between 1 and n."""
        return float(1.0 / np.sum(self.weights**2))

    @property
    def pareto_k(self) -> float:
        """Pareto shape of the largest weights; above :func:`sbi_flows.weights.largest_pareto_k` no average over them can be believed.

        NaN where ``evidence`` is given: the weights are then no draws from a distribution with a tail.
        """
        return importance.pareto_k(self.log_weights) if self.evidence is None else np.nan

    @property
    def log_z(self) -> float:
        """Natural log of the target's integral (the evidence, where the target is likelihood times prior).

        Log of the mean weight, or that of ``evidence``.
        """
        return float(importance.log_mean_exp(self.log_weights)) if self.evidence is None else self.evidence.log_z

    @property
    def log_z_err(self) -> float:
        """One standard error of ``log_z``: for independent draws by :func:`sbi_flows.weights.log_mean_error`, or that of ``evidence``.

        It means nothing where ``pareto_k`` is too large.
        """
        return importance.log_mean_error(self.log_weights) if self.evidence is None else self.evidence.log_z_err

    @property
    def reliability(self) -> Reliability:
        """Whether averages over the weights can be believed."""
        k, ess, n = self.pareto_k, self.ess, len(self.samples)
        largest = importance.largest_pareto_k(n)
        source = Reliability(True) if self.source is None else self.source
        reasons = list(source.reasons)
        if k > largest:
            reasons.append(
                f"Pareto k = {k:.2f} > {largest:.2g}: a few draws carry the weight, and others as heavy were missed. The density they were "
                "drawn from is too narrow somewhere or misses a mode: fit it better (more simulations, an ensemble), or sample by MCMC"
            )
        if ess < _LEAST_ESS:
            reasons.append(f"an effective sample size of {ess:.0f} out of {n} draws: draw more")
        return Reliability.from_reasons(reasons, source.notes)

    def smoothed(self) -> WeightedSamples:
        """The same draws with Pareto-smoothed weights: averages gain precision at the cost of a small bias.

        Those with an ``evidence`` are returned as they are: their weights have no tail to smooth.
        """
        if self.evidence is not None:
            return self
        return WeightedSamples(self.samples, importance.smooth_weights(self.log_weights), self.names, self.source, self.info)

    def __repr__(self) -> str:
        found = _tail(self.pareto_k) if self.evidence is None else f"log_z={_with_error(self.log_z, self.log_z_err)}"
        head = f"WeightedSamples({len(self.samples)} draws of {', '.join(self.names)}: ess={self.ess:.0f}, {found})"
        return f"{head}   {self.reliability}"

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a draw, the columns named as the parameters, and a last column ``weight``; weights sum to one."""
        import pandas as pd

        return pd.DataFrame(self.samples, columns=list(self.names)).assign(weight=self.weights)

    def resample(self, n_samples: int, random_state=None) -> np.ndarray:
        """``(n_samples, d)`` equally weighted draws, by systematic resampling; below an ESS of ``n_samples`` rows repeat."""
        from sbi_flows._random import numpy_generator

        rng = numpy_generator(random_state)
        positions = (rng.random() + np.arange(n_samples)) / n_samples
        index = np.searchsorted(np.cumsum(self.weights), positions).clip(max=len(self.samples) - 1)
        return self.samples[rng.permutation(index)]


@dataclass(frozen=True)
class SMCResult:
    """What sequential Monte Carlo found between the prior and the posterior.

    Attributes
    ----------
    samples : WeightedSamples
        Of the posterior; particles that chains have moved have equal weights, draws of a flow their importance weights.
    evidence : Evidence
        ln Z with its error, ``by_method`` every estimate made.
    powers, acceptances : ndarray (n_temperatures,)
        Of the likelihood, up to 1, and the mean acceptance of the moves at each.
    n_evaluations : int
        Rows at which the likelihood was evaluated, in all.
    reliability : Reliability

    Examples
    --------
    >>> import pandas as pd
    >>> row = pd.DataFrame({"log_z": [-18.22], "log_z_err": [0.03], "ess": [0.9], "pareto_k": [0.2]}, index=["bridge"])
    >>> result = Evidence(-18.22, 0.03, "bridge", 0.9, 0.2, Reliability(True), row)
    >>> draws = WeightedSamples(np.zeros((500, 1)), np.zeros(500), ("a",))
    >>> SMCResult(draws, result, np.array([0.1, 1.0]), np.array([0.4, 0.3]), 4000, Reliability(True))
    SMCResult(log_z=-18.22 +- 0.03, bridge, 2 temperatures, 4000 evaluations)   ok
    """

    samples: WeightedSamples
    evidence: Evidence
    powers: np.ndarray
    acceptances: np.ndarray
    n_evaluations: int
    reliability: Reliability

    @property
    def names(self) -> tuple[str, ...]:
        return self.samples.names

    def __repr__(self) -> str:
        log_z = _with_error(self.evidence.log_z, self.evidence.log_z_err)
        work = f"{len(self.powers)} temperatures, {self.n_evaluations} evaluations"
        return f"SMCResult(log_z={log_z}, {self.evidence.method}, {work})   {self.reliability}"


@dataclass(frozen=True)
class TemperedChains:
    """What parallel tempering drew.

    Attributes
    ----------
    chains : Chains
        At power 1, one chain a ladder.
    evidence : Evidence
    powers : ndarray (levels,)
        Of the likelihood, from 0 to 1.
    swap_rates : ndarray (levels - 1,)
        Mean acceptance of the exchanges between neighbours.
    n_evaluations : int
        Rows at which the likelihood was evaluated, in all.
    reliability : Reliability

    Examples
    --------
    >>> import pandas as pd
    >>> row = pd.DataFrame({"log_z": [-18.22], "log_z_err": [0.03], "ess": [0.9], "pareto_k": [0.2]}, index=["bridge"])
    >>> result = Evidence(-18.22, 0.03, "bridge", 0.9, 0.2, Reliability(True), row)
    >>> chains = Chains(np.zeros((4, 500, 1)), ("a",))
    >>> TemperedChains(chains, result, np.array([0.0, 0.1, 1.0]), np.array([0.5, 0.4]), 6000, Reliability(True))
    TemperedChains(log_z=-18.22 +- 0.03, 4 ladders of 3 powers, 500 draws, 6000 evaluations)   ok
    """

    chains: Chains
    evidence: Evidence
    powers: np.ndarray
    swap_rates: np.ndarray
    n_evaluations: int
    reliability: Reliability

    def __repr__(self) -> str:
        log_z = _with_error(self.evidence.log_z, self.evidence.log_z_err)
        ladders, draws, _ = self.chains.samples.shape
        work = f"{ladders} ladders of {len(self.powers)} powers, {draws} draws, {self.n_evaluations} evaluations"
        return f"TemperedChains(log_z={log_z}, {work})   {self.reliability}"


@dataclass(frozen=True)
class FitHistory:
    """What happened in a fit, one row an epoch.

    Attributes
    ----------
    train_loss, validation_loss : ndarray (epochs, members)
        Mean loss a row.
    learning_rate : ndarray (epochs,)
    best_epoch : ndarray (members,)
        The epoch whose weights were kept.
    n_steps, n_skipped : int
        Optimiser steps taken, and steps skipped because the loss was not finite.
    seconds : float
        Wall time of the fit.
    stopped : str
        Why it ended: "max_epochs", "early stopping", "callback", ...
    reliability : Reliability
    loss : str
        What was minimised: "nll" in nats, "flow_matching", ... Losses of different names do not compare.

    Examples
    --------
    >>> losses = np.array([[2.0], [1.5]])
    >>> history = FitHistory(losses, losses + 0.1, np.array([0.01, 0.01]), np.array([1]), 20, 0, 0.5, "max_epochs", Reliability(True))
    >>> float(history.to_dataframe()["validation_loss"].min())
    1.6
    """

    train_loss: np.ndarray
    validation_loss: np.ndarray
    learning_rate: np.ndarray
    best_epoch: np.ndarray
    n_steps: int
    n_skipped: int
    seconds: float
    stopped: str
    reliability: Reliability
    loss: str = "nll"

    def to_dataframe(self) -> pandas.DataFrame:
        """One row an epoch; member columns are numbered when there are several."""
        import pandas as pd

        members = self.train_loss.shape[1]
        suffix = [""] if members == 1 else [f"_{m}" for m in range(members)]
        columns = {"epoch": np.arange(len(self.learning_rate)), "learning_rate": self.learning_rate}
        for m, s in enumerate(suffix):
            columns[f"train_loss{s}"] = self.train_loss[:, m]
            columns[f"validation_loss{s}"] = self.validation_loss[:, m]
        return pd.DataFrame(columns)


@dataclass(frozen=True)
class Evidence:
    """A log-evidence, its error, and whether to believe it.

    Attributes
    ----------
    log_z : float
        Natural log of the evidence, the estimate of ``method``.
    log_z_err : float
        One standard error of ``log_z``; the sampling of the chains (with their autocorrelation) and of the flow included.
    method : str
        The estimator that was trusted.
    ess : float
        Effective number of independent draws behind ``log_z``, as a fraction of the draws used.
    pareto_k : float
        Pareto shape of the trusted estimator's weights; below 0.7 the error can be believed. ``-inf`` where the weights are bounded so
        near their mean that they have no tail ("no tail" in the repr).
    reliability : Reliability
    by_method : pandas.DataFrame
        One row an estimator: ``log_z, log_z_err, ess, pareto_k, n_evaluations``.
    names : tuple of str
        Parameter names.
    info : mapping of str to str or number
        As in :class:`Chains`, of the run that the evidence comes from.

    Examples
    --------
    >>> import pandas as pd
    >>> row = pd.DataFrame({"log_z": [-18.22], "log_z_err": [0.03], "ess": [0.9], "pareto_k": [0.2]}, index=["bridge"])
    >>> result = Evidence(-18.22, 0.03, "bridge", 0.9, 0.2, Reliability(True), row)
    >>> result
    Evidence(log_z=-18.22 +- 0.03, bridge)   ok
        bridge -18.22 +- 0.03 (k=0.20, ess=90%)
    """

    log_z: float
    log_z_err: float
    method: str
    ess: float
    pareto_k: float
    reliability: Reliability
    by_method: pandas.DataFrame = field(repr=False)
    names: tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        head = f"Evidence(log_z={_with_error(self.log_z, self.log_z_err)}, {self.method})   {self.reliability}"
        rows = "   ".join(
            f"{name} {_with_error(row.log_z, row.log_z_err)} ({_tail_before(row.pareto_k)}ess={row.ess:.0%})"
            for name, row in self.by_method.iterrows()
        )
        return f"{head}\n    {rows}"


def words(log_bf: float) -> str:
    """Kass & Raftery's words for a log Bayes factor, with its direction: "strong for".

    References
    ----------
    Kass & Raftery 1995, "Bayes factors", JASA 90, 773.
    """
    word = _WORDS[int(np.searchsorted(_STEPS, 2 * abs(log_bf), side="right"))]
    return word if word == _WORDS[0] else f"{word} {'for' if log_bf > 0 else 'against'}"


def _with_error(value: float, error: float) -> str:
    """A value to the digits its error leaves, however large the value: ``-12345.678 +- 0.004``."""
    known = np.isfinite(error) and error > 0
    decimals = int(np.clip(np.ceil(-np.log10(error)), 2, 8)) if known else 4
    return f"{value:.{decimals}f} +- {error:.2g}"


def _tail(pareto_k: float) -> str:
    return "no tail" if pareto_k == -np.inf else f"k={pareto_k:.2f}"


def _tail_before(pareto_k: float) -> str:
    """With a comma; nothing of methods that have no weights of which k could be taken."""
    return "" if np.isnan(pareto_k) else f"{_tail(pareto_k)}, "
