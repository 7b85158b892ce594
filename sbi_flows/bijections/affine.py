"""The affine transformer."""

import torch

from sbi_flows.bijections.base import Transformer


class Affine(Transformer):
    """Elementwise ``z = (x - shift) * exp(-log_scale)``.

    Parameters
    ----------
    max_log_scale : float
        Soft bound on ``|log_scale|``: large scales destroy float32 inverses long before they help a fit.

    Examples
    --------
    >>> import torch
    >>> z, log_det = Affine().forward(torch.ones(3), torch.zeros(2, 3))

    References
    ----------
    Papamakarios, Pavlakou & Murray 2017, "Masked autoregressive flow for density estimation", arXiv:1705.07057.
    """

    n_params = 2

    def __init__(self, max_log_scale: float = 5.0):
        if not max_log_scale > 0:
            raise ValueError(f"Expected max_log_scale > 0; got {max_log_scale}.")
        self.max_log_scale = max_log_scale

    def forward(self, x, params):
        """``x (*shape)``, ``params (2, *shape)`` to ``z (*shape)`` and its log derivative ``(*shape)``."""
        shift, log_scale = self._split(params)
        return (x - shift) * torch.exp(-log_scale), -log_scale

    def inverse(self, z, params):
        """``z (*shape)``, ``params (2, *shape)`` to ``x (*shape)`` and its log derivative ``(*shape)``."""
        shift, log_scale = self._split(params)
        return torch.addcmul(shift, z, torch.exp(log_scale)), log_scale

    def pull(self, method, x, params, value, score):
        raw = params.detach()[1]
        bounded = torch.tanh(raw / self.max_log_scale)
        slope = torch.exp(self.max_log_scale * (bounded if method == "forward" else -bounded))
        # Forward, the way back is x = z exp(a) + shift; inverse, it is z = (x - shift) exp(-a). Its log derivative is a, or -a.
        pulled = score * slope
        if method == "forward":
            g_shift, g_scale = score, pulled * value.detach() + 1
        else:
            g_shift, g_scale = -pulled, -score * x.detach() - 1
        return pulled, torch.stack([g_shift, g_scale * (1 - bounded.square())])

    def _split(self, params):
        shift, raw = params.unbind(0)
        return shift, self.max_log_scale * torch.tanh(raw / self.max_log_scale)
