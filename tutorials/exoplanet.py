"""What is a planet's atmosphere made of? One network for all planets, mended by the exact likelihood for one.

    python tutorials/exoplanet.py [folder for the figures]

Spectra are synthetic: an analytic transit radius and smooth bands in place of measured opacities (sbi_flows.physics.exoplanets). A network
learns from planets of all kinds, each with errors of its own, and answers for a new one at once. After so short a training its answer is
rough. The likelihood is known here, so it need not be believed: importance weights tell how rough, and chains of this one planet, which
cost a thousand times as much, give the posterior itself.
"""

import sys
import warnings
from pathlib import Path

import numpy as np

from sbi_flows import ConditionalFlow, FlowSampler
from sbi_flows.physics.exoplanets import NAMES, WAVELENGTHS, AtmosphereNPE, challenge_score, planet_target, simulate_planets
from sbi_flows.physics.exoplanets.planets import expected_depths
from sbi_flows.plots import COLOURS, corner, new_figure, save_figure

HOT_JUPITER = np.array([[1.2, 1500.0, -3.3, -6.5, -4.0, -5.0, -8.0]])


def main(folder: Path = Path("figures"), n_simulations: int = 10_000, max_epochs: int = 15, n_effective: int = 1000) -> None:
    planet = simulate_planets(1, HOT_JUPITER, random_state=16)
    estimator = ConditionalFlow(layers=3, hidden=(64, 64), max_epochs=max_epochs, random_state=0)
    network = AtmosphereNPE(n_simulations, estimator, random_state=0).fit()
    rough = network.posterior(planet).sample(4000, random_state=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the verdict is printed
        weighted = network.refined(planet, random_state=2)
    print(f"network, weighed by the exact likelihood: {weighted.ess:.0f} of {len(weighted.samples)} draws count; {weighted.reliability}")

    sampler = FlowSampler(target=planet_target(planet), n_effective=n_effective, method="local", max_evaluations=2_000_000, random_state=4)
    sampler.fit()
    exact = sampler.sample(4000, random_state=5)
    print(f"chains: {sampler.report_.reliability}")
    for name, true, draws in zip(NAMES, HOT_JUPITER[0], exact.T, strict=True):
        low, middle, high = np.quantile(draws, [0.16, 0.5, 0.84])
        print(f"{name:12} {middle:9.3f} [{low:.3f}, {high:.3f}]   made with {true:g}")
    score = challenge_score(planet, rough, exact, random_state=0)
    print(f"score of the network's own draws against the chains: {score.total:.0f} of 1000")

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure = corner({"chains": exact, "network": rough}, NAMES, truth=HOT_JUPITER[0])
    save_figure(figure, folder / "exoplanet_posterior.png")
    save_figure(_spectrum(planet, exact), folder / "exoplanet_spectrum.png")


def _spectrum(planet, draws):
    """Measured depths and what the posterior makes of them."""
    ones = np.ones(500)
    predicted = expected_depths(draws[:500], planet.star_radius * ones, planet.log_gravity * ones)
    low, middle, high = 100 * np.quantile(predicted, [0.025, 0.5, 0.975], axis=0)
    figure = new_figure(6.4, 3.4)
    axis = figure.subplots()
    axis.errorbar(WAVELENGTHS, 100 * planet.depths[0], 100 * planet.errors[0], fmt="k.", capsize=2, label="synthetic data")
    axis.fill_between(WAVELENGTHS, low, high, color=COLOURS[0], alpha=0.4, label="95 % of the posterior")
    axis.plot(WAVELENGTHS, middle, color=COLOURS[0])
    axis.set(xscale="log", xlabel="wavelength [micron]", ylabel="depth [%]")
    axis.set_xticks([0.6, 1, 2, 4, 7], ["0.6", "1", "2", "4", "7"])
    axis.minorticks_off()
    axis.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
