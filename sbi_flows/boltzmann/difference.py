"""The free-energy difference of two systems, by everything that their generators know."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import RandomState, torch_generator
from sbi_flows._threads import one_thread
from sbi_flows.boltzmann.free_energy import FreeEnergy, Row, bridge_row, chosen, mapped_row
from sbi_flows.boltzmann.generator import BoltzmannGenerator
from sbi_flows.results import Reliability


def free_energy_difference(a: BoltzmannGenerator, b: BoltzmannGenerator, *, random_state: RandomState = None) -> FreeEnergy:
    """``F_b - F_a`` in units of kT of two fitted systems, each at its own temperature.

    Parameters
    ----------
    a, b : BoltzmannGenerator
        Fitted. The estimators by maps need the same number of columns.
    random_state : int, generator or None

    Returns
    -------
    FreeEnergy
        ``by_method``: "importance" and "bridge" are the differences of the systems' own free energies. For "mapped a to b" (targeted
        perturbation), configurations of a are carried to b by both flows, ``g_b(f_a(x))``; "mapped b to a" goes the other way, and "BAR"
        joins the two works (Bennett's acceptance ratio, on mapped configurations).

    Raises
    ------
    ValueError
        If one is not fitted.

    Examples
    --------
    >>> from sbi_flows.targets import from_log_prob
    >>> wide, narrow = (from_log_prob(lambda x, k=k: -0.5 * k * x.square().sum(-1), 2) for k in (1.0, 4.0))
    >>> fit = lambda energy: BoltzmannGenerator(energy, layers=1, n_steps=16, n_particles=100, random_state=0).fit()
    >>> bool(abs(free_energy_difference(fit(wide), fit(narrow), random_state=0).value - np.log(4)) < 0.1)
    True

    References
    ----------
    Jarzynski 2002, "Targeted free energy perturbation", Phys. Rev. E 65, 046122; Bennett 1976, J. Comput. Phys. 22; Wirnsberger et al.
    2020, "Targeted free energy estimation via learned mappings", arXiv:2002.04913.
    """
    generator = torch_generator(random_state)
    own = [system.free_energy(random_state=generator) for system in (a, b)]
    rows: dict[str, Row] = {}
    for name in ("importance", "bridge"):
        first, second = (found.by_method.loc[name] for found in own)
        error = float(np.hypot(first.error, second.error))
        rows[name] = (second.value - first.value, error, min(first.ess, second.ess), max(first.pareto_k, second.pareto_k))
    n = min(len(a.rows_), len(b.rows_))
    if a.target_.features == b.target_.features:
        there, back = mapped_work(a, b), mapped_work(b, a)
        value, error, ess, k = mapped_row(back)
        rows["mapped a to b"], rows["mapped b to a"] = mapped_row(there), (-value, error, ess, k)
        # The target is b seen from a: its draws are those of b carried back, whose ratio is their work.
        rows["BAR"] = bridge_row(back, -there)
    both = Reliability.from_reasons(
        [f"{name}: {text}" for name, found in zip("ab", own, strict=True) for text in found.reliability.reasons],
        [f"{name}: {text}" for name, found in zip("ab", own, strict=True) for text in found.reliability.notes],
    )
    return chosen(rows, tuple(rows), both, n)


@torch.no_grad()
def mapped_work(a: BoltzmannGenerator, b: BoltzmannGenerator) -> np.ndarray:
    """``u_b(T x) - u_a(x) - ln |det T|`` at configurations x of a, T by way of both flows' base ``(n,)``; +inf where T leaves b."""
    with one_thread():
        x = a.rows_
        z, log_det = a.flow_.to_base(x)
        y, more = b.flow_.from_base(z, dtype=torch.float64)
        work: Tensor = a.target_.log_prob(x) - b.target_.log_prob(y) - log_det.double() - more.double()
    return np.nan_to_num(work.numpy(), nan=np.inf, posinf=np.inf, neginf=np.inf)
