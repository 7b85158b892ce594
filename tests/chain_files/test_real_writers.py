"""Files written by the samplers themselves, where they are installed: ``sbi_flows[chains,dynesty,cobaya]``, PTMCMCSampler, la_forge.

Each run has the Rosenbrock function on [-5, 5]^2 as likelihood, whose ln Z is -5.804132.
"""

import numpy as np
import pytest

from sbi_flows import evidence, load_chains

LOG_Z = -5.804132
LOG_PRIOR = -2 * np.log(10.0)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings of other packages


def log_likelihood(x):
    return -100.0 * (x[1] - x[0] ** 2) ** 2 - (1.0 - x[0]) ** 2


def log_posterior(x):
    return log_likelihood(x) + LOG_PRIOR if np.all(np.abs(x) < 5) else -np.inf


def check(chains):
    """Right within the two errors that the issue asks for; for the fixed seeds here this either holds or does not."""
    result = evidence(chains, random_state=0)
    assert abs(result.log_z - LOG_Z) < 2 * result.log_z_err, result
    assert result.log_z_err < 0.25
    assert result.reliability.ok, result


def test_emcee(tmp_path):
    import emcee

    sampler = emcee.EnsembleSampler(24, 2, log_posterior, backend=emcee.backends.HDFBackend(str(tmp_path / "run.h5")))
    sampler.random_state = np.random.RandomState(1).get_state()
    sampler.run_mcmc(np.random.default_rng(0).normal(1.0, 0.1, size=(24, 2)), 3000)
    check(load_chains(tmp_path / "run.h5", burn=500))


def test_ptmcmc(tmp_path):
    pytest.importorskip("PTMCMCSampler")
    from PTMCMCSampler.PTMCMCSampler import PTSampler

    np.random.seed(2)  # noqa: NPY002 (PTMCMCSampler takes no other)
    sampler = PTSampler(
        2,
        log_likelihood,
        lambda x: LOG_PRIOR if np.all(np.abs(x) < 5) else -np.inf,
        np.diag([0.5, 0.5]),
        outDir=str(tmp_path),
        verbose=False,
    )
    sampler.sample(np.array([1.0, 1.0]), 100_000, burn=10_000, thin=10, writeHotChains=False)
    (tmp_path / "pars.txt").write_text("x\ny\n")
    check(load_chains(tmp_path, burn=0.25))


def test_cobaya(tmp_path):
    pytest.importorskip("cobaya")
    from cobaya.run import run

    info = {
        "likelihood": {"rosenbrock": {"external": lambda x, y: log_likelihood((x, y))}},
        "params": {name: {"prior": {"min": -5, "max": 5}, "ref": 1.0, "proposal": 0.3} for name in ("x", "y")},
        "sampler": {"mcmc": {"Rminus1_stop": 0.002, "Rminus1_cl_stop": 0.02, "max_samples": 20_000, "seed": 3}},
        "output": str(tmp_path / "run"),
    }
    run(info, no_mpi=True)
    check(load_chains(tmp_path / "run", burn=0.2))


@pytest.mark.parametrize("name", ["run.pkl", "run.npz"])
def test_dynesty(tmp_path, name):
    dynesty = pytest.importorskip("dynesty")
    import pickle

    sampler = dynesty.NestedSampler(log_likelihood, lambda u: 10 * u - 5, 2, nlive=500, rstate=np.random.default_rng(4))
    sampler.run_nested(print_progress=False)
    path = tmp_path / name
    if path.suffix == ".npz":
        np.savez(path, **sampler.results.asdict())
    else:
        path.write_bytes(pickle.dumps(sampler.results))
    check(load_chains(path))


def test_getdist_reads_what_we_write_and_we_what_it_writes(tmp_path):
    getdist = pytest.importorskip("getdist")
    from tests.chain_files import files

    ours = load_chains(files.write_getdist(tmp_path / "run"))
    theirs = getdist.loadMCSamples(str(tmp_path / "run"), settings={"ignore_rows": 0})
    np.testing.assert_array_equal(theirs.samples[:600, :2], ours.samples[0])
    np.testing.assert_array_equal(-theirs.loglikes[:600], ours.log_posterior[0])
    theirs.saveAsText(str(tmp_path / "again"), make_dirs=False)
    again = load_chains(tmp_path / "again")
    # GetDist writes one file of all chains, with its own number of digits.
    np.testing.assert_allclose(again.samples[0, :600], ours.samples[0], rtol=1e-5, atol=1e-5)


def test_la_forge(tmp_path):
    core = pytest.importorskip("la_forge.core")
    from tests.chain_files import files

    x, log_l, log_p = files.draws()
    chain = np.column_stack([x, log_p, log_l, np.ones_like(x)])
    names = ["a", "b", "lnpost", "lnlike", "chain_accept", "pt_chain_accept"]
    core.Core(chain=chain, params=names, burn=100, label="run").save(str(tmp_path / "core.h5"))
    chains = load_chains(tmp_path / "core.h5")
    np.testing.assert_array_equal(chains.samples[0], x)
    np.testing.assert_array_equal(chains.log_posterior[0], log_p)
