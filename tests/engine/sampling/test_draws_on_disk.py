"""Draws in a directory: the same as in memory, whole or resumable after any end, refused when asked for otherwise."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gebm_kit as gk
from gebm_kit.core.errors import CheckpointError, DataError, Interrupted, RunFailed, UsageError
from gebm_kit.engine.sampling import draws_on_disk as directory, shards
from gebm_kit.engine.sampling.draws import Draws
from gebm_kit.engine.sampling.saved_state import with_changes
from gebm_kit.engine.sampling.shards import ShardedDraws, load_draws, open_draws
from gebm_kit.samplers.hmc import Hmc
from gebm_kit.samplers.mala import Mala
from gebm_kit.samplers.sir import Sir
from gebm_kit.testing.targets import linear_gaussian

pytestmark = pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")

ASKED = {"num_samples": 97, "num_chains": 10, "block_size": 4, "warmup": 12, "steps": 30, "thin": 3, "seed": 5}
"""Three blocks of four chains, two of which are not kept, and ten states of each chain, of the first not all."""

MODEL = linear_gaussian().model


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 12)


def sample(out: Path | None = None, sampler=None, **changes):
    return gk.sample(MODEL, sampler or Hmc(), out=out, **{**ASKED, **changes})


def hashes(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.glob("draws-*")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The shards of a sampling that was never stopped."""
    path = tmp_path_factory.mktemp("whole") / "draws"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_ROWS", 12)
        sample(path)
    return hashes(path)


# --- what is written -----------------------------------------------------------------------------------------------------


def same(left: Draws, right: Draws) -> bool:
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in ("x", "z", "chain"))


def test_shards_hold_the_draws_that_memory_would(tmp_path: Path) -> None:
    memory, streamed = sample(), sample(tmp_path / "draws")
    assert isinstance(streamed, ShardedDraws)
    assert same(streamed.load(), memory)
    assert same(load_draws(tmp_path / "draws"), memory)
    left, right = memory.diagnostics.as_dict(), streamed.diagnostics.as_dict()
    assert {k for k in left if left[k] != right[k]} <= {"seconds"}
    assert memory.chain.tolist() == [*(list(range(10)) * 9), *range(7)]


def test_shards_are_small_and_mix_the_chains_of_a_block(tmp_path: Path) -> None:
    draws = sample(tmp_path / "draws")
    found = [load_file(tmp_path / "draws" / shard.file) for shard in draws.shards]
    assert [shard.file for shard in draws.shards] == [f"draws-{i:05d}-of-00012.safetensors" for i in range(1, 13)]
    assert max(len(tensors["x"]) for tensors in found) == 12
    assert sorted(torch.cat([tensors["index"] for tensors in found]).tolist()) == list(range(97))
    for tensors in found:
        chains = sorted(set(tensors["chain"].tolist()))
        assert chains in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9])
    parts = list(draws)
    assert [len(part.x) for part in parts] == [shard.rows for shard in draws.shards]
    assert torch.equal(torch.cat([part.x for part in parts]), torch.cat([tensors["x"] for tensors in found]))


def test_the_index_says_what_there_is(tmp_path: Path) -> None:
    draws = gk.sample(MODEL, Hmc(), out=tmp_path / "draws", **ASKED)
    index = json.loads((tmp_path / "draws" / "index.json").read_text())
    assert (index["schema"], index["num_samples"]) == (1, 97)
    assert index["tensors"]["x"] == {"shape": [97, 5], "dtype": "float64"}
    assert index["tensors"]["chain"] == {"shape": [97], "dtype": "int64"}
    assert index["diagnostics"] == draws.diagnostics.as_dict()
    assert index["request"]["sampler"]["name"] == "hmc"
    assert (index["request"]["seed"], index["request"]["block_size"]) == (5, 4)
    assert {entry["file"]: entry["sha256"] for entry in index["shards"]} == hashes(tmp_path / "draws")
    assert sum(entry["rows"] for entry in index["shards"]) == 97
    assert sorted(os.listdir(tmp_path / "draws")) == sorted([*hashes(tmp_path / "draws"), "index.json"])
    assert open_draws(tmp_path / "draws") == draws


def test_a_large_state_is_a_shard_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    draws = sample(tmp_path / "draws", num_samples=40)
    assert {shard.rows for shard in draws.shards} == {2, 4}
    assert same(draws.load(), sample(num_samples=40))


def test_chains_that_are_not_kept_leave_no_empty_shard(tmp_path: Path) -> None:
    class Many(Mala):
        min_chains = 8

    draws = sample(tmp_path / "draws", Many(), num_samples=3)
    assert [shard.rows for shard in draws.shards] == [3]
    assert draws.diagnostics.num_chains == 8
    assert same(draws.load(), sample(None, Many(), num_samples=3))


def test_populations_stream_island_by_island(tmp_path: Path) -> None:
    memory, draws = sample(None, Sir(5)), sample(tmp_path / "draws", Sir(5))
    assert [shard.rows for shard in draws.shards] == [10] * 9 + [7]
    assert same(draws.load(), memory)
    left, right = memory.diagnostics.as_dict(), draws.diagnostics.as_dict()
    assert {k for k in left if left[k] != right[k]} <= {"seconds"}


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_files_are_read_back(tmp_path: Path, suffix: str) -> None:
    draws = sample(tmp_path / f"draws.{suffix}")
    assert isinstance(draws, Draws)
    found = load_draws(tmp_path / f"draws.{suffix}")
    assert same(found, draws)
    assert found.diagnostics.as_dict() == draws.diagnostics.as_dict()


# --- damage --------------------------------------------------------------------------------------------------------------


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "draws"
    draws = sample(path)
    shard = path / draws.shards[3].file
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="draws-00004-of-00012.safetensors is damaged: its sha256"):
        load_draws(path)
    shard.unlink()
    with pytest.raises(DataError, match="draws-00004-of-00012.safetensors does not exist"):
        load_draws(path)
    (path / "index.json").write_text("{}")
    with pytest.raises(DataError, match=r"index\.json is damaged"):
        load_draws(path)
    (path / "index.json").unlink()
    with pytest.raises(DataError, match=r"it has no index\.json$"):
        load_draws(path)
    with pytest.raises(DataError, match="does not exist"):
        load_draws(tmp_path / "none.safetensors")
    for name in ("bad.safetensors", "bad.npz"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(DataError, match="holds no draws"):
            load_draws(tmp_path / name)


ODD_INDEX = [
    lambda index: index["shards"][0].update(file="/dev/zero"),
    lambda index: index["shards"][0].update(file="../draws/draws-00001-of-00012.safetensors"),
    lambda index: index["shards"][0].update(rows=10**30),
    lambda index: index["shards"][0].update(rows=3),
    lambda index: index["shards"][0].update(sha256=None),
    lambda index: index["shards"].pop(),
    lambda index: index.update(shards={"a": 1}),
    lambda index: index.update(num_samples=10**15),
    lambda index: index.update(num_samples="97"),
    lambda index: index.update(value_range=[1]),
    lambda index: index.update(request=3),
    lambda index: index["diagnostics"].update(acceptance="x"),
    lambda index: index.update(diagnostics=[]),
]
"""Changes of index.json by somebody else."""


@pytest.mark.parametrize("number", range(len(ODD_INDEX)))
def test_an_index_from_somebody_else(tmp_path: Path, number: int) -> None:
    path = tmp_path / "draws"
    sample(path)
    index = json.loads((path / "index.json").read_text())
    ODD_INDEX[number](index)
    (path / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"damaged"):
        load_draws(path)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "brackets"])
def test_a_file_of_draws_that_is_something_else(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"draws.{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        deep = b"[" * 100_000
        path.write_bytes(len(deep).to_bytes(8, "little") + deep)
    with pytest.raises(DataError, match="holds no draws"):
        load_draws(path)


@pytest.mark.parametrize("name", ["step", "__class__"])
def test_a_saved_state_replaces_no_method(name: str) -> None:
    with pytest.raises(CheckpointError, match="changes"):
        with_changes(Hmc(), {}, {name: {"float": "0x1p0"}}, torch.device("cpu"))


# --- interruption --------------------------------------------------------------------------------------------------------


class Crash(Exception):
    pass


class Fragile(Hmc):
    """Fails at one of its steps, counted over all blocks."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at
        self.calls = [0]

    def step(self, state, potential, generator):
        self.calls[0] += 1
        if self.calls[0] == self._at:
            raise Crash
        return super().step(state, potential, generator)


@pytest.mark.parametrize("at", [2, 30, 60, 75, 100, 120])
@pytest.mark.usefixtures("unchecked")
def test_a_crash_in_any_step_changes_nothing(tmp_path: Path, at: int, whole, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Fragile(at)
    monkeypatch.setattr(
        "gebm_kit.engine.sampling.draws_on_disk.parameters", lambda sampler: {}
    )  # the fragile one stands for the other
    monkeypatch.setattr("gebm_kit.engine.sampling.draws_on_disk.component_name", lambda kind, sampler: "hmc")
    path = tmp_path / "draws"
    with pytest.raises(Crash):
        sample(path, sampler)
    assert not (path / "index.json").exists()
    with pytest.raises(DataError, match=r"no index\.json, as sampling was interrupted"):
        load_draws(path)
    draws = sample(path, Hmc(), resume=True)
    assert hashes(path) == whole
    assert sorted(os.listdir(path)) == sorted([*whole, "index.json"])
    assert draws.diagnostics.as_dict() | {"seconds": 0} == sample().diagnostics.as_dict() | {"seconds": 0}


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_before_or_after_any_file_changes_nothing(
    tmp_path: Path, after: bool, whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the machine stops at one file after another, each of which is made once more by the attempt that follows."""
    path, attempts = tmp_path / "draws", 0
    write, written = shards.write_atomic, set()

    def crash_once(target: Path, content: bytes) -> None:
        first = (target, len(content)) not in written
        written.add((target, len(content)))
        if first and not after:
            raise Crash
        write(target, content)
        if first:
            raise Crash

    for module in (shards, directory):
        monkeypatch.setattr(module, "write_atomic", crash_once)
    while True:
        attempts += 1
        assert attempts < 100
        try:
            sample(path, resume=True)
            break
        except Crash:
            continue
    assert attempts > 20
    assert hashes(path) == whole


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("at", [70, 110])
@pytest.mark.usefixtures("unchecked")
def test_signals_save_the_step_that_was_made(
    tmp_path: Path, number: int, code: int, at: int, whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, step = [], Hmc.step

    def interrupted(self, state, potential, generator):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return step(self, state, potential, generator)

    monkeypatch.setattr(Hmc, "step", interrupted)
    path = tmp_path / "draws"
    with pytest.raises(Interrupted, match="everything so far is saved") as stop:
        sample(path)
    assert stop.value.exit_code == code
    assert stop.value.hint == "Continue with resume=True."
    sample(path, resume=True)
    assert hashes(path) == whole
    made, at = len(calls), 0
    calls.clear()
    sample()
    assert len(calls) == made  # no step was made twice


def test_a_signal_during_warm_up_keeps_nothing(tmp_path: Path, whole, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, init = [], Hmc.init

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return init(*arguments)

    monkeypatch.setattr(Hmc, "init", interrupted)
    with pytest.raises(Interrupted, match="before the end of warm-up"):
        sample(tmp_path / "draws")
    sample(tmp_path / "draws", resume=True)
    assert hashes(tmp_path / "draws") == whole


KILLED = """
import os, signal, sys
import gebm_kit as gk
from gebm_kit.engine.sampling import shards
from gebm_kit.samplers.hmc import Hmc
from gebm_kit.testing.targets import linear_gaussian

shards.SHARD_ROWS = 12
replace, calls = os.replace, []

def kill(*paths):
    calls.append(paths)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)

os.replace = kill
gk.sample(linear_gaussian().model, Hmc(), out=sys.argv[1], **{asked})
"""


def test_a_kill_in_the_middle_of_a_file_changes_nothing(tmp_path: Path, whole) -> None:
    path = tmp_path / "draws"
    code = KILLED.replace("{asked}", repr(ASKED))
    done = subprocess.run([sys.executable, "-c", code, str(path), "9"], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(hashes(path)) in range(1, 12)
    assert [name for name in os.listdir(path) if name.startswith(".")] or list((path / "state").glob(".*"))
    sample(path, resume=True)
    assert hashes(path) == whole
    assert sorted(os.listdir(path)) == sorted([*whole, "index.json"])


@pytest.mark.usefixtures("unchecked")
def test_populations_go_on_after_their_last_island(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 25)  # two islands in a shard
    calls = []
    step = Sir.step

    def interrupted(self, state, potential, generator):
        calls.append(1)
        if len(calls) == 15:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, state, potential, generator)

    monkeypatch.setattr(Sir, "step", interrupted)
    with pytest.raises(Interrupted):
        sample(tmp_path / "draws", Sir(5))
    calls.clear()
    monkeypatch.setattr(Sir, "step", lambda *a: calls.append(1) or step(*a))
    draws = sample(tmp_path / "draws", Sir(5), resume=True)
    assert len(calls) == 4 * 7  # three of the ten islands were finished
    memory = sample(None, Sir(5))
    assert same(draws.load(), memory)
    assert draws.diagnostics.as_dict() | {"seconds": 0} == memory.diagnostics.as_dict() | {"seconds": 0}


@pytest.mark.usefixtures("unchecked")
def test_what_is_finished_is_not_done_again(tmp_path: Path, whole, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sample(tmp_path / "draws", resume=True)  # nothing there: it begins
    monkeypatch.setattr(Hmc, "step", None)
    monkeypatch.setattr("gebm_kit.engine.sampling.draw.automatic_block_size", None)
    assert sample(tmp_path / "draws", resume=True) == first


# --- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [False, True])
def test_another_request_is_refused_in_words(tmp_path: Path, finished: bool) -> None:
    path = tmp_path / "draws"
    if finished:
        sample(path)
    else:
        with pytest.raises(Crash):
            sample(path, Fragile(75))
        shutil.move(path / "state" / "request.json", tmp_path / "request.json")
        request = json.loads((tmp_path / "request.json").read_text())
        request["request"]["sampler"] = {"name": "hmc", **directory_parameters(Hmc())}
        (path / "state" / "request.json").write_text(json.dumps(request))
    other = linear_gaussian(stiffness=3.0).model
    for model, sampler, changes, words in (
        (MODEL, Hmc(), {"seed": 6}, "seed was 5, now 6"),
        (MODEL, Hmc(), {"num_samples": 98, "thin": 2}, "num_samples was 97, now 98; thin was 3, now 2"),
        (MODEL, Hmc(step_size=0.3), {}, r"sampler\.step_size was 0\.2, now 0\.3"),
        (MODEL, Mala(), {}, r"sampler\.name was hmc, now mala"),
        (other, Hmc(), {}, r"model was \w{12}\.\.\., now"),
    ):
        with pytest.raises(UsageError, match=words):
            gk.sample(model, sampler, out=path, resume=True, **{**ASKED, **changes})


def directory_parameters(sampler) -> dict:
    from gebm_kit.engine.sampling.saved_state import parameters

    return parameters(sampler)


def test_a_place_that_is_taken_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "draws"
    sample(path)
    with pytest.raises(UsageError, match="is not empty: it holds draws"):
        sample(path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    for resume in (False, True):
        with pytest.raises(UsageError, match="other is not empty$"):
            sample(tmp_path / "other", resume=resume)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; draws without a suffix are streamed"):
        sample(tmp_path / "file")
    with pytest.raises(UsageError, match="can't be written"):
        sample(tmp_path / "file" / "draws")
    with pytest.raises(UsageError, match="can be resumed: give out=DIR"):
        sample(resume=True)
    with pytest.raises(UsageError, match="into one file, .* can't be resumed"):
        sample(tmp_path / "draws.npz", resume=True)


def test_a_full_disk_leaves_whole_shards_and_a_way_on(tmp_path: Path, whole, monkeypatch: pytest.MonkeyPatch) -> None:
    path, left = tmp_path / "draws", [20]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunFailed, match="No space left"):
            sample(path)
    assert not [name for name in os.listdir(path) if name.startswith(".")]
    written = hashes(path)
    assert written
    assert written.items() <= whole.items()
    sample(path, resume=True)
    assert hashes(path) == whole


def test_a_sampler_that_cant_be_saved_is_named(tmp_path: Path) -> None:
    class Odd(Mala):
        def tuned(self, **values):
            twin = super().tuned(**values)
            twin.extra = object()
            return twin

    with pytest.raises(UsageError, match="attribute 'extra' is of type object"):
        sample(tmp_path / "draws", Odd())
    sample(tmp_path / "draws.npz", Odd())
