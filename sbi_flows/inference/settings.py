"""The estimator that a method is given: checked, copied and seeded."""

from __future__ import annotations

from typing import Any, TypeVar

from sklearn.base import clone

from sbi_flows._random import RandomState, seed_from
from sbi_flows.estimators import ConditionalFlow, RatioClassifier

Kind = TypeVar("Kind", ConditionalFlow, RatioClassifier)


def own_copy(given: Any, kind: type[Kind], name: str, random_state: RandomState) -> Kind:
    """An unfitted copy of ``given``, seeded by ``random_state`` or else as it was itself.

    Raises
    ------
    TypeError
        If it is not of ``kind``; ``name`` is what the argument is called.
    """
    if not isinstance(given, kind):
        got = f"the class {given.__name__}" if isinstance(given, type) else repr(given) if isinstance(given, str) else type(given).__name__
        example = 'flow="cnf"' if kind is ConditionalFlow else 'loss="balanced"'
        raise TypeError(f"Expected {name} to be a {kind.__name__} or None; got {got}. Make one, such as {kind.__name__}({example}).")
    copied: Kind = clone(given)
    # A fixed seed keeps held-out rows held out when more simulations are added.
    return copied.set_params(random_state=seed_from(copied.random_state if random_state is None else random_state))
