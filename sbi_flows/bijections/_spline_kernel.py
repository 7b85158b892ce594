"""Rational-quadratic splines as one autograd node with a hand-written backward pass, for any shape of elements.

The work is done by one of two engines of the same interface: compiled loops for few elements on a CPU, tensor operations for the rest.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from sbi_flows.bijections import _spline_tensors
from sbi_flows.bijections._spline_shape import Shape
from sbi_flows.nn import transforms_active

# Elements up to which compiled loops, on one thread, are at least as fast as tensor operations: measured on two cores. The rule
# looks at the size only, so that the same seed gives the same bits.
FEW = 2**12

NO_SECOND_DERIVATIVES = (
    "The rational-quadratic spline has first derivatives only. Differentiate without create_graph, or use an affine flow "
    "(maf, realnvp) where second derivatives are needed."
)


def spline(x: Tensor, params: Tensor, shape: Shape, inverse: bool) -> tuple[Tensor, Tensor]:
    """``x (*s)`` and ``params (n_params, *s)`` to the value and its log derivative, of the inverse map if ``inverse``."""
    if transforms_active():
        return _VmapSpline.apply(x, params, shape, inverse)[:2]
    if torch.is_grad_enabled() and (x.requires_grad or params.requires_grad):
        return _Spline.apply(x, params, shape, inverse)
    return _engine(x, params).evaluate(x, params, shape, inverse, keep=False)[:2]


def pulled_back(value: Tensor, score: Tensor) -> tuple[Tensor, Tensor] | None:
    """What weights ``(score, 1)`` on value and log slope of the opposite map become at ``value`` and at the parameters.

    ``value`` is what :func:`spline` returned: the opposite map passes the same point of the same bin, of which everything was saved. None
    where nothing was, as no gradients were wanted.
    """
    if not isinstance(value.grad_fn, _Spline._backward_cls):
        return None
    node: Any = value.grad_fn
    return _backward(score.contiguous(), torch.ones_like(value), node.saved_tensors, node.shape, not node.inverse)


@cache
def _loops() -> ModuleType | None:
    """The compiled engine; None where numba cannot be imported. Imported late: numba takes a third of a second."""
    try:
        return import_module("sbi_flows.bijections._spline_loops")
    except ImportError:
        return None


def _engine(x: Tensor, params: Tensor) -> ModuleType:
    plain = x.dtype in (torch.float32, torch.float64) and params.dtype == x.dtype
    if x.device.type == "cpu" and plain and x.numel() <= FEW and not torch.compiler.is_compiling():
        return _loops() or _spline_tensors
    return _spline_tensors


def _backward(grad_value: Tensor, grad_log: Tensor | None, saved: tuple[Tensor, ...], shape: Shape, inverse: bool) -> tuple[Tensor, Tensor]:
    """The gradient by the engine that saved: each saves a number of tensors of its own."""
    engine = _spline_tensors if len(saved) == len(_spline_tensors.Saved._fields) else cast(ModuleType, _loops())
    return engine.backward(grad_value, grad_log, engine.Saved(*saved), shape, inverse)


class _Spline(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, params, shape, inverse):
        value, log_slope, saved = _engine(x, params).evaluate(x, params, shape, inverse, keep=True)
        ctx.shape, ctx.inverse = shape, inverse
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)
        return value, log_slope

    @staticmethod
    def backward(ctx, grad_value, grad_log):
        if torch.is_grad_enabled():
            raise NotImplementedError(NO_SECOND_DERIVATIVES)
        if grad_value is None:
            if grad_log is None:
                return None, None, None, None
            grad_value = torch.zeros_like(grad_log)
        return *_backward(grad_value, grad_log, ctx.saved_tensors, ctx.shape, ctx.inverse), None, None


class _VmapSpline(torch.autograd.Function):
    """The same under function transforms, which want what is saved to be an output."""

    @staticmethod
    def forward(x, params, shape, inverse):
        value, log_slope, saved = _engine(x, params).evaluate(x, params, shape, inverse, keep=True)
        # Whole shapes, so that a dimension of members stays visible.
        return value, log_slope, *(part.view(len(part), *x.shape) for part in saved)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.shape, ctx.inverse = inputs[2:]
        ctx.mark_non_differentiable(*output[2:])
        # x and params only tie the gradient to the graph, so that a second derivative is refused, not silently zero.
        ctx.save_for_backward(*inputs[:2], *output[2:])

    @staticmethod
    def backward(ctx, grad_value, grad_log, *_):
        return *_VmapSplineGradient.apply(grad_value, grad_log, ctx.shape, ctx.inverse, *ctx.saved_tensors), None, None

    @staticmethod
    def vmap(info, in_dims, x, params, shape, inverse):
        x = _batched(x, in_dims[0], 0, info.batch_size)
        params = _batched(params, in_dims[1], 1, info.batch_size)
        mapped = _VmapSpline.apply(x, params, shape, inverse)
        return mapped, (0, 0, *[1] * (len(mapped) - 2))


class _VmapSplineGradient(torch.autograd.Function):
    """The backward pass as a function of its own, so that it too can be vmapped (``vmap`` of ``grad``)."""

    @staticmethod
    def forward(grad_value, grad_log, shape, inverse, _x, _params, *saved):
        flat = tuple(part.reshape(len(part), grad_log.numel()) for part in saved)
        return _backward(grad_value, grad_log, flat, shape, inverse)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(NO_SECOND_DERIVATIVES)

    @staticmethod
    def vmap(info, in_dims, grad_value, grad_log, shape, inverse, x, params, *saved):
        grad_value = _batched(grad_value, in_dims[0], 0, info.batch_size)
        grad_log = _batched(grad_log, in_dims[1], 0, info.batch_size)
        x, params = _batched(x, in_dims[4], 0, info.batch_size), _batched(params, in_dims[5], 1, info.batch_size)
        whole = [_batched(part, d, 1, info.batch_size) for part, d in zip(saved, in_dims[6:], strict=True)]
        return _VmapSplineGradient.apply(grad_value, grad_log, shape, inverse, x, params, *whole), (0, 1)


def _batched(tensor: Tensor, dim: int | None, target: int, size: int) -> Tensor:
    """``tensor`` with its batch dimension at ``target``, expanded if it has none."""
    if dim is not None:
        return tensor.movedim(dim, target)
    return tensor.unsqueeze(target).expand(*tensor.shape[:target], size, *tensor.shape[target:])
