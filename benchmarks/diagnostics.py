"""How often each calibration check calls an estimator wrong: rates of false alarms, power against known errors, and cost.

    python -m benchmarks.diagnostics [--repeats 40] [--observations 500]

The problem is a conjugate Gaussian with two parameters and three observables, whose posterior is exact; the errors are small ones, of
tenths of the posterior's spread. "KS" and "chi2" are the usual tests of SBC ranks, from scipy, on the same ranks, Bonferroni over
parameters.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
from scipy import stats

from sbi_flows.diagnostics import local_c2st, posterior_draws, sbc
from sbi_flows.diagnostics.coverage import coverage_of_draws
from sbi_flows.diagnostics.local import joint_c2st_of_draws
from sbi_flows.diagnostics.random_points import tarp_of_draws
from sbi_flows.diagnostics.ranks import sbc_of_draws
from tests.diagnostics.conjugate import Gaussian, simulate

ESTIMATORS = {
    "exact": Gaussian(),
    "10 % too narrow": Gaussian(stretch=0.9),
    "10 % too wide": Gaussian(stretch=1.1),
    "shifted by 0.15": Gaussian(shift=0.15),
    "swapped columns": Gaussian(swap=True),
    "prior returned": Gaussian(ignore_x=True),
}
N_DRAWS = 99
LEVEL = 0.05


def p_values(estimator, seed: int, m: int) -> dict[str, float]:
    """One p-value a check, on one set of simulations."""
    rng = np.random.default_rng(seed)
    theta, x = simulate(m, rng)
    draws = posterior_draws(estimator, theta, x, N_DRAWS, random_state=rng)
    ranks = sbc_of_draws(draws, random_state=rng)
    u = (ranks.ranks + rng.random(ranks.ranks.shape)) / (N_DRAWS + 1)
    counts = [np.histogram(column, 20, (0, 1))[0] for column in u.T]
    return {
        "sbc": ranks.p_value,
        "sbc, KS": min(1.0, u.shape[1] * min(stats.kstest(column, "uniform").pvalue for column in u.T)),
        "sbc, chi2": min(1.0, u.shape[1] * min(stats.chisquare(count).pvalue for count in counts)),
        "expected coverage": coverage_of_draws(estimator, draws, random_state=rng).p_value,
        "tarp": tarp_of_draws(draws, random_state=rng, n_bootstrap=2).p_value,
        "joint c2st": joint_c2st_of_draws(draws, n_permutations=199, random_state=rng).p_value,
        "local c2st": local_c2st(estimator, theta, x, simulate(1, rng)[1], n_permutations=199, random_state=rng).p_value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--observations", type=int, default=500)
    options = parser.parse_args()
    start = time.perf_counter()
    rates = {
        name: pd.DataFrame([p_values(estimator, seed, options.observations) for seed in range(options.repeats)]).lt(LEVEL).mean()
        for name, estimator in ESTIMATORS.items()
    }
    print(f"share of {options.repeats} runs with p < {LEVEL}, {options.observations} observations, {N_DRAWS} draws")
    print(pd.DataFrame(rates).T.to_string(float_format="{:.2f}".format))
    print(f"{(time.perf_counter() - start) / options.repeats / len(ESTIMATORS):.2f} s for one set of checks")
    theta, x = simulate(1000, np.random.default_rng(0))
    start = time.perf_counter()
    sbc(Gaussian(), theta, x, n_draws=1000, random_state=0)
    print(f"sbc, 1000 observations and 1000 draws, beyond the sampling itself: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
