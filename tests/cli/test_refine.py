"""``gebm-kit refine``: the meaning of its words, one command from generator to table, and the choice of beta."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gebm_kit.cli.app import main
from gebm_kit.config.build import data_facts
from gebm_kit.config.load import load_recipe
from gebm_kit.config.model import build_model
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core.errors import Interrupted, UsageError
from gebm_kit.core.trust import trust_programs
from gebm_kit.data.digits import Digits
from gebm_kit.engine import refine as engine
from gebm_kit.engine.evaluation import inverse_temperature
from gebm_kit.engine.evaluation.draw_sets import DrawSets
from gebm_kit.engine.run_directory.run import load_run
from gebm_kit.metrics.mmd import Mmd

pytestmark = [
    pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning"),
    pytest.mark.usefixtures("quick_evaluation"),
]

TINY = [
    "energy={name: projected, width: 4, dim: 4, hidden: [4], steps: 3}", "train.steps=3", "train.final.steps=2",
    "train.batch_size=16", "train.final.batch_size=16",
    "sample={num_samples: 20, num_chains: 10, warmup: 2, steps: 4, thin: 1}",
    "eval={metrics: [mmd], num_samples: 70, num_sets: 2, log_partition: importance-sampling}",
]  # fmt: skip


class Generator(nn.Module):
    """A generator that maps codes (B, 4, 1, 1) to images (B, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 64)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.layer(z.flatten(1))).reshape(-1, 1, 8, 8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Generator().eval()), "generator.pt")
    return tmp_path


def refined(*words: str) -> int:
    return main(["refine", "generator.pt", *words, "--latent", "4x1x1", "--trust-program", "--quiet", "--json"])


def test_one_command_from_a_generator_to_a_table(folder, capfd, monkeypatch):
    monkeypatch.setattr(inverse_temperature, "BETAS", (1.0, 2.0))
    assert refined("digits", *TINY, "--out", "run") == 0
    result = json.loads(capfd.readouterr().out)
    assert set(result) == {
        "schema", "run", "step", "seconds", "seed", "metrics", "figures", "checkpoint", "refined",
    }  # fmt: skip
    assert result["step"] == 5
    assert result["metrics"]["ratio"]["mmd"]["n"] == 2
    found = result["refined"]
    assert found == {
        k: v for k, v in json.loads((folder / "run" / "refined.json").read_text()).items() if k != "schema"
    }
    assert [trial["inverse_temperature"] for trial in found["tried"]] == [1.0, 2.0]
    assert (found["chosen_by"], found["reference_part"], found["step"]) == ("mmd", "valid", 5)
    best = min(found["tried"], key=lambda trial: trial["value"])["inverse_temperature"]
    assert found["inverse_temperature"] == best == found["evaluation"]["inverse_temperature"]
    assert found["generator"]["path"] == "generator.pt"
    assert (folder / "run" / "base" / "generator.pt.sha256").read_text().startswith(found["generator"]["sha256"])
    assert "run/figures/refine.png" in result["figures"]
    recipe = load_run("run").recipe
    assert (recipe.name, recipe.data.name, recipe.train.part) == ("refine", "digits", "energy")
    documented = (
        (Path(__file__).parents[2] / "docs" / "cli.md").read_text().partition("\n## refine\n")[2].partition("\n## ")[0]
    )
    assert all(f"`{key}`" in documented for key in (*found, *found["generator"], *found["tried"][0], "refined"))
    # again: nothing is left to do, and the result is shown as a table
    stamp = (folder / "run" / "refined.json").stat().st_mtime_ns
    words = ["refine", "generator.pt", "digits", *TINY, "--latent", "4x1x1", "--trust-program", "--quiet"]
    assert main([*words, "--out", "run", "--resume"]) == 0
    shown = capfd.readouterr().out
    assert (folder / "run" / "refined.json").stat().st_mtime_ns == stamp
    assert "before" in shown
    assert "after, beta 1" in shown
    assert f"beta {best:g} was chosen by mmd on the validation part" in shown
    assert found["generator"]["sha256"] in shown


def test_a_beta_that_is_given_is_not_chosen_and_is_reported(folder, capfd):
    assert refined("digits", *TINY, "sample.inverse_temperature=3", "--out", "run") == 0
    found = json.loads(capfd.readouterr().out)["refined"]
    assert (found["chosen_by"], found["tried"], found["inverse_temperature"]) == (None, [], 3.0)
    assert found["evaluation"]["inverse_temperature"] == 3.0


def test_a_dry_run_writes_nothing(folder, capfd):
    assert refined("digits", *TINY, "--dry-run", "--out", "run") == 0
    planned = json.loads(capfd.readouterr().out)
    assert planned["parameters"]["base"] == 0  # the base has nothing to train
    assert planned["steps"] == 5
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digts"], "did you mean digits"),
        (["generator.pt"], "is not a file of a known kind"),
        ([], "no DATA given"),
        (["digits", "trian.steps=1"], "did you mean train"),
        (["digits", "train.part=both"], "a program is never changed"),
        (["digits", "base.latent_shape=[5, 1, 1]"], r"fails on 16 codes of shape \[5, 1, 1\]"),
    ],
)
def test_words_that_mean_nothing(folder, capfd, words, message):
    assert refined(*words, "--out", "run") == 2
    error = json.loads(capfd.readouterr().out)["error"]
    assert re.search(message, error["message"])
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["generator.pt", "digits"], "set --latent to that of one latent code", "100x1x1 for codes (B, 100, 1, 1)"),
        (["generator.pt", "digits", "--latent", "5"], "fails on 16 codes of shape [5]", "--latent must be the shape"),
        (["nothing.pt", "digits", "--latent", "4"], "nothing.pt does not exist", "GENERATOR must name the right file"),
        (["generator.pt", "digits", "base.latent_shape=[5]"], "fails on 16", "base.latent_shape must be the shape"),
    ],
)
def test_advice_names_the_option_that_the_command_has(folder, capfd, words, message, hint):
    for more in (["--dry-run"], []):
        assert main(["refine", *words, *more, "--trust-program", "--quiet", "--json", "--out", "run"]) == 2
        error = json.loads(capfd.readouterr().out)["error"]
        assert message in error["message"]
        assert hint in error["hint"]
        assert ("base." in error["message"] + error["hint"]) == any(word.startswith("base.") for word in words)


def test_without_trust_nothing_is_loaded(folder, capfd):
    assert main(["refine", "generator.pt", "digits", "--latent", "4x1x1", "--quiet", "--json"]) == 2
    error = json.loads(capfd.readouterr().out)["error"]
    assert "loading it runs code" in error["message"]
    assert "--trust-program" in error["hint"]


def test_what_data_a_word_stands_for(tmp_path):
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "train-images-idx3-ubyte.gz").write_bytes(b"")
    (tmp_path / "photos").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "photos" / "a.png")
    np.save(tmp_path / "rows.npy", np.zeros((4, 2)))
    expected = {"idx": "idx", "photos": "image-folder", "rows.npy": "arrays"}
    for name, dataset in expected.items():
        recipe = load_recipe("refine", engine.recipe_words("my generator.pt", str(tmp_path / name), "100"))
        assert (recipe.data.name, recipe.data.parameters["path"]) == (dataset, str(tmp_path / name))
        assert recipe.base.parameters["path"] == "my generator.pt"
        assert recipe.base.parameters["latent_shape"] == [100]
    assert load_recipe("refine", engine.recipe_words("g.pt", "digits")).base.parameters["latent_shape"] is None
    written = [*engine.recipe_words("g.pt", None), "data={name: image-folder, path: x, size: 32}"]
    assert load_recipe("refine", written).data.parameters["size"] == 32
    for shape in ("a", "4x", "0", "4x-1"):
        with pytest.raises(UsageError, match="--latent is a shape such as"):
            engine.recipe_words("g.pt", "digits", shape)


class TestChoice:
    """The choice of beta, with draws at a known distance from the data."""

    @staticmethod
    def choose(
        folder: Path, monkeypatch: pytest.MonkeyPatch, distance: dict[float, float], **changes: Any
    ) -> inverse_temperature.Choice:
        rows = Digits().split("valid").first(1000)

        def sets(model: Any, sampler: Any, settings: Any, num: int, count: int, *rest: Any) -> DrawSets:
            shifted = rows + distance[settings.inverse_temperature]
            return DrawSets([shifted[index::count][:num] for index in range(count)])

        monkeypatch.setattr(inverse_temperature, "gebm_sets", sets)
        words = [*engine.recipe_words("generator.pt", "digits", "4x1x1"), *TINY]
        recipe = load_recipe("refine", words)
        if changes:
            recipe = dataclasses.replace(recipe, eval=dataclasses.replace(recipe.eval, **changes))
        with trust_programs():
            model = build_model(recipe, data_facts(recipe, Digits()))
        return inverse_temperature.choose_beta(model, Digits(), recipe, tuple(distance))

    def test_the_nearest_is_chosen_and_the_search_ends_behind_it(self, folder, monkeypatch):
        choice = self.choose(folder, monkeypatch, {1.0: 0.6, 1.5: 0.3, 2.0: 0.1, 3.0: 0.4, 5.0: 0.0})
        assert choice.best.inverse_temperature == 2.0
        assert [trial.inverse_temperature for trial in choice.trials] == [1.0, 1.5, 2.0, 3.0]
        assert choice.name == "mmd"
        assert choice.base > choice.best.value

    def test_a_metric_that_needs_training_data_gets_it(self, folder, monkeypatch):
        monkeypatch.setattr(Mmd, "needs_train", True)
        rows = []
        real = Mmd.__call__
        monkeypatch.setattr(Mmd, "__call__", lambda self, c: rows.append(len(c.train)) or real(self, c))
        self.choose(folder, monkeypatch, {1.0: 0.1, 1.5: 0.2})
        assert set(rows) == {len(Digits().split("train"))}

    def test_beta_stays_1_where_a_higher_one_is_worse(self, folder, monkeypatch):
        choice = self.choose(folder, monkeypatch, {1.0: 0.1, 1.5: 0.2, 2.0: 0.0})
        assert choice.best.inverse_temperature == 1.0
        assert len(choice.trials) == 2

    def test_a_metric_of_the_model_alone_cannot_choose(self, folder, monkeypatch):
        with pytest.raises(UsageError, match="'kale' can't tell better draws from worse"):
            self.choose(folder, monkeypatch, {1.0: 0.0}, metrics=(ComponentNode("kale"),))


def test_what_is_interrupted_is_gone_on_with_by_the_same_command(folder, capfd, monkeypatch):
    def stopped(*_: Any, **__: Any) -> None:
        raise Interrupted("stopped", signum=15, hint="Resume with `gebm-kit train ...`.")

    monkeypatch.setattr("gebm_kit.engine.train.train", stopped)
    assert refined("digits", "train.steps=3", "--out", "my run") == 143
    words = "gebm-kit refine generator.pt digits train.steps=3 --latent 4x1x1 --out 'my run' --resume --trust-program"
    assert words in json.loads(capfd.readouterr().out)["error"]["hint"]
