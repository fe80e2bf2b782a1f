"""Checkpoints are whole or absent, verified on reading, and say which file is damaged."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from gebm_kit.core.errors import CheckpointError, RunFailed, UsageError
from gebm_kit.engine.run_directory import checkpoint as module
from gebm_kit.engine.run_directory.checkpoint import list_checkpoints, newest_whole, read_checkpoint, save_checkpoint
from gebm_kit.engine.training.optimisers import flatten_optimizer, restore_optimizer

TENSORS = {
    "model": {"a": torch.arange(5.0), "n": torch.tensor(3)},
    "loss": {},
    "rng": {"g": torch.ones(9, dtype=torch.uint8)},
}


def save(folder: Path, step: int = 10, keep: int = 2) -> Path:
    return save_checkpoint(folder, step, TENSORS, {"energy_updates": 7, "bad": float("nan")}, keep=keep)


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    found = read_checkpoint(save(tmp_path))
    assert found.step == 10
    assert found.state == {"energy_updates": 7, "bad": None}
    for part, named in TENSORS.items():
        for name, tensor in named.items():
            assert torch.equal(found.tensors[part][name], tensor)


def test_only_the_last_ones_are_kept_and_nothing_else_is_left(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000003", "step-0000010"]


@pytest.mark.parametrize("pid", [os.getpid(), 2**22 + 1], ids=["own", "another"])
def test_what_a_killed_process_left_half_written_goes_with_the_next_checkpoint(tmp_path: Path, pid: int) -> None:
    left = tmp_path / f".writing-step-0000002-{pid}"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000002"]
    assert read_checkpoint(tmp_path / "step-0000002").step == 2


@pytest.mark.parametrize("name", ["model.safetensors", "loss.safetensors", "rng.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_is_found_and_the_older_checkpoint_is_used(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        where = content.index(b'"sha256"') + 2 if name == "state.json" else len(content) // 2
        content[where] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read_checkpoint(path.parent)
    found, complaints = newest_whole(tmp_path)
    assert found is not None
    assert found.step == 1
    assert len(complaints) == 1
    assert name in complaints[0]


def test_a_bit_flipped_anywhere_in_the_state_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, 3) / "state.json"
    content = path.read_bytes()
    silent = []
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            read_checkpoint(path.parent)
        except CheckpointError:
            continue
        silent.append(content[max(0, place - 10) : place + 1])
    assert not silent


def test_a_full_disk_leaves_the_previous_checkpoint_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    calls = 0

    def full(path: Path, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            path.write_bytes(content[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_bytes(content)

    monkeypatch.setattr(module, "_write_synced", full)
    with pytest.raises(RunFailed, match="No space left"):
        save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000001"]
    assert read_checkpoint(tmp_path / "step-0000001").step == 1


def test_a_checkpoint_that_was_never_renamed_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".writing-step-0000009-1").mkdir()
    assert list_checkpoints(tmp_path) == []
    assert newest_whole(tmp_path) == (None, [])


def test_an_unwritable_place_is_a_usage_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match="can't be written"):
        save(file / "below")


def test_there_is_no_pickle_in_it(tmp_path: Path) -> None:
    path = save(tmp_path)
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}
    assert json.loads((path / "state.json").read_text())["schema"] == 1


def test_an_optimiser_goes_on_as_if_never_stopped() -> None:
    def run(steps: int, split: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4))
        optimizer = torch.optim.Adam([weight], 0.1, fused=True)
        for step in range(steps):
            if step == split:
                state = flatten_optimizer(optimizer, "energy")
                optimizer = torch.optim.Adam([weight], 0.1, fused=True)
                restore_optimizer(optimizer, "energy", state)
            optimizer.zero_grad()
            (weight.square() * torch.arange(4)).sum().backward()
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(9, None), run(9, 5))
