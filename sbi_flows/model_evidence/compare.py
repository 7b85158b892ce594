"""Models against each other: Bayes factors, posterior probabilities and draws averaged over models."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit, logsumexp

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows.results import Chains, Evidence, WeightedSamples, words

if TYPE_CHECKING:
    from typing import TypeAlias

    import pandas

    Draws: TypeAlias = np.ndarray | pandas.DataFrame | Chains | WeightedSamples


def compare_models(
    evidences: Mapping[str, Evidence],
    reference: str | None = None,
    prior_odds: Mapping[str, float] | None = None,
) -> pandas.DataFrame:
    """Bayes factors against a reference model and posterior probabilities of the models, with errors.

    Parameters
    ----------
    evidences : mapping of str to Evidence
        One evidence a model, all for the same data.
    reference : str, optional
        The model that Bayes factors are taken against; the first by default.
    prior_odds : mapping of str to float, optional
        Relative prior weights of the models, positive, in any normalisation; equal by default.

    Returns
    -------
    pandas.DataFrame
        Indexed by model, the reliable ones first and by falling evidence. Columns:

        ``log_z, log_z_err``
            As given.
        ``log_bf, log_bf_err, bf``
            ln(Z / Z of the reference), one standard error, and its exponential.
        ``posterior_probability, posterior_probability_low, posterior_probability_high``
            Among the reliable models; the ends carry one standard error of the evidences.
        ``kass_raftery``
            The evidence in the words of Kass & Raftery; two of them when the error spans a boundary.
        ``reliable, reasons``
            The verdict on the model's own evidence. An unreliable model has no rank and no probability.
        ``rank``
            1 for the largest posterior probability; missing for an unreliable model.

    Raises
    ------
    TypeError, ValueError
        No model; something that is not an `Evidence`; an unknown reference; prior odds that do not name every model or are not
        positive; a reference whose ln Z is not a number.

    References
    ----------
    Kass & Raftery 1995, "Bayes factors", JASA 90, 773.

    Examples
    --------
    >>> import numpy as np
    >>> from sbi_flows import evidence
    >>> x = np.random.default_rng(0).normal(size=(1000, 1))
    >>> z_flat = evidence(x, -0.5 * x[:, 0] ** 2, random_state=0)
    >>> z_tilted = evidence(x, 1 - 0.5 * x[:, 0] ** 2, random_state=0)
    >>> table = compare_models({"flat": z_flat, "tilted": z_tilted})
    >>> round(float(table.loc["tilted", "log_bf"]), 1)
    1.0
    """
    import pandas as pd

    names = _check_evidences(evidences)
    reference = names[0] if reference is None else reference
    _check_name(reference, names, "reference")
    if not np.isfinite(evidences[reference].log_z):
        raise ValueError(
            f"Expected the reference {reference!r} to have a finite ln Z; got {evidences[reference].log_z}. "
            "Give another model as the reference."
        )
    log_z = np.array([evidences[name].log_z for name in names])
    error = np.array([evidences[name].log_z_err for name in names])
    usable = np.array([_usable(evidences[name]) for name in names])
    log_prior = _log_prior(names, prior_odds)
    at = names.index(reference)

    log_bf = log_z - log_z[at]
    log_bf_err = np.hypot(error, error[at])
    log_bf_err[at] = 0.0
    probability, low, high = np.full((3, len(names)), np.nan)
    if usable.any():
        probability[usable], low[usable], high[usable] = _probabilities((log_z + log_prior)[usable], error[usable])
    with np.errstate(over="ignore"):
        bf = np.exp(log_bf)
    table = pd.DataFrame(
        {
            "log_z": log_z,
            "log_z_err": error,
            "log_bf": log_bf,
            "log_bf_err": log_bf_err,
            "bf": bf,
            "posterior_probability": probability,
            "posterior_probability_low": low,
            "posterior_probability_high": high,
            "kass_raftery": [
                _verdict(b, e, name, reference, usable[i] and usable[at])
                for i, (b, e, name) in enumerate(zip(log_bf, log_bf_err, names, strict=True))
            ],
            "reliable": usable,
            "reasons": ["; ".join(_reasons(evidences[name])) for name in names],
        },
        index=pd.Index(names, name="model"),
    )
    order = np.lexsort((-np.nan_to_num(log_z, nan=-np.inf), -np.nan_to_num(log_z + log_prior, nan=-np.inf), ~usable))
    table = table.iloc[order]
    ranks = [i + 1 if ok else pd.NA for i, ok in enumerate(table["reliable"])]
    return table.assign(rank=pd.array(ranks, dtype="Int64"))


def average_models(
    draws_by_model: Mapping[str, Draws],
    evidences: Mapping[str, Evidence],
    n_samples: int,
    *,
    quantity: str | Iterable[str] | Callable | Mapping[str, Callable],
    prior_odds: Mapping[str, float] | None = None,
    random_state: RandomState = None,
) -> pandas.DataFrame:
    """Posterior draws of a quantity that every model predicts, each model in proportion to its posterior probability.

    Parameters
    ----------
    draws_by_model : mapping of str to draws
        Posterior draws a model: ``(n, d)``, ``(chain, draw, d)``, a DataFrame, `Chains` or `WeightedSamples`.
    evidences : mapping of str to Evidence
        For the same models. All must be reliable: a weight that cannot be believed spoils the whole average.
    n_samples : int
        Number of averaged draws.
    quantity : str, iterable of str, callable, or mapping of str to callable
        Columns that all models share, by name; or a function of ``(n, d)`` draws giving ``(n,)`` or ``(n, k)``; or one a model.
    prior_odds : mapping of str to float, optional
        As in `compare_models`.
    random_state : int, generator or None

    Returns
    -------
    pandas.DataFrame
        ``n_samples`` rows: a column ``model`` and one a quantity. A model's rows repeat only if its share exceeds its draws.

    Raises
    ------
    ValueError
        Models without draws or without evidence, an unreliable evidence, unknown columns, a quantity of unequal width.

    References
    ----------
    Hoeting, Madigan, Raftery & Volinsky 1999, "Bayesian model averaging: a tutorial", Statistical Science 14, 382.

    Examples
    --------
    >>> import numpy as np
    >>> from sbi_flows import evidence
    >>> x = np.random.default_rng(0).normal(size=(1000, 1))
    >>> z_flat = evidence(x, -0.5 * x[:, 0] ** 2, random_state=0)
    >>> z_tilted = evidence(x, 1 - 0.5 * x[:, 0] ** 2, random_state=0)
    >>> both = {"flat": x, "tilted": x}
    >>> len(average_models(both, {"flat": z_flat, "tilted": z_tilted}, 1000, quantity=lambda theta: theta[:, 0], random_state=0))
    1000
    """
    import pandas as pd

    names = _check_evidences(evidences)
    if set(names) != set(draws_by_model):
        raise ValueError(f"Expected draws and evidences of the same models; got {sorted(draws_by_model)} and {sorted(names)}.")
    if not isinstance(n_samples, int | np.integer) or n_samples < 1:
        raise ValueError(f"Expected n_samples to be a positive integer; got {n_samples!r}.")
    doubtful = [name for name in names if not _usable(evidences[name])]
    if doubtful:
        why = "; ".join(_reasons(evidences[doubtful[0]]))
        raise ValueError(
            f"Expected reliable evidences; those of {', '.join(doubtful)} are not ({why}). "
            "Repair them, or leave these models out of both mappings and say so."
        )
    rng = numpy_generator(random_state)
    log_z = np.array([evidences[name].log_z for name in names]) + _log_prior(names, prior_odds)
    probability = np.exp(log_z - logsumexp(log_z))
    # Systematic allocation: each model's count is its share of n_samples rounded up or down, unbiased.
    positions = (rng.random() + np.arange(n_samples)) / n_samples
    which = np.searchsorted(np.cumsum(probability), positions).clip(max=len(names) - 1)
    counts = np.bincount(which, minlength=len(names))
    parts = [_share(name, draws_by_model[name], quantity, int(n), rng) for name, n in zip(names, counts, strict=True) if n]
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) > 1:
        raise ValueError(f"Expected the quantity to have one width in all models; got {widths}. Return as many columns in each.")
    table = pd.concat(parts, ignore_index=True)
    return table.iloc[rng.permutation(len(table))].reset_index(drop=True)


# --- Numbers ------------------------------------------------------------------------------------------------------------------


def _probabilities(log_weight: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Posterior probabilities and their one-sigma ends.

    On the logit scale, ``logit p_i = w_i - ln sum_{j != i} e^{w_j}``, the delta method is accurate and the ends stay in (0, 1).
    """
    n = len(log_weight)
    if n == 1:
        return np.ones(1), np.ones(1), np.ones(1)
    others = np.where(np.eye(n, dtype=bool), -np.inf, log_weight)        # row i: the weights of all but i
    log_rest = logsumexp(others, axis=1)
    logit = log_weight - log_rest
    share = np.exp(others - log_rest[:, None])
    spread = np.sqrt(error**2 + (share**2) @ error**2)
    return expit(logit), expit(logit - spread), expit(logit + spread)


def _log_prior(names: list[str], prior_odds: Mapping[str, float] | None) -> np.ndarray:
    if prior_odds is None:
        return np.zeros(len(names))
    for name in prior_odds:
        _check_name(name, names, "prior_odds")
    missing = [name for name in names if name not in prior_odds]
    if missing:
        raise ValueError(f"Expected prior_odds for every model; {', '.join(missing)} missing. Give 1 for no preference.")
    odds = np.array([prior_odds[name] for name in names], dtype=np.float64)
    if not (np.isfinite(odds) & (odds > 0)).all():
        raise ValueError(f"Expected positive finite prior_odds; got {dict(prior_odds)}. To exclude a model leave it out.")
    return np.log(odds)


def _verdict(log_bf: float, error: float, name: str, reference: str, usable: bool) -> str:
    if not usable:
        return "not ranked: evidence not reliable"
    if name == reference:
        return "reference"
    low, high = words(log_bf - error), words(log_bf + error)
    return low if low == high else f"{low} to {high}"


# --- Input --------------------------------------------------------------------------------------------------------------------


def _check_evidences(evidences: Mapping[str, Evidence]) -> list[str]:
    if not isinstance(evidences, Mapping) or not evidences:
        got = "an empty one" if isinstance(evidences, Mapping) else type(evidences).__name__
        raise ValueError(
            f"Expected a mapping of model name to Evidence with at least one model; got {got}. "
            "Write compare_models({'a': evidence(...), 'b': evidence(...)})."
        )
    for name, value in evidences.items():
        if not isinstance(value, Evidence):
            got = type(value).__name__
            raise TypeError(f"Expected an Evidence for model {name!r}; got {got}. Pass what evidence(...) returned.")
    return list(evidences)


def _check_name(name: str, names: list[str], what: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Expected {what} to name one of {', '.join(names)}; got {name!r}.{hint}")


def _usable(value: Evidence) -> bool:
    return bool(value.reliability.ok and np.isfinite(value.log_z) and np.isfinite(value.log_z_err))


def _reasons(value: Evidence) -> tuple[str, ...]:
    if not np.isfinite(value.log_z) or not np.isfinite(value.log_z_err):
        return (*value.reliability.reasons, f"ln Z = {value.log_z} +- {value.log_z_err} is not finite")
    return value.reliability.reasons


def _share(name: str, draws: Draws, quantity, n: int, rng: np.random.Generator) -> pandas.DataFrame:
    """``n`` draws of the quantity from one model, labelled by it."""
    import pandas as pd

    rows = _as_frame(draws, n, rng)
    if len(rows) == 0:
        raise ValueError(f"Expected draws of model {name!r}; got none.")
    rows = rows.iloc[rng.choice(len(rows), size=n, replace=n > len(rows))]
    if isinstance(quantity, str):
        quantity = [quantity]
    if isinstance(quantity, Mapping):
        if name not in quantity:
            raise ValueError(f"Expected a quantity for every model; {name!r} has none among {sorted(quantity)}.")
        quantity = quantity[name]
    if not callable(quantity):
        missing = [column for column in quantity if column not in rows]
        if missing:
            raise ValueError(f"Expected model {name!r} to have columns {missing}; it has {list(rows.columns)}.")
        return rows[list(quantity)].assign(model=name).reset_index(drop=True)
    values = np.asarray(quantity(rows.to_numpy()))
    if values.ndim not in (1, 2) or len(values) != n:
        raise ValueError(f"Expected the quantity of model {name!r} to have shape ({n},) or ({n}, k); got {values.shape}.")
    values = values.reshape(n, -1)
    labels = ["quantity"] if values.shape[1] == 1 else [f"quantity_{i}" for i in range(values.shape[1])]
    return pd.DataFrame(values, columns=labels).assign(model=name)


def _as_frame(draws: Draws, n: int, rng: np.random.Generator) -> pandas.DataFrame:
    import pandas as pd

    if isinstance(draws, pd.DataFrame):
        return draws
    if isinstance(draws, Chains):
        return draws.unweighted(rng).to_dataframe()
    if isinstance(draws, WeightedSamples):
        return pd.DataFrame(draws.resample(n, rng), columns=list(draws.names))
    array = np.asarray(draws, dtype=np.float64)
    if array.ndim not in (2, 3):
        raise ValueError(f"Expected draws of shape (n, d) or (chain, draw, d); got {array.shape}. For one column use x[:, None].")
    return pd.DataFrame(array.reshape(-1, array.shape[-1]), columns=[f"x{i}" for i in range(array.shape[-1])])
