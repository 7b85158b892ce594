"""Light curves of supernovae in six passbands: conditional flows beside Gaussian processes.

    python tutorials/supernova.py figures/

A survey sees a supernova every few days, in one passband at a time. What is wanted is its flux in every band at every time, with an error.
From the hundred points of one supernova a Gaussian process, the usual choice, interpolates. A conditional flow may do the same, as a
density of the flux given time and wavelength; or it learns from many other supernovae what fluxes look like between their neighbours,
and is then asked about new ones without a fit. The light curves are synthetic: Bazin's function (Bazin et al. 2009, A&A 499:653) in each
band, later and slower towards the red. Points that none has seen are the measure, once with normal errors of the stated size, once with a
tenth of the points far off, as cosmic rays and bad subtractions leave them. A flow that has to make do with one supernova loses to the
Gaussian process by far; the one that was taught is as good with normal errors, and better where errors are not normal.
"""

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from sbi_flows import ConditionalFlow, plots

BANDS = dict(zip("ugrizy", (0.368, 0.480, 0.623, 0.754, 0.869, 0.971), strict=True))  # centres in micrometres
LENGTH = 120.0  # days
SEEN = 100  # points of a supernova
NEIGHBOURS = 12


@dataclass(frozen=True)
class Points:
    """Columns ``(n,)``: day, wavelength [micrometre], flux and its stated error, in units of about the brightest flux."""

    day: np.ndarray
    wavelength: np.ndarray
    flux: np.ndarray
    error: np.ndarray

    def __getitem__(self, rows) -> "Points":
        return Points(self.day[rows], self.wavelength[rows], self.flux[rows], self.error[rows])

    @property
    def place(self) -> np.ndarray:
        """Time and log wavelength ``(n, 2)`` on scales of one."""
        return np.column_stack([self.day / 20, np.log(self.wavelength) / 0.3])


class Supernova:
    """Bazin's function ``A exp(-(t - t0) / fall) / (1 + exp(-(t - t0) / rise))``, whose numbers change smoothly with the wavelength."""

    def __init__(self, rng: np.random.Generator):
        self.brightest, self.width = rng.uniform(0.45, 0.65), rng.uniform(0.2, 0.35)
        self.peak, self.delay = rng.uniform(30, 45), rng.uniform(0, 20)
        self.rise, self.fall = rng.uniform(2, 5), rng.uniform(15, 30)

    def flux(self, day: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
        redder = np.log(wavelength / 0.6)
        amplitude = 2 * np.exp(-0.5 * (np.log(wavelength / self.brightest) / self.width) ** 2)
        since = day - self.peak - self.delay * redder
        return amplitude * np.exp(-since / (self.fall * np.exp(0.8 * redder)) - np.logaddexp(0, -since / self.rise))

    def points(self, n: int, rng: np.random.Generator, share_off: float) -> Points:
        """``n`` points, of which a share scatters by ten times the stated error."""
        day, wavelength = rng.uniform(0, LENGTH, n), rng.choice(list(BANDS.values()), n)
        error = 0.03 * np.exp(0.5 * rng.normal(size=n))
        noise = rng.normal(size=n) * np.where(rng.random(n) < share_off, 10.0, 1.0)
        return Points(day, wavelength, self.flux(day, wavelength) + error * noise, error)


class GaussianProcess:
    """A length in time and one in wavelength, the stated errors, and white noise beyond them."""

    def __init__(self, known: Points):
        kernel = ConstantKernel(0.3) * Matern([1.0, 2.0], nu=1.5) + WhiteKernel(1e-3, (1e-6, 1.0))
        self.process = GaussianProcessRegressor(kernel, alpha=known.error**2, n_restarts_optimizer=2, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a length at the end of its range is right where nothing changes
            self.process.fit(known.place, known.flux)

    def foretold(self, asked: Points) -> tuple[np.ndarray, np.ndarray]:
        """Log density of the fluxes asked, and the mass below them, each ``(n,)``."""
        mean, spread = self._normal(asked)
        return norm.logpdf(asked.flux, mean, spread), norm.cdf(asked.flux, mean, spread)

    def draws(self, asked: Points, n: int) -> np.ndarray:
        """Fluxes with noise ``(len(asked), n)``."""
        mean, spread = self._normal(asked)
        return mean[:, None] + spread[:, None] * np.random.default_rng(0).normal(size=(len(mean), n))

    def _normal(self, asked: Points) -> tuple[np.ndarray, np.ndarray]:
        mean, spread = self.process.predict(asked.place, return_std=True)
        return mean, np.hypot(spread, asked.error)


@dataclass(frozen=True)
class Flow:
    """A fitted flow, and how a point asked about becomes its condition; methods as above."""

    flow: ConditionalFlow
    given: Callable[[Points], np.ndarray]

    def foretold(self, asked: Points) -> tuple[np.ndarray, np.ndarray]:
        given = self.given(asked)
        return self.flow.log_prob(given, asked.flux), self.flow.cdf(given, asked.flux)

    def draws(self, asked: Points, n: int) -> np.ndarray:
        return self.flow.sample(self.given(asked), n, random_state=0)[..., 0]


def own_flow(known: Points) -> Flow:
    """A flow that knows the points of this supernova only: flux given time, wavelength and stated error."""

    def given(points: Points) -> np.ndarray:
        return np.column_stack([points.place, np.log(points.error)])

    flow = ConditionalFlow(layers=1, bins=4, n_members=5, max_epochs=400, patience=100, random_state=0)
    return Flow(flow.fit(given(known), known.flux), given)


def teach(n_supernovae: int, share_off: float, rng: np.random.Generator) -> ConditionalFlow:
    """The flux given where the nearest points of the same supernova lie and what they measured, from many supernovae."""
    given, fluxes = [], []
    for _ in range(n_supernovae):
        points = Supernova(rng).points(SEEN, rng, share_off)
        left_out = rng.choice(SEEN, 40, replace=False)
        given.append(neighbours(points, points[left_out], left_out))
        fluxes.append(points.flux[left_out])
    return ConditionalFlow(layers=2, hidden=(128, 128), random_state=0).fit(np.vstack(given), np.concatenate(fluxes))


def neighbours(known: Points, asked: Points, own_rows: np.ndarray | None = None) -> np.ndarray:
    """Offsets, fluxes and errors of the nearest known points, and the place and error asked about, ``(n, 4 NEIGHBOURS + 3)``.

    ``own_rows`` of known points asked about are not neighbours of themselves. A step in wavelength counts half.
    """
    offsets = known.place - asked.place[:, None]
    distance = (offsets**2 * [1.0, 0.25]).sum(-1)
    if own_rows is not None:
        distance[np.arange(len(own_rows)), own_rows] = np.inf
    nearest = np.argsort(distance, axis=1)[:, :NEIGHBOURS]
    offsets = np.take_along_axis(offsets, nearest[:, :, None], axis=1)
    own = np.column_stack([asked.place, np.log(asked.error)])
    return np.hstack([offsets.reshape(len(own), -1), known.flux[nearest], np.log(known.error[nearest]), own])


def main(folder: Path, n_taught: int = 1500, n_new: int = 12) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for share_off, what in ((0.0, "normal errors"), (0.1, "a tenth of the points far off")):
        rng = np.random.default_rng(0)
        taught = teach(n_taught, share_off, rng)
        print(f"\n{what}: taught in {taught.history_.seconds:.0f} s, {taught.history_.reliability}")
        found = []
        for _ in range(n_new):
            supernova = Supernova(rng)
            known, asked = supernova.points(SEEN, rng, share_off), supernova.points(300, rng, share_off)
            ways = {
                "Gaussian process": GaussianProcess(known),
                "own flow": own_flow(known),
                "taught flow": Flow(taught, partial(neighbours, known)),
            }
            found.append({name: scores(way, asked, supernova) for name, way in ways.items()})
        print(table(found))
        path = plots.save_figure(figure(ways, supernova, known), folder / f"supernova_{'off' if share_off else 'normal'}.png")
        print(f"{path}: the last of them; black: the flux without noise")


def scores(way: GaussianProcess | Flow, asked: Points, supernova: Supernova) -> dict[str, float]:
    """Of one supernova; a mean is judged by the flux without noise."""
    log_density, below = way.foretold(asked)
    off = way.draws(asked, 400).mean(axis=1) - supernova.flux(asked.day, asked.wavelength)
    return {"log density": log_density.mean(), "RMSE": np.sqrt((off**2).mean()), "90 % holds": np.mean((below > 0.05) & (below < 0.95))}


def table(found: list[dict[str, dict[str, float]]]) -> str:
    """Means over supernovae with their errors, and how often each beat the Gaussian process in log density."""
    reference = np.array([one["Gaussian process"]["log density"] for one in found])
    rows = {}
    for name in found[0]:
        columns = pd.DataFrame([one[name] for one in found])
        error = columns.std() / np.sqrt(len(found))
        rows[name] = {key: f"{columns[key].mean():.3f} +- {error[key]:.3f}" for key in columns}
        rows[name]["beats the process"] = f"{int((columns['log density'] > reference).sum())} of {len(found)}"
    return pd.DataFrame(rows).T.to_string()


def figure(ways: dict[str, GaussianProcess | Flow], supernova: Supernova, known: Points):
    """A row a way, a column for three of the bands: points, 90 % intervals of a well-measured flux, and the truth."""
    drawn = plots.new_figure(9, 6.9)
    axes = drawn.subplots(len(ways), 3, sharex=True, sharey=True)
    days = np.linspace(0, LENGTH, 121)
    for row, (name, way), colour in zip(axes, ways.items(), plots.COLOURS, strict=False):
        for axis, band in zip(row, "gry", strict=True):
            every = Points(days, np.full(121, BANDS[band]), np.zeros(121), np.full(121, 0.02))
            axis.fill_between(days, *np.quantile(way.draws(every, 400), [0.05, 0.95], axis=1), color=colour, alpha=0.35, lw=0)
            axis.plot(days, supernova.flux(days, every.wavelength), "k-", lw=1)
            own = known[known.wavelength == BANDS[band]]
            axis.errorbar(own.day, own.flux, own.error, fmt="k.", ms=4, lw=0.8)
            axis.set_title(f"{name}, {band}")
        row[0].set(ylabel="flux", ylim=(-0.5, 1.8))
    for axis in axes[-1]:
        axis.set(xlabel="day")
    return drawn


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the figures go")
    main(parser.parse_args().folder)
