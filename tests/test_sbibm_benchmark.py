"""The benchmark's two-sample test and its tables."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

from benchmarks import sbibm
from benchmarks.c2st import c2st


def test_c2st_tells_equal_from_shifted_samples():
    """The accuracy of a coin over 800 rows has deviation .018, so .58 is beyond 4 of them; a shift by two deviations is told in 84 %."""
    first, second = np.random.default_rng(0).normal(size=(2, 400, 1))
    same, shifted = c2st([(first, second), (first + 2, second)])
    assert same < 0.58
    assert shifted == pytest.approx(0.84, abs=0.06)


def test_c2st_agrees_with_scikit_learn():
    """Both are accuracies on the same 1000 rows, of deviation .016 each; seeds differ, so four deviations of their difference."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(500, 2)), rng.normal(size=(500, 2)) * [1.0, 0.4]
    z = (np.concatenate([first, second]) - second.mean(0)) / second.std(0)
    classifier = MLPClassifier(hidden_layer_sizes=(20, 20), max_iter=1000, random_state=0)
    labels = np.repeat([0, 1], 500)
    expected = cross_val_score(classifier, z, labels, cv=KFold(5, shuffle=True, random_state=0)).mean()
    assert abs(c2st([(first, second)])[0] - expected) < 4 * 0.016 * math.sqrt(2)
    assert expected > 0.62


def test_c2st_wants_one_shape():
    with pytest.raises(ValueError, match="one shape"):
        c2st([(np.zeros((10, 2)), np.zeros((10, 3)))])


def test_table_puts_methods_side_by_side_with_the_published_figure():
    common = {"task": "slcp", "simulations": 10_000, "seed": 0, "cpu_seconds": 9.0}
    rows = pd.DataFrame(
        [{**common, "method": "ours", "c2st": 0.7, "seconds": 8.0}, {**common, "method": "sbi", "c2st": 0.85, "seconds": 190.0}]
    )
    assert "| slcp | 10000 | 0.700 | 8 (9) |  |  | 0.850 | 190 (9) | 0.91 |" in sbibm.table(rows)
    assert "| slcp | 10000 | 0.700 | 8 (9) |  |  |  |  | 0.91 |" in sbibm.table(rows[rows.method == "ours"])


def test_cells_are_cached(monkeypatch, tmp_path, capsys):
    calls = []

    def run_cell(name, n, seed, method, python, threads):
        calls.append((name, n, seed, method))
        return {"task": name, "simulations": n, "seed": seed, "method": method, "c2st": 0.6, "seconds": 1.0, "cpu_seconds": 1.0}

    monkeypatch.setattr(sbibm, "run_cell", run_cell)
    monkeypatch.setattr(sbibm, "find_wheel", lambda: None)
    monkeypatch.setattr(sbibm, "picture", lambda rows, path: None)
    arguments = ["sbibm", "--tasks", "slcp,sir", "--methods", "ours,sbi", "--python", "py", "--results", str(tmp_path / "r.csv")]
    monkeypatch.setattr("sys.argv", arguments)
    sbibm.main()
    # The methods take turns at going first.
    assert calls == [("slcp", 10_000, 0, "ours"), ("slcp", 10_000, 0, "sbi"), ("sir", 10_000, 0, "sbi"), ("sir", 10_000, 0, "ours")]
    sbibm.main()
    assert len(calls) == 4
    monkeypatch.setattr("sys.argv", [*arguments, "--seeds", "1", "--tasks", "slcp"])
    sbibm.main()
    assert calls[4:] == [("slcp", 10_000, 1, "ours"), ("slcp", 10_000, 1, "sbi")]
    assert "slcp" in capsys.readouterr().out


def test_the_peer_needs_an_interpreter(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sbibm", "--methods", "ours,sbi"])
    with pytest.raises(SystemExit):
        sbibm.main()
    assert "--python" in capsys.readouterr().err
