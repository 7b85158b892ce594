"""Flat universes by their dark energy: parameters, priors, and the (Omega_m, H0 r_d, w0, wa) they stand for."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_flows.distributions import BoxUniform

_OMEGA_M, _H0_RD = ("Omega_m", 0.01, 0.99), ("H0_rd", 5000.0, 15000.0)  # the latter in km/s


@dataclass(frozen=True)
class CosmologyModel:
    """One universe.

    Attributes
    ----------
    name, title : str
    dark_energy : tuple of (name, low, high)
        Parameters of dark energy with the ends of their uniform priors: none, ``w0``, or ``w0`` and ``wa``.

    Examples
    --------
    >>> MODELS["wcdm"].names
    ('Omega_m', 'H0_rd', 'w')
    """

    name: str
    title: str
    dark_energy: tuple[tuple[str, float, float], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Omega_m, H0 r_d [km/s], then those of dark energy."""
        return tuple(name for name, _, _ in self._columns)

    @property
    def prior(self) -> BoxUniform:
        """Uniform: Omega_m [.01, .99], H0 r_d [5000, 15000] km/s, w or w0 [-3, 1], wa [-3, 2], and no further cut."""
        _, low, high = zip(*self._columns, strict=True)
        return BoxUniform(low, high, names=self.names)

    @property
    def prior_ends(self) -> dict[str, tuple[float, float]]:
        """Ends of the uniform prior of each parameter; a Bayes factor means something beside these only."""
        return {name: (low, high) for name, low, high in self._columns}

    @property
    def _columns(self) -> tuple[tuple[str, float, float], ...]:
        return (_OMEGA_M, _H0_RD, *self.dark_energy)

    def physical(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Omega_m, H0 r_d [km/s], w0 and wa, each ``(n,)``, of ``theta (n, d)``."""
        omega_m, h0_rd, *dark = theta.unbind(1)
        w0 = dark[0] if dark else torch.full_like(omega_m, -1.0)
        wa = dark[1] if len(dark) > 1 else torch.zeros_like(omega_m)
        return omega_m, h0_rd, w0, wa


_W0 = (-3.0, 1.0)
MODELS = {
    model.name: model
    for model in (
        CosmologyModel("lcdm", "flat LCDM", ()),
        CosmologyModel("wcdm", "flat wCDM", (("w", *_W0),)),
        CosmologyModel("w0wacdm", "flat w0waCDM", (("w0", *_W0), ("wa", -3.0, 2.0))),
    )
}


def get_cosmology(name: str | CosmologyModel) -> CosmologyModel:
    """The model of that name; ``ValueError`` with the nearest one for an unknown name."""
    if isinstance(name, CosmologyModel):
        return name
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(str(name).lower(), MODELS, n=1, cutoff=0.3)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"Unknown cosmology {name!r}; the models are {', '.join(MODELS)}.{hint}")
