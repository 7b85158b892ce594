"""Learning-rate schedules: functions of the fraction of the fit that is done, in [0, 1], giving a fraction of the peak rate."""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]

_WARM_UP = 0.15
_FIRST = 0.1
_LAST = 1e-3


def one_cycle(done: float) -> float:
    """Cosine rise over the first 15 %, then cosine fall to a thousandth (after Smith & Topin 2018, arXiv:1708.07120)."""
    if done < _WARM_UP:
        return _cosine(_FIRST, 1.0, done / _WARM_UP)
    return _cosine(1.0, _LAST, (done - _WARM_UP) / (1 - _WARM_UP))


def cosine(done: float) -> float:
    """Cosine fall from the peak to a thousandth (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    return _cosine(1.0, _LAST, done)


def constant(done: float) -> float:
    """The peak rate throughout."""
    return 1.0


SCHEDULES: dict[str, Schedule] = {"one-cycle": one_cycle, "cosine": cosine, "constant": constant}


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(fraction, 1.0))) / 2
