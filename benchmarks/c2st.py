"""The classifier two-sample test of the benchmark, for many pairs of samples at once.

The classifier is scikit-learn's ``MLPClassifier`` with two hidden layers of ten times d relu units and its defaults (Adam at 1e-3,
batches of 200, L2 penalty 1e-4, stop when the training loss has not fallen by 1e-4 for ten epochs), one for each of five folds. Trained one
by one they take minutes; here all folds of all pairs are one stack of matrices. ``tests/test_sbibm_benchmark.py`` compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

FOLDS = 5
_BATCH, _RATE, _PENALTY, _TOLERANCE, _PATIENCE, _MAX_EPOCHS = 200, 1e-3, 1e-4, 1e-4, 10, 1000


def c2st(pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int = 1) -> np.ndarray:
    """Cross-validated accuracy of telling the two samples of each pair apart, z-scored by the second: .5 is perfect.

    Parameters
    ----------
    pairs : sequence of (ndarray (n, d), ndarray (n, d))
        Draws and reference; all pairs of one shape.
    seed : int

    Returns
    -------
    ndarray (len(pairs),)
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = {np.shape(sample) for pair in pairs for sample in pair}
    if len(shapes) != 1:
        raise ValueError(f"Expected samples of one shape (n, d); got {sorted(shapes)}.")
    x = torch.stack([_scaled(*pair) for pair in pairs])
    n = x.shape[1]
    y = torch.cat([torch.zeros(n // 2), torch.ones(n - n // 2)])
    folds = torch.randperm(n, generator=generator).tensor_split(FOLDS)
    held_out = [torch.isin(torch.arange(n), fold) for fold in folds]
    least = min(int((~fold).sum()) for fold in held_out)
    # One net a pair and fold: which pair, and which rows it learns from (folds differ by a row where n is no multiple of five).
    owner = torch.arange(len(pairs)).repeat_interleave(FOLDS)
    rows = torch.stack([torch.nonzero(~fold)[:least, 0] for fold in held_out]).repeat(len(pairs), 1)
    nets = _train(x, y, owner, rows, generator)
    scores = []
    for i, fold in enumerate(held_out * len(pairs)):
        said = _logits([w[i : i + 1] for w in nets], x[owner[i], fold][None])[0] > 0
        scores.append((said == (y[fold] > 0.5)).float().mean())
    return torch.stack(scores).view(len(pairs), FOLDS).mean(1).numpy().astype(np.float64)


def _scaled(draws, reference) -> Tensor:
    both = (np.concatenate([draws, reference]) - reference.mean(axis=0)) / reference.std(axis=0)
    return torch.as_tensor(both, dtype=torch.float32)


def _logits(nets: Sequence[Tensor], x: Tensor) -> Tensor:
    """``x (nets, n, d)`` to ``(nets, n)``."""
    w1, b1, w2, b2, w3, b3 = nets
    h = torch.baddbmm(b1, x, w1).relu()
    h = torch.baddbmm(b2, h, w2).relu()
    return torch.baddbmm(b3, h, w3)[..., 0]


def _start(nets: int, d: int, generator) -> list[Tensor]:
    """Glorot's uniform weights and biases."""
    parts, sizes = [], [d, 10 * d, 10 * d, 1]
    for before, after in pairwise(sizes):
        # scikit-learn scales the logistic output layer by 2 where relu layers have 6.
        bound = math.sqrt((2 if after == 1 else 6) / (before + after))
        parts += [bound * (2 * torch.rand(nets, size, after, generator=generator) - 1) for size in (before, 1)]
    return parts


def _train(x: Tensor, y: Tensor, owner: Tensor, rows: Tensor, generator) -> list[Tensor]:
    """The nets' parameters, each as it was when its own training loss stopped falling."""
    total, n = rows.shape
    final = _start(total, x.shape[2], generator)
    live = torch.arange(total)
    weights = [w.clone() for w in final]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    best, waited, steps = torch.full((total,), math.inf), torch.zeros(total, dtype=torch.long), 0
    for _ in range(_MAX_EPOCHS):
        order = torch.argsort(torch.rand(len(live), n, generator=generator), dim=1)
        shuffled, loss = rows[live].gather(1, order), torch.zeros(len(live))
        for batch in shuffled.split(_BATCH, dim=1):
            steps += 1
            loss += _step(weights, x[owner[live][:, None], batch], y[batch], first, second, steps) * batch.shape[1]
        loss /= n
        improved = loss <= best[live] - _TOLERANCE
        waited[live] = torch.where(improved, 0, waited[live] + 1)
        best[live] = torch.minimum(best[live], loss)
        done = waited[live] > _PATIENCE
        if done.any():
            for kept, w in zip(final, weights, strict=True):
                kept[live[done]] = w[done]
            weights, first, second = ([w[~done] for w in part] for part in (weights, first, second))
            live = live[~done]
            if not len(live):
                return final
    for kept, w in zip(final, weights, strict=True):
        kept[live] = w
    return final


def _step(weights, x, y, first, second, steps: int) -> Tensor:
    """One step of Adam for every net; its losses ``(nets,)``."""
    leaves = [w.detach().requires_grad_() for w in weights]
    fit = torch.nn.functional.binary_cross_entropy_with_logits(_logits(leaves, x), y, reduction="none").mean(1)
    size = sum(w.square().sum((1, 2)) for w in leaves[::2])
    losses = fit + 0.5 * _PENALTY / x.shape[1] * size
    gradients = torch.autograd.grad(losses.sum(), leaves)
    rate = _RATE * math.sqrt(1 - 0.999**steps) / (1 - 0.9**steps)
    with torch.no_grad():
        for w, g, m, v in zip(weights, gradients, first, second, strict=True):
            m.lerp_(g, 0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            w.addcdiv_(m, v.sqrt().add_(1e-8), value=-rate)
    return losses.detach()
