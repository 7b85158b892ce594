"""Estimators as files: the same bits back, what is code passed in again, damage told; a fit that is killed goes on."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError
from small_fits import FAST, pairs, rows
from torch import nn

from sbi_flows import ConditionalFlow, FlowDensity, flows
from sbi_flows._files import load_tensors, save_tensors


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("members", [1, 2])
def test_saved_density_is_the_same_to_the_bit(tmp_path, dtype, members):
    frame = pd.DataFrame(np.abs(rows(300)), columns=["a", "b", "c"])
    fitted = FlowDensity(**{**FAST, "flow": "nsf"}, dtype=dtype, n_members=members, support=(0, np.inf)).fit(frame)
    fitted.save(tmp_path / "a.flow")
    loaded = FlowDensity.load(tmp_path / "a.flow")
    np.testing.assert_array_equal(loaded.log_prob(frame), fitted.log_prob(frame))
    pd.testing.assert_frame_equal(loaded.sample(5, random_state=0), fitted.sample(5, random_state=0))
    np.testing.assert_array_equal(loaded.history_.validation_loss, fitted.history_.validation_loss)
    assert loaded.history_.reliability == fitted.history_.reliability and loaded.n_features_in_ == 3
    loaded.fit(frame)  # parameters came along


def test_saved_conditional_with_embedding(tmp_path):
    X, y = pairs(300)
    network = nn.Linear(2, 3)
    fitted = ConditionalFlow(**FAST, embedding=network).fit(X, y)
    fitted.save(tmp_path / "c.flow")
    loaded = ConditionalFlow.load(tmp_path / "c.flow", embedding=nn.Linear(2, 3))
    np.testing.assert_array_equal(loaded.log_prob(X, y), fitted.log_prob(X, y))
    with pytest.raises(
        ValueError, match="fitted with an embedding network, which is code and not in the file: pass it as embedding="
    ):
        ConditionalFlow.load(tmp_path / "c.flow")
    with pytest.raises(ValueError, match=r"does not fit the model it describes: embedding\.weight has shape"):
        ConditionalFlow.load(tmp_path / "c.flow", embedding=nn.Linear(2, 4))
    with pytest.raises(ValueError, match=r"Expected a file holding a FlowDensity; .* holds a ConditionalFlow"):
        FlowDensity.load(tmp_path / "c.flow")


def test_parameters_that_are_code_are_left_out(tmp_path):
    fitted = FlowDensity(**{**FAST, "flow": lambda d, c: flows.maf(d, c, layers=1)}, callbacks=[print], device="cpu").fit(
        rows(200)
    )
    fitted.save(tmp_path / "a.flow")
    loaded = FlowDensity.load(tmp_path / "a.flow")
    np.testing.assert_array_equal(loaded.log_prob(rows(9)), fitted.log_prob(rows(9)))
    assert loaded.callbacks == () and loaded.flow == "nsf"


def test_numbers_of_numpy_and_torch_are_saved_as_plain_ones(tmp_path):
    settings = {
        "layers": np.arange(1, 2)[0],
        "hidden": np.array([16]),
        "random_state": np.int64(3),
        "validation_fraction": np.float32(0.25),
        "support": [(np.int64(-9), np.float32(9)), np.array([-9, np.inf]), "real"],
        "device": torch.device("cpu"),
        "dtype": torch.float64,
    }
    fitted = FlowDensity(**{**FAST, **settings}).fit(rows(200))
    fitted.save(tmp_path / "a.flow")
    loaded = FlowDensity.load(tmp_path / "a.flow")
    kept = {name: loaded.get_params()[name] for name in settings}
    assert kept == {
        "layers": 1,
        "hidden": [16],
        "random_state": 3,
        "validation_fraction": 0.25,
        "support": [[-9, 9], [-9, np.inf], "real"],
        "device": "cpu",
        "dtype": "float64",
    }
    np.testing.assert_array_equal(loaded.fit(rows(200)).log_prob(rows(9)), fitted.log_prob(rows(9)))


@pytest.mark.parametrize("lost", ["spec", "facts", "history", "parameters", "embedded", "members"])
@pytest.mark.parametrize("estimator", [FlowDensity, ConditionalFlow])
def test_files_whose_header_is_incomplete(tmp_path, density, conditional, estimator, lost):
    (density if estimator is FlowDensity else conditional).save(tmp_path / "a.flow")
    tensors, header = load_tensors(tmp_path / "a.flow", kind=estimator.__name__, version=1)
    for replaced in ({name: value for name, value in header.items() if name != lost}, {**header, lost: 5}):
        if lost in ("members", "embedded") and lost in replaced:
            continue  # a number is what belongs there
        save_tensors(tmp_path / "b.flow", tensors, replaced, kind=estimator.__name__, version=1)
        with pytest.raises(ValueError, match=r"b\.flow is damaged: its header is incomplete"):
            estimator.load(tmp_path / "b.flow")


def test_foreign_flows_cannot_be_saved(tmp_path):
    from toy_flow import ToyFlow

    class Foreign(ToyFlow):
        def fit_scaling(self, x, context=None, weights=None):
            return self

    fitted = FlowDensity(**{**FAST, "flow": Foreign(3)}).fit(rows(200))
    with pytest.raises(TypeError, match=r"Expected a flow built by sbi_flows\.flows"):
        fitted.save(tmp_path / "a.flow")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        ("missing", FileNotFoundError, "there is none"),
        ("truncated", ValueError, "damaged or truncated"),
        ("tampered", ValueError, "was changed after"),
    ],
)
def test_damaged_files(tmp_path, density, damage, error, message):
    path = tmp_path / "a.flow"
    density.save(path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-40])
    else:
        path.write_bytes(content[:-4] + b"\0\0\0\0")
    with pytest.raises(error, match=message):
        FlowDensity.load(path)


def test_unfitted_estimators(tmp_path):
    for use in (lambda m: m.log_prob(rows(3)), lambda m: m.sample(3), lambda m: m.save(tmp_path / "a")):
        with pytest.raises(NotFittedError):
            use(FlowDensity())
    with pytest.raises(NotFittedError):
        ConditionalFlow().sample(rows(3))


def test_checkpoint_resumes(tmp_path):
    class Stop(Exception):
        pass

    def stop(report):
        if report.epoch == 2:
            raise Stop

    expected = FlowDensity(**FAST).fit(rows())
    with pytest.raises(ValueError, match="Expected random_state to be an int where checkpoint= is given"):
        FlowDensity(**{**FAST, "random_state": None}, checkpoint=tmp_path / "c").fit(rows())
    model = FlowDensity(**FAST, checkpoint=tmp_path / "c", callbacks=[stop])
    with pytest.raises(Stop):
        model.fit(rows())
    resumed = FlowDensity(**FAST, checkpoint=tmp_path / "c").fit(rows())
    np.testing.assert_array_equal(resumed.log_prob(rows(5)), expected.log_prob(rows(5)))
    finished = FlowDensity(**FAST, checkpoint=tmp_path / "c").fit(rows())
    np.testing.assert_array_equal(finished.log_prob(rows(5)), expected.log_prob(rows(5)))
