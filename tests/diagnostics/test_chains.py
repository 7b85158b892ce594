"""compare_chains: right about chains of one distribution at its stated rate, finds what differs, and reads what users have."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from sbi_flows import plots
from sbi_flows.diagnostics import ChainComparison, compare_chains
from sbi_flows.diagnostics.chains import _table
from sbi_flows.results import Chains, Evidence, Reliability, SMCResult, TemperedChains, WeightedSamples
from sbi_flows.samplers import convergence


def autoregressive(rng, chains=4, draws=1000, d=2, rho=0.5):
    """Gaussian chains of unit variance; the effective size of their mean is (1 - rho) / (1 + rho) of the draws."""
    noise = rng.normal(size=(chains, draws, d)) * np.sqrt(1 - rho**2)
    x = np.empty_like(noise)
    x[:, 0] = rng.normal(size=(chains, d))
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + noise[:, t]
    return x


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_false_alarms_and_floor_of_autocorrelated_chains(rng):
    """At a level of .05, 160 p-values each: KS is on the safe side, and the shifts, correlated little, exceed 18 with chance 5e-4."""
    alarms, ratios = np.zeros(3), []
    for _ in range(40):
        runs = [Chains(autoregressive(rng, d=4, rho=0.8), tuple("abcd")) for _ in range(2)]
        table = _table(runs, [convergence(run.samples, run.names) for run in runs], ("a", "b"))
        alarms += [(table.ks_p < 0.05).sum(), (table.mean_shift.abs() > 1.96).sum(), (table.sd_shift.abs() > 1.96).sum()]
        ratios.append((table.hellinger**2 / table.hellinger_floor**2).mean())
    assert alarms[0] <= 12 and (alarms[1:] <= 18).all(), alarms
    # The floor is the expected distance, known from blocks to a few percent a run.
    assert abs(np.mean(ratios) - 1) < 0.1


def test_equal_distributions_agree_and_say_what_it_cost(rng):
    a = Chains(
        autoregressive(rng), ("m", "s"), stats={"n_evaluations": np.full((4, 1000), 3)}, info={"seconds": 2.0, "n_evaluations": 20_000}
    )
    comparison = compare_chains(a, autoregressive(rng), n_evaluations=(None, 4000), labels=("emcee", "flow"), random_state=0)
    assert comparison.verdict == "agree" and not comparison.differs and comparison.reliability.ok
    assert list(comparison.table.index) == ["m", "s"]
    efficiency = comparison.efficiency
    assert efficiency.loc["emcee", "n_evaluations"] == 20_000 and efficiency.loc["flow", "n_evaluations"] == 4000
    assert efficiency.loc["emcee", "ess_per_second"] == pytest.approx(efficiency.loc["emcee", "ess"] / 2)
    assert np.isnan(efficiency.loc["flow", "ess_per_second"])
    assert "agree" in repr(comparison) and "fewer than 10000 independent draws" in repr(comparison)
    only_stats = compare_chains(Chains(a.samples, a.names, stats=a.stats), a, random_state=0)
    assert only_stats.efficiency.loc["a", "n_evaluations"] == 12_000
    assert "the evaluations of a are those of its draws" in repr(only_stats) and "evaluations of b" not in repr(only_stats)


def test_a_sampler_is_charged_for_all_it_spent(rng):
    """The record of a FlowSampler, whose chains know of their own draws only."""
    spent = SimpleNamespace(n_evaluations=50_000, n_gradients=20_000, seconds={"warm-up": 1.0, "training": 4.0})
    unsure = Reliability(False, ("walkers are stuck",))
    chains = Chains(autoregressive(rng), ("m", "s"), stats={"n_evaluations": np.ones((4, 1000))}, reliability=unsure)
    comparison = compare_chains(SimpleNamespace(chains_=chains, report_=spent), chains, random_state=0)
    assert comparison.efficiency.loc["a", ["n_evaluations", "n_gradients", "seconds"]].tolist() == [50_000, 20_000, 5.0]
    assert "b came with a verdict of its own: walkers are stuck" in repr(comparison)


DIFFERENCES = {
    "mean": (lambda x: x + np.array([0.0, 0.4]), "most in s: its mean is shifted by"),
    "spread": (lambda x: x * [1.0, 1.4], "most in s.*its standard deviation 1.4"),
}


@pytest.mark.parametrize("kind", DIFFERENCES)
def test_differences_are_found_and_named(rng, kind):
    change, message = DIFFERENCES[kind]
    frame = pd.DataFrame(change(autoregressive(rng)).reshape(-1, 2), columns=["m", "s"]).assign(chain=np.repeat(range(4), 1000))
    comparison = compare_chains(Chains(autoregressive(rng), ("m", "s")), frame, random_state=0)
    assert comparison.verdict == "DIFFER" and not comparison.reliability.ok
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(comparison.reliability.reasons[0])


def test_equal_marginals_of_different_joints(rng):
    x, y = rng.normal(size=(2, 4, 2000, 2))
    y[..., 1] = 0.8 * y[..., 0] + 0.6 * y[..., 1]
    comparison = compare_chains(x, y, random_state=0)
    assert comparison.differs and "all parameters together" in comparison.reliability.reasons[0]
    assert comparison.hellinger_joint > 3 * comparison.hellinger_joint_floor and comparison.table.ks_p.min() > 1e-4


def test_chains_that_have_not_converged_are_not_compared(rng):
    apart = autoregressive(rng) * 0.1 + np.array([-3.0, -3.0, 3.0, 3.0])[:, None, None]
    comparison = compare_chains(apart, apart.copy(), random_state=0)
    assert comparison.verdict == "NOT COMPARABLE" and not comparison.reliability.ok
    assert "a is not fit to be compared: chains disagree" in comparison.reliability.reasons[0]
    assert comparison.c2st is None and "too few independent draws" in repr(comparison)


def test_a_difference_from_a_run_that_is_not_fit_is_no_headline(rng):
    apart = autoregressive(rng) + np.array([-1.0, -1.0, 1.0, 1.0])[:, None, None]
    comparison = compare_chains(apart, autoregressive(rng), labels=("new", "old"), random_state=0)
    head = repr(comparison).splitlines()[0]
    assert head == "ChainComparison(new and old)   NOT COMPARABLE"
    assert comparison.p_value < 1e-6 and comparison.unfit == ("new",) and not comparison.differs and not comparison.reliability.ok
    assert all("one distribution" not in reason for reason in comparison.reliability.reasons)
    assert any("draws at hand differ" in note for note in comparison.reliability.notes)
    assert plots.compare_chains(comparison).get_suptitle().endswith("NOT COMPARABLE")


def test_a_check_of_the_gradient_is_no_run_by_gradients(rng):
    checked, by_gradients = (
        Chains(autoregressive(rng), ("m", "s"), info={"n_evaluations": 20_000, "n_gradients": n}) for n in (8, 20_000)
    )
    efficiency = compare_chains(checked, by_gradients, random_state=0).efficiency
    assert np.isnan(efficiency.loc["a", "ess_per_gradient"]) and efficiency.loc["a", "n_gradients"] == 8
    assert efficiency.loc["b", "ess_per_gradient"] == pytest.approx(efficiency.loc["b", "ess"] / 20_000)


def test_results_of_smc_and_parallel_tempering_are_compared(rng):
    smc, tempered = between_prior_and_posterior(rng)
    comparison = compare_chains(smc, tempered, labels=("smc", "tempered"), random_state=0)
    assert comparison.verdict == "agree" and list(comparison.table.index) == ["m", "s"]
    assert comparison.efficiency["n_evaluations"].tolist() == [4000, 6000]
    # The weights make a standard normal of draws twice as wide; 2000 effective ones have a deviation within .016 of 1, one sigma.
    assert abs(comparison.table.loc["m", "sd_smc"] - 1) < 0.07
    assert any("resampled to their effective size" in note for note in comparison.reliability.notes)
    assert any("tempered came with a verdict of its own: no swaps" in note for note in comparison.reliability.notes)


def test_particles_that_chains_moved_are_not_taken_for_independent(rng):
    smc, tempered = between_prior_and_posterior(rng)
    moved = WeightedSamples(smc.samples.samples.repeat(2, axis=0), np.zeros(12_000), ("m", "s"))
    with pytest.raises(ValueError, match=r"of a were moved by chains.*6000 of 12000.*samples\.resample"):
        compare_chains(replace(smc, samples=moved), tempered)


def between_prior_and_posterior(rng):
    row = pd.DataFrame({"log_z": [-1.0], "log_z_err": [0.1], "ess": [0.9], "pareto_k": [0.2]}, index=["path"])
    found = Evidence(-1.0, 0.1, "path", 0.9, 0.2, Reliability(True), row)
    wide = 2 * rng.normal(size=(6000, 2))
    weighted = WeightedSamples(wide, -0.5 * (wide**2).sum(1) * (1 - 1 / 4), ("m", "s"))
    powers = np.array([0.1, 1.0])
    smc = SMCResult(weighted, found, powers, np.array([0.4, 0.3]), 4000, Reliability(True))
    chains = Chains(autoregressive(rng), ("m", "s"))
    return smc, TemperedChains(chains, found, powers, np.array([0.4]), 6000, Reliability(False, ("no swaps",)))


def test_angles_are_compared_on_the_circle(rng):
    x, y = np.pi + 0.3 * autoregressive(rng, d=1), -np.pi + 0.3 * autoregressive(rng, d=1)
    comparison = compare_chains(x, y, periods={"x0": 2 * np.pi}, random_state=0)
    assert comparison.verdict == "agree"
    assert comparison.table.loc["x0", "sd_a"] == pytest.approx(0.3, rel=0.1)
    assert compare_chains(x, y, random_state=0).differs
    with pytest.raises(ValueError, match="periods of the parameters x0; got one for phase"):
        compare_chains(x, y, periods={"phase": 1.0})


def test_what_users_have_is_read(rng):
    x = rng.normal(size=(4, 500, 2))
    chains = Chains(x, ("m", "s"))
    flipped = pd.DataFrame({"s": x[..., 1].ravel(), "m": x[..., 0].ravel(), "extra": 0.0, "lp": 1.0})
    weighted = WeightedSamples(x.reshape(-1, 2), np.zeros(2000), ("m", "s"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = chains.to_arviz()
    for other in (data, flipped, weighted, x, list(x)):
        comparison = compare_chains(chains, other, random_state=0)
        assert comparison.verdict == "agree" and list(comparison.table.index) == ["m", "s"], type(other)
        # Weighted draws come in another order: their mean is the same to what resampling keeps.
        assert comparison.table["mean_shift_in_sd"].abs().max() < 0.05
    assert "left out: extra" in repr(compare_chains(chains, flipped, random_state=0))
    ragged = compare_chains(chains, [x[0], x[1][:400]], random_state=0)
    assert "cut to the shortest, 400 draws, which left 100" in repr(ragged)


def test_ensembles_are_remarked(rng):
    x = rng.normal(size=(20, 200, 1))
    assert "a is an ensemble" in repr(compare_chains(Chains(x, ("x0",), ensemble=True), x, random_state=0))


def test_wrong_input_is_told(rng):
    x = rng.normal(size=(4, 100, 2))
    with pytest.raises(ValueError, match="2 columns and b 1, and names are not known"):
        compare_chains(x, x[..., :1])
    with pytest.raises(ValueError, match="Expected parameters of the same names"):
        compare_chains(Chains(x, ("m", "s")), Chains(x, ("p", "q")))
    with pytest.raises(ValueError, match="finite draws in b; 1 of 400"):
        bad = x.copy()
        bad[0, 0, 0] = np.nan
        compare_chains(x, bad)
    with pytest.raises(ValueError, match="two different labels"):
        compare_chains(x, x, labels=("a", "a"))


def test_constant_columns_and_short_chains_do_not_crash(rng):
    x, y = rng.normal(size=(2, 4, 400, 2))
    x[..., 1] = y[..., 1] = 3.0
    comparison = compare_chains(x, y, random_state=0)
    assert comparison.verdict == "agree" and len(comparison.table) == 1
    assert any("fixed at one value in both, and left out: x1" in note for note in comparison.reliability.notes)
    y[..., 1] = 3.1
    comparison = compare_chains(x, y, random_state=0)
    assert comparison.verdict == "DIFFER" and comparison.reliability.reasons == ("x1 is fixed at 3 in a and at 3.1 in b",)
    short = compare_chains(x[:, :5], x[:, :5], random_state=0)
    assert np.isnan(short.p_value) and short.verdict == "NOT COMPARABLE"


def test_figure_has_a_panel_a_parameter_up_to_sixteen(rng):
    comparison = compare_chains(rng.normal(size=(4, 300, 20)), rng.normal(size=(4, 300, 20)), random_state=0)
    figure = plots.compare_chains(comparison)
    assert sum(axis.axison for axis in figure.axes) == 16
    assert "16 of 20 parameters" in figure.get_suptitle().replace("\n", " ")
    with pytest.raises(TypeError, match="compare_chains draws ChainComparison; got ndarray"):
        plots.compare_chains(np.zeros(3))
    assert isinstance(comparison, ChainComparison)


# --- Where there is little to compare ---------------------------------------------------------------------------------------------


def test_few_draws_are_told_in_numbers():
    rng = np.random.default_rng(0)
    found = compare_chains(rng.normal(size=(4, 10, 2)), rng.normal(size=(4, 500, 2)), random_state=0)
    (note,) = [note for note in found.reliability.notes if "joint checks" in note]
    assert "of each 100 are needed" in note and "in a and" in note
    assert "nan" not in repr(found).splitlines()[-1] and "not computed" in repr(found)


def test_a_p_value_that_is_not_known_is_not_small():
    found = compare_chains(np.ones((4, 100, 1)), 2 * np.ones((4, 100, 1)), random_state=0)
    assert np.isnan(found.p_value) and found.verdict == "NOT COMPARABLE" and not found.differs


def test_chains_compared_with_themselves():
    draws = np.random.default_rng(0).normal(size=(4, 500, 2))
    found = compare_chains(draws, draws[::-1], random_state=0)
    assert any("all draws of one are draws of the other" in note for note in found.reliability.notes)
    weighted = WeightedSamples(np.random.default_rng(1).normal(size=(4000, 2)), np.zeros(4000), ("a", "b"))
    other = compare_chains(Chains(draws, ("a", "b")), weighted, random_state=0)
    assert not any("draws of the other" in note for note in other.reliability.notes) and np.isfinite(other.hellinger_joint)


def test_a_constant_does_not_hide_the_other_parameters():
    rng = np.random.default_rng(0)
    constant = np.ones((4, 500, 1))
    a, b = (np.concatenate([rng.normal(shift, 1, size=(4, 500, 2)), constant], axis=2) for shift in (0.0, 1.0))
    found = compare_chains(a, b, random_state=0)
    assert np.isfinite(found.hellinger_joint) and found.c2st is not None and found.p_value < 1e-6


@pytest.mark.parametrize("layout", ["(draw, chain, d)", "flattened step by step"])
def test_arrays_in_emcees_own_order_are_not_compared(rng, layout):
    """``get_chain()`` and ``get_chain(flat=True)``; in the right order the same draws agree."""
    chains, reference = (autoregressive(rng, chains=30, rho=0.6) for _ in range(2))
    swapped = chains.swapaxes(0, 1)
    read_wrong = compare_chains(swapped if layout.startswith("(") else swapped.reshape(-1, 2), reference, random_state=0)
    assert read_wrong.verdict == "NOT COMPARABLE" and read_wrong.unfit == ("a",)
    assert any(layout in reason and "as_chains(sampler, burn=...)" in reason for reason in read_wrong.reliability.reasons)
    right = compare_chains(chains, reference, random_state=0)
    assert not any("axes" in r or "looks like" in r for r in right.reliability.reasons) and "a" not in right.unfit
