"""The harness keeps its rows, computes only what is missing, and counts coverage as it says."""

import numpy as np
import pandas as pd
import pytest

import sbi_flows
from benchmarks import evidence as harness
from sbi_flows.results import Evidence, Reliability

NONE = pd.DataFrame()


@pytest.fixture
def stand_in(monkeypatch):
    """An estimator that is off by 0.05 in ln Z, evaluates every draw once, and doubts draws whose first column is wide."""

    def evidence(draws, log_posterior, *, prior=None, support=None, random_state=None):
        flat = draws.reshape(-1, draws.shape[-1])
        log_posterior(flat)
        reasons = ["wide"] if flat[:, 0].std() > 0.8 else []
        log_z = 0.5622636 + 0.05 * (-1) ** random_state
        return Evidence(log_z, 0.1, "stand-in", 1.0, 0.1, Reliability.from_reasons(reasons), NONE)

    monkeypatch.setattr(sbi_flows, "evidence", evidence, raising=False)
    monkeypatch.setattr(harness, "in_processes", lambda tasks, workers: map(harness.repetition, tasks))


def test_calibration_computes_only_what_is_missing(stand_in, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    command = ["calibration", "--problems", "gaussian-1", "--draws", "500", "--output", str(path)]
    harness.main([*command, "--repetitions", "2"])
    harness.main([*command, "--repetitions", "4"])
    rows = pd.read_csv(path)
    assert rows.repetition.tolist() == [0, 1, 2, 3]
    assert (rows.evaluations == 500).all()
    harness.main([*command, "--summary"])
    assert "truth inside 1 error in 100.0" in capsys.readouterr().out


def test_wrong_counts_flags_by_kind(stand_in, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    harness.main(["wrong", "--problems", "gaussian-1", "--repetitions", "2", "--output", str(path), "--draws", "4000"])
    rows = pd.read_csv(path)
    assert set(rows.kind) == {"clean", "shifted", "widened"}        # one mode: none to lose
    assert rows.groupby("kind").ok.all().to_dict() == {"clean": True, "shifted": True, "widened": False}
    assert "widened" in capsys.readouterr().out


def test_coverage_counts_failures_as_outside():
    log_z = [0.05, -0.15, 0.25, np.nan]
    rows = pd.DataFrame({"problem": "p", "truth": 0.0, "log_z": log_z, "log_z_err": 0.1, "ok": [True, True, True, False]})
    rows = rows.assign(evaluations=1, seconds=1.0)
    line = harness.calibration_table(rows).loc["p"]
    assert line["in 1 err %"] == 25
    assert line["in 2 err %"] == 50
    assert line["ok %"] == 75


def test_a_failing_estimator_is_a_row(stand_in, monkeypatch):
    def fails(*args, prior, support, random_state):
        raise ValueError("no")

    monkeypatch.setattr(sbi_flows, "evidence", fails)
    row = harness.repetition(("gaussian-1", "clean", 0, 200))
    assert row["method"] == "failed"
    assert row["reasons"] == "ValueError: no"


def test_the_table_against_harmonic(capsys):
    rows = pd.DataFrame(
        {
            "problem": "p",
            "peer": ["ours", "rqspline"] * 2,
            "repetition": [0, 0, 1, 1],
            "truth": 0.0,
            "log_z": [0.01, 0.03, -0.01, -0.03],
            "log_z_err": 0.01,
            "seconds": [1.0, 20.0, 2.0, 40.0],
        }
    )
    harness.print_harmonic(rows)
    lines = {line.split()[-8]: line.split()[-7:] for line in capsys.readouterr().out.splitlines() if "0.01" in line}
    # runs, bias, rmse, mean err, median seconds, then rmse and seconds (the median of 20 / 1 and 40 / 2) over ours
    assert [float(v) for v in lines["ours"]] == [2, 0, 0.01, 0.01, 1.5, 1, 1]
    assert [float(v) for v in lines["rqspline"]] == [2, 0, 0.03, 0.01, 30, 3, 20]
