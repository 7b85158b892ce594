"""Figures of the diagnostics: what they show agrees with the records, whatever the sizes."""

import dataclasses
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex

from sbi_flows import plots
from sbi_flows.diagnostics import c2st, diagnose, local_c2st, misspecification, mmd, posterior_predictive, sbc
from sbi_flows.diagnostics.ranks import rank_record
from tests.diagnostics.conjugate import BROKEN, EXACT, MIXING, simulate

THETA, X = simulate(120, np.random.default_rng(1))


def texts(figure):
    return " ".join(text.get_text() for axis in figure.axes for text in (axis.title, *axis.texts))


@pytest.mark.parametrize("kind", ["exact", "too narrow"])
def test_all_on_one_page(tmp_path, kind):
    estimator = EXACT if kind == "exact" else BROKEN[kind]
    result = diagnose(estimator, THETA, X, X[0], simulator=lambda theta: theta @ MIXING.T, n_draws=70, random_state=0)
    assert result.reliability.ok == (kind == "exact")
    figure = plots.diagnosis(result)
    assert plots.save_figure(figure, tmp_path / "diagnosis.png").stat().st_size > 20_000
    assert len(figure.axes) == 7
    assert ("NOT RELIABLE" in figure.get_suptitle()) == (not result.reliability.ok)
    assert figure.get_suptitle().startswith(result.verdict)
    assert f"below p = {result.threshold:.2g}" in texts(figure).replace("\n", " ")
    for reason in result.reliability.reasons:
        assert " ".join(reason.split()[:3]) in texts(figure).replace("\n", " ")
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_a_page_without_an_observation():
    figure = plots.diagnosis(diagnose(EXACT, THETA, X, n_draws=70, random_state=0))
    assert len(figure.axes) == 4


@pytest.mark.parametrize(("n_draws", "extra"), [(1, 0), (7, 5), (70, 0)])
def test_ranks_for_any_number_of_draws_and_quantities(tmp_path, n_draws, extra):
    quantities = {f"q{k}": (lambda theta, x, k=k: theta[:, 0] + k * x[:, 0]) for k in range(extra)}
    result = sbc(BROKEN["shifted"], THETA, X, n_draws=n_draws, quantities=quantities, random_state=0)
    for draw in (plots.rank_histograms, plots.rank_ecdf):
        figure = draw(result)
        assert plots.save_figure(figure, tmp_path / "ranks.svg").stat().st_size > 5000
        for name in result.names:
            assert name in texts(figure)


def test_histogram_bars_are_relative_to_their_expectation():
    """Ranks that are exactly uniform fill every bar to one, also where the bins hold unequal numbers of ranks."""
    ranks = np.tile(np.arange(11), 10)[:, None]
    figure = plots.rank_histograms(rank_record(("a",), ranks, 10, 0.01), bins=4)
    np.testing.assert_allclose(figure.axes[0].patches[1].get_data().values, 1.0)


def test_no_bar_is_cut_off():
    ranks = np.column_stack([np.arange(200) % 11, np.zeros(200, int)])
    axis = plots.rank_histograms(rank_record(("a", "b"), ranks, 10, 0.01)).axes[0]
    assert axis.get_ylim()[1] > 11


def test_the_coverage_curves_are_the_records():
    result = diagnose(EXACT, THETA, X, n_draws=70, random_state=0)
    lines = plots.coverage(result.coverage, result.tarp).axes[0].lines
    np.testing.assert_array_equal(lines[1].get_ydata(), result.coverage.coverage)
    np.testing.assert_array_equal(lines[2].get_ydata(), result.tarp.coverage)


def test_two_samples_and_one_observation(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 2))
    records = [
        plots.class_scores(c2st(x, x + 1, classifier="gradient boosting", random_state=0)),
        plots.null_distribution(mmd(x, x + 1, random_state=0)),
        plots.null_distribution(misspecification(X, X[0] + 1e6, random_state=0)),
        plots.null_distribution(local_c2st(EXACT, THETA, X, X[0], random_state=0)),
        plots.local_preference(dataclasses.replace(local_c2st(EXACT, THETA, X, X[0], random_state=0), names=("a", "b"))),
        plots.local_preference(local_c2st(EXACT, THETA, X, X[0], random_state=0), columns=(1, 0)),
    ]
    for figure in records:
        assert plots.save_figure(figure, tmp_path / "figure.png").stat().st_size > 5000
    # An observation far away is told, not drawn to scale.
    assert records[2].axes[0].get_xlim()[1] < 10
    assert "observed" in texts(records[2])
    assert not records[2].axes[0].lines
    assert len(records[1].axes[0].lines) + len(records[3].axes[0].lines) >= 1
    assert records[-1].axes[0].get_xlabel() == local_c2st(EXACT, THETA, X, X[0], n_permutations=9, random_state=0).names[1]
    assert (records[-2].axes[0].get_xlabel(), records[-2].axes[0].get_ylabel()) == ("a", "b")


def test_predictive_shows_the_strangest_summaries_and_flags_them():
    class Posterior:
        def sample(self, n_samples=1, random_state=None):
            return np.zeros((n_samples, 1))

    rng = np.random.default_rng(0)
    observed = np.zeros(50)
    observed[17] = 99.0
    record = posterior_predictive(Posterior(), lambda theta: rng.normal(size=(len(theta), 50)), observed, random_state=0)
    figure = plots.predictive(record)
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert len(labels) == 30
    assert "x_17" in labels
    assert "20 less unusual" in texts(figure)
    colours = [to_hex(points.get_facecolor()[0]) for points in figure.axes[0].collections if len(points.get_facecolor())]
    assert colours.count(plots.COLOURS[1].lower()) == 1


def test_a_record_that_a_figure_does_not_draw_is_told_which_does():
    result = diagnose(EXACT, THETA, X, n_draws=70, random_state=0)
    for draw, record, said in (
        (plots.coverage, result.sbc, "coverage draws Coverage; got SBC: for that use rank_histograms or rank_ecdf"),
        (plots.rank_histograms, result, "rank_histograms draws SBC; got Diagnosis: pass its .sbc"),
        (plots.diagnosis, result.sbc, "diagnosis draws Diagnosis; got SBC"),
        (plots.local_preference, result.local, "local_preference draws LocalC2ST; got None: .* x_o"),
        (plots.predictive, X, "predictive draws PosteriorPredictive; got ndarray: make one"),
        (plots.class_scores, result.tarp, "got Coverage: for that use coverage"),
        (plots.null_distribution, result, "pass its .local or .misspecification"),
    ):
        with pytest.raises(TypeError, match=said):
            draw(record)
    with pytest.raises(TypeError, match="got none"):
        plots.coverage()


def test_the_ranks_of_a_page_are_named_and_histograms_have_the_axis_of_the_ecdf():
    result = diagnose(EXACT, THETA, X, n_draws=70, random_state=0)
    legend = plots.diagnosis(result).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == list(result.sbc.names)
    assert len({line.get_linestyle() for line in legend.get_lines()}) == len(result.sbc.names)
    histogram, curve = (draw(result.sbc).axes[0] for draw in (plots.rank_histograms, plots.rank_ecdf))
    assert histogram.get_xlim() == curve.get_xlim() == (0, 1)
    assert len(histogram.get_yticks()) > 2
