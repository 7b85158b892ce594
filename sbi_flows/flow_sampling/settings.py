"""What the user chose."""

from __future__ import annotations

from dataclasses import dataclass

from sbi_flows.samplers import Kernel


@dataclass(frozen=True)
class Settings:
    """What the user chose; see :class:`sbi_flows.FlowSampler`.

    Attributes
    ----------
    n_effective, n_chains : int
    method : str
    kernel : Kernel or None
    max_evaluations : int
    ascends : bool
        Whether nothing but a prior of few columns says where to start: flows follow the posterior from there, once they are wanted.
    """

    n_effective: int
    n_chains: int
    method: str
    kernel: Kernel | None
    max_evaluations: int
    ascends: bool = False
