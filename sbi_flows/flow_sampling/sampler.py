"""``FlowSampler``: a log-density in, draws and an evidence out, with a flow where it pays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sbi_flows._random import RandomState, seed_from, torch_generator
from sbi_flows._validation import as_float, choose, positive
from sbi_flows.distributions import as_prior
from sbi_flows.flow_sampling import starts
from sbi_flows.flow_sampling.checks import check_values, has_gradient
from sbi_flows.flow_sampling.counting import CountedTarget, Ledger
from sbi_flows.flow_sampling.fitting import AUTOREGRESSIVE
from sbi_flows.flow_sampling.judgement import judged, with_chains_verdict
from sbi_flows.flow_sampling.proposal import FlowProposal, NumpyDensity
from sbi_flows.flow_sampling.report import METHODS, SamplerReport
from sbi_flows.flow_sampling.run import Run
from sbi_flows.flow_sampling.settings import Settings
from sbi_flows.model_evidence import evidence
from sbi_flows.results import Chains, Evidence
from sbi_flows.samplers import HMC, Kernel, RandomWalk, as_kernel
from sbi_flows.targets import Target, check_gradient, posterior, unconstrained

_CHAINS = (64, 400)
_DRAWS_A_CHAIN = 40
_CHECKED = 200
_GRADIENTS_CHECKED, _GRADIENT_TOLERANCE = 3, 0.02
_RANDOM_WALK = 8  # columns up to which steps without gradient forget as fast as trajectories of several gradients
_LONGEST = 128  # leapfrogs: a narrow place makes steps small for all chains, and what is too slow then is a flow's business
_EVIDENCE_DRAWS = 20_000
_EVIDENCE_BUDGET = 10_000
_REPLACED = (
    "draws that sample() gave before evidence() was called are not among these: they were of the local kernel's chains. Ask for the "
    "evidence first, or sample again"
)


class FlowSampler(BaseEstimator):
    """Markov chains helped by a flow where it pays.

    ``fit`` measures before it decides: whether a local kernel connects the modes, how fast it forgets, and what the density costs against
    the flow. It then runs the local kernel alone, mixes it with proposals of a flow trained while sampling and frozen before the draws
    that count, or falls back and says so where the flow trains badly. ``report_`` holds the choice, its reasons, everything that was
    evaluated, and the verdict.

    Parameters
    ----------
    log_likelihood : callable, optional
        ln L: float64 tensor ``(n, d)`` to ``(n,)``; wrap numpy functions by :func:`sbi_flows.targets.from_numpy`. With ``prior``.
    prior : optional
        Anything that :func:`sbi_flows.distributions.as_prior` reads. Chains then start where it leads: by flows with up to
        eight columns if flows pay, else by annealing.
    target : Target, optional
        In place of both: any log-density. Without a prior, modes are looked for only as far as heated chains travel.
    names : sequence of str, optional
    n_effective : int
        Independent draws that the chains should be worth, by the slowest parameter.
    n_chains : int or "auto"
    method : {"auto", "local", "mixed", "latent", "stochastic-flow", "diffusion"}
        Anything but "auto" overrules the choice.
    kernel : Kernel, optional
        The local kernel; by default one that follows gradients where there are any, else an adaptive random walk.
    max_evaluations : int
        Where to stop, with a verdict that says so. What is begun is brought to its end: the choice of a method, or the first piece of
        the draws, may take more.
    random_state : int, generator or None
        With a method given, an int gives the same draws every time on one machine. "auto" weighs measured seconds, which differ from run
        to run: ``report_.method`` says what it came to; name that as ``method`` where every bit must repeat.

    Attributes
    ----------
    chains_ : Chains
        The draws that count, with log-densities and the verdict.
    report_ : SamplerReport
        Both raise ``NotFittedError`` before ``fit``.
    proposal_ : FlowProposal or None
        The frozen flow, a normalised density, where one was trained.

    Examples
    --------
    >>> import torch
    >>> from sbi_flows import FlowSampler
    >>> from sbi_flows.distributions import BoxUniform
    >>> prior = BoxUniform([-5.0, -5.0], [5.0, 5.0], names=["a", "b"])
    >>> sampler = FlowSampler(lambda x: -0.5 * x.square().sum(-1), prior, n_effective=500, random_state=0).fit()
    >>> sampler.sample(100).shape
    (100, 2)

    References
    ----------
    Gabrié, Rotskoff & Vanden-Eijnden 2022, "Adaptive Monte Carlo augmented with normalizing flows", arXiv:2105.12603; Grenioux, Durmus,
    Moulines & Gabrié 2023, "On sampling with approximate transport maps", arXiv:2302.04763.
    """

    def __init__(
        self,
        log_likelihood: Callable[[Tensor], Tensor] | None = None,
        prior: Any = None,
        *,
        target: Target | None = None,
        names: Sequence[str] | None = None,
        n_effective: int = 4000,
        n_chains: int | str = "auto",
        method: str = "auto",
        kernel: Kernel | None = None,
        max_evaluations: int = 100_000_000,
        random_state: RandomState = None,
    ):
        self.log_likelihood = log_likelihood
        self.prior = prior
        self.target = target
        self.names = names
        self.n_effective = n_effective
        self.n_chains = n_chains
        self.method = method
        self.kernel = kernel
        self.max_evaluations = max_evaluations
        self.random_state = random_state

    # --- Fitting -------------------------------------------------------------------------------------------------------------

    def fit(self, start: Any = None) -> FlowSampler:
        """Run everything up to draws worth ``n_effective``.

        Parameters
        ----------
        start : array_like (n, d), optional
            Where chains start. With a prior they need none.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the density has no value (NaN, +inf) anywhere or is of the wrong shape, the gradient that would be used is wrong (in few
            columns random walks run, and a wrong one is a note), or no start has a finite density.
        """
        self._ledger = Ledger()
        self.target_ = self._target()
        settings = self._settings(start is None and self.target_.prior is not None)
        counted = CountedTarget(self.target_, self._ledger)
        generator = torch_generator(seed_from(self.random_state))
        self._run = run = Run(counted, settings, generator)
        with self._ledger.purpose("start"):
            points, kernel = self._begin(counted, start, settings.n_chains, generator)
        # A thousand particles keep a mode on their way from the prior. A hundred that follow gradients may lose a fifth of the mass.
        many = start is None and counted.prior is not None and isinstance(kernel, RandomWalk)
        run.look(points, kernel, explore=not many)
        run.choose()
        run.collect(settings.n_effective)
        self._evidence: Evidence | None = None
        self._handed_out = False
        self._judge()
        return self

    def _settings(self, from_prior: bool) -> Settings:
        positive("n_effective", self.n_effective, integer=True)
        positive("max_evaluations", self.max_evaluations, integer=True)
        choose("method", self.method, ["auto", *METHODS])
        n_chains = self.n_chains
        if n_chains == "auto":
            n_chains = int(np.clip(self.n_effective // _DRAWS_A_CHAIN, *_CHAINS))
        positive("n_chains", n_chains, integer=True)
        ascends = from_prior and self.target_.features <= AUTOREGRESSIVE
        return Settings(int(self.n_effective), int(n_chains), self.method, self.kernel, int(self.max_evaluations), ascends)

    def _target(self) -> Target:
        pair = self.log_likelihood is not None or self.prior is not None
        if pair == (self.target is not None):
            raise ValueError("Expected log_likelihood and prior, or target; got both or neither. For a bare log-density use from_log_prob.")
        if self.target is not None:
            if not isinstance(self.target, Target):
                raise TypeError(
                    f"Expected target to be a Target; got a {type(self.target).__name__}. Make one with targets.from_log_prob(function, d)."
                )
            return self.target
        if self.log_likelihood is None or self.prior is None:
            missing = "prior" if self.prior is None else "log_likelihood"
            raise ValueError(f"Expected log_likelihood together with prior; {missing} is missing. For a log-density alone use target=.")
        return posterior(self.log_likelihood, as_prior(self.prior), names=self.names)

    def _begin(self, target: Target, start: Any, n_chains: int, generator: torch.Generator) -> tuple[Tensor, Kernel]:
        """Starting points ``(n_chains, d)`` and the local kernel, after the checks."""
        if start is not None:
            rows = self._given(start, target)
            self._run.notes += check_values(target, rows[:_CHECKED])
            points = starts.spread_out(target, rows, n_chains, generator)
        elif target.prior is None:
            points = starts.without_prior(target, n_chains, generator)
        else:
            drawn = target.prior.sample(_CHECKED, generator).double()
            self._run.notes += check_values(target, drawn)
            kernel = self._local_kernel(target, drawn)
            if self.method == "mixed" and self._run.settings.ascends:
                return self._run.ascend(), kernel
            return starts.from_prior(target, n_chains, generator, kernel), kernel
        return points, self._local_kernel(target, points)

    def _given(self, start: Any, target: Target) -> Tensor:
        rows = as_float(start, "start").double()
        if rows.ndim != 2 or rows.shape[1] != target.features or not len(rows):
            raise ValueError(
                f"Expected start of shape (n, {target.features}); got {tuple(rows.shape)}. For a single point pass start[None]."
            )
        return rows

    def _local_kernel(self, target: Target, points: Tensor) -> Kernel:
        """The kernel given; else one that follows gradients where there are any and columns enough, its gradient checked.

        A wrong gradient is an error of the user's whether it is used or not: where it is not, it is noted.
        """
        if self.kernel is not None:
            return as_kernel(self.kernel)
        with torch.no_grad():
            points = points[torch.isfinite(target.log_prob(points))]
        if not len(points) or not has_gradient(target, points[:1]):
            return RandomWalk()
        space = unconstrained(target, points)
        try:
            check_gradient(space, space.from_user(points[:_GRADIENTS_CHECKED]), rtol=_GRADIENT_TOLERANCE)
        except ValueError as error:
            if target.features > _RANDOM_WALK:
                raise
            self._run.notes.append(f"random walks, which use no gradient, were run; {str(error)[0].lower()}{str(error)[1:]}")
        return RandomWalk() if target.features <= _RANDOM_WALK else HMC(check=False, max_steps=_LONGEST)

    def _judge(self) -> None:
        self._chains, self._report = judged(self._run)

    # --- Answers -------------------------------------------------------------------------------------------------------------

    @property
    def chains_(self) -> Chains:
        check_is_fitted(self, "_chains")
        return self._chains

    @property
    def report_(self) -> SamplerReport:
        check_is_fitted(self, "_chains")
        return self._report

    @property
    def proposal_(self) -> FlowProposal | None:
        check_is_fitted(self, "chains_")
        return self._run.proposal

    @property
    def evidence_(self) -> Evidence | None:
        """What :meth:`evidence` has found for these draws; None before."""
        check_is_fitted(self, "chains_")
        return self._evidence

    @property
    def thin_(self) -> int:
        """Steps from one draw of a chain to the next."""
        check_is_fitted(self, "chains_")
        return self._run.thin

    def sample(self, n_samples: int = 1, random_state: RandomState = None) -> np.ndarray:
        """Draws, in random order.

        The chains run on where they are not worth ``n_samples`` independent draws yet; ``chains_`` and ``report_`` then change, and what
        :meth:`evidence` has found stays. Once ``max_evaluations`` are spent they do not, and the verdict says that draws are fewer, or
        repeated. Where an evidence is wanted too, ask for it first: it may begin the chains anew.

        Parameters
        ----------
        n_samples : int
        random_state : int, generator or None
            Which of the chains' draws are taken.

        Returns
        -------
        ndarray (n_samples, d)
        """
        check_is_fitted(self, "chains_")
        positive("n_samples", n_samples, integer=True)
        if n_samples > self.report_.ess:
            self._run.collect(n_samples)
            self._judge()
        self._handed_out = True
        rows = self.chains_.samples.reshape(-1, self.chains_.features)
        generator = torch_generator(seed_from(random_state))
        if n_samples > len(rows):
            return rows[torch.randint(len(rows), (n_samples,), generator=generator).numpy()]
        return rows[torch.randperm(len(rows), generator=generator)[:n_samples].numpy()]

    def evidence(self) -> Evidence:
        """ln of the density's integral: the evidence of a likelihood and its prior.

        Bridge sampling between the chains and the frozen flow, or one fitted now where none was trained; the evaluations join ``report_``.
        Where the local kernel was chosen (``method="auto"``) and there is a prior of few columns, flows that come from there take over: an
        evidence needs one in any case, and these look for branches that chains may have missed. ``chains_`` and ``report_`` are then new.
        """
        check_is_fitted(self, "chains_")
        if self._evidence is None and self._run.may_turn_to_flows:
            self._run.turn_to_flows("an evidence was asked for, which needs a flow")
            if self._handed_out:
                self._run.notes.append(_REPLACED)
            self._run.collect(self._run.asked)
            self._judge()
        if self._evidence is None:
            with self._ledger.purpose("evidence"):
                self._evidence = self._compute_evidence()
            self._judge()  # its costs
        return self._evidence

    def _compute_evidence(self) -> Evidence:
        run = self._run
        # In the target's own parameters, where it is a density: those of the chains may be others (a unit cube's are).
        draws, log_p = run.points()
        step = max(1, draws.shape[0] * draws.shape[1] // _EVIDENCE_DRAWS)
        kept = Chains(draws[:, ::step].numpy(), run.target.names, log_p[:, ::step].numpy(), ensemble=self._chains.ensemble)

        def log_posterior(x: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                # Where it has no value there is no density, as in the chains, whose verdict tells how often.
                return run.target.log_prob(torch.as_tensor(x)).nan_to_num(-math.inf, -math.inf, -math.inf).numpy()

        seeds = torch.randint(2**31, (2,), generator=run.generator).tolist()
        found = evidence(
            kept,
            log_posterior,
            prior=self.target_.prior,
            support=self.target_.support,
            density=None if run.proposal is None else NumpyDensity(run.proposal.without_prior(), seeds[0]),
            max_evaluations=_EVIDENCE_BUDGET,
            random_state=seeds[1],
        )
        return with_chains_verdict(found, run, self.report_.reliability)

    def log_prob(self, X: Any) -> np.ndarray:
        """Natural log of the density at rows ``X (n, d)``, ``(n,)``, normalised by :meth:`evidence`; -inf outside the support.

        Rows are in the parameters of the target: of :func:`sbi_flows.targets.from_dynesty`, points of the unit cube.
        """
        check_is_fitted(self, "chains_")
        rows = as_float(X, "X").double()
        with torch.no_grad():
            return self.target_.log_prob(rows).numpy() - self.evidence().log_z
