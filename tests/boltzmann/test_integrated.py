"""Flows that are integrated, without data: rows from chains, checks of few draws."""

import dataclasses

import pytest
import torch

from sbi_flows import BoltzmannGenerator
from sbi_flows.boltzmann import checks, fitting
from sbi_flows.flows import nsf, particle_flow
from sbi_flows.physics.molecules import dw4
from sbi_flows.results import Reliability
from sbi_flows.targets import from_log_prob


def test_chains_make_rows_of_the_target_from_few_particles():
    normal = from_log_prob(lambda x: -0.5 * x.square().sum(-1), 3)
    x = torch.randn(1000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = fitting.more_rows(normal, x, torch.Generator().manual_seed(1))
    assert fitting.MATCHED_ROWS <= len(rows) <= 1.1 * fitting.MATCHED_ROWS
    # 1000 chains have the mean square of at least 3000 independent numbers: within four standard errors, false alarms 6e-5.
    assert abs(float(rows.square().mean()) - 1) < 4 * (2 / 3000) ** 0.5


def test_particles_without_data(monkeypatch):
    """A verdict and weights, after few steps of a small flow."""
    monkeypatch.setattr(checks, "INTEGRATED_DRAWS", 300)
    monkeypatch.setattr(checks, "INTEGRATED_CHAINS", 30)
    monkeypatch.setattr(fitting, "MATCHED_ROWS", 2000)
    flow = particle_flow(4, 2, radial=8, products=4, hidden=(16, 16), steps=2, tolerance=None, generator=torch.Generator().manual_seed(0))
    generator = BoltzmannGenerator(dw4(), flow=flow, n_particles=100, n_steps=100, random_state=0).fit()
    report = generator.report_
    assert list(generator.history_) == ["matching"]
    assert report.reverse_ess > 2 / 300 and report.forward_ess > 0
    assert generator.sample(10, random_state=0).samples.shape == (10, 8)
    assert generator.free_energy(200, random_state=0).error > 0


def test_draws_of_an_integrated_flow_carry_the_density_of_its_solve():
    """The density that draws come with is that of another solve, to the tolerance."""
    flow = particle_flow(4, 2, radial=8, products=4, hidden=(16, 16), tolerance=1e-3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        flow.bijection.net.out_weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    flat = from_log_prob(lambda x: torch.zeros(len(x), dtype=x.dtype), 6)
    drawn = checks.weighted_draws(flat, flow, 50, torch.Generator().manual_seed(2))
    other = -flow.log_prob(torch.from_numpy(drawn.samples)).detach()
    torch.testing.assert_close(torch.from_numpy(drawn.log_weights), other.double(), rtol=0, atol=2e-3)


@pytest.mark.parametrize(("method", "steps"), [("matching", fitting.MATCHING_STEPS), ("heights", fitting.N_STEPS)])
def test_steps_by_method(method, steps):
    assert fitting.steps_for("auto", method) == steps
    assert fitting.steps_for(7, method) == 7
    with pytest.raises(ValueError, match="n_steps"):
        fitting.steps_for(0, method)


def test_only_integrated_flows_are_judged_by_few_draws():
    assert checks.is_integrated(particle_flow(4, 2))
    assert checks.most_draws(nsf(2)) == checks.MOST_DRAWS > checks.most_draws(particle_flow(4, 2))


def test_training_that_was_undone_says_nothing_about_the_flow():
    normal = from_log_prob(lambda x: -0.5 * x.square().sum(-1), 2)
    generator = BoltzmannGenerator(normal, method="likelihood", layers=1, n_steps=8, random_state=0)
    history = generator.fit(torch.randn(100, 2, generator=torch.Generator().manual_seed(0))).history_["likelihood"]
    bad = dataclasses.replace(history, reliability=Reliability.from_reasons(["steps were skipped"], ["a note"]))
    kept = fitting.undone(bad).reliability
    assert kept.ok
    assert kept.notes == ("a note", "in training that was undone: steps were skipped")
