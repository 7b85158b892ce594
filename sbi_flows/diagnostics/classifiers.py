"""C2ST: can a classifier tell two samples apart?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from sbi_flows._random import RandomState, seed_from
from sbi_flows._validation import as_rows, check_finite, choose, positive
from sbi_flows.diagnostics.ranks import FALSE_ALARM
from sbi_flows.results import Reliability

CLASSIFIERS = ("mlp", "gradient boosting")
_COPIED = 0.05  # share of rows that repeat others, in one sample more than in the other


@dataclass(frozen=True)
class C2ST:
    """How well a classifier separates two samples: 0.5 means not at all, 1 completely.

    Attributes
    ----------
    accuracy : float
        Mean over the cross-validation folds.
    low, high : float
        95 % interval of the accuracy, for a classifier trained on that many draws.
    p_value : float
        That the two samples have one distribution. Never too small, whatever the number of draws: each fold is an exact test, and
        5/3 of the median of five p-values is valid however the folds depend on each other.
    scores : ndarray (n + m,)
        Held-out probability of each row to belong to ``y``; first the rows of ``x``, then those of ``y``.
    n_x : int
    classifier : str
    reliability : Reliability
        Not ok when ``p_value`` is below the false-alarm rate asked for.
    """

    accuracy: float
    low: float
    high: float
    p_value: float
    scores: np.ndarray = field(repr=False)
    n_x: int
    classifier: str
    reliability: Reliability

    def __repr__(self) -> str:
        head = f"C2ST({self.accuracy:.3f} [{self.low:.3f}, {self.high:.3f}], p={self.p_value:.2g}, {self.classifier})"
        return f"{head}   {self.reliability}"


def c2st(
    x: Any,
    y: Any,
    *,
    classifier: str = "mlp",
    n_folds: int = 5,
    false_alarm: float = FALSE_ALARM,
    random_state: RandomState = None,
) -> C2ST:
    """Classifier two-sample test.

    Parameters
    ----------
    x : array_like (n, d)
        The reference: both samples are standardised by its means and standard deviations.
    y : array_like (m, d)
        The sample to judge. Rows of both must be independent draws: thin chains first. Copies of rows in one of them, as resampling by
        weights makes, are learned by heart; the verdict then says so.
    classifier : "mlp" or "gradient boosting"
        "mlp" is that of the simulation-based inference benchmark: two hidden layers of 10 d units, relu, at most 1000 epochs.
        "gradient boosting" is many times faster above 1e4 rows; its accuracies are not comparable with published ones.
    n_folds : int
        Of the cross-validation, shuffled.
    false_alarm : float
        Chance that two samples of one distribution are told apart.
    random_state : optional

    Returns
    -------
    C2ST

    Raises
    ------
    ValueError
        When columns differ, values are not finite, or rows are too few.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> c2st(rng.normal(size=(300, 1)), rng.normal(3, size=(300, 1)), random_state=0).accuracy > 0.9
    True

    Notes
    -----
    Classes of unequal size raise the accuracy of guessing; pass equal numbers of rows to compare with published values.

    References
    ----------
    Lopez-Paz & Oquab 2017, "Revisiting classifier two-sample tests", ICLR, arXiv:1610.06545. Lueckmann, Boelts, Greenberg, Gonçalves &
    Macke 2021, "Benchmarking simulation-based inference", AISTATS, arXiv:2101.04653. Rüger 1978, "Das maximale Signifikanzniveau des
    Tests 'Lehne H0 ab, wenn k unter n gegebenen Tests zur Ablehnung führen'", Metrika 25 (the median of p-values). Nadeau & Bengio 2003,
    "Inference for the generalization error", Machine Learning 52 (the interval).
    """
    choose("classifier", classifier, CLASSIFIERS)
    positive("n_folds", n_folds, integer=True)
    x, y = two_samples(x, y, at_least=2 * n_folds)
    scores, accuracies, p_values, notes = cross_validated_scores(x, y, classifier, n_folds, seed_from(random_state))
    accuracy = float(np.mean(accuracies))
    # Folds share training rows; Nadeau and Bengio's factor stands for their correlation.
    error = np.std(accuracies, ddof=1) * np.sqrt(1 / n_folds + 1 / (n_folds - 1))
    half = float(stats.t.ppf(0.975, n_folds - 1) * error)
    middle = (n_folds + 1) // 2
    p_value = float(min(1.0, n_folds / middle * np.sort(p_values)[middle - 1]))
    reasons = []
    if p_value < false_alarm:
        apart = f"a classifier tells the samples apart with accuracy {accuracy:.3f} (p={p_value:.2g})"
        reasons.append(f"{apart}: {_copies(x, y) or 'not one distribution'}")
    low, high = max(0.0, accuracy - half), min(1.0, accuracy + half)
    return C2ST(accuracy, low, high, p_value, scores, len(x), classifier, Reliability.from_reasons(reasons, notes))


def _copies(x: np.ndarray, y: np.ndarray) -> str:
    """What makes the samples differ besides their distributions: copies of rows in one of them alone."""
    repeated = [1 - len(np.unique(rows, axis=0)) / len(rows) for rows in (x, y)]
    if abs(repeated[0] - repeated[1]) < _COPIED:
        return ""
    which, share = ("x", repeated[0]) if repeated[0] > repeated[1] else ("y", repeated[1])
    return f"by copies, it may be, as {share:.0%} of the rows of {which} repeat others; draw at most as many by weights as these are worth"


def cross_validated_scores(
    x: np.ndarray, y: np.ndarray, classifier: str, n_folds: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Held-out probabilities ``(n + m,)`` to belong to y; accuracies and exact one-sided p-values of the folds; notes."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import KFold

    if n_folds < 2:
        raise ValueError(f"Expected at least 2 folds; got {n_folds}.")
    seed = seed % 2**32
    centre, spread = x.mean(axis=0), x.std(axis=0, ddof=1)
    rows = (np.concatenate([x, y]) - centre) / np.where(spread > 0, spread, 1.0)
    labels = np.repeat([0, 1], [len(x), len(y)])
    scores = np.empty(len(rows))
    accuracies, p_values, notes = [], [], []
    for train, test in KFold(n_folds, shuffle=True, random_state=seed).split(rows):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model = _classifier(classifier, rows.shape[1], seed).fit(rows[train], labels[train])
        if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
            notes = ["the classifier had not converged in its 1000 epochs: the accuracy may be a little low"]
        scores[test] = model.predict_proba(rows[test])[:, 1]
        guessed, true = scores[test] > 0.5, labels[test] == 1
        accuracies.append(np.mean(guessed == true))
        # Given the classifier, labels of held-out rows of one distribution are a random arrangement: Fisher's exact test.
        p_values.append(stats.hypergeom.sf((guessed & true).sum() - 1, len(test), true.sum(), guessed.sum()))
    return scores, np.array(accuracies), np.array(p_values), notes


def two_samples(x: Any, y: Any, at_least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of draws as finite float64 with the same columns."""
    arrays = []
    for value, name in ((x, "x"), (y, "y")):
        array = as_rows(value, name).double().cpu().numpy()
        check_finite(array, name)
        if len(array) < at_least:
            raise ValueError(f"Expected at least {at_least} rows in {name}; got {len(array)}. Draw more samples.")
        arrays.append(array)
    if arrays[0].shape[1] != arrays[1].shape[1]:
        raise ValueError(f"Expected two samples with the same columns; got {arrays[0].shape} and {arrays[1].shape}.")
    return arrays[0], arrays[1]


def _classifier(name: str, d: int, seed: int):
    if name == "mlp":
        from sklearn.neural_network import MLPClassifier

        return MLPClassifier((10 * d, 10 * d), activation="relu", solver="adam", max_iter=1000, random_state=seed)
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=100, early_stopping=True, random_state=seed)
