"""Convolutional models train in channels-last layout with the same numbers, also when resumed from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gebm_kit.config.check import check
from gebm_kit.config.tree import parse
from gebm_kit.core.interfaces import Dataset, Split, SplitName
from gebm_kit.engine.run_directory.checkpoint import read_checkpoint, save_checkpoint
from gebm_kit.engine.training import trainer as module
from gebm_kit.engine.training.checkpoint_state import counters_of, restore, tensors_of
from gebm_kit.engine.training.trainer import Trainer

RECIPE = """\
schema: 1
data: {name: digits}
base: {name: dcgan, latent_dim: 4, width: 4, norm: batch}
energy: {name: conv, width: 4, spectral_norm: true}
loss: {name: kale}
train: {steps: 8, energy_steps: 2, start_steps: 0, batch_size: 8, penalty: {name: gradient, every: 2}}
optim: {energy: {lr: 1.0e-3}, base: {lr: 1.0e-3}}
precision: float64
"""


class _Noise(Split):
    def __init__(self) -> None:
        self.rows = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> Tensor:
        return self.rows[indices]


class Images(Dataset):
    data_shape = (3, 8, 8)
    value_range = (-1.0, 1.0)

    def split(self, name: SplitName) -> Split:
        return _Noise()


def made() -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(check(parse(RECIPE, name="toy"), directory=Path()), Images(), torch.device("cpu"))
    trainer.initialise()
    return trainer


def convolutions(trainer: Trainer) -> list[nn.Parameter]:
    return [p for p in trainer.model.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]


def test_training_is_the_same_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    last = made()
    monkeypatch.setattr(module, "channels_last", lambda model: None)
    usual = made()
    assert all(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in convolutions(last))
    assert all(p.is_contiguous() for p in convolutions(usual))
    for _ in range(4):
        last.cycle()
        usual.cycle()
    for part, tensors in tensors_of(usual).items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensors_of(last)[part][name], tensor, rtol=1e-8, atol=1e-10, equal_nan=True)


def test_a_checkpoint_goes_on_to_the_bit_and_with_states_laid_out_as_their_parameters(tmp_path: Path) -> None:
    straight = made()
    straight.cycle()
    path = save_checkpoint(tmp_path / "checkpoints", 1, tensors_of(straight), counters_of(straight), keep=1)
    resumed = made()
    restore(resumed, read_checkpoint(path))
    for optimizer in (resumed.energy_optimizer, resumed.base_optimizer):
        for parameter, state in optimizer.state.items():
            assert all(v.stride() == parameter.stride() for v in state.values() if v.shape == parameter.shape)
    for _ in range(3):
        straight.cycle()
        resumed.cycle()
    for part, tensors in tensors_of(straight).items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensors_of(resumed)[part][name], tensor, rtol=0, atol=0, equal_nan=True)
