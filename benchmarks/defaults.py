"""How far the default fits stay from the truth, and in what time: densities known exactly, other settings beside the defaults.

``python -m benchmarks.defaults [--rows 1000 10000] [--problems moons,bent,mixture,conditional] [--settings default,lr 3e-3,...]``

The figure is the divergence from the truth, the mean of ln p - ln q over 10 000 fresh rows, in nats; its own standard error is some
.005 for each. CPU seconds are of one thread, all of the fit included.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp

from sbi_flows import ConditionalFlow, FlowDensity

LN_2PI = np.log(2 * np.pi)
N_TEST = 10_000

SETTINGS: dict[str, dict] = {
    "default": {},
    "lr 3e-3": {"learning_rate": 3e-3},
    "lr 3e-2": {"learning_rate": 3e-2},
    "3 layers": {"layers": 3},
    "3 members": {"n_members": 3},
    "half the epochs": {"max_epochs": 0.5},
    "twice the epochs": {"max_epochs": 2.0},
}


@dataclass(frozen=True)
class Problem:
    """Pairs ``(context or None, x)`` and their exact log density."""

    draw: object
    log_prob: object


def _moons(n, rng):
    angle, upper = rng.uniform(0, np.pi, n), rng.integers(0, 2, n)[:, None] == 0
    centre = np.where(upper, _arc(angle), [1.0, 0.5] - _arc(angle))
    return None, centre + 0.1 * rng.normal(size=(n, 2))


def _arc(angle):
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _moons_log_prob(_, x):
    angle = (np.arange(800) + 0.5) * np.pi / 800
    centres = np.concatenate([_arc(angle), [1.0, 0.5] - _arc(angle)])
    square = np.concatenate([((part[:, None] - centres) ** 2).sum(-1) for part in np.array_split(x, 20)])
    return logsumexp(-square / 0.02, axis=1) - np.log(len(centres)) - LN_2PI - 2 * np.log(0.1)


_ROOT = np.linalg.cholesky(0.6 * np.ones((5, 5)) + 0.4 * np.eye(5))


def _bent(n, rng):
    x = rng.normal(size=(n, 5)) @ _ROOT.T
    x[:, 1] += x[:, 0] ** 2
    x[:, 3] += 2 * np.sin(2 * x[:, 2])
    return None, x


def _bent_log_prob(_, x):
    x = x.copy()
    x[:, 3] -= 2 * np.sin(2 * x[:, 2])
    x[:, 1] -= x[:, 0] ** 2
    return _normal(np.linalg.solve(_ROOT, x.T).T).sum(1) - np.log(np.diag(_ROOT)).sum()


_MEANS = 2.5 * np.random.default_rng(5).normal(size=(4, 8))
_WIDTHS, _SHARES = np.array([0.5, 0.8, 1.0, 0.6]), np.array([0.4, 0.3, 0.2, 0.1])


def _mixture(n, rng):
    which = rng.choice(4, n, p=_SHARES)
    return None, _MEANS[which] + _WIDTHS[which, None] * rng.normal(size=(n, 8))


def _mixture_log_prob(_, x):
    parts = zip(_MEANS, _WIDTHS, _SHARES, strict=True)
    return logsumexp([np.log(w) + _normal((x - m) / s).sum(1) - 8 * np.log(s) for m, s, w in parts], axis=0)


def _conditional(n, rng):
    context = rng.normal(size=(n, 3))
    first = np.sin(2 * context[:, 0]) + _noise(context) * rng.normal(size=n)
    branch = 2 * rng.integers(0, 2, n) - 1
    return context, np.stack([first, first**2 + branch * context[:, 2] + 0.3 * rng.normal(size=n)], axis=1)


def _conditional_log_prob(context, y):
    scale = _noise(context)
    first = _normal((y[:, 0] - np.sin(2 * context[:, 0])) / scale) - np.log(scale)
    branches = [_normal((y[:, 1] - y[:, 0] ** 2 - sign * context[:, 2]) / 0.3) for sign in (-1, 1)]
    return first + np.logaddexp(*branches) - np.log(2 * 0.3)


def _noise(context):
    return 0.2 * (1 + context[:, 1] ** 2)


def _normal(z):
    return -0.5 * (z**2 + LN_2PI)


PROBLEMS = {
    "moons": Problem(_moons, _moons_log_prob),
    "bent": Problem(_bent, _bent_log_prob),
    "mixture": Problem(_mixture, _mixture_log_prob),
    "conditional": Problem(_conditional, _conditional_log_prob),
}


def measure(name: str, n: int, settings: dict, seed: int) -> dict:
    """One fit: divergence from the truth, CPU seconds, steps."""
    problem = PROBLEMS[name]
    context, x = problem.draw(n, np.random.default_rng(100 + seed))
    began = time.process_time()
    if context is None:
        model, pair = FlowDensity(random_state=seed, device="cpu", **settings), (x,)
    else:
        model, pair = ConditionalFlow(random_state=seed, device="cpu", **settings), (context, x)
    model.fit(*pair)
    seconds = time.process_time() - began
    context, x = problem.draw(N_TEST, np.random.default_rng(7))
    log_q = model.log_prob(x) if context is None else model.log_prob(context, x)
    history = model.history_
    return {
        "divergence": np.mean(problem.log_prob(context, x) - log_q),
        "cpu s": seconds,
        "steps": history.n_steps,
        "epochs": len(history.learning_rate),
        "best epoch": int(history.best_epoch.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for n in arguments.rows:
        rows = {}
        for problem in arguments.problems.split(","):
            epochs = None
            for label in arguments.settings.split(","):
                settings = dict(SETTINGS[label])
                if "max_epochs" in settings:  # given as a share of what the default took
                    if epochs is None:
                        continue
                    settings["max_epochs"] = max(1, round(settings["max_epochs"] * epochs))
                found = [measure(problem, n, settings, seed) for seed in range(arguments.seeds)]
                epochs = found[0]["epochs"] if label == "default" else epochs
                rows[problem, label] = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
                print(
                    f"{n} rows  {problem:12} {label:18}", {key: round(value, 4) for key, value in rows[problem, label].items()}, flush=True
                )
        print(f"\n{n} rows\n{pd.DataFrame(rows).T.round(3).to_string()}\n")


if __name__ == "__main__":
    main()
