"""ln posterior of chains that know ln likelihood, where the prior is uniform between bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sbi_flows.chain_record import Chains


def with_flat_prior(chains: Chains) -> Chains:
    """The same chains with ``log_posterior``: ln likelihood less the log of the volume between the bounds.

    Raises
    ------
    ValueError
        If ln likelihood is not known, a parameter lacks an end, or draws lie outside.

    Examples
    --------
    >>> chains = Chains(np.zeros((1, 2, 1)), ("a",), log_likelihood=np.zeros((1, 2)), bounds={"a": (-1.0, 1.0)})
    >>> with_flat_prior(chains).log_posterior
    array([[-0.69314718, -0.69314718]])
    """
    if chains.log_likelihood is None:
        raise ValueError(
            "Expected chains with log_likelihood; these have none. Where a column of the file is it, say log_column='likelihood'"
            " (on the command line: --log-column likelihood)."
        )
    ends = np.array([chains.bounds.get(name, (-np.inf, np.inf)) for name in chains.names])
    unbounded = [name for name, pair in zip(chains.names, ends, strict=True) if not np.isfinite(pair).all()]
    if unbounded:
        raise ValueError(
            f"A uniform prior needs two ends for every parameter; {', '.join(unbounded)} lack one. Give their bounds "
            "(on the command line: --bounds name=low:high)."
        )
    x = chains.samples[~np.isnan(chains.samples).all(axis=-1)]
    outside = ((x < ends[:, 0]) | (x > ends[:, 1])).any(axis=0)
    if outside.any():
        name = chains.names[int(np.argmax(outside))]
        raise ValueError(f"Draws of {name} lie outside its bounds {chains.bounds[name]}: the prior is another, or the bounds are wrong.")
    return replace(chains, log_posterior=chains.log_likelihood - np.log(ends[:, 1] - ends[:, 0]).sum())
