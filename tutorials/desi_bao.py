"""Is dark energy a constant? Thirteen distances and three universes.

    python tutorials/desi_bao.py [folder for the figures]

DESI's second data release measures how large the sound horizon of the early universe looks at seven redshifts. A constant dark energy
(LCDM), one of constant pressure over density w, and one whose w changes (w0, wa) are each fitted and weighed by their evidence, by chains
helped by a flow and by exact quadrature. The priors are uniform: Omega_m [.01, .99], H0 r_d [5000, 15000] km/s, w and w0 [-3, 1],
wa [-3, 2]. A Bayes factor depends on them: the third universe fits best (chi-squared 5.6 against 10.3), and has the smaller evidence, as
most of its prior does not fit. The data are fetched once, or read from the folder that SBI_FLOWS_DATA names.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from sbi_flows.physics.cosmology import MODELS, bao_target, compare_bao, desi_dr2_bao
from sbi_flows.plots import COLOURS, corner, new_figure, save_figure


def main(folder: Path = Path("figures"), models: tuple[str, ...] = tuple(MODELS), n_effective: int = 4000) -> None:
    data = desi_dr2_bao()
    result = compare_bao(models, data, routes=("sampler", "grid"), n_effective=n_effective, random_state=0)
    table = result.to_dataframe()
    print(table.drop(columns="reasons").to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    # What no single route can know, their comparison may tell: quadrature is exact here.
    print(result.reliability)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(_hubble_figure(result.chains, data), folder / "desi_distances.png")
    widest = models[-1]
    labels = [r"$\Omega_m$", r"$H_0 r_d$ [km/s]", "$w_0$", "$w_a$"][: bao_target(widest, data).features]
    save_figure(corner({MODELS[widest].title: result.chains[widest]}, labels), folder / "desi_posterior.png")


def _hubble_figure(chains, data):
    """Each distance over that of the middle of LCDM's posterior, with the band that each universe's posterior leaves to it."""
    reference = bao_target("lcdm", data).distances(torch.tensor([[0.2975, 10154.0]]))[0].numpy()
    kinds = {"DM_over_rs": "across", "DH_over_rs": "along", "DV_over_rs": "volume"}
    figure = new_figure(7.0, 3.4)
    panels = figure.subplots(1, 2, sharey=True)
    for axis, shown in zip(panels, (("DM_over_rs", "DV_over_rs"), ("DH_over_rs",)), strict=True):
        rows = [k for k in np.argsort(data.redshifts) if data.kinds[k] in shown]
        z, error = data.redshifts[rows], np.sqrt(data.covariance.diagonal())[rows]
        axis.errorbar(z, data.values[rows] / reference[rows], error / reference[rows], fmt="ko", capsize=3, label="DESI DR2")
        for k, (name, own) in enumerate(chains.items()):
            draws = own.samples.reshape(-1, own.samples.shape[-1])[::20]
            ratio = bao_target(name, data).distances(torch.from_numpy(draws.copy())).numpy()[:, rows] / reference[rows]
            low, middle, high = np.quantile(ratio, [0.16, 0.5, 0.84], axis=0)
            axis.fill_between(z, low, high, color=COLOURS[k], alpha=0.3)
            axis.plot(z, middle, color=COLOURS[k], label=MODELS[name].title)
        axis.set_xlabel("redshift")
        axis.set_title(", ".join(kinds[kind] for kind in shown), fontsize=10)
    panels[0].set_ylabel("distance over that in LCDM")
    panels[1].legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
