"""Training end to end on a toy: one seed gives the same weights, resumed equals never stopped, and failures are clear."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import gebm_kit as gk
from gebm_kit.config.check import check
from gebm_kit.config.load import load_recipe
from gebm_kit.config.tree import parse
from gebm_kit.core.errors import (
    CheckpointError,
    GebmKitError,
    Interrupted,
    RecipeError,
    RunFailed,
    UsageError,
)
from gebm_kit.core.progress import GebmKitWarning, Progress
from gebm_kit.engine.run_directory.checkpoint import list_checkpoints, read_checkpoint
from gebm_kit.engine.run_directory.run import Run, load_run, newest_run
from gebm_kit.engine.train import train
from gebm_kit.engine.training.dry_run import plan
from gebm_kit.engine.training.trainer import Trainer

TOY = """\
schema: 1
data: {name: eight-gaussians, num_train: 300, num_valid: 100, num_test: 100}
base: {name: mlp, latent_dim: 3, hidden: [16], norm: batch}
energy: {name: mlp, hidden: [16]}
loss: {name: kale}
train:
  steps: 12
  energy_steps: 2
  start_steps: 2
  start_energy_steps: 4
  batch_size: 32
  noise: 0.05
  penalty: {name: gradient, every: 3}
  log_every: 4
  checkpoint_every: 4
  final: {steps: 6, batch_size: 48}
optim: {base: {schedule: linear}}
sample: {num_samples: 40, num_chains: 20, warmup: 4, steps: 4, thin: 2}
eval: {metrics: [mmd], num_samples: 40, num_sets: 2}
"""

# Chains this short never mix, and a warning says so.
pytestmark = pytest.mark.filterwarnings("ignore:the chains have not mixed")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(TOY)
    return path


@pytest.fixture(autouse=True)
def only_marked_tests_draw(request: pytest.FixtureRequest) -> None:
    """Skip figures, except in the tests marked with `pictures`."""
    if "pictures" not in request.keywords:
        request.getfixturevalue("no_pictures")


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {f"{part}/{k}": v for part, named in run.checkpoint.tensors.items() for k, v in named.items()}


def assert_same(a: Run, b: Run) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


@pytest.mark.pictures
def test_a_run_directory_holds_everything(recipe: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    run = train(recipe, ["sampler=mala"], out=tmp_path / "run", on_progress=seen.append)
    names = {p.name for p in run.path.iterdir()}
    assert names == {
        "recipe.yaml", "resolved.yaml", "overrides.txt", "env.json", "status.json", "evaluation.json", "metrics.jsonl",
        "checkpoints", "samples", "figures", ".lock",
    }  # fmt: skip
    assert (run.path / "recipe.yaml").read_text() == TOY
    assert (run.path / "overrides.txt").read_text() == "sampler=mala\n"
    assert run.status["state"] == "finished"
    assert run.step == 18
    assert {p.name for p in run.checkpoint.path.iterdir()} == {
        "model.safetensors", "loss.safetensors", "optim.safetensors", "ema.safetensors", "rng.safetensors", "state.json",
    }  # fmt: skip
    assert len(list(run.figures.glob("*.png"))) >= 3
    rows = [row for row in run.metrics() if "energy_loss" in row]
    assert [row["step"] for row in rows] == [1, 4, 8, 12, 16, 18]
    assert {"kale", "log_partition", "energy_loss"} <= rows[0].keys()
    assert run.evaluation is not None
    assert {"data", "base", "gebm", "ratio"} == run.evaluation["metrics"].keys()
    assert {p.stage for p in seen} >= {"train", "warmup", "sample", "evaluate"}
    assert not run.model.training
    assert torch.isfinite(run.model.log_partition)


def test_the_resolved_recipe_reruns_identically(recipe: Path, tmp_path: Path) -> None:
    first = train(recipe, ["train.seed=5"], out=tmp_path / "a")
    second = train(first.path / "resolved.yaml", out=tmp_path / "b")
    assert_same(first, second)
    other = train(recipe, ["train.seed=6"], out=tmp_path / "c")
    assert not torch.equal(next(iter(first.model.parameters())), next(iter(other.model.parameters())))


def test_training_does_not_touch_the_callers_random_state(recipe: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    train(recipe, out=tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())


class StopAt:
    """Callback that sends this process a signal when training reports a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number, self.done = step, number, False

    def __call__(self, progress: Progress) -> None:
        if progress.stage == "train" and progress.step >= self.step and not self.done:
            self.done = True
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 8, 16])
def test_stopped_and_resumed_equals_never_stopped(recipe: Path, tmp_path: Path, step: int, number: int) -> None:
    straight = train(recipe, out=tmp_path / "straight")
    with pytest.raises(Interrupted) as caught:
        train(recipe, out=tmp_path / "stopped", on_progress=StopAt(step, number))
    assert caught.value.exit_code == 128 + number
    assert f"--out {tmp_path / 'stopped'} --resume" in caught.value.hint
    assert load_run(tmp_path / "stopped").state == "interrupted"
    resumed = train(recipe, out=tmp_path / "stopped", resume=True)
    assert resumed.state == "finished"
    assert_same(straight, resumed)

    def steps(run: Run) -> list[int]:
        return [row["step"] for row in run.metrics() if "energy_loss" in row]

    assert sorted(set(steps(straight))) == sorted(set(steps(resumed)))


def test_a_signal_that_the_shell_had_ignored_stays_ignored(recipe: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert train(recipe, out=tmp_path / "run", on_progress=StopAt(4, signal.SIGINT)).state == "finished"
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_killed_at_once_and_resumed_equals_never_stopped(recipe: Path, tmp_path: Path) -> None:
    straight = train(recipe, out=tmp_path / "straight")
    out = tmp_path / "killed"
    code = (
        "import os, signal, sys\nfrom gebm_kit.engine.train import train\n"
        "def kill(p):\n    if p.stage == 'train' and p.step >= 8: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(sys.argv[1], out=sys.argv[2], on_progress=kill)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(recipe), str(out)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert load_run(out).state == "running"
    assert_same(straight, train(recipe, out=out, resume=True))


def test_resume_starts_continues_and_returns(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted):
        train(recipe, resume=True, on_progress=StopAt(4, signal.SIGINT))
    (path,) = (tmp_path / "runs" / "toy").iterdir()
    run = train(recipe, resume=True)
    assert run.path.resolve() == path
    assert newest_run().path == run.path
    before = (path / "status.json").stat().st_mtime_ns
    assert train(recipe, resume=True, out=path).step == 18
    assert (path / "status.json").stat().st_mtime_ns == before


def test_what_comes_after_training_may_change_on_resume(recipe: Path, tmp_path: Path) -> None:
    first = train(recipe, out=tmp_path / "run")
    again = train(recipe, ["sample.inverse_temperature=0.5"], out=tmp_path / "run", resume=True)
    assert_same(first, again)
    assert again.evaluation is not None
    assert again.evaluation["inverse_temperature"] == 0.5
    assert again.recipe.sample.inverse_temperature == 0.5
    assert (again.path / "recipe.yaml").read_text() == TOY


def test_resume_without_a_place_starts_what_no_run_has_begun(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted):
        train(recipe, resume=True, on_progress=StopAt(4, signal.SIGINT))
    other = train(recipe, ["train.seed=1"], resume=True)
    assert other.recipe.train.seed == 1
    assert len(list((tmp_path / "runs" / "toy").iterdir())) == 2


def test_a_batch_that_divides_nothing_evenly(recipe: Path, tmp_path: Path) -> None:
    assert train(recipe, ["train.batch_size=63"], out=tmp_path / "run").state == "finished"


def test_an_energy_that_never_meets_the_averaged_base_is_pointed_out(recipe: Path, tmp_path: Path) -> None:
    with pytest.warns(GebmKitWarning, match="sampling uses the averaged one"):
        train(recipe, ["train.final.steps=0"], out=tmp_path / "run")


def test_whatever_goes_wrong_the_status_says_failed(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Trainer) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Trainer, "cycle", broken)
    with pytest.raises(RunFailed, match="out of memory at step 0"):
        train(recipe, out=tmp_path / "run")
    assert load_run(tmp_path / "run").state == "failed"


def test_resuming_under_another_recipe_shows_the_differences(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(recipe, out=tmp_path / "run", on_progress=StopAt(4, signal.SIGINT))
    with pytest.raises(UsageError, match=r"base.latent_dim: 3 in the run, 4 now"):
        train(recipe, ["base.latent_dim=4"], out=tmp_path / "run", resume=True)
    assert train(recipe, ["train.log_every=2", "sampler=ula"], out=tmp_path / "run", resume=True).state == "finished"


def test_a_damaged_checkpoint_is_replaced_by_the_older_one_when_training_goes_on(recipe: Path, tmp_path: Path) -> None:
    straight = train(recipe, out=tmp_path / "straight")
    with pytest.raises(Interrupted):
        train(recipe, out=tmp_path / "run", on_progress=StopAt(12, signal.SIGINT))
    run = load_run(tmp_path / "run")
    newest = list_checkpoints(run.checkpoints)[-1] / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    with pytest.warns(GebmKitWarning, match=r"model.safetensors is damaged.*; checkpoint step-0000008 is used instead"):
        assert run.step == 8
    with pytest.warns(GebmKitWarning, match="resuming from step-"):
        resumed = train(recipe, out=run.path, resume=True)
    assert_same(straight, resumed)


@pytest.mark.parametrize("lost", ["newest", "all"])
def test_a_finished_run_that_lost_checkpoints_makes_them_again(recipe: Path, tmp_path: Path, lost: str) -> None:
    """The advice of `sample`'s error works: --resume continues from the remaining checkpoints, or from the start."""
    run = train(recipe, out=tmp_path / "run")
    before = weights(run)
    if lost == "newest":
        (list_checkpoints(run.checkpoints)[-1] / "model.safetensors").write_bytes(b"short")
        with pytest.warns(GebmKitWarning, match="resuming from step-"):
            again = train(recipe, out=run.path, resume=True)
    else:
        for path in list_checkpoints(run.checkpoints):
            shutil.rmtree(path)
        again = train(recipe, out=run.path, resume=True)
    assert again.state == "finished"
    assert all(torch.equal(value, before[name]) for name, value in weights(again).items())


@pytest.mark.parametrize("part", ["energy", "base"])
def test_one_part_alone_leaves_the_other_as_it_was(recipe: Path, tmp_path: Path, part: str) -> None:
    first = train(recipe, out=tmp_path / "first")
    options = [f"train.part={part}", f"train.init_from={first.path}", "train.final.steps=0", "ema.decay=0"]
    second = train(recipe, options, out=tmp_path / "second")
    kept, trained = ("base", "energy") if part == "energy" else ("energy", "base")

    def same(name: str) -> bool:
        pairs = zip(getattr(first.model, name).parameters(), getattr(second.model, name).parameters(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    assert same(kept)
    assert not same(trained)


def test_the_final_phase_trains_the_energy_against_the_averaged_base(recipe: Path, tmp_path: Path) -> None:
    before = train(recipe, ["train.final.steps=0"], out=tmp_path / "before")
    after = train(recipe, out=tmp_path / "after")
    for name, tensor in before.model.base.state_dict().items():
        assert torch.equal(tensor, after.model.base.state_dict()[name])
        assert torch.equal(tensor, after.checkpoint.tensors["model"][f"base.{name}"])
    for name, parameter in after.model.energy.named_parameters():
        averaged = after.checkpoint.tensors["ema"][f"energy.{name}"]
        assert torch.equal(parameter, averaged)
        assert not torch.equal(averaged, after.checkpoint.tensors["model"][f"energy.{name}"])


def test_the_energy_step_leaves_no_gradient_on_the_base_nor_the_base_step_on_the_energy() -> None:
    trainer = toy_trainer()
    trainer.energy_step()
    assert all(p.grad is None for p in trainer.model.base.parameters())
    gradients = [p.grad.clone() for p in trainer.model.energy.parameters() if p.grad is not None]
    trainer.base_step()
    after = [p.grad for p in trainer.model.energy.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(gradients, after, strict=True))
    assert any(p.grad is not None for p in trainer.model.base.parameters())


def test_a_lazy_penalty_is_due_every_kth_update_with_weight_k(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = toy_trainer()
    penalty = trainer.penalties[0]
    calls: list[int] = []
    monkeypatch.setattr(
        type(penalty), "forward", lambda self, *_: calls.append(trainer.energy_updates) or torch.tensor(1.0)
    )
    for update in range(7):
        terms = trainer.energy_step()
        extra = float(terms.metrics["energy_loss"] - terms.loss)
        assert extra == pytest.approx(3.0 if update % 3 == 0 else 0.0, abs=1e-5)
    assert calls == [0, 3, 6]


def toy_trainer(overrides: Sequence[str] = ()) -> Trainer:
    from gebm_kit.config.build import build_dataset

    checked = check(parse(TOY, name="toy", overrides=overrides), directory=Path())
    torch.manual_seed(0)
    trainer = Trainer(checked, build_dataset(checked), torch.device("cpu"))
    trainer.initialise()
    return trainer


def test_schedules_and_phases_set_the_rates() -> None:
    trainer = toy_trainer(["optim.base.end_scale=0.5", "optim.base.decay_start=0.5", "optim.base.lr=1"])
    rates = []
    for _ in range(18):
        trainer.cycle()
        rates.append((trainer.base_optimizer.param_groups[0]["lr"], trainer.energy_optimizer.param_groups[0]["lr"]))
    assert rates[0] == (1.0, 2e-4)
    assert rates[9][0] == pytest.approx(0.75)
    assert [e for _, e in rates[12:]] == pytest.approx([2e-4 * (1 - k / 6) for k in range(6)])


def test_float64_runs_in_float64(recipe: Path, tmp_path: Path) -> None:
    run = train(recipe, ["precision=float64"], out=tmp_path / "run")
    assert next(run.model.parameters()).dtype == torch.float64
    assert gk.sample(run, num_samples=10).x.dtype == torch.float64


def test_a_loss_that_is_not_finite_stops_the_run_in_words(recipe: Path, tmp_path: Path) -> None:
    options = ["optim.energy.lr=1e30", "optim.energy.name=sgd", "train.steps=40", "loss=kale-dv"]
    with pytest.raises(RunFailed, match=r"training diverged: \d+ \w+ updates in a row had been skipped by step \d+"):
        train(recipe, options, out=tmp_path / "run")
    assert load_run(tmp_path / "run").state == "failed"


@pytest.mark.parametrize("kind", ["file", "not empty", "a run"])
def test_an_output_that_is_taken_is_refused(recipe: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / ("status.json" if kind == "a run" else "mine.txt")).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="can't be written" if kind == "file" else "is not empty") as caught:
        train(recipe, out=out)
    assert ("--resume" in caught.value.hint) == (kind == "a run")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_unwritable_place_is_refused(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(UsageError, match="can't be written"):
        train(recipe, out=folder / "run")


def test_a_place_below_a_file_is_refused(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be written"):
        train(recipe, out=tmp_path / "file" / "run")


def test_a_disk_that_fills_up_leaves_a_run_to_resume(recipe: Path, tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "from gebm_kit.engine.train import train\nfrom gebm_kit.core.errors import RunFailed\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "def fill(p):\n"
        "    if p.stage == 'train' and p.step >= 8: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    train(sys.argv[1], out=sys.argv[2], on_progress=fill)\n"
        "except RunFailed as error: print(error); sys.exit(error.exit_code)\n"
    )
    out = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", code, str(recipe), str(out)], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "can't be written" in done.stdout
    run = load_run(out)
    kept = list_checkpoints(run.checkpoints)
    assert kept
    for path in kept:
        read_checkpoint(path)
    assert [p for p in run.checkpoints.iterdir() if p not in kept] == []
    assert train(recipe, out=out, resume=True).state == "finished"


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"is not a run directory: it has no resolved.yaml"):
        load_run(tmp_path)
    with pytest.raises(UsageError, match="there is no finished run"):
        newest_run(tmp_path)


def test_a_run_without_checkpoint_says_how_to_go_on(recipe: Path, tmp_path: Path) -> None:
    run = train(recipe, out=tmp_path / "run")
    for path in list_checkpoints(run.checkpoints):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    with pytest.raises(CheckpointError, match="has no checkpoint yet") as caught:
        _ = load_run(run.path).model
    assert "--resume" in caught.value.hint


def test_damaged_status_and_metrics(recipe: Path, tmp_path: Path) -> None:
    run = train(recipe, out=tmp_path / "run")
    with open(run.path / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 99, "ka')
    assert all(row["step"] <= 18 for row in run.metrics())
    (run.path / "status.json").write_text("{")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        _ = load_run(run.path).state


def test_bfloat16_is_refused_where_it_is_not_safe(recipe: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("for machines without CUDA")
    with pytest.raises(RecipeError, match="bfloat16 is for CUDA"):
        train(recipe, ["precision=bfloat16"], out=tmp_path / "run")
    with pytest.raises(UsageError, match="cuda"):
        train(recipe, device="cuda:7", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_metric_that_does_not_suit_the_data_is_refused_before_training(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a dataset whose modes are known"):
        train(recipe, ["data=two-moons", "eval.metrics=[modes]"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_plan_makes_no_run(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    costs = plan(load_recipe(recipe))
    assert costs["parameters"]["energy"] == 2 * 16 + 16 + 16
    assert costs["steps"] == 18
    assert costs["steps_per_second"] > 0
    assert costs["memory_bytes"] > 300 * 2 * 4
    assert not (tmp_path / "runs").exists()


def test_training_works_outside_the_main_thread(recipe: Path, tmp_path: Path) -> None:
    results: list[Run | GebmKitError] = []
    thread = threading.Thread(target=lambda: results.append(train(recipe, out=tmp_path / "run")))
    thread.start()
    thread.join()
    assert isinstance(results[0], Run)


@pytest.mark.pictures
def test_pictures_and_scores_during_training(recipe: Path, tmp_path: Path) -> None:
    looked = train(recipe, ["train.eval_every=6"], out=tmp_path / "looked")
    assert (looked.figures / "step-0000006").is_dir()
    assert any("eval.gebm.mmd" in row and row["step"] == 6 for row in looked.metrics())
    assert_same(train(recipe, out=tmp_path / "not"), looked)


def test_the_status_is_json_with_the_seconds_of_all_attempts(recipe: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(Interrupted):
        train(recipe, out=tmp_path / "run", on_progress=StopAt(4, signal.SIGINT))
    first = json.loads((tmp_path / "run" / "status.json").read_text())["seconds"]
    run = train(recipe, out=tmp_path / "run", resume=True)
    assert first < run.status["seconds"] < time.monotonic() - start
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
