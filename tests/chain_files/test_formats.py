"""Formats with a file each: what they define is taken, what they do not say is asked."""

import json
import pickle

import h5py
import numpy as np
import pytest

from sbi_flows import Chains, evidence, load_chains
from sbi_flows.model_evidence import N_LIVE, live_points
from tests.chain_files import files


def test_montepython_has_flat_priors_where_they_end(tmp_path):
    chains = load_chains(files.write_montepython(tmp_path))
    assert chains.names == ("omega_b", "nuisance")  # its columns put cosmology first, whatever the order of log.param
    assert set(chains.derived) == {"H0"}
    assert chains.lengths.tolist() == [300, 200]
    x, log_l, log_p = files.draws(200, seed=2)
    np.testing.assert_array_equal(chains.samples[1, :200], x)
    np.testing.assert_array_equal(chains.log_likelihood[1, :200], log_l)
    np.testing.assert_allclose(chains.log_posterior[1, :200], log_p, rtol=0, atol=1e-13)
    text = (tmp_path / "log.param").read_text()
    (tmp_path / "log.param").write_text(text.replace("[2.2, -5, 5,", "[2.2, None, 5,"))
    chains = load_chains(tmp_path / "2026-01-01_1000__1.txt")
    assert chains.log_posterior is None
    assert chains.bounds["omega_b"] == (-np.inf, 5)
    assert any("improper" in note for note in chains.info["notes"])
    (tmp_path / "log.param").write_text("data.parameters['a'] = [1, 2]\n")
    with pytest.raises(ValueError, match=r"\[mean, low, high, step, scale, role\] for a"):
        load_chains(tmp_path)


def test_la_forge(tmp_path):
    x, log_l, log_p = files.draws()
    with h5py.File(tmp_path / "core.h5", "w") as file:
        file["params"] = ["a", "b", "lnpost", "lnlike", "chain_accept", "pt_chain_accept"]
        file["chain"] = np.column_stack([x, log_p, log_l, np.full((len(x), 2), 0.3)])
        file["metadata/burn"] = 250
    chains = load_chains(tmp_path / "core.h5")
    assert chains.names == ("a", "b")
    np.testing.assert_array_equal(chains.log_posterior[0], log_p)
    np.testing.assert_array_equal(chains.log_likelihood[0], log_l)
    assert chains.info["notes"] == ("the core names a burn-in of 250 rows, which is not applied: say burn=250",)


def a_result(tmp_path, nested=True):
    x, log_l, log_p = files.draws()
    columns = {"a": x[:, 0], "b": x[:, 1], "fixed": np.ones(len(x)), "log_likelihood": log_l, "log_prior": log_p - log_l}
    result = {
        "posterior": {"__dataframe__": True, "content": {name: list(values) for name, values in columns.items()}},
        "priors": {"a": {"__prior__": True, "kwargs": {"minimum": -5, "maximum": 5}}, "b": {"__prior__": True, "kwargs": {"mu": 0}}},
        "search_parameter_keys": ["a", "b"],
        "parameter_labels": ["$\\alpha$", "b"],
        "nested_samples": {"__dataframe__": True, "content": {}} if nested else None,
        "sampler": "dynesty",
        "log_evidence": -4.6,
        "log_evidence_err": 0.1,
    }
    path = tmp_path / "run_result.json"
    path.write_text(json.dumps(result))
    return path, x, log_p


@pytest.mark.parametrize("nested", [True, False])
def test_bilby_json(tmp_path, nested):
    path, x, log_p = a_result(tmp_path, nested)
    chains = load_chains(path)
    np.testing.assert_array_equal(chains.samples[0], x)
    np.testing.assert_allclose(chains.log_posterior[0], log_p, rtol=0, atol=1e-14)
    assert chains.bounds == {"a": (-5, 5)}
    assert chains.labels == {"a": "\\alpha", "b": "b"}
    assert set(chains.derived) == {"fixed"}
    assert chains.independent == nested
    assert chains.info["log_z"] == -4.6


def test_bilby_hdf5(tmp_path):
    x, log_l, log_p = files.draws()
    with h5py.File(tmp_path / "run.hdf5", "w") as file:
        for name, values in {"a": x[:, 0], "b": x[:, 1], "log_likelihood": log_l, "log_prior": log_p - log_l}.items():
            file[f"posterior/{name}"] = values
        file["search_parameter_keys"], file["parameter_labels"] = ["a", "b"], ["$a$", "b"]
        file["priors"] = json.dumps({"a": {"kwargs": {"minimum": -5, "maximum": 5}}})
        file["sampler"], file["log_evidence"] = "emcee", np.nan
    chains = load_chains(tmp_path / "run.hdf5")
    np.testing.assert_array_equal(chains.samples[0], x)
    assert chains.bounds == {"a": (-5, 5)}
    assert not chains.independent
    assert "log_z" not in chains.info


@pytest.mark.parametrize(
    ("damage", "message"), [(lambda t: t[:-50], "damaged or truncated"), (lambda t: "{}", "this JSON is something else")]
)
def test_json_that_is_no_result(tmp_path, damage, message):
    path, _, _ = a_result(tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=message):
        load_chains(path)


class Results:
    """As dynesty's own: a pickle of it names its class and stores its dictionary."""


def dynesty_content():
    dead, live = files.nested_run()
    points = np.concatenate([dead, live])
    n_live = np.concatenate([np.full(len(dead), 100.0), np.arange(100, 0, -1.0)])
    log_x = -np.cumsum(1 / n_live)
    log_wt = points[:, 2] + np.log(np.diff(np.exp(log_x), prepend=1.0) * -1)
    content = {"samples": points[:, :2], "logl": points[:, 2], "logwt": log_wt, "logz": np.array([-4.5]), "logzerr": np.array([0.1])}
    return content | {"nlive": 100, "niter": len(dead), "blob": np.array([None] * len(points)), "bound": [Results()]}


def write_dynesty(path):
    content = dynesty_content()
    if path.suffix == ".npz":
        np.savez(path, **content)
    else:
        results = Results()
        results.__dict__ = content
        path.write_bytes(pickle.dumps(results))
    return path


@pytest.mark.parametrize("name", ["run.npz", "run.pkl"])
def test_dynesty_results_and_their_evidence(tmp_path, name):
    chains = load_chains(write_dynesty(tmp_path / name))
    assert chains.independent
    assert chains.info["log_z"] == -4.5
    result = evidence(chains, random_state=0)
    assert result.method == "nested"
    assert result.reliability.ok
    # sqrt(H / n_live) with H = ln 100 - ln(2 pi e) = 1.77 is .133; five errors: false alarm 6e-7 for a seed that is fixed.
    assert abs(result.log_z - files.LOG_Z) < 5 * result.log_z_err
    assert 0.10 < result.log_z_err < 0.17
    with pytest.raises(ValueError, match="no burn-in"):
        load_chains(tmp_path / name, burn=0.1)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the pickle was run')",))


def test_a_pickle_runs_no_code(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"samples": Evil()}))
    with pytest.raises(ValueError, match="logl, logwt missing"):
        load_chains(tmp_path / "a.pkl")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(dynesty_content())[:-300])
    with pytest.raises(ValueError, match="damaged or truncated"):
        load_chains(tmp_path / "a.pkl")
    path = write_dynesty(tmp_path / "b.npz")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match="damaged or truncated"):
        load_chains(path)


def test_dead_points_count_the_live_ones_and_sum_to_the_evidence(tmp_path):
    chains = load_chains(files.write_polychord(tmp_path / "run"))
    n_live = chains.stats[N_LIVE][0]
    np.testing.assert_array_equal(n_live[:1200], 100)
    np.testing.assert_array_equal(n_live[1200:], np.arange(100, 0, -1))
    assert chains.labels == {"a": "\\alpha"}
    result = evidence(chains, random_state=0)
    assert result.reliability.ok, result
    assert abs(result.log_z - files.LOG_Z) < 5 * result.log_z_err
    assert 0.10 < result.log_z_err < 0.17  # sqrt(H / n_live) is .133
    same = load_chains(tmp_path / "run_dead-birth.txt")
    np.testing.assert_array_equal(same.samples, chains.samples)


def test_live_points_of_a_run_by_hand():
    # Two points at the start; one born in each death's contour twice; then none.
    np.testing.assert_array_equal(live_points(np.array([1.0, 2, 3, 4]), np.array([-9.0, -9, 1, 2])), [2, 2, 2, 1])


def test_multinest_layout(tmp_path):
    dead, live = files.nested_run()
    np.savetxt(tmp_path / "run-dead-birth.txt", np.column_stack([dead, np.zeros((len(dead), 2))]))
    np.savetxt(tmp_path / "run-phys_live-birth.txt", np.column_stack([live, np.zeros(len(live))]))
    (tmp_path / "run-.paramnames").write_text("a\nb\n")
    reference = load_chains(files.write_polychord(tmp_path / "poly"))
    chains = load_chains(tmp_path / "run-")
    np.testing.assert_array_equal(chains.samples, reference.samples)
    np.testing.assert_array_equal(chains.weights, reference.weights)
    (tmp_path / "run-.paramnames").unlink()
    with pytest.raises(FileNotFoundError, match="one line a parameter"):
        load_chains(tmp_path / "run-")


def test_a_nested_sampler_that_misses_the_rim_of_its_contours_is_told(tmp_path):
    result = evidence(load_chains(files.write_polychord(tmp_path / "run", shrink=0.8, n_dead=900)), random_state=0)
    assert not result.reliability.ok
    assert any("insertion ranks" in reason for reason in result.reliability.reasons)


def test_a_nested_run_that_stopped_early_is_told(tmp_path):
    root = files.write_polychord(tmp_path / "run", n_dead=150)
    result = evidence(load_chains(root), random_state=0)
    assert any("stopped too early" in reason for reason in result.reliability.reasons)
    (tmp_path / "run_phys_live-birth.txt").unlink()
    assert "last live points is absent" in load_chains(root).info["notes"][0]
    content = {name: values[:150] if np.ndim(values) else values for name, values in dynesty_content().items()}
    np.savez(tmp_path / "dynesty.npz", **(content | {"niter": 150}))  # without the points that were alive at the end
    result = evidence(load_chains(tmp_path / "dynesty.npz"), random_state=0)
    assert any("may still be inside" in reason for reason in result.reliability.reasons)


def test_a_csv_says_what_its_names_say(tmp_path):
    x, _, log_p = files.draws(40)
    path = tmp_path / "run.csv"

    def write(names, table):
        np.savetxt(path, table, delimiter=",", header=",".join(names), comments="")

    write(["draw", "chain", "a", "b", "LogPost"], np.column_stack([np.arange(40) // 2, np.arange(40) % 2, x, log_p]))
    chains = load_chains(path)
    assert chains.names == ("a", "b")
    np.testing.assert_array_equal(chains.samples, [x[::2], x[1::2]])
    np.testing.assert_array_equal(chains.log_posterior, [log_p[::2], log_p[1::2]])
    write(["lp__", "accept_stat__", "a", "b"], np.column_stack([log_p, log_p, x]))
    with pytest.raises(ValueError, match=r"a column 'lp__', and nothing says what it holds.*--log-column"):
        load_chains(path)
    np.testing.assert_array_equal(load_chains(path, log_column="likelihood").log_likelihood[0], log_p)
    assert load_chains(path, log_column="none").log_posterior is None
    assert set(load_chains(path, log_column="posterior").stats) == {"accept_stat__"}
    with pytest.raises(ValueError, match="Expected log_column"):
        load_chains(path, log_column="lnp")
    write(["a", "a"], x)
    with pytest.raises(ValueError, match="different names"):
        load_chains(path)
    write(["1", "2"], x)
    with pytest.raises(ValueError, match="it holds numbers"):
        load_chains(path)
    write(["a", "b", "c"], x)
    with pytest.raises(ValueError, match=r"Expected 3 columns .* line 2 has 2|names 3 columns"):
        load_chains(path)
    path.write_text("")
    with pytest.raises(ValueError, match="the file holds none"):
        load_chains(path)
    path.write_text("a,b\n1.0,2.0\n1.0,\n")
    with pytest.raises(ValueError, match="line 3 holds ''"):
        load_chains(path)


def test_foreign_arviz_files_do_not_say_what_lp_is(tmp_path):
    import arviz as az

    x, _, log_p = files.draws(60)
    data = az.from_dict(posterior={"a": x.reshape(2, 30, 2)}, sample_stats={"lp": log_p.reshape(2, 30)})
    data.to_netcdf(str(tmp_path / "run.nc"))
    with pytest.raises(ValueError, match=r"sample_stats\.lp"):
        load_chains(tmp_path / "run.nc")
    chains = load_chains(tmp_path / "run.nc", log_column="posterior")
    assert chains.names == ("a[0]", "a[1]")
    np.testing.assert_array_equal(chains.samples, x.reshape(2, 30, 2))
    np.testing.assert_array_equal(chains.log_posterior, log_p.reshape(2, 30))
    (tmp_path / "run.nc").write_bytes((tmp_path / "run.nc").read_bytes()[:3000])
    with pytest.raises(ValueError, match="damaged or truncated"):
        load_chains(tmp_path / "run.nc")


def test_counted_repeats_are_written_out_and_other_weights_resampled_in_order():
    x = np.arange(6.0).reshape(1, 6, 1)
    counted = Chains(x, ("a",), weights=np.array([[1.0, 0, 3, 1, 0, 2]]))
    assert counted.unweighted().samples[0, :, 0].tolist() == [0, 2, 2, 2, 3, 5, 5]
    x = np.random.default_rng(0).normal(size=(1, 4000, 1))
    weights = np.exp(0.5 * x[..., 0])  # a normal of mean 1/2
    chain = Chains(x, ("a",), derived={"n": np.arange(4000.0)[None]}, weights=weights).unweighted(0)
    assert np.all(np.diff(chain.derived["n"][0]) >= 0)
    size = chain.samples.shape[1]
    assert size == int(weights.sum() ** 2 / (weights**2).sum())
    assert abs(chain.samples.mean() - 0.5) < 5 / np.sqrt(size)
