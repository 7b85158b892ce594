"""The choice by measurement: whether a flow pays, and how it is used."""

from __future__ import annotations

from dataclasses import dataclass

FLOOR = 0.01  # acceptance below which flow proposals carry nothing between modes
WORTH = 0.05  # acceptance below which, in one mode, they are not worth their price
_HOPED = 0.6  # acceptance assumed before there is a flow
_BRIEF = 0.5  # seconds, of the order of what an untrained flow takes to build and fit to draws
_PROMISED = 0.5  # of the draws a pilot promises
_FIRST_ROUND, _ASCENT = 300, 1500  # steps of training a flow on a pilot's draws; what following the posterior from the prior costs
_FEWER, _LIKE = 4.0, 3.0  # times fewer evaluations for which a flow may take so many times as long


@dataclass(frozen=True)
class LocalPilot:
    """What a short run of the local kernel showed.

    Attributes
    ----------
    kernel : str
    seconds_a_step : float
        Of all chains together.
    ess_a_step : float
        Independent draws that a step of all chains is worth, by the slowest parameter.
    rows_a_step : float
        Evaluations of the density, all chains together.
    row_seconds : float
        Of one of them within a batch.
    n_modes : int
        That the kernel does not connect.
    """

    kernel: str
    seconds_a_step: float
    ess_a_step: float
    rows_a_step: float
    row_seconds: float
    n_modes: int

    def seconds_for(self, n_effective: float) -> float:
        """Until the draws are worth that many."""
        return self.seconds_a_step * n_effective / max(self.ess_a_step, 1e-12)

    def rows_for(self, n_effective: float) -> float:
        """Evaluations until then."""
        return self.rows_a_step * n_effective / max(self.ess_a_step, 1e-12)


@dataclass(frozen=True)
class FlowCosts:
    """What a flow would cost.

    Attributes
    ----------
    training : float
        Seconds until the first round is over, at a guess.
    step : float
        Of a step of training.
    row : float
        Seconds to propose one row.
    """

    training: float
    step: float
    row: float

    @classmethod
    def of(cls, step: float, row: float, n_modes: int, *, ascends: bool) -> FlowCosts:
        """From the seconds of a step of training and of a row, for a flow each mode or one that follows the posterior from the prior."""
        flows = 1 if ascends else n_modes
        return cls(training=step * flows * (_ASCENT if ascends else _FIRST_ROUND), step=step * flows, row=row * flows)

    def worth(self, n_steps: int, n_effective: float, forgets: float, row_seconds: float) -> bool:
        """Whether what a round of training could save of the draws' time is of the order of its price."""
        saved = self.seconds_for(n_effective, forgets - 1, row_seconds)
        return saved * _LIKE > self.step * n_steps

    def seconds_for(self, n_effective: float, forgets: float, row_seconds: float) -> float:
        """Until flow proposals of that autocorrelation time are worth so many draws."""
        return n_effective * forgets * (self.row + row_seconds)


def nearly_done(pilot: LocalPilot, n_effective: float) -> str | None:
    """Why no flow need even be priced: the local kernel is through before one could be set up; None where it is not."""
    seconds = pilot.seconds_for(n_effective)
    if pilot.n_modes > 1 or seconds > _BRIEF:
        return None
    return (
        f"chains of {pilot.kernel} cross between all that was found; alone it needs about {seconds:.2g} s more for {n_effective:.0f} "
        f"independent draws ({pilot.ess_a_step:.3g} a step): less than setting up a flow takes"
    )


def disappoints(pilot: LocalPilot, have: float, n_steps: int) -> bool:
    """Whether draws of ``n_steps``, worth ``have`` independent ones, are far fewer than the pilot promised."""
    return have < _PROMISED * pilot.ess_a_step * n_steps


def wants_flow(pilot: LocalPilot, costs: FlowCosts, n_effective: float) -> tuple[bool, str]:
    """Whether to train a flow at all, and why."""
    if pilot.n_modes > 1:
        return True, (
            f"{pilot.kernel} does not connect {pilot.n_modes} modes: no chain crosses the empty space between them, so their masses need "
            "flow proposals"
        )
    alone, rows_alone = pilot.seconds_for(n_effective), pilot.rows_for(n_effective)
    helped = costs.training + costs.seconds_for(n_effective, (2 - _HOPED) / _HOPED, pilot.row_seconds)
    rows_helped = n_effective * (2 - _HOPED) / _HOPED
    said = (
        f"chains of {pilot.kernel} cross between all that was found; alone it needs about {alone:.2g} s and {rows_alone:.2g} evaluations "
        f"more for {n_effective:.0f} independent draws ({pilot.ess_a_step:.3g} a step), with a flow it would be {helped:.2g} s, "
        f"{costs.training:.2g} s of it for training, and {rows_helped:.2g} evaluations"
    )
    if alone > helped:
        return True, said
    # At a like time the one that asks less of the density: another density may be dearer than this machine makes it look.
    if rows_alone > _FEWER * rows_helped and alone > helped / _LIKE:
        return True, f"{said}: so many fewer are worth the time"
    return False, said


def after_training(
    pilot: LocalPilot, costs: FlowCosts, acceptance: float, forgets: float, n_effective: float, trained: int, *, leads: bool = False
) -> tuple[str, str, list[str]]:
    """The method, why, and reasons against the result: falls back, and says so, when the flow is too poor.

    With ``leads`` the flow has come from the prior: it may know of branches that the local kernel does not, and time is no question.
    """
    if pilot.n_modes > 1:
        if acceptance >= FLOOR:
            return "mixed", f"flow proposals are accepted with probability {acceptance:.2g}, which carries chains between modes", []
        poor = (
            f"the flow trained badly: its proposals are accepted with probability {acceptance:.2g}, below the floor of {FLOOR}, so nothing "
            f"carries chains between the {pilot.n_modes} modes and their masses are those of the starts"
        )
        return "local", poor, [f"{poor}. Give more chains, more draws a round, or start from a prior"]
    alone = pilot.seconds_for(n_effective)
    helped = costs.seconds_for(n_effective, forgets, pilot.row_seconds)
    said = f"proposals of the flow ({trained} training steps) are accepted with probability {acceptance:.2g}"
    if acceptance >= WORTH and leads:
        return "mixed", f"{said}, in every branch that flows from the prior have found", []
    if acceptance >= WORTH and helped < alone:
        return "mixed", f"{said}: {helped:.2g} s for the draws asked for against {alone:.2g} s without", []
    return "local", f"{said}: too few, they would need {helped:.2g} s against {alone:.2g} s of the local kernel alone; fell back on it", []
