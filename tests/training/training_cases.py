"""Rows to train on, quick settings, and the parameters of a flow as one vector."""

import numpy as np
import torch

from sbi_flows.training import ArraySource


def banana(n, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, 2))
    x[:, 1] += x[:, 0] ** 2
    return x


def split(x, **kwargs):
    n = len(x)
    return ArraySource(x, train_rows=np.arange(n - n // 10), validation_rows=np.arange(n - n // 10, n), **kwargs)


def parameters(flow):
    return torch.cat([p.detach().reshape(-1) for p in flow.parameters()])


FAST = {"max_epochs": 4, "batch_size": 100, "random_state": 0}
