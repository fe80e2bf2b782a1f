"""score, with a density and without: files, JSON keys, bad input; and the metric ood-auroc from the command line."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.cli.app import main
from gebm_kit.core.components import Component, Injected, Registered
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import Base
from gebm_kit.core.plugins import installed
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.engine.likelihood.ranking import contradictions

RECIPE = """\
schema: 1
data: {name: tabular, path: rows.csv}
base: {name: test-scored}
energy: {name: mlp, hidden: [8]}
loss: {name: kale}
train: {steps: 4, energy_steps: 1, start_steps: 0, batch_size: 32, log_every: 2, checkpoint_every: 2}
sample: {num_samples: 60, num_chains: 30, warmup: 8, steps: 10, thin: 2}
eval: {metrics: [{name: mmd}], num_samples: 60, num_sets: 2}
device: cpu
"""


class Scored(Base):
    """``x = exp(s) z`` with its density."""

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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder of finished runs and rows.csv: ``flow`` has a density, ``plain`` has none, ``digits`` has images."""
    folder = tmp_path_factory.mktemp("score")
    rows = np.random.default_rng(0).normal(size=(200, 2)) * [1, 30] + [5, 0]
    (folder / "rows.csv").write_text("\n".join(["a,b", *(f"{x:.6f},{y:.6f}" for x, y in rows)]) + "\n")
    texts = {
        "flow": RECIPE,
        "plain": RECIPE.replace("test-scored", "mlp, latent_dim: 2, hidden: [8]"),
        "digits": RECIPE.replace("test-scored", "mlp, latent_dim: 2, hidden: [8]").replace(
            "tabular, path: rows.csv", "digits"
        ),
    }
    module = ModuleType("gebm_kit_test_scored")
    module.Scored = Scored  # type: ignore[attr-defined]
    record = Registered(Component("base", "test-scored", f"{module.__name__}:Scored", "From a test"), "a-test", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        patch.setitem(installed().registry._records, ("base", "test-scored"), [record])
        patch.setattr("gebm_kit.engine.evaluation.evaluation_files.draw_all", lambda *_, **__: [])
        patch.chdir(folder)
        for name, text in texts.items():
            (folder / f"{name}.yaml").write_text(text)
            assert main(["train", f"{name}.yaml", "--out", name, "--quiet"]) == 0
        yield folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def read(path: str) -> list[dict[str, float]]:
    with open(path) as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


KEYS = {
    "schema", "num_rows", "columns", "mean_energy", "mean_log_density", "inverse_temperature", "space",
    "log_partition", "rank_by", "most_unlikely", "warnings", "run", "checkpoint", "file", "out",
}  # fmt: skip


def test_with_a_density(cli: Any, here: Path) -> None:
    found = cli("score", "flow", "rows.csv", "--json", "--quiet").json
    assert set(found) == KEYS
    assert (found["num_rows"], found["out"]) == (200, "flow/scores/rows.csv")
    assert found["columns"] == ["energy", "log_density", "log_base"]
    rows = read(found["out"])
    assert [row["row"] for row in rows] == list(range(1, 201))
    assert all(set(row) == {"row", "energy", "log_density", "log_base"} for row in rows)
    for row in rows[:5]:
        expected = row["log_base"] - row["energy"] - found["log_partition"]["value"]
        assert row["log_density"] == pytest.approx(expected)
    cli("density", "flow", "rows.csv", "--out", "density.csv", "--quiet")
    for one, other in zip(rows, read("density.csv"), strict=True):
        assert one == other
    assert found["mean_energy"] == pytest.approx(sum(row["energy"] for row in rows) / 200)
    assert found["mean_log_density"] == pytest.approx(sum(row["log_density"] for row in rows) / 200)
    raw = cli("score", "flow", "rows.csv", "nll.space=raw", "--json", "--quiet", "--out", "raw.csv").json
    log_det = gk.load_run("flow").dataset.log_det
    assert raw["mean_log_density"] - found["mean_log_density"] == pytest.approx(log_det)
    assert raw["mean_energy"] == pytest.approx(found["mean_energy"])


def test_without_a_density_there_is_the_energy(cli: Any, here: Path) -> None:
    found = cli("score", "plain", "rows.csv", "--out", "plain.npz", "--json", "--quiet").json
    assert set(found) == KEYS
    assert found["columns"] == ["energy"]
    assert (found["mean_log_density"], found["space"], found["log_partition"]) == (None, None, None)
    run = gk.load_run("plain")
    rows = run.dataset.standardised(torch.from_numpy(np.loadtxt("rows.csv", delimiter=",", skiprows=1)))
    with torch.no_grad():
        expected = run.model.eval().energy(rows).double()
    with np.load("plain.npz") as archive:
        assert archive.files == ["energy"]
        torch.testing.assert_close(torch.from_numpy(archive["energy"]), expected, rtol=1e-5, atol=1e-6)
    doubled = cli("score", "plain", "rows.csv", "sample.inverse_temperature=2", "--json", "--quiet").json
    assert doubled["mean_energy"] == pytest.approx(2 * found["mean_energy"])
    text = cli("score", "plain", "rows.csv", "--quiet").out
    first, *sentences, last = text.splitlines()
    assert re.fullmatch(r"200 rows, mean energy -?[\d.e-]+", first)
    assert last == "scores: plain/scores/rows.csv"
    said = " ".join(" ".join(sentences).split())
    assert "rank by energy, highest first: the base has no density, so there is nothing else;" in said
    assert "such a row may have any energy, even the lowest" in said
    assert "most unlikely rows: " + ", ".join(map(str, found["most_unlikely"])) in said


def test_images_of_bytes_are_scaled(cli: Any, here: Path) -> None:
    run = gk.load_run("digits")
    rows = run.dataset.split("test").first(6)
    np.save("bytes.npy", ((rows + 1) * 127.5).round().to(torch.uint8).squeeze(1).numpy())
    np.save("floats.npy", rows.numpy())
    one, other = (cli("score", "digits", name, "--json", "--quiet").json for name in ("bytes.npy", "floats.npy"))
    assert one["mean_energy"] == pytest.approx(other["mean_energy"], abs=1e-3)


def test_from_python(here: Path) -> None:
    run = gk.load_run("flow")
    rows = torch.from_numpy(np.loadtxt("rows.csv", delimiter=",", skiprows=1))
    scores = gk.score(run, rows)
    assert scores.log_density is not None
    assert scores.log_density.tolist() == gk.log_density(run, rows).gebm.tolist()
    assert gk.score("plain", rows[:3]).log_density is None
    model = gk.score(run.model, run.dataset.standardised(rows))
    torch.testing.assert_close(model.energy, scores.energy)
    with pytest.raises(UsageError, match=r"\.csv or \.npz, got scores\.txt"):
        scores.save("scores.txt")
    with pytest.raises(UsageError, match="a run, its path or a GEBM"):
        gk.score(3, rows)  # type: ignore[arg-type]


def test_raw_densities_need_a_density_and_a_jacobian(here: Path) -> None:
    rows = torch.from_numpy(np.loadtxt("rows.csv", delimiter=",", skiprows=1))
    plain, flow = gk.load_run("plain"), gk.load_run("flow")
    for subject in ("plain", plain, plain.model):
        with pytest.raises(UsageError, match="the base MlpBase has no density"):
            gk.score(subject, rows, space="raw")
        assert gk.score(subject, rows, space="standardised").space is None
    with pytest.raises(UsageError, match="space='raw' needs a run"):
        gk.score(flow.model, rows, space="raw")
    assert gk.score(flow, rows, space="raw").space == "raw"


@pytest.mark.parametrize("run", ["flow", "plain"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3,\n", "line 3: column 'b' is empty"),
        ("a,b\n1,x\n", "line 2: column 'b' holds 'x', which is not a number"),
        ("a,c\n1,2\n", "has no column 'b'; the run was trained on a, b"),
        ("1,2,3\n4,5,6\n", "has 3 columns, the run was trained on 2: a, b"),
        ("a,b\n", "holds no row of data"),
    ],
)
def test_bad_rows(cli: Any, here: Path, run: str, content: str, message: str) -> None:
    Path("bad.csv").write_text(content)
    result = cli("score", run, "bad.csv", "--out", "bad-out.csv", "--json")
    assert result.code == 2
    assert message in result.json["error"]["message"]
    assert not Path("bad-out.csv").exists()


def test_bad_words(cli: Any, here: Path) -> None:
    for words, message in [
        (["flow", "rows.csv", "--out", "x.txt"], "scores are written to .csv or .npz"),
        (["flow", "rows.csv", "more.csv"], "got 3 words"),
        (["flow", "none.csv"], "none.csv does not exist"),
        (["flow", "rows.csv", "train.steps=3"], "gebm-kit score"),
    ]:
        result = cli("score", *words, "--json")
        assert result.code == 2
        assert message in result.json["error"]["message"]


@pytest.mark.parametrize("run", ["flow", "plain"])
def test_bad_rows_are_left_out_and_the_others_keep_their_numbers(cli: Any, here: Path, run: str) -> None:
    Path("some.csv").write_text("a,b\n5,1\n4,x\n6,-3\n,7\n5,inf\n4,4,4\n6,20\n")
    stops = cli("score", run, "some.csv", "--json")
    assert stops.code == 2
    assert "line 7: 3 fields where the first line has 2" in stops.json["error"]["message"]
    found = cli("score", run, "some.csv", "--bad-rows", "skip", "--json", "--out", "some-scores.csv")
    assert found.code == 0
    assert found.json["num_rows"] == 3
    assert found.json["skipped"] == [
        {"row": 2, "reason": "line 3: column 'b' holds 'x', which is not a number"},
        {"row": 4, "reason": "line 5: column 'a' is empty"},
        {"row": 5, "reason": "line 6: column 'b' holds 'inf', which is not a finite number"},
        {"row": 6, "reason": "line 7: 3 fields where the first line has 2"},
    ]
    warned = " ".join(found.err.split())
    assert "4 of 7 rows can't be used and are left out: row 2 (line 3: column 'b' holds 'x'" in warned
    assert [row["row"] for row in read("some-scores.csv")] == [1, 3, 7]
    assert set(found.json["most_unlikely"]) == {1, 3, 7}
    good = np.array([[5.0, 1.0], [6.0, -3.0], [6.0, 20.0]])
    expected = gk.score(run, good).energy
    assert expected is not None
    assert [row["energy"] for row in read("some-scores.csv")] == pytest.approx(expected.tolist())
    cli("score", run, "some.csv", "--bad-rows", "skip", "--quiet", "--out", "some.npz")
    with np.load("some.npz") as archive:
        assert archive["row"].tolist() == [1, 3, 7]
    none = cli("score", run, "rows.csv", "--bad-rows", "skip", "--json", "--quiet").json
    assert (none["skipped"], none["num_rows"]) == ([], 200)


def test_bad_rows_of_other_files_and_of_python(cli: Any, here: Path) -> None:
    rows = np.array([[5.0, 1.0], [math.nan, 2.0], [6.0, math.inf], [4.0, -9.0]])
    np.save("some.npy", rows)
    found = cli("density", "flow", "some.npy", "--bad-rows", "skip", "--json", "--out", "some-density.csv").json
    assert [entry["row"] for entry in found["skipped"]] == [2, 3]
    assert [row["row"] for row in read("some-density.csv")] == [1, 4]
    with pytest.warns(GebmKitWarning, match=r"2 of 4 rows can't be used and are left out: row 2 \(column"):
        scores = gk.score("flow", rows, bad_rows="skip")
    assert scores.rows.numbers is not None
    assert scores.rows.numbers.tolist() == [1, 4]
    with pytest.warns(GebmKitWarning):
        densities = gk.log_density("flow", rows, bad_rows="skip")
    assert densities.gebm.tolist() == gk.log_density("flow", rows[[0, 3]]).gebm.tolist()
    with pytest.raises(DataError, match=r"row 2, column 'a' is missing") as caught:
        gk.score("flow", rows)
    assert "bad_rows='skip'" in str(caught.value.hint)
    for subject in ("flow", "plain"):
        with pytest.raises(DataError, match="none of its 2 rows can be used: row 1"):
            gk.score(subject, rows[1:3], bad_rows="skip")
    with pytest.raises(UsageError, match="bad_rows"):
        gk.score("flow", rows, bad_rows="drop")  # type: ignore[arg-type]
    images = np.zeros((3, 8, 8), dtype=np.float32)
    images[1, 0, 0] = math.nan
    np.save("images.npy", images)
    assert cli("score", "digits", "images.npy", "--json").code == 2
    found = cli("score", "digits", "images.npy", "--bad-rows", "skip", "--json").json
    assert ([entry["row"] for entry in found["skipped"]], found["num_rows"]) == ([2], 2)


def test_only_bad_rows(cli: Any, here: Path) -> None:
    Path("bad.csv").write_text("a,b\n1,x\ny,2\n")
    result = cli("score", "flow", "bad.csv", "--bad-rows", "skip", "--json", "--out", "bad-out.csv")
    assert result.code == 2
    assert "none of its 2 rows can be used: row 1 (line 2: column 'b' holds 'x'" in result.json["error"]["message"]
    assert not Path("bad-out.csv").exists()


def test_an_outlier_with_the_lowest_energy_ranks_first_and_is_named(here: Path) -> None:
    run = gk.load_run("flow")
    rows = np.loadtxt("rows.csv", delimiter=",", skiprows=1)
    scores = gk.score(run, np.concatenate([rows, [[90.0, -900.0]]]))
    assert scores.rank_by is not None
    assert (scores.rank_by.column, scores.rank_by.lowest_first) == ("log_density", True)
    assert scores.most_unlikely(1) == [201]
    assert scores.log_base is not None
    assert scores.energy is not None
    pulled = replace(scores, energy=scores.energy.index_fill(0, torch.tensor([200]), -50.0))
    assert pulled.energy is not None
    assert pulled.log_base is not None
    assert pulled.log_partition is not None
    density = pulled.log_base - pulled.energy - pulled.log_partition.value
    (said,) = contradictions(pulled.energy, density, pulled.log_base, pulled.rows)
    assert said.startswith(
        "row 201: among the 3 of 201 rows that the base expects least, and among the 10% with the lowest"
    )
    assert replace(pulled, log_density=density).most_unlikely(1) == [201]
    lifted = contradictions(pulled.energy, density + torch.eye(201)[200] * 1e5, pulled.log_base, pulled.rows)
    assert "lifts their log_density above" in lifted[1]
    assert contradictions(scores.energy, scores.log_density, None, scores.rows) == []
    plain = gk.score("plain", np.concatenate([rows, [[90.0, -900.0]]]))
    (warning,) = plain.warnings
    assert warning.startswith("row 201: far outside the training data (row 201: 90 in column 'a', which goes from")
    assert plain.rank_by is not None
    assert plain.rank_by.column == "energy"


def test_another_dataset_in_an_evaluation(cli: Any, here: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(100, 2)) + np.array([500.0, 0.0])
    np.savetxt("other.csv", rows, delimiter=",", header="a,b", comments="")
    chosen = 'eval.metrics=[{name: ood-auroc, dataset: tabular, options: ["path=other.csv"]}]'
    found = cli("eval", "flow", chosen, "--json", "--quiet").json
    assert found["metrics"]["gebm"]["ood-auroc.base"]["value"] > 0.99
    assert set(found["metrics"]["gebm"]) == {"ood-auroc.energy", "ood-auroc.density", "ood-auroc.base"}
    assert found["protocol"]["ood-auroc"]["dataset"] == "tabular"
    assert "ood-auroc" in cli("eval", "plain", chosen, "--json", "--quiet").json["metrics"]["gebm"]
    missing = cli("eval", "flow", chosen.replace("other.csv", "none.csv"), "--json")
    assert (missing.code, "none.csv does not exist" in missing.json["error"]["message"]) == (2, True)


def test_every_key_is_documented(here: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    section = page.partition("\n## score\n")[2].partition("\n## ")[0]
    assert all(f"`{key}`" in section for key in KEYS - {"schema"})
    assert json.loads((here / "flow" / "status.json").read_text())["state"] == "finished"


def test_a_run_whose_rows_came_from_python_scores_other_rows_without_them(cli: Any, here: Path) -> None:
    frame = pd.read_csv("rows.csv")
    quick: dict[str, Any] = {
        "train": {"steps": 2, "energy_steps": 1, "batch_size": 32},
        "sample": {"num_samples": 40, "num_chains": 20, "warmup": 4, "steps": 4, "thin": 2},
        "eval": {"metrics": ["mmd"], "num_samples": 40, "num_sets": 2},
    }
    gk.fit("test-scored", {"name": "mlp", "hidden": [8]}, frame, sampler="mala", out="foreign", **quick)
    given = gk.load_run("foreign", data=frame)
    frame[["b", "a"]].head(20).to_csv("swapped.csv", index=False)
    result = cli("score", "foreign", "swapped.csv", "nll.space=raw", "--json")
    assert result.code == 0
    assert "the run's data (DataFrame) are not given" in result.err
    expected = gk.score(given, frame.head(20), space="raw")
    rows = read(result.json["out"])
    assert [row["energy"] for row in rows] == expected.energy.tolist()
    assert result.json["mean_log_density"] == pytest.approx(float(expected.log_density.mean()))
    density = cli("density", "foreign", "swapped.csv", "--json", "--quiet").json
    assert density["num_rows"] == 20
    with pytest.warns(GebmKitWarning, match="are not given"):
        assert torch.equal(gk.score("foreign", "swapped.csv").energy, expected.energy)
    assert cli("sample", "foreign", "sample.num_samples=40", "--out", "foreign.csv", "--quiet").code == 0
    refused = cli("eval", "foreign")
    assert refused.code == 2
    assert "can't rebuild: data (pandas.DataFrame)" in refused.err
