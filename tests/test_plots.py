"""Figures: they draw, write whole files in raster and vector form, and leave matplotlib's state alone."""

import sys

import numpy as np
import pandas as pd
import pytest

from sbi_flows.physics.pta import embedded_free_spectrum, pta_target
from sbi_flows.physics.pta.figures import spectrum_figure
from sbi_flows.plots import corner, evidence_bars, save_figure

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
    assert save_figure(figure, tmp_path / "spectrum.png").stat().st_size > 5000
