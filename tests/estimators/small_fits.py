"""Data of three columns, pairs, and settings that fit them in a moment."""

import numpy as np

FAST = {"flow": "maf", "layers": 1, "hidden": (16,), "max_epochs": 3, "batch_size": 128, "random_state": 0}


def rows(n=600, d=3, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d))
    x[:, -1] += x[:, 0] ** 2
    return x


def pairs(n=600, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2))
    return X, X + 0.3 * rng.normal(size=(n, 2))


def with_column(values, n=200):
    x = rows(n)
    x[:, 1] = values
    return x
