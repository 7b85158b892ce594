"""The posterior of a conditional density at given observations, amortised, and what is cut off where a prior is no box."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import RandomState, torch_generator
from sbi_flows._validation import as_float, positive
from sbi_flows.distributions import Distribution
from sbi_flows.estimators import ConditionalFlow
from sbi_flows.inference.posterior import Posterior
from sbi_flows.inference.simulations import in_order
from sbi_flows.results import Reliability

# Draws that measure how many lie inside a prior that is no box: few for all observations, many for those of which one did not.
_FIRST_DRAWS, _ACCEPTANCE_DRAWS = 1000, 10_000
_DRAWS_AT_ONCE = 1_000_000
_LEAKY = 0.5
_ROUNDS = 20


class FlowPosterior(Posterior):
    """Posterior of a fitted conditional density, amortised over observations; :meth:`NPE.posterior` makes it.

    Parameters
    ----------
    estimator : ConditionalFlow
        Fitted to p(theta | condition), with the support of the prior.
    condition : ndarray (m, c)
        The observations as the estimator sees them.
    prior, names, x_o, reliability, n_observations
        As for :class:`Posterior`.
    rejects : bool
        Whether the flow can reach where the prior's density is zero, because that is no box: draws there are rejected, and the density is
        divided by the share of draws that are not. That is measured for each observation on 10 000 draws when first needed, or on 1000
        where all of those lie inside.
    verdict_of : callable, optional
        From the number of an observation of a batch to its own verdict; by default each has that of the batch.
    """

    def __init__(
        self,
        estimator: ConditionalFlow,
        condition: np.ndarray,
        prior: Distribution,
        names: Sequence[str],
        x_o: np.ndarray,
        reliability: Reliability,
        n_observations: int | None = None,
        *,
        rejects: bool = False,
        verdict_of: Callable[[int], Reliability] | None = None,
    ):
        super().__init__(prior, names, x_o, reliability, n_observations)
        self._unmeasured = rejects
        self._estimator = estimator
        self._condition = condition
        self._rejects = rejects
        self._verdict_of = verdict_of

    @property
    def reliability(self) -> Reliability:
        """The verdict, with the share of draws inside the prior's support where that is no box, which is measured when first asked for."""
        if self._unmeasured:
            self.reliability = self._with_acceptance(self._verdict)
        return self._verdict

    @reliability.setter
    def reliability(self, verdict: Reliability) -> None:
        self._verdict = verdict
        self._unmeasured = False

    @cached_property
    def acceptance(self) -> np.ndarray:
        """Share of the flow's draws that lie inside the prior's support, ``(m,)``; ones where that is a box."""
        share = np.ones(len(self._condition))
        if self._rejects:
            share = self._share_inside(self._condition, _FIRST_DRAWS)
            leaks = share < 1
            share[leaks] = self._share_inside(self._condition[leaks], _ACCEPTANCE_DRAWS)
        return share

    def _share_inside(self, condition: np.ndarray, n_draws: int) -> np.ndarray:
        """Of ``n_draws`` given each row of ``condition (m, c)``, the share inside the prior's support, ``(m,)``."""
        shares = [np.ones(0)]
        size = max(1, _DRAWS_AT_ONCE // n_draws)
        for start in range(0, len(condition), size):
            draws = self._estimator.sample(condition[start : start + size], n_draws, random_state=0)
            shares.append(inside(self.prior, draws.reshape(-1, self.features)).reshape(len(draws), -1).mean(axis=1))
        return np.concatenate(shares)

    def _with_acceptance(self, verdict: Reliability) -> Reliability:
        lowest = self.acceptance.min()
        error = np.sqrt(lowest * (1 - lowest) / _ACCEPTANCE_DRAWS)
        text = f"{lowest:.3g} +- {error:.1g} of the flow's draws lie inside the prior's support, which is no box; the others are rejected"
        if lowest == 1:
            text = f"all of {_FIRST_DRAWS} draws of the flow lie inside the prior's support, which is no box; others would be rejected"
        if len(self.acceptance) > 1:
            text += f" (for observation {self.acceptance.argmin()}, where they are fewest)"
        if lowest < _LEAKY:
            advice = f"only {text}: fit with more simulations, or in parameters in which the support is a box"
            return Reliability.from_reasons([*verdict.reasons, advice], verdict.notes)
        return Reliability.from_reasons(verdict.reasons, [*verdict.notes, text])

    def sample(self, n_samples: int = 1, random_state: RandomState = None) -> np.ndarray:
        """``(n_samples, d)`` draws, all inside the prior's support; ``(m, n_samples, d)`` for a batch, from one batched call."""
        positive("n_samples", n_samples, integer=True)
        if self._rejects:
            draws = self._sample_inside(n_samples, torch_generator(random_state))
        else:
            draws = self._estimator.sample(self._condition, n_samples, random_state)
        return draws if self.n_observations is not None else draws[0]

    def _sample_inside(self, n: int, generator: torch.Generator) -> np.ndarray:
        """``(m, n, d)`` draws, each observation's rejected and drawn again until all lie inside the prior."""
        kept: list[list[np.ndarray]] = [[] for _ in self._condition]
        missing = np.full(len(self._condition), n)
        # The share inside as the draws so far tell it, counted from one draw that was, so that it is never zero.
        good, drawn = np.ones(len(missing)), np.ones(len(missing))
        for _ in range(_ROUNDS):
            short = np.flatnonzero(missing > 0)
            if not len(short):
                break
            size = int(np.ceil(1.1 * (missing[short] * drawn[short] / good[short]).clip(max=100 * missing[short]).max())) + 10
            draws = self._estimator.sample(self._condition[short], size, generator)
            accepted = inside(self.prior, draws.reshape(-1, self.features)).reshape(len(short), size)
            good[short] += accepted.sum(axis=1)
            drawn[short] += size
            for i, own, ok in zip(short, draws, accepted, strict=True):
                kept[i].append(own[ok][: missing[i]])
                missing[i] -= len(kept[i][-1])
        if missing.any():
            raise RuntimeError(
                f"Expected posterior draws inside the prior's support; for observation {int(missing.argmax())} fewer than one in 1000 "
                "of the flow's are. Is x_o like any simulation? See reliability; fit with more simulations, or declare the prior's support."
            )
        return np.stack([np.concatenate(own) for own in kept])

    def log_prob(self, theta: Any) -> np.ndarray:
        """Natural log of the normalised posterior density; -inf outside the prior's support.

        Parameters
        ----------
        theta : array_like (n, d)
            The same points for all of a batch; ``(m, n, d)`` gives each observation points of its own.

        Returns
        -------
        ndarray (n,)
            ``(m, n)`` for a batch.
        """
        if self.n_observations is None:
            points = self._rows(theta).numpy()
            return self._normalised(points[None], np.broadcast_to(self._condition, (len(points), self._condition.shape[1])))[0]
        theta = as_float(in_order(theta, self.names, "theta"), "theta").double().cpu().numpy()
        m = self.n_observations
        if theta.ndim == 2:
            theta = np.broadcast_to(theta, (m, *theta.shape))
        if theta.ndim != 3 or (theta.shape[0], theta.shape[2]) != (m, self.features):
            raise ValueError(f"Expected theta of shape (n, {self.features}) or ({m}, n, {self.features}); got {theta.shape}.")
        return self._normalised(theta, np.repeat(self._condition, theta.shape[1], axis=0))

    def _normalised(self, theta: np.ndarray, condition: np.ndarray) -> np.ndarray:
        """Log density at ``theta (m, n, d)`` given ``condition (m * n, c)``, ``(m, n)``."""
        points = theta.reshape(-1, self.features)
        values = self._estimator.log_prob(condition, points).reshape(theta.shape[:2])
        if not self._rejects:
            return values
        good = inside(self.prior, points).reshape(values.shape)
        with np.errstate(divide="ignore"):
            return np.where(good, values - np.log(self.acceptance)[:, None], -np.inf)

    def map(self, random_state: RandomState = None, *, n_draws: int = 1000, n_starts: int = 20) -> np.ndarray:
        """The parameters of highest density, ``(d,)``, as :meth:`Posterior.map`; ``(m, d)`` for a batch, one by one."""
        if self.n_observations is None:
            return super().map(random_state, n_draws=n_draws, n_starts=n_starts)
        generator = torch_generator(random_state)
        return np.stack([self[i].map(generator, n_draws=n_draws, n_starts=n_starts) for i in range(self.n_observations)])

    def log_density(self, theta: Tensor) -> Tensor:
        """As :meth:`Posterior.log_density`."""
        self._refuse_batch("log_density")
        flow = self._estimator.flow_
        given = torch.from_numpy(self._condition).to(next(flow.parameters()).device)
        values = flow.log_prob(theta.to(given.device), given).to(theta)
        if not self._rejects:
            return values
        good = torch.from_numpy(inside(self.prior, theta.detach().cpu().numpy())).to(values.device)
        return torch.where(good, values - math.log(max(float(self.acceptance[0]), 1e-300)), -math.inf)

    def __len__(self) -> int:
        return 1 if self.n_observations is None else self.n_observations

    def __getitem__(self, index: int) -> FlowPosterior:
        """The posterior of one observation of a batch."""
        i = self._place(index)
        verdict = self.reliability if self._verdict_of is None else self._verdict_of(i)
        return FlowPosterior(
            self._estimator, self._condition[i : i + 1], self.prior, self.names, self.x_o[i], verdict, rejects=self._rejects
        )


def inside(prior: Distribution, theta: np.ndarray) -> np.ndarray:
    """Which rows of ``theta (n, d)`` have prior density, ``(n,)`` bool."""
    return np.isfinite(prior.log_prob(torch.from_numpy(theta)).cpu().numpy())
