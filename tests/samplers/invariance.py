"""The check every kernel inherits: chains started from exact draws of a target stay exact."""

import numpy as np
from scipy import stats

from sbi_flows.samplers import run_chains


def invariance_p_value(kernel, target, draws, cdfs, *, n_steps=30, n_warmup=20, random_state=0) -> float:
    """Smallest Kolmogorov-Smirnov p-value over columns, Bonferroni corrected: below alpha with probability at most alpha.

    ``draws (n, d)`` are independent and exact, one chain each, and ``cdfs`` the exact marginal distribution functions. The last
    position of each chain is tested, so that the n tested values are independent (but for what warm-up learned from all of them
    together, which is of order 1/n where the test sees 1/sqrt(n)).
    """
    chains = run_chains(kernel, target, draws, n_steps=n_steps, n_warmup=n_warmup, thin=n_steps, random_state=random_state)
    last = chains.samples[:, -1]
    assert float(np.mean((last != draws).any(axis=1))) > 0.9, "the chains hardly moved: nothing was tested"
    return min(1.0, len(cdfs) * min(stats.kstest(last[:, j], cdf).pvalue for j, cdf in enumerate(cdfs)))
