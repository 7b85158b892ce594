import numpy as np
import pandas as pd
import pytest
import torch

from sbi_flows._validation import (
    as_float,
    as_rows,
    check_finite,
    check_weights,
    choose,
    positive,
    resolve_device,
    torch_dtype,
)


def test_as_float_keeps_floats_and_turns_integers_into_float64():
    assert as_float(np.zeros(3, np.float32), "x").dtype == torch.float32
    assert as_float(np.arange(3), "x").dtype == torch.float64
    assert as_float(torch.zeros(3, requires_grad=True), "x").requires_grad is False
    assert as_float(pd.DataFrame({"a": [1.0, 2.0]}), "x").shape == (2, 1)
    assert as_float([[1, 2]], "x").shape == (1, 2)


def test_as_float_does_not_alias_read_only_memory():
    x = np.zeros(3)
    x.flags.writeable = False
    own = as_float(x, "x")  # torch would warn about a tensor that may not be written
    own += 1
    assert (x == 0).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array(["a"]), "Expected x to hold real numbers; got an array of dtype"),
        (np.zeros(2, complex), "Expected x to hold real numbers; got an array of dtype complex128"),
        (torch.zeros(2, dtype=torch.complex64), "got complex ones. Pass real and imaginary parts as columns"),
    ],
)
def test_as_float_errors(value, message):
    with pytest.raises(TypeError, match=message):
        as_float(value, "x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(5), r"Expected theta of shape \(n, 3\); got \(5,\)\. For one row pass theta\[None\]"),
        (np.zeros((5, 2)), r"Expected theta of shape \(n, 3\); got \(5, 2\): it has 2 columns"),
        (np.zeros((5, 2, 2)), r"Expected theta of shape \(n, 3\); got \(5, 2, 2\)\. Flatten each row"),
    ],
)
def test_as_rows_errors(value, message):
    with pytest.raises(ValueError, match=message):
        as_rows(value, "theta", 3)


def test_check_finite_names_columns_counts_and_rows():
    x = np.zeros((5, 5))
    x[2, 1], x[3, 1], x[4, 3] = np.nan, -np.inf, np.inf
    with pytest.raises(ValueError, match=r"'b' has 1 NaN and 1 infinite values, first in row 2; 'd' has 0 NaN and 1 infinite"):
        check_finite(x, "X", list("abcde"))
    with pytest.raises(ValueError, match=r"column 1 has 1 NaN"):
        check_finite(x, "X")
    check_finite(np.full((3, 1), 1e308), "X")  # an overflowing sum is no infinite value


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(3), r"Expected sample_weight of shape \(4,\), one weight a row; got \(3,\)"),
        (np.ones((4, 1)), r"got \(4, 1\)"),
        ([1, np.nan, 1, 1], "Expected finite sample_weight; got 1 NaN or infinite"),
        ([1, -2, 1, 1], "of at least 0; got 1 negative ones, the smallest -2"),
        (np.zeros(4), "got zeros only, which leave nothing to fit"),
    ],
)
def test_check_weights_errors(weights, message):
    with pytest.raises(ValueError, match=message):
        check_weights(weights, 4)


def test_a_number_is_a_weight_for_all():
    assert check_weights(2, 3).tolist() == [2, 2, 2]


def test_dtype_and_device():
    assert torch_dtype("float64") is torch_dtype(torch.float64) is torch.float64
    with pytest.raises(ValueError, match="Expected dtype 'float32' or 'float64'; got 'float16'"):
        torch_dtype("float16")
    assert resolve_device("cpu").type == "cpu" and resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ValueError, match=r"Expected device to be 'auto' or a device of torch such as .* got 'foo'"):
        resolve_device("foo")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no GPU"):
            resolve_device("cuda")


def test_choose_and_positive():
    assert choose("flow", "nsf", ["nsf", "maf"]) == "nsf"
    with pytest.raises(ValueError, match="Expected flow to be one of 'nsf', 'maf'; got 'rnn'"):
        choose("flow", "rnn", ["nsf", "maf"])
    assert positive("n", 3, integer=True) == 3 and positive("w", 0.0, zero=True) == 0
    for value in (0, -1, 1.5, True, "3", float("inf"), None):
        with pytest.raises(ValueError, match="Expected n to be a whole number above 0; got"):
            positive("n", value, integer=True)
