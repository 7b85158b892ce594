"""Training losses: functions ``loss(flow, batch, generator)`` that return one number a row."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Rows of one optimiser step.

    Attributes
    ----------
    x : Tensor (n, d)
        What is modelled. A source that gives every ensemble member rows of its own yields (members, n, d), and likewise below;
        a loss always sees the rows of one member.
    context : Tensor (n, c) or None
        What the density is conditioned on.
    weights : Tensor (n,) or None
        Sample weights of mean one over the training rows. The training loop multiplies the losses by them; a loss need not.
    """

    x: Tensor
    context: Tensor | None = None
    weights: Tensor | None = None


# The first argument is a Flow, or any module with the methods that the loss calls.
Loss = Callable[[Any, Batch, torch.Generator], Tensor]
