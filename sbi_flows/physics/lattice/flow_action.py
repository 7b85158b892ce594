"""A theory seen through a flow: the action of its latent fields, in which HMC is field-transformation HMC."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from sbi_flows.flows import Flow
from sbi_flows.physics.lattice.action import Action


class FlowAction(Action):
    """``S(F(V)) - ln |det dF/dV|`` of latent fields ``V``, where ``F`` is the flow from latent to physical fields.

    Nearly constant for a well-trained flow: no barrier between topological sectors is left. Whatever the flow, HMC of ``V`` with
    this action gives fields ``F(V)`` of the theory exactly.

    Parameters
    ----------
    theory : Action
    flow : Flow
        Of the theory's flattened fields, with a constant base density (uniform angles); a float64 copy of it is used.

    Examples
    --------
    >>> from sbi_flows.physics.lattice import U1, FieldHMC, gauge_flow, run_fields
    >>> seen = FlowAction(U1(4, beta=1.0), gauge_flow(4, block=4))
    >>> start = seen.hot_start(10, torch.Generator().manual_seed(0))
    >>> run_fields(FieldHMC(0.3, 3), seen, start, n_steps=4, random_state=0).observables["charge"].shape
    (10, 4)

    References
    ----------
    Luescher 2010, "Trivializing maps, the Wilson flow and the HMC algorithm", arXiv:0907.5491; Foreman et al. 2021, "HMC with normalizing
    flows", arXiv:2112.01586.
    """

    def __init__(self, theory: Action, flow: Flow):
        if flow.features != theory.features or flow.context_features:
            raise ValueError(
                f"Expected a flow of the {theory.features} numbers of a field of {theory}, without context; got one of {flow.features} "
                f"with {flow.context_features} context features."
            )
        self.theory, self.shape, self.circular = theory, theory.shape, theory.circular
        self.flow = copy.deepcopy(flow).double().requires_grad_(False).eval()

    def action(self, field):
        self.check(field)
        physical, log_det = self._pushed(field)
        return self.theory.action(physical) - log_det

    def force(self, field):
        return self.action_and_force(field)[1]

    def action_and_force(self, field):
        field = field.detach().requires_grad_()
        with torch.enable_grad():
            action = self.action(field)
            (gradient,) = torch.autograd.grad(action.sum(), field)
        return action.detach(), -gradient

    def observables(self, field):
        return self.theory.observables(field)

    def physical(self, field):
        return self._pushed(field)[0]

    def latent(self, physical: Tensor) -> Tensor:
        """The latent fields of physical ones ``(n, *shape)``."""
        self.theory.check(physical)
        return self.flow.bijection.forward_and_log_det(physical.flatten(1))[0].reshape(physical.shape)

    def __repr__(self) -> str:
        return f"{self.theory} through a flow"

    def _pushed(self, field: Tensor) -> tuple[Tensor, Tensor]:
        physical, log_det = self.flow.bijection.inverse_and_log_det(field.flatten(1))
        return physical.reshape(field.shape), log_det
