"""The result records: what they say of themselves and what they turn into."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from sbi_flows.results import Chains, Evidence, FitHistory, Reliability, WeightedSamples


def an_evidence(reasons=(), notes=()):
    by_method = pd.DataFrame(
        {"log_z": [-18.19, -18.23], "log_z_err": [0.05, 0.02], "ess": [0.4, 0.61], "pareto_k": [0.31, 0.22]},
        index=["harmonic", "importance"],
    )
    return Evidence(-18.22, 0.03, "bridge", 0.5, 0.2, Reliability.from_reasons(reasons, notes), by_method)


def test_a_verdict_is_ok_without_reasons():
    assert str(Reliability.from_reasons([])) == "ok"
    doubtful = Reliability.from_reasons(["a mode is missing: sample more"], ["3 rows dropped"])
    assert not doubtful.ok
    assert str(doubtful) == "NOT RELIABLE\n    a mode is missing: sample more\n    note: 3 rows dropped"


def test_an_evidence_shows_its_verdict_and_every_method():
    text = repr(an_evidence())
    assert text.splitlines()[0] == "Evidence(log_z=-18.22 +- 0.03, bridge)   ok"
    assert "harmonic -18.19 +- 0.05 (k=0.31, ess=40%)" in text
    assert "importance -18.23 +- 0.02 (k=0.22, ess=61%)" in text
    assert "NOT RELIABLE\n    too few draws" in repr(an_evidence(["too few draws"]))


def test_an_evidence_shows_no_tail_of_a_method_without_one():
    by_method = pd.DataFrame({"log_z": [-1.0], "log_z_err": [0.1], "ess": [0.5], "pareto_k": [np.nan]}, index=["recycled"])
    assert "recycled -1.00 +- 0.1 (ess=50%)" in repr(Evidence(-1.0, 0.1, "recycled", 0.5, np.nan, Reliability(True), by_method))


@pytest.mark.parametrize(("log_z", "error"), [(-12345.678, 0.004), (0.0, 1e-5), (-123.4, 12.0), (np.nan, np.nan), (3.2, 0.0)])
def test_an_evidence_shows_digits_down_to_its_error(log_z, error):
    by_method = pd.DataFrame({"log_z": [log_z], "log_z_err": [error], "ess": [0.4], "pareto_k": [0.3]}, index=["bridge"])
    text = repr(Evidence(log_z, error, "bridge", 0.5, 0.2, Reliability(True), by_method))
    shown = text.split("log_z=")[1].split(" ")[0]
    if np.isfinite(log_z):
        assert abs(float(shown) - log_z) <= max(error, 1e-3)
    else:
        assert shown == "nan"


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        an_evidence().log_z = 0.0


def chains(log_posterior):
    x = np.arange(24.0).reshape(2, 4, 3)
    return Chains(x, ("a", "b", "c"), log_posterior=-x.sum(axis=-1) if log_posterior else None)


def test_chains_to_dataframe():
    table = chains(False).to_dataframe()
    assert list(table) == ["a", "b", "c"]
    assert len(table) == 8
    assert table.iloc[4].tolist() == [12, 13, 14]        # the first draw of the second chain
    assert chains(False).features == 3


@pytest.mark.parametrize("log_posterior", [False, True])
def test_chains_to_arviz(log_posterior):
    data = chains(log_posterior).to_arviz()
    assert dict(data["posterior"].sizes) == {"chain": 2, "draw": 4}
    assert np.array_equal(data["posterior"]["b"].values, chains(False).samples[..., 1])
    if log_posterior:
        assert np.array_equal(data["sample_stats"]["lp"].values, chains(True).log_posterior)


def weighted(log_weights):
    return WeightedSamples(np.arange(len(log_weights), dtype=float)[:, None], np.asarray(log_weights), ("x",))


def test_weights_sum_to_one_at_any_scale():
    w = weighted(np.log([1.0, 2.0, 3.0, 2.0]) + 5000)
    assert np.allclose(w.weights, [0.125, 0.25, 0.375, 0.25])
    assert w.ess == pytest.approx(64 / 18)


def test_resampling_takes_each_row_by_its_weight():
    w = weighted(np.log([0.1, 0.2, 0.7]))
    rows = w.resample(1000, random_state=0)
    assert rows.shape == (1000, 1)
    assert np.abs(np.bincount(rows[:, 0].astype(int)) - [100, 200, 700]).max() <= 1        # systematic
    assert np.array_equal(rows, w.resample(1000, random_state=0))
    assert not (w.resample(1000, random_state=1) == rows).all()


def test_rows_of_no_weight_are_never_resampled():
    w = weighted([-np.inf, 0.0, -np.inf, 0.0, -np.inf])
    for seed in range(20):
        assert set(w.resample(7, random_state=seed)[:, 0]) <= {1.0, 3.0}


@pytest.mark.parametrize("log_weights", [[-np.inf, -np.inf], [np.nan, 0.0], [np.inf, 0.0]])
def test_weights_that_cannot_be_normalised_are_explained(log_weights):
    with pytest.raises(ValueError, match="log_weights"):
        _ = weighted(log_weights).weights


@pytest.mark.parametrize("members", [1, 3])
def test_history_to_dataframe(members):
    loss = np.arange(4.0 * members).reshape(4, members)
    history = FitHistory(loss, loss + 1, np.full(4, 1e-3), np.full(members, 2), 40, 0, 1.5, "max_epochs", Reliability(True))
    table = history.to_dataframe()
    assert table["epoch"].tolist() == [0, 1, 2, 3]
    last = "validation_loss" if members == 1 else "validation_loss_2"
    assert table[last].tolist() == (loss[:, -1] + 1).tolist()
    assert table.shape == (4, 2 + 2 * members)


def test_weighted_samples_know_their_evidence_and_whether_to_believe_it():
    """Draws of N(0, 4), target N(0, 1) times e: ln Z = 1 to four errors; the other way round the weights have no variance."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 1))
    log_weights = 1 - 0.5 * (2 * x[:, 0]) ** 2 + 0.5 * x[:, 0] ** 2 + np.log(2)
    wide = WeightedSamples(2 * x, log_weights, ("a",))
    assert abs(wide.log_z - 1) < 4 * wide.log_z_err
    assert wide.reliability.ok and wide.pareto_k < 0.5
    assert wide.to_dataframe()["weight"].sum() == pytest.approx(1) and wide.smoothed().ess == pytest.approx(wide.ess, rel=0.05)
    narrow = WeightedSamples(x, -0.5 * x[:, 0] ** 2 / 9 + 0.5 * x[:, 0] ** 2, ("a",))
    assert "Pareto k" in narrow.reliability.reasons[0]


def test_draws_of_a_run_with_an_evidence_tell_that_and_no_tail():
    log_weights = np.linspace(-20.0, 0.0, 500)
    draws = WeightedSamples(np.zeros((500, 1)), log_weights, ("a",), evidence=an_evidence())
    assert (draws.log_z, draws.log_z_err) == (-18.22, 0.03) and np.isnan(draws.pareto_k) and draws.smoothed() is draws
    assert "log_z=-18.22 +- 0.03" in repr(draws) and "k=" not in repr(draws).split("NOT")[0]
    assert "effective sample size" in str(draws.reliability)  # the weights still say how many draws they leave
