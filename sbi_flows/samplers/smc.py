"""``smc``: from the prior to the posterior and its evidence, without a starting point."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from sbi_flows._random import RandomState, torch_generator
from sbi_flows._threads import one_thread
from sbi_flows._validation import positive
from sbi_flows.results import Evidence, Reliability, SMCResult, WeightedSamples
from sbi_flows.samplers.kernel import Kernel
from sbi_flows.samplers.random_walk import RandomWalk
from sbi_flows.samplers.tempered_path import TemperedPath
from sbi_flows.samplers.waste_free import FORGOTTEN, Ascent, ascend
from sbi_flows.targets import Target

_CHAINS = 400  # at each temperature, without a flow, where the user does not say
_PRIOR_DRAWS = 5  # a chain: they must find every mode
_LEAST_MOVES, _MOST_MOVES = 5, 60  # with each chain; 5 more a parameter at most
_LARGEST_ERROR = 0.5


def smc(
    target: Target,
    *,
    n_particles: int | str = "auto",
    flow: str | None = None,
    kernel: Kernel | str = "auto",
    random_state: RandomState = None,
) -> SMCResult:
    """Sequential Monte Carlo from the prior: draws of the posterior and ln Z.

    Parameters
    ----------
    target : Target
        With a prior.
    n_particles : int or "auto"
        Chains at each temperature; "auto" is 400, and ten a parameter if that is more. What no draw of the prior is near is not found:
        more particles find more.
    kernel : Kernel or "auto"
        What moves the particles; "auto" is ``RandomWalk()``.
    random_state : int, generator or None

    Returns
    -------
    SMCResult

    Raises
    ------
    ValueError
        If the target has no prior, no draw of it has a likelihood above zero, or settings are out of range.

    Examples
    --------
    >>> from sbi_flows.distributions import BoxUniform
    >>> from sbi_flows.targets import posterior
    >>> target = posterior(lambda x: -0.5 * (x / 0.1).square().sum(-1), BoxUniform([-1.0] * 2, [1.0] * 2))
    >>> result = smc(target, random_state=0)
    >>> bool(abs(result.evidence.log_z - np.log(2 * np.pi * 0.01 / 4)) < 5 * result.evidence.log_z_err)
    True

    References
    ----------
    Dau & Chopin 2022, "Waste-free sequential Monte Carlo", J. R. Statist. Soc. B 84.
    """
    path = TemperedPath(target)
    d = target.features
    n_chains = max(_CHAINS, 10 * d) if n_particles == "auto" else int(positive("n_particles", n_particles, integer=True))
    chosen = RandomWalk() if isinstance(kernel, str) else kernel
    if isinstance(kernel, str) and kernel != "auto":
        raise ValueError(f"Expected kernel to be 'auto' or a kernel such as RandomWalk(); got {kernel!r}.")
    with one_thread():
        ascent = ascend(
            path,
            n_chains,
            _PRIOR_DRAWS * n_chains,
            chosen,
            torch_generator(random_state),
            ess=n_chains,
            least_moves=_LEAST_MOVES,
            most_moves=_MOST_MOVES + 5 * d,
        )
    return _result(path, ascent)


def _result(path: TemperedPath, ascent: Ascent) -> SMCResult:
    log_z, error = float(ascent.log_ratios.sum()), math.sqrt(ascent.variances.sum())
    reasons, notes = [], []
    if error > _LARGEST_ERROR:
        reasons.append(f"the error of ln Z is {error:.2g}: use more particles")
    slow = int((ascent.remembered > FORGOTTEN).sum())
    if slow:
        notes.append(
            f"at {slow} of {len(ascent.powers)} temperatures chains remembered where they started: masses of separate modes are those that "
            "the prior's draws gave them"
        )
    if path.n_invalid:
        notes.append(f"the likelihood was NaN or +inf at {path.n_invalid} of {path.n_evaluations} points, which counted as zero")
    verdict = Reliability.from_reasons(reasons, notes)
    x = ascent.particles.x.numpy()
    samples = WeightedSamples(x, np.full(len(x), log_z), path.names, verdict)
    row = {"log_z": log_z, "log_z_err": error, "ess": 1.0, "pareto_k": -np.inf, "n_evaluations": path.n_evaluations}
    by_method = pd.DataFrame([row], index=["product"])
    evidence = Evidence(log_z, error, "product", 1.0, -np.inf, verdict, by_method, path.names)
    return SMCResult(samples, evidence, ascent.powers, ascent.acceptances, path.n_evaluations, verdict)
