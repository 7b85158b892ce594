"""Estimators that are fitted once for many tests."""

import pytest
from small_fits import FAST, pairs, rows

from sbi_flows import ConditionalFlow, FlowDensity


@pytest.fixture(scope="module")
def density():
    return FlowDensity(**FAST).fit(rows())


@pytest.fixture(scope="module")
def conditional():
    return ConditionalFlow(**FAST).fit(*pairs())
