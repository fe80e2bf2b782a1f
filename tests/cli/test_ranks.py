"""Two ranks in two processes: the same draws as one process, one of them prints, both end together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import gebm_kit as gk
from gebm_kit.engine.process.distributed import ALONE, joined_ranks
from gebm_kit.engine.process.torchrun import local_device, under_torchrun
from gebm_kit.engine.sampling.shards import load_draws
from gebm_kit.samplers.auto import Auto
from gebm_kit.samplers.hmc import Hmc
from gebm_kit.samplers.mala import Mala
from gebm_kit.samplers.sir import Sir
from gebm_kit.testing.targets import linear_gaussian

pytestmark = pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")

ASKED = {"num_samples": 90, "num_chains": 10, "block_size": 4, "warmup": 45, "steps": 12, "thin": 2, "seed": 3}

SCENARIOS = """
import json, os, signal, sys
import torch
import gebm_kit as gk
from gebm_kit.cli.app import main
from gebm_kit.core.errors import GebmKitError, RunFailed
from gebm_kit.engine.sampling.run_kernel import BlockRun
from gebm_kit.samplers.auto import Auto
from gebm_kit.samplers.hmc import Hmc
from gebm_kit.samplers.mala import Mala
from gebm_kit.samplers.sir import Sir
from gebm_kit.testing.targets import linear_gaussian

rank, ports = int(os.environ["RANK"]), sys.argv[1].split(",")
model, asked, decode, init = linear_gaussian().model, {asked}, BlockRun._decode, Hmc.init

def say(name, work):
    os.environ["MASTER_PORT"] = ports.pop()
    try:
        found = work()
    except GebmKitError as error:
        found = f"{type(error).__name__} {error.exit_code} {error.message} {error.hint}"
    print(f"{name}: {found}", flush=True)

def memory(sampler, **changes):
    draws = gk.sample(model, sampler, **{**asked, **changes})
    torch.save([draws.x, draws.z, draws.chain], f"{type(sampler).__name__}-{rank}.pt")
    return draws.diagnostics.step_size

def evaluated():
    data = torch.randn(200, *model.data_shape, generator=torch.Generator().manual_seed(0))
    asked_of = {"sampler": Hmc(), "metrics": ["sliced-wasserstein"], "num_samples": 20, "num_sets": 3, "seed": 3}
    found = gk.evaluate(model, data=data, **asked_of)
    return json.dumps([found.as_dict()[key] for key in ("metrics", "equilibrium", "verdict")])

def stream(**changes):
    return len(gk.sample(model, Hmc(), out="two", **asked, **changes).shards)

def fail_on_second(*arguments):
    if rank == 1:
        raise RunFailed("the second rank has no more of it", hint="Buy some.")
    return init(*arguments) if len(arguments) == 4 else decode(*arguments)

def stop(self, age):
    if age == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return decode(self, age)

def vanish(*arguments):
    if rank == 1:
        os._exit(9)
    return init(*arguments)

say("hmc", lambda: memory(Hmc()))
say("idle", lambda: memory(Mala(), block_size=50))
say("islands", lambda: memory(Sir(4)))
say("evaluated", evaluated)
say("chosen", lambda: memory(Auto()))
BlockRun._decode = stop
say("stopped", stream)
BlockRun._decode = decode
say("resumed", lambda: stream(resume=True))
say("taken", stream)
Hmc.init = fail_on_second
say("start fails", lambda: memory(Hmc()))
Hmc.init, BlockRun._decode = init, fail_on_second
say("drawing fails", lambda: memory(Hmc()))
BlockRun._decode = decode
words = ["sample", "run", "--json", "sample.block_size=8", "--out"]
say("command", lambda: main([*words, "three"]))
say("bad command", lambda: main([*words, "four", "sampler.step_size=nan"]))
Hmc.init = vanish
say("gone", lambda: memory(Hmc()))
"""


@dataclass(frozen=True)
class Rank:
    code: int
    out: str
    err: str

    def said(self, name: str) -> str:
        return next(line.partition(": ")[2] for line in self.out.splitlines() if line.startswith(f"{name}: "))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(place: Path, trained: Path) -> list[Rank]:
    """Run two processes through all scenarios."""
    (place / "run").symlink_to(trained)
    ports = []
    for _ in range(13):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(str(free.getsockname()[1]))
    command = [sys.executable, "-W", "ignore", "-c", SCENARIOS.replace("{asked}", repr(ASKED)), ",".join(ports)]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in ("0", "1"):
        environment = {**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(
            subprocess.Popen(
                command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    found = []
    for process in processes:
        out, err = process.communicate(timeout=200)
        found.append(Rank(process.returncode, out, err))
    return found


def alone(sampler, **changes):
    return gk.sample(linear_gaussian().model, sampler, **{**ASKED, **changes})


@pytest.mark.parametrize(
    ("name", "sampler", "changes"),
    [("hmc", Hmc(), {}), ("idle", Mala(), {"block_size": 50}), ("islands", Sir(4), {}), ("chosen", Auto(), {})],
)
def test_two_ranks_make_the_draws_of_one(place: Path, ranks: list[Rank], name: str, sampler, changes: dict) -> None:
    """Draws are equal for three blocks of chains, one block (the second rank idles) and islands, on both ranks."""
    expected = alone(sampler, **changes)
    for rank in (0, 1):
        assert ranks[rank].said(name) == str(expected.diagnostics.step_size)
        x, z, chain = torch.load(place / f"{type(sampler).__name__}-{rank}.pt")
        assert torch.equal(x, expected.x)
        assert torch.equal(z, expected.z)
        assert torch.equal(chain, expected.chain)


def test_two_ranks_continue_chains_as_one_does(ranks: list[Rank]) -> None:
    """The equilibrium test continues blocks that live on both ranks, and both return the first rank's result."""
    model = linear_gaussian().model
    data = torch.randn(200, *model.data_shape, generator=torch.Generator().manual_seed(0))
    found = gk.evaluate(
        model, data=data, sampler=Hmc(), metrics=["sliced-wasserstein"], num_samples=20, num_sets=3, seed=3
    ).as_dict()
    expected = [found[key] for key in ("metrics", "equilibrium", "verdict")]
    assert found["equilibrium"]["longest"] == 4
    for rank in ranks:
        assert json.loads(rank.said("evaluated")) == expected


def test_two_ranks_stop_save_and_go_on_together(place: Path, ranks: list[Rank], tmp_path: Path) -> None:
    assert ranks[0].said("stopped").startswith("Interrupted 143 stopped while drawing")
    assert ranks[1].said("stopped").startswith("Interrupted 143")
    streamed = alone(Hmc(), out=tmp_path / "one")
    assert [rank.said("resumed") for rank in ranks] == [str(len(streamed.shards))] * 2
    for shard in streamed.shards:
        assert (place / "two" / shard.file).read_bytes() == (tmp_path / "one" / shard.file).read_bytes()
    left, right = (json.loads((p / "index.json").read_text()) for p in (place / "two", tmp_path / "one"))
    for index in (left, right):
        del index["diagnostics"]["seconds"]
    assert left == right


def test_when_one_rank_fails_all_end_with_its_error(ranks: list[Rank]) -> None:
    for scenario in ("start fails", "drawing fails"):
        for rank in ranks:
            assert rank.said(scenario) == "RunFailed 1 the second rank has no more of it Buy some."
    for rank in ranks:  # what the first finds before anything begins ends all as well
        assert rank.said("taken").split()[1] == "2"
        assert "two is not empty: it holds draws" in rank.said("taken")


def test_a_rank_that_vanishes_leaves_one_message(ranks: list[Rank]) -> None:
    assert ranks[1].code == 9
    assert ranks[0].said("gone").startswith("RunFailed 1 another rank of this sampling is gone")


def test_the_first_rank_alone_speaks(place: Path, ranks: list[Rank]) -> None:
    assert [rank.said("command") for rank in ranks] == ["0", "0"]
    assert [rank.said("bad command") for rank in ranks] == ["2", "2"]
    payload, error = [json.loads(line) for line in ranks[0].out.splitlines() if line.startswith("{")]
    assert payload["out"] == "three"
    assert error["error"]["code"] == "recipe"
    assert "sample 20/20" in ranks[0].err  # two of the four blocks, of ten steps each
    assert ranks[1].err == ""
    by_command = [line for line in ranks[1].out.splitlines() if not line.startswith("evaluated: ")]
    assert by_command
    assert "{" not in "".join(by_command)
    assert len(load_draws(place / "three").x) == 60


# --- one process ---------------------------------------------------------------------------------------------------------


def test_a_process_alone_has_nobody_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with joined_ranks() as ranks, ranks.together():
        assert ranks is ALONE
        assert ranks.gather(b"word") == [b"word"]
        assert list(ranks.mine(3)) == [0, 1, 2]
        ranks.poll()


def test_each_rank_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not under_torchrun()
    assert local_device("auto") == "auto"
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert local_device("auto") == local_device("cuda") == "cuda:1"
    assert local_device("cpu") == "cpu"
    assert local_device("cuda:0") == "cuda:0"
    assert local_device(None) is None
