"""Retrieval: the exact posterior of one planet as a target, and one network for all planets."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import RandomState, numpy_generator, seed_from
from sbi_flows._validation import positive
from sbi_flows.diagnostics.chi_squared import LOOKED_AT, misfit
from sbi_flows.estimators import ConditionalFlow
from sbi_flows.inference import NPE
from sbi_flows.physics.exoplanets.offset import RadiusOffset, offset_prior
from sbi_flows.physics.exoplanets.planets import Planets, simulate_planets
from sbi_flows.physics.exoplanets.posterior import AtmospherePosterior
from sbi_flows.physics.exoplanets.transit import JUPITER_RADIUS, NAMES, SUN_RADIUS, TransitModel, planet_prior
from sbi_flows.results import Reliability, WeightedSamples
from sbi_flows.targets import Target, posterior


def planet_target(planet: Planets) -> Target:
    """The exact posterior of one planet: Gaussian errors, the forward model, uniform priors; batched, float64, differentiable.

    Parameters
    ----------
    planet : Planets
        A batch of one.

    Returns
    -------
    Target
        Over :data:`sbi_flows.physics.exoplanets.NAMES`, likelihood and prior normalised.

    Raises
    ------
    ValueError
        For more planets than one.

    Examples
    --------
    >>> planets = simulate_planets(5, random_state=0)
    >>> planet_target(planets[2]).log_prob(torch.as_tensor(planets.theta[2:3])).shape
    torch.Size([1])
    """
    if len(planet) != 1:
        raise ValueError(f"Expected one planet; got {len(planet)}. Choose one: planets[0].")
    model = TransitModel()
    depths, errors = torch.from_numpy(planet.depths[0]), torch.from_numpy(planet.errors[0])
    gravity = torch.from_numpy(planet.log_gravity)
    unit = JUPITER_RADIUS / (float(planet.star_radius[0]) * SUN_RADIUS)
    log_norm = -float(torch.log(errors).sum()) - 0.5 * len(errors) * math.log(2 * math.pi)

    def log_likelihood(theta: Tensor) -> Tensor:
        expected = (unit * model.radius(theta, gravity.expand(len(theta)))).square()
        return log_norm - 0.5 * ((expected - depths) / errors).square().sum(1)

    return posterior(log_likelihood, planet_prior(), names=NAMES)


class AtmosphereNPE:
    """One network for the atmospheres of all planets: their spectra, the errors of these, and what is known of star and planet.

    In place of the radius it learns how far the mean measured area lies from the one expected given all parameters
    (:class:`.offset.RadiusOffset`), which is of order one whatever the errors, and all but independent of the rest.

    Parameters
    ----------
    n_simulations : int
        Synthetic planets to learn from.
    estimator : ConditionalFlow, optional
        Of the class's own size by default.
    random_state : int, optional

    Attributes
    ----------
    npe_ : NPE
        Fitted to :meth:`Planets.features`; its first parameter is the offset.

    Examples
    --------
    >>> network = AtmosphereNPE(50_000, random_state=0).fit()                                            # doctest: +SKIP
    >>> network.posterior(planets[0]).sample(1000)                                                       # doctest: +SKIP
    >>> network.refined(planets[0])                       # the exact posterior, by weights             # doctest: +SKIP

    References
    ----------
    Vasist et al. 2023, "Neural posterior estimation for exoplanetary atmospheric retrieval", arXiv:2301.06575.
    """

    def __init__(self, n_simulations: int = 50_000, estimator: ConditionalFlow | None = None, random_state: RandomState = None):
        self.n_simulations = n_simulations
        self.estimator = estimator
        self.random_state = random_state

    def fit(self, checkpoint: str | Path | None = None) -> AtmosphereNPE:
        """Simulate planets and learn from them; with a ``checkpoint`` a killed fit resumes."""
        positive("n_simulations", self.n_simulations, integer=True)
        seed = seed_from(self.random_state)
        planets = simulate_planets(self.n_simulations, random_state=numpy_generator(seed))
        estimator = ConditionalFlow(layers=4, hidden=(128, 128)) if self.estimator is None else self.estimator
        if checkpoint is not None:
            estimator = copy.copy(estimator).set_params(checkpoint=str(checkpoint))  # the user's stays as it was given
        self.npe_ = NPE(offset_prior(), estimator, embedding="vector", random_state=seed)
        rows, _ = RadiusOffset(planets).rows(torch.as_tensor(planets.theta))
        self.npe_.fit(rows.numpy(), planets.features())
        return self

    def posterior(self, planets: Planets) -> AtmospherePosterior:
        """The network's posterior of one planet, or of each of several; ``ValueError`` for depths or gravities in other units."""
        planets.check_units()
        features = planets.features()
        return AtmospherePosterior(self.npe_.posterior(features[0] if len(planets) == 1 else features), planets)

    def refined(self, planet: Planets, n_samples: int = 20_000, random_state: RandomState = None) -> WeightedSamples:
        """Draws of one planet with weights to its exact posterior, ln Z, and a verdict.

        It says whether the weights can be believed, and by the posterior predictive p-value of chi-squared whether the model makes such
        a spectrum at all: weights are as good for one that it cannot make.
        """
        target = planet_target(planet)

        def log_likelihood(theta: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return target.log_likelihood(torch.from_numpy(np.ascontiguousarray(theta, dtype=np.float64))).numpy()

        weighted = self.posterior(planet).reweight(log_likelihood, n_samples, random_state)
        best = -np.log(planet.errors[0]).sum() - 0.5 * planet.errors.size * math.log(2 * math.pi)
        chi_squared = 2 * (best - log_likelihood(weighted.resample(LOOKED_AT, 0)))
        reasons, notes = misfit(chi_squared, planet.errors.size, "the spectrum has")
        before = Reliability(True) if weighted.source is None else weighted.source
        return dataclasses.replace(weighted, source=Reliability.from_reasons([*before.reasons, *reasons], [*before.notes, *notes]))

    def save(self, path: str | Path) -> None:
        """Write the network to a file; :meth:`load` reads it."""
        self.npe_.save(path)

    @classmethod
    def load(cls, path: str | Path) -> AtmosphereNPE:
        """A network that was saved."""
        network = cls()
        network.npe_ = NPE.load(path, prior=offset_prior())
        return network
