"""Rows and other arguments that a caller in Python passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import gebm_kit as gk
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.given_rows import check_precision, tensor_of_rows
from gebm_kit.core.interfaces import Base, Energy
from gebm_kit.core.precision import merged_columns

ROWS = np.arange(6.0).reshape(3, 2)


class Identity(Base):
    latent_dim = 2
    data_shape = (2,)

    def forward(self, z):
        return z


class Well(Energy):
    def forward(self, x):
        return 0.5 * x.square().sum(1)


@pytest.mark.parametrize("kind", ["<f8", ">f8", "f4", "f2", "longdouble", "i8", ">i4", "u1", "u2", "u8"])
def test_arrays_of_numbers(kind):
    found = tensor_of_rows(ROWS.astype(kind)[::-1], "rows")
    assert found.double().tolist() == ROWS[::-1].tolist()


def test_a_tensor_is_detached_and_an_array_copied():
    assert not tensor_of_rows(torch.zeros(3, 2, requires_grad=True), "rows").requires_grad
    fixed = ROWS.copy()
    fixed.flags.writeable = False
    tensor_of_rows(fixed, "rows").zero_()
    assert fixed.tolist() == ROWS.tolist()


@pytest.mark.parametrize(
    ("rows", "error", "message", "hint"),
    [
        ("rows.csv", UsageError, "rows must be a tensor or a numpy array .* got str", "Read the file first"),
        (Path("rows.csv"), UsageError, "got PosixPath|got WindowsPath", "Read the file first"),
        ([[1, 2]], UsageError, "got list", "torch.tensor"),
        (None, UsageError, "got NoneType", ""),
        (np.array([["a"]]), DataError, "values of type <U1; numbers are needed", ""),
        (np.array([[None]]), DataError, "values of type object", ""),
        (np.array([[1j]]), DataError, "values of type complex128", ""),
        (np.array([[2**63]], dtype=np.uint64), DataError, "9223372036854775808", ""),
        (torch.zeros(2, 2, dtype=torch.complex64), DataError, "complex64", ""),
        (torch.zeros(2, 2).to_sparse(), DataError, "sparse", ""),
        (torch.zeros(2, 2, device="meta"), DataError, "meta", ""),
    ],
)
def test_what_is_refused(rows, error, message, hint):
    with pytest.raises(error, match=message) as caught:
        tensor_of_rows(rows, "rows")
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("column", "merged"),
    [
        (1.7e9 + torch.randn(50).double(), True),
        (torch.randn(50).double(), False),
        (1e6 + torch.randn(50).double(), True),
        (torch.full((50,), 1e12).double(), False),
        (2**24 + torch.arange(50), True),
        (2**62 + torch.arange(50), True),
        (torch.arange(50) * 10**6, False),
        (torch.randn(50) * 1e30, False),
    ],
)
def test_columns_that_single_precision_spoils(column, merged):
    assert merged_columns(column.unsqueeze(1)) == ([0] if merged else [])


def test_a_model_in_double_precision_takes_them():
    rows = 1.7e9 + torch.randn(50, 1).double()
    check_precision(rows, torch.float64, (), "the data")
    with pytest.raises(DataError, match=r"the data: the values of column 'time' lie too close together"):
        check_precision(rows, torch.float32, ("time",), "the data")


MODEL = gk.GEBM(Identity(), Well())
ALLOWED = r"a tensor, a numpy array or a data frame of rows \(N, ...\), or the path of a file"
CALLS = {
    "score": (lambda: gk.score(MODEL, [[1, 2]]), f"rows must be {ALLOWED}, got list"),
    "score beta": (lambda: gk.score(MODEL, ROWS, inverse_temperature="hot"), "beta.* got 'hot'"),
    "score seed": (lambda: gk.score(MODEL, ROWS, seed="a"), "seed must be a whole number"),
    "score space": (lambda: gk.score(MODEL, ROWS, space="other"), "space 'other' is unknown"),
    "score method": (lambda: gk.score(MODEL, ROWS, log_partition="x"), "log_partition 'x' is unknown"),
    "score progress": (lambda: gk.score(MODEL, ROWS, on_progress=3), "on_progress must be a function"),
    "density": (lambda: gk.log_density(MODEL, None), f"rows must be {ALLOWED}, got NoneType"),
    "evaluate data": (
        lambda: gk.evaluate(MODEL, data=[1.0]),
        f"data must be {ALLOWED}, or a pair \\(rows, labels\\), or a Dataset, got list",
    ),
    "evaluate progress": (
        lambda: gk.evaluate(MODEL, data=ROWS, progress="yes"),
        "progress must be True, False or None",
    ),
    "trace data": (
        lambda: gk.trace_quality(MODEL, "mmd", data={1: 2}),
        f"data must be {ALLOWED}, or a pair \\(rows, labels\\), or a Dataset, got dict",
    ),
    "tilt data": (lambda: gk.tilt(MODEL, Well(), data=3), f"data must be {ALLOWED}, or a dataset, .* got int"),
    "evaluate metrics": (lambda: gk.evaluate(MODEL, data=ROWS, metrics="mmd"), "metrics is a list of names"),
    "evaluate reference": (lambda: gk.evaluate(MODEL, data=ROWS, reference="x"), "reference 'x' is unknown"),
    "trace reference": (lambda: gk.trace_quality(MODEL, "mmd", data=ROWS, reference="x"), "reference 'x' is unknown"),
    "sample out": (lambda: gk.sample(MODEL, out=3), "out must be a path, got int"),
    "sample start": (lambda: gk.sample(MODEL, start=7), f"start must be {ALLOWED}, got int"),
    "sample resume": (lambda: gk.sample(MODEL, resume="yes"), "resume must be True or False"),
    "sample progress": (lambda: gk.sample(MODEL, on_progress=3), "on_progress must be a function"),
    "train recipe": (lambda: gk.train({"schema": 1}), "recipe.* must be a path, got dict"),
    "train overrides": (lambda: gk.train("quickstart", [3]), "overrides are a list of words.* got 3"),
    "train text": (lambda: gk.train("quickstart", "train.steps=3"), "overrides are a list of words"),
    "train out": (lambda: gk.train("quickstart", out=3), "out must be a path, got int"),
    "load_run": (lambda: gk.load_run(3), "a run must be a path, got int"),
    "load_run checkpoint": (lambda: gk.load_run(".", 3), "checkpoint must be last, best or step-N, got 3"),
    "load_draws": (lambda: gk.load_draws(3), "draws must be a path, got int"),
    "GEBM": (lambda: gk.GEBM(Identity(), lambda x: x.sum(1)), "the energy must be a torch.nn.Module, got function"),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_of_another_type_is_named(name):
    call, message = CALLS[name]
    with pytest.raises(UsageError, match=message):
        call()


def test_arrays_work_where_tensors_do():
    expected = gk.score(MODEL, torch.from_numpy(ROWS)).energy
    assert torch.equal(gk.score(MODEL, ROWS).energy, expected)
    rows = np.random.default_rng(0).normal(size=(80, 2))
    found = gk.evaluate(MODEL, data=rows, metrics=["mmd"], sampler="mala", num_samples=10, num_sets=2)
    assert set(found.metrics["gebm"]) == {"mmd"}
