"""Image recipes on a user's own images of other sizes, and `mnist` on small files in its format."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gebm_kit as gk
from gebm_kit.cli.app import main
from gebm_kit.config.load import load_recipe, shipped_recipes
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.engine.datasets.retarget import retarget
from gebm_kit.engine.train import train

pytestmark = [
    pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning"),
    pytest.mark.usefixtures("quick_evaluation"),
]

TINY = [
    "base.latent_dim=4", "base.width=2", "energy.width=2", "train.steps=3", "train.energy_steps=1", "train.start_steps=0",
    "train.batch_size=4", "train.checkpoint_every=20", "train.final.steps=1", "train.final.batch_size=4",
    "train.final.energy={name: projected, width: 2, steps: 2}",
    "sample={num_samples: 8, num_chains: 4, warmup: 1, steps: 2, thin: 1}", "sampler={name: hmc, num_leapfrog: 1}",
    "eval.num_samples=8", "eval.num_sets=2", "eval.metrics=[{name: frechet, features: pixels}]",
    "eval.log_partition=importance-sampling",
]  # fmt: skip

NETWORKS = ["fashion_mnist", "mnist", "cifar10_sngan_small", "cifar10_resnet_small"]
"""One recipe for each pair of networks, and both of idx files."""

CASES = {
    ("L", (20, 20)): (1, 20, 20),
    ("RGB", (30, 30)): (3, 30, 30),
    ("L", (33, 47)): (1, 33, 47),
    ("RGBA", (50, 50)): (3, 50, 50),
}


def folder_of(path: Path, mode: str, *sides: tuple[int, int], number: int = 30) -> Path:
    path.mkdir()
    random = np.random.default_rng(0)
    channels = len(Image.new(mode, (1, 1)).getbands())
    for index in range(number):
        pixels = random.integers(0, 256, (*sides[index % len(sides)], channels), dtype=np.uint8)
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path / f"{index:03d}.png")
    return path


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}{case[1][0]}x{case[1][1]}")
def test_a_copied_recipe_trains_on_other_images(
    name: str, case: tuple[str, tuple[int, int]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, shape = folder_of(tmp_path / "images", case[0], case[1]), CASES[case]
    mine = tmp_path / "mine.yaml"
    assert main(["recipes", "cp", name, str(mine), "--data", str(folder), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert set(found) == {"schema", "name", "path", "reading"}
    assert f"shape {shape[0]}x{shape[1]}x{shape[2]}" in found["reading"]
    run = train(mine, TINY, out=tmp_path / "run")
    assert tuple(run.dataset.data_shape) == shape
    assert run.evaluation is not None
    draws = gk.sample(run, num_samples=4, num_chains=4, warmup=1, steps=1)
    assert tuple(draws.x.shape) == (4, *shape)


IMAGE_RECIPES = [name for name in sorted(shipped_recipes()) if name.partition("_")[0] in
                 {"celeba", "celeba32", "cifar10", "fashion", "imagenet32", "lsun", "mnist"}]  # fmt: skip


@pytest.mark.parametrize("name", IMAGE_RECIPES)
def test_only_the_data_change(name: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", "RGB", (9, 12), number=6)
    (tmp_path / "mine.yaml").write_text(retarget(shipped_recipes()[name].read_text(), str(folder)).text)
    mine, shipped = load_recipe(tmp_path / "mine.yaml"), load_recipe(name)
    assert mine.data.name == "image-folder"
    assert mine.data.parameters["size"] is None
    for part in ("base", "energy", "loss", "train", "optim", "ema", "sampler", "sample", "eval"):
        assert getattr(mine, part) == getattr(shipped, part), part


def test_images_of_several_sizes_are_resized_and_it_is_said(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", "L", (30, 40), (20, 20))
    found = retarget(shipped_recipes()["mnist"].read_text(), str(folder))
    assert "size: 64, channels: 1" in found.text
    assert "1x64x64" in found.reading


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    text = shipped_recipes()["mnist"].read_text()
    with pytest.raises(UsageError, match="neither a dataset, a folder nor a file"):
        retarget(text, str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        retarget(text, str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="no line `data:`"):
        retarget("schema: 1\n", "digits")
    assert "data: {name: digits}" in retarget(text, "digits").text


def idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("names", ["{}-images-idx3-ubyte.gz", "{}-images-idx3-ubyte", "{}-images.idx3-ubyte"])
def test_mnist_reads_its_four_files_by_the_usual_names(names: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for part in ("train", "t10k"):
        idx(tmp_path / names.format(part), random.integers(0, 256, (40, 28, 28)))
        idx(tmp_path / names.format(part).replace("images", "labels").replace("idx3", "idx1"), np.arange(40) % 10)
    run = train("mnist", [*TINY, f"data.path={tmp_path}", "train.final.steps=0"], out=tmp_path / "run")
    assert tuple(run.dataset.data_shape) == (1, 28, 28)
    assert torch.equal(run.dataset.labels("test"), torch.arange(40) % 10)
    assert "mnist" in shipped_recipes()["mnist"].read_text()
