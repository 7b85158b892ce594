"""What goes out comes back the same, and a write that fails leaves what was there."""

import resource
import warnings
from types import SimpleNamespace

import emcee
import numpy as np
import pytest

from sbi_flows import Chains, load_chains, save_chains
from sbi_flows.chain_files import as_chains, to_anesthetic, to_chainconsumer, to_corner, to_getdist
from tests.chain_files import files


def some_chains(**changes):
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(3, 40, 2)) * [1e-12, 1e9]
    lengths = [40, 25, 40]
    content = {
        "log_posterior": rng.normal(size=(3, 40)),
        "log_likelihood": rng.normal(size=(3, 40)),
        "weights": rng.integers(1, 5, size=(3, 40)).astype(float),
        "stats": {"acceptance": rng.uniform(size=(3, 40))},
        "derived": {"ratio": rng.normal(size=(3, 40))},
        "labels": {"a": "\\alpha_{1}", "ratio": "a/b"},
        "bounds": {"a": (-1.0, np.inf), "b": (-1e10, 1 / 3)},
        "ensemble": True,
    } | changes
    for chain, length in enumerate(lengths):
        samples[chain, length:] = np.nan
        for name in ("log_posterior", "log_likelihood", "weights"):
            if content[name] is not None:
                content[name][chain, length:] = np.nan
        for group in ("stats", "derived"):
            for values in content[group].values():
                values[chain, length:] = np.nan
    return Chains(samples, ("a", "b"), **content)


def assert_same(a: Chains, b: Chains, besides=()):
    for name in ("samples", "log_posterior", "log_likelihood", "weights"):
        if name not in besides:
            one, other = getattr(a, name), getattr(b, name)
            assert (one is None) == (other is None), name
            if one is not None:
                np.testing.assert_array_equal(one, other, err_msg=name)
    for name in ("stats", "derived"):
        if name not in besides:
            assert set(getattr(a, name)) == set(getattr(b, name))
            for key, values in getattr(a, name).items():
                np.testing.assert_array_equal(values, getattr(b, name)[key])
    for name in ("names", "bounds", "labels", "ensemble", "independent"):
        if name not in besides:
            assert getattr(a, name) == getattr(b, name), name


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".nc"])
@pytest.mark.parametrize("changes", [{}, {"weights": None, "log_posterior": None, "ensemble": False, "independent": True}])
def test_files_come_back_to_the_last_bit(tmp_path, suffix, changes):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    chains = some_chains(**changes)
    path = save_chains(chains, tmp_path / f"run{suffix}")
    assert_same(chains, load_chains(path))
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"run{suffix}"]


def test_getdist_text_comes_back(tmp_path):
    chains = some_chains()
    root = save_chains(chains, tmp_path / "run.txt")
    assert_same(chains, load_chains(root), besides=("log_likelihood", "stats", "ensemble"))
    with pytest.raises(ValueError, match="do not know"):
        save_chains(some_chains(log_posterior=None), tmp_path / "run.txt")


def test_arviz_in_memory_comes_back():
    chains = some_chains()
    assert_same(chains, as_chains(chains.to_arviz()))


@pytest.mark.parametrize("weights", [None, "whole"])
def test_getdist_objects_come_back(weights):
    pytest.importorskip("getdist")
    chains = some_chains() if weights else some_chains(weights=None)
    back = as_chains(to_getdist(chains))
    assert_same(chains, back, besides=("log_likelihood", "stats", "ensemble"))
    assert to_getdist(chains).getMeans()[0] == pytest.approx(chains.unweighted().to_dataframe()["a"].mean(), abs=1e-20)


def test_anesthetic_objects_come_back(tmp_path):
    pytest.importorskip("anesthetic")
    warnings.filterwarnings("ignore", module="anesthetic")  # it is not yet at home in pandas 3
    chains = some_chains()
    assert_same(chains, as_chains(to_anesthetic(chains), parameters=["a", "b"]), besides=("log_posterior", "stats", "bounds", "ensemble"))
    nested = load_chains(files.write_polychord(tmp_path / "run"))
    samples = to_anesthetic(nested)
    assert_same(nested, as_chains(samples), besides=("weights", "log_posterior", "bounds"))
    from sbi_flows import evidence

    ours = evidence(nested, random_state=0)
    # Both sum over volumes of which the mean logarithm is known: what is left is the Monte Carlo error of our mean over 400 shrinkages.
    assert abs(ours.log_z - samples.logZ()) < 0.3 * ours.log_z_err


def test_corner_and_chainconsumer():
    chains = some_chains()
    content = to_corner(chains)
    assert content["data"].shape == (105, 2)
    assert content["labels"] == ["$\\alpha_{1}$", "b"]
    np.testing.assert_array_equal(content["weights"][40:65], chains.weights[1, :25])
    pytest.importorskip("chainconsumer", exc_type=ImportError)
    chain = to_chainconsumer(chains)
    np.testing.assert_array_equal(chain.samples["$\\alpha_{1}$"], content["data"][:, 0])
    np.testing.assert_array_equal(chain.weights, content["weights"])


def test_names_that_a_table_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="weight mean something else"):
        save_chains(Chains(np.zeros((1, 3, 1)), ("weight",)), tmp_path / "run.csv")
    with pytest.raises(ValueError, match="ends in one of"):
        save_chains(some_chains(), tmp_path / "run.xyz")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        save_chains(some_chains(), tmp_path / "no" / "run.csv")
    with pytest.raises(TypeError, match="Expected an emcee sampler, ArviZ data"):
        as_chains([1, 2])


def test_an_emcee_sampler_or_its_backend_without_burn_in():
    sampler = emcee.EnsembleSampler(8, 2, lambda p: -0.5 * (p["a"] ** 2 + p["b"] ** 2), parameter_names=["a", "b"])
    with pytest.raises(ValueError, match="no steps yet"):
        as_chains(sampler)
    sampler.run_mcmc(np.random.default_rng(0).normal(size=(8, 2)), 40)
    for burn in (10, 0.25):
        chains = as_chains(sampler, burn=burn)
        np.testing.assert_array_equal(chains.samples, sampler.get_chain(discard=10).swapaxes(0, 1))
        np.testing.assert_array_equal(chains.log_posterior, sampler.get_log_prob(discard=10).T)
        assert chains.ensemble and chains.names == ("a", "b")
    np.testing.assert_array_equal(as_chains(sampler.backend, burn=10).samples, chains.samples)
    with pytest.raises(ValueError, match="Nothing of it would be left"):
        as_chains(sampler, burn=40)
    assert as_chains(some_chains().to_arviz(), burn=5).lengths.tolist() == [35, 20, 35]


@pytest.fixture
def files_of_at_most_100_kb():
    """A limit that makes the write itself fail half way, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_there(tmp_path, files_of_at_most_100_kb):
    path = tmp_path / "run.csv"
    path.write_text("mine")
    with pytest.raises(OSError, match="File too large"):
        save_chains(Chains(np.random.default_rng(0).normal(size=(1, 20000, 2)), ("a", "b")), path)
    assert path.read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["run.csv"]


def test_too_little_space_for_netcdf(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10_000))
    path = tmp_path / "run.nc"
    path.write_text("mine")
    with pytest.raises(OSError, match="No space left"):
        save_chains(some_chains(), path)
    assert path.read_text() == "mine"
