"""Images mirrored at random in training."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from gebm_kit.core.errors import Interrupted, RecipeError
from gebm_kit.core.progress import Progress
from gebm_kit.engine.datasets.batches import flipped
from gebm_kit.engine.train import train

RECIPE = """\
schema: 1
data: {name: digits}
base: {name: dcgan, latent_dim: 3, width: 2}
energy: {name: conv, width: 2}
loss: {name: kale}
train: {steps: 8, energy_steps: 1, start_steps: 0, batch_size: 16, log_every: 4, checkpoint_every: 4, flip: true}
ema: {decay: 0}
sample: {num_samples: 10, num_chains: 10, warmup: 1, steps: 1, thin: 1}
eval: {metrics: [sliced-wasserstein], num_samples: 10, num_sets: 2, log_partition: importance-sampling}
"""

pytestmark = [
    pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning"),
    pytest.mark.usefixtures("quick_evaluation"),
]


def test_about_half_of_the_images_are_mirrored_and_none_is_changed_otherwise() -> None:
    images = torch.randn(2000, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    out = flipped(images, torch.Generator().manual_seed(1))
    same = (out == images).flatten(1).all(1)
    mirrored = (out == images.flip(-1)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert abs(float(mirrored.float().mean()) - 0.5) < 4.5 * 0.5 / 2000**0.5
    assert torch.equal(flipped(images, torch.Generator().manual_seed(1)), out)


def test_a_resumed_run_mirrors_the_same_images(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "train" and progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    straight = train(path, out=tmp_path / "a")
    with pytest.raises(Interrupted):
        train(path, out=tmp_path / "b", on_progress=stop)
    resumed = train(path, out=tmp_path / "b", resume=True)
    plain = train(path, ["train.flip=false"], out=tmp_path / "c")
    one, two, three = (run.checkpoint.tensors["model"] for run in (straight, resumed, plain))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], three[name]) for name in one)


def test_points_can_not_be_mirrored(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE.replace("digits", "two-moons").replace("{name: dcgan, latent_dim: 3, width: 2}", "mlp"))
    with pytest.raises(RecipeError, match=r"train\.flip mirrors images.*\(2,\)"):
        train(path, ["energy=mlp"], out=tmp_path / "a")
