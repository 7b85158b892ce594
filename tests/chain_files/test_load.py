"""What other samplers write is read to the last bit, and what is wrong with a file is said."""

import numpy as np
import pytest

from sbi_flows import RandomWalk, Stretch, load_chains, run_chains
from sbi_flows.targets import from_dynesty, from_log_prob
from tests.chain_files import files


def test_ptmcmc(tmp_path):
    x, log_l, log_p = files.draws()
    folder = files.write_ptmcmc(tmp_path)
    for path in (folder, folder / "chain_1.txt"):
        chains = load_chains(path)
        np.testing.assert_array_equal(chains.samples, x[None])
        np.testing.assert_array_equal(chains.log_posterior, log_p[None])
        np.testing.assert_array_equal(chains.log_likelihood, log_l[None])
        assert chains.names == ("gamma", "log10_A")
        assert chains.bounds == {"gamma": (-5, 5), "log10_A": (-5, 5)}
        assert chains.support == [(-5, 5), (-5, 5)]
        assert set(chains.stats) == {"acceptance", "swap_acceptance"}
        assert chains.weights is None


@pytest.mark.parametrize("separator", ["_", "."])
def test_getdist_keeps_every_chain_its_weights_bounds_and_labels(tmp_path, separator):
    chains = load_chains(files.write_getdist(tmp_path / "run", separator=separator))
    assert chains.samples.shape == (2, 600, 2)
    assert chains.lengths.tolist() == [600, 500]
    assert np.isnan(chains.samples[1, 500:]).all()
    x, _, log_p = files.draws(500, seed=2)
    second = chains.split()[1]
    np.testing.assert_array_equal(second.samples[0], x)
    np.testing.assert_array_equal(second.log_posterior[0], log_p)
    np.testing.assert_array_equal(second.derived["sum"][0], x.sum(axis=1))
    assert chains.bounds == {"a": (-5, 5), "b": (-5, np.inf)}
    assert chains.labels == {"a": "\\Omega_m", "sum": "a+b"}
    assert any("-ln posterior" in note for note in chains.info["notes"])
    written_out = chains.unweighted()
    assert written_out.lengths.tolist() == [chains.weights[0].sum(), np.nansum(chains.weights[1])]
    alone = load_chains(tmp_path / f"run{separator}2.txt")
    np.testing.assert_array_equal(alone.samples, second.samples)


def test_cobaya_takes_from_the_yaml_what_was_sampled_and_runs_nothing_of_it(tmp_path):
    pytest.importorskip("yaml")
    chains = load_chains(files.write_cobaya(tmp_path / "run"), burn=100)
    assert chains.names == ("a", "b")
    assert chains.lengths.tolist() == [500, 400]
    assert set(chains.derived) == {"square"}
    assert chains.bounds == {"a": (-5, 5), "b": (-5, 5)}
    assert chains.labels == {"a": "\\alpha"}
    _, log_l, log_p = files.draws(500, seed=2)
    np.testing.assert_allclose(chains.log_likelihood[1, :400], log_l[100:], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(chains.log_posterior[1, :400], log_p[100:])


def test_emcee_walkers_are_an_ensemble(tmp_path):
    sampler = files.write_emcee(tmp_path / "run.h5", n_steps=30)
    chains = load_chains(tmp_path / "run.h5", burn=0.5)
    np.testing.assert_array_equal(chains.samples, sampler.get_chain()[15:].swapaxes(0, 1))
    np.testing.assert_array_equal(chains.log_posterior, sampler.get_log_prob()[15:].T)
    assert chains.ensemble


def test_parameters_can_be_named(tmp_path):
    chains = load_chains(files.write_getdist(tmp_path / "run"), parameters=["sum", "a"])
    assert chains.names == ("sum", "a")
    assert set(chains.derived) == {"b"}
    with pytest.raises(ValueError, match="among a, b, sum; got c"):
        load_chains(tmp_path / "run", parameters=["c"])


def test_a_log_column_that_is_given_overrules_the_format(tmp_path):
    chains = load_chains(files.write_getdist(tmp_path / "run"), log_column="likelihood")
    assert chains.log_posterior is None
    assert chains.log_likelihood is not None
    assert load_chains(tmp_path / "run", log_column="none").log_likelihood is None


@pytest.mark.parametrize("burn", [-0.1, 1.5, np.nan])
def test_burn_in_that_means_nothing(tmp_path, burn):
    with pytest.raises(ValueError, match="a fraction of each chain"):
        load_chains(files.write_ptmcmc(tmp_path), burn=burn)


def test_burn_in_that_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="burn below 500, the rows of the shortest chain; got 500"):
        load_chains(files.write_getdist(tmp_path / "run"), burn=500)


def cut_line(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:30])


def cut_number(path):
    path.write_text(path.read_text()[:-2])


def mixed(path):
    with path.open("a") as file:
        file.write("1 2 3\n1 2 3\n")


def longer(path):
    text = path.read_text().splitlines()
    text[4] += " 7.0"
    path.write_text("\n".join(text) + "\n")


def words(path):
    with path.open("a") as file:
        file.write("1 2 three 4 5 6\n")


def nan_row(path):
    with path.open("a") as file:
        file.write("1 nan 3 4 5 6\n")


def empty(path):
    path.write_text("")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_line, r"line 1000 has 2\. It is the last one: the file is truncated"),
        (cut_number, "ends in the middle of a line"),
        (mixed, r"line 1001 has 3\. Were two runs"),
        (longer, r"line 5 has 7\. Were two runs"),
        (words, "line 1001 holds 'three'"),
        (nan_row, r"1 of 1001 draws in .*chain_1.txt hold NaN or infinity \(first: row 1001, column log10_A\)"),
        (empty, "holds no rows"),
    ],
)
def test_damaged_text_chains(tmp_path, damage, message):
    files.write_ptmcmc(tmp_path)
    damage(tmp_path / "chain_1.txt")
    with pytest.raises(ValueError, match=message):
        load_chains(tmp_path)


@pytest.mark.parametrize(
    ("write", "sidecar"),
    [
        (lambda path: files.write_ptmcmc(path.parent), "pars.txt"),
        (files.write_getdist, "run.paramnames"),
        (files.write_cobaya, "run.updated.yaml"),
    ],
)
def test_missing_sidecars(tmp_path, write, sidecar):
    write(tmp_path / "run")
    (tmp_path / sidecar).unlink()
    path = tmp_path if sidecar == "pars.txt" else tmp_path / ("run.1.txt" if (tmp_path / "run.1.txt").exists() else "run_1.txt")
    with pytest.raises(FileNotFoundError, match=sidecar.replace(".", r"\.")):
        load_chains(path)


def test_sidecars_of_another_run(tmp_path):
    files.write_ptmcmc(tmp_path)
    (tmp_path / "pars.txt").write_text("a\nb\nc\n")
    with pytest.raises(ValueError, match=r"names 3 parameters, so chain_1\.txt must have 7 columns; it has 6"):
        load_chains(tmp_path)


def test_tables_of_nested_samplers_are_not_taken_for_getdists(tmp_path):
    files.write_getdist(tmp_path / "run")
    (tmp_path / "run.stats").write_text("Evidence estimates:\n")
    with pytest.raises(ValueError, match=r"second column is -2 ln likelihood"):
        load_chains(tmp_path / "run")


@pytest.mark.parametrize("name", ["ptmcmc", "la_forge", "emcee", "bilby", "getdist"])
def test_a_format_that_the_files_are_not_in(tmp_path, name):
    import h5py

    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["spam"] = [1.0]
    with pytest.raises(ValueError, match="is not in the layout of"):
        load_chains(tmp_path / "other.h5", format=name)


def test_the_folder_one_is_in(tmp_path, monkeypatch):
    files.write_ptmcmc(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert load_chains(".").names == ("gamma", "log10_A")


def test_hot_chains_are_refused(tmp_path):
    folder = files.write_ptmcmc(tmp_path)
    (folder / "chain_1.txt").rename(folder / "chain_2.5.txt")
    with pytest.raises(ValueError, match="higher temperature"):
        load_chains(folder / "chain_2.5.txt")


def test_what_is_no_chain(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file or folder, and no nothing\.1\.txt"):
        load_chains(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no chain_1\.txt and no log\.param"):
        load_chains(tmp_path)
    (tmp_path / "a.xyz").write_text("hello")
    with pytest.raises(ValueError, match=r"no known format.* with --format "):
        load_chains(tmp_path / "a.xyz")
    with pytest.raises(ValueError, match="Expected format"):
        load_chains(tmp_path / "a.xyz", format="spam")
    (tmp_path / "run.h5").write_bytes(files.write_emcee(tmp_path / "full.h5", n_steps=5) and (tmp_path / "full.h5").read_bytes()[:900])
    with pytest.raises(ValueError, match="damaged or truncated HDF5"):
        load_chains(tmp_path / "run.h5")


# --- Our own runs -------------------------------------------------------------------------------------------------------------------


def test_a_run_of_run_chains_is_read_back(tmp_path):
    target = from_log_prob(lambda x: -0.5 * x.square().sum(1), 2, names=["a", "b"])
    start = np.random.default_rng(0).normal(size=(6, 2))
    for kernel, ensemble in ((RandomWalk(), False), (Stretch(), True)):
        path = tmp_path / f"{ensemble}.h5"
        chains = run_chains(kernel, target, start, n_steps=60, n_warmup=20, thin=3, random_state=0, path=path)
        for loaded in (load_chains(path), load_chains(path, format="sbi_flows")):
            np.testing.assert_array_equal(loaded.samples, chains.samples)
            np.testing.assert_array_equal(loaded.log_posterior, chains.log_posterior)
            assert loaded.names == ("a", "b") and loaded.ensemble == ensemble
            assert loaded.stats.keys() == chains.stats.keys()
            for name, values in chains.stats.items():
                np.testing.assert_array_equal(loaded.stats[name], values)
            # What run_chains spends on a look at the tails, once the draws are there, is no part of the file.
            assert loaded.info["n_evaluations"] <= chains.info["n_evaluations"]
            assert (chains.info | {"n_evaluations": loaded.info["n_evaluations"]}).items() <= loaded.info.items()
        np.testing.assert_array_equal(load_chains(path, burn=5).samples, chains.samples[:, 5:])


def test_a_run_that_was_killed_is_read_as_far_as_it_came(tmp_path):
    """Two evaluations to begin with or to go on, then one a step: ten of warm-up; then the rest of it and ten draws and a third."""
    left = 0

    def dies(x):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return -0.5 * x.square().sum(1)

    start, path = np.random.default_rng(0).normal(size=(6, 2)), tmp_path / "run.h5"
    settings = {"n_steps": 60, "n_warmup": 20, "thin": 3, "random_state": 0}

    def run_until_killed(calls):
        nonlocal left
        left = calls
        with pytest.raises(KeyboardInterrupt):
            run_chains(RandomWalk(), from_log_prob(dies, 2), start, **settings, path=path)

    run_until_killed(2 + 10)
    with pytest.raises(ValueError, match="no draws yet: 10 of its 20"):
        load_chains(path)
    run_until_killed(2 + 10 + 31)
    loaded = load_chains(path)
    whole = run_chains(RandomWalk(), from_log_prob(lambda x: -0.5 * x.square().sum(1), 2), start, **settings)
    np.testing.assert_array_equal(loaded.samples, whole.samples[:, :10])
    assert any("10 of 20 draws a chain" in note for note in loaded.info["notes"])


def test_a_run_in_a_unit_cube_is_not_taken_for_parameters(tmp_path):
    target, path = from_dynesty(lambda u: 10 * u - 5, lambda x: -0.5 * (x**2).sum(), 1), tmp_path / "run.h5"
    run_chains(RandomWalk(), target, np.full((4, 1), 0.5), n_steps=10, n_warmup=5, random_state=0, path=path)
    with pytest.raises(ValueError, match=r"unit cube.*run_chains with the same arguments"):
        load_chains(path)
