"""gebm-kit sample beyond one file in memory: directories, --resume, signals, and every bad request in one message."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gebm_kit.energies.mlp import MlpEnergy
from gebm_kit.engine.sampling import shards
from gebm_kit.engine.sampling.draws_on_disk import newest_unfinished
from gebm_kit.engine.sampling.shards import load_draws
from gebm_kit.samplers.mala import Mala
from gebm_kit.samplers.sir import Sir

MANY = ["--num-samples", "600", "sample.block_size=10"]


def test_a_name_without_a_suffix_is_a_directory_of_shards(cli: Any, run: Path, tmp_path: Path) -> None:
    found = cli("sample", run, *MANY, "--out", tmp_path / "draws", "--json").json
    assert (found["out"], found["shards"], found["num_samples"]) == (str(tmp_path / "draws"), 3, 600)
    file = cli("sample", run, *MANY, "--out", tmp_path / "draws.npz", "--json").json
    assert file["shards"] is None
    streamed, whole = load_draws(tmp_path / "draws"), load_draws(tmp_path / "draws.npz")
    assert torch.equal(streamed.x, whole.x)
    assert {k for k in file if file[k] != found[k]} == {"seconds", "out", "shards"}
    index = json.loads((tmp_path / "draws" / "index.json").read_text())
    assert index["value_range"] is not None
    assert "(3 shards)" in cli("sample", run, *MANY, "--out", tmp_path / "other").out


def test_many_draws_are_streamed_by_themselves(cli: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_IN_MEMORY", 600 * (66 * 4 + 16))
    found = cli("sample", run, *MANY, "--json").json
    assert found["out"].endswith(".safetensors")
    found = cli("sample", run, "--num-samples", 601, "sample.block_size=10", "--json").json
    assert Path(found["out"]).parent == run / "samples"
    assert len(load_draws(found["out"]).x) == 601


def test_images_come_from_all_shards(cli: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 30)
    found = cli("sample", run, *MANY[:2], "--out", tmp_path / "d", "--images", tmp_path / "png", "--json").json
    assert found["shards"] == 20
    assert len(list((tmp_path / "png").iterdir())) == 600


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_prints_the_command_that_goes_on(
    cli: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    calls, step = [], Mala.step

    def interrupted(self, state, potential, generator):
        calls.append(1)
        if len(calls) == 60:
            os.kill(os.getpid(), number)
        return step(self, state, potential, generator)

    words = ["sampler.step_size=0.03", *MANY, "--seed", "4"]
    with monkeypatch.context() as patch:
        patch.setattr(Mala, "step", interrupted)
        result = cli("sample", run, *words, "--out", tmp_path / "draws")
    assert result.code == code
    assert "stopped while drawing; everything so far is saved in" in result.err
    (hint,) = [line for line in result.err.splitlines() if line.startswith("hint: ")]
    program, *again = shlex.split(hint.split("`")[1])
    assert program == "gebm-kit"
    found = cli(*again, "--json").json
    assert (found["num_samples"], found["seed"]) == (600, 4)
    assert torch.equal(load_draws(tmp_path / "draws").x, _whole(cli, run, words, tmp_path))


def _whole(cli: Any, run: Path, words: list[str], tmp_path: Path) -> torch.Tensor:
    cli("sample", run, *words, "--out", tmp_path / "whole.safetensors")
    return load_draws(tmp_path / "whole.safetensors").x


def test_a_killed_program_goes_on(cli: Any, run: Path, tmp_path: Path) -> None:
    """After SIGKILL at any moment of drawing, the repeated command finds the unfinished directory by itself."""
    words = ["sample", str(run), "--num-samples", "9000", "sample.block_size=10", "--resume", "--quiet"]
    program = subprocess.Popen(
        [sys.executable, "-m", "gebm_kit", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    waited = time.monotonic()
    while time.monotonic() < waited + 120 and program.poll() is None:
        if list((run / "samples").glob("*/draws-*")):
            program.kill()
        time.sleep(0.01)
    program.communicate()
    assert program.returncode == -signal.SIGKILL
    unfinished = newest_unfinished(run / "samples")
    assert unfinished is not None
    found = cli(*words, "--json").json
    assert Path(found["out"]) == unfinished
    assert newest_unfinished(run / "samples") is None
    assert torch.equal(load_draws(unfinished).x, _whole(cli, run, words[2:5], tmp_path))


def test_resume_refuses_another_request(cli: Any, run: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "draws"]
    assert cli("sample", run, *MANY, *out, "--resume").code == 0
    assert cli("sample", run, *MANY, *out, "--resume").code == 0  # repeated until it is done, and then once more
    result = cli("sample", run, *MANY, *out, "--resume", "--seed", 9, "sample.thin=3")
    assert result.code == 2
    assert "thin was 2, now 3; seed was 0, now 9" in result.err
    result = cli("sample", run, *MANY, *out)
    assert result.code == 2
    assert "Add --resume" in result.err
    assert cli("sample", run, *MANY, "--out", tmp_path / "d.npz", "--resume").code == 2


def test_a_full_disk_is_one_message(cli: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        if any((tmp_path / "draws").glob("draws-*")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = cli("sample", run, *MANY, "--out", tmp_path / "draws", "--quiet")
    assert result.code == 1
    assert len(result.err.splitlines()) == 2
    assert "No space left on device" in result.err
    assert "--resume" in result.err
    assert not [name for name in os.listdir(tmp_path / "draws") if name.startswith(".")]
    assert cli("sample", run, *MANY, "--out", tmp_path / "draws", "--resume").code == 0


# --- bad input: one message, exit code 2 -----------------------------------------------------------------------------


def _one_message(result: Any, words: str, code: int = 2) -> None:
    assert result.code == code, result.err
    assert words in result.err
    assert "Traceback" not in result.err
    assert len([line for line in result.err.splitlines() if line.startswith("gebm-kit: ")]) == 1, result.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sampler.step_size=0"], "sampler.step_size: 0.0 is out of range"),
        (["sampler.step_size=nan"], "sampler.step_size"),
        (["sampler.step_size=-1"], "sampler.step_size"),
        (["sample.inverse_temperature=-1"], "sample.inverse_temperature"),
        (["sample.block_size=0"], "sample.block_size"),
        (["--out", "a-file/draws"], "can't be written"),
        (["--out", "a-file"], "is a file"),
        (["--out", "draws.pt"], ".safetensors or .npz"),
    ],
)
def test_bad_requests(
    cli: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    _one_message(cli("sample", run, "--quiet", *words), message)
    assert not list((run / "samples").iterdir())


def test_fewer_chains_than_the_sampler_needs(cli: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sir, "min_chains", 40)
    _one_message(
        cli("sample", run, "--quiet", "sampler=sir"), "sampler 'sir' needs at least 40 chains, num_chains is 30"
    )
    assert cli("sample", run, "--quiet", "sampler=sir", "sample.num_chains=40", "--num-samples", 5).code == 0


def test_a_prior_that_the_sampler_does_not_serve(cli: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mala, "priors", frozenset({"sphere"}))
    _one_message(cli("sample", run, "--quiet"), "sampler 'mala' serves sphere priors, the base's is 'normal'")


@pytest.mark.parametrize("out", ["draws.npz", "draws"])
@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (lambda x: x.flatten(1).sum(1) * float("nan"), "the energy is not finite at any of 30 points"),
        (
            lambda x: x.flatten(1).sum(1, keepdim=True),
            "must return one number per row, shape (4,), but returned (4, 1)",
        ),
        (lambda x: x.sum(), "but returned ()"),
    ],
)
def test_an_energy_that_is_none(
    cli: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, energy: Any, message: str, out: str
) -> None:
    monkeypatch.setattr(MlpEnergy, "forward", lambda self, x: energy(x))
    code = 2 if "not finite" in message else 3
    _one_message(cli("sample", run, "--quiet", "--out", tmp_path / out), message, code)
    assert not (tmp_path / "draws.npz").exists()
    assert not (tmp_path / "draws" / "index.json").exists()


@pytest.mark.parametrize("out", ["draws.npz", "draws"])
def test_too_little_memory_is_one_message(
    cli: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    def too_much(self, x):
        if len(x) > 20:
            torch.empty(2**60)
        return x.flatten(1).sum(1)

    monkeypatch.setattr(MlpEnergy, "forward", too_much)
    result = cli("sample", run, "--quiet", "--out", tmp_path / out)
    assert result.code == 1
    assert "cpu is out of memory with blocks of 30 chains" in result.err
    assert "Set block_size" in result.err
    assert cli("sample", run, "--quiet", "--out", tmp_path / "other", "sample.block_size=20").code == 0
