"""Flows of shared and own parameters: exact inverses, densities that factorise, one set of weights for all objects, files."""

import pytest
import torch
from properties import check_batch_independence, check_every_parameter_gets_a_gradient, check_inverse, check_log_det, randomise

from sbi_flows import ConditionalFlow
from sbi_flows.embeddings import ObjectEmbedding
from sbi_flows.flows import build, hierarchical

CASES = {"conditional": (7, 8, 3, 2), "bare": (4, 0, 2, 1), "one object": (3, 4, 1, 2)}


def made(name, seed=0):
    features, context, objects, columns = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    flow = hierarchical(features, context, objects=objects, columns=columns, layers=2, hidden=(16, 16), bins=4, generator=generator)
    rows = torch.Generator().manual_seed(1)
    x = torch.randn(8, features, generator=rows, dtype=torch.float64)
    given = torch.randn(8, context, generator=rows, dtype=torch.float64) if context else None
    return randomise(flow.double()), x, given


@pytest.mark.parametrize("name", CASES)
def test_bijection_is_exact(name):
    flow, x, context = made(name)
    check_inverse(flow.bijection, x, context, 1e-9)
    check_log_det(flow.bijection, x[:3], None if context is None else context[:3], 1e-8)
    check_batch_independence(flow.log_prob, x, context, 1e-10)
    check_every_parameter_gets_a_gradient(flow, lambda: -flow.log_prob(x, context).sum())


def test_objects_share_weights_and_swap_with_their_contexts():
    flow, x, context = made("conditional")
    swapped, given = x.clone(), context.clone()
    swapped[:, 1:3], swapped[:, 5:7] = x[:, 5:7], x[:, 1:3]
    given[:, 2:4], given[:, 6:8] = context[:, 6:8], context[:, 2:4]
    torch.testing.assert_close(flow.log_prob(swapped, given), flow.log_prob(x, context), rtol=0, atol=1e-10)


def test_one_context_serves_all_rows_and_spec_rebuilds():
    flow, x, context = made("conditional")
    torch.testing.assert_close(flow.log_prob(x, context[:1]), flow.log_prob(x, context[:1].expand(8, -1)), rtol=0, atol=1e-10)
    again = build(flow.spec).double()
    again.load_state_dict(flow.state_dict())
    torch.testing.assert_close(again.log_prob(x, context), flow.log_prob(x, context), rtol=0, atol=0)


def test_summary_ignores_the_order_of_objects_and_their_parts_follow_it():
    embedding = ObjectEmbedding((4, 3), 25, generator=torch.Generator().manual_seed(0)).double()
    rows = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    out, moved = embedding(rows.flatten(1)), embedding(rows[:, order].flatten(1))
    torch.testing.assert_close(moved[:, :5], out[:, :5], rtol=0, atol=1e-10)
    torch.testing.assert_close(moved[:, 5:].unflatten(1, (4, 5)), out[:, 5:].unflatten(1, (4, 5))[:, order], rtol=0, atol=1e-10)


def test_a_fit_learns_what_each_object_says(tmp_path):
    """x_i = own_i + shared with little noise: log-densities must come near those of the exact Gaussian posterior."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(3000, 3, generator=generator, dtype=torch.float64)
    x = theta[:, 1:] + theta[:, :1] + 0.3 * torch.randn(3000, 2, generator=generator, dtype=torch.float64)
    model = ConditionalFlow(
        flow=lambda features, context: hierarchical(features, context, objects=2, layers=2, hidden=(24, 24)),
        embedding={"embedding": "objects", "shape": [2, 1], "outputs": 24, "hidden": [24, 24]},
        max_epochs=15,
        random_state=0,
    ).fit(x.numpy(), theta.numpy())
    joint = torch.cat([theta, x], 1).T.cov()
    precision = torch.linalg.inv(joint)[:3, :3]
    exact = 0.5 * torch.logdet(precision) - 1.5 * torch.log(torch.tensor(2 * torch.pi)) - 1.5
    # Own parameters are independent given the shared one and the data, so that nothing but the fit is lost.
    assert model.score(x.numpy()[:1000], theta.numpy()[:1000]) > float(exact) - 0.15
    model.save(tmp_path / "flow.safetensors")
    loaded = ConditionalFlow.load(tmp_path / "flow.safetensors")
    assert (loaded.log_prob(x.numpy()[:9], theta.numpy()[:9]) == model.log_prob(x.numpy()[:9], theta.numpy()[:9])).all()


def test_shapes_that_do_not_fit_teach():
    with pytest.raises(ValueError, match="at least one shared"):
        hierarchical(4, objects=2, columns=2)
    with pytest.raises(ValueError, match="equal parts"):
        hierarchical(5, 4, objects=2, columns=2)
    with pytest.raises(ValueError, match="no angles"):
        hierarchical(3, objects=2, support="circular")
    with pytest.raises(ValueError, match=r"\(objects, c\)"):
        ObjectEmbedding((3,))
    with pytest.raises(ValueError, match="4 equal parts"):
        ObjectEmbedding((3, 2), 10)
