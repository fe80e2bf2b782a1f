"""Whatever instant a kill, a full disk or a removed directory chooses, a run stays readable and goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gebm_kit.config.build import build_dataset
from gebm_kit.config.load import load_recipe
from gebm_kit.core.errors import UsageError
from gebm_kit.core.files import write_json
from gebm_kit.engine.process import lock as lock_module
from gebm_kit.engine.run_directory.checkpoint import list_checkpoints, newest_whole, save_checkpoint
from gebm_kit.engine.run_directory.create import create_run, is_unmade
from gebm_kit.engine.run_directory.lock import RunLock
from gebm_kit.engine.run_directory.run import load_run, newest_run, unfinished_runs
from gebm_kit.engine.train import train
from gebm_kit.engine.training import loop as module
from gebm_kit.engine.training.trainer import Trainer

RECIPE = """\
schema: 1
data: {name: eight-gaussians, num_train: 200, num_valid: 50, num_test: 50}
base: {name: mlp, latent_dim: 2, hidden: [8], norm: batch}
energy: {name: mlp, hidden: [8]}
loss: {name: kale}
train: {steps: 4, energy_steps: 1, start_steps: 0, batch_size: 16, noise: 0.05, penalty: {name: gradient, every: 2},
        log_every: 2, checkpoint_every: 2, keep_checkpoints: 1, final: {steps: 2}}
sample: {num_samples: 40, num_chains: 20, warmup: 4, steps: 4, thin: 2}
eval: {metrics: [mmd], num_samples: 40, num_sets: 2}
"""

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate")
"""Audit events of Python's that change names or files; opening to write is looked at by its flags, syncing by itself."""

KILLED = 9

STRIDE = 7
"""Every seventh change that a whole training makes on disk is tested; this meets each kind of change."""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    return path


# --- kills at every change of the file system ------------------------------------------------------------------------


def killed_at(place: int, work: Callable[[], object]) -> bool:
    """Do ``work`` in a child that dies just before the ``place``-th change that it makes to the file system.

    It dies at once, without clean-up of any kind; the content that it was to sync is then half there. Returns whether it
    got so far.
    """
    child = os.fork()
    if child == 0:
        code = 70
        try:
            _die_at(place)
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED), code
    return code == KILLED


def _die_at(place: int) -> None:
    seen, sync = 0, os.fsync

    def change() -> bool:
        nonlocal seen
        seen += 1
        return seen == place

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (opened or event in CHANGES) and change():
            os._exit(KILLED)

    def synced(handle: int) -> None:
        if change():
            if os.path.isfile(f"/proc/self/fd/{handle}"):
                os.truncate(handle, os.fstat(handle).st_size // 2)
            os._exit(KILLED)
        sync(handle)

    os.fsync = synced
    sys.addaudithook(hook)


TENSORS = {"model": {"a": torch.arange(5.0)}, "rng": {"g": torch.ones(9, dtype=torch.uint8)}}


@pytest.mark.parametrize("same", [False, True], ids=["next", "same"])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_while_a_checkpoint_is_written_leaves_a_newest_one(tmp_path: Path, keep: int, same: bool) -> None:
    """The one before, or the new one; also when the new one is of the same step, and when older ones are being removed."""
    place, seen, killed = 0, [], True
    while killed:
        place += 1
        folder = tmp_path / str(place)
        for step in (1, 2):
            save_checkpoint(folder, step, TENSORS, {"of": "old"}, keep=2)
        step = 2 if same else 3

        def write(folder: Path = folder, step: int = step) -> None:
            save_checkpoint(folder, step, TENSORS, {"of": "new"}, keep=keep)

        killed = killed_at(place, write)
        found, complaints = newest_whole(folder)
        assert found is not None
        assert complaints == []
        assert (found.step, found.state["of"]) in {(2, "old"), (step, "new")}
        seen.append(found.state["of"])
        write()
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        assert len(list_checkpoints(folder)) == keep
    assert seen == sorted(seen, reverse=True)  # once there, it stays
    assert {"old", "new"} == set(seen)
    assert place > 15


def test_a_kill_while_a_run_is_made_leaves_a_run_or_a_free_place(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe)
    place, killed, states = 0, True, set()
    while killed:
        place += 1
        out = tmp_path / "runs" / "toy" / f"{place:03d}"

        def make(out: Path = out) -> None:
            with RunLock() as lock:
                create_run(loaded, out, lock)

        out.parent.mkdir(parents=True, exist_ok=True)
        killed = killed_at(place, make)
        free = is_unmade(out)
        states.add(free)
        if free:
            make()  # the same command again
        else:
            with pytest.raises(UsageError, match="it holds a run"):
                make()
        assert load_run(out).recipe.train.steps == 4
    assert states == {True, False}
    assert place > 15
    left = tmp_path / "runs" / "toy" / "left"
    assert killed_at(place // 2, lambda: create_run(loaded, left, RunLock()))
    assert left.is_dir()
    assert left not in {run.path for run in unfinished_runs("toy", tmp_path / "runs")}
    with pytest.raises(UsageError, match="no finished run"):
        newest_run(tmp_path / "runs")


def test_a_directory_of_somebody_else_is_never_taken_for_a_half_made_run(recipe: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "recipe.yaml").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        train(recipe, out=theirs)
    assert (theirs / "recipe.yaml").read_text() == "mine"


@pytest.mark.parametrize("place", range(1, 14))
def test_a_kill_while_a_file_is_replaced_leaves_the_old_or_the_new(tmp_path: Path, place: int) -> None:
    path = tmp_path / "status.json"
    write_json(path, {"is": "old"})
    killed = killed_at(place, lambda: write_json(path, {"is": "new"}))
    assert json.loads(path.read_text())["is"] in (("old", "new") if killed else ("new",))


def _kill_training_everywhere(recipe: Path, folder: Path, stride: int) -> None:
    """A program of its own, since a process that has differentiated can't be forked. Prints what was seen at each kill."""
    warnings.simplefilter("ignore")
    module.TrainingRun.evaluate = lambda self: None  # type: ignore[method-assign]
    module.LOG_PARTITION_DRAWS = 64

    def go(out: Path) -> None:
        train(recipe, out=out, resume=True)

    def weights(out: Path) -> Any:
        return json.loads((load_run(out).checkpoint.path / "state.json").read_text())["sha256"]

    loaded = load_recipe(recipe)
    Trainer(loaded, build_dataset(loaded), torch.device("cpu"))  # imports what children would import again and again
    straight = folder / "straight"
    killed_at(0, lambda: go(straight))
    place, killed, seen = 0, True, []
    while killed:
        place += stride
        out = folder / f"{place:03d}"
        killed = killed_at(place, lambda out=out: go(out))
        found, complaints = (None, ["unmade"]) if is_unmade(out) else newest_whole(load_run(out).checkpoints)
        state = "unmade" if is_unmade(out) else load_run(out).state
        killed_at(0, lambda out=out: go(out))
        left = [p.name for p in out.rglob("*") if p.name.startswith(".") and p.name != ".lock"]
        seen.append((found.step if found else 0, state, complaints, weights(out) == weights(straight), left))
    sys.stdout.write(json.dumps(seen))


@pytest.mark.slow
def test_a_kill_at_changes_that_training_makes(recipe: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(recipe), str(tmp_path), str(STRIDE)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert len(seen) * STRIDE > 100
    steps, states, complaints, same, left = zip(*seen, strict=True)
    assert all(same)
    assert not any(left)
    assert list(steps) == sorted(steps)  # no kill costs a checkpoint that was there
    assert set(steps) == {0, 2, 4, 6}
    assert {"unmade", "running", "trained", "finished"} == set(states)
    assert {str(c) for c in complaints} == {"[]", "['unmade']"}


# --- one process at a time -------------------------------------------------------------------------------------------


def test_the_second_process_in_a_directory_gets_one_message(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "LOCK_SECONDS", 0.1)
    out = tmp_path / "run"
    code = (
        "import sys, time\nfrom gebm_kit.engine.run_directory.lock import RunLock\nfrom pathlib import Path\n"
        "with RunLock() as lock:\n    lock.hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)\n"
    )
    with RunLock() as lock:
        create_run(load_recipe(recipe), out, lock)
    before = sorted(path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock")
    other = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    try:
        with pytest.raises(UsageError, match=rf"another process is training in .*: process {other.pid} on ") as caught:
            train(recipe, out=out, resume=True)
        assert "Wait for it" in caught.value.hint
        assert sorted(path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock") == before
    finally:
        other.kill()
        other.communicate()
    assert train(recipe, out=out, resume=True).state == "finished"  # a killed process leaves no lock


def test_two_that_begin_at_once_do_not_share_a_directory(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "LOCK_SECONDS", 0.1)
    loaded, out = load_recipe(recipe), tmp_path / "run"
    out.mkdir()
    with RunLock() as first, RunLock() as second:
        first.hold(out)
        with pytest.raises(UsageError, match="another process is training"):
            create_run(loaded, out, second)
    with RunLock() as first:
        create_run(loaded, out, first)
    with RunLock() as third, pytest.raises(UsageError, match="it holds a run"):
        create_run(loaded, out, third)


def test_only_the_first_rank_locks(tmp_path: Path) -> None:
    with RunLock() as first, RunLock(active=False) as second:
        first.hold(tmp_path)
        second.hold(tmp_path)


if __name__ == "__main__":
    _kill_training_everywhere(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
