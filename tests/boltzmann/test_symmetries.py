"""Generators that assume symmetries: which flow they choose, and energies that are not what they say."""

import pytest
import torch

from sbi_flows import BoltzmannGenerator
from sbi_flows.boltzmann import BoltzmannTarget, checks
from sbi_flows.boltzmann.coordinates import coordinates_of
from sbi_flows.boltzmann.symmetries import suited_flow
from sbi_flows.flows import manifold_flow, particle_flow
from sbi_flows.physics.molecules import ButaneLike, DoubleWellParticles, dw4, lj13


class Tilted(DoubleWellParticles):
    """Says that it knows no place, and is pulled along x."""

    def energy(self, x):
        return super().energy(x) + 0.3 * x[:, ::2].sum(1)


class Marked(DoubleWellParticles):
    """Says that its particles are alike; the first is held to the second."""

    def energy(self, x):
        return super().energy(x) + 0.5 * (x[:, :2] - x[:, 2:4]).square().sum(1)


def rows(n=60):
    return 2 * torch.randn(n, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("energy", "named"), [(Tilted(), "translations"), (Marked(), "permutations")])
def test_a_symmetry_that_is_assumed_and_not_there_is_named(energy, named):
    with pytest.raises(ValueError, match=f"same under {named}"):
        BoltzmannGenerator(energy, n_steps=4, random_state=0).fit(rows())


def test_particles_that_are_not_alike_have_another_flow():
    """The energy that says so gets the spline flow, for which only place must not matter."""
    energy = Marked()
    energy.permuted = ((0,), (1,), (2, 3))
    target = BoltzmannTarget(energy, coordinates=coordinates_of(energy))
    assert suited_flow(None, "auto", target, target.rows(rows()), torch.Generator()) is None


def test_alike_particles_get_the_flow_that_knows_it():
    target = BoltzmannTarget(dw4(), coordinates=coordinates_of(dw4()))
    y = target.rows(rows())
    assert suited_flow(None, "auto", target, y, torch.Generator()).spec["architecture"] == "pair_flow"
    many = BoltzmannTarget(lj13(), coordinates=coordinates_of(lj13()))
    packed = many.rows(lj13().start(20, torch.Generator().manual_seed(0)))
    assert suited_flow(None, "auto", many, packed, torch.Generator()).spec["architecture"] == "particle_flow"
    assert suited_flow(None, "heights", target, y, torch.Generator()) is None
    with pytest.raises(ValueError, match="Expected a flow of 6 features"):
        suited_flow(particle_flow(3, 2), "auto", target, y, torch.Generator())


def test_a_molecule_may_not_know_its_place():
    class Anchored(ButaneLike):
        def energy(self, x):
            return super().energy(x) + x[:, 0].square()

    with pytest.raises(ValueError, match="same under translations"):
        BoltzmannGenerator(Anchored(), n_steps=4, random_state=0).fit(ButaneLike().sample(60, torch.Generator().manual_seed(0)))


def test_flow_matching_is_the_way_of_continuous_flows(monkeypatch):
    """Configurations in, a few steps of matching, weighted configurations of particles out."""
    monkeypatch.setattr(checks, "INTEGRATED_DRAWS", 200)
    flow = particle_flow(4, 2, radial=8, products=4, hidden=(16, 16), steps=2, tolerance=None, generator=torch.Generator().manual_seed(0))
    generator = BoltzmannGenerator(dw4(), flow=flow, n_steps=8, random_state=0).fit(rows(200))
    assert list(generator.history_) == ["matching"]
    drawn = generator.sample(20, random_state=0)
    assert drawn.samples.shape == (20, 8)
    assert abs(drawn.samples.reshape(20, 4, 2).mean(1)).max() < 1e-6
    x = torch.from_numpy(drawn.samples)
    turned = x.unflatten(1, (4, 2)).flip(1).flip(2).flatten(1) + 3.0
    torch.testing.assert_close(*map(torch.from_numpy, (generator.log_prob(turned), generator.log_prob(x))), rtol=0, atol=1e-3)


def test_angles_of_a_torus_by_matching(monkeypatch):
    """A flow on a manifold given to the generator: its own loss, and an exact free energy."""
    monkeypatch.setattr(checks, "INTEGRATED_DRAWS", 500)
    energy = lambda x: -2 * torch.cos(x[:, 0]) - torch.cos(x[:, 1] - x[:, 0])  # noqa: E731
    uniform = torch.pi * (2 * torch.rand(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1)
    kept = torch.rand(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) < torch.exp(-energy(uniform) - 3)
    flow = manifold_flow(["circular", "circular"], hidden=(32, 32), tolerance=None, steps=4, generator=torch.Generator().manual_seed(0))
    generator = BoltzmannGenerator(energy, 2, support="circular", flow=flow, n_steps=300, learning_rate=3e-3, random_state=0)
    found = generator.fit(uniform[kept]).free_energy(500, random_state=0)
    exact = torch.log(4 * torch.pi**2 * torch.special.i0(torch.tensor(2.0)) * torch.special.i0(torch.tensor(1.0)))
    # Five standard errors: false alarms 6e-7.
    assert abs(found.value + float(exact)) < 5 * found.error
    assert found.error < 0.1
