"""An energy on top of a generator from a file: train, resume, sample and evaluate, with the trust that a program needs."""

from __future__ import annotations

import json
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.bases.dcgan import DcganBase
from gebm_kit.cli.app import main
from gebm_kit.core.errors import CheckpointError, Interrupted, RecipeError, UsageError
from gebm_kit.core.progress import Progress
from gebm_kit.core.trust import programs_trusted, trust_programs
from gebm_kit.engine.run_directory.run import load_run
from gebm_kit.engine.train import train

pytestmark = [
    pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning"),
    pytest.mark.usefixtures("quick_evaluation"),
]

RECIPE = """\
schema: 1
data: {name: digits}
base: {name: pretrained, path: generator.pt, latent_shape: [6, 1, 1]}
energy: {name: conv, width: 4}
train: {steps: 5, part: energy, energy_steps: 1, batch_size: 16, log_every: 1, checkpoint_every: 100}
ema: {decay: 0}
sample: {num_samples: 20, num_chains: 10, warmup: 2, steps: 4, thin: 1}
eval: {metrics: [mmd], num_samples: 20, num_sets: 2, log_partition: importance-sampling}
"""


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.ConvTranspose2d(6, 4, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 1, 4, 2, 1), nn.Tanh()
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, with a recipe and generators."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = Generator()
    module(torch.randn(64, 6, 1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module.eval()), "generator.pt")
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path


def weights(run: Path) -> dict[str, Tensor]:
    (newest,) = sorted((run / "checkpoints").glob("step-*"))[-1:]
    return safetensors.torch.load_file(newest / "model.safetensors")


def interrupt(at: int) -> Any:
    """Return a progress callback that asks training to stop after cycle ``at``."""

    def watch(report: Progress) -> None:
        if report.stage == "train" and report.step == at:
            signal.raise_signal(signal.SIGTERM)

    return watch


def test_an_energy_on_a_program_from_the_first_step_to_the_draws(folder, capfd):
    with pytest.raises(UsageError, match="loading it runs code"):
        train("mine.yaml", out="run")
    assert not (folder / "run").exists()
    with trust_programs():
        whole = train("mine.yaml", out="whole")
        with pytest.raises(Interrupted) as stopped:
            train("mine.yaml", out="run", on_progress=interrupt(2))
    assert "--trust-program" in stopped.value.hint
    # from here on only the run directory is left
    (folder / "generator.pt").rename(folder / "elsewhere.pt")
    shutil.move("run", "moved")
    words = ["mine.yaml", "--out", "moved", "--resume", "--quiet", "--json"]
    assert main(["train", *words]) == 2
    assert "--trust-program" in json.loads(capfd.readouterr().out)["error"]["hint"]
    assert main(["train", *words, "--trust-program"]) == 0
    assert not programs_trusted()
    resumed = weights(folder / "moved")
    for name, tensor in weights(whole.path).items():
        assert torch.equal(tensor, resumed[name]), name
    assert not [name for name in resumed if name.startswith("base.") and name != "base.sha256"]
    kept = folder / "moved" / "base" / "generator.pt"
    assert kept.read_bytes() == (folder / "elsewhere.pt").read_bytes()
    assert (kept.parent / "generator.pt.sha256").read_text().split() == [
        bytes(resumed["base.sha256"].tolist()).hex(),
        "generator.pt",
    ]
    for command in (
        ["sample", "moved", "--out", "draws.npz"],
        ["eval", "moved"],
        ["sample", "moved", "--trace", "mmd"],
    ):
        capfd.readouterr()
        assert main([*command, "--quiet", "--json"]) == 2
        assert "--trust-program" in json.loads(capfd.readouterr().out)["error"]["hint"]
        assert main([*command, "--quiet", "--json", "--trust-program"]) == 0
    with trust_programs():
        draws = gk.sample(gk.load_run("moved"), num_samples=10, num_chains=5, warmup=1, steps=2)
    assert draws.x.shape == (10, 1, 8, 8)
    kept.write_bytes(kept.read_bytes() + b" ")
    with trust_programs(), pytest.raises(CheckpointError, match="is damaged"):
        _ = load_run("moved").model


def test_another_program_under_the_same_name_is_noticed(folder):
    with trust_programs():
        train("mine.yaml", out="run")
        shutil.rmtree("run/base")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(Generator().eval()), "generator.pt")
        with pytest.raises(CheckpointError, match="is not the generator that it was trained with"):
            _ = load_run("run").model
        with pytest.raises(CheckpointError, match="is not the generator that it was trained with"):
            train("mine.yaml", ["train.steps=6"], out="run", resume=True)
        with pytest.raises(CheckpointError, match="is not the generator that it was trained with"):
            train("mine.yaml", ["train.init_from=run"], out="other")


@pytest.mark.parametrize("part", ["both", "base", "base-then-energy"])
def test_a_program_is_never_trained(folder, part):
    with (
        trust_programs(),
        pytest.raises(UsageError, match=f"train.part={part} trains the base, and .*generator.pt has no"),
    ):
        train("mine.yaml", [f"train.part={part}"], out="run")


@pytest.mark.parametrize("changes", [["ema.decay=0.99"], ["train.final.steps=2"], ["optim.base.name=sgd"]], ids=str)
def test_settings_of_the_base_do_not_disturb_a_program(folder, changes):
    with trust_programs():
        run = train("mine.yaml", changes, out="run")
        assert run.model.base.source_sha256 == bytes(run.model.base.sha256.tolist()).hex()


def test_weights_of_a_registered_base_are_trained_further_or_left_alone(folder):
    given = DcganBase(4, 4, data_shape=(1, 8, 8), value_range=(-1.0, 1.0))
    safetensors.torch.save_file(given.state_dict(), "g.safetensors")
    words = [
        "base.path=g.safetensors",
        "base.latent_shape=null",
        "base.architecture={name: dcgan, latent_dim: 4, width: 4}",
    ]
    fixed = train("mine.yaml", words, out="fixed")
    for name, tensor in given.state_dict().items():
        assert torch.equal(weights(fixed.path)[f"base.network.{name}"], tensor), name
    further = train("mine.yaml", [*words, "train.part=both", "train.start_steps=0"], out="further")
    (folder / "g.safetensors").unlink()
    moved = load_run(further.path).model.base.state_dict()
    assert not torch.equal(moved["network.project.weight"], given.project.weight)
    assert torch.equal(moved["sha256"], weights(fixed.path)["base.sha256"])
    problem = ["base.architecture={name: dcgna}", "base.architecture={name: dcgan, widht: 4}", "base.architecture=7"]
    for word in problem:
        with pytest.raises(RecipeError, match=r"base.architecture"):
            train("mine.yaml", [*words[:2], word], out="none")
