"""bilby's priors of several parameters together, and those that no target can have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# By name, so that bilby need not be there: older versions have fewer of them.
_DISCRETE = {"WeightedDiscreteValues", "DiscreteValues", "WeightedCategorical", "Categorical"}


def check_priors(priors: Mapping[str, Any]) -> None:
    """``ValueError`` for the first entry that is no prior, or has no density over real numbers."""
    for name, prior in priors.items():
        if isinstance(prior, str):
            raise ValueError(
                f"Expected a prior of {name!r}; got the text {prior!r}. Where {name!r} follows from another parameter, leave it out and "
                "compute it in the likelihood."
            )
        if not hasattr(prior, "ln_prob"):
            raise ValueError(f"Expected a bilby prior or a number for {name!r}; got a {type(prior).__name__}.")
        kinds = {kind.__name__ for kind in type(prior).__mro__}
        if kinds & _DISCRETE:
            raise ValueError(
                f"The prior of {name!r} is discrete ({type(prior).__name__}): targets are densities over real numbers. Make one target a "
                f"value, with {name!r} fixed at it, and weigh these by their evidences, or sum the likelihood over the values."
            )
        if "SlabSpikePrior" in kinds:
            raise ValueError(
                f"The prior of {name!r} has a spike (SlabSpikePrior), where it has no density. Make two targets, with the slab alone and "
                f"with {name!r} fixed at the spike, and weigh these by their evidences."
            )


def joint_columns(priors: Mapping[str, Any], names: Sequence[str]) -> list[tuple[Any, list[int]]]:
    """Each joint distribution of several parameters, with their columns in its own order.

    Raises
    ------
    ValueError
        If one is no (mixture of) Gaussians, is cut off, lacks some of its parameters, or others depend on them.
    """
    found: dict[int, Any] = {}
    for name in names:
        dist = getattr(priors[name], "dist", None)
        if dist is not None:
            found[id(dist)] = dist
    for dist in found.values():
        _check_joint(dist, priors, names)
    return [(dist, [names.index(name) for name in dist.names]) for dist in found.values()]


def joint_draws(dist: Any, cube: np.ndarray, modes: np.ndarray) -> np.ndarray:
    """``(n, k)`` draws of a mixture of Gaussians from uniform numbers, ``(n, k)`` and ``(n,)`` for the choice of the mode."""
    chosen = np.searchsorted(dist.cumweights, modes, side="right").clip(max=dist.nmodes - 1)
    rows = np.empty_like(cube)
    for mode in np.unique(chosen):
        of_it = chosen == mode
        rows[of_it] = dist.rescale(cube[of_it], mode=int(mode)).reshape(-1, cube.shape[1])
    return rows


def _check_joint(dist: Any, priors: Mapping[str, Any], names: Sequence[str]) -> None:
    told = f"The joint prior of {', '.join(map(repr, dist.names))} ({type(dist).__name__})"
    if not hasattr(dist, "nmodes"):
        raise ValueError(
            f"{told} is no Gaussian one. Write it as a pair for targets.posterior: distributions.from_pair(sample, log_prob, d)."
        )
    lacking = [name for name in dist.names if name not in names or getattr(priors[name], "dist", None) is not dist]
    if lacking:
        raise ValueError(
            f"{told} is not that of {', '.join(map(repr, lacking))} in these priors. Give each of its parameters its part of it, or "
            "make it one of the others alone."
        )
    cut = [name for name in dist.names if np.isfinite(dist.bounds[name]).any()]
    if cut:
        raise ValueError(
            f"{told} is cut off in {', '.join(map(repr, cut))}, and bilby does not normalise it then: ln Z would be too small by an "
            "unknown amount. Leave the bounds out; where they matter, copy the parameter in a conversion_function and put a Constraint on "
            "the copy."
        )
    depending = [name for name in names if set(getattr(priors[name], "required_variables", None) or ()) & set(dist.names)]
    if depending:
        raise ValueError(
            f"The prior of {', '.join(map(repr, depending))} depends on parameters of a joint prior, which bilby cannot draw. {told} has "
            "to stand by itself: write both as a pair, distributions.from_pair(sample, log_prob, d)."
        )
