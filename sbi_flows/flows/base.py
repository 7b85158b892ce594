"""A flow: a bijection and a base density, with the support and the scaling of its columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sbi_flows._threads import each_on_a_thread
from sbi_flows.bijections.base import Bijection
from sbi_flows.bijections.continuous import Continuous
from sbi_flows.bijections.linear import Whiten
from sbi_flows.bijections.support import ColumnSupport
from sbi_flows.bijections.unconstrain import Unconstrain
from sbi_flows.distributions import Distribution
from sbi_flows.nn import transforms_active

Result = TypeVar("Result")

# Rows evaluated at once where no gradient is kept: on a CPU large enough to hide overheads and small enough for the cache, elsewhere
# enough to fill the device.
ROWS_AT_ONCE = 2048
ROWS_AT_ONCE_ON_DEVICE = 2**18


class Flow(nn.Module):
    """A density: data through support map, standardisation and trainable bijection to a base density.

    Build one with :func:`sbi_flows.flows.nsf` or one of its neighbours.

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
        Plain data from which :func:`sbi_flows.flows.build` makes the same architecture again.

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
        self.scaling = Whiten(self.features, [i for i, c in enumerate(support) if c.kind != "circular"], scaling, context)
        self.bijection = bijection
        self.base = base
        self.context_scaling = Whiten(context, method="standard") if context else None
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)  # carries dtype and device

    # --- Fitting the standardisation ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_scaling(
        self, x: Tensor, context: Tensor | None = None, weights: Tensor | None = None, *, regress: bool = True
    ) -> Flow:
        """Set the standardisation from data.

        Columns that are not angles are whitened (or scaled) after the support map and after their ridge regression on the context,
        context columns scaled one by one. A constant column keeps scale one; a duplicated one is floored
        (:meth:`sbi_flows.bijections.linear.Whiten.fit`).

        Parameters
        ----------
        x : Tensor (n, d)
            Rows outside the support are left out.
        context : Tensor (n, c), optional
        weights : Tensor (n,), optional
            Non-negative weights.
        regress : bool
            False where the context will change its meaning, as the output of an untrained network does.

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
        given = None
        if context is not None and self.context_scaling is not None and context.shape[0] == len(keep):
            given = context[keep].double()
            self.context_scaling.fit(given, w)
            given, _ = self.context_scaling.forward_and_log_det(given)
        self.scaling.fit(self.support.forward_and_log_det(inside.double())[0], w, given if regress else None)
        return self

    def choose_steps(self, x: Tensor, context: Tensor | None = None) -> Flow:
        """After training, choose the integration steps of a continuous flow from the errors measured on rows ``x (n, d)``.

        Rows outside the support are left out. Exact flows have nothing to choose.
        """
        if not isinstance(self.bijection, Continuous):
            return self
        x, context = self._checked(x, context)
        inside = ~self.support.replace_outside(x)[0] & torch.isfinite(x).all(-1)
        given = self._scaled(context if context is None or len(context) == 1 else context[inside])
        self.bijection.choose_steps(self._standardised(x[inside], given)[0], self._rounded(given))
        return self

    # --- Density -----------------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Natural-log density of ``x (n, d)`` given ``context (n, c)`` or ``(1, c)``: ``(n,)`` in x's dtype, -inf outside the support.

        Supports and standardisation are computed in float64 whatever the flow's dtype, so float64 rows may have large offsets.
        """
        x, context = self._checked(x, context)
        if torch.is_grad_enabled() or transforms_active():
            return self._log_prob(x, context)
        return torch.cat(self._by_pieces(lambda rows: self._log_prob(*rows), x, context))

    def _log_prob(self, x, context):
        outside, x = self.support.replace_outside(x)
        z, log_det = self.to_base(x, context)
        return torch.where(outside, -math.inf, self.base.log_prob(z) + log_det).to(x.dtype)

    @torch.no_grad()
    def log_prob_error(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Estimated error of :meth:`log_prob` in nats, ``(n,)``: the integrator's for continuous flows, zero for exact ones."""
        x, context = self._checked(x, context)
        return torch.cat(self._by_pieces(lambda rows: self._log_prob_error(*rows), x, context))

    def _log_prob_error(self, x, context):
        outside, x = self.support.replace_outside(x)
        given = self._scaled(context)
        error = self.bijection.forward_with_error(self._standardised(x, given)[0], self._rounded(given))[2]
        return torch.where(outside, 0.0, error).to(x.dtype)

    def log_prob_with_costs(self, x: Tensor, context: Tensor | None = None, *, steps: int = 8) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`log_prob` of a continuous flow on a fixed grid, for training, and the kinetic energy and curvature of the paths.

        Each ``(n,)``. See :mod:`sbi_flows.bijections.training_solve`.
        """
        x, context = self._checked(x, context)
        outside, x = self.support.replace_outside(x)
        given = self._scaled(context)
        y, log_boundary = self._standardised(x, given)
        z, log_det, kinetic, curvature = self.continuous.forward_with_costs(y, self._rounded(given), steps)
        log_prob = torch.where(outside, -math.inf, self.base.log_prob(z) + log_boundary + log_det).to(x.dtype)
        return log_prob, kinetic, curvature

    def to_unconstrained(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Rows inside the support to what the trainable bijection sees, ``(n, d)`` in the flow's own dtype."""
        x, context = self._checked(x, context)
        return self._standardised(x, self._scaled(context))[0]

    def enter(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What comes before the trainable bijection, which training leaves as it is.

        Returns
        -------
        outside : Tensor (n,)
            Rows beyond the support.
        y : Tensor (n, d)
            What the bijection sees, in the flow's own dtype.
        log_det : Tensor (n,)
        context : Tensor (n, c) or None
            As the bijection sees it.
        """
        x, context = self._checked(x, context)
        outside, x = self.support.replace_outside(x)
        given = self._scaled(context)
        y, log_det = self._standardised(x, given)
        return outside, y, log_det, self._rounded(given)

    def _standardised(self, x, given):
        y, log_support = self.support.forward_and_log_det(x)
        y, log_scaling = self.scaling.forward_and_log_det(y, given)
        return y.to(self._anchor.dtype), log_support + log_scaling

    def to_base(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent ``(n, d)`` and ``ln |det dz/dx|`` ``(n,)`` of rows inside the support."""
        given = self._scaled(context)
        y, log_boundary = self._standardised(x, given)
        z, log_det = self.bijection.forward_and_log_det(y, self._rounded(given))
        return z, log_boundary + log_det

    def from_base(self, z: Tensor, context: Tensor | None = None, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Data ``(n, d)``, of ``dtype`` or else the latent rows', and ``ln |det dx/dz|`` ``(n,)``."""
        given = self._scaled(context)
        y, log_det = self.bijection.inverse_and_log_det(z, self._rounded(given))
        y, log_scaling = self.scaling.inverse_and_log_det(y, given)
        x, log_support = self.support.inverse_and_log_det(y.to(dtype or z.dtype))
        return x, log_support + log_scaling + log_det

    def to_base_with_score(self, x: Tensor, score: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`to_base`, and the score ``(n, d)``, detached, of the image of a density whose score at x is ``score (n, d)``."""
        given = self._scaled(context)
        y, log_support, score = self.support.forward_with_score(x, score)
        y, log_scaling, score = self.scaling.forward_with_score(y, score, given)
        own = self._anchor.dtype
        z, log_det, score = self.bijection.forward_with_score(y.to(own), score.to(own), self._rounded(given))
        return z, log_support + log_scaling + log_det, score

    def from_base_with_score(
        self, z: Tensor, context: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`from_base`, and the gradient ``(n, d)`` of :meth:`log_prob` at the data, detached; without a second pass where layers
        need none."""
        given = self._scaled(context)
        y, log_det, score = self.bijection.inverse_with_score(z, self.base_score(z), self._rounded(given))
        y, log_scaling, score = self.scaling.inverse_with_score(y, score, given)
        wide = dtype or z.dtype
        x, log_support, score = self.support.inverse_with_score(y.to(wide), score.to(wide))
        return x, log_support + log_scaling + log_det, score

    def base_score(self, z: Tensor) -> Tensor:
        """Gradient ``(n, d)`` of the base's log-density at ``z (n, d)``."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return torch.autograd.grad(self.base.log_prob(z).sum(), z)[0]

    def velocity(self, t: Tensor, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Velocity ``(n, d)`` of a continuous flow at times ``t`` () or (n,), noise at 0 and data at 1, and ``y (n, d)``.

        ``y`` is where :meth:`to_unconstrained` leads, ``context (n, c)`` as for :meth:`log_prob`.

        Raises
        ------
        TypeError
            If the flow is not continuous.
        """
        return self.continuous.velocity(t, y, self._rounded(self._scaled(self._checked_context(context, y.shape[0]))))

    def conditioned(self, context: Tensor | None) -> tuple[Flow, Tensor | None]:
        """The flow that does the work, and the context it sees: itself and ``context``, as nothing lies between."""
        return self, context

    @property
    def continuous(self) -> Continuous:
        """The bijection of a continuous flow; ``TypeError`` for any other."""
        if not isinstance(self.bijection, Continuous):
            raise TypeError(f"Expected a continuous flow, as cnf() builds; the bijection of this one is {type(self.bijection).__name__}.")
        return self.bijection

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
        drawn = self._by_pieces(lambda rows: self._push(*rows, dtype), z, context)
        return torch.cat([x for x, _ in drawn]), torch.cat([log_prob for _, log_prob in drawn])

    def _push(self, z, context, dtype):
        x, log_det = self.from_base(z, context, dtype)
        return x, (self.base.log_prob(z) - log_det).to(x.dtype)

    def _by_pieces(self, function: Callable[[tuple[Tensor, Tensor | None]], Result], x: Tensor, context: Tensor | None) -> list[Result]:
        """``function`` of pieces ``(x, context)`` of the rows, on the threads that suit them."""
        pieces = list(_pieces(x, context, self._rows_at_once(x)))
        if x.device.type != "cpu":
            return [function(piece) for piece in pieces]
        weights = sum(p.numel() for p in self.parameters())
        return each_on_a_thread(function, pieces, min(len(x), self._rows_at_once(x)) * weights)

    def _rows_at_once(self, x: Tensor) -> int:
        most = rows_at_once(x)
        return min(most, self.bijection.rows_at_once) if x.device.type == "cpu" else most

    # --- Checks ------------------------------------------------------------------------------------------------------------

    def _scaled(self, context: Tensor | None) -> Tensor | None:
        if context is None or self.context_scaling is None:
            return None
        return self.context_scaling.forward_and_log_det(context)[0]

    def _rounded(self, context: Tensor | None) -> Tensor | None:
        return None if context is None else context.to(self._anchor.dtype)

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


def rows_at_once(x: Tensor) -> int:
    """Rows of one piece where no gradient is kept."""
    return ROWS_AT_ONCE if x.device.type == "cpu" else ROWS_AT_ONCE_ON_DEVICE


def _pieces(x: Tensor, context: Tensor | None, size: int):
    for start in range(0, max(len(x), 1), size):
        rows = slice(start, start + size)
        yield x[rows], context if context is None or context.shape[0] == 1 else context[rows]
