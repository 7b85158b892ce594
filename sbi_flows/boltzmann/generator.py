"""``BoltzmannGenerator``: an energy in; weighted configurations, free energies and a verdict out."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import RandomState, torch_generator
from sbi_flows._threads import one_thread
from sbi_flows._validation import as_rows, check_finite, choose, positive
from sbi_flows.boltzmann import fitting
from sbi_flows.boltzmann.annealing import anneal_from_above
from sbi_flows.boltzmann.checks import Checked, FitReport, check, is_integrated, most_draws, verdict, weighted_draws, worth
from sbi_flows.boltzmann.coordinates import Coordinates, coordinates_of
from sbi_flows.boltzmann.files import load_generator, save_generator
from sbi_flows.boltzmann.free_energy import FreeEnergy, as_region, between_regions, bridge_row, chosen, importance_row
from sbi_flows.boltzmann.start import broad_starts
from sbi_flows.boltzmann.steering import steered
from sbi_flows.boltzmann.symmetries import suited_flow
from sbi_flows.boltzmann.target import BoltzmannTarget, Energy, check_energy
from sbi_flows.distributions import Distribution
from sbi_flows.estimators.files import complete
from sbi_flows.flows import Flow
from sbi_flows.results import FitHistory, WeightedSamples
from sbi_flows.targets import Target, unconstrained

METHODS = tuple(fitting.STAGES)
_LAYERS, _BINS, _HIDDEN = 4, 8, (64, 64)
_PARTICLES = 1000
_HELD_OUT = 0.1
_WANTED_ERROR, _WANTED_DIFFERENCE = 0.005, 0.01  # kT
_JUDGED = 2000  # draws that tell whether a stage made the flow better
_FEW_STARTS = 16  # of each scale, to look for states that data lack
_WORSE = 0.7  # times what it was worth: less than that is undone


class BoltzmannGenerator:
    """Independent configurations of ``exp(-U / T)`` by a flow, with exact importance weights.

    Without data, particles are annealed from a broad start to the target, a flow is fitted to them, and goes on learning from its own
    draws, which short annealing carries to where it is too thin (``method="annealing"``). Then chains from its draws, and from wells found
    by descents at all scales, look for states that it misses; what they say is in ``report_``.

    Parameters
    ----------
    energy : callable or Target
        ``U``: ``(n, d)`` float64 tensor to ``(n,)``, in units of kT at temperature 1, differentiable. Of a target, minus its log-density.
    features : int, optional
        Columns of a configuration; those of ``energy.features`` by default.
    temperature : float
        In the same units.
    names, support : optional
        As of :class:`sbi_flows.Target`: of the columns. Angles are ``"circular"``.
    coordinates : Coordinates, optional
        What the flow sees of a configuration: :class:`sbi_flows.boltzmann.MoleculeCoordinates` (bonds, angles, dihedrals) or
        :class:`sbi_flows.boltzmann.MeanFreeCoordinates`. By default what suits the energy: those of a molecule where it has ``bonds``,
        mean-free ones where "translations" are among ``energy.symmetries``, positions and quaternions of ``energy.bodies``
        (:class:`sbi_flows.boltzmann.RigidCoordinates`), else columns as they are. Configurations go in and come out as
        the energy takes them.
    flow : Flow, optional
        An untrained flow of those columns and their support; by default :func:`sbi_flows.flows.pair_flow` where the energy says
        that its particles are alike (of more than six, :func:`sbi_flows.flows.particle_flow`), else a coupling spline flow on a normal or
        a mixture of normals. Symmetries that flow or coordinates assume are checked, and one that the energy has not is named.
    layers, bins, hidden : int, int, sequence of int
        Of the default flow.
    start : array-like (m, d) or Distribution, optional
        Configurations to begin from without data: as wide as the target or wider. By default descents find wells at all scales.
    method : {"auto", "annealing", "heights", "likelihood", "mixed", "reverse_kl", "force_matching", "matching"}
        How to train; "auto" is "annealing" without data and "heights" with. Without data all begin from annealed particles. "annealing" is
        "heights" and then the least alpha = 2 divergence on annealed draws of the flow, kept in a prioritised buffer; "heights" fits
        likelihood and energies at the configurations, "likelihood" the former alone, "reverse_kl" the energies at the flow's own draws, by
        path gradients, "mixed" likelihood, then all three; "force_matching" fits likelihood and forces, by a smooth flow; "matching" is
        flow matching, the default of continuous flows.
    n_particles : int or "auto"
        Annealed at once; by default 1000, and a hundred a column if that is more. They must find every state.
    n_steps : int or "auto"
        Optimiser steps of each stage, of 256 configurations each; by default 400, and 3000 of matching.
    learning_rate : float
        Its peak; a third of it for what improves on a fit by energies.
    random_state : int, generator or None
    progress : bool

    Attributes
    ----------
    flow_ : Flow
    target_ : BoltzmannTarget
    history_ : dict of str to FitHistory
        One a stage.
    report_ : FitReport
    draws_ : ndarray (m, d)
        Configurations of the target on which the flow was not trained: held-out data, or ends of chains.
    rows_ : Tensor (m, features)
        The same in the coordinates of the flow.

    Examples
    --------
    >>> energy = lambda x: (x[:, 0] ** 2 - 1) ** 2 * 4 + 0.5 * x[:, 1] ** 2
    >>> generator = BoltzmannGenerator(energy, 2, layers=2, n_steps=40, n_particles=200, random_state=0).fit()
    >>> generator.sample(100, random_state=1).samples.shape
    (100, 2)

    References
    ----------
    Noe, Olsson, Koehler & Wu 2019, "Boltzmann generators", Science 365, eaaw1147; Midgley et al. 2023, "Flow annealed importance sampling
    bootstrap", arXiv:2208.01893.
    """

    flow_: Flow
    target_: BoltzmannTarget
    history_: dict[str, FitHistory]
    report_: FitReport
    rows_: Tensor

    def __init__(
        self,
        energy: Energy | Target,
        features: int | None = None,
        *,
        temperature: float = 1.0,
        names: Sequence[str] | None = None,
        support: Any = None,
        coordinates: Coordinates | None = None,
        flow: Flow | None = None,
        layers: int = _LAYERS,
        bins: int = _BINS,
        hidden: Sequence[int] = _HIDDEN,
        start: Any = None,
        method: str = "auto",
        n_particles: int | str = "auto",
        n_steps: int | str = "auto",
        learning_rate: float = 1e-2,
        random_state: RandomState = None,
        progress: bool = False,
    ):
        self.energy, self.features, self.temperature = energy, features, temperature
        self.names, self.support, self.coordinates, self.flow = names, support, coordinates, flow
        self.layers, self.bins, self.hidden, self.start = layers, bins, hidden, start
        self.method, self.n_particles, self.n_steps, self.learning_rate = method, n_particles, n_steps, learning_rate
        self.random_state, self.progress = random_state, progress

    # --- Fitting -----------------------------------------------------------------------------------------------------------

    def fit(self, X=None) -> BoltzmannGenerator:
        """Train; the energy alone is enough.

        Parameters
        ----------
        X : array-like (n, d), optional
            Configurations of ``exp(-U / T)``, equally weighted, from molecular dynamics say.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the energy has no finite value where the fit begins, does not confine, or returns a wrong shape.
        """
        began, generator = time.perf_counter(), torch_generator(self.random_state)
        known = X if X is not None else None if isinstance(self.start, Distribution) else self.start
        coordinates = self.coordinates or coordinates_of(self.energy, known)
        target = BoltzmannTarget(self.energy, self.features, self.temperature, self.names, self.support, coordinates)
        self.target_ = target
        choose("method", self.method, ("auto", *METHODS))
        self.history_, notes = {}, []
        with one_thread():
            if X is None:
                annealed = anneal_from_above(target, self._particles(target), self._start(target), generator)
                x, notes = annealed.x, [*annealed.notes]
                bottoms: Tensor | None = annealed.bottoms
            else:
                x = self._rows(X, target)
                bottoms = self._looked_for(target, x, generator)
            check_energy(target, x[:: max(1, len(x) // 100)])
            flow = suited_flow(self.flow, self.method, target, x, generator)
            x = x[torch.randperm(len(x), generator=generator)]
            cut = max(1, round(_HELD_OUT * len(x)))
            held_out, x = x[:cut], x[cut:]
            method = fitting.method_for(self.method, flow, X is not None)
            if X is None and method == "matching":
                x = fitting.more_rows(target, x, generator)
            self.flow_ = self._flow(method, flow, x, held_out, generator)
            worse = self._train(method, target, x, held_out, generator)
            checked = check(target, self.flow_, None if X is None else held_out, bottoms, generator)
        self._report(checked, [*notes, *worse], began)
        return self

    def _train(self, method: str, target: BoltzmannTarget, x: Tensor, held_out: Tensor, generator: torch.Generator) -> list[str]:
        """Go through the stages; what was undone, in words."""
        n_steps = fitting.steps_for(self.n_steps, method)
        problem = fitting.Problem(target, x, held_out, n_steps, self.learning_rate, generator, self.progress)
        flow, told = self.flow_, []
        for i, stage in enumerate(fitting.STAGES[method]):
            # An integrated flow as it begins is worth nothing, and costs much to judge.
            judged = i > 0 or not is_integrated(flow)
            before, was = copy.deepcopy(flow.state_dict()), worth(target, flow, held_out, _JUDGED, generator) if judged else 0.0
            self.history_[stage.__name__] = stage(problem, flow.requires_grad_(True).train())
            flow.requires_grad_(False).eval()
            now = worth(target, flow, held_out, _JUDGED, generator) if judged else 1.0
            if now < _WORSE * was:
                flow.load_state_dict(before)
                self.history_[stage.__name__] = fitting.undone(self.history_[stage.__name__])
                told.append(
                    f"{stage.__name__} made the flow worse (effective share {now:.1%} after {was:.1%}), and its weights from before are "
                    "kept: lower learning_rate"
                )
        return told

    def _report(self, checked: Checked, notes: list[str], began: float) -> None:
        """Keep what the checks found, and the verdict."""
        self.rows_ = checked.rows
        reasons = [reason for history in self.history_.values() for reason in history.reliability.reasons]
        notes = [*notes, *(note for history in self.history_.values() for note in history.reliability.notes), *self.target_.notes]
        drawn = checked.drawn
        known = len(checked.rows) > 0
        self.report_ = FitReport(
            reverse_ess=drawn.ess / len(drawn.samples) if known else 0.0,
            forward_ess=checked.forward_ess,
            missed_share=checked.missed_share,
            log_z=drawn.log_z,
            log_z_err=drawn.log_z_err if known else np.inf,
            n_evaluations=self.target_.n_evaluations,
            seconds=time.perf_counter() - began,
            reliability=verdict(checked, reasons, notes),
        )

    def _flow(self, method: str, flow: Flow | None, x: Tensor, held_out: Tensor, generator: torch.Generator) -> Flow:
        if flow is not None:
            return copy.deepcopy(flow).fit_scaling(x)
        settings = {"layers": self.layers, "bins": self.bins, "hidden": tuple(self.hidden), "support": self.target_.support}
        return fitting.started_flow(method, x, held_out, settings, generator)

    def _looked_for(self, target: Target, x: Tensor, generator: torch.Generator) -> Tensor | None:
        """Bottoms of wells that the data may lack; None where no descent ends at a finite energy."""
        space = unconstrained(target, x)
        try:
            return space.to_user(broad_starts(space, generator, _FEW_STARTS))[0]
        except ValueError:
            return None

    def _particles(self, target: Target) -> int:
        if self.n_particles == "auto":
            return max(_PARTICLES, 100 * target.features)
        return int(positive("n_particles", self.n_particles, integer=True))

    def _start(self, target: BoltzmannTarget) -> Tensor | Distribution | None:
        return self.start if self.start is None or isinstance(self.start, Distribution) else self._rows(self.start, target, "start")

    def _rows(self, X: Any, target: BoltzmannTarget, name: str = "X") -> Tensor:
        rows = as_rows(X, name, target.whole).double()
        check_finite(rows.numpy(), name, target.whole_names)
        if len(rows) < 20 and name == "X":
            raise ValueError(f"Expected at least 20 configurations to fit to; got {len(rows)}. Without any, call fit().")
        if target.coordinates is not None:
            target.coordinates.check(rows)
        return target.rows(rows)

    # --- Results -----------------------------------------------------------------------------------------------------------

    @property
    def draws_(self) -> np.ndarray:
        """Configurations of the target on which the flow was not trained ``(m, whole)``."""
        return self.target_.configurations(self.rows_)[0].numpy()

    def sample(self, n_samples: int = 1000, random_state: RandomState = None) -> WeightedSamples:
        """``n_samples`` independent configurations with their importance weights, ESS, Pareto k and verdict."""
        self._check_fitted()
        n = int(positive("n_samples", n_samples, integer=True))
        with one_thread(), torch.no_grad():
            drawn = weighted_draws(self.target_, self.flow_, n, torch_generator(random_state))
            x = self.target_.configurations(torch.from_numpy(drawn.samples))[0].numpy()
        return WeightedSamples(x, drawn.log_weights, self.target_.whole_names, self.report_.reliability)

    def log_prob(self, X) -> np.ndarray:
        """Natural log of the flow's own normalised density at ``X (n, d)``, ``(n,)``; the energy is not evaluated.

        With coordinates that leave out place or direction, it is per volume of the space of what is left.
        """
        self._check_fitted()
        with torch.no_grad(), one_thread():
            y = self.target_.rows(as_rows(X, "X", self.target_.whole).double())
            return (self.flow_.log_prob(y).double() - self.target_.configurations(y)[1]).numpy()

    def free_energy(self, n_samples: int | str = "auto", random_state: RandomState = None) -> FreeEnergy:
        """``F = -ln Z`` in units of kT, Z the integral of ``exp(-U / T)``: by importance weights and by a bridge to ``draws_``.

        Parameters
        ----------
        n_samples : int or "auto"
            Draws of the flow; "auto" goes on until the error is .005 or 200000 are drawn (10000 of a flow that is integrated).
        random_state : int, generator or None

        Returns
        -------
        FreeEnergy
        """
        log_weights = self._draws(n_samples, random_state).log_weights
        with torch.no_grad(), one_thread():
            ratios = (self.target_.log_prob(self.rows_) - self.flow_.log_prob(self.rows_).double()).numpy()
        rows = {"importance": importance_row(log_weights), "bridge": bridge_row(ratios, log_weights)}
        return chosen(rows, ("importance", "bridge"), self.report_.reliability, len(log_weights))

    def free_energy_difference(
        self, a: Callable, b: Callable, n_samples: int | str = "auto", random_state: RandomState = None
    ) -> FreeEnergy:
        """``F_b - F_a`` between two sets of configurations, in units of kT.

        Parameters
        ----------
        a, b : callable
            ``(n, d)`` array of configurations to ``(n,)`` truth values: which lie in the set.
        n_samples, random_state
            As in :meth:`free_energy`.

        Returns
        -------
        FreeEnergy

        Raises
        ------
        ValueError
            If no draw lies in one of them.
        """
        generator = torch_generator(random_state)
        drawn = self._draws(n_samples, generator)
        found = between_regions(drawn, as_region(a, drawn.samples, "a"), as_region(b, drawn.samples, "b"))
        n, most = len(drawn.samples), most_draws(self.flow_)
        if n_samples != "auto" or found.error <= _WANTED_DIFFERENCE or n >= most:
            return found
        n = int(np.clip(1.1 * n * (found.error / _WANTED_DIFFERENCE) ** 2, n, most))
        return self.free_energy_difference(a, b, n, generator)

    # --- Other temperatures, files ---------------------------------------------------------------------------------------------

    def at(self, temperature: float, random_state: RandomState = None) -> BoltzmannGenerator:
        """A generator for another temperature from this one, without training: its base is as much hotter, its weights are exact.

        What they are worth there is in its ``report_``. Far from the temperature of the fit, or for wells that a change of temperature
        fills differently, fit again.

        Examples
        --------
        >>> from sbi_flows.targets import from_log_prob
        >>> normal = from_log_prob(lambda x: -0.5 * x.square().sum(-1), 2)
        >>> cold = BoltzmannGenerator(normal, layers=1, n_steps=16, n_particles=100, random_state=0).fit()
        >>> cold.at(2.0, random_state=0).report_.reverse_ess > 0.5
        True
        """
        self._check_fitted()
        began, generator = time.perf_counter(), torch_generator(random_state)
        other = copy.copy(self)
        other.temperature, other.target_ = float(temperature), self.target_.at(temperature)
        other.flow_ = steered(self.flow_, other.temperature / self.temperature)
        with one_thread():
            other._report(check(other.target_, other.flow_, None, None, generator), [], began)
        return other

    def save(self, path: str | Path) -> None:
        """Write the fitted generator to one file (safetensors with a JSON header; no pickle). The energy is code and not in it."""
        self._check_fitted()
        kept = ("layers", "bins", "hidden", "method", "n_particles", "n_steps", "learning_rate")
        parameters = {name: getattr(self, name) for name in kept}
        save_generator(path, self.flow_, self.rows_, self.history_, self.report_, parameters, self.target_)

    @classmethod
    def load(cls, path: str | Path, energy: Energy | Target) -> BoltzmannGenerator:
        """Read a file of :meth:`save`; ``energy`` is the one it was fitted to. Loading runs no code.

        Raises
        ------
        FileNotFoundError, ValueError
            If the file is missing, damaged or newer than this package, or the energy has other columns.
        """
        with complete(path):
            flow, rows, history, report, parameters, facts = load_generator(path)
            generator = cls(energy, **facts, **parameters)
        generator.flow_, generator.rows_, generator.history_, generator.report_ = flow, rows, history, report
        generator.target_ = BoltzmannTarget(energy, **facts)
        return generator

    def _draws(self, n_samples: int | str, random_state: RandomState) -> WeightedSamples:
        self._check_fitted()
        if n_samples == "auto":
            share, most = max(self.report_.reverse_ess, 1e-6), most_draws(self.flow_)
            return self.sample(int(np.clip((1 / share - 1) / _WANTED_ERROR**2, min(10_000, most), most)), random_state)
        return self.sample(int(positive("n_samples", n_samples, integer=True)), random_state)

    def _check_fitted(self) -> None:
        if not hasattr(self, "report_"):
            raise ValueError("This BoltzmannGenerator has not been fitted: call fit(), or fit(X) with configurations.")
