"""Many skies in one call: evidences, Bayes factors and ranks of each, and whether they are honest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import special, stats

from sbi_flows import weights as importance
from sbi_flows._random import seed_from, torch_generator
from sbi_flows._validation import positive
from sbi_flows.diagnostics.chi_squared import IMPOSSIBLE, LOOKED_AT, predictive_p
from sbi_flows.inference.model_calibration import Calibration, calibration
from sbi_flows.physics.pta.models import get_model
from sbi_flows.physics.pta.timing_arrays import PulsarArray
from sbi_flows.physics.pta.timing_npe import TimingNPE

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class SkyEvidences:
    """Evidences of several sources for each of many skies.

    Attributes
    ----------
    models : tuple of str
    log_z, log_z_err, ess, pareto_k : ndarray (m, k)
        One row a sky, one column a source; ``ess`` as a share of the draws. ln Z is relative to the sky without any signal.
    n_samples : int
        Draws behind each.
    ranks : ndarray (m, k, d) or None
        Where parameters were given: the posterior probability, by weighted draws, below each true value, for the source that made the
        sky; NaN for the others.
    labels : ndarray (m,) of int or None
        Which source made each sky.
    chi_squared_p : ndarray (m, k) or None
        Two-sided posterior predictive p-value of each sky's chi-squared, at weighted draws
        (:func:`sbi_flows.diagnostics.chi_squared.predictive_p`): below 1e-4, the source explains the sky nowhere among the draws, which
        are too loud or too quiet for it.
    """

    models: tuple[str, ...]
    log_z: np.ndarray
    log_z_err: np.ndarray
    ess: np.ndarray
    pareto_k: np.ndarray
    n_samples: int
    ranks: np.ndarray | None = field(default=None, repr=False)
    labels: np.ndarray | None = field(default=None, repr=False)
    chi_squared_p: np.ndarray | None = field(default=None, repr=False)

    @cached_property
    def reliable(self) -> np.ndarray:
        """Which of the evidences can be believed, ``(m, k)`` bool.

        By Pareto k and effective size as for any importance weights, and because the source explains the sky.
        """
        weighed = (self.pareto_k <= importance.largest_pareto_k(self.n_samples)) & (self.ess * self.n_samples >= 100)
        return weighed if self.chi_squared_p is None else weighed & (self.chi_squared_p >= IMPOSSIBLE)

    @property
    def probabilities(self) -> np.ndarray:
        """Posterior probabilities of the sources at equal odds, ``(m, k)``."""
        return special.softmax(self.log_z, axis=1)

    def log_bf(self, reference: str) -> np.ndarray:
        """ln B of every source against one, ``(m, k)``."""
        if reference not in self.models:
            raise ValueError(f"Expected a reference among {', '.join(self.models)}; got {reference!r}.")
        return self.log_z - self.log_z[:, [self.models.index(reference)]]

    def calibration(self) -> Calibration:
        """Whether stated probabilities are right: how often each source had made the sky, beside how probable it was said to be."""
        if self.labels is None:
            raise ValueError("Expected skies of known sources; these came without labels. Make them by simulate_skies.")
        return calibration(self.probabilities, self.labels, self.models)

    def won(self) -> float:
        """Share of skies whose own source has the largest evidence."""
        if self.labels is None:
            raise ValueError("Expected skies of known sources; these came without labels. Make them by simulate_skies.")
        return float(np.mean(self.log_z.argmax(axis=1) == self.labels))

    def rank_p_values(self, reliable_only: bool = False) -> np.ndarray:
        """Kolmogorov-Smirnov p-values that ranks are uniform, one a pulsar parameter and first source parameter in common, ``(d,)``.

        Leaving out unreliable skies leaves out those that are hard, which is no fair sample: by default none are.
        """
        if self.ranks is None or self.labels is None:
            raise ValueError("Expected skies of known parameters; these came without. Make them by simulate_skies.")
        rows = np.arange(len(self.labels))
        own = self.ranks[rows, self.labels]
        if reliable_only:
            own = own[self.reliable[rows, self.labels]]
        return np.array([stats.kstest(column[np.isfinite(column)], "uniform").pvalue for column in own.T])

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a sky and source: ``sky, model, log_z, log_z_err, ess, pareto_k, reliable`` and, where it is known, ``chi_squared_p``."""
        import pandas as pd

        m, k = self.log_z.shape
        columns = {name: getattr(self, name).ravel() for name in ("log_z", "log_z_err", "ess", "pareto_k", "reliable")}
        if self.chi_squared_p is not None:
            columns["chi_squared_p"] = self.chi_squared_p.ravel()
        return pd.DataFrame({"sky": np.repeat(np.arange(m), k), "model": list(self.models) * m, **columns})


@dataclass(frozen=True)
class Skies:
    """Simulated residuals of known origin.

    Attributes
    ----------
    tnr : ndarray (m, p, 2 f)
        1/s.
    labels : ndarray (m,)
        Numbers of the sources in ``models``.
    parameters : list of ndarray (d,)
        On the cube of the network.
    models : tuple of str
    """

    tnr: np.ndarray
    labels: np.ndarray
    parameters: np.ndarray = field(repr=False)
    models: tuple[str, ...]


def simulate_skies(network: TimingNPE, array: PulsarArray, n: int, random_state: int = 0) -> Skies:
    """Skies of the network's sources in equal shares, parameters from their priors.

    Parameters
    ----------
    network : TimingNPE
        Its sources and prior; it need not be fitted.
    array : PulsarArray
    n : int
        Rounded up to the same number for each source.
    random_state : int
    """
    positive("n", n, integer=True)
    each = -(-n // len(network.models))
    generator = torch_generator(random_state)
    tnr, parameters = [], []
    for name in network.models:
        rows, skies = network.draw_skies(name, array, each, generator)
        tnr.append(skies.numpy())
        parameters.append(rows.numpy())
    labels = np.repeat(np.arange(len(network.models)), each)
    return Skies(np.concatenate(tnr), labels, np.concatenate(parameters), network.models)


def sky_evidences(
    network: TimingNPE,
    array: PulsarArray,
    skies: Skies | np.ndarray,
    *,
    models: Sequence[str] | None = None,
    n_samples: int = 2000,
    random_state: int = 0,
) -> SkyEvidences:
    """Evidences of every source for every sky: draws of the amortised network, weighted by the exact likelihood.

    Parameters
    ----------
    network : TimingNPE
        Fitted.
    array : PulsarArray
        Its pulsars; its residuals do not enter.
    skies : Skies or ndarray (m, p, 2 f)
        With :class:`Skies` the result can be judged.
    models : sequence of str, optional
        All that the network knows by default.
    n_samples : int
        Draws for each sky and source; the exact likelihood of each is the cost.
    random_state : int

    Returns
    -------
    SkyEvidences

    Raises
    ------
    ValueError
        For skies of another shape, or a source that the network does not know.
    """
    known = isinstance(skies, Skies)
    tnr = np.asarray(skies.tnr if isinstance(skies, Skies) else skies, dtype=np.float64)
    if tnr.ndim != 3 or tnr.shape[1:] != array.tnr.shape:
        form = ", ".join(["m", *map(str, array.tnr.shape)])
        raise ValueError(f"Expected skies of shape ({form}); got {tnr.shape}. For one sky pass tnr[None].")
    positive("n_samples", n_samples, integer=True)
    names = network.models if models is None else tuple(get_model(name).name for name in models)
    m, k = len(tnr), len(names)
    found = np.full((5, m, k), np.nan)
    ranks = np.full((m, k, network.width + 2 * len(array)), np.nan) if known else None
    seeds = np.random.SeedSequence(seed_from(random_state)).generate_state(k).tolist()
    for j, name in enumerate(names):
        cube = network.cube(name, array)
        posterior = network.posteriors(name, array, tnr)
        for i in range(m):
            rows, log_density = _drawn(posterior[i], n_samples, seeds[j] + i)
            with torch.no_grad():
                theta = cube.to_user(torch.from_numpy(rows))
                log_likelihood = cube.target.log_likelihood_of(theta, torch.from_numpy(tnr[i : i + 1])).numpy()
            log_weights = log_likelihood + network.log_prior(rows) - log_density
            top = log_weights.max()
            share = np.exp(log_weights - top) / np.exp(log_weights - top).sum()
            ess = 1 / np.square(share).sum()
            error = np.sqrt(max(1 / ess - 1 / n_samples, 0.0))
            p_value = 0.0  # where no draw has a weight
            if np.isfinite(share).all():
                few = theta[np.random.default_rng(seeds[j] + i).choice(n_samples, LOOKED_AT, p=share)]
                chi_squared, count = cube.target.chi_squared(few, torch.from_numpy(tnr[i : i + 1]))
                p_value = predictive_p(chi_squared.numpy(), count)
            log_z_here, tail = importance.log_mean_exp(log_weights), importance.pareto_k(log_weights)
            found[:, i, j] = log_z_here, error, ess / n_samples, tail, p_value
            if ranks is not None and isinstance(skies, Skies) and skies.models[skies.labels[i]] == name:
                ranks[i, j] = (share[:, None] * (rows < skies.parameters[i])).sum(axis=0)
    labels = None
    if isinstance(skies, Skies) and set(skies.models) == set(names):
        labels = np.array([names.index(skies.models[label]) for label in skies.labels])
    log_z, error, ess, pareto_k, explained = found
    return SkyEvidences(names, log_z, error, ess, pareto_k, n_samples, ranks, labels, explained)


def _drawn(posterior, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rows = posterior.sample(n, seed)
    return rows, posterior.log_prob(rows)
