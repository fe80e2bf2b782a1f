"""Rows of every kind, everywhere: tensors, arrays, data frames and files give the same results, or one clear error."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.core.components import Component, Injected, Registered
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import Base
from gebm_kit.core.plugins import installed
from gebm_kit.engine.run_directory.run import Run
from gebm_kit.testing.targets import IdentityBase

RECIPE = """\
schema: 1
data: {name: tabular, path: rows.csv, columns: [b, a]}
base: {name: test-encoded}
energy: {name: mlp, hidden: [8]}
loss: {name: kale}
train: {steps: 4, energy_steps: 1, start_steps: 0, batch_size: 32, log_every: 2, checkpoint_every: 2}
sample: {num_samples: 60, num_chains: 30, warmup: 8, steps: 10, thin: 2}
sampler: {name: mala}
eval: {metrics: [{name: mmd}], num_samples: 60, num_sets: 2}
device: cpu
"""


class Encoded(Base):
    """``x = exp(s) z`` with its density and its inverse."""

    def __init__(self, *, data_shape: Annotated[tuple[int, ...], Injected]) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = data_shape[0], data_shape
        self.log_scale = nn.Parameter(torch.zeros(data_shape))

    def forward(self, z: Tensor) -> Tensor:
        return z * self.log_scale.exp()

    def encode(self, x: Tensor) -> Tensor:
        return x * (-self.log_scale).exp()

    def log_prob(self, x: Tensor) -> Tensor:
        return (-0.5 * self.encode(x).square() - self.log_scale - 0.5 * math.log(2 * math.pi)).sum(1)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Return a run on the columns b and a of a file that has a column of text too; the current folder is the file's."""
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(5, 1, 200), "kind": ["red", "white"] * 100, "b": rng.normal(0, 30, 200)})
    frame.to_csv(folder / "rows.csv", index=False)
    module = ModuleType("gebm_kit_test_encoded")
    module.Encoded = Encoded  # type: ignore[attr-defined]
    record = Registered(Component("base", "test-encoded", f"{module.__name__}:Encoded", "From a test"), "a-test", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        patch.setitem(installed().registry._records, ("base", "test-encoded"), [record])
        patch.setattr("gebm_kit.engine.evaluation.evaluation_files.draw_all", lambda *_, **__: [])
        patch.chdir(folder)
        (folder / "recipe.yaml").write_text(RECIPE)
        yield gk.train("recipe.yaml", out="run")


def frame_of_file() -> pd.DataFrame:
    return pd.read_csv("rows.csv")


def in_order() -> np.ndarray:
    """Return the rows of the file in the order of the model's columns, as measurements."""
    return frame_of_file()[["b", "a"]].to_numpy()


class Polars:
    """What is used of a polars DataFrame."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame, self.columns = frame, [str(name) for name in frame.columns]

    def __getitem__(self, name: str) -> Any:
        return self._frame[name]

    def __len__(self) -> int:
        return len(self._frame)

    def to_numpy(self) -> np.ndarray:
        return self._frame.to_numpy()


KINDS = {
    "tensor": lambda: torch.from_numpy(in_order()),
    "array": in_order,
    "frame": frame_of_file,
    "frame with an index": lambda: frame_of_file().reset_index().rename(columns={"index": "Unnamed: 0"}),
    "frame like that of polars": lambda: Polars(frame_of_file()),
    "frame with counted columns": lambda: pd.DataFrame(in_order()),
    "frame of nullable numbers": lambda: frame_of_file().convert_dtypes(),
    "frame of objects": lambda: frame_of_file().astype(object),
    "path": lambda: Path("rows.csv"),
    "text": lambda: "rows.csv",
}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_densities_are_those_of_measurements(table: Run, kind: str) -> None:
    expected = gk.score(table, in_order())
    found = gk.score(table, KINDS[kind]())
    assert torch.equal(found.energy, expected.energy)
    assert torch.equal(found.log_density, expected.log_density)
    assert torch.equal(gk.log_density(table, KINDS[kind]()).gebm, expected.log_density)


@pytest.mark.parametrize("kind", ["frame", "text"])
def test_frames_and_files_are_standardised_where_tensors_are_as_the_model_sees_them(table: Run, kind: str) -> None:
    seen, rows = table.dataset.standardised(torch.from_numpy(in_order())), KINDS[kind]()
    few: dict[str, Any] = {"num_samples": 40, "num_sets": 2}
    assert gk.evaluate(table, data=rows, **few).metrics == gk.evaluate(table, data=seen, **few).metrics
    draws, same = (gk.sample(table, start=given, num_samples=30, warmup=0, steps=1) for given in (rows, seen))
    assert torch.equal(draws.x, same.x)
    traced, other = (gk.trace_quality(table, "mmd", data=given, at_steps=[0, 2], **few) for given in (rows, seen))
    assert traced.curves == other.curves
    options: dict[str, Any] = {"betas": [1.0], "num_samples": 40, "num_base": 64, "sampler": "mala", "num_chains": 20}
    tilts = [gk.tilt(table, lambda x: x[:, 0], data=given, **options) for given in (rows, seen)]
    assert tilts[0].levels[0].prdc == tilts[1].levels[0].prdc


def test_data_of_a_run_are_not_opened_for_its_units(table: Run, tmp_path: Path) -> None:
    frame = frame_of_file()
    hidden = Path("rows.csv").rename(tmp_path / "rows.csv")
    try:
        assert len(gk.sample(gk.load_run(table.path), start=frame, num_samples=10, warmup=0, steps=1).x) == 10
    finally:
        hidden.rename("rows.csv")


BAD_FRAMES = {
    "missing": (lambda: frame_of_file().drop(columns="a"), r"has no column 'a'; .* other columns are 'kind'"),
    "text": (lambda: frame_of_file().assign(a="x"), "column 'a' holds .*; numbers are needed"),
    "text in one row": (lambda: frame_of_file().astype(object).replace({"a": {5.0: 5.0}}).assign(a=[1.0, "low"] * 100),
                        "column 'a' holds 'low' in row 2; numbers are needed"),
    "dates": (lambda: frame_of_file().assign(a=pd.Timestamp("2020-01-01")), "column 'a' holds values of type datetime64"),
    "missing value": (lambda: frame_of_file().assign(b=[None, 1.0] * 100), "row 1, column 'b' is missing"),
    "nullable": (lambda: frame_of_file().assign(b=pd.array([1, None] * 100, "Int64")), "row 2, column 'b' is missing"),
    "twice": (lambda: pd.concat([frame_of_file()[["a", "b"]], frame_of_file()[["a"]]], axis=1), "2 columns are called 'a'"),
    "counted": (lambda: pd.DataFrame(np.zeros((3, 3))), "has 3 columns, the run was trained on 2: b, a"),
    "empty": (lambda: frame_of_file()[:0], "rows of data points are needed"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FRAMES)
@pytest.mark.parametrize("verb", ["score", "evaluate", "start"])
def test_a_frame_that_does_not_fit_is_one_error(table: Run, name: str, verb: str) -> None:
    make, message = BAD_FRAMES[name]
    calls: dict[str, Any] = {
        "score": lambda rows: gk.score(table, rows),
        "evaluate": lambda rows: gk.evaluate(table, data=rows),
        "start": lambda rows: gk.sample(table, start=rows),
    }
    with pytest.raises(DataError, match=message):
        calls[verb](make())


@pytest.mark.parametrize("rows", [[[1.0, 2.0]], (1.0,), 3, None, {"a": [1.0]}, b"rows.csv", object(), "lazy"])
def test_other_types_are_refused_with_what_is_allowed(table: Run, rows: Any) -> None:
    if rows == "lazy":
        rows = type("LazyFrame", (), {"columns": ["a"], "collect": lambda self: self})()
    allowed = r"must be a tensor, a numpy array or a data frame of rows \(N, ...\), or the path of a file"
    for call in (lambda: gk.score(table, rows), lambda: gk.log_density(table, rows)):
        with pytest.raises(UsageError, match=allowed):
            call()
    if rows is None:  # the run's own data
        return
    calls = (
        lambda: gk.evaluate(table, data=rows),
        lambda: gk.sample(table, start=rows),
        lambda: gk.trace_quality(table, "mmd", data=rows),
        lambda: gk.tilt(table, lambda x: x[:, 0], data=rows),
    )
    for call in calls:
        with pytest.raises(UsageError, match=allowed):
            call()


@pytest.mark.parametrize("name", ["none.csv", ".", "rows.txt"])
def test_a_file_that_is_not_there_or_of_another_kind(table: Run, name: str) -> None:
    Path("rows.txt").write_text("a,b\n")
    for call in (
        lambda: gk.score(table, name),
        lambda: gk.evaluate(table, data=name),
        lambda: gk.sample(table, start=name),
    ):
        with pytest.raises(DataError, match="does not exist|is a directory|can't be read"):
            call()


def test_a_model_by_hand_takes_columns_in_order(tmp_path: Path) -> None:
    model = gk.GEBM(IdentityBase(2), nn.Sequential(nn.Linear(2, 1, bias=False), nn.Flatten(0)))
    rows = np.random.default_rng(0).normal(size=(20, 2))
    frame = pd.DataFrame(rows, columns=["u", "v"])
    frame.to_csv(tmp_path / "rows.csv", index=False)
    np.save(tmp_path / "rows.npy", rows)
    expected = gk.score(model, rows).energy
    for given in (frame, tmp_path / "rows.csv", str(tmp_path / "rows.npy")):
        assert torch.equal(gk.score(model, given).energy, expected)
    with pytest.raises(
        DataError, match="rows has 3 columns, the model was trained on 2 columns; the columns are u, v, w"
    ):
        gk.score(model, frame.assign(w=0.0))


def test_a_file_with_the_columns_in_another_order_is_matched_by_name(table: Run, tmp_path: Path) -> None:
    recipe = RECIPE.replace("tabular, path: rows.csv, columns: [b, a]", "arrays, path: plain.csv")
    frame = frame_of_file()[["a", "b"]]
    frame.to_csv("plain.csv", index=False)
    Path("plain.yaml").write_text(recipe)
    run = gk.train("plain.yaml", out=tmp_path / "plain")
    expected = gk.score(run, frame.to_numpy()).energy
    frame[["b", "a"]].to_csv("turned.csv", index=False)
    for given in (frame, frame[["b", "a"]], frame.assign(kind="red"), "plain.csv", "turned.csv"):
        assert torch.equal(gk.score(run, given).energy, expected)
