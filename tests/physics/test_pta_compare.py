"""The comparison: records, files, resumption, models left out, and one real quick run."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from sbi_flows import datasets
from sbi_flows.physics.pta import FreeSpectrum, embedded_free_spectrum
from sbi_flows.physics.pta import compare as module
from sbi_flows.physics.pta.compare import COLUMNS, compare
from sbi_flows.physics.pta.pipeline import ModelResult

LOG_Z = {"smbhb": -21.8, "power_law": -18.2, "igw": -19.0}


@pytest.fixture
def stub(monkeypatch):
    """Replaces the work on a model by a stored answer, and counts the calls."""
    calls = []

    def run_model(job, stage):
        calls.append(job.model)
        if LOG_Z.get(job.model) is None:
            raise ValueError("no stored answer")
        numbers = dict.fromkeys(
            ["hellinger_mean", "hellinger_max", "hellinger_floor", "seconds", "n_evaluations", "n_draws", "ess", "acceptance"], 0.5
        )
        result = ModelResult(
            model=job.model,
            settings=job.settings,
            log_z=LOG_Z[job.model],
            log_z_err=0.03,
            reliable=job.model != "igw",
            reasons=["a, reason", "another"] if job.model == "igw" else [],
            n_steps=1,
            n_burn_in=1,
            tau=[1.0],
            method="bridge",
            bands=np.tile([[-8.0], [-7.8], [-7.5], [-7.2], [-7.0]], job.n_bins).tolist(),
            **numbers,
        )
        if job.folder is not None:
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / "result.json").write_text(json.dumps(vars(result)))
        return result

    monkeypatch.setattr(module, "run_model", run_model)
    return calls


def test_records_hold_the_promised_columns(stub, tmp_path):
    result = compare(["power_law", "igw", "smbhb"], output=tmp_path)
    records = json.loads((tmp_path / "comparison.json").read_text())
    assert [r["model"] for r in records] == ["power_law", "igw", "smbhb"]
    assert all(tuple(r) == COLUMNS for r in records)
    assert records[0]["log_bf"] == pytest.approx(3.6)
    assert records[0]["log_bf_err"] == pytest.approx(0.03 * 2**0.5)
    assert (records[0]["hellinger_floor"], records[0]["method"], records[0]["n_bins"]) == (0.5, "bridge", 14)
    assert (records[2]["log_bf"], records[2]["log_bf_err"]) == (0, 0)
    assert records[1]["reasons"] == ["a, reason", "another"]
    table = pd.read_csv(tmp_path / "comparison.csv")
    assert tuple(table.columns) == COLUMNS
    assert table.loc[1, "reasons"] == "a, reason; another"
    assert list(table["reliable"]) == [True, False, True]
    assert result.to_dataframe().shape == (3, len(COLUMNS))
    assert {"spectrum.png", "spectrum.pdf", "evidence.png", "evidence.pdf"} <= {p.name for p in tmp_path.iterdir()}


def test_a_second_run_resumes_and_the_table_holds_all_that_is_finished(stub, tmp_path):
    compare(["smbhb", "power_law"], output=tmp_path)
    told = []
    result = compare(["igw", "smbhb"], output=tmp_path, on_stage=lambda *what: told.append(what))
    assert sorted(stub) == ["igw", "power_law", "smbhb"]
    assert list(result.results) == ["igw", "smbhb", "power_law"]
    assert ("smbhb", "done (from an earlier run)") in told
    assert "power_law" not in dict(told)
    records = json.loads((tmp_path / "comparison.json").read_text())
    assert [(r["model"], r["log_bf"] is None) for r in records] == [("igw", False), ("smbhb", False), ("power_law", False)]


OTHER = embedded_free_spectrum()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, "holds smbhb with other settings: seed 0 there and 1 now. Choose another --output"),
        ({"n_bins": 10, "quick": True}, "n_bins 14 there and 10 now, quick False there and True now"),
        ({"data": FreeSpectrum(OTHER.frequencies, OTHER.grid, OTHER.log_density - 1)}, "data embedded there and "),
    ],
)
def test_results_of_other_settings_are_refused_not_overwritten(stub, tmp_path, settings, message):
    compare(["smbhb"], output=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=re.escape(message)):
        compare(["power_law"], output=tmp_path, **settings)
    assert stub == ["smbhb"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_result_of_an_older_layout_is_computed_anew(stub, tmp_path):
    compare(["smbhb"], output=tmp_path)
    path = tmp_path / "models" / "smbhb" / "result.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "settings": {**stored["settings"], "layout": 0}}))
    compare(["smbhb"], output=tmp_path)
    assert stub == ["smbhb", "smbhb"]


def test_a_damaged_result_is_computed_anew(stub, tmp_path):
    compare(["smbhb"], output=tmp_path)
    (tmp_path / "models" / "smbhb" / "result.json").write_text('{"model": "smb')
    compare(["smbhb"], output=tmp_path)
    assert stub == ["smbhb", "smbhb"]


def test_without_smbhb_there_is_no_bayes_factor(stub, tmp_path):
    compare(["power_law"], output=tmp_path)
    (record,) = json.loads((tmp_path / "comparison.json").read_text())
    assert record["log_bf"] is None
    assert record["log_bf_err"] is None


def test_a_failing_model_leaves_the_others(stub, tmp_path):
    result = compare(["sigw_delta", "power_law"], output=tmp_path)
    assert list(result.results) == ["power_law"]
    assert result.skipped == {"sigw_delta": "no stored answer"}


def test_a_table_out_of_reach_skips_its_model_alone(stub, monkeypatch):
    monkeypatch.setattr(datasets, "where", lambda name: None)

    def refuse(name):
        raise ConnectionError(f"Cannot reach dataset {name!r}: set SBI_FLOWS_DATA")

    monkeypatch.setattr(datasets, "fetch", refuse)
    data = embedded_free_spectrum()
    other = FreeSpectrum(data.frequencies * 0.9, data.grid, data.log_density)
    result = compare(["power_law", "strings_meta_l"], other)
    assert list(result.results) == ["power_law"]
    assert "sgwb_models/meta_l.h5" in result.skipped["strings_meta_l"]


def test_ctrl_c_keeps_what_is_finished(stub, tmp_path, monkeypatch):
    answer = module.run_model

    def run_model(job, stage):
        if job.model == "power_law":
            raise KeyboardInterrupt
        return answer(job, stage)

    monkeypatch.setattr(module, "run_model", run_model)
    with pytest.raises(KeyboardInterrupt):
        compare(["igw", "power_law"], output=tmp_path)
    assert [r["model"] for r in json.loads((tmp_path / "comparison.json").read_text())] == ["igw"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": []}, "at least one model"), ({"n_jobs": 0}, "n_jobs of at least 1"), ({"models": ["smbbh"]}, "Did you mean 'smbhb'"),
        ({"models": ["sigw"]}, "Did you mean 'sigw_delta' or 'sigw_gauss' or 'sigw_box'"),
        ({"models": ["bogus"]}, r"Unknown model 'bogus'\. The models are"),
        ({"n_bins": 20}, "between 1 and 14 bins, as many as the embedded summary holds; got 20.*--data"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare(**{"models": ["smbhb"], **arguments})


def test_a_quick_run_finds_the_power_law_and_leaves_usable_files(tmp_path):
    """Quick errors are about 0.003 in ln Z; 0.05 is far outside chance and inside what the ranking needs."""
    result = compare(["smbhb", "power_law"], output=tmp_path, quick=True, seed=3)
    by_model = result.to_dataframe().set_index("model")
    assert by_model.loc["power_law", "log_bf"] == pytest.approx(3.585, abs=0.05)
    assert by_model["reliable"].all()
    assert by_model["hellinger_max"].max() < 0.1
    import arviz

    chains = arviz.from_netcdf(str(tmp_path / "models" / "power_law" / "posterior.nc"))
    assert float(chains.posterior["gamma"].mean()) == pytest.approx(3.09, abs=0.1)
    assert (tmp_path / "models" / "power_law" / "corner.png").stat().st_size > 10_000
    again = compare(["smbhb", "power_law"], output=tmp_path, quick=True, seed=3)
    assert again.records() == result.records()
