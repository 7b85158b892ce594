"""One door for randomness: ``random_state`` in public, a ``torch.Generator`` or ``numpy.random.Generator`` inside.

Nothing here reads or sets a global seed. An integer seeds streams of our own: users make parameters and noise with
``default_rng(0)`` or ``torch.Generator().manual_seed(0)`` and then pass ``random_state=0``, and what is drawn here must not be a function
of what they drew there.
"""

import numpy as np
import torch
from torch import Tensor

_OURS = 1_701_732_083  # any number that nobody else would spawn

RandomState = int | np.random.Generator | np.random.RandomState | torch.Generator | None


def seed_from(random_state: RandomState) -> int:
    """A 63-bit seed: the integer given, the next draw of the generator given, or fresh entropy for ``None``."""
    if random_state is None:
        return _fresh_seed()
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**63 - 1))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, torch.Generator):
        return int(torch.randint(2**63 - 1, (), generator=random_state, device=random_state.device))
    if isinstance(random_state, int | np.integer) and random_state >= 0:
        return int(random_state)
    raise ValueError(
        f"Expected random_state to be a non-negative int, a numpy or torch generator, or None; got {random_state!r}."
    )


def _fresh_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> np.uint64(1))


def own_seed(random_state: RandomState) -> int:
    """As :func:`seed_from`, scrambled: a seed that nobody gives by hand."""
    return int(_sequence(random_state).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _sequence(random_state: RandomState) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed_from(random_state), spawn_key=(_OURS,))


def torch_generator(random_state: RandomState, device: torch.device | str = "cpu") -> torch.Generator:
    """A ``torch.Generator`` on ``device``; one that is already there is passed through, so its stream continues."""
    if isinstance(random_state, torch.Generator) and random_state.device == torch.device(device):
        return random_state
    return torch.Generator(device).manual_seed(own_seed(random_state))


def numpy_generator(random_state: RandomState) -> np.random.Generator:
    """A ``numpy.random.Generator``; one given is passed through, so its stream continues."""
    return random_state if isinstance(random_state, np.random.Generator) else np.random.default_rng(_sequence(random_state))


def randn(shape, generator: torch.Generator | None, *, dtype: torch.dtype | None = None, device=None) -> Tensor:
    """Standard normal draws on the generator's own device (moved only if ``device`` differs)."""
    where = generator.device if generator is not None else device
    return torch.randn(shape, generator=generator, dtype=dtype, device=where).to(device if device is not None else where)


def rand(shape, generator: torch.Generator | None, *, dtype: torch.dtype | None = None, device=None) -> Tensor:
    """Uniform draws on [0, 1) on the generator's own device (moved only if ``device`` differs)."""
    where = generator.device if generator is not None else device
    return torch.rand(shape, generator=generator, dtype=dtype, device=where).to(device if device is not None else where)
