"""density, and the likelihoods of eval: JSON keys, files, bad input."""

from __future__ import annotations

import csv
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.cli.app import main
from gebm_kit.core.components import Component, Injected, Registered
from gebm_kit.core.interfaces import Base
from gebm_kit.core.plugins import installed

RECIPE = """\
schema: 1
data: {name: arrays, path: rows.csv}
base: {name: test-normal}
energy: {name: mlp, hidden: [8]}
loss: {name: kale}
train: {steps: 4, energy_steps: 1, start_steps: 0, batch_size: 32, log_every: 2, checkpoint_every: 2}
sample: {num_samples: 60, num_chains: 30, warmup: 8, steps: 10, thin: 2}
eval: {metrics: [{name: mmd}], num_samples: 60, num_sets: 2}
device: cpu
"""


class NormalBase(Base):
    """``x = exp(s) z`` in any number of dimensions, with its density."""

    def __init__(self, *, data_shape: Annotated[tuple[int, ...], Injected]) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = data_shape[0], data_shape
        self.log_scale = nn.Parameter(torch.zeros(data_shape))

    def forward(self, z: Tensor) -> Tensor:
        return z * self.log_scale.exp()

    def log_prob(self, x: Tensor) -> Tensor:
        z = x * (-self.log_scale).exp()
        return (-0.5 * z.square() - self.log_scale - 0.5 * math.log(2 * math.pi)).sum(1)


@pytest.fixture(scope="module")
def registered() -> Iterator[None]:
    module = ModuleType("gebm_kit_test_normal")
    module.NormalBase = NormalBase  # type: ignore[attr-defined]
    record = Registered(Component("base", "test-normal", f"{module.__name__}:NormalBase", "From a test"), "a-test", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        patch.setitem(installed().registry._records, ("base", "test-normal"), [record])
        yield


@pytest.fixture(scope="module")
def flow(registered: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a finished run whose base has a density, with rows.csv next to it."""
    folder = tmp_path_factory.mktemp("density")
    rows = np.random.default_rng(0).normal(size=(200, 2))
    text = "\n".join(["a,b", *(f"{x:.6f},{y:.6f}" for x, y in rows)])
    (folder / "rows.csv").write_text(text + "\n")
    (folder / "flow.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "flow.yaml", "--out", "run", "--quiet"]) == 0
        yield folder


@pytest.fixture
def here(flow: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(flow)
    return flow


def test_eval_reports_likelihoods(cli: Any, here: Path) -> None:
    found = cli("eval", "run", "--json", "--quiet").json
    assert set(found["nll"]) == {"gebm", "base", "difference", "space", "log_det", "num_rows"}
    assert found["nll"]["gebm"]["se"] > 0
    partition = found["log_partition"]
    assert {"value", "se", "low", "high", "method", "reason", "pareto_k", "gap", "bridge", "bridge_se"} <= set(
        partition
    )
    text = cli("eval", "run", "--quiet").out
    assert "NLL of 40 held-out rows, nats (standardised): " in text
    assert "importance-sampling; Pareto k" in text
    assert "bridge sampling: " in text


def test_the_method_may_be_chosen(cli: Any, here: Path) -> None:
    found = cli("eval", "run", "eval.log_partition=smc", "--json", "--quiet").json["log_partition"]
    assert (found["method"], found["reason"]) == ("smc", "asked for")
    assert found["replicates"] == 10
    assert found["bridge_draws"] == "smc"
    weighed = cli("eval", "run", "--json", "--quiet").json["log_partition"]
    assert abs(found["value"] - weighed["value"]) < 5 * math.hypot(found["se"], weighed["se"])
    assert cli("eval", "run", "eval.log_partition=guess").code == 2


def test_raw_is_refused_of_data_without_a_jacobian(cli: Any, here: Path) -> None:
    for words in (("eval", "run"), ("density", "run", "rows.csv")):
        result = cli(*words, "nll.space=raw", "--json")
        assert result.code == 2
        assert "Arrays states none" in result.json["error"]["message"]
    assert cli("train", "flow.yaml", "nll.space=raw", "--out", "never").code == 2
    assert not Path("never").exists()


def test_density_writes_a_row_for_a_row(cli: Any, here: Path) -> None:
    found = cli("density", "run", "rows.csv", "--json", "--quiet").json
    assert set(found) == {
        "schema", "num_rows", "space", "inverse_temperature", "log_partition", "mean_log_density", "run", "checkpoint",
        "file", "out",
    }  # fmt: skip
    assert found["num_rows"] == 200
    assert found["out"] == "run/densities/rows.csv"
    with open(found["out"]) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200
    first = rows[0]
    density = float(first["log_base"]) - float(first["energy"]) - found["log_partition"]["value"]
    assert float(first["log_density"]) == pytest.approx(density)
    mean = sum(float(row["log_density"]) for row in rows) / 200
    assert found["mean_log_density"] == pytest.approx(mean)
    again = cli("density", "run", "rows.csv", "--out", "again.csv", "--quiet")
    assert again.out.splitlines()[-1] == "log-densities: again.csv"
    assert Path("again.csv").read_bytes() == Path(found["out"]).read_bytes()


def test_one_row_is_enough_and_the_newest_run_is_taken(cli: Any, here: Path) -> None:
    np.save("one.npy", np.zeros((1, 2)))
    shutil.copytree("run", "runs/flow/newest", dirs_exist_ok=True)
    result = cli("density", "one.npy", "--json")
    assert result.json["num_rows"] == 1
    assert "using the newest finished run" in result.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3,\n", "line 3: column 'b' is empty"),
        ("a,b\n1,x\n", "line 2: column 'b' holds 'x', which is not a number"),
        ("a,b\n1,2\n3\n", "line 3: 1 fields where the first line has 2"),
        ("a,b,c\n1,2,3\n", "has 3 columns, the model was trained on 2 columns"),
        ("", "holds no row of data"),
    ],
)
def test_bad_rows(cli: Any, here: Path, content: str, message: str) -> None:
    Path("bad.csv").write_text(content)
    result = cli("density", "run", "bad.csv", "--out", "bad-out.csv", "--json")
    assert result.code == 2
    assert message in result.json["error"]["message"]
    assert not Path("bad-out.csv").exists()


@pytest.fixture(scope="module")
def wine(flow: Path) -> Path:
    """Return a finished run on the red wines, whose columns have names, units and scales."""
    text = RECIPE.replace("{name: arrays, path: rows.csv}", "{name: redwine}")
    (flow / "wine.yaml").write_text(text)
    assert main(["train", "wine.yaml", "--out", "wine", "--quiet"]) == 0
    return flow / "wine"


def test_measurements_in_their_own_units(cli: Any, wine: Path, here: Path) -> None:
    """Columns are found by name among others and standardised; ``raw`` densities include the Jacobian."""
    dataset = gk.load_run("wine").dataset
    rows = dataset.split("test").first(5).double() * dataset.std + dataset.mean
    order = list(reversed(range(11)))
    lines = [",".join(["id", *(f'"{dataset.columns[place]}"' for place in order)])]
    lines += [",".join(["bottle", *(repr(float(row[place])) for place in order)]) for row in rows]
    Path("bottles.csv").write_text("\n".join(lines) + "\n")
    np.save("bottles.npy", rows.numpy())
    found = cli("density", "wine", "bottles.csv", "--json", "--quiet").json
    in_order = cli("density", "wine", "bottles.npy", "--json", "--quiet", "--out", "order.csv").json
    assert in_order["mean_log_density"] == pytest.approx(found["mean_log_density"], abs=1e-4)
    raw = cli("density", "wine", "bottles.csv", "nll.space=raw", "--json", "--quiet").json
    assert raw["space"] == "raw"
    assert raw["mean_log_density"] == pytest.approx(found["mean_log_density"] + dataset.log_det)
    test = cli("eval", "wine", "nll.space=raw", "--json", "--quiet").json["nll"]
    assert (test["space"], test["log_det"]) == ("raw", pytest.approx(dataset.log_det))
    standard = cli("eval", "wine", "--json", "--quiet").json["nll"]
    assert test["base"]["value"] == pytest.approx(standard["base"]["value"] - dataset.log_det)
    Path("few.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    result = cli("density", "wine", "few.csv")
    assert result.code == 2
    assert f"few.csv has no column '{dataset.columns[0]}'; the run was trained on" in result.err


def test_bad_words(cli: Any, here: Path) -> None:
    for words, message in (
        (("run", "rows.csv", "more.csv"), "got 3 words: run, rows.csv, more.csv"),
        (("eval.seed=1",), "got 0 words"),
        (("run", "nowhere.csv"), "data file nowhere.csv does not exist"),
        (("run", "rows.csv", "--out", "d.npz"), "--out must be a CSV file"),
        (("run", "rows.csv", "train.steps=3"), "can't override 'train'"),
        (("run", "rows.csv", "--key", "x"), "key='x' has no meaning"),
    ):
        result = cli("density", *words)
        assert result.code == 2, words
        assert message in result.err


def test_runs_without_a_density(cli: Any, run: Path) -> None:
    result = cli("density", run, "nowhere.csv", "--json")
    assert result.code == 2
    assert result.json["error"]["message"].startswith("the base MlpBase has no density")
    assert cli("eval", run, "--json", "--quiet").json["nll"] is None
