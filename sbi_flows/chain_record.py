"""``Chains``: draws of a sampler with what is known of them, whoever wrote them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows.reliability import Reliability
from sbi_flows.weights import kish_ess

if TYPE_CHECKING:
    import arviz
    import pandas

ARVIZ_MARK = "sbi_flows"  # the attribute that holds what ArviZ has no place for


@dataclass(frozen=True)
class Chains:
    """MCMC draws with what is known of them.

    Chains of unequal length are filled up at their ends with rows of NaN, which nothing can take for draws; :meth:`split` gives each
    chain without them.

    Attributes
    ----------
    samples : ndarray (chain, draw, d)
    names : tuple of str
        One name a parameter.
    log_posterior, log_likelihood : ndarray (chain, draw) or None
        ln L + ln prior, and ln L, both normalised.
    ensemble : bool
        True when the "chains" are walkers of one ensemble (emcee): they are then not independent of each other.
    stats : mapping of str to ndarray (chain, draw)
        What the sampler reports of its steps: ``acceptance``; ``n_evaluations`` and ``n_gradients`` of the log-density, ``divergent`` and
        ``saturated`` trajectories, as sums over the steps of a draw; ``energy_error``. Of nested sampling ``log_likelihood_birth``.
    reliability : Reliability or None
        Whether the chains have converged, where that was looked at.
    info : mapping of str to str or number
        What is known of the run: ``sampler``, ``random_state``, ``seconds``, ``n_evaluations`` and ``n_gradients`` (all there were,
        warm-up included), ``n_warmup_evaluations``, ...; of chains read from files also ``format``, ``files`` and ``notes``.
    weights : ndarray (chain, draw) or None
        Where all are whole numbers: how often a Metropolis chain stayed at the draw. Else importance weights, of any common scale.
    independent : bool
        True when the order of the draws means nothing, as in nested sampling: they are then no time series.
    bounds : mapping of str to (float, float)
        Ends of parameters, -inf or inf where there is none.
    labels : mapping of str to str
        LaTeX without dollar signs, of parameters and derived quantities.
    derived : mapping of str to ndarray (chain, draw)
        Quantities computed from the parameters, which no density of the parameters may hold.

    Examples
    --------
    >>> chains = Chains(np.random.default_rng(0).normal(size=(4, 500, 2)), ("a", "b"), bounds={"a": (-9.0, 9.0)})
    >>> chains
    Chains(4 chains of 500 draws: a, b)
    >>> chains.to_dataframe().shape, chains.support
    ((2000, 2), [(-9.0, 9.0), 'real'])
    """

    samples: np.ndarray
    names: tuple[str, ...]
    log_posterior: np.ndarray | None = None
    log_likelihood: np.ndarray | None = None
    ensemble: bool = False
    stats: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    reliability: Reliability | None = None
    info: Mapping[str, Any] = field(default_factory=dict, repr=False)
    weights: np.ndarray | None = None
    independent: bool = False
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict, repr=False)
    labels: Mapping[str, str] = field(default_factory=dict, repr=False)
    derived: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def features(self) -> int:
        return self.samples.shape[-1]

    @property
    def lengths(self) -> np.ndarray:
        """Draws of each chain, ``(chain,)``, without what it is filled up with."""
        return (~np.isnan(self.samples).all(axis=-1)).sum(axis=1)

    @property
    def support(self) -> list[Any] | None:
        """Bounds as a flow's ``support=`` takes them, one entry a parameter; None where no parameter has any."""
        if not any(name in self.bounds for name in self.names):
            return None
        ends = [self.bounds.get(name, (-np.inf, np.inf)) for name in self.names]
        return ["real" if np.isinf(low) and np.isinf(high) else (low, high) for low, high in ends]

    def __repr__(self) -> str:
        lengths = self.lengths
        draws = str(lengths[0]) if len(set(lengths)) == 1 else f"{lengths.min()} to {lengths.max()}"
        verdict = "" if self.reliability is None else f"   {self.reliability}"
        weighted = "" if self.weights is None else ", weighted"
        return f"Chains({len(lengths)} chains of {draws} draws{weighted}: {', '.join(self.names)}){verdict}"

    def split(self) -> tuple[Chains, ...]:
        """One ``Chains`` of a single chain for each, without filling."""
        return tuple(self._rows(chain, np.arange(length)) for chain, length in enumerate(self.lengths))

    def rectangular(self) -> Chains:
        """The last draws of each chain, as many as the shortest has."""
        lengths = self.lengths
        if len(set(lengths)) == 1:
            return self
        return join([self._rows(chain, np.arange(length - lengths.min(), length)) for chain, length in enumerate(lengths)])

    def from_draws(self, first: Sequence[int]) -> Chains:
        """Each chain from its draw of that number on."""
        return join([self._rows(chain, np.arange(first[chain], length)) for chain, length in enumerate(self.lengths)])

    def unweighted(self, random_state: RandomState = None) -> Chains:
        """Draws of equal weight.

        Counted repeats are written out, as autocorrelation needs them. Other weights are resampled systematically to the effective size
        of each chain, in the order of the chain; those of independent draws then shuffled.
        """
        if self.weights is None:
            return self
        rng = numpy_generator(random_state)
        parts = []
        for chain, length in enumerate(self.lengths):
            weights = self.weights[chain, :length]
            parts.append(self._rows(chain, _copies(weights, self.independent, rng)))
        return replace(join(parts), weights=None)

    def _rows(self, chain: int, rows: np.ndarray) -> Chains:
        def take(values: np.ndarray | None) -> Any:
            return None if values is None else values[chain, rows][None]

        return replace(
            self,
            samples=take(self.samples),
            log_posterior=take(self.log_posterior),
            log_likelihood=take(self.log_likelihood),
            weights=take(self.weights),
            stats={name: take(values) for name, values in self.stats.items()},
            derived={name: take(values) for name, values in self.derived.items()},
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """All draws as rows, columns named as the parameters, and a last column ``weight`` where they have weights."""
        import pandas as pd

        drawn = ~np.isnan(self.samples).all(axis=-1)
        frame = pd.DataFrame(self.samples[drawn], columns=list(self.names))
        return frame if self.weights is None else frame.assign(weight=self.weights[drawn])

    def to_arviz(self) -> arviz.InferenceData:
        """ArviZ object with one variable a parameter and derived quantity; ``sample_stats`` holds ``lp``, ``log_likelihood_sum`` and
        ``weight``, where known, and ``stats``. What ArviZ has no place for is an attribute of ``posterior``, so that
        :func:`sbi_flows.load_chains` reads the same chains back."""
        import arviz as az

        posterior = {name: self.samples[..., i] for i, name in enumerate(self.names)} | dict(self.derived)
        known = {"lp": self.log_posterior, "log_likelihood_sum": self.log_likelihood, "weight": self.weights}
        stats = {name: values for name, values in known.items() if values is not None} | dict(self.stats)
        groups: dict[str, Any] = {"posterior": posterior, "sample_stats": stats} if stats else {"posterior": posterior}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="More chains", category=UserWarning)  # many short chains are meant so
            # ArviZ 1.x takes one mapping of groups, 0.x one keyword a group.
            data = az.from_dict(groups) if int(az.__version__.split(".")[0]) >= 1 else az.from_dict(**groups)
        data.posterior.attrs[ARVIZ_MARK] = json.dumps(self.description())
        return data

    def description(self) -> dict[str, Any]:
        """What is not an array, as JSON takes it; see :func:`described`."""
        return {
            "names": list(self.names),
            "derived": list(self.derived),
            "bounds": {name: [float(low), float(high)] for name, (low, high) in self.bounds.items()},
            "labels": dict(self.labels),
            "ensemble": self.ensemble,
            "independent": self.independent,
        }


def described(content: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of :class:`Chains` from what :meth:`Chains.description` says, ``derived`` left out."""
    return {
        "names": tuple(content["names"]),
        "bounds": {name: (float(low), float(high)) for name, (low, high) in content["bounds"].items()},
        "labels": dict(content["labels"]),
        "ensemble": bool(content["ensemble"]),
        "independent": bool(content["independent"]),
    }


def join(parts: list[Chains]) -> Chains:
    """Chains of single chains as one, the shorter filled up with NaN; what is not an array is the first's."""
    first = parts[0]
    longest = max(part.samples.shape[1] for part in parts)

    def fill(arrays: list[Any]) -> Any:
        if arrays[0] is None:
            return None
        if len({array.shape[1] for array in arrays}) == 1:
            return np.concatenate(arrays)
        filled = np.full((len(arrays), longest, *arrays[0].shape[2:]), np.nan)
        for row, array in zip(filled, arrays, strict=True):
            row[: array.shape[1]] = array[0]
        return filled

    return replace(
        first,
        samples=fill([part.samples for part in parts]),
        log_posterior=fill([part.log_posterior for part in parts]),
        log_likelihood=fill([part.log_likelihood for part in parts]),
        weights=fill([part.weights for part in parts]),
        stats={name: fill([part.stats[name] for part in parts]) for name in first.stats},
        derived={name: fill([part.derived[name] for part in parts]) for name in first.derived},
    )


def _copies(weights: np.ndarray, independent: bool, rng: np.random.Generator) -> np.ndarray:
    """Rows of draws of equal weight."""
    if not independent and np.all(weights == np.round(weights)):
        return np.repeat(np.arange(len(weights)), weights.astype(int))
    with np.errstate(divide="ignore"):
        size = max(int(kish_ess(np.log(weights))), 1)
    positions = (rng.random() + np.arange(size)) / size
    cumulative = np.cumsum(weights / weights.sum())
    rows = np.searchsorted(cumulative, positions).clip(max=len(weights) - 1)
    return rng.permutation(rows) if independent else rows
