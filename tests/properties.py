"""Numerical checks that every bijection and flow inherits: add a line to a list and it is tested."""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap


def randomise(module: nn.Module, scale: float = 0.2, seed: int = 1) -> nn.Module:
    """Add noise to every parameter, so that nothing sits at its special initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


def autograd_log_det(function, x: Tensor) -> Tensor:
    """``ln |det|`` of the Jacobian of a row-wise function at each row of ``x (n, d)``, by autograd."""
    rows = []
    for i in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(lambda row, i=i: function(row[None], i)[0], x[i])
        rows.append(torch.linalg.slogdet(jacobian)[1])
    return torch.stack(rows)


def pick(context: Tensor | None, i: int) -> Tensor | None:
    return None if context is None else context[i : i + 1]


def check_inverse(bijection, x, context, atol):
    z, log_det = bijection.forward_and_log_det(x, context)
    back, log_det_back = bijection.inverse_and_log_det(z, context)
    torch.testing.assert_close(back, x, rtol=0, atol=atol)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=atol)


def check_log_det(bijection, x, context, atol=1e-9):
    z, log_det = bijection.forward_and_log_det(x, context)
    expected = autograd_log_det(lambda row, i: bijection.forward_and_log_det(row, pick(context, i))[0], x)
    torch.testing.assert_close(log_det, expected, rtol=0, atol=atol)
    _, log_det = bijection.inverse_and_log_det(z.detach(), context)
    expected = autograd_log_det(lambda row, i: bijection.inverse_and_log_det(row, pick(context, i))[0], z.detach())
    torch.testing.assert_close(log_det, expected, rtol=0, atol=atol)


def check_gradients(bijection, x, context, method, atol=1e-6):
    """Gradients of a random projection with respect to x, context and every parameter, against central differences.

    The step is 1e-6 along a unit direction: cancellation costs 1e-10 times the projection, which stays below 1e4 here.
    """
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    others = torch.randn(len(x), generator=generator, dtype=x.dtype)

    def projection():
        value, log_det = getattr(bijection, method)(x, context)
        return (weights * value).sum() + (others * log_det).sum()

    leaves = [x, *([] if context is None else [context]), *bijection.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()
    gradients = torch.autograd.grad(projection(), leaves, allow_unused=True)
    step = 1e-6
    for leaf, gradient in zip(leaves, gradients, strict=True):
        direction = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        direction /= direction.norm()
        with torch.no_grad():
            leaf.add_(direction, alpha=step)
            above = projection()
            leaf.sub_(direction, alpha=2 * step)
            below = projection()
            leaf.add_(direction, alpha=step)
        along = 0.0 if gradient is None else (gradient * direction).sum().item()
        expected = ((above - below) / (2 * step)).item()
        assert math.isclose(along, expected, rel_tol=1e-5, abs_tol=atol), (along, expected)


def check_every_parameter_gets_a_gradient(module, loss):
    module.zero_grad()
    loss().backward()
    missing = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not missing, f"no gradient reaches {missing}"
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def check_batch_independence(function, x, context, atol):
    """A row's result does not depend on its neighbours (up to the rounding of differently blocked matrix products)."""
    whole = function(x, context)
    for i in (0, len(x) // 2, len(x) - 1):
        torch.testing.assert_close(function(x[i : i + 1], pick(context, i))[0], whole[i], rtol=0, atol=atol)


class _Call(nn.Module):
    def __init__(self, module, method):
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args):
        return getattr(self.module, self.method)(*args)


def stacked(members, method):
    """``(parameters, buffers)`` stacked over members, and a function of one member's for vmap."""
    parameters, buffers = stack_module_state([_Call(member, method) for member in members])
    template = _Call(members[0], method)
    return parameters, buffers, lambda p, b, *args: functional_call(template, (p, b), args)


def check_vmap_equals_loop(members, method, x, context, atol=1e-10):
    """Forward, and both orders of differentiation: autograd through vmap, and vmap of grad."""

    def total(result):
        return result.sum() if isinstance(result, Tensor) else sum(part.sum() for part in result)

    args = (x,) if context is None else (x, context)
    parameters, buffers, function = stacked(members, method)
    in_dims = (0, 0, *[None] * len(args))
    together = vmap(function, in_dims)(parameters, buffers, *args)
    total(together).backward()
    inside = vmap(torch.func.grad(lambda *a: total(function(*a))), in_dims)(
        {k: v.detach() for k, v in parameters.items()}, buffers, *args
    )
    for i, member in enumerate(members):
        alone = getattr(member, method)(*args)
        member.zero_grad()
        total(alone).backward()
        for a, b in zip(_parts(alone), _parts(together), strict=True):
            torch.testing.assert_close(b[i], a, rtol=0, atol=atol)
        for name, p in member.named_parameters():
            expected = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(parameters[f"module.{name}"].grad[i], expected, rtol=1e-8, atol=atol)
            torch.testing.assert_close(inside[f"module.{name}"][i], expected, rtol=1e-8, atol=atol)


def _parts(result):
    return (result,) if isinstance(result, Tensor) else result


def midpoints(low: float, high: float, n: int) -> Tensor:
    edges = torch.linspace(low, high, n + 1, dtype=torch.float64)
    return 0.5 * (edges[1:] + edges[:-1])
