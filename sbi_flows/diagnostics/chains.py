"""Do two sets of chains sample one distribution, and which of them got there cheaper?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows._validation import positive
from sbi_flows.diagnostics.chain_input import common_columns, cut_angles, has_names, misread, read_chains, same_draws, without_fixed
from sbi_flows.diagnostics.classifiers import C2ST, c2st
from sbi_flows.diagnostics.distances import BINS, hellinger, hellinger_floor, hellinger_joint
from sbi_flows.diagnostics.ranks import FALSE_ALARM
from sbi_flows.diagnostics.uniformity import p_text
from sbi_flows.results import Chains, Reliability
from sbi_flows.samplers import Convergence, convergence

if TYPE_CHECKING:
    import pandas

# Independent draws of each set from which a distance over 50 bins says something of the distributions (FACTS 7b).
ENOUGH = 10_000
# Rows for the joint checks are this share of the effective size: neighbours among them are then correlated by a few percent at most.
_SPACING = 0.5
_LEAST_ROWS = 50
# Of the evaluations: fewer gradients were a check or a trial and no part of what the draws cost.
_GRADIENT_SHARE = 0.01
# Blocks of so many autocorrelation times are nearly independent; with fewer of them their spread is not known.
_BLOCK_TIMES = 10
_LEAST_BLOCKS = 20
_UNFIT_DIFFER = "the draws at hand differ, as those of runs that have not mixed do: that says nothing of what they would sample"


@dataclass(frozen=True)
class ChainComparison:
    """What sets two runs apart; ``plots.compare_chains`` draws it.

    Attributes
    ----------
    table : DataFrame
        One row a parameter. ``hellinger`` and ``hellinger_floor``: the distance of the marginals, and what two sets of draws of these
        effective sizes (of the bins' counts) from one distribution show. ``ks, ks_p``: the Kolmogorov-Smirnov distance and its p-value
        at the bulk sizes, on the safe side. ``mean_shift, sd_shift``: b less a in standard errors of both. ``mean_shift_in_sd,
        sd_ratio``: the same in standard deviations of a, and b over a. Then ``mean, sd, rhat, ess_bulk, ess_tail`` of each, with its
        label.
    efficiency : DataFrame
        One row a run: ``ess`` (the smallest bulk ESS), ``n_evaluations, n_gradients, seconds``, ``ess_per_evaluation,
        ess_per_gradient, ess_per_second``, NaN where not known, and a gradient where fewer than a hundredth of the evaluations had one.
    hellinger_joint, hellinger_joint_floor : float
        By distances to neighbours, and what two halves of one sample show; NaN, as ``c2st`` is None, where independent draws are too few
        for it, which a note then says. Parameters that are the same number in all draws of both are left out.
    c2st : C2ST or None
        Of draws thinned to independence; None where these are too few.
    p_value : float
        The smallest of all p-values times their number; it means nothing where a run is not fit to be compared.
    a, b : Chains
        What was compared: the parameters of both, in one order.
    labels : (str, str)
    reliability : Reliability
        Not ok when the two differ, or one of them is not fit to be compared.
    differs : bool
        Whether a difference was found between two runs that are fit to be compared.
    unfit : tuple of str
        Labels of the runs that are not, by their own R-hat and effective sizes, or by the correlations of an array whose axes are in
        another order than was taken.
    """

    table: pandas.DataFrame = field(repr=False)
    efficiency: pandas.DataFrame = field(repr=False)
    hellinger_joint: float
    hellinger_joint_floor: float
    c2st: C2ST | None
    p_value: float
    a: Chains = field(repr=False)
    b: Chains = field(repr=False)
    labels: tuple[str, str]
    reliability: Reliability
    differs: bool
    unfit: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """In words: "agree", "DIFFER", or "NOT COMPARABLE"."""
        if self.unfit:
            return "NOT COMPARABLE"
        return "DIFFER" if self.differs else "agree"

    def __repr__(self) -> str:
        columns = ["hellinger", "hellinger_floor", "ks_p", "mean_shift", "sd_shift"]
        p = "" if self.unfit else ": p not known" if math.isnan(self.p_value) else f": p{p_text(self.p_value)}"
        head = f"ChainComparison({' and '.join(self.labels)}{p})   {self.verdict}"
        said = [*self.reliability.reasons, *(f"note: {note}" for note in self.reliability.notes)]
        rows = self.table[columns].to_string(float_format=lambda v: f"{v:.3g}").splitlines()
        joint = f"joint Hellinger {self.hellinger_joint:.3f} (floor {self.hellinger_joint_floor:.3f})"
        last = "joint Hellinger and C2ST: not computed" if self.c2st is None else f"{joint}, C2ST {self.c2st.accuracy:.3f}"
        return "\n    ".join([head, *said, *rows, last])


def compare_chains(
    a: Any,
    b: Any,
    *,
    labels: tuple[str, str] = ("a", "b"),
    periods: Mapping[str, float] | None = None,
    seconds: tuple[float | None, float | None] = (None, None),
    n_evaluations: tuple[int | None, int | None] = (None, None),
    classifier: str = "gradient boosting",
    max_rows: int = 5000,
    false_alarm: float = FALSE_ALARM,
    random_state: RandomState = None,
) -> ChainComparison:
    """Compare two runs, such as a new sampler's with a reference.

    Parameters
    ----------
    a, b
        `Chains`, arrays ``(chain, draw, d)`` or ``(n, d)``, lists of chains, ArviZ ``InferenceData``, emcee samplers, DataFrames (which may
        have columns ``chain`` and ``draw``), `WeightedSamples`, `SMCResult`, `TemperedChains`, or a fitted `FlowSampler`, with all it
        spent. Weighted draws are resampled to their effective size, which a note says. ``a`` is the reference where it matters which is.
        An emcee sampler is taken with all its steps: ``as_chains(sampler, burn=2000)`` leaves the first out.
        Parameters are matched by name where both have names; those fixed at one value in both are left out, which a note says.
    labels : (str, str)
    periods : mapping of str to float, optional
        The periods of parameters that are angles.
    seconds, n_evaluations : pair, optional
        What the runs cost in all; read from ``Chains.info`` where that tells. Counts of ``Chains.stats`` leave the warm-up out, which a
        note then says.
    classifier : "gradient boosting" or "mlp"
        Of the joint test, as in :func:`c2st`.
    max_rows : int
        Of each, at most, for the joint distance and the classifier.
    false_alarm : float
        Chance that two converged runs of one distribution are said to differ.
    random_state : optional
        Of the joint checks.

    Returns
    -------
    ChainComparison

    Raises
    ------
    ValueError
        When the two have no parameters in common, draws are not finite, or particles of ``smc`` were moved by chains (``flow=None``).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> reference, new = rng.normal(size=(4, 1000, 2)), rng.normal([0.0, 0.3], 1.0, size=(4, 1000, 2))
    >>> comparison = compare_chains(reference, new, random_state=0)
    >>> comparison.verdict, bool(abs(comparison.table.mean_shift_in_sd["x1"] - 0.3) < 0.1)
    ('DIFFER', True)

    Notes
    -----
    Autocorrelation enters by effective sizes: of the ranks for Kolmogorov-Smirnov, of x and of its squared deviation for the shifts. A
    chain that has not found a mode does not know it: two runs that miss the same one agree.

    References
    ----------
    Vehtari et al. 2021, Bayesian Analysis 16(2) (R-hat, ESS); Stephens 1970, J. R. Statist. Soc. B 32 (KS at finite size).
    """
    if len(labels) != 2 or labels[0] == labels[1]:
        raise ValueError(f"Expected two different labels; got {labels!r}.")
    positive("max_rows", max_rows, integer=True)
    positive("false_alarm", false_alarm)
    rng = numpy_generator(random_state)
    (first, notes_a), (second, notes_b) = (read_chains(each, label) for each, label in zip((a, b), labels, strict=True))
    first, second, left_out = common_columns(first, second, labels, (not has_names(a), not has_names(b)))
    first, second, unlike, fixed = without_fixed(first, second, labels)
    notes = [*notes_a, *notes_b, *left_out, *fixed]
    if periods:
        first, second = cut_angles(first, second, periods)
    runs = [
        _with_costs(run, cost, count) for run, cost, count in zip((first, second), seconds, n_evaluations, strict=True)
    ]
    scaled = [_angles_to_radians(run, periods or {}) for run in runs]
    judged = [convergence(x, run.names, circular=[n in (periods or {}) for n in run.names]) for x, run in zip(scaled, runs, strict=True)]
    table = _table(runs, judged, labels)
    distance, floor, classified = _joint(runs, judged, classifier, max_rows, false_alarm / (3 * len(table) + 1), rng)
    p_values = np.concatenate([table["ks_p"], _two_sided(table["mean_shift"]), _two_sided(table["sd_shift"])])
    if classified is not None:
        p_values = np.append(p_values, classified.p_value)
    known = p_values[np.isfinite(p_values)]
    p_value = float(min(1.0, known.min() * len(known))) if len(known) else math.nan
    against = [[*misread(run), *each.reliability.reasons] for run, each in zip(runs, judged, strict=True)]
    unfit = tuple(label for label, reasons in zip(labels, against, strict=True) if reasons)
    # Errors and p-values rest on effective sizes that chains know which have mixed, and only they.
    differs = bool(unlike) or (not unfit and p_value < false_alarm)
    reasons = [f"{label} is not fit to be compared: {r}" for label, each in zip(labels, against, strict=True) for r in each]
    reasons += unlike
    unsaid = [_UNFIT_DIFFER] if unfit and p_value < false_alarm else []
    if differs and p_value < false_alarm:
        reasons.insert(0, _difference(table, classified, p_value, labels))
    return ChainComparison(
        table,
        _efficiency(runs, judged, labels),
        distance,
        floor,
        classified,
        p_value,
        runs[0],
        runs[1],
        labels,
        Reliability.from_reasons(reasons, [*notes, *unsaid, *_caveats(runs, judged, table, classified, labels)]),
        differs,
        unfit,
    )


def _with_costs(run: Chains, seconds: float | None, n_evaluations: int | None) -> Chains:
    given = {"seconds": seconds, "n_evaluations": n_evaluations}
    return replace(run, info={**run.info, **{key: value for key, value in given.items() if value is not None}})


def _angles_to_radians(run: Chains, periods: Mapping[str, float]) -> np.ndarray:
    return run.samples * np.array([2 * np.pi / periods.get(name, 2 * np.pi) for name in run.names])


# --- One parameter at a time ----------------------------------------------------------------------------------------------------


def _table(runs: list[Chains], judged: list[Convergence], labels: tuple[str, str]) -> pandas.DataFrame:
    import pandas as pd

    rows = []
    for j in range(runs[0].features):
        x, y = (run.samples[..., j] for run in runs)
        sizes = [min(each.ess_bulk[j], run.samples[..., 0].size) for each, run in zip(judged, runs, strict=True)]
        ks = float(stats.ks_2samp(x.ravel(), y.ravel(), method="asymp").statistic)
        moments = [_moments(each) for each in (x, y)]
        (mean_x, sd_x, mean_error_x, sd_error_x), (mean_y, sd_y, mean_error_y, sd_error_y) = moments
        with np.errstate(divide="ignore", invalid="ignore"):
            row = {
                "hellinger": float(hellinger(x.reshape(-1, 1), y.reshape(-1, 1))[0]),
                "hellinger_floor": hellinger_floor(_ess_of_bins(x, x, y, sizes[0]), _ess_of_bins(y, x, y, sizes[1])),
                "ks": ks,
                "ks_p": _ks_p_value(ks, *sizes),
                "mean_shift": (mean_y - mean_x) / np.hypot(mean_error_x, mean_error_y),
                "sd_shift": (sd_y - sd_x) / np.hypot(sd_error_x, sd_error_y),
                "mean_shift_in_sd": np.float64(mean_y - mean_x) / sd_x,
                "sd_ratio": np.float64(sd_y) / sd_x,
            }
        for label, each, (mean, sd, _, _) in zip(labels, judged, moments, strict=True):
            row |= {f"mean_{label}": mean, f"sd_{label}": sd, f"rhat_{label}": each.rhat[j]}
            row |= {f"ess_bulk_{label}": each.ess_bulk[j], f"ess_tail_{label}": each.ess_tail[j]}
        rows.append(row)
    return pd.DataFrame(rows, index=pd.Index(runs[0].names, name="parameter"))


def _moments(x: np.ndarray) -> tuple[float, float, float, float]:
    """Mean, standard deviation, and one standard error of each, of draws ``(chain, draw)``."""
    mean, sd = float(x.mean()), float(x.std())
    squares = (x - mean) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_error = sd / math.sqrt(_ess_of_mean(x))
        sd_error = float(np.float64(squares.std()) / math.sqrt(_ess_of_mean(squares)) / (2 * np.float64(sd)))
    return mean, sd, mean_error, sd_error


def _ess_of_mean(x: np.ndarray) -> float:
    import arviz as az

    chains, draws = x.shape
    if draws < 8 or np.ptp(x) == 0:
        return math.nan
    if chains == 1:
        x = x[:, : draws // 2 * 2].reshape(2, draws // 2)
    return min(float(az.ess(x, method="mean")), float(x.size))


def _ess_of_bins(draws: np.ndarray, x: np.ndarray, y: np.ndarray, ess: float) -> float:
    """The number of independent draws whose counts in the bins of the Hellinger distance would vary as much as those of ``draws``.

    A chain forgets in which narrow bin it was long before it forgets in which half: by the ``ess`` of the mean, the floor of
    autocorrelated chains would be several times too high.
    """
    chains, n = draws.shape
    length = int(np.ceil(_BLOCK_TIMES * draws.size / ess)) if ess > 0 else n + 1
    per_chain = n // length
    if chains * per_chain < _LEAST_BLOCKS:
        return ess
    low, high = np.quantile(np.concatenate([x.ravel(), y.ravel()]), [0.001, 0.999])
    edges = np.linspace(low, high, BINS + 1)
    bins = np.clip(np.searchsorted(edges, draws[:, : per_chain * length], side="right"), 0, BINS + 1)
    blocks = bins.reshape(chains * per_chain, length)
    shares = np.stack([np.bincount(block, minlength=BINS + 2) for block in blocks])[:, 1:-1] / length
    p = shares.mean(axis=0)
    held = p > 0
    variance = shares.var(axis=0, ddof=1)[held].mean() / len(blocks) if held.any() else 0.0
    expected = (p * (1 - p))[held].mean() if held.any() else 0.0
    return float(min(expected / variance, draws.size)) if variance > 0 else ess


def _ks_p_value(distance: float, ess_x: float, ess_y: float) -> float:
    if not (np.isfinite(ess_x) and np.isfinite(ess_y)):
        return math.nan
    root = math.sqrt(ess_x * ess_y / (ess_x + ess_y))
    return float(stats.kstwobign.sf((root + 0.12 + 0.11 / root) * distance))


def _two_sided(shift: pandas.Series) -> np.ndarray:
    return 2 * stats.norm.sf(np.abs(shift.to_numpy()))


# --- All parameters together ----------------------------------------------------------------------------------------------------


def _joint(
    runs: list[Chains], judged: list[Convergence], classifier: str, max_rows: int, false_alarm: float, rng: np.random.Generator
) -> tuple[float, float, C2ST | None]:
    """Joint Hellinger distance, its floor, and the classifier's test, of thinned draws in equal number."""
    n = int(min(_SPACING * min(_worth(run, each) for run, each in zip(runs, judged, strict=True)), max_rows))
    if n < _LEAST_ROWS:
        return math.nan, math.nan, None
    thinned = [_spaced(run, n) for run in runs]
    distance, floor = hellinger_joint(*thinned, random_state=rng)
    return distance, floor, c2st(*thinned, classifier=classifier, false_alarm=false_alarm, random_state=rng)


def _worth(run: Chains, judged: Convergence) -> float:
    """Independent draws by the slowest parameter; none where one stands still, or it is not known."""
    return min(float(np.nan_to_num(judged.ess_bulk).min()), run.samples[..., 0].size)


def _spaced(run: Chains, n: int) -> np.ndarray:
    """``n`` draws at equal distances along the chains, one after the other."""
    rows = run.samples.reshape(-1, run.features)
    return rows[np.linspace(0, len(rows) - 1, n).astype(int)]


# --- What it cost, and what to say ----------------------------------------------------------------------------------------------


def _efficiency(runs: list[Chains], judged: list[Convergence], labels: tuple[str, str]) -> pandas.DataFrame:
    import pandas as pd

    rows = []
    for run, each in zip(runs, judged, strict=True):
        ess = float(np.min(each.ess_bulk))
        counts = {key: _cost(run, key) for key in ("n_evaluations", "n_gradients", "seconds")}
        rates = {f"ess_per_{key.removeprefix('n_').removesuffix('s')}": ess / value if value else math.nan for key, value in counts.items()}
        if counts["n_gradients"] < _GRADIENT_SHARE * counts["n_evaluations"]:
            rates["ess_per_gradient"] = math.nan
        rows.append({"ess": ess, **counts, **rates})
    return pd.DataFrame(rows, index=pd.Index(labels, name="run"))


def _cost(run: Chains, key: str) -> float:
    if key in run.info:
        return float(run.info[key])
    return float(np.sum(run.stats[key])) if key in run.stats else math.nan


def _difference(table: pandas.DataFrame, classified: C2ST | None, p_value: float, labels: tuple[str, str]) -> str:
    tests = np.column_stack([table["ks_p"], _two_sided(table["mean_shift"]), _two_sided(table["sd_shift"])])
    smallest = np.nanmin(tests, axis=1, initial=1.0)
    head = f"{labels[0]} and {labels[1]} do not sample one distribution (p{p_text(p_value)})"
    if classified is not None and classified.p_value <= smallest.min():
        return f"{head}: a classifier of all parameters together tells them apart with accuracy {classified.accuracy:.3f}"
    row = table.iloc[int(np.argmin(smallest))]
    return (
        f"{head}, most in {row.name}: its mean is shifted by {row.mean_shift:+.1f} standard errors ({row.mean_shift_in_sd:+.3f} standard "
        f"deviations), its standard deviation {row.sd_ratio:.3f} times as large, its marginal at a Hellinger distance of "
        f"{row.hellinger:.3f} (floor {row.hellinger_floor:.3f})"
    )


def _caveats(
    runs: list[Chains], judged: list[Convergence], table: pandas.DataFrame, classified: C2ST | None, labels: tuple[str, str]
) -> list[str]:
    said = same_draws(runs[0], runs[1], labels)
    for run, label in zip(runs, labels, strict=True):
        if run.ensemble:
            said.append(f"{label} is an ensemble, whose walkers depend on each other: R-hat is no proof, and effective sizes are too high")
        if "n_evaluations" not in run.info and "n_evaluations" in run.stats:
            said.append(f"the evaluations of {label} are those of its draws: what warm-up and training took is not known")
        if run.reliability is not None and not run.reliability.ok:
            said.append(f"{label} came with a verdict of its own: {'; '.join(run.reliability.reasons)}")
    few = [label for label in labels if table[f"ess_bulk_{label}"].min() < ENOUGH]
    if few:
        said.append(
            f"fewer than {ENOUGH} independent draws in {' and '.join(few)}: compare each Hellinger distance with its floor, not with zero"
        )
    if classified is None:
        worth = (f"{_worth(run, each):.0f} in {label}" for run, each, label in zip(runs, judged, labels, strict=True))
        needed = f"of each {_LEAST_ROWS / _SPACING:.0f} are needed"
        said.append(f"too few independent draws for the joint checks: {' and '.join(worth)}, {needed}")
    return said
