"""Training by two processes: only the first speaks, both end together, and a restart leads to the same weights."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import gebm_kit as gk
from gebm_kit.core.errors import Interrupted, RunFailed
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.engine.process import distributed
from gebm_kit.engine.process.signals import StopSignals
from gebm_kit.engine.process.torchrun import launcher, restarted
from gebm_kit.engine.run_directory.checkpoint import list_checkpoints
from gebm_kit.engine.run_directory.run import Run, load_run
from gebm_kit.engine.train import train

pytestmark = pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")

TOY = """\
schema: 1
data: {name: eight-gaussians, num_train: 300, num_valid: 100, num_test: 100}
base: {name: mlp, latent_dim: 3, hidden: [8]}
energy: {name: mlp, hidden: [8]}
loss: {name: kale}
train:
  steps: 12
  energy_steps: 2
  start_steps: 2
  start_energy_steps: 4
  batch_size: 32
  noise: 0.05
  penalty: {name: gradient, every: 2}
  log_every: 4
  checkpoint_every: 4
  final: {steps: 4, batch_size: 48}
optim: {energy: {lr: 0.01}, base: {lr: 0.005}}
sample: {num_samples: 40, num_chains: 20, warmup: 4, steps: 4, thin: 2, block_size: 10}
eval: {metrics: [mmd], num_samples: 40, num_sets: 2}
precision: float64
device: cpu
"""

PREPARED = """
import glob, os, signal, sys
from pathlib import Path
import torch
import gebm_kit.engine.evaluation.evaluation_files as files
from gebm_kit.cli.app import main
from gebm_kit.core.errors import GebmKitError, RunFailed
from gebm_kit.engine.datasets.batches import Feed
from gebm_kit.engine.training.trainer import Trainer

files.draw_all = lambda *_, **__: []  # pictures take most of the time of so small a run
rank, cycle = int(os.environ["RANK"]), Trainer.cycle

def name_of(path):
    return Path(path).read_text().strip()
"""

SCENARIOS = (
    PREPARED
    + """
import gebm_kit as gk
from gebm_kit.engine.train import train

ports, batch, calls = sys.argv[1].split(","), Feed.next, []

def say(name, work):
    os.environ["MASTER_PORT"] = ports.pop()
    try:
        found = work()
    except GebmKitError as error:
        found = f"{type(error).__name__} {error.exit_code} {error.message} {error.hint}"
    except ValueError as error:
        found = f"ValueError {error}"
    print(f"{name}: {found}", flush=True)

def at(step, of, what):
    def patched(self):
        if rank == of and self.step == step:
            what()
        return cycle(self)
    Trainer.cycle = patched

def fail():
    raise ValueError("no more of it")

def poisoned(self):
    calls.append(1)
    return batch(self) * (float("nan") if 12 < len(calls) <= 20 and rank == 1 else 1.0)  # steps 5 to 8, once

def run(out, *overrides, **options):
    return train("toy.yaml", overrides, out=out, **options).path.name

say("straight", lambda: run("straight"))
say("done", lambda: run("straight", resume=True))
at(6, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
say("stopped", lambda: run("stopped"))
Trainer.cycle = cycle
say("resumed", lambda: run("stopped", resume=True))
say("other", lambda: run("stopped", "base.latent_dim=4", resume=True))
say("taken", lambda: run("stopped"))
say("uneven", lambda: run("uneven", "train.batch_size=33"))
at(6, 1, fail)
say("fails", lambda: run("failed"))
Trainer.cycle = cycle
Feed.next = poisoned
say("poisoned", lambda: run("poisoned", "train.on_non_finite.limit=3"))
Feed.next = batch
say("evaluated", lambda: sorted(gk.evaluate("straight", device="cpu").scalars().items()))
say("command", lambda: main(["train", "toy.yaml", "train.final.steps=0", "--out", "command", "--json"]))
say("eval", lambda: main(["eval", "command", "--json", "--device", "cpu"]))
say("plan", lambda: main(["train", "toy.yaml", "--dry-run", "--json"]))
say("threads", lambda: [name for name in map(name_of, glob.glob("/proc/self/task/*/comm")) if "gloo" in name])
at(6, 1, lambda: os._exit(9))
say("gone", lambda: run("gone"))
"""
)

ELASTIC = (
    PREPARED
    + """
def killed(self):
    if rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and self.step == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return cycle(self)

Trainer.cycle = killed
sys.exit(main(["train", "toy.yaml", "--out", "elastic", "--quiet"]))
"""
)


@dataclass(frozen=True)
class Rank:
    code: int
    out: str
    err: str

    def said(self, name: str) -> str:
        return next(line.partition(": ")[2] for line in self.out.splitlines() if line.startswith(f"{name}: "))

    @property
    def objects(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "toy.yaml").write_text(TOY)
    return folder


def free_ports(count: int) -> list[str]:
    """Find free ports below those that systems hand out to connections, which another process could be given first."""
    found = []
    for port in random.SystemRandom().sample(range(15_000, 32_000), 1_000):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            found.append(str(port))
        if len(found) == count:
            break
    return found


@pytest.fixture(scope="module")
def ranks(place: Path) -> list[Rank]:
    """Run two processes through all scenarios together."""
    ports = free_ports(20)
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SCENARIOS, ",".join(ports)],
            cwd=place,
            env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        ends = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Rank(process.returncode, *end) for process, end in zip(processes, ends, strict=True)]


@pytest.fixture(scope="module")
def alone(place: Path) -> Run:
    """Train the run of one process."""
    return train(place / "toy.yaml", out=place / "alone")


def weights(run: Run) -> dict[str, torch.Tensor]:
    """Return every tensor of the last checkpoint except the state of torch's own generator, which differs by rank."""
    tensors = {f"{part}/{k}": v for part, named in run.checkpoint.tensors.items() for k, v in named.items()}
    del tensors["rng/torch"]
    return tensors


def assert_same(one: Run, other: Run) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_two_processes_train_what_one_trains(place: Path, ranks: list[Rank], alone: Run) -> None:
    assert [rank.said("straight") for rank in ranks] == ["straight"] * 2
    assert [rank.said("done") for rank in ranks] == ["straight"] * 2
    two = load_run(place / "straight")
    assert two.state == "finished"
    assert two.checkpoint.state["ranks"] == 2
    first, second = weights(alone), weights(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    rows, expected = two.metrics(), alone.metrics()
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    assert rows[2]["kale"] == pytest.approx(expected[2]["kale"], abs=1e-9)
    assert two.evaluation is not None
    assert alone.evaluation is not None
    assert two.evaluation["metrics"]["gebm"]["mmd"]["value"] == pytest.approx(
        alone.evaluation["metrics"]["gebm"]["mmd"]["value"], abs=1e-6
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
def test_no_thread_of_a_process_group_is_left_that_could_abort_the_interpreters_end(ranks: list[Rank]) -> None:
    assert [rank.said("threads") for rank in ranks] == ["[]"] * 2


def test_a_signal_to_one_stops_both_at_one_step_and_they_go_on_to_the_bit(place: Path, ranks: list[Rank]) -> None:
    for rank in ranks:
        assert rank.said("stopped").startswith("Interrupted 143 stopped at step 8 of 16; saved in stopped Resume with")
        assert "torchrun --nproc-per-node 2 -m gebm_kit train toy.yaml --out stopped --resume" in rank.said("stopped")
        assert rank.said("resumed") == "stopped"
    assert_same(load_run(place / "straight"), load_run(place / "stopped"))


def test_what_one_finds_wrong_ends_both_with_its_words(place: Path, ranks: list[Rank]) -> None:
    for rank in ranks:
        assert rank.said("other").startswith("UsageError 2") or rank.said("other").startswith("RunFailed 2")
        assert "the run was trained with another recipe" in "".join(rank.out.splitlines())
        assert "2 stopped is not empty: it holds a run Add --resume" in rank.said("taken")
        assert rank.said("uneven").startswith("UsageError 2 train.batch_size=33 can't be shared evenly by 2 processes")
        assert rank.said("fails").startswith(("ValueError", "RunFailed 1 rank 1 failed: ValueError: no more of it"))
    assert load_run(place / "failed").state == "failed"
    assert not (place / "uneven").exists()
    assert ranks[1].code == 9
    assert ranks[0].said("gone").startswith("RunFailed 1 another rank of this training is gone")
    assert load_run(place / "gone").state == "failed"


def test_updates_that_are_not_finite_on_one_are_skipped_by_both_which_go_back_together(
    place: Path, ranks: list[Rank]
) -> None:
    assert [rank.said("poisoned") for rank in ranks] == ["poisoned"] * 2
    run = load_run(place / "poisoned")
    assert run.checkpoint.state["restores"] == 1
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(run).values())


def test_an_evaluation_is_shared_and_its_result_on_both(place: Path, ranks: list[Rank], alone: Run) -> None:
    one = sorted(gk.evaluate(place / "straight", device="cpu").scalars().items())
    assert [rank.said("evaluated") for rank in ranks] == [str(one)] * 2


def test_the_first_alone_speaks(place: Path, ranks: list[Rank]) -> None:
    for command in ("command", "eval", "plan"):
        assert [rank.said(command) for rank in ranks] == ["0", "0"]
    trained, evaluated, planned = ranks[0].objects
    assert trained["step"] == 12
    assert evaluated["metrics"]["gebm"] == trained["metrics"]["gebm"]
    assert planned["steps"] == 16
    assert ranks[1].objects == []
    assert ranks[1].err == ""
    assert "train 12/12" in ranks[0].err
    assert sorted(path.name for path in place.iterdir() if path.is_dir() and path.name != "alone") == [
        "command", "failed", "gone", "poisoned", "stopped", "straight",
    ]  # fmt: skip


def test_another_number_of_processes_goes_on_and_says_so(
    place: Path, ranks: list[Rank], alone: Run, tmp_path: Path
) -> None:
    """One process trains to the end from a checkpoint of two."""
    path = Path(shutil.copytree(place / "straight", tmp_path / "fewer"))
    shutil.rmtree(list_checkpoints(path / "checkpoints")[-1])
    (path / "status.json").write_text((place / "failed" / "status.json").read_text())
    with pytest.warns(GebmKitWarning, match="was trained by 2 processes and is resumed by one process: the batches"):
        fewer = train(place / "toy.yaml", out=path, resume=True)
    for name, value in weights(alone).items():
        torch.testing.assert_close(value, weights(fewer)[name], rtol=0, atol=1e-9)


def test_torchrun_restarts_after_one_was_killed_and_ends_with_the_same_weights(place: Path, ranks: list[Rank]) -> None:
    program = place / "program.py"
    program.write_text(ELASTIC)
    launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*launch, "--max-restarts", "1", str(program)],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, err = process.communicate(timeout=200)
    finally:
        process.terminate()  # torchrun ends its processes first
        process.wait()
    assert process.returncode == 0, err
    said = [line for line in err.splitlines() if line.startswith("gebm-kit: ") and "warning" not in line]
    # the other process ends too: its connection broke or, on a busy machine, torchrun stopped it before it noticed
    assert len(said) == 1, err
    assert "another rank of this training is gone" in said[0] or "stopped by SIGTERM" in said[0], err
    assert_same(load_run(place / "straight"), load_run(place / "elastic"))


# --- meeting ---------------------------------------------------------------------------------------------------------


def meet(store: dist.Store, size: int) -> list[str]:
    with ThreadPoolExecutor(size) as threads:
        return [*threads.map(lambda rank: distributed._met(store, rank, size), range(size))]


def test_processes_meet_in_a_store_that_remembers_those_before_them() -> None:
    """torchrun keeps the store over restarts: waiting at the address of a process that has ended would be in vain."""
    store = dist.HashStore()
    names = {name for _ in range(20) for name in {*meet(store, 3)}}
    assert len(names) == 20


def test_a_process_that_does_not_come_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    meet(store, 2)
    monkeypatch.setattr(distributed, "ARRIVAL_SECONDS", 0.1)
    for rank in (0, 1):
        with pytest.raises(RunFailed, match="of 2 processes, not all have come"):
            distributed._met(store, rank, 2)


# --- one process ---------------------------------------------------------------------------------------------------------


def test_the_command_that_goes_on_starts_as_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert launcher() == ["gebm-kit"]
    assert not restarted()
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert launcher() == ["torchrun", "--nnodes", "2", "--nproc-per-node", "4", "-m", "gebm_kit"]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarted()


def test_a_process_that_torchrun_restarted_resumes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(progress: object) -> None:
        stop.signals[0].received = 15

    stop.signals = []
    entered = StopSignals.__enter__
    monkeypatch.setattr(StopSignals, "__enter__", lambda self: stop.signals.append(self) or entered(self))
    with pytest.raises(Interrupted):
        train(place / "toy.yaml", out=tmp_path / "run", on_progress=stop)
    monkeypatch.undo()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert train(place / "toy.yaml", out=tmp_path / "run").state == "finished"
