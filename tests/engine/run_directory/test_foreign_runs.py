"""Run directories that came from somebody else: nothing outside is written, every file is read within bounds."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gebm_kit.config.load import load_recipe
from gebm_kit.core.errors import CheckpointError, GebmKitError, UsageError
from gebm_kit.core.files import make_directory, write_atomic
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.engine.evaluation.comparison import compare
from gebm_kit.engine.process import lock as lock_module
from gebm_kit.engine.run_directory.checkpoint import best_record, newest_whole, read_checkpoint, save_checkpoint
from gebm_kit.engine.run_directory.create import create_run
from gebm_kit.engine.run_directory.lock import RunLock
from gebm_kit.engine.run_directory.log_rows import DRAWN_ROWS, MAX_LINE, read_rows, read_series
from gebm_kit.engine.run_directory.record import find_records, read_record
from gebm_kit.engine.run_directory.run import Run, load_run, named_as_trained, newest_run, remove_leftovers
from gebm_kit.engine.training.resume import drop_rows_after

TENSORS = {name: {"a": torch.arange(5.0)} for name in ("model", "loss", "optim", "ema", "rng")}


TOY = """\
schema: 1
data: {name: eight-gaussians}
base: {name: mlp, latent_dim: 2}
energy: {name: mlp}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(TOY)
    return path


def made(path: Path) -> Path:
    """Write a run directory with two checkpoints whose weights belong to no model."""
    path.mkdir(parents=True)
    (path / "env.json").write_text(json.dumps({"directory": str(path.parent)}))
    (path / "resolved.yaml").write_text(yaml.safe_dump({"train": {"steps": 10}}))
    (path / "status.json").write_text('{"recipe": "toy", "state": "finished", "step": 10, "seconds": 3.0}')
    (path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "kale": 0.5}}\n' for step in (1, 5, 10)))
    (path / "evaluation.json").write_text('{"metrics": {"gebm": {"mmd": {"value": 0.5}}}, "protocol": {"mmd": {}}}')
    for step in (5, 10):
        save_checkpoint(path / "checkpoints", step, TENSORS, {"energy_updates": step, "facts": {}}, keep=2)
    return path


# --- links -----------------------------------------------------------------------------------------------------------
WRITERS: dict[str, Callable[[Path], object]] = {
    "figures": lambda run: write_atomic(run / "figures" / "a.png", b"new"),
    "samples": lambda run: make_directory(run / "samples" / "draws" / "state"),
    "base": lambda run: write_atomic(run / "base" / "generator.pt", b"new"),
    "checkpoints": lambda run: save_checkpoint(run / "checkpoints", 20, TENSORS, {}, keep=1),
}


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_written_through_a_linked_folder(tmp_path: Path, name: str) -> None:
    run, theirs = made(tmp_path / "run"), tmp_path / "theirs"
    if (run / name).exists():
        (run / name).rename(theirs)
    else:
        theirs.mkdir()
    before = sorted(theirs.rglob("*"))
    (run / name).symlink_to(theirs)
    with pytest.raises(UsageError, match=f"{name} is a symbolic link inside the run directory") as caught:
        WRITERS[name](run)
    assert "Remove the link" in caught.value.hint
    assert sorted(theirs.rglob("*")) == before


def test_a_run_that_lies_behind_a_link_is_written(tmp_path: Path) -> None:
    """The user's own links, above the run, are followed: large runs lie on another disk."""
    made(tmp_path / "disk" / "run")
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    write_atomic(tmp_path / "runs" / "run" / "refined.json", b"{}")
    assert (tmp_path / "disk" / "run" / "refined.json").read_bytes() == b"{}"


def test_a_linked_file_is_replaced(tmp_path: Path) -> None:
    run, theirs = made(tmp_path / "run"), tmp_path / "theirs"
    theirs.write_text("mine")
    (run / "status.json").unlink()
    (run / "status.json").symlink_to(theirs)
    write_atomic(run / "status.json", b"{}")
    assert theirs.read_text() == "mine"
    assert not (run / "status.json").is_symlink()


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_the_lock_is_a_file_of_the_run(tmp_path: Path, kind: str) -> None:
    run, theirs = made(tmp_path / "run"), tmp_path / "theirs"
    theirs.write_text("mine")
    replace(run / ".lock", kind, theirs)
    with RunLock() as lock, pytest.raises(UsageError, match=r"\.lock is|can't be written: Is a directory"):
        lock.hold(run)
    assert theirs.read_text() == "mine"
    assert read_record(run).state == "finished"


def test_a_half_made_run_with_links_is_not_completed(recipe: Path, tmp_path: Path) -> None:
    out, theirs = tmp_path / "run", tmp_path / "theirs"
    out.mkdir()
    theirs.mkdir()
    (out / ".lock").touch()
    (out / "figures").symlink_to(theirs)
    with RunLock() as lock, pytest.raises(UsageError, match="figures is a symbolic link"):
        create_run(load_recipe(recipe), out, lock)
    assert list(theirs.iterdir()) == []


# --- any file may be anything ----------------------------------------------------------------------------------------
def replace(path: Path, kind: str, theirs: Path | None = None) -> None:
    """Put something else in place of a file."""
    if path.exists():
        path.unlink()
    if kind == "link":
        assert theirs is not None
        path.symlink_to(theirs)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    elif kind == "brackets":
        path.write_text(("a: " if path.suffix == ".yaml" else "") + "[" * 100_000)
    elif kind == "zeros":
        path.touch()
        os.truncate(path, 10**11)
    elif kind == "bytes":
        path.write_bytes(b"\xff\xfe\0\0")


KINDS = ["pipe", "device", "directory", "brackets", "zeros", "bytes"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["status.json", "resolved.yaml", "evaluation.json", "metrics.jsonl"])
def test_one_damaged_run_is_one_row(tmp_path: Path, name: str, kind: str) -> None:
    made(tmp_path / "runs" / "good")
    replace(made(tmp_path / "runs" / "bad") / name, kind)
    records = {record.path.name: record for record in find_records(tmp_path / "runs")}
    assert records["good"].problem == ""
    assert name == "metrics.jsonl" or records["bad"].state == "damaged"
    assert name in records["bad"].problem or kind in ("brackets", "bytes")  # damaged lines of a log are left out
    for record in records.values():
        record.score()
        record.series(["kale"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["state.json", "model.safetensors"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, name: str, kind: str) -> None:
    run = made(tmp_path / "run")
    replace(run / "checkpoints" / "step-0000010" / name, kind)
    found, complaints = newest_whole(run / "checkpoints")
    assert found is not None
    assert found.step == 5
    assert name in complaints[0]


ODD_ENTRIES: list[tuple[str, dict[str, Any]]] = [
    ("status.json", {"seconds": float("nan")}),
    ("status.json", {"seconds": 1e300}),
    ("status.json", {"seconds": "3"}),
    ("status.json", {"step": 1.5}),
    ("status.json", {"step": 10**40}),
    ("status.json", {"recipe": "../../elsewhere"}),
    ("status.json", {"recipe": ["toy"]}),
    ("status.json", {"state": "\x1b[2J"}),
    ("status.json", {"best": {"metric": "mmd"}}),
    ("evaluation.json", {"metrics": {"gebm": {"mmd": {"value": "0.5"}}}}),
    ("evaluation.json", {"metrics": [1]}),
    ("evaluation.json", {"protocol": {"mmd": {"train": 3}}}),
    ("evaluation.json", {"log_partition": {"gap": 1.0}}),
    ("evaluation.json", {"nll": {"gebm": 1}}),
    ("evaluation.json", {"inverse_temperature": "1"}),
    ("evaluation.json", {"diagnostics": {"problems": 3}}),
]


@pytest.mark.parametrize(("name", "entry"), ODD_ENTRIES, ids=str)
def test_entries_of_another_type_are_damage(tmp_path: Path, name: str, entry: dict[str, Any]) -> None:
    run = made(tmp_path / "run")
    (run / name).write_text(json.dumps(json.loads((run / name).read_text()) | entry))
    (record,) = find_records(run)
    assert record.state == "damaged"
    assert f"{name} is damaged: {next(iter(entry))} can't be" in record.problem
    assert "\x1b" not in record.problem
    with pytest.raises(CheckpointError, match="is damaged"):
        _ = (Run(run).status, Run(run).evaluation)


@pytest.mark.parametrize(
    "text", ["a: !!bool foo", "a: &x [1]\nb: *x", "a: 2024-01-01", "a: !!binary aGVq", "? [1]\n: 2"]
)
def test_a_resolved_recipe_holds_plain_values(tmp_path: Path, text: str) -> None:
    run = made(tmp_path / "run")
    other = made(tmp_path / "other")
    (run / "resolved.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"resolved\.yaml"):
        compare([run, other])


def test_a_time_of_the_far_future_and_a_closed_folder(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    os.utime(made(runs / "late") / "status.json", (10**11, 10**11))
    assert all(record.updated < 10**10 for record in find_records(runs))
    with pytest.raises(GebmKitError, match="can't be read|has a name of 300 bytes"):
        load_run(tmp_path / ("n" * 300))


def test_a_damaged_run_is_passed_over_when_the_newest_is_looked_for(tmp_path: Path) -> None:
    made(tmp_path / "good")
    replace(made(tmp_path / "bad") / "status.json", "brackets")
    assert newest_run(tmp_path).path.name == "good"


# --- checkpoints that were crafted -----------------------------------------------------------------------------------
def craft(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a checkpoint's record and sign it as the kit does."""
    record = json.loads((path / "state.json").read_text())
    record.pop("sha256_of_the_rest")
    change(record)
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    (path / "state.json").write_text(json.dumps(record | {"sha256_of_the_rest": digest}))


@pytest.mark.parametrize(
    "name",
    ["/dev/zero", "../step-0000005/model.safetensors", "a/b.safetensors", "model.bin", "a\0.safetensors", "..", ""],
)
def test_names_of_files_stay_inside_the_checkpoint(tmp_path: Path, name: str) -> None:
    path = made(tmp_path / "run") / "checkpoints" / "step-0000010"
    craft(path, lambda record: record["sha256"].update({name: "00"}))
    with pytest.raises(CheckpointError, match="it names a file outside the checkpoint"):
        read_checkpoint(path)
    found, _ = newest_whole(path.parent)
    assert found is not None
    assert found.step == 5


@pytest.mark.parametrize(
    "change",
    [
        {"step": 11},
        {"step": None},
        {"sha256": []},
        {"sha256": {}},
        {"state": [1]},
        {"state": {"energy_updates": "7"}},
        {"state": {"feed_position": 10**30}},
        {"state": {"non_finite": {"energy": {"in_a_row": "x"}}}},
        {"state": {"best": {"metric": "mmd", "value": "x", "step": 1}}},
        {"state": {"best_base": {"loss": "x", "step": 1}}},
        {"state": {"facts": {"value_range": [1]}}},
        {"state": {"facts": {"data_shape": [1e9]}}},
        {"state": {"facts": 3}},
    ],
    ids=str,
)
def test_a_crafted_record_falls_back_to_the_checkpoint_before(tmp_path: Path, change: dict[str, Any]) -> None:
    path = made(tmp_path / "run") / "checkpoints" / "step-0000010"
    craft(path, lambda record: record.update(change))
    found, complaints = newest_whole(path.parent)
    assert found is not None
    assert found.step == 5
    assert "state.json is missing or damaged" in complaints[0]
    with pytest.raises(CheckpointError, match="no best checkpoint"):
        best_record(path.parent)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 10**12]}},
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 20]}},
        {"a": {"dtype": "F99", "shape": [5], "data_offsets": [0, 20]}},
        {
            "a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]},
            "b": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]},
        },
        10**15,
    ],
    ids=str,
)
def test_a_crafted_file_of_tensors_falls_back_too(tmp_path: Path, header: Any) -> None:
    path = made(tmp_path / "run") / "checkpoints" / "step-0000010"
    text = json.dumps(header).encode()
    length = header if isinstance(header, int) else len(text)
    content = length.to_bytes(8, "little") + text + bytes(20)
    (path / "model.safetensors").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    craft(path, lambda record: record["sha256"].update({"model.safetensors": digest}))
    found, complaints = newest_whole(path.parent)
    assert found is not None
    assert found.step == 5
    assert "model.safetensors is not a safetensors file" in complaints[0]


# --- the log ---------------------------------------------------------------------------------------------------------
def test_damaged_rows_are_left_out_and_named_on_resuming(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    odd = ['{"step": null}', "[" * 100_000, "3", '{"kale": 1}', '{"step": 1e99}', '{"step": 2, "kale": "x", "a": [1]}']
    with open(run / "metrics.jsonl", "a") as log:
        log.write("\n".join([*odd, " " * (2 * MAX_LINE), '{"step": 11}', '{"step": 12, "ka']))
    assert [row["step"] for row in read_rows(run)] == [1, 5, 10, 2, 11]
    assert read_rows(run)[3] == {"step": 2}
    with pytest.warns(GebmKitWarning, match="damaged in line 4 and 5 more"):
        drop_rows_after(Run(run), 10)
    kept = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept] == [1, 5, 10, 2]
    assert kept[0] == '{"step": 1, "kale": 0.5}'


def test_a_long_log_is_thinned_for_pictures(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    num = 5 * DRAWN_ROWS
    with open(run / "metrics.jsonl", "w") as log:
        for step in range(num):
            look = ', "eval.gebm.mmd": 0.5' if step % 10_001 == 0 else ""
            log.write(f'{{"step": {step}, "kale": {step / num}{look}}}\n')
    steps, values = read_series(run, ["kale"])["kale"]
    assert 0.9 * DRAWN_ROWS < len(steps) <= DRAWN_ROWS + 2
    assert (steps[0], steps[-1]) == (0.0, num - 1.0)
    assert max(after - before for before, after in itertools.pairwise(steps)) <= 10
    assert all(value == step / num for step, value in zip(steps, values, strict=True))
    rows = read_rows(run, most=DRAWN_ROWS)
    assert [row["step"] for row in rows if "eval.gebm.mmd" in row] == list(range(0, num, 10_001))
    assert len(rows) <= DRAWN_ROWS + 20
    assert len(read_record(run).evaluated_rows) == 5
    assert len(read_rows(run)) == num


# --- two processes, and what killed ones left ------------------------------------------------------------------------
@pytest.mark.parametrize("resume", [False, True])
def test_who_comes_second_is_told_of_the_first(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    """Between looking for a run and creating one, another process may have created it."""
    monkeypatch.setattr(lock_module, "LOCK_SECONDS", 0.1)
    loaded, out = load_recipe(recipe), tmp_path / "run"
    with RunLock() as first, RunLock() as second:
        create_run(loaded, out, first)
        with pytest.raises(UsageError, match=rf"another process is training in .*: process {os.getpid()} on "):
            create_run(loaded, out, second, resume=resume)
    with RunLock() as third, pytest.raises(UsageError) as caught:
        create_run(loaded, out, third, resume=resume)
    assert ("another process made a run" in str(caught.value)) == resume
    assert ("Add --resume" in caught.value.hint) != resume


def test_leftovers_of_killed_processes_go_and_files_of_living_ones_stay(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    ready, end = os.pipe(), os.pipe()
    folders = [run, run / "figures", run / "figures" / "step-0000005", run / "samples"]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        (folder / ".curves.png-abcd1234").write_bytes(b"half")
    (run / "samples" / ".images-abcd1234").mkdir()
    (run / "samples" / ".notes").write_text("not a temporary file")
    child = os.fork()
    if child == 0:  # a process in the middle of writing figures/energies.png
        os.fsync = lambda handle: (os.write(ready[1], b"x"), os.read(end[0], 1))  # type: ignore[assignment, return-value]
        write_atomic(run / "figures" / "energies.png", b"whole")
        os._exit(0)
    os.read(ready[0], 1)
    try:
        remove_leftovers(Run(run))
        write_atomic(run / "figures" / "energies.png", b"other")
        left = [path.name for path in run.rglob(".*") if path.name not in (".lock", ".notes")]
        assert [name.rpartition("-")[0] for name in left] == [".energies.png"]
    finally:
        os.write(end[1], b"xx")
        os.waitpid(child, 0)
    assert (run / "figures" / "energies.png").read_bytes() == b"whole"
    assert (run / "samples" / ".notes").exists()


def test_a_file_written_again_takes_its_leftovers_along(tmp_path: Path) -> None:
    for name in (".draws.npz-abcd1234", ".draws.npz-ABCD", ".other.npz-abcd1234"):
        (tmp_path / name).touch()
    write_atomic(tmp_path / "draws.npz", b"new")
    assert sorted(os.listdir(tmp_path)) == [".draws.npz-ABCD", ".other.npz-abcd1234", "draws.npz"]


# --- names -----------------------------------------------------------------------------------------------------------
def test_a_run_keeps_the_name_that_it_was_trained_by(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe)
    with RunLock() as lock:
        run = create_run(loaded, tmp_path / "run", lock)
    assert load_run(run.path).recipe.name == loaded.name == "toy"
    assert named_as_trained(load_recipe(run.path / "resolved.yaml")).name == "toy"
    assert named_as_trained(loaded) is loaded
    (run.path / "status.json").write_text('{"recipe": "../x"}')
    assert named_as_trained(load_recipe(run.path / "resolved.yaml")).name == "resolved"


def test_a_huge_file_is_refused_by_its_size(tmp_path: Path) -> None:
    """Reading a sparse file of 100 GB would fill the memory."""
    run = made(tmp_path / "run")
    for name in ("status.json", "env.json", "resolved.yaml", "evaluation.json", "metrics.jsonl"):
        replace(run / name, "zeros")
    (record,) = find_records(run)
    for read in (
        lambda: Run(run).status,
        lambda: Run(run).environment,
        lambda: Run(run).metrics(),
        lambda: load_run(run).recipe,
    ):
        with pytest.raises(GebmKitError, match=r"at most|is missing or damaged"):
            read()
    assert record.state == "damaged"
