"""A few draws of an evaluation, kept for the report: there and back, in any memory order, with their energies."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gebm_kit.engine.evaluation.kept_draws import FILE, keep_draws, read_kept_draws

SHAPE = (3, 8, 8)


def evaluation(num: int, energies: dict[str, int], *, channels_last: bool = True, labels: bool = False) -> Any:
    generator = torch.Generator().manual_seed(0)
    order = torch.channels_last if channels_last else torch.contiguous_format
    sets = {
        name: (torch.rand(num, *SHAPE, generator=generator) * 2 - 1).to(memory_format=order)
        for name in ("data", "base_draws", "gebm_draws")
    }
    return SimpleNamespace(
        **sets,
        energies={name: torch.arange(float(size)) for name, size in energies.items()},
        labels={name: torch.arange(num) % 3 for name in ("data", "base", "GEBM")} if labels else None,
    )


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_there_and_back(channels_last: bool, tmp_path: Path) -> None:
    """Colour images of networks that compute in channels-last order are no longer contiguous."""
    given = evaluation(80, {"data": 80, "base": 80, "GEBM": 80}, channels_last=channels_last, labels=True)
    mixed = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    path = keep_draws(tmp_path, given, mixed, "step-1", (-1.0, 1.0))
    assert path == tmp_path / FILE
    kept = read_kept_draws(tmp_path, "step-1", SHAPE)
    assert kept is not None
    assert (kept.x["GEBM"] - given.gebm_draws[:64]).abs().max() <= 1 / 255 + 1e-6
    assert (kept.x["data"] - given.data[mixed[:64]]).abs().max() <= 1 / 255 + 1e-6
    assert torch.equal(kept.energies["data"], mixed.float())
    assert torch.equal(kept.energies["base"], torch.arange(80.0))
    assert torch.equal(kept.labels["data"], mixed[:64] % 3)


@pytest.mark.parametrize("energies", [{"data": 80, "base": 66, "GEBM": 80}, {"data": 80, "GEBM": 80}])
def test_energies_that_are_not_those_of_all_draws_are_left_out(energies: dict[str, int], tmp_path: Path) -> None:
    keep_draws(tmp_path, evaluation(80, energies), torch.arange(80), "step-1", (-1.0, 1.0))
    kept = read_kept_draws(tmp_path, "step-1", SHAPE)
    assert kept is not None
    assert set(kept.energies) == {"data", "GEBM"}


def test_what_belongs_to_another_checkpoint_or_is_damaged_is_not_read(tmp_path: Path) -> None:
    assert read_kept_draws(tmp_path, "step-1", SHAPE) is None
    path = keep_draws(tmp_path, evaluation(5, {}), torch.arange(5), "step-1", (-1.0, 1.0))
    assert read_kept_draws(tmp_path, "step-2", SHAPE) is None
    assert read_kept_draws(tmp_path, "step-1", (3, 8, 9)) is None
    path.write_bytes(path.read_bytes()[:-9])
    assert read_kept_draws(tmp_path, "step-1", SHAPE) is None
