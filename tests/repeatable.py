"""Every run of a test draws the same: one that fails fails again, alone or among others."""

import hashlib

import numpy as np
import pytest
import torch

from sbi_flows import _random

fresh_seed = _random._fresh_seed
_stream = np.random.default_rng(0)


def _begin(name: str) -> None:
    """Seed all that draws without a seed of its own: the global generators, and ours for ``random_state=None``."""
    global _stream
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    _stream = np.random.default_rng(seed)


def pytest_configure():
    _random._fresh_seed = lambda: int(_stream.integers(2**63 - 1))


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    _begin(f"{request.node.nodeid} {fixturedef.argname}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    _begin(item.nodeid)
