"""One run from starts to draws: pilot of the local kernel, choice, rounds of training, draws that count."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from sbi_flows.flow_sampling import starts
from sbi_flows.flow_sampling.choice import FLOOR, after_training, disappoints, nearly_done, wants_flow
from sbi_flows.flow_sampling.counting import CountedTarget
from sbi_flows.flow_sampling.fitting import AUTOREGRESSIVE, Measured, ProposalFit, expected_acceptance
from sbi_flows.flow_sampling.latent import straightened
from sbi_flows.flow_sampling.paths import N_TRAINING, too_rare, with_paths
from sbi_flows.flow_sampling.pilot import Pilot
from sbi_flows.flow_sampling.proposal import FlowProposal
from sbi_flows.flow_sampling.report import ASCENT
from sbi_flows.flow_sampling.rows import GROUPS, RowsByMode, thinned
from sbi_flows.flow_sampling.settings import Settings
from sbi_flows.flow_sampling.walk import Drawn, Walk
from sbi_flows.flow_sampling.worth import about_their_modes, bulk_size
from sbi_flows.results import Chains
from sbi_flows.samplers import IndependentMetropolis, Kernel, Mixed, MixedState, RandomWalk
from sbi_flows.samplers.run import worth

_TRAINING = (0, 300, 700, 1500)  # optimiser steps of each round
_GOOD = 1.8  # autocorrelation time of flow proposals at which training ends; with a fifth of them defensive it is 1.5 at best
_GAIN = 1.15  # factor by which a round must reduce what is rejected for another to follow
_ROUND = 40  # steps of the mixed kernel between rounds
_MEASURED = 500  # proposals behind a measured acceptance
_MOST_JUMPS = 8  # flow proposals a step
_LOCAL_SHARE = 0.1  # of local steps beside proposals that are accepted nearly always
_LOOK, _HALVINGS = 20, 3  # steps before the draws in which nothing should diverge, and how often the step size is halved where it does
_PIECES = 6
_THINNED = 4  # draws kept for each time the kernel forgets
_FEWEST = 20  # draws a chain of a piece
_TO_COMPARE = 16  # independent draws a chain, at least: R-hat is then 1.06 where all is well
_BRIDGED = 0.3  # acceptance from which on one flow that reaches separated modes will do for all of them


class Run:
    """The chains on their way; the methods are called in the order they stand.

    Attributes
    ----------
    method : str
        "local", "mixed" or "latent", once it is chosen.
    reasons : list of str
        Why.
    against, notes : list of str
        For the verdict.
    asked : int
        Independent draws that were asked for, at most.
    """

    def __init__(self, target: CountedTarget, settings: Settings, generator: torch.Generator):
        self.target, self.settings, self.generator = target, settings, generator
        self.asked = settings.n_effective
        self.ledger = target.ledger
        self.method = "local"
        self.reasons: list[str] = []
        self.against: list[str] = []
        self.notes: list[str] = []
        self.proposal: FlowProposal | None = None
        self.acceptance, self.forgets = 0.0, float("inf")
        self.training_steps = 0
        self.pace = 0.0
        self.by_mode: RowsByMode | None = None
        self.records: list[Drawn] = []
        self.ascended: starts.Ascended | None = None
        self.thin = 1

    # --- Start and pilot -----------------------------------------------------------------------------------------------------

    def ascend(self) -> Tensor:
        """Starting points ``(n_chains, d)`` from the prior by flows, of which the last one will propose."""
        with self.ledger.purpose(ASCENT):
            self.ascended = starts.by_flows(self.target, self.generator)
        self.against += self.ascended.against
        return self.ascended.draws[: self.settings.n_chains]

    def _look_again(self) -> None:
        """The pilot once more, from where flows have led."""
        self.look(self.ascend(), self.pilot.kernel, explore=False)

    def look(self, start: Tensor, kernel: Kernel, *, explore: bool) -> None:
        """Watch the local kernel from ``start (n_chains, d)``; with ``explore``, half of the chains look around first."""
        self.pilot = Pilot(self.target, self.settings, start, kernel, explore=explore, generator=self.generator)
        self.walk, self.space, self.modes = self.pilot.walk, self.pilot.space, self.pilot.modes

    # --- Choice and training --------------------------------------------------------------------------------------------------

    def choose(self) -> None:
        """Decide whether to train, train in rounds while the mixed kernel runs, and decide how the draws are made."""
        wanted = self.settings.method
        if wanted == "local":
            self.reasons.append("method='local' was asked for")
            return
        if wanted in N_TRAINING:
            self._use_paths(wanted)
            return
        if wanted == "latent":
            self.reasons.append("method='latent' was asked for")
            self._look_in_latent_space(forced=True)
            return
        brief = nearly_done(self.pilot.local, self.settings.n_effective)
        if brief and wanted == "auto":
            self.reasons.append(brief)
            return
        pays, why = wants_flow(self.pilot.local, self.pilot.costs, self.settings.n_effective)
        self.reasons.append(why)
        if pays or wanted != "auto":
            self._add_flow()

    def _add_flow(self) -> None:
        """Train in rounds while the mixed kernel runs, and decide whether the flow proposes in the draws."""
        wanted = self.settings.method
        if self.settings.ascends and self.ascended is None:
            self._look_again()
        with self.ledger.purpose("training"):
            fit = self._fit()
            self._rounds(fit)
        worth = self.acceptance, self.forgets, self.settings.n_effective, fit.n_steps
        method, why, against = after_training(self.pilot.local, self.pilot.costs, *worth, leads=self.ascended is not None)
        self.training_steps = fit.n_steps
        if self.by_mode is not None and self.modes.n > len(self.by_mode):
            few = self.modes.n - len(self.by_mode)
            self.notes.append(f"{few} of {self.modes.n} modes held too few draws for a flow of their own: no proposals go there")
        if wanted != "auto" and method != wanted:
            accepted = f"proposals of the flow ({fit.n_steps} training steps) are accepted with probability {self.acceptance:.2g}"
            why, method = f"method={wanted!r} was asked for; {accepted}", wanted
        self.method = method
        self.reasons.append(why)
        self.against += against
        if method == "local":
            self.walk = self._local_walk()
        if wanted == "auto" and method == "local":
            self._look_in_latent_space(forced=False)

    def _use_paths(self, wanted: str) -> None:
        """Mix the local kernel with ends of random paths, or fall back where they are hardly ever accepted."""
        self.training_steps = N_TRAINING[wanted]
        with self.ledger.purpose("training"):
            walk, acceptance = with_paths(wanted, self.target, self.walk, self.generator)
        against = too_rare(wanted, acceptance)
        if against is not None:
            self.against.append(against)
            return
        self.method, self.walk, self.acceptance = wanted, walk, acceptance
        self.pace = max(acceptance * self.settings.n_chains, self.pilot.local.ess_a_step)
        self.reasons.append(f"method={wanted!r} was asked for; of its paths {acceptance:.0%} are accepted")

    def _look_in_latent_space(self, *, forced: bool) -> None:
        """Whether the local kernel forgets faster where a flow has straightened the density: it cannot cross modes there either."""
        if self.modes.n > 1 or isinstance(self.pilot.kernel, RandomWalk):
            if forced:
                missing = "a gradient, more than a few columns and a single mode"
                self.against.append(f"method='latent' needs {missing}: the local kernel ran alone")
                self.method = "local"
            return
        draws = self.walk.to_user(self.pilot.draws)[0]
        with self.ledger.purpose("latent pilot"):
            found = straightened(self.target, self.pilot.kernel, draws, self.walk.position, self.generator)
        before = self.pilot.local
        self.training_steps += found.training_steps
        said = (
            f"in the latent space of a flow {before.kernel} makes {found.ess_a_step:.3g} independent draws a step of "
            f"{found.rows_a_step:.0f} evaluations and {found.seconds_a_step:.2g} s, without it {before.ess_a_step:.3g} a step of "
            f"{before.rows_a_step:.0f} evaluations and {before.seconds_a_step:.2g} s"
        )
        if found.led_by:
            said += f"; the flow is led by {', '.join(self.target.names[j] for j in found.led_by)}"
        if forced or found.ess_a_step / found.seconds_a_step > before.ess_a_step / before.seconds_a_step:
            self.method, self.walk, self.pace = "latent", found.walk, found.ess_a_step
            self.reasons.append(said)
        else:
            self.reasons.append(f"{said}: no gain")

    def _fit(self) -> ProposalFit:
        """What to begin with: the flow that came from the prior, which has the modes' masses too, or flows fitted to the pilot."""
        support, generator = self.target.support, self.generator
        if self.ascended is not None:
            draws = self.ascended.draws.view(GROUPS, -1, self.target.features)
            fit = ProposalFit([draws], support, generator, flows=[self.ascended.flow])
            if self.modes.n == 1 or self._measured(fit)[1].acceptance > _BRIDGED:
                return fit
        if self.modes.n > 1:
            self.by_mode = RowsByMode(self.modes, self.walk.to_user)
        return ProposalFit(self._rows(self.pilot.draws), support, generator, hot=self._hot_draws())

    def _rows(self, samples: Tensor) -> list[Tensor]:
        """Draws that a flow, or each mode's, is fitted to; ``samples (chain, draw, d)`` on the real line."""
        return [self.walk.to_user(thinned(samples))[0]] if self.by_mode is None else self.by_mode.take(samples)

    def _rounds(self, fit: ProposalFit) -> None:
        """Train, measure, sample, until proposals are good, no longer get better, or more would cost more than it saves."""
        for n_steps in _TRAINING:
            if n_steps:
                forced, costs = self.settings.method != "auto", self.pilot.costs
                if not forced and not costs.worth(n_steps, self.settings.n_effective, self.forgets, self.pilot.local.row_seconds):
                    break
                fit.train(n_steps)
            proposal, measured = self._measured(fit)
            gained = not n_steps or (1 - measured.acceptance) * _GAIN < 1 - self.acceptance
            if measured.acceptance > self.acceptance:
                self.proposal, self.acceptance, self.forgets = proposal, measured.acceptance, measured.forgets
            if not gained or self.forgets < _GOOD:
                break
            if self.acceptance > FLOOR:
                mixed = self._mixed_walk(proposal)
                fit.take(self._rows(mixed.draw(_ROUND).position))
                self.walk = mixed

    def _measured(self, fit: ProposalFit) -> tuple[FlowProposal, Measured]:
        # Draws of a prior of many columns are never accepted.
        prior = self.target.prior if self.target.features <= AUTOREGRESSIVE else None

        def measure() -> tuple[FlowProposal, Measured]:
            proposal = fit.proposal.defended(prior)
            return proposal, expected_acceptance(self.target.log_prob, proposal, fit.held_out, _MEASURED, self.generator)

        proposal, measured = measure()
        if len(proposal.flows) == 1:
            return proposal, measured
        # The draws' shares were those of the starts.
        fit.proposal = fit.proposal.weighted(measured.shares)
        return measure()

    def _mixed_walk(self, proposal: FlowProposal) -> Walk:
        """The chains as they stand, with flow proposals after every local step."""
        jumps = int(np.clip(round(self.forgets / 2), 1, _MOST_JUMPS))
        jump = IndependentMetropolis(proposal)
        if jumps == 1:
            # Where jumps forget at once a local step would only double their price; a few free chains where the flow is too thin.
            kernel = Mixed([self.pilot.kernel, jump], weights=[_LOCAL_SHARE, 1 - _LOCAL_SHARE])
        else:
            kernel = Mixed([self.pilot.kernel, *[jump] * jumps])
        walk = Walk(kernel, self.space, self.walk.position, self.generator)
        local = self.walk.state.parts[0] if isinstance(self.walk.state, MixedState) else self.walk.state
        walk.state = walk.state._replace(parts=(local, *walk.state.parts[1:]))
        return walk

    def _local_walk(self) -> Walk:
        """The local kernel alone, as it was learned, from where the rounds of training have left the chains."""
        mixed = self.walk.state
        if not isinstance(mixed, MixedState):
            return self.walk
        walk = copy.copy(self.walk)
        walk.kernel = self.pilot.kernel
        walk.state, _ = self.pilot.kernel.relocate(mixed.parts[0], mixed.position, mixed.log_prob, self.space)
        return walk

    def _hot_draws(self) -> Tensor | None:
        """Where corners of the one mode are, in the user's parameters; in many columns a flow that is wide enough for them is of no use."""
        if self.modes.n > 1 or self.target.features > AUTOREGRESSIVE:
            return None
        half = self.walk.state.position[: -(-self.settings.n_chains // 2)]
        return self.space.to_user(starts.hot_draws(self.pilot.kernel, self.space, half, self.generator))[0]

    # --- Draws ---------------------------------------------------------------------------------------------------------------

    def collect(self, n_effective: int) -> None:
        """Draws that count, in pieces, until they are worth ``n_effective`` independent ones, and enough to tell whether chains agree."""
        self.asked = max(self.asked, n_effective)
        n_effective = max(n_effective, _TO_COMPARE * self.settings.n_chains)
        with self.ledger.purpose("draws"):
            if not self.records:
                self._begin_draws()
            price = 0.0  # evaluations a step
            for piece in range(_PIECES):
                have = self._reconsidered(self.effective_size()) if piece else self.effective_size()
                spent = self.ledger.n_evaluations
                left = self.settings.max_evaluations - spent
                if have >= n_effective or (left < 0 and self.records):
                    return
                if left < 0:
                    # The choice alone took all there was: the least that can be judged.
                    self.records.append(self.walk.draw(_FEWEST))
                    return
                length = self._length(n_effective, have)
                if price:
                    length = min(length, max(int(left / price), _FEWEST * self.thin))
                self.records.append(self.walk.draw(length, self.thin))
                price = (self.ledger.n_evaluations - spent) / self.records[-1].n_steps

    def _begin_draws(self) -> None:
        """The kernel as it stays; where nothing has been learned since the pilot began, its draws are draws like any."""
        if self.method == "mixed" and self.proposal is not None:
            self.walk = self._mixed_walk(self.proposal)
        if self.method != "local" or self.proposal is not None or self.pilot.diverged:
            self._settle()
        elif self.settings.n_chains / self.pilot.local.ess_a_step < 2 * _THINNED:
            self.records = list(self.pilot.records)

    @property
    def may_turn_to_flows(self) -> bool:
        """Whether a local kernel runs by choice where flows could come from the prior."""
        chosen = self.settings.method == "auto" and self.method == "local" and self.proposal is None
        return chosen and self.settings.ascends

    def turn_to_flows(self, why: str) -> None:
        """Leave the draws of the local kernel, and begin again with flows from the prior."""
        self.reasons.append(f"{why}: flows take over")
        self.records, self.thin = [], 1
        self._add_flow()
        self._begin_draws()

    def _reconsidered(self, have: float) -> float:
        """What the draws are worth, ``have``, or 0 after turning to flows where the local kernel was chosen for a speed they do not show.

        A random walk that is slower than it looked has met a ridge; there may be others, which it has not met.
        """
        done = sum(record.n_steps for record in self.records)
        if not (self.may_turn_to_flows and disappoints(self.pilot.local, have, done)):
            return have
        self.turn_to_flows(f"{done} steps were worth {have:.0f} independent draws, {have / done:.2g} a step")
        return self.effective_size()

    def _settle(self) -> None:
        """Shorter steps until no trajectory of a brief look diverges: a flow brings chains to where the warm-up never was."""
        if "divergent" not in self.pilot.records[-1].stats:
            return
        for _ in range(_HALVINGS):
            if not self.walk.draw(_LOOK).diverged:
                return
            self.walk.halve_steps()

    def _length(self, n_effective: int, have: float) -> int:
        """Steps of the next piece; the first one decides how draws are thinned."""
        if not self.records:
            mixed = self.method == "mixed"
            forgets = 1.5 if mixed else self.settings.n_chains / (self.pace or self._worth(self.pilot.draws) / self.pilot.draws.shape[1])
            self.thin = max(1, int(forgets / _THINNED))
            expected = 1.1 * n_effective * forgets / self.settings.n_chains
            return max(int(expected), _FEWEST * self.thin)
        done = sum(record.n_steps for record in self.records)
        return int(np.clip(1.1 * done * (n_effective - have) / max(have, 1.0), _FEWEST * self.thin, 3 * done))

    def positions(self) -> Tensor:
        """All draws that count so far, ``(chain, draw, d)`` on the real line."""
        return torch.cat([record.position for record in self.records], dim=1)

    def effective_size(self) -> float:
        return self._worth(self.positions()) if self.records else 0.0

    def _worth(self, draws: Tensor) -> float:
        """Independent draws that ``draws`` are worth, as reported; within their modes where chains cannot leave these."""
        if self.modes.n > 1 and self.method in ("local", "latent"):
            return bulk_size(about_their_modes(draws, self.modes))
        return worth(self.walk.to_user(draws)[0].numpy(), self.target)

    def stats(self) -> dict[str, np.ndarray]:
        """What the kernel said of the draws, ``(chain, draw)``."""
        kinds = {name: values.dtype for record in self.records for name, values in record.stats.items()}
        return {name: np.concatenate([record.stat(name, kind) for record in self.records], axis=1) for name, kind in kinds.items()}

    def points(self) -> tuple[Tensor, Tensor]:
        """All draws that count so far ``(chain, draw, d)`` in the target's parameters, and its log-density there ``(chain, draw)``."""
        points, log_det = self.walk.to_user(self.positions())
        return points, torch.cat([record.log_prob for record in self.records], dim=1) - log_det

    def chains(self) -> Chains:
        """All draws that count so far, in the user's parameters."""
        user, log_prob = self.points()
        flat, target = user.flatten(0, 1), self.target
        log_prior = None if target.prior is None else target.prior.log_prob(flat).view_as(log_prob)
        return Chains(
            samples=target.recorded(flat).view_as(user).numpy(),
            names=target.names,
            # Where results show other parameters than those of the density, it is not a density of what they show.
            log_posterior=log_prob.numpy() if target.same_parameters else None,
            log_likelihood=None if log_prior is None else (log_prob - log_prior).numpy(),
            ensemble=getattr(self.walk.kernel, "ensemble", False),
            stats=self.stats(),
        )
