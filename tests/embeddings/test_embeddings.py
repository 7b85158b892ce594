"""Embeddings: shapes, rows on their own, members under vmap, exchangeability, missing values, files, and what "auto" chooses."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from sbi_flows import ConditionalFlow
from sbi_flows.embeddings import SetEmbedding, ShapedEmbedding, TokenEmbedding, build_embedding, choose_embedding, is_curve
from sbi_flows.embeddings.choose import order_matters

SPECS = {
    "vector": {"embedding": "vector", "shape": [7], "missing": [2, 5]},
    "set of numbers": {"embedding": "set", "shape": [6], "missing": [3, 4, 5]},
    "set": {"embedding": "set", "shape": [6, 2]},
    "series": {"embedding": "series", "shape": [30, 2], "missing": list(range(40, 60))},
    "short series": {"embedding": "series", "shape": [3]},
    "spectrum": {"embedding": "spectrum", "shape": [41], "missing": [0]},
    "long spectrum": {"embedding": "spectrum", "shape": [517]},
    "image": {"embedding": "image", "shape": [2, 9, 17]},
    "grey image": {"embedding": "image", "shape": [6, 6], "missing": [4]},
    "token": {"embedding": "token", "shape": [5], "missing": [1]},
    "objects": {"embedding": "objects", "shape": [4, 3]},
    "trials as tokens": {"embedding": "token", "shape": [5, 3]},
}


def made(name, seed=0, dtype=torch.float64):
    return build_embedding(SPECS[name], torch.Generator().manual_seed(seed)).to(dtype)


def rows_for(embedding, n=9, seed=1):
    rows = torch.randn(n, embedding.inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    masks = len(embedding.missing)
    if masks:
        rows[:, -masks:] = (rows[:, -masks:] > 0.5).double()
    return rows


@pytest.mark.parametrize("name", SPECS)
def test_a_row_alone_is_a_row_among_others(name):
    embedding = made(name)
    rows = rows_for(embedding)
    out = embedding(rows)
    assert out.shape == (9, embedding.outputs)
    torch.testing.assert_close(embedding(rows[4:5]), out[4:5], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_members_under_vmap_are_members_alone(name):
    members = [made(name, seed) for seed in range(3)]
    rows = rows_for(members[0])
    parameters, buffers = stack_module_state(members)
    together = vmap(lambda state: functional_call(members[0], state, (rows,)))({**parameters, **buffers})
    for member, out in zip(members, together, strict=True):
        torch.testing.assert_close(member(rows), out, rtol=0, atol=1e-10)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("name", SPECS)
def test_every_weight_gets_a_gradient(name):
    embedding = made(name)
    embedding(rows_for(embedding)).square().sum().backward()
    for label, parameter in embedding.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, label


@pytest.mark.parametrize("name", SPECS)
def test_spec_and_units(name):
    embedding = made(name)
    assert build_embedding(embedding.spec).spec == embedding.spec
    rows = rows_for(embedding, n=200)
    columns = embedding.inputs - len(embedding.missing)
    embedding.fit_scaling(rows)
    out = embedding(rows)
    scaled = rows.clone()
    scaled[:, :columns] = 1e6 * rows[:, :columns] + 1e7
    embedding.fit_scaling(scaled)
    torch.testing.assert_close(embedding(scaled), out, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if "missing" in spec])
def test_what_is_missing_does_not_matter(name):
    embedding = made(name)
    rows = rows_for(embedding)
    columns = embedding.inputs - len(embedding.missing)
    other = rows.clone()
    hidden = torch.zeros(9, columns, dtype=torch.bool)
    hidden[:, embedding.missing] = rows[:, columns:] > 0
    assert hidden.any()
    other[:, :columns][hidden] = 1e3
    torch.testing.assert_close(embedding(other), embedding(rows), rtol=0, atol=1e-12)
    other[:, :columns][hidden] = torch.nan
    torch.testing.assert_close(embedding(other), embedding(rows), rtol=0, atol=1e-12)
    assert not torch.allclose(embedding(rows), embedding(torch.where(torch.arange(rows.shape[1]) < columns, rows, 0.0)))


@pytest.mark.parametrize("kind", [SetEmbedding, TokenEmbedding])
def test_trials_may_change_places_and_their_number_is_seen(kind):
    embedding = kind((8, 2), missing=range(16), generator=torch.Generator().manual_seed(0)).double()
    generator = torch.Generator().manual_seed(1)
    trials = torch.randn(5, 8, 2, generator=generator, dtype=torch.float64)
    masks = torch.zeros(5, 8, 2, dtype=torch.float64)
    masks[:, 5:] = 1.0
    order = torch.randperm(8, generator=generator)

    def embed(trials, masks):
        return embedding(torch.cat([trials.flatten(1), masks.flatten(1)], dim=1))

    torch.testing.assert_close(embed(trials[:, order], masks[:, order]), embed(trials, masks), rtol=0, atol=1e-12)
    twice = torch.cat([trials[:, :4], trials[:, :4]], dim=1)
    half = torch.zeros_like(masks)
    half[:, 4:] = 1.0
    assert not torch.allclose(embed(twice, torch.zeros_like(masks)), embed(twice, half))
    assert torch.isfinite(embed(trials, torch.ones_like(masks))).all()


def test_scale_of_a_set_is_shared_and_counts_what_is_there():
    embedding = SetEmbedding((4, 1), missing=range(4)).double()
    values = torch.tensor([[1.0, 3.0, 99.0, 99.0], [5.0, 7.0, 9.0, 99.0]], dtype=torch.float64)
    masks = (values == 99.0).double()
    embedding.fit_scaling(torch.cat([values, masks], dim=1))
    there = values[values != 99.0]
    assert embedding.location.flatten().tolist() == pytest.approx([there.mean().item()])
    assert embedding.scale.flatten().tolist() == pytest.approx([there.std(correction=0).item()])


def test_float32_is_the_default_and_shapes_are_checked():
    embedding = build_embedding(SPECS["series"])
    assert embedding(rows_for(embedding).float()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"rows of shape \(n, 80\): 60 values .* 20 masks; got \(2, 60\)"):
        embedding(torch.zeros(2, 60))
    with pytest.raises(ValueError, match="shape of a set"):
        SetEmbedding((2, 3, 4))
    with pytest.raises(ValueError, match="odd width"):
        build_embedding({"embedding": "image", "shape": [8, 8], "kernel": 4})
    with pytest.raises(ValueError, match="flat indices below 6"):
        SetEmbedding((6,), missing=[6])
    with pytest.raises(ValueError, match="an embedding among vector, set"):
        build_embedding({"embedding": "sett", "shape": [8]})


def test_building_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    for spec in SPECS.values():
        build_embedding(spec, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


# --- Choosing ------------------------------------------------------------------------------------------------------------------


def test_the_shape_decides():
    assert choose_embedding((5,))[0] is None
    assert choose_embedding(())[0] is None
    assert choose_embedding((1000,))[0]["embedding"] == "spectrum"
    assert choose_embedding((3, 8, 8))[0]["embedding"] == "image"
    assert choose_embedding((5,), "token")[0]["embedding"] == "token"
    spec, notes = choose_embedding((20, 2), missing=[3])
    assert spec["embedding"] == "set" and spec["missing"] == [3] and "exchangeable" in notes[0]
    with pytest.raises(ValueError, match="up to three axes"):
        choose_embedding((2, 2, 2, 2))
    with pytest.raises(ValueError, match="Expected embedding to be one of 'auto', 'vector'"):
        choose_embedding((5,), "lstm")


def test_order_is_found_where_it_matters():
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(1000, 1, 1))
    trials = theta + rng.standard_cauchy(size=(1000, 30, 1))
    assert not order_matters(trials)
    trials[:, 12:] = np.where(rng.random((1000, 1, 1)) < 0.5, np.nan, trials[:, 12:])
    assert not order_matters(trials)
    walk = np.cumsum(rng.normal(size=(1000, 30, 1)), axis=1)
    assert order_matters(walk)
    noise = theta + rng.normal(size=(1000, 30, 1))
    noise[:, 7] += 1.0
    assert order_matters(noise)
    assert choose_embedding((30, 1), x=walk)[0]["embedding"] == "series"


def test_order_is_found_where_only_second_moments_show_it():
    """Changes of spread, and correlations whose sign averages out over the prior, at lags one and two, whole or with values missing."""
    rng = np.random.default_rng(0)
    change = rng.integers(5, 35, (2000, 1))
    assert order_matters((rng.normal(size=(2000, 40)) * np.where(np.arange(40) >= change, 4.0, 1.0))[..., None])
    phi = rng.uniform(-0.9, 0.9, 2000)
    for lag in (1, 2):
        series = rng.normal(size=(2000, 40))
        for t in range(lag, 40):
            series[:, t] += phi * series[:, t - lag]
        assert order_matters(series[..., None])
        assert order_matters(np.where(rng.random(series.shape) < 0.2, np.nan, series)[..., None])
    volatility = np.cumsum(rng.normal(scale=0.3, size=(2000, 40)), axis=1)
    assert order_matters((rng.normal(size=(2000, 40)) * np.exp(volatility - volatility.mean(1, keepdims=True)))[..., None])


@pytest.mark.slow
def test_order_is_not_found_where_there_is_none():
    """The stated false-alarm rate is below 1e-4 a data set; none in 200 is expected (1e-2 or less for one)."""
    rng = np.random.default_rng(1)
    assert not any(order_matters(rng.gamma(1 + rng.random((500, 1, 1)), size=(500, 50, 2))) for _ in range(200))


def test_curves_are_told_from_other_columns():
    """A narrow line in noise and a drift are curves; noise, a common factor, and blocks of three, in order or not, are none."""
    rng = np.random.default_rng(0)
    places, centre = np.linspace(0, 1, 100), rng.uniform(0.1, 0.9, (1000, 1))
    line = np.exp(-0.5 * ((places - centre) / 0.012) ** 2)
    assert is_curve(2 * line + rng.normal(size=line.shape) * 0.3)
    assert is_curve(np.cumsum(rng.normal(size=(1000, 100)), axis=1) + rng.normal(size=(1000, 100)))
    noise = rng.normal(size=(1000, 100))
    blocks = np.repeat(rng.normal(size=(1000, 33)), 3, axis=1) + noise[:, :99]
    for other in (noise, noise + 3 * centre, blocks, blocks[:, rng.permutation(99)], (line > 0.5).astype(float), line[:, :20], line[:50]):
        assert not is_curve(other)


# --- In an estimator -----------------------------------------------------------------------------------------------------------

FAST = {"flow": "maf", "layers": 1, "hidden": (16,), "max_epochs": 3, "random_state": 0}


def sets(n=300, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n, 1))
    return (y[:, None] + rng.normal(size=(n, 6, 1))).reshape(n, -1), y


@pytest.mark.parametrize("members", [1, 3])
def test_an_estimator_with_a_spec_and_its_file(tmp_path, members):
    X, y = sets()
    model = ConditionalFlow(**FAST, n_members=members, embedding={"embedding": "set", "shape": [6, 1], "hidden": [8]}).fit(X, y)
    model.save(tmp_path / "model")
    again = ConditionalFlow.load(tmp_path / "model")
    np.testing.assert_array_equal(again.log_prob(X, y), model.log_prob(X, y))
    assert again.embedding["embedding"] == "set"
    if members > 1:
        first, second = (member.embedding.each.layers[0].weight for member in list(model.flow_.flows)[:2])
        assert not torch.allclose(first, second)


def test_a_built_in_module_is_saved_as_data_too(tmp_path):
    X, y = sets()
    model = ConditionalFlow(**FAST, embedding=SetEmbedding((6, 1), hidden=(8,))).fit(X, y)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(ConditionalFlow.load(tmp_path / "model").log_prob(X, y), model.log_prob(X, y))


def test_a_fitted_set_does_not_see_the_order():
    X, y = sets()
    model = ConditionalFlow(**FAST, dtype="float64", embedding={"embedding": "set", "shape": [6, 1], "hidden": [8]}).fit(X, y)
    np.testing.assert_allclose(model.log_prob(X[:, ::-1], y), model.log_prob(X, y), atol=1e-9)


def test_runs_of_equal_conditions_are_embedded_once():
    X, y = sets(50)
    net = nn.Sequential(nn.Linear(6, 4))
    model = ConditionalFlow(**FAST, embedding=net).fit(X, y)
    seen = []
    model.flow_.embedding.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    model.sample(X[:3], 100, random_state=0)
    assert sum(seen) == 3


def test_a_network_of_ones_own_sees_the_shape_and_nan():
    class Mean(nn.Module):
        def forward(self, x):
            return x.nanmean((1, 2))[:, None].expand(-1, 2)

    embedding = ShapedEmbedding(Mean(), (3, 2), missing=[5])
    rows = torch.arange(7.0)[None].repeat(2, 1)
    rows[:, 6] = torch.tensor([0.0, 1.0])
    assert embedding(rows)[:, 0].tolist() == pytest.approx([2.5, 2.0])
    with pytest.raises(ValueError, match=r"from \(n, 3, 2\) to \(n, k\); for n = 2 it gave \(2, 3, 2\)"):
        ShapedEmbedding(nn.Identity(), (3, 2))


def test_a_spectrum_knows_where_its_line_is_before_training():
    """A line of two bins (standard deviation), ten times the noise, anywhere in 200 bins: its place is told to .4 bins."""
    generator = torch.Generator().manual_seed(0)
    place = 10 + 180 * torch.rand(4000, 1, generator=generator, dtype=torch.float64)
    line = torch.exp(-0.5 * ((torch.arange(200.0) - place) / 2).square())
    embedding = build_embedding({"embedding": "spectrum", "shape": [200]}, generator).double()
    x = line + 0.1 * torch.randn(4000, 200, generator=generator, dtype=torch.float64)
    embedding.fit_scaling(x)
    with torch.no_grad():
        known = embedding(x)[:, : embedding.regressable]
    design = torch.cat([known, torch.ones(4000, 1, dtype=torch.float64)], dim=1)
    residual = place - design @ torch.linalg.lstsq(design, place).solution
    assert residual.std() < 0.4
