"""Figures: they draw, write whole files in raster and vector form, and leave matplotlib's state alone."""

import math
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.path import Path as MplPath

from sbi_flows import Chains, Evidence, FitHistory, Reliability, WeightedSamples, compare_models, plots
from sbi_flows.inference import ModelProbabilities
from sbi_flows.physics.pta import embedded_free_spectrum, pta_target
from sbi_flows.physics.pta.figures import spectrum_figure
from sbi_flows.plots import COLOURS, corner, evidence_bars, save_figure, traces
from sbi_flows.plots.marginals import _Column, _smoothing_kernel

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("end", ["png", "pdf", "svg"])
def test_corner_writes_whole_files(tmp_path, d, end):
    draws = {"MCMC": RNG.normal(size=(3000, d)), "flow": RNG.normal(size=(2000, d)).clip(-1, 1)}
    path = save_figure(corner(draws, [f"$x_{j}$ / s" for j in range(d)], title="a title"), tmp_path / f"corner.{end}")
    assert path.stat().st_size > 5000
    assert [p.name for p in tmp_path.iterdir()] == [f"corner.{end}"]
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_corner_axes_carry_labels_and_prior_ends():
    figure = corner({"a": RNG.uniform(size=(3000, 2))}, ["$a$ / s", "$b$ / Hz"], ranges=[(0, 1), (0, 1)])
    assert figure.axes[2].get_xlabel() == "$a$ / s"
    assert figure.axes[2].get_ylabel() == "$b$ / Hz"
    assert figure.axes[2].get_xlim() == (0, 1)


def test_evidence_bars_leave_out_models_without_a_factor(tmp_path):
    table = pd.DataFrame(
        {"model": list("abc"), "log_bf": [0.0, 3.5, np.nan], "log_bf_err": [0.0, 0.1, np.nan], "reliable": [True, False, True]}
    )
    figure = evidence_bars(table, reference="a", titles={"b": "model b"})
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "model b"]
    assert save_figure(figure, tmp_path / "evidence.pdf").stat().st_size > 5000


def test_evidence_bars_take_what_compare_models_returns():
    rows = pd.DataFrame({"log_z": [0.0], "log_z_err": [0.1], "ess": [0.9], "pareto_k": [0.1]}, index=["bridge"])
    evidences = {
        name: Evidence(log_z, 0.1, "bridge", 0.9, 0.1, Reliability(ok=True), rows) for name, log_z in (("flat", 0.0), ("tilted", 2.0))
    }
    axis = evidence_bars(compare_models(evidences, reference="flat"), titles={"flat": "flat space"}).axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["flat space", "tilted"]
    assert axis.get_xlabel() == "ln Bayes factor against flat space"
    with pytest.raises(ValueError, match=r"Expected a table with columns .*; log_bf_err missing"):
        evidence_bars(pd.DataFrame({"log_bf": [1.0], "reliable": [True]}))


def test_the_line_at_zero_runs_beneath_the_numbers():
    table = pd.DataFrame({"model": ["a", "b"], "log_bf": [0.0, 1.0], "log_bf_err": [0.0, 0.1], "reliable": [True, True]})
    axis = evidence_bars(table).axes[0]
    (line,) = [line for line in axis.lines if list(line.get_xdata()) == [0, 0]]
    assert all(text.get_zorder() > line.get_zorder() and text.get_bbox_patch() is not None for text in axis.texts)


def test_corner_says_what_its_contours_hold_and_breaks_a_long_title():
    figure = corner({"a": RNG.normal(size=(2000, 2))}, ["x", "y"], title="a title far longer than its panel is wide")
    (legend,) = [axis.get_legend() for axis in figure.axes if axis.get_legend()]
    assert [t.get_text() for t in legend.get_texts()] == ["a", "68% of the draws", "95% of the draws"]
    assert "\n" in legend.get_title().get_text()


def test_contours_are_smoothed_along_the_draws_and_the_more_the_fewer_they_are():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 1))
    ridge = np.hstack([x, x + 0.1 * rng.normal(size=(3000, 1))])

    axis = _Column.read(x[:, 0], (-3, 3), 40)

    def covariance(ess):
        kernel = _smoothing_kernel(ridge, (axis, axis), ess)
        assert kernel.sum() == pytest.approx(1)
        first, second = (np.arange(n) - n // 2 for n in kernel.shape)
        return np.einsum("ab,a,b->", kernel, first, second), kernel.sum(axis=1) @ first**2

    along, width = covariance(100)
    assert 0.5 * width < along < width
    assert covariance(3000)[1] < 0.5 * width
    corner({"few": ridge[:5]}, ["x", "y"], ranges=[(-3, 3), (-3, 3)])


@pytest.mark.parametrize("n_bins", [1, 2, 14])
@pytest.mark.parametrize("n_models", [1, 7])
def test_spectrum_figure_for_any_number_of_bins_and_models(tmp_path, n_bins, n_models):
    target = pta_target("power_law", n_bins=n_bins)
    rho = target.log10_rho(target.prior.sample(500, None)).numpy()
    bands = dict.fromkeys(
        ["power_law", "smbhb", "igw", "pt_bubble", "pt_sound", "sigw_box", "domain_walls"][:n_models],
        np.quantile(rho, [0.025, 0.16, 0.5, 0.84, 0.975], axis=0),
    )
    figure = spectrum_figure(embedded_free_spectrum().first(n_bins), bands)
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["data", "95 %", "68 %", "median"]
    assert save_figure(figure, tmp_path / "spectrum.png").stat().st_size > 5000


def test_corner_takes_results_and_finds_their_names():
    weighted = WeightedSamples(RNG.normal(size=(500, 2)), RNG.normal(size=500), ("a", "b"))
    chains = Chains(RNG.normal(size=(2, 300, 2)), ("a", "b"))
    for draws in (weighted, chains, {"reweighted": weighted, "MCMC": chains, "rows": RNG.normal(size=(300, 2))}):
        assert corner(draws).axes[2].get_xlabel() == "a"
    with pytest.raises(ValueError, match="same parameters; got a, b and c, d"):
        corner({"one": chains, "other": Chains(RNG.normal(size=(1, 300, 2)), ("c", "d"))})
    with pytest.raises(ValueError, match=r"got an array of shape \(5,\)"):
        corner(np.zeros(5))
    with pytest.raises(TypeError, match="posterior; got Reliability, which is no numbers"):
        corner(Reliability(ok=True))


def test_corner_marks_the_truth_by_place_or_name_and_shows_it_whole():
    frame = pd.DataFrame(RNG.normal(size=(500, 2)), columns=["a", "b"])
    for truth in ([0.3, 9.0], {"b": 9.0, "a": 0.3}, pd.Series({"b": 9.0, "a": 0.3})):
        axes = corner(frame, truth=truth).axes
        assert list(axes[0].lines[0].get_xdata()) == [0.3, 0.3]
        ((x, y),) = axes[2].lines[0].get_xydata()
        assert (x, y) == (0.3, 9.0) and axes[2].get_ylim()[1] > 9
        assert axes[4].get_legend().get_texts()[-1].get_text() == "truth"
    partly = corner(frame, truth={"a": 0.3}).axes
    assert len(partly[0].lines) == 1 and not partly[2].lines and not partly[3].lines
    with pytest.raises(ValueError, match="truth of 2 numbers"):
        corner(frame, truth=[1.0])
    with pytest.raises(ValueError, match="got also c"):
        corner(frame, truth={"c": 1.0})


def test_corner_draws_discrete_values_apart_and_whole():
    """Bars are the shares; the strips of each value lie where its draws are, also with ranges that end on a value."""
    n = np.repeat([0.0, 1.0, 3.0], [1000, 3000, 2000])
    rows = np.column_stack([n, RNG.normal(size=6000) + 20 * n])
    for ranges in (None, [(0, 3), (-5, 65)]):
        axes = corner(rows, ["n", "x"], ranges=ranges).axes
        bars = axes[0].patches
        np.testing.assert_allclose([bar.get_height() for bar in bars], [1 / 6, 1 / 2, 1 / 3])
        low, high = axes[0].get_xlim()
        assert all(low <= bar.get_x() and bar.get_x() + bar.get_width() <= high for bar in bars)
        assert list(axes[2].get_xticks()) == [0, 1, 3]
        for strip in axes[2].patches:
            value = strip.get_x() + strip.get_width() / 2
            assert np.abs(strip.get_y() + strip.get_height() / 2 - 20 * value) < 3
        assert {round(strip.get_x() + strip.get_width() / 2, 6) for strip in axes[2].patches} == {0, 1, 3}


def test_corner_legend_has_the_colours_of_the_contours():
    axes = corner(RNG.normal(size=(2000, 2)), ["x", "y"]).axes
    shades = [patch.get_facecolor() for patch in axes[4].get_legend().get_patches()[1:]]
    assert all(to_hex(shade) == COLOURS[0].lower() for shade in shades)
    # Paint upon paint: 68 % lies upon 95 %.
    wide, narrow = (contour.get_alpha() for contour in axes[2].collections)
    assert [shade[3] for shade in shades] == pytest.approx([1 - (1 - wide) * (1 - narrow), wide])


def test_corner_of_many_observations_says_to_pick_one():
    class Many:
        n_observations = 3

        def to_dataframe(self):
            raise AssertionError("not to be asked")

    with pytest.raises(ValueError, match=r"holds 3\. Draw one, posterior\[0\]"):
        corner(Many())


def test_evidence_bars_draw_what_a_classifier_says():
    record = ModelProbabilities({"a": 0.1, "b": 0.9}, {"a": -2.2, "b": 0.0}, Reliability(ok=True))
    axis = evidence_bars(record, titles={"b": "model b"}).axes[0]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["a", "model b"]
    assert axis.get_xlabel() == "ln Bayes factor against model b"
    assert [text.get_text() for text in axis.texts] == ["-2.20", "0.00"]
    with pytest.raises(TypeError, match="got dict"):
        evidence_bars({"a": 1.0})


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"write a\.png to; .*nowhere does not exist"):
        save_figure(corner(RNG.normal(size=(50, 1))), tmp_path / "nowhere" / "a.png")


# --- Traces -----------------------------------------------------------------------------------------------------------------------


def some_chains(n_chains=20, n_draws=50, d=3, verdict=None):
    rng = np.random.default_rng(0)
    return Chains(rng.normal(size=(n_chains, n_draws, d)), tuple(f"p{j}" for j in range(d)), reliability=verdict)


def test_traces_show_all_chains_or_say_how_many():
    figure = traces(some_chains(verdict=Reliability.from_reasons(["too short"])))
    left = [axis for axis in figure.axes if axis.get_ylabel()]
    assert [axis.get_ylabel() for axis in left] == ["p0", "p1", "p2"] and all(len(axis.lines) == 20 for axis in left)
    assert figure.get_suptitle() == "NOT RELIABLE: all 20 chains"
    few = traces(some_chains(), ["p1"], most_chains=8)
    assert "8 of 20 chains shown, 1 of 3 parameters" in few.get_suptitle() and len(few.axes[0].lines) == 8
    apart = some_chains(d=9)
    apart.samples[:10, :, 7] += 5
    worst = traces(apart, most_parameters=2)
    assert "2 of 9 parameters, those of the largest R-hat" in worst.get_suptitle() and "p7" in [axis.get_ylabel() for axis in worst.axes]
    assert "one in 2 is shown" in traces(some_chains(2, 3000, 1)).axes[0].get_xlabel()


def test_traces_of_something_else():
    with pytest.raises(TypeError, match="make Chains"):
        traces(np.zeros((2, 10, 1)))
    with pytest.raises(ValueError, match="among p0, p1, p2; got mass"):
        traces(some_chains(), ["mass"])


# --- Corner figures of separate modes ---------------------------------------------------------------------------------------------


def modes_of(centres, n=2000, width=0.5):
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(size=(n, 2)) * width + centre for centre in centres])


@pytest.mark.parametrize("ess", [4000.0, 30.0])
def test_contours_do_not_bridge_modes(ess):
    """Two modes on the diagonal, 17 widths apart: the smoothing is as wide as a mode and not as the way between them."""
    rows = modes_of([(3, 3), (-3, -3)])
    columns = tuple(_Column.read(rows[:, j], None, 40) for j in range(2))
    kernel = _smoothing_kernel(rows, columns, ess)
    x = (np.arange(kernel.shape[0]) - kernel.shape[0] // 2) * (columns[0].cells[1] - columns[0].cells[0])
    assert np.sqrt(kernel.sum(1) @ x**2) < 0.45
    along = np.einsum("ab,a,b->", kernel, x, x) / (kernel.sum(1) @ x**2)
    assert abs(along) < 0.1  # round, as the modes are


def test_contours_keep_aliases_and_needles_apart():
    """Aliases .1 wide on a range of 5: no contour of 68 % spans two. Needles of sd .05: theirs are as wide as normal modes' are."""
    rng = np.random.default_rng(0)
    centre = rng.choice([1.75, 2.1, 2.6], size=5000, p=[0.4, 0.35, 0.25])
    axis = corner(np.c_[rng.normal(centre, 0.05), rng.normal(size=5000)], ranges=[(1, 6), (-4, 4)]).axes[2]
    rings = [ring for path in axis.collections[1].get_paths() for ring in path.to_polygons()]
    assert all(np.ptp(ring[:, 0]) < 0.3 for ring in rings)
    sign = rng.choice([-3.0, 3.0], size=(4000, 1))
    axis = corner(sign + 0.05 * rng.normal(size=(4000, 2))).axes[2]
    rings = [ring for path in axis.collections[1].get_paths() for ring in path.to_polygons()]
    # The 68 % region of a normal mode in the plane has a radius of 1.51 standard deviations.
    assert max(np.ptp(ring[:, 0]) for ring in rings) < 1.3 * 2 * 1.51 * 0.05


@pytest.mark.parametrize("ess", [4000.0, 200.0])
def test_contours_hold_the_draws_they_say_where_draws_bend_and_split(ess):
    """An arc and a narrow mode beside it: counted inside the drawn polygons, to 1.5 % for the half per cent beyond the axes."""
    rng = np.random.default_rng(0)
    angle, radius = rng.normal(0, 0.9, 3000), 3 + 0.15 * rng.normal(size=3000)
    rows = np.concatenate([np.c_[radius * np.cos(angle), radius * np.sin(angle)], 0.2 * rng.normal(size=(1000, 2)) - [6, 2]])
    wide, narrow = corner({"run": rows}, ess={"run": ess}).axes[2].collections
    for contour, level in ((wide, 0.95), (narrow, 0.68)):
        inside = np.zeros(len(rows), dtype=bool)
        for ring in (ring for path in contour.get_paths() for ring in path.to_polygons()):
            inside ^= MplPath(ring).contains_points(rows)
        assert inside.mean() == pytest.approx(level, abs=0.015)


def test_axes_hold_the_whole_of_every_mode():
    rows = modes_of([(5, 5), (5, -5), (-5, 5), (-5, -5)])
    axis = corner(rows).axes[0]
    low, high = axis.get_xlim()
    assert ((rows[:, 0] > low) & (rows[:, 0] < high)).mean() > 0.999
    assert low < -5 - 3 * 0.5 and high > 5 + 3 * 0.5
    hard = np.random.default_rng(0).uniform(size=(5000, 2))
    low, high = corner(hard).axes[0].get_xlim()
    assert low >= 0 and high <= 1


def test_losses_show_every_member_and_the_epoch_that_was_kept():
    train = np.linspace(2, 1, 8)[:, None] + np.array([0.0, 0.1])
    history = FitHistory(train, train + 0.2, np.full(8, 0.01), np.array([7, 5]), 80, 0, 1.0, "max_epochs", Reliability(True))
    (axis,) = plots.losses(history).axes
    kept = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o"]
    assert kept == [7, 5] and len(axis.lines) == 6 and "nats" in axis.get_ylabel()
    with pytest.raises(TypeError, match="history_ of a fitted estimator; got list"):
        plots.losses([1.0])


def test_weights_are_drawn_whole_with_the_tail_that_was_fitted():
    x = np.random.default_rng(0).standard_t(2, size=(4000, 1))
    log_weights = np.log(np.abs(x[:, 0]) + 0.1)
    draws = WeightedSamples(x, np.where(np.arange(4000) < 10, -np.inf, log_weights), ("a",))
    (axis,) = plots.weights(draws).axes
    size, share = axis.lines[0].get_data()
    assert len(size) == 3990 and share[-1] == pytest.approx(3990 / 4000)
    assert np.sum(size) == pytest.approx(4000)
    # The fitted tail follows the weights it was fitted to: about its middle within a tenth.
    fitted, falling = axis.lines[1].get_data()
    assert len(fitted) == math.ceil(3 * math.sqrt(4000)) and falling[-1] == len(fitted) / 4000
    assert np.abs(np.log(fitted / size[: len(fitted)]))[20:].max() < 0.1
    assert f"k {draws.pareto_k:.2f}" in axis.get_title(loc="left")
    even = WeightedSamples(x, np.zeros(4000), ("a",))
    assert "no tail" in plots.weights(even).axes[0].get_title(loc="left")
    with pytest.raises(TypeError, match="make WeightedSamples"):
        plots.weights(log_weights)
    found = Evidence(-1.0, 0.1, "nested sampling", 0.5, np.nan, Reliability(True), pd.DataFrame())
    title = plots.weights(WeightedSamples(draws.samples, draws.log_weights, draws.names, evidence=found)).axes[0].get_title(loc="left")
    assert "effective draws" in title and "tail" not in title and "Pareto" not in title
