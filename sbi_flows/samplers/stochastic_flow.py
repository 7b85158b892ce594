"""``stochastic_flow``: blocks of a flow with random moves between them, trained together, their weights exact."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sbi_flows._random import RandomState, randn, torch_generator
from sbi_flows._threads import one_thread
from sbi_flows._validation import as_rows, positive
from sbi_flows.flows import Flow, realnvp
from sbi_flows.samplers.kernel import Kernel
from sbi_flows.samplers.normal_path import Between, NormalPath, has_second_derivatives
from sbi_flows.samplers.path_layers import KernelSteps, Langevin, StochasticLayer
from sbi_flows.samplers.path_sampler import Ends, PathSampler, finished, starting_weights
from sbi_flows.samplers.path_training import fit_paths, path_kl
from sbi_flows.targets import Target

_PREPARED = 256


class StochasticFlow(PathSampler):
    """Blocks of a flow, each followed by random moves at its own power between the normal and the target; see :func:`stochastic_flow`.

    Parameters
    ----------
    path : NormalPath
    flows : sequence of Flow
        Their inverse direction, base to data, leads from one density to the next.
    layers : sequence of StochasticLayer
        As many.

    Attributes
    ----------
    powers : Tensor (n_blocks,)
        Of the target, rising to 1; they are trained.
    """

    method = "stochastic flow"

    def __init__(self, path: NormalPath, flows: Sequence[Flow], layers: Sequence[StochasticLayer]):
        super().__init__(path)
        if len(flows) != len(layers) or not len(flows):
            raise ValueError(f"Expected as many flows as layers, one at least; got {len(flows)} and {len(layers)}.")
        self.flows = cast(Sequence[Flow], nn.ModuleList(flows))
        self.layers = cast(Sequence[StochasticLayer], nn.ModuleList(layers))
        # Steep targets are felt at once: the power rises as the square of the way.
        rise = torch.arange(1, len(flows) + 1, dtype=torch.float64)
        self._log_rise = nn.Parameter((rise.square() - (rise - 1).square()).log())

    @property
    def powers(self) -> Tensor:
        return torch.softmax(self._log_rise, 0).cumsum(0).clamp(max=1.0)

    def forward_from(self, y, generator):
        log_weights = starting_weights(y)
        for flow, layer, density in self._blocks():
            y, log_det = flow.from_base(y)
            y, log_ratio = layer.forward_and_log_ratio(y, density, generator)
            log_weights = log_weights + log_det + log_ratio
        return Ends(y, finished(log_weights + self.path.log_prob(y)))

    def backward_from(self, y, generator):
        log_weights = self.path.log_prob(y)
        for flow, layer, density in reversed(list(self._blocks())):
            y, log_ratio = layer.backward_and_log_ratio(y, density, generator)
            y, log_det = flow.to_base(y)
            log_weights = log_weights - log_det + log_ratio
        return Ends(y, finished(log_weights + starting_weights(y)))

    @torch.no_grad()
    def prepare(self, generator: torch.Generator) -> None:
        """Set the layers, one after another, from paths run so far."""
        y = randn((_PREPARED, self.path.features), generator, dtype=torch.float64)
        for flow, layer, density in self._blocks():
            y, _ = flow.from_base(y)
            layer.prepare(y, density)
            y, _ = layer.forward_and_log_ratio(y, density, generator)

    def _blocks(self):
        powers = [*self.powers[:-1], torch.ones((), dtype=torch.float64)]
        densities = [Between(self.path, power) for power in powers]
        return zip(self.flows, self.layers, densities, strict=True)


def stochastic_flow(
    target: Target,
    *,
    n_blocks: int = 8,
    layers: int = 2,
    hidden: Sequence[int] = (32, 32),
    kernel: Kernel | str = "langevin",
    kernel_steps: int = 2,
    n_steps: int = 400,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    start: Any = None,
    scale: float | None = None,
    samples: Any = None,
    random_state: RandomState = None,
    progress: bool = False,
) -> StochasticFlow:
    """Train a stochastic normalizing flow on a log-density alone.

    Draws of a normal pass blocks of affine couplings, each followed by random moves at a power of the target between 0 and 1. Everything
    (couplings, powers, lengths of the moves) is trained together by the divergence of whole paths; the weights of paths are exact
    whatever training achieved.

    Parameters
    ----------
    target : Target
        With gradients, without angles.
    n_blocks : int
    layers, hidden
        Couplings of a block and their networks, as of :func:`sbi_flows.flows.realnvp`; 0 layers leave the random moves alone.
    kernel : Kernel or "langevin"
        "langevin" steps are never rejected and gradients pass through them. Any reversible kernel with Metropolis steps will do, but then
        each block learns from its own piece of the path.
    kernel_steps : int
        Moves after each block; 0 leaves the flow alone.
    n_steps, batch_size, learning_rate
        Of training; ``n_steps=0`` leaves annealed importance sampling.
    start, scale : optional
        Where paths begin: see :class:`sbi_flows.samplers.normal_path.NormalPath`. The prior, where there is one, by default.
    samples : array_like (m, d), optional
        Draws of the target, where there are any: half of the loss is then the forward divergence, which drops no mode of theirs.
    random_state : int, generator or None
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    StochasticFlow
        ``sample`` and ``evidence`` give weighted draws and ln Z, each with its verdict.

    Raises
    ------
    ValueError
        If the target has angles or no gradient, nothing says where to begin, or settings are out of range.

    Examples
    --------
    >>> from sbi_flows.targets import from_log_prob
    >>> target = from_log_prob(lambda x: -0.5 * ((x - 1) / 0.5).square().sum(-1), 2)
    >>> sampler = stochastic_flow(target, n_blocks=2, n_steps=20, scale=1.0, random_state=0)
    >>> sampler.sample(500, random_state=1).samples.shape
    (500, 2)

    References
    ----------
    Wu, Köhler & Noé 2020, "Stochastic normalizing flows", arXiv:2002.06707; Matthews, Arbel, Rezende & Doucet 2022, "Continual repeated
    annealed flow transport Monte Carlo", arXiv:2201.13117 (blocks that learn from pieces).
    """
    for name, value in {"n_blocks": n_blocks, "batch_size": batch_size}.items():
        positive(name, value, integer=True)
    for name, value in {"layers": layers, "kernel_steps": kernel_steps, "n_steps": n_steps}.items():
        positive(name, value, integer=True, zero=True)
    positive("learning_rate", learning_rate)
    if isinstance(kernel, str) and kernel != "langevin":
        raise ValueError(f"Expected kernel to be 'langevin' or a kernel such as HMC(); got {kernel!r}.")
    generator, began = torch_generator(random_state), time.perf_counter()
    path = NormalPath(target, start, scale, generator)
    rows = None if samples is None else path.from_user(as_rows(samples, "samples", path.features).double())
    with one_thread():
        attached = isinstance(kernel, str) and has_second_derivatives(path, torch.zeros(2, path.features, dtype=torch.float64))
        sampler = StochasticFlow(
            path,
            [_block(path.features, layers, hidden, generator) for _ in range(n_blocks)],
            [
                Langevin(path.features, kernel_steps, attached) if isinstance(kernel, str) else KernelSteps(kernel, kernel_steps)
                for _ in range(n_blocks)
            ],
        )
        sampler.prepare(generator)
        if n_steps:
            fit_paths(sampler, path_kl, rows, n_steps, batch_size, learning_rate, generator, progress)
    if isinstance(kernel, str) and kernel_steps and not attached:
        sampler.note("the target's gradient cannot be differentiated again: training took it as a constant")
    sampler.close_books(began)
    return sampler


def _block(features: int, layers: int, hidden: Sequence[int], generator: torch.Generator) -> Flow:
    """Couplings that start as the identity; none at all are one that stays there."""
    flow = realnvp(features, layers=max(layers, 1), hidden=hidden, scaling="none", generator=generator).double()
    return flow.requires_grad_(layers > 0)
