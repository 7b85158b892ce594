"""The normalised density an evidence needs: flows cross-fitted over chain blocks, or one that the user brings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sbi_flows._random import seed_from, torch_generator
from sbi_flows._threads import CALL, one_thread, threads_for
from sbi_flows.distributions import NormalMixture, StandardNormal
from sbi_flows.flows import Flow, nsf
from sbi_flows.model_evidence.inputs import Draws
from sbi_flows.training import ArraySource, train

BLOCKS = 10
SEGMENTS = 50
EVALUATION_CHUNK = 32_768
LAYERS, HIDDEN, BINS = 2, (32, 32), 8
COMPONENTS = (1, 8, 24)
WORTHWHILE = 0.02
BATCH = 512
ROUNDS = ((250, 0.05, 5e-3), (750, 3.0, 3e-3))  # steps; skipped where the misfit is below this; learning rate


@dataclass(frozen=True)
class FittedDensity:
    """A normalised density on numpy float64 rows.

    Attributes
    ----------
    log_prob : callable (n, d) -> (n,)
    sample : callable (n, seed) -> (n, d)
    test_rows, train_rows : ndarray
        Posterior draws it has not seen, and those it was fitted to.
    """

    log_prob: Callable[[np.ndarray], np.ndarray]
    sample: Callable[[int, int], np.ndarray]
    test_rows: np.ndarray
    train_rows: np.ndarray


def fold_of(draws: Draws) -> np.ndarray:
    """Fold, 0 or 1, of each draw: ten contiguous blocks of every chain, dealt in turn, so both folds see all of every chain.

    Blocks, not single draws, because neighbours in a chain are nearly copies and would carry the training set into the test set. Chains
    shorter than 20 draws are dealt whole.
    """
    counts = np.unique(draws.chain, return_counts=True)[1]
    if counts.max() < 2 * BLOCKS:
        return draws.chain % 2
    return np.concatenate([(np.arange(n) * BLOCKS // n) % 2 for n in counts])


def user_density(density: Any, draws: Draws) -> list[FittedDensity]:
    """One fold around an object with ``log_prob`` and ``sample``; it is taken to be independent of the draws."""
    if not hasattr(density, "log_prob") or not hasattr(density, "sample"):
        raise TypeError(f"Expected density to have log_prob(x) and sample(n); got {type(density).__name__}.")

    def log_prob(x: np.ndarray) -> np.ndarray:
        return _numpy(density.log_prob(_like(density, x)))

    def sample(n: int, seed: int) -> np.ndarray:
        takes_seed = hasattr(density, "fit") or hasattr(density, "get_params")
        return _numpy(density.sample(n, random_state=seed % 2**31) if takes_seed else density.sample(n))

    rows = np.arange(draws.n)
    found = log_prob(draws.x[:2]).shape
    if found != (2,):
        raise ValueError(f"Expected density.log_prob to map (n, {draws.features}) to (n,); for two rows it returned {found}.")
    return [FittedDensity(log_prob, sample, rows, rows[:0])]


def _like(density: Any, x: np.ndarray):
    if not isinstance(density, torch.nn.Module):
        return x
    parameter = next(density.parameters(), torch.empty(0, dtype=torch.float64))
    return torch.as_tensor(x, dtype=parameter.dtype, device=parameter.device)


def _numpy(values: Any) -> np.ndarray:
    values = values.detach().cpu() if isinstance(values, torch.Tensor) else values
    return np.asarray(values, dtype=np.float64)


def cross_fit(draws: Draws, support: Any, random_state: Any) -> list[FittedDensity]:
    """Two flows, each fitted to the blocks the other is tested on, trained together.

    The effort follows the difficulty: a second, longer round of training is run only if the log-ratio of posterior to density still
    varies after the first.
    """
    fold = fold_of(draws)
    folds = [np.flatnonzero(fold == k) for k in (0, 1)]
    with one_thread():
        flows = _fit(draws, folds, support, torch_generator(seed_from(random_state)))
    return [_from_flow(flow.double(), test_rows=folds[k], train_rows=folds[1 - k]) for k, flow in enumerate(flows)]


def _fit(draws: Draws, folds: list[np.ndarray], support: Any, generator: torch.Generator) -> list[Flow]:
    """A flow a fold; of a size at which a second thread gains nothing."""
    x = torch.as_tensor(draws.x)
    log_p = torch.as_tensor(draws.log_p)

    train_rows, validation_rows = _rows(folds)
    flows = _start(x, train_rows, validation_rows, support, generator)
    source = ArraySource(x, train_rows=train_rows, validation_rows=validation_rows)
    for max_steps, enough, learning_rate in ROUNDS:
        sides = zip(flows, train_rows, validation_rows, strict=True)
        misfits = [_misfit(*(log_p[rows] - _log_prob(flow, x[rows]) for rows in both)) for flow, *both in sides]
        if max(misfits) < enough:
            break
        steps = max(1, round(train_rows.shape[1] / BATCH))
        train(
            flows,
            source,
            batch_size=BATCH,
            max_epochs=-(-max_steps // steps),
            learning_rate=learning_rate,
            weight_decay=0.0,
            patience=max(3, max_steps // (2 * steps)),
            random_state=seed_from(generator),
        )
    return flows


def _misfit(seen: torch.Tensor, unseen: torch.Tensor) -> float:
    """Standard deviation of the log-ratio ``ln p - ln f`` beyond the noise of the fit, from training and validation rows.

    Overfitting raises the log-density of training rows over that of others by as much as its noise adds to the variance of the ratio,
    so the difference of means is taken off, and twice its own standard error with it.
    """
    low, high = torch.quantile(unseen, torch.tensor([0.005, 0.995], dtype=unseen.dtype))
    variance = unseen.clamp(low, high).var()
    noise = unseen.mean() - seen.mean() + 2 * (variance / len(unseen)).sqrt()
    return float((variance - noise).clamp(min=0).sqrt())


def _log_prob(flow: Flow, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return flow.log_prob(x)


def _start(x: torch.Tensor, train_rows: torch.Tensor, validation_rows: torch.Tensor, support: Any, generator) -> list[Flow]:
    """Untrained flows on the base, a normal or a mixture, of the best held-out density; they begin as that base, whitened."""
    best: list[Flow] = []
    best_score = -np.inf
    for components in COMPONENTS:
        if components > 1 and components * x.shape[1] > train_rows.shape[1] // 20:
            break
        base = "normal" if components == 1 else {"name": "mixture", "components": components}
        flows = []
        for rows in train_rows:
            flow = nsf(x.shape[1], layers=LAYERS, hidden=HIDDEN, bins=BINS, support=support, base=base, generator=generator)
            flow.fit_scaling(x[rows])
            if isinstance(flow.base, NormalMixture):
                with torch.no_grad():
                    flow.base.fit(flow.to_base(x[rows])[0], generator=generator)
            flows.append(flow)
        with torch.no_grad():
            scores = [flow.log_prob(x[rows]).mean().item() for flow, rows in zip(flows, validation_rows, strict=True)]
        score = float(np.mean(scores))
        if not best or score > best_score + WORTHWHILE:
            best, best_score = flows, score
        if not isinstance(flows[0].base, NormalMixture | StandardNormal):
            break
    return best


def _rows(folds: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and validation rows ``(2, n)`` of each flow, from the fold it is not tested on; validation takes every tenth segment.

    Segments, not single rows: a chain repeats and nearly repeats its rows, and copies in both sets would hide overfitting.
    """
    size = min(len(rows) for rows in folds)
    validation = (np.arange(size) * SEGMENTS // size) % 10 == 5
    fitted_on = [folds[1][:size], folds[0][:size]]
    train_rows = torch.as_tensor(np.stack([rows[~validation] for rows in fitted_on]))
    return train_rows, torch.as_tensor(np.stack([rows[validation] for rows in fitted_on]))


def _from_flow(flow: Flow, test_rows: np.ndarray, train_rows: np.ndarray) -> FittedDensity:
    flow.eval()
    weights = sum(parameter.numel() for parameter in flow.parameters())

    def log_prob(x: np.ndarray) -> np.ndarray:
        with torch.no_grad(), threads_for(len(x) * weights, CALL):
            parts = [flow.log_prob(part) for part in torch.as_tensor(x, dtype=torch.float64).split(EVALUATION_CHUNK)]
        return torch.cat(parts).numpy()

    def sample(n: int, seed: int) -> np.ndarray:
        generator = torch_generator(seed)
        sizes = [EVALUATION_CHUNK] * (n // EVALUATION_CHUNK) + [n % EVALUATION_CHUNK]
        with torch.no_grad(), threads_for(n * weights, CALL):
            return torch.cat([flow.sample(size, generator=generator, dtype=torch.float64) for size in sizes if size]).numpy()

    return FittedDensity(log_prob, sample, test_rows, train_rows)
