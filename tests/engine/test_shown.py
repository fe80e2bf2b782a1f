"""What results look like at a prompt and in a notebook."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import gebm_kit as gk
from gebm_kit.config.build import build
from gebm_kit.config.load import load_recipe
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core.interfaces import Dataset, Split, SplitName
from gebm_kit.engine.run_directory.run import Run
from gebm_kit.testing.targets import IdentityBase

QUICK = [
    "train.steps=2", "train.final.steps=0", "eval.num_samples=40", "eval.num_sets=2", "sample.num_samples=40",
    "sample.num_chains=20", "sample.warmup=4", "sample.steps=4", "sampler=mala", "device=cpu",
]  # fmt: skip
MODEL = gk.GEBM(IdentityBase(2), nn.Sequential(nn.Linear(2, 1, bias=False), nn.Flatten(0)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gebm_kit.engine.evaluation.evaluation_files.draw_all", lambda *_, **__: [])
        yield gk.train("quickstart", QUICK, out=tmp_path_factory.mktemp("shown") / "<b>run")


def check(result: Any, name: str, *inside: str) -> None:
    """Check the two faces of a result: short, without tensors, and escaped."""
    assert repr(result).startswith(f"{name}(")
    assert len(repr(result)) < 400
    assert "tensor(" not in repr(result)
    page = result._repr_html_()
    assert page.startswith("<div>")
    assert "<b>" not in page
    assert "tensor(" not in page
    for text in inside:
        assert text in page


def test_a_run_shows_its_evaluation_and_pictures(run: Run) -> None:
    run.figures.mkdir(exist_ok=True)
    Image.new("L", (4, 4)).save(run.figures / "clouds.png")
    (run.figures / "notes.png").write_text("<script>")
    check(run, "Run", "&lt;b&gt;run", "<th", "gebm", "ratio", "log Z", "data:image/png;base64,")
    assert "quickstart, finished, step 2" in repr(run)
    assert run._repr_html_().count("<img") == 1


def test_a_run_that_is_damaged_is_shown_all_the_same(run: Run, tmp_path: Path) -> None:
    check(Run(tmp_path / "gone"), "Run")
    (tmp_path / "evaluation.json").write_text('{"metrics": 3}')
    (tmp_path / "status.json").write_text("{")
    check(Run(tmp_path), "Run", "the evaluation can")
    assert "can't be read" in repr(Run(tmp_path))


def test_an_evaluation(run: Run) -> None:
    found = gk.evaluate(run, num_samples=40, num_sets=2)
    first = next(iter(found.metrics["gebm"]))
    check(found, "Evaluation", first, "data", "base", "gebm", "ratio", "verdict")
    low = found.metrics["gebm"][first].low
    assert f"[{low:.4g}," in found._repr_html_()
    hostile = dataclasses.replace(found, verdict={"<script>": "<script>"})
    assert "<script" not in hostile._repr_html_()


def test_scores_and_densities(run: Run) -> None:
    rows = run.dataset.split("test").first(8)
    check(gk.score(run, rows), "RowScores", "energy", "median")
    model = gk.GEBM(_Normal(2), MODEL.energy)
    check(gk.log_density(model, torch.randn(8, 2)), "LogDensities", "gebm", "log Z")
    assert len(gk.log_density(model, torch.randn(8, 2))) == 8


class _Normal(IdentityBase):
    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(0, 1).log_prob(x).sum(1)


def test_traces_and_tilts(run: Run) -> None:
    traced = gk.trace_quality(run, "mmd", num_samples=20, num_sets=2, num_chains=10, warmup=2, at_steps=[0, 2])
    check(traced, "Trace", "grad_evals", "data:image/png")
    tilted = gk.tilt(
        IdentityBase(2), lambda x: x[:, 0], betas=[1], num_samples=50, num_base=64, sampler="mala", num_chains=25
    )
    check(tilted, "Tilt", "beta 1", "best of 4")


def test_recipes(run: Run) -> None:
    check(run.recipe, "Recipe", "energy", "metric", "<pre>")
    recipe = dataclasses.replace(load_recipe("quickstart"), text="a: <script>alert(1)</script>")
    assert "<script" not in recipe._repr_html_()
    assert dataclasses.replace(recipe) == recipe
    json.dumps(repr(recipe))


def test_datasets(run: Run) -> None:
    check(run.dataset, type(run.dataset).__name__, "data:image/png")
    wine = build("dataset", ComponentNode("redwine"), {})
    check(wine, "RedWine", "alcohol", "subtracted")


def test_a_dataset_that_fails_is_shown_all_the_same() -> None:
    class Broken(Dataset):
        def split(self, name: SplitName) -> Split:
            raise RuntimeError("no")

    assert "Broken object at" in repr(Broken())
