"""Whole numbers as cells: probabilities by quadrature where the truth is known, and what is said where it fails."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sbi_flows.inference.cells import Cells, reasons_against


def normal(mean, scale):
    return lambda x, given: torch.distributions.Normal(mean, scale).log_prob(x).sum(1)


def masses(cells, density, k):
    rows = torch.as_tensor(np.asarray(k, dtype=float))
    return cells.log_mass(density, rows, torch.zeros(len(rows), 0)).exp()


def all_counts(n, columns) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(n).double()] * columns).view(-1, columns)


@pytest.mark.parametrize("scale", ["root", "log", "unit"])
def test_probabilities_of_a_density_sum_to_one_and_are_those_of_its_cells(scale):
    """The lowest cell reaches to minus infinity where counts have a scale: a normal density centred there loses nothing."""
    law = torch.distributions.Normal(torch.tensor(0.6).double(), 0.5)
    k = torch.arange(-8.0, 60).double()[:, None]
    found = masses(Cells([scale], level=2), normal(0.6, 0.5), k)
    g = {"root": torch.sqrt, "log": torch.log1p, "unit": lambda x: x}[scale]
    edges = torch.arange(61.0).double()
    exact = law.cdf(g(edges[1:])) - law.cdf(g(edges[:-1]))
    if scale != "unit":
        exact[0] = law.cdf(g(edges[1]))
        assert (found[k[:, 0] < 0] == 0).all()
    torch.testing.assert_close(found[8:], exact, rtol=0, atol=1e-3)
    assert found.sum().item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("columns", [2, 3])
def test_several_columns(columns):
    found = masses(Cells(["root"] * columns, level=2), normal(1.0, 0.6), all_counts(14, columns))
    assert found.sum().item() == pytest.approx(1, abs=0.02)


def test_continuous_columns_are_left_alone():
    cells = Cells(["", "root"], level=2)
    rows = torch.tensor([[0.3, 2.0]]).double()
    both = cells.log_mass(normal(1.0, 0.6), rows, torch.zeros(1, 0))
    apart = normal(1.0, 0.6)(rows[:, :1], None) + Cells(["root"], level=2).log_mass(normal(1.0, 0.6), rows[:, 1:], torch.zeros(1, 0))
    torch.testing.assert_close(both, apart, rtol=0, atol=1e-6)
    assert Cells([""]).fine_enough(normal(0.0, 1.0), rows[:, :1], torch.zeros(1, 0))[1] == 0


@pytest.mark.parametrize("scale", ["unit", "root", "log"])
def test_noise_stays_in_its_cell(scale):
    k = np.repeat([0.0, 1.0, 7.0], 500)[:, None]
    noisy = Cells([scale]).noisy(k, np.random.default_rng(0))
    x = {"unit": noisy, "root": np.sign(noisy) * noisy**2, "log": np.expm1(noisy)}[scale]
    assert (x < k + 1 + 1e-9).all() and (x[k > 0] >= k[k > 0] - 1e-9).all()
    assert (noisy[k == 0] < 0).any() == (scale != "unit")


def test_the_rule_is_as_fine_as_the_density_needs_or_says_that_it_is_not():
    k, given = torch.arange(40.0).double()[:, None], torch.zeros(40, 0)
    broad, error = Cells(["unit"]).fine_enough(normal(20.0, 30.0), k, given)
    assert broad.level == 0 and not reasons_against(error)
    narrower, error = Cells(["unit"]).fine_enough(normal(20.0, 2.0), k[15:25], given[15:25])
    assert narrower.level > 0 and not reasons_against(error)
    spike, error = Cells(["unit"]).fine_enough(normal(20.013, 0.004), k[20:21], given[20:21])
    assert spike.level == 2 and "wrong by" in reasons_against(error)[0]
    assert reasons_against(float("nan"))
