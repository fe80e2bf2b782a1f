"""Run directories, also those of older versions, rebuild their model without data; new ones also without the loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gebm_kit.config import model as model_module
from gebm_kit.core.errors import CheckpointError, UsageError
from gebm_kit.core.model import GEBM
from gebm_kit.engine.run_directory.checkpoint import amend_checkpoint
from gebm_kit.engine.run_directory.run import Run, load_run, subject_of
from gebm_kit.engine.train import train

pytestmark = [
    pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning"),
    pytest.mark.usefixtures("no_pictures"),
]

TINY = [
    "data.num_train=100", "data.num_valid=50", "data.num_test=50", "train.steps=1", "train.start_steps=0",
    "train.final.steps=0", "ema.decay=0", "train.batch_size=16", "base.hidden=[4]", "energy.hidden=[4]",
    "sampler=mala", "sample.num_samples=20", "sample.num_chains=20", "sample.warmup=2", "sample.steps=8",
    "sample.thin=8", "eval.num_samples=20", "eval.num_sets=2", "eval.metrics=[mmd]",
]  # fmt: skip


def short_run(out: Path, loss: str) -> Run:
    return train("eight_gaussians", [f"loss={loss}", *TINY], out=out)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the kinds of the components that are built for a model, in order."""
    kinds: list[str] = []
    build = model_module.build

    def recorded(kind, *arguments):
        kinds.append(kind)
        return build(kind, *arguments)

    monkeypatch.setattr(model_module, "build", recorded)
    return kinds


@pytest.mark.parametrize(("loss", "log_ratio"), [("kale", True), ("hinge", False)])
def test_a_checkpoint_says_whether_the_energy_is_a_log_ratio(
    loss: str, log_ratio: bool, tmp_path: Path, built: list[str]
) -> None:
    run = short_run(tmp_path / "run", loss)
    facts = run.checkpoint.state["facts"]
    assert facts["log_ratio"] is log_ratio

    built.clear()
    model = load_run(run.path).model
    assert model.log_ratio is log_ratio
    assert built == ["base", "energy"]

    old = {name: fact for name, fact in facts.items() if name != "log_ratio"}
    amend_checkpoint(run.checkpoints, run.step, {"facts": old})  # as older versions wrote it
    built.clear()
    torch.manual_seed(5)
    again = load_run(run.path)
    assert "log_ratio" not in again.checkpoint.state["facts"]
    assert again.model.log_ratio is log_ratio
    assert built == ["base", "energy", "loss"]
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_a_run_or_a_model_is_its_own_subject_and_a_path_is_opened(tmp_path: Path) -> None:
    run = short_run(tmp_path / "run", "kale")
    assert subject_of(run) is run
    assert subject_of(run.model) is run.model
    for path in (run.path, str(run.path)):
        opened = subject_of(path)
        assert isinstance(opened, Run)
        assert opened.path == run.path
    with pytest.raises(CheckpointError, match="does not exist"):
        subject_of(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="a run, its path or a GEBM is needed, got Linear"):
        subject_of(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    assert isinstance(run.model, GEBM)
