"""Tests of losses with importance weights or chains on two ranks: they train what one process trains, with one buffer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from gebm_kit.config.build import build_dataset
from gebm_kit.config.check import check
from gebm_kit.config.tree import parse
from gebm_kit.engine.training.checkpoint_state import tensors_of
from gebm_kit.engine.training.trainer import Trainer

RANKS = 2

TOY = """\
schema: 1
data: {name: eight-gaussians, num_train: 300, num_valid: 100, num_test: 100}
base: {name: mlp, latent_dim: 3, hidden: [16]}
energy: {name: mlp, hidden: [16]}
loss: {name: kale}
train: {steps: 5, energy_steps: 2, start_steps: 0, batch_size: 32, noise: 0.05, final: {steps: 2, batch_size: 48}}
optim: {energy: {lr: 0.01}, base: {lr: 0.005}}
precision: float64
device: cpu
"""

OWN_FINAL = "relativistic; train.final.loss={name: flo, hidden: [4]}; train.final.energy={name: mlp, hidden: [8]}"
"""A final phase with a loss and an energy of its own."""

AS_ONE_PROCESS = (
    "flo",
    "smile",
    "{name: smile, clip: 1.0, gradient: clipped}",
    "relativistic",
    "hinge",
    "wasserstein",
    OWN_FINAL,
)
CHAINS = ("{name: cd, steps: 2}", "{name: pcd, steps: 2, buffer_size: 64}", "{name: pcd, space: data, buffer_size: 64}")


def trained(loss: str) -> dict[str, Tensor]:
    recipe = check(parse(TOY, name="toy", overrides=f"loss={loss}".split("; ")), directory=Path())
    torch.manual_seed(0)
    trainer = Trainer(recipe, build_dataset(recipe), torch.device("cpu"))
    trainer.initialise()
    for _ in range(7):
        trainer.cycle()
    found = {f"{part}/{name}": t.clone() for part, named in tensors_of(trainer).items() for name, t in named.items()}
    return {name: tensor for name, tensor in found.items() if name not in ("rng/torch", "model/log_partition")}


def work(rank: int, ranks: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    torch.save({loss: trained(loss) for loss in AS_ONE_PROCESS + CHAINS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, args=(RANKS, str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("loss", AS_ONE_PROCESS + CHAINS)
def test_both_ranks_hold_the_same_bits(by_rank: list[dict[str, dict[str, Tensor]]], loss: str) -> None:
    first, second = (seen[loss] for seen in by_rank)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("loss", AS_ONE_PROCESS)
def test_two_ranks_train_what_one_process_trains(by_rank: list[dict[str, dict[str, Tensor]]], loss: str) -> None:
    alone = trained(loss)
    for name, expected in by_rank[0][loss].items():
        torch.testing.assert_close(alone[name], expected, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_chains_of_two_ranks_are_not_twins(by_rank: list[dict[str, dict[str, Tensor]]]) -> None:
    """If the ranks had the same noise, every move would occur twice."""
    buffer = by_rank[0][CHAINS[1]]["negatives/buffer"]
    assert len(torch.unique(buffer, dim=0)) == len(buffer)
    assert not torch.allclose(buffer, trained(CHAINS[1])["negatives/buffer"])
