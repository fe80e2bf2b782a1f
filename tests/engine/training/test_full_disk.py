"""Disks that fill up, places that become read-only or are removed, files that rot: one message, and nothing else is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gebm_kit.cli.app import main
from gebm_kit.core.errors import Interrupted, RunFailed, UsageError
from gebm_kit.core.progress import GebmKitWarning, Progress
from gebm_kit.engine.run_directory.checkpoint import list_checkpoints, read_checkpoint
from gebm_kit.engine.run_directory.run import Run, load_run
from gebm_kit.engine.train import train
from gebm_kit.engine.training import loop as module

RECIPE = """\
schema: 1
data: {name: eight-gaussians, num_train: 200, num_valid: 50, num_test: 50}
base: {name: mlp, latent_dim: 2, hidden: [8], norm: batch}
energy: {name: mlp, hidden: [8]}
loss: {name: kale}
train: {steps: 10, energy_steps: 1, start_steps: 0, batch_size: 16, log_every: 1, checkpoint_every: 2, final: {steps: 2}}
eval: {metrics: [mmd]}
"""

NUM_FILES = 6


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module.TrainingRun, "evaluate", lambda self: None)
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    return path


def at(step: int, act: Callable[[], Any]) -> Callable[[Progress], None]:
    """A watcher that does something once, when training reports a step."""
    left = [act]

    def watch(progress: Progress) -> None:
        if progress.stage == "train" and progress.step >= step and left:
            left.pop()()

    return watch


def sums(run: Run) -> Any:
    return json.loads((load_run(run.path).checkpoint.path / "state.json").read_text())["sha256"]


@contextmanager
def mounted(*words: str | Path) -> Iterator[None]:
    """Something mounted on the last of ``words``, where that is allowed."""
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True) if os.geteuid() == 0 else None
    if done is None or done.returncode:
        pytest.skip("nothing may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(words[-1])], check=True)


def test_a_disk_that_is_really_full_leaves_what_was_saved(recipe: Path, tmp_path: Path) -> None:
    straight = train(recipe, out=tmp_path / "straight")
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs", disk):
        filler = disk / "filler"

        def fill() -> None:
            with filler.open("wb", buffering=0) as stream, suppress(OSError):
                while True:
                    stream.write(bytes(1000))

        with pytest.raises(RunFailed, match="No space left") as caught:
            train(recipe, out=disk / "run", on_progress=at(5, fill))
        assert caught.value.exit_code == 1
        kept = list_checkpoints(disk / "run" / "checkpoints")
        assert [read_checkpoint(path).step for path in kept] == [2, 4]
        filler.unlink()
        assert sums(train(recipe, out=disk / "run", resume=True)) == sums(straight)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be written in ``folder``: by its mode, or for root, who may do everything, by mounting it over itself."""
    if os.geteuid() != 0:
        folder.chmod(0o500)
        try:
            yield
        finally:
            folder.chmod(0o700)
        return
    with mounted("--bind", folder, folder):
        if subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], capture_output=True).returncode:
            pytest.skip("nothing may be mounted read-only here")
        yield


def test_a_place_that_becomes_read_only_ends_the_run_and_loses_nothing(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train(recipe, out=tmp_path / "straight")
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe, out=out, on_progress=at(4, lambda: os.kill(os.getpid(), 15)))
    with read_only(out / "checkpoints"):
        capfd.readouterr()
        assert main(["train", str(recipe), "--out", str(out), "--resume", "--quiet"]) == 1
        said = capfd.readouterr().err
        assert re.match(
            r"gebm-kit: .*checkpoints/step-\d+ can't be written: (Read-only file system|Permission denied)", said
        )
        assert "--resume" in said
        assert "Traceback" not in said
        assert load_run(out).state == "failed"
        assert load_run(out).step == 4
    assert sums(train(recipe, out=out, resume=True)) == sums(straight)


def test_a_run_can_not_begin_in_a_read_only_place(recipe: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with read_only(place), pytest.raises(UsageError, match="can't be written"):
        train(recipe, out=place / "run")


def test_a_run_directory_that_is_removed_ends_the_run(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RunFailed, match="was removed while training") as caught:
        train(recipe, out=out, on_progress=at(5, lambda: shutil.rmtree(out)))
    assert caught.value.exit_code == 1
    assert not out.exists()  # no half of a run in its place
    assert train(recipe, out=out, resume=True).state == "finished"


def test_removed_checkpoints_are_made_again(recipe: Path, tmp_path: Path) -> None:
    straight, out = train(recipe, out=tmp_path / "straight"), tmp_path / "run"
    with pytest.warns(GebmKitWarning, match="checkpoints was removed while training"):
        run = train(recipe, out=out, on_progress=at(5, lambda: shutil.rmtree(out / "checkpoints")))
    assert sums(run) == sums(straight)


def test_a_checkpoint_that_is_removed_while_training_is_no_loss(recipe: Path, tmp_path: Path) -> None:
    straight, out = train(recipe, out=tmp_path / "straight"), tmp_path / "run"
    run = train(recipe, out=out, on_progress=at(5, lambda: shutil.rmtree(list_checkpoints(out / "checkpoints")[-1])))
    assert sums(run) == sums(straight)


@pytest.mark.parametrize("keep", [1, 2])
def test_training_goes_on_from_the_newest_whole_checkpoint(recipe: Path, tmp_path: Path, keep: int) -> None:
    """Each file of the newest one cut short, with one bit flipped, or gone; with one kept, from the start."""
    words = [f"train.keep_checkpoints={keep}"]
    straight, stopped = train(recipe, words, out=tmp_path / "straight"), tmp_path / "stopped"
    with pytest.raises(Interrupted):
        train(recipe, words, out=stopped, on_progress=at(6, lambda: os.kill(os.getpid(), 15)))
    names = sorted(path.name for path in list_checkpoints(stopped / "checkpoints")[-1].iterdir())
    assert len(names) == NUM_FILES
    for number, name in enumerate(names):
        out = tmp_path / name
        shutil.copytree(stopped, out)
        path = list_checkpoints(out / "checkpoints")[-1] / name
        content = path.read_bytes()
        if number % 3 == keep - 1:
            path.unlink()
        elif number % 3 == keep % 3:
            path.write_bytes(content[: len(content) // 2])
        else:
            place = 2 * len(content) // 3
            path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        back = "the start" if keep == 1 else "step-0000004"
        with pytest.warns(GebmKitWarning, match=rf"step-0000006/{re.escape(name)} .*; resuming from {back}"):
            assert sums(train(recipe, words, out=out, resume=True)) == sums(straight)
        assert [read_checkpoint(p).step for p in list_checkpoints(out / "checkpoints")] == [10, 12][2 - keep :]


def test_a_damaged_status_is_written_again_by_resume(recipe: Path, tmp_path: Path) -> None:
    straight, out = train(recipe, out=tmp_path / "straight"), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe, out=out, on_progress=at(5, lambda: os.kill(os.getpid(), 15)))
    (out / "status.json").write_text('{"state": "inter')
    with pytest.warns(GebmKitWarning, match=r"status.json is missing or damaged.*; it is rewritten"):
        assert sums(train(recipe, out=out, resume=True)) == sums(straight)
