"""One run from starts to draws: pilot of the local kernel, choice, rounds of training, draws that count."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbi_flows.flow_sampling import starts
from sbi_flows.flow_sampling.choice import FLOOR, FlowCosts, LocalPilot, after_training, nearly_done, wants_flow
from sbi_flows.flow_sampling.counting import CountedTarget
from sbi_flows.flow_sampling.fitting import AUTOREGRESSIVE, Measured, ProposalFit, expected_acceptance, flow_prices
from sbi_flows.flow_sampling.latent import straightened
from sbi_flows.flow_sampling.modes import separated_modes
from sbi_flows.flow_sampling.paths import N_TRAINING, too_rare, with_paths
from sbi_flows.flow_sampling.proposal import FlowProposal
from sbi_flows.flow_sampling.walk import Drawn, Walk
from sbi_flows.flow_sampling.worth import about_their_modes, bulk_size, effective_size
from sbi_flows.results import Chains
from sbi_flows.samplers import IndependentMetropolis, Kernel, Mixed, MixedState, RandomWalk
from sbi_flows.targets import circular_columns, unconstrained

_WARMUP = 150
_WARMUP_ANNEALED = 60  # of random walks from starts that annealing has brought there: covariance and spread are right already
_PILOT = 40  # steps of the local kernel that are looked at
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
_MOST_PILOT = 640
_SEEN = 10  # times that the kernel has forgotten where it was, for its speed to be known
_ROWS = 12_000  # that a mode's flow is fitted to, about
_GROUPS = 16


@dataclass(frozen=True)
class Settings:
    """What the user chose; see :class:`sbi_flows.FlowSampler`."""

    n_effective: int
    n_chains: int
    method: str
    kernel: Kernel | None
    max_evaluations: int


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
        self.costs: FlowCosts | None = None
        self.pace = 0.0
        self.by_mode: dict[int, Tensor] = {}
        self.pilot_records: list[Drawn] = []
        self.records: list[Drawn] = []
        self.thin = 1

    # --- Pilot ---------------------------------------------------------------------------------------------------------------

    def pilot(self, start: Tensor, kernel: Kernel, explore: bool) -> None:
        """Warm the local kernel up, let half of the chains look around where there is no prior to do it, and watch it run."""
        space = unconstrained(self.target, start)
        walk = Walk(kernel, space, start, self.generator)
        with self.ledger.purpose("warm-up"):
            walk.warm_up(_WARMUP_ANNEALED if isinstance(kernel, RandomWalk) and self.target.prior is not None else _WARMUP)
        if explore:
            with self.ledger.purpose("exploration"):
                x = walk.state.position
                half = len(x) // 2
                x = torch.cat([x[:half], starts.heated(kernel, space, x[half:], self.generator)])
                walk = Walk(kernel, space, space.to_user(x)[0], self.generator)
                walk.warm_up(_WARMUP // 3)
        self.walk, self.space, self.local = walk, space, kernel
        with self.ledger.purpose("pilot"):
            self._watch()

    def _watch(self) -> None:
        """Look at the local kernel until it is clear whether a flow pays: a short look flatters a kernel that forgets slowly."""
        n_steps = _PILOT
        while n_steps > 0:
            drawn = self.walk.draw(n_steps)
            self.pilot_records.append(drawn)
            self.pilot_draws = torch.cat([record.position for record in self.pilot_records], dim=1)
            n_steps = self._look(drawn.seconds_a_step)

    def _look(self, seconds_a_step: float) -> int:
        """Measure the pilot's draws so far; the steps by which it should go on."""
        seen = self.pilot_draws
        self.modes = separated_modes(seen, circular_columns(self.space))
        n = seen.shape[1]
        ess = effective_size(seen)
        rows, spent = self.ledger.evaluations["pilot"], self.ledger.target_seconds["pilot"]
        self.local_pilot = LocalPilot(
            kernel=type(self.walk.kernel).__name__,
            seconds_a_step=seconds_a_step,
            ess_a_step=ess / n,
            rows_a_step=rows / n,
            row_seconds=spent / max(rows, 1),
            n_modes=self.modes.n,
        )
        if self.modes.n > 1 or self.settings.method != "auto":
            return 0
        if not nearly_done(self.local_pilot, self.settings.n_effective):
            if self.costs is None:
                self.costs = self._flow_costs()
            if wants_flow(self.local_pilot, self.costs, self.settings.n_effective)[0]:
                return 0
        forgets = seen.shape[0] * n / ess
        return min(int(min(_SEEN * forgets, _MOST_PILOT)) - n, 3 * n)

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
        brief = nearly_done(self.local_pilot, self.settings.n_effective)
        if brief and wanted == "auto":
            self.reasons.append(brief)
            return
        costs = self.costs if self.costs is not None else self._flow_costs()
        pays, why = wants_flow(self.local_pilot, costs, self.settings.n_effective)
        self.reasons.append(why)
        if not pays and wanted == "auto":
            return
        with self.ledger.purpose("training"):
            fit = ProposalFit(self._draws_by_mode(self.pilot_draws), self.target.support, self.generator, hot=self._hot_draws())
            self._rounds(fit, costs)
        measured = self.acceptance, self.forgets
        method, why, against = after_training(self.local_pilot, costs, *measured, self.settings.n_effective, fit.n_steps)
        self.training_steps = fit.n_steps
        if self.modes.n > max(1, len(self.by_mode)):
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
        self.pace = max(acceptance * self.settings.n_chains, self.local_pilot.ess_a_step)
        self.reasons.append(f"method={wanted!r} was asked for; of its paths {acceptance:.0%} are accepted")

    def _look_in_latent_space(self, *, forced: bool) -> None:
        """Whether the local kernel forgets faster where a flow has straightened the density: it cannot cross modes there either."""
        if self.modes.n > 1 or isinstance(self.local, RandomWalk):
            if forced:
                missing = "a gradient, more than a few columns and a single mode"
                self.against.append(f"method='latent' needs {missing}: the local kernel ran alone")
                self.method = "local"
            return
        draws = self.walk.to_user(self.pilot_draws)[0]
        with self.ledger.purpose("latent pilot"):
            found = straightened(self.target, self.local, draws, self.walk.position, self.generator)
        before = self.local_pilot
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

    def _rounds(self, fit: ProposalFit, costs: FlowCosts) -> None:
        """Train, measure, sample, until proposals are good, no longer get better, or more would cost more than it saves."""
        for n_steps in _TRAINING:
            if n_steps:
                forced = self.settings.method != "auto"
                if not forced and not costs.worth(n_steps, self.settings.n_effective, self.forgets, self.local_pilot.row_seconds):
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
                fit.take(self._draws_by_mode(mixed.draw(_ROUND).position))
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
            kernel = Mixed([self.local, jump], weights=[_LOCAL_SHARE, 1 - _LOCAL_SHARE])
        else:
            kernel = Mixed([self.local, *[jump] * jumps])
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
        walk.kernel = self.local
        walk.state, _ = self.local.relocate(mixed.parts[0], mixed.position, mixed.log_prob, self.space)
        return walk

    def _hot_draws(self) -> Tensor | None:
        """Where corners of the one mode are, in the user's parameters; in many columns a flow that is wide enough for them is of no use."""
        if self.modes.n > 1 or self.target.features > AUTOREGRESSIVE:
            return None
        half = self.walk.state.position[: -(-self.settings.n_chains // 2)]
        return self.space.to_user(starts.hot_draws(self.local, self.space, half, self.generator))[0]

    def _flow_costs(self) -> FlowCosts:
        """From a pass forward and back of an untrained flow."""
        row, step = flow_prices(self.walk.to_user(self.pilot_draws[:, -1:])[0][:, 0], self.target.support)
        n_modes = self.modes.n
        return FlowCosts(training=step * n_modes * sum(_TRAINING[:2]), step=step * n_modes, row=row * n_modes)

    def _draws_by_mode(self, samples: Tensor) -> list[Tensor]:
        """Draws ``(chain, draw, d)`` of each mode in the user's parameters, thinned; chains that mix are cut up and dealt."""
        n_chains, n_draws, d = samples.shape
        samples = samples[:, :: max(1, n_chains * n_draws // (_ROWS * self.modes.n))]
        user, _ = self.walk.to_user(samples)
        if self.modes.n == 1:
            return [user]
        labels = self.modes.label(samples)
        first = not self.by_mode
        for k in range(self.modes.n):
            part = user[labels == k]
            # A mode that later holds few draws keeps its flow and the draws it was fitted to; one that never held more gets none.
            if len(part) >= max(4 * _GROUPS, 2 * d) and (first or k in self.by_mode):
                # Cut in an order that keeps each chain's draws together, as whole groups are held out.
                self.by_mode[k] = part[: len(part) // _GROUPS * _GROUPS].view(_GROUPS, -1, d)
        return [self.by_mode[k] for k in sorted(self.by_mode)]

    # --- Draws ---------------------------------------------------------------------------------------------------------------

    def collect(self, n_effective: int) -> None:
        """Draws that count, in pieces, until they are worth ``n_effective`` independent ones, and enough to tell whether chains agree."""
        self.asked = max(self.asked, n_effective)
        n_effective = max(n_effective, _TO_COMPARE * self.settings.n_chains)
        with self.ledger.purpose("draws"):
            if not self.records:
                self._begin_draws()
            for _ in range(_PIECES):
                have, spent = self.effective_size(), self.ledger.n_evaluations > self.settings.max_evaluations
                if have >= n_effective or (spent and self.records):
                    return
                if spent:
                    # The choice alone took all there was: the least that can be judged.
                    self.records.append(self.walk.draw(_FEWEST))
                    return
                self.records.append(self.walk.draw(self._length(n_effective, have), self.thin))

    def _begin_draws(self) -> None:
        """The kernel as it stays; where nothing has been learned since the pilot began, its draws are draws like any."""
        if self.method == "mixed" and self.proposal is not None:
            self.walk = self._mixed_walk(self.proposal)
        if self.method != "local" or self.proposal is not None or any(drawn.diverged for drawn in self.pilot_records):
            self._settle()
        elif self.settings.n_chains / self.local_pilot.ess_a_step < 2 * _THINNED:
            self.records = list(self.pilot_records)

    def _settle(self) -> None:
        """Shorter steps until no trajectory of a brief look diverges: a flow brings chains to where the warm-up never was."""
        if "divergent" not in self.pilot_records[-1].stats:
            return
        for _ in range(_HALVINGS):
            if not self.walk.draw(_LOOK).diverged:
                return
            self.walk.halve_steps()

    def _length(self, n_effective: int, have: float) -> int:
        """Steps of the next piece; the first one decides how draws are thinned."""
        if not self.records:
            mixed = self.method == "mixed"
            forgets = 1.5 if mixed else self.settings.n_chains / (self.pace or self._worth(self.pilot_draws) / self.pilot_draws.shape[1])
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
        """Independent draws that ``draws`` are worth: within their modes where chains cannot leave these, which more would not mend."""
        stay = self.modes.n > 1 and self.method in ("local", "latent")
        return bulk_size(about_their_modes(draws, self.modes) if stay else draws)

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
