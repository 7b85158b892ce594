"""Flows: a bijection and a base density. :func:`realnvp`, :func:`maf` and :func:`nsf` build them; :func:`build` rebuilds one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sbi_flows.bijections.affine import Affine
from sbi_flows.bijections.autoregressive import Autoregressive
from sbi_flows.bijections.base import Bijection, Chain, Transformer
from sbi_flows.bijections.coupling import Coupling
from sbi_flows.bijections.linear import LULinear, Whiten
from sbi_flows.bijections.spline import CircularSpline, Spline
from sbi_flows.bijections.support import ColumnSupport, parse_support
from sbi_flows.bijections.unconstrain import Unconstrain
from sbi_flows.distributions import Columns, Distribution, NormalMixture, StandardNormal, StudentT, Torus

# Rows evaluated at once where no gradient is kept: large enough to hide overheads, small enough for the cache.
ROWS_AT_ONCE = 4096


class Flow(nn.Module):
    """A density: data through support map, standardisation and trainable bijection to a base density.

    Build one with :func:`realnvp`, :func:`maf` or :func:`nsf`.

    Parameters
    ----------
    support : sequence of ColumnSupport
    bijection : Bijection
        From standardised, unconstrained columns to latent ones.
    base : Distribution
    context : int
        Columns of the context; 0 for none.
    scaling : str
        "whiten", "standard" or "none": what :meth:`fit_scaling` does to columns that are not angles.
    spec : dict
        Plain data from which :func:`build` makes the same architecture again.

    Attributes
    ----------
    features, context_features : int
    spec : dict
    """

    # Data are best given in float64 whatever the parameters' dtype: large offsets are taken off before anything is rounded.
    data_dtype = torch.float64

    _anchor: Tensor

    def __init__(
        self,
        support: Sequence[ColumnSupport],
        bijection: Bijection,
        base: Distribution,
        *,
        context: int = 0,
        scaling: str = "whiten",
        spec: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.features = len(support)
        self.context_features = context
        self.spec = dict(spec or {})
        self.support = Unconstrain(support)
        self.scaling = Whiten(self.features, [i for i, c in enumerate(support) if c.kind != "circular"], scaling)
        self.bijection = bijection
        self.base = base
        self.context_scaling = Whiten(context, method="standard") if context else None
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)  # carries dtype and device

    # --- Fitting the standardisation ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_scaling(self, x: Tensor, context: Tensor | None = None, weights: Tensor | None = None) -> Flow:
        """Set the standardisation from data.

        Columns that are not angles are whitened (or scaled) after the support map, context columns scaled one by one. A constant
        column keeps scale one; a duplicated one is floored (:meth:`sbi_flows.bijections.linear.Whiten.fit`).

        Parameters
        ----------
        x : Tensor (n, d)
            Rows outside the support are left out.
        context : Tensor (n, c), optional
        weights : Tensor (n,), optional
            Non-negative weights.

        Raises
        ------
        ValueError
            If no row with positive weight is finite and inside the support.
        """
        x, context = self._checked(x, context)
        outside, _ = self.support.replace_outside(x)
        keep = ~outside & torch.isfinite(x).all(-1)
        if weights is not None:
            keep &= weights.to(x) > 0
        if not bool(keep.any()):
            raise ValueError("Expected at least one finite row inside the support with positive weight; got none.")
        w = None if weights is None else weights.to(x.device)[keep].double()
        inside = x[keep]
        self.support.fit(inside, w)
        self.scaling.fit(self.support.forward_and_log_det(inside.double())[0], w)
        if context is not None and self.context_scaling is not None and context.shape[0] == len(keep):
            self.context_scaling.fit(context[keep].double(), w)
        return self

    # --- Density -----------------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Natural-log density of ``x (n, d)`` given ``context (n, c)`` or ``(1, c)``: ``(n,)`` in x's dtype, -inf outside the support.

        Supports and standardisation are computed in float64 whatever the flow's dtype, so float64 rows may have large offsets.
        """
        x, context = self._checked(x, context)
        if torch.is_grad_enabled() or len(x) <= ROWS_AT_ONCE:
            return self._log_prob(x, context)
        return torch.cat([self._log_prob(*rows) for rows in _pieces(x, context)])

    def _log_prob(self, x, context):
        outside, x = self.support.replace_outside(x)
        z, log_det = self.to_base(x, context)
        return torch.where(outside, -math.inf, self.base.log_prob(z) + log_det).to(x.dtype)

    def log_prob_error(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Error estimate of :meth:`log_prob`, ``(n,)``: zeros, since these bijections are exact."""
        return x.new_zeros(x.shape[0])

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent ``(n, d)`` and ``ln |det dz/dx|`` ``(n,)`` of rows inside the support."""
        y, log_support = self.support.forward_and_log_det(x)
        y, log_scaling = self.scaling.forward_and_log_det(y)
        z, log_det = self.bijection.forward_and_log_det(y.to(self._anchor.dtype), self._scaled(context))
        return z, log_support + log_scaling + log_det

    def from_base(self, z: Tensor, context: Tensor | None = None, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Data ``(n, d)``, of ``dtype`` or else the latent rows', and ``ln |det dx/dz|`` ``(n,)``."""
        y, log_det = self.bijection.inverse_and_log_det(z, self._scaled(context))
        y, log_scaling = self.scaling.inverse_and_log_det(y)
        x, log_support = self.support.inverse_and_log_det(y.to(dtype or z.dtype))
        return x, log_support + log_scaling + log_det

    # --- Draws -------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """``(n, d)`` draws; a context ``(1, c)`` serves all of them, ``(n, c)`` gives one draw a row."""
        return self.sample_and_log_prob(n, context, generator=generator, dtype=dtype)[0]

    @torch.no_grad()
    def sample_and_log_prob(
        self,
        n: int,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws ``(n, d)`` and their log density ``(n,)``; ``dtype`` is the flow's own by default, float64 keeps large offsets exact."""
        z = self.base.sample(n, generator)
        context = self._checked_context(context, n)
        drawn = [self._push(rows, given, dtype) for rows, given in _pieces(z, context)]
        return torch.cat([x for x, _ in drawn]), torch.cat([log_prob for _, log_prob in drawn])

    def _push(self, z, context, dtype):
        x, log_det = self.from_base(z, context, dtype)
        return x, (self.base.log_prob(z) - log_det).to(x.dtype)

    # --- Checks ------------------------------------------------------------------------------------------------------------

    def _scaled(self, context: Tensor | None) -> Tensor | None:
        if context is None or self.context_scaling is None:
            return None
        return self.context_scaling.forward_and_log_det(context)[0].to(self._anchor.dtype)

    def _checked(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if x.ndim != 2 or x.shape[1] != self.features:
            hint = "For a single point pass x[None]." if x.ndim == 1 and x.shape[0] == self.features else "Rows are points."
            raise ValueError(f"Expected x of shape (n, {self.features}); got {tuple(x.shape)}. {hint}")
        x = x if x.is_floating_point() else x.to(self._anchor.dtype)
        return x.to(self._anchor.device), self._checked_context(context, x.shape[0])

    def _checked_context(self, context: Tensor | None, n: int) -> Tensor | None:
        c = self.context_features
        if context is None:
            if c:
                raise ValueError(f"This flow is conditional: expected a context of shape (n, {c}) or (1, {c}); got None.")
            return None
        if not c:
            raise ValueError(
                f"This flow takes no context; got one of shape {tuple(context.shape)}. Build it with context={context.shape[-1]}."
            )
        if context.ndim != 2 or context.shape[1] != c or context.shape[0] not in (1, n):
            hint = "For one context pass context[None]." if context.ndim == 1 else "Its rows must match those of x, or be one."
            raise ValueError(f"Expected context of shape ({n}, {c}) or (1, {c}); got {tuple(context.shape)}. {hint}")
        return context.to(self._anchor.device)


def _pieces(x: Tensor, context: Tensor | None):
    for start in range(0, max(len(x), 1), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        yield x[rows], context if context is None or context.shape[0] == 1 else context[rows]


# --- Architectures ----------------------------------------------------------------------------------------------------------


def realnvp(
    features: int,
    context: int = 0,
    *,
    layers: int = 8,
    hidden: Sequence[int] = (64, 64),
    bins: int = 8,
    support=None,
    base: str | Mapping[str, Any] = "normal",
    scaling: str = "whiten",
    generator: torch.Generator | None = None,
) -> Flow:
    """Affine couplings with LU mixing: fast in both directions, the least expressive.

    Parameters
    ----------
    features, context : int
        Columns of x, and of the context (0 for none).
    layers : int
    hidden : sequence of int
        Widths of each conditioner's hidden layers.
    bins : int
        Bins of the circular splines that angles get in place of the affine map.
    support : optional
        See :func:`sbi_flows.bijections.support.parse_support`.
    base : str or dict
        "normal", "student-t" or "mixture", or a dict with its ``name`` and parameters: ``{"name": "student-t", "df": 3}``.
    scaling : str
        "whiten", "standard" or "none".
    generator : torch.Generator, optional
        Draws the initial weights.

    Examples
    --------
    >>> flow = realnvp(3)
    >>> flow.log_prob(torch.zeros(2, 3)).shape
    torch.Size([2])
    """
    spec = _spec(realnvp, locals())
    return _assemble(spec, Affine(), autoregressive=False, generator=generator)


def maf(
    features: int,
    context: int = 0,
    *,
    layers: int = 5,
    hidden: Sequence[int] = (64, 64),
    bins: int = 8,
    support=None,
    base: str | Mapping[str, Any] = "normal",
    scaling: str = "whiten",
    generator: torch.Generator | None = None,
) -> Flow:
    """Affine autoregressive flow with LU mixing; parameters as :func:`realnvp`.

    Examples
    --------
    >>> maf(2, context=1).sample(4, torch.zeros(1, 1)).shape
    torch.Size([4, 2])
    """
    spec = _spec(maf, locals())
    return _assemble(spec, Affine(), autoregressive=True, generator=generator)


def nsf(
    features: int,
    context: int = 0,
    *,
    layers: int = 5,
    hidden: Sequence[int] = (64, 64),
    bins: int = 8,
    autoregressive: bool = True,
    bound: float = 5.0,
    support=None,
    base: str | Mapping[str, Any] = "normal",
    scaling: str = "whiten",
    generator: torch.Generator | None = None,
) -> Flow:
    """Rational-quadratic spline flow with LU mixing: the default.

    Parameters
    ----------
    bins : int
        Bins of each spline.
    autoregressive : bool
        Autoregressive layers (the better fit a layer), or couplings (faster draws in many dimensions).
    bound : float
        Splines act on [-bound, bound] standard deviations and are linear beyond.
    features, context, layers, hidden, support, base, scaling, generator
        As in :func:`realnvp`.

    Examples
    --------
    >>> flow = nsf(2, support=[(0, 1), "circular"])
    >>> flow.sample(5).shape
    torch.Size([5, 2])
    """
    spec = _spec(nsf, locals())
    return _assemble(spec, Spline(bins, bound), autoregressive=autoregressive, generator=generator)


def build(spec: Mapping[str, Any], generator: torch.Generator | None = None) -> Flow:
    """The architecture of ``flow.spec`` again, with fresh weights.

    Examples
    --------
    >>> build(nsf(2, layers=1).spec).features
    2
    """
    arguments = dict(spec)
    name = arguments.pop("architecture", None)
    if name not in ARCHITECTURES:
        raise ValueError(f"Expected an architecture among {', '.join(ARCHITECTURES)}; got {name!r}.")
    return ARCHITECTURES[name](**arguments, generator=generator)


ARCHITECTURES: dict[str, Callable[..., Flow]] = {"realnvp": realnvp, "maf": maf, "nsf": nsf}


def _spec(function: Callable, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The call as plain JSON-able data."""
    names = [name for name in inspect.signature(function).parameters if name != "generator"]
    spec = {"architecture": function.__name__, **{name: arguments[name] for name in names}}
    if spec["features"] < 1:
        raise ValueError(f"Expected at least one column; got features={spec['features']}.")
    if spec["layers"] < 1:
        raise ValueError(f"Expected at least one layer; got layers={spec['layers']}.")
    spec["hidden"] = [int(width) for width in spec["hidden"]]
    spec["support"] = [column.entry for column in parse_support(spec["support"], spec["features"])]
    spec["base"] = spec["base"] if isinstance(spec["base"], str) else dict(spec["base"])
    return spec


def _assemble(spec: dict[str, Any], transformer: Transformer, autoregressive: bool, generator) -> Flow:
    features, context = spec["features"], spec["context"]
    support = parse_support(spec["support"], features)
    real = [i for i, column in enumerate(support) if column.kind != "circular"]
    circle = CircularSpline(spec["bins"])
    each = [circle if column.kind == "circular" else transformer for column in support]
    chain: list[Bijection] = []
    for layer in range(spec["layers"]):
        if layer and len(real) > 1:
            chain.append(LULinear(features, real))
        if autoregressive:
            order = list(range(features)) if layer % 2 == 0 else list(reversed(range(features)))
            chain.append(Autoregressive(each, features, context, hidden=spec["hidden"], order=order, generator=generator))
        else:
            half = range(features // 2, features) if layer % 2 == 0 or features == 1 else range(features // 2)
            chain.append(Coupling(each, features, context, active=half, hidden=spec["hidden"], generator=generator))
    base = _base(spec["base"], features, real, generator)
    return Flow(support, Chain(chain), base, context=context, scaling=spec["scaling"], spec=spec)


def _base(choice, features: int, real: list[int], generator) -> Distribution:
    options = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = options.pop("name", None)
    bases: dict[str, Callable[..., Distribution]] = {"normal": StandardNormal, "student-t": StudentT, "mixture": NormalMixture}
    if name not in bases:
        raise ValueError(f"Expected base {', '.join(map(repr, bases))} or a dict with one of these as its name; got {choice!r}.")
    if not real:
        return Torus(features)
    if name == "mixture":
        options["generator"] = generator
    own = bases[name](len(real), **options)
    angles = [i for i in range(features) if i not in real]
    return own if not angles else Columns([own, Torus(len(angles))], [real, angles])
