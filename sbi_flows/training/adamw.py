"""AdamW for one flat matrix of parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FIRST, _SECOND, _EPSILON = 0.9, 0.99, 1e-8


class AdamW:
    """Adam with decoupled weight decay.

    Ours, as making one of torch's optimisers imports torch's compiler, which takes longer than many a fit; for one tensor there is
    nothing to gain from their fused kernels.

    Parameters
    ----------
    values : Tensor (members, P)
        Changed in place by :meth:`step`.
    weight_decay : float

    Attributes
    ----------
    tensors : dict of str to Tensor
        All state there is: what a checkpoint must keep.

    References
    ----------
    Kingma & Ba 2015, arXiv:1412.6980; Loshchilov & Hutter 2019, "Decoupled weight decay regularization", arXiv:1711.05101.
    """

    def __init__(self, values: Tensor, weight_decay: float = 0.0):
        self._values, self._weight_decay = values, weight_decay
        self.tensors = {"first": torch.zeros_like(values), "second": torch.zeros_like(values)}

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: float, n: int) -> None:
        """Step ``n``, counted from 1, along ``gradient (members, P)``. No value is read back from the device."""
        first, second = self.tensors["first"], self.tensors["second"]
        first.lerp_(gradient, 1 - _FIRST)
        second.mul_(_SECOND).addcmul_(gradient, gradient, value=1 - _SECOND)
        spread = second.sqrt().div_(math.sqrt(1 - _SECOND**n)).add_(_EPSILON)
        if self._weight_decay:
            self._values.mul_(1 - rate * self._weight_decay)
        self._values.addcdiv_(first, spread, value=-rate / (1 - _FIRST**n))
