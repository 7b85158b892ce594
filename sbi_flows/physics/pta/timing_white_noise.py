"""White noise of a pulsar's backends from a dictionary of its parameters, none of which may be lost without a word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_KINDS = ("efac", "log10_t2equad", "log10_tnequad", "log10_ecorr")
_OF_A_BACKEND = re.compile(rf"(.+)_({'|'.join(_KINDS)})")
_WHITE = re.compile("efac|equad|ecorr", re.IGNORECASE)
_FREE = re.compile("red_?noise_(log10_A|gamma)")  # the likelihood has each pulsar's own power law as parameters


def white_noise(
    name: str, errors: np.ndarray, backends: np.ndarray, noise: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Variances ``(n,)`` and those of the ECORR of each row's backend ``(n,)``, in s^2, and the names of what is not white noise of these.

    Raises
    ------
    ValueError
        For a backend without EFAC, white noise of no backend or under another name, and values that are none; an empty ``noise`` takes
        the errors as they are.
    """
    variances, ecorr = errors**2, np.zeros(len(errors))
    if not noise:
        return variances, ecorr, []
    present = np.unique(backends).tolist()
    for backend in present:
        if f"{name}_{backend}_efac" not in noise:
            raise ValueError(
                f"Expected {name}_{backend}_efac in noise, as for each backend of {name}; it is not there. Its name is that in the file."
            )
    unused = _unused(name, present, noise)
    for backend in present:
        rows = backends == backend
        efac, *logs = (_value(f"{name}_{backend}_{kind}", noise) for kind in _KINDS)
        before, after, shared = (10.0 ** (2 * log) for log in logs)
        variances[rows] = efac**2 * (variances[rows] + before) + after
        ecorr[rows] = shared
    return variances, ecorr, unused


def _value(key: str, noise: Mapping[str, Any]) -> float:
    """EFAC, or log10 of seconds: -inf where it is not there."""
    if key not in noise:
        return -np.inf
    value = noise[key]
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool) and np.isfinite(value)
    if not number or not (value > 0 if key.endswith("_efac") else value < 0):
        wanted = "a number above 0" if key.endswith("_efac") else "log10 of seconds, below 0"
        raise ValueError(f"Expected {key} in noise to be {wanted}; got {value!r}.")
    return float(value)


def _unused(name: str, present: list[str], noise: Mapping[str, Any]) -> list[str]:
    """Keys of this pulsar that are not white noise of its backends; ``ValueError`` where one may have been meant to be."""
    unused = []
    for key in (key for key in noise if key.startswith(f"{name}_")):
        rest = key[len(name) + 1 :]
        found = _OF_A_BACKEND.fullmatch(rest)
        if (found is not None and found[1] in present) or _FREE.fullmatch(rest):
            continue
        elsewhere = found is not None and f"{name}_{found[1]}_efac" in noise  # a backend without times of arrival here
        ours = any(rest.startswith(f"{backend}_") for backend in present)
        if not elsewhere and (ours or _WHITE.search(rest)):
            raise ValueError(
                f"Expected white noise of {name} as {name}_BACKEND_ and {', '.join(_KINDS)}, with BACKEND one of {', '.join(present)}; got "
                f"{key}, which would be left out. {_advice(rest)}"
            )
        unused.append(key)
    return unused


def _advice(rest: str) -> str:
    if rest.endswith("_log10_equad"):
        return (
            "Older files do not say which EQUAD it is: name it log10_tnequad if it is added after EFAC has multiplied the errors "
            "(enterprise before its version 3.3), log10_t2equad if before."
        )
    return "Rename or remove it."
