"""Training samplers of paths by the package's one loop, on noise drawn afresh."""

from __future__ import annotations

import torch
from torch import Tensor

from sbi_flows._random import randn
from sbi_flows.losses import Batch, Loss
from sbi_flows.results import FitHistory, Reliability
from sbi_flows.samplers.normal_path import trainable
from sbi_flows.samplers.path_sampler import PathSampler
from sbi_flows.training import SimulatorSource, train

_STEPS_AN_EPOCH = 25
_FAILED = "non-finite losses"  # why a fit ended, in its history
_MANY_SKIPPED = 0.05  # share of the steps


def path_kl(sampler: PathSampler, batch: Batch, generator: torch.Generator) -> Tensor:
    """Kullback-Leibler divergence of paths from those run back, less ln Z: minus the log-weights ``(n,)`` of paths from ``batch.x``.

    Where ``batch.context`` holds draws of the target, half of the loss is the other divergence, along paths run back from them.

    References
    ----------
    Wu, Köhler & Noé 2020, "Stochastic normalizing flows", arXiv:2002.06707; Nielsen, Jaini, Hoogeboom, Winther & Welling 2020, "SurVAE
    flows", arXiv:2007.02731.
    """
    reverse = -trainable(sampler.forward_from(batch.x, generator).log_weights)
    if batch.context is None:
        return reverse
    return 0.5 * (reverse + trainable(sampler.backward_from(batch.context, generator).log_weights))


def fit_paths(
    sampler: PathSampler,
    loss: Loss,
    samples: Tensor | None,
    n_steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    progress: bool,
) -> None:
    """Train in place, for about ``n_steps``; ``samples (m, d)`` are draws of the target, in the path's coordinates, if there are any."""
    features = sampler.path.features

    def draw(n: int, generator: torch.Generator):
        noise = randn((n, features), generator, dtype=torch.float64)
        if samples is None:
            return noise
        return noise, samples[torch.randint(len(samples), (n,), generator=generator)]

    per_epoch = min(_STEPS_AN_EPOCH, n_steps)
    history = train(
        sampler,
        # Nothing is held out: no path is seen twice, and every one costs evaluations.
        SimulatorSource(draw, batch_size * per_epoch, n_validation=0),
        loss=loss,
        batch_size=batch_size,
        max_epochs=max(1, round(n_steps / per_epoch)),
        learning_rate=learning_rate,
        weight_decay=0.0,
        random_state=generator,
        progress=progress,
    )
    sampler.requires_grad_(False).eval()
    sampler.reliability = _verdict(history)


def _verdict(history: FitHistory) -> Reliability:
    """What training says of itself; there are no data to blame."""
    skipped = f"{history.n_skipped} of {history.n_steps} steps of training had no finite loss and were skipped"
    remedy = "lower learning_rate, or begin nearer to the target (start= or scale=)"
    if history.stopped == _FAILED:
        return Reliability.from_reasons([f"an epoch of training had not one finite loss, and the weights from before are kept: {remedy}"])
    if history.n_skipped > _MANY_SKIPPED * history.n_steps:
        return Reliability.from_reasons([f"{skipped}: {remedy}"])
    return Reliability.from_reasons([], [skipped] if history.n_skipped else [])
