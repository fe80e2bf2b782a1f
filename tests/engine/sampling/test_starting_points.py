"""Chains that start at the encodings of data, and reconstructions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gebm_kit as gk
from gebm_kit.bases.mlp import MlpBase
from gebm_kit.bases.vae import Vae
from gebm_kit.cli.app import main
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import Base, Energy
from gebm_kit.core.priors import Uniform
from gebm_kit.samplers.rwm import Rwm

RECIPE = """\
schema: 1
data: {name: eight-gaussians, num_train: 300, num_valid: 50, num_test: 50}
base: {name: vae, latent_dim: 2, hidden: [8], kl_warmup: 5}
energy: {name: mlp, hidden: [8]}
loss: {name: kale}
train: {steps: 5, part: base-then-energy, pretrain: {steps: 10}, energy_steps: 1, batch_size: 50, start_steps: 0}
sample: {num_samples: 20, num_chains: 20, warmup: 4, steps: 4, thin: 4}
eval: {metrics: [mmd], num_samples: 20, num_sets: 2}
"""


class Affine(Base):
    """``G(z) = 3 z + 1`` and its inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = 2, (2,)

    def forward(self, z: Tensor) -> Tensor:
        return 3 * z + 1

    def encode(self, x: Tensor) -> Tensor:
        return (x - 1) / 3


class Bowl(Energy):
    def forward(self, x: Tensor) -> Tensor:
        return 0.1 * x.square().sum(1)


class OnACube(Affine):
    @property
    def prior(self) -> Uniform:
        return Uniform(2)


def still() -> Rwm:
    return Rwm(step_size=1e-7)


def test_chains_start_at_the_rows_in_turn_whatever_the_blocks() -> None:
    rows = torch.randn(7, 2)
    for block_size in (None, 3, 4):
        draws = gk.sample(
            gk.GEBM(Affine(), Bowl()), still(), start=rows, num_samples=18, num_chains=18, warmup=0, steps=1, thin=1,
            block_size=block_size,
        )  # fmt: skip
        expected = rows[torch.arange(18) % 7]
        order = torch.cdist(draws.x, expected).argmin(1) if block_size is None else None
        torch.testing.assert_close(draws.x, expected, atol=1e-4, rtol=0)
        assert order is None or len(order) == 18


def test_warm_up_keeps_them_there_and_the_sampler_still_forgets() -> None:
    model = gk.GEBM(Affine(), Bowl())
    settings = {"num_samples": 2000, "num_chains": 2000, "warmup": 60, "steps": 40, "thin": 40, "seed": 1}
    from_data = gk.sample(model, "hmc", start=torch.full((1, 2), 30.0), **settings)
    from_prior = gk.sample(model, "hmc", **settings)
    for moment in (lambda x: x, torch.square):
        one, other = (moment(draws.x.double()) for draws in (from_data, from_prior))
        error = ((one.var(0) + other.var(0)) / 2000).sqrt()
        assert bool(((one.mean(0) - other.mean(0)).abs() < 5.5 * error).all())


def test_the_same_start_gives_the_same_draws_and_another_one_others() -> None:
    def draw(rows: Tensor) -> Tensor:
        return gk.sample(
            gk.GEBM(Affine(), Bowl()), "rwm", start=rows, num_samples=10, num_chains=10, warmup=5, steps=2, thin=2
        ).x

    rows = torch.randn(10, 2)
    assert torch.equal(draw(rows), draw(rows))
    assert not torch.equal(draw(rows), draw(rows + 1))


@pytest.mark.parametrize(
    ("base", "sampler", "rows", "kind", "message"),
    [
        (MlpBase(2, data_shape=(2,)), "rwm", torch.zeros(3, 2), UsageError, "and MlpBase has none"),
        (OnACube(), "rwm", torch.zeros(3, 2), UsageError, "the base's is 'uniform'"),
        (Affine(), "sir", torch.zeros(3, 2), UsageError, "only chains can start"),
        (Affine(), "rwm", torch.zeros(3, 4), DataError, r"shape \(N, 2\) are needed, these are \(3, 4\)"),
        (Affine(), "rwm", torch.zeros(0, 2), DataError, "are needed"),
        (Affine(), "rwm", torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), DataError, "row 2 .* not finite"),
    ],
)
def test_what_can_not_start(base: Base, sampler: str, rows: Tensor, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        gk.sample(gk.GEBM(base, Bowl()), sampler, start=rows, num_samples=4, num_chains=4, warmup=0, steps=1)


def test_reconstructions() -> None:
    x = torch.randn(4, 2)
    torch.testing.assert_close(gk.GEBM(Affine(), Bowl()).reconstruct(x), x)
    vae = Vae(2, hidden=[4], data_shape=(2,))
    assert torch.equal(gk.GEBM(vae, Bowl()).reconstruct(x), vae(vae.encode(x)))
    with pytest.raises(UsageError, match="has no encoder"):
        gk.GEBM(MlpBase(2, data_shape=(2,)), Bowl()).reconstruct(x)


def test_from_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A vae from its recipe to draws that started at training rows, in a file and in shards."""
    (tmp_path / "vae.yaml").write_text(RECIPE)
    run = str(tmp_path / "run")
    assert main(["train", str(tmp_path / "vae.yaml"), "--out", run, "--quiet"]) == 0
    trained = gk.load_run(run)
    assert float(trained.model.base.kl_updates) == 10  # of the first phase alone
    words = ["sample", run, "--quiet", "--json", "sampler=rwm", "sampler.step_size=1e-7", "sample.warmup=0"]
    out = tmp_path / "draws.safetensors"
    capfd.readouterr()
    assert main([*words, "--start", "data", "--out", str(out)]) == 0
    assert json.loads(capfd.readouterr().out)["num_samples"] == 20
    rows = trained.dataset.split("train").first(300)
    with torch.no_grad():
        nearest = torch.cdist(gk.load_draws(out).x, trained.model.eval().reconstruct(rows)).amin(1)
    assert float(nearest.max()) < 1e-4
    assert main([*words, "--start", "data", "--out", str(tmp_path / "shards")]) == 0
    assert main([*words, "--start", "data", "--out", str(tmp_path / "shards"), "--resume"]) == 0
    assert main([*words, "--start", "prior", "--out", str(tmp_path / "shards"), "--resume"]) == 2
    assert main([*words, "--start", "data", "--trace", "mmd"]) == 2
