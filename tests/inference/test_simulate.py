"""Simulators that work, fail, and misbehave; caches; parallel runs."""

import functools
import os
import re

import joblib
import numpy as np
import pytest
import torch

from sbi_flows.inference import simulate

THETA = np.random.default_rng(0).normal(size=(60, 2))


def noisy(theta, rng):
    return theta + rng.normal(size=theta.shape)


def doubled(theta):
    return 2 * theta


def test_rows_and_batches():
    np.testing.assert_array_equal(simulate(doubled, THETA), 2 * THETA)
    np.testing.assert_array_equal(simulate(doubled, THETA, vectorized=True, batch_size=7), 2 * THETA)
    assert simulate(lambda theta: theta.sum(), THETA).shape == (60, 1)
    assert simulate(lambda theta: np.ones((3, 4)) * theta[0], THETA).shape == (60, 3, 4)


def test_random_numbers_belong_to_rows():
    """Neither the order nor the neighbours nor the number of processes changes a simulation; repeated parameters give new ones."""
    x = simulate(noisy, THETA, random_state=1)
    np.testing.assert_array_equal(simulate(noisy, THETA[::-1], random_state=1), x[::-1])
    np.testing.assert_array_equal(simulate(noisy, THETA, random_state=1, n_jobs=2, batch_size=20), x)
    assert not np.array_equal(simulate(noisy, THETA, random_state=2), x)
    assert len(np.unique(simulate(noisy, np.zeros((20, 2)), random_state=1))) == 40


def own_noise(theta):
    return np.array([torch.randn(()).item(), np.random.normal(), os.getpid()])  # noqa: NPY002


def test_worker_processes_do_not_share_a_stream():
    """torch starts every process with the same seed: left alone, workers would repeat each other's noise."""
    x = simulate(own_noise, np.zeros((40, 1)), n_jobs=2, batch_size=5)
    assert len(np.unique(x[:, 2])) > 1
    assert len(np.unique(x[:, 0])) == len(np.unique(x[:, 1])) == 40


class Counted:
    """Counts its calls; fails where told."""

    def __init__(self, fails=()):
        self.calls, self.fails = 0, fails

    def __call__(self, theta):
        self.calls += 1
        if self.calls in self.fails:
            raise RuntimeError("no convergence")
        return theta


def test_what_is_in_the_cache_is_not_simulated_again(tmp_path):
    first = Counted()
    simulate(first, THETA[:30], cache=tmp_path)
    second = Counted()
    np.testing.assert_array_equal(simulate(second, THETA, cache=tmp_path), THETA)
    assert (first.calls, second.calls) == (30, 30)


def test_failed_simulations_are_rows_of_nan_and_run_again_from_the_cache(tmp_path):
    with pytest.warns(UserWarning, match=r"2 of 60 simulations failed .* 2 raised RuntimeError: no convergence \(row 3\).*in the cache"):
        x = simulate(Counted(fails=(4, 10)), THETA, cache=tmp_path)
    assert np.isnan(x[[3, 9]]).all() and np.isfinite(np.delete(x, [3, 9], axis=0)).all()
    again = Counted()
    (tmp_path / "simulator.json").unlink()  # mended: what finished is as good as before
    np.testing.assert_array_equal(simulate(again, THETA, cache=tmp_path), THETA)
    assert again.calls == 2


def test_simulations_of_a_wrong_shape_are_run_again_from_the_cache(tmp_path):
    """Two runs in which rows of theta_0 > 1 are too long, then one with the error mended: only these rows run, and they count then."""
    wrong = THETA[:, 0] > 1
    calls = []

    def simulator(theta):
        calls.append(theta)
        return np.zeros(3) if theta[0] > 1 and not mended else theta

    mended = False
    for n_run in (60, wrong.sum()):
        with pytest.warns(UserWarning, match=r"returned shape \(3,\), where most have \(2,\)"):
            x = simulate(simulator, THETA, cache=tmp_path)
        np.testing.assert_array_equal(np.isnan(x).all(1), wrong)
        assert len(calls) == n_run
        calls.clear()
    mended = True
    (tmp_path / "simulator.json").unlink()
    np.testing.assert_array_equal(simulate(simulator, THETA, cache=tmp_path), THETA)
    assert len(calls) == wrong.sum()
    np.testing.assert_array_equal(simulate(simulator, THETA, cache=tmp_path), THETA)
    assert len(calls) == wrong.sum()


WIDTH = 2.0


def helper(theta, power=1):
    return WIDTH * theta**power


def through_a_helper(theta):
    """Twice theta."""
    return helper(theta)


def of_scale(scale):
    return lambda theta: scale * theta


class Scaled:
    def __init__(self, scale):
        self.scale = np.array([scale])

    def __call__(self, theta):
        return self.scale * theta


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (doubled, lambda theta: 3 * theta, "the code of "),
        (of_scale(2.0), of_scale(3.0), "the value of scale"),
        (Scaled(2.0), Scaled(3.0), "the value of scale"),
        (functools.partial(helper, power=1), functools.partial(helper, power=2), "the value of power"),
        (Scaled(2.0).__call__, Scaled(3.0).__call__, "the value of scale"),
    ],
    ids=["code", "closure", "attribute", "argument", "method"],
)
def test_a_cache_belongs_to_one_simulator(tmp_path, before, after, told):
    simulate(before, THETA[:5], cache=tmp_path)
    np.testing.assert_array_equal(simulate(before, THETA[:5], cache=tmp_path), simulate(before, THETA[:5]))
    with pytest.raises(ValueError, match=rf"simulator whose simulations are in .*{told}.* changed .*Use another folder.*delete"):
        simulate(after, THETA, cache=tmp_path)
    (tmp_path / "simulator.json").unlink()
    np.testing.assert_array_equal(simulate(after, THETA, cache=tmp_path)[:5], simulate(before, THETA[:5]))


def test_a_cache_sees_globals_and_helpers(tmp_path, monkeypatch):
    simulate(through_a_helper, THETA, cache=tmp_path)
    monkeypatch.setattr(f"{__name__}.WIDTH", 3.0)
    with pytest.raises(ValueError, match="the value of WIDTH changed since"):
        simulate(through_a_helper, THETA, cache=tmp_path)


def test_calls_that_a_simulator_counts_are_no_change(tmp_path):
    counted = Counted()
    simulate(counted, THETA[:10], cache=tmp_path)
    simulate(counted, THETA[:40], cache=tmp_path)
    simulate(counted, THETA, cache=tmp_path)
    assert counted.calls == 60


def test_another_python_is_no_change(tmp_path):
    simulate(of_scale(2.0), THETA, cache=tmp_path)
    path = tmp_path / "simulator.json"
    path.write_text(re.sub(r"\(Python [\d.]+\)\": \"\w+", '(Python 3.0)": "other', path.read_text()))
    simulate(of_scale(2.0), THETA, cache=tmp_path)
    path.write_text(re.sub(r"\(Python [\d.]+\)\": \"\w+", '(Python 3.0)": "other', path.read_text()))
    with pytest.raises(ValueError, match="the value of scale changed"):
        simulate(of_scale(3.0), THETA, cache=tmp_path)


def test_an_interrupted_run_keeps_what_it_has(tmp_path):
    class Interrupted(Counted):
        def __call__(self, theta):
            if self.calls == 25:
                raise KeyboardInterrupt
            return super().__call__(theta)

    with pytest.raises(KeyboardInterrupt):
        simulate(Interrupted(), THETA, cache=tmp_path, batch_size=1)
    again = Counted()
    (tmp_path / "simulator.json").unlink()
    simulate(again, THETA, cache=tmp_path)
    assert again.calls == 35


def test_damaged_cache(tmp_path):
    simulate(doubled, THETA, cache=tmp_path)
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"is damaged .*delete it"):
        simulate(doubled, THETA, cache=tmp_path)
    (tmp_path / "simulator.json").write_text('{"the code')
    with pytest.raises(ValueError, match=r"simulator.json is damaged .*delete it"):
        simulate(doubled, THETA, cache=tmp_path)


@pytest.mark.parametrize(
    ("simulator", "message"),
    [
        (lambda theta: 1 / 0, r"first 20 simulations failed: 20 raised ZeroDivisionError.* simulator\(theta\) with theta of shape \(d,\)"),
        (lambda theta: np.nan * theta, "20 returned NaN"),
        (lambda theta: None, "returned None"),
        (lambda theta: "text", "raised TypeError: Expected x to hold real numbers"),
    ],
)
def test_hopeless_simulators(simulator, message):
    with pytest.raises(RuntimeError, match=message):
        simulate(simulator, THETA, batch_size=1)


def test_wrong_shapes_and_constants():
    with pytest.raises(RuntimeError, match=r"returned shape \(2,\) for 60 rows of theta, where the first axis should count rows"):
        simulate(lambda theta: theta.sum(0), THETA, vectorized=True)
    with pytest.warns(UserWarning, match=r"returned shape \(3,\), where most have \(2,\)"):
        x = simulate(lambda theta: np.ones(3) if theta[0] > 2 else theta, np.vstack([THETA, [[3.0, 0.0]]]))
    assert np.isnan(x[-1]).all()
    with pytest.warns(UserWarning, match="All 60 simulations gave the same data"):
        simulate(lambda theta: np.ones(3), THETA)
    with pytest.raises(ValueError, match=r"theta of shape \(n, d\); got \(2,\)"):
        simulate(doubled, THETA[0])


def test_one_bad_row_of_a_vectorized_batch_fails_alone():
    def picky(theta):
        if (theta[:, 0] == THETA[5, 0]).any():
            raise ValueError("row 5")
        return theta

    with pytest.warns(UserWarning, match="1 of 60 simulations failed"):
        x = simulate(picky, THETA, vectorized=True)
    assert np.flatnonzero(np.isnan(x).any(axis=1)).tolist() == [5]


@pytest.mark.filterwarnings("ignore")
def test_dask():
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        np.testing.assert_array_equal(simulate(noisy, THETA, random_state=1, batch_size=10), simulate(noisy, THETA, random_state=1))


def broken(theta):
    raise ArithmeticError("always")


def test_hopeless_simulators_in_worker_processes():
    with pytest.raises(RuntimeError, match="raised ArithmeticError: always"):
        simulate(broken, THETA, n_jobs=2, batch_size=5)
    np.testing.assert_array_equal(simulate(doubled, THETA, n_jobs=2), 2 * THETA)        # the workers are as good as before
