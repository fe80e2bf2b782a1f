"""Two ranks tilt as one process does; a trained energy keeps its weight; the cost of a gradient, measured beforehand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Base, Energy
from gebm_kit.core.model import GEBM
from gebm_kit.engine.sampling.gradient_cost import gradient_cost
from gebm_kit.engine.tilt import plan_tilt
from gebm_kit.testing.targets import AffineBase, IdentityBase, QuadraticEnergy

pytestmark = pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")

PROGRAM = """
import json, sys
import torch
import gebm_kit as gk
from gebm_kit.testing.targets import IdentityBase

def patchy(x):
    return torch.where(x[:, 1] > 2.5, float("nan"), x[:, 0])

options = dict(betas=[1.0], num_samples=96, num_chains=12, warmup=8, steps=8, num_base=3000, seed=2)
found = gk.tilt(IdentityBase(3), patchy, out="out", sampler="imh", **options)
content = found.as_dict()
for level in content["levels"]:
    del level["seconds"]
print("found:" + json.dumps(content))
print("draws:" + json.dumps(found.levels[0].draws.x.tolist()))
"""


def called(folder: Path, ranks: int) -> list[str]:
    """Run the program on that many ranks, and return what each prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    folder.mkdir()
    common = {**os.environ, "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    processes = [
        subprocess.Popen(
            command, cwd=folder, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    found = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, found[0][1]
    return [out for out, _ in found]


def test_two_ranks_tilt_as_one_process_does(tmp_path: Path) -> None:
    (alone,) = called(tmp_path / "one", 1)
    assert called(tmp_path / "two", 2) == [alone, alone]
    one, two = ((tmp_path / name / "out") for name in ("one", "two"))
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert json.loads((two / "tilt.json").read_text())["not_finite"] > 0


# --- a trained energy that keeps its weight --------------------------------------------------------------------------

WEIGHT = torch.tensor([[0.9, -0.2], [0.1, 0.7]], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)


def first(x: Tensor) -> Tensor:
    return x[:, 0]


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_a_trained_energy_keeps_its_weight_at_every_beta(beta: float) -> None:
    """The model is N(0, S) in x, and the score x_0 moves its mean by beta S_00: KL and log Z are beta^2 S_00 / 2."""
    model = GEBM(AffineBase(WEIGHT, 0 * WEIGHT[0]), QuadraticEnergy(EYE, 0 * WEIGHT[0]))
    spread = float((WEIGHT @ torch.linalg.inv(EYE + WEIGHT.T @ WEIGHT) @ WEIGHT.T)[0, 0])
    found = gk.tilt(model, first, betas=[beta], num_samples=1000, num_base=4096, keep_energy=True, seed=1)
    (level,) = found.levels
    assert abs(level.score.value - beta * spread) < 4.5 * level.score.se
    assert abs(level.log_partition.value - 0.5 * beta**2 * spread) < 5 * level.log_partition.se
    assert abs(level.kl.value - 0.5 * beta**2 * spread) < 5 * level.kl.se
    assert abs(found.base.score.value) < 5 * found.base.score.se
    assert found.ascent == ()
    plain = gk.tilt(model, first, betas=[beta], num_samples=1000, num_base=4096, seed=1).levels[0]
    alone = beta * float((WEIGHT @ WEIGHT.T)[0, 0])  # without it, beta acts on the base
    assert abs(plain.score.value - alone) < 4.5 * plain.score.se
    assert alone > beta * spread + 0.1


def test_only_a_generator_with_an_energy_keeps_one() -> None:
    with pytest.raises(UsageError, match="keep_energy needs a generator with an energy of its own"):
        gk.tilt(IdentityBase(2), first, keep_energy=True)
    with pytest.raises(UsageError, match="keep_energy"):
        gk.tilt(IdentityBase(2), first, keep_energy="yes")  # type: ignore[arg-type]


class Shifted(Base):
    conditional, num_classes = True, 2
    latent_dim, data_shape = 2, (2,)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return z + labels[:, None]


def test_a_conditional_generator_is_held_at_a_class() -> None:
    model = GEBM(Shifted(), QuadraticEnergy(EYE.float(), 0 * EYE[0].float()))
    with pytest.raises(UsageError, match="Shifted is conditional, and a tilt serves one law at a time") as caught:
        gk.tilt(model, first)
    assert "label=3" in caught.value.hint
    found = gk.tilt(model, first, label=1, betas=[1.0], num_samples=200, num_base=2048)
    assert abs(found.levels[0].score.value - 2) < 5 * found.levels[0].score.se


# --- the cost of a gradient ------------------------------------------------------------------------------------------


class Wide(Base):
    latent_dim, data_shape = 10, (500,)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 500), nn.Tanh(), nn.Linear(500, 500), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


class Square(Energy):
    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum(1)


def test_the_cost_of_a_gradient_is_measured() -> None:
    model = GEBM(Wide(), Square())
    costs = [gradient_cost(model, rows) for rows in (100, 200)]
    assert costs[0]["weights_bytes"] == pytest.approx(4 * (11 * 500 + 501 * 500), abs=64)
    assert all(cost["seconds"] > 0 and cost["forward_seconds"] > 0 for cost in costs)
    small, large = (cost["memory_bytes"] for cost in costs)
    assert 2 * 100 * 500 * 4 <= small <= 8 * 100 * 500 * 4  # two activations are kept, and a few more are in use
    assert large == pytest.approx(2 * small, rel=0.05)
    assert all(p.requires_grad for p in model.parameters())


def test_a_plan_draws_nothing(tmp_path: Path) -> None:
    def scores(x: Tensor) -> Any:
        seen.append(len(x))
        return x[:, 0]

    seen: list[int] = []
    found = plan_tilt(IdentityBase(2), scores, num_base=10**9)
    assert max(seen) < 100
    assert found["latent_dim"] == 2
    assert found["gradient"]["rows"] == 1
    assert found["num_base"] == 10**9
    with pytest.raises(UsageError, match="must be an energy"):
        plan_tilt(IdentityBase(2), 7)  # type: ignore[arg-type]
