"""What every test runs under: one thread, no plugins of this machine, a cache of its own; and small data sets."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)

# now, not in a fixture: what is registered is asked for while tests are collected
for _name in [name for name in os.environ if name.startswith("GEBM_KIT_")]:
    del os.environ[_name]
os.environ["GEBM_KIT_LOAD_PLUGINS"] = ""


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests, and the programs that they start, have a cache of their own."""
    base = tmp_path_factory.getbasetemp()
    shared: Path = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    os.environ["GEBM_KIT_CACHE"] = str(shared / "gebm-kit-cache")
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("FORCE_COLOR", None)


@pytest.fixture(autouse=True)
def _blank_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave pictures blank, of the right size: drawing them takes a third of the time of tests of commands.

    Those of tests marked with `pictures`, and in the folder of figures, are drawn.
    """
    if "pictures" not in request.keywords and request.path.parent.name != "figures":
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", save_blank)


def save_blank(figure: Any, file: Any, *, dpi: float, **_: Any) -> None:
    """Save a white picture of the figure's size."""
    width, height = figure.get_size_inches()
    Image.new("L", (round(width * dpi), round(height * dpi)), 255).save(file, format="png")


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the check before sampling, for tests that count what samplers and models are asked for."""
    for place in ("sampling.draw", "evaluation.evaluation", "trace"):
        monkeypatch.setattr(f"gebm_kit.engine.{place}.check_contract", lambda *given: None)


class Formats:
    """Small data sets in the true formats of large ones, with random pixels; each call returns ``data.path``."""

    @staticmethod
    def cifar10(folder: Path, *, each: int = 12, archive: bool = True) -> Path:
        rng = np.random.default_rng(0)
        inside = folder / "cifar-10-batches-bin"
        inside.mkdir(parents=True)
        for name in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
            records = np.column_stack([np.arange(each) % 10, rng.integers(0, 256, (each, 3072))])
            (inside / name).write_bytes(records.astype(np.uint8).tobytes())
        (inside / "batches.meta.txt").write_text("airplane\nautomobile\n")
        if not archive:
            return inside
        with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as packed:
            packed.add(inside, "cifar-10-batches-bin")
        shutil.rmtree(inside)
        return folder / "cifar-10-binary.tar.gz"

    @staticmethod
    def celeba(folder: Path, counts: tuple[int, int, int] = (40, 12, 12)) -> Path:
        rng = np.random.default_rng(0)
        (folder / "img_align_celeba").mkdir(parents=True)
        parts = np.repeat([0, 1, 2], counts)
        names = [f"{number:06d}.jpg" for number in range(1, len(parts) + 1)]
        for name in names:
            coarse = rng.integers(0, 256, (27, 22, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((178, 218))
            image.save(folder / "img_align_celeba" / name, quality=90)
        lines = [f"{name} {part}" for name, part in zip(names, parts, strict=True)]
        (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
        rows = [f"{name} {1 if k % 3 else -1:2d} -1" for k, name in enumerate(names)]
        (folder / "list_attr_celeba.txt").write_text("\n".join([str(len(names)), "Smiling Male ", *rows]) + "\n")
        return folder

    @staticmethod
    def imagenet32(folder: Path, *, each: int = 30, side: int = 32) -> Path:
        rng = np.random.default_rng(0)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*(f"train_data_batch_{number}" for number in (1, 2, 10)), "val_data"):
            data = rng.integers(0, 256, (each, 3 * side * side), dtype=np.uint8)
            labels = [*rng.integers(1, 1001, each - 2).tolist(), 1, 1000]
            np.savez(folder / f"{name}.npz", data=data, labels=labels, mean=data.mean(0))
        return folder

    @staticmethod
    def lsun(folder: Path, num: int = 60) -> Path:
        rng = np.random.default_rng(0)
        for index in range(num):
            key = hashlib.sha1(str(index).encode()).hexdigest()
            place = folder / "bedroom_train" / Path(*key[:6])  # as LSUN's own export nests them
            place.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(place / f"{key}.webp")
        return folder


@pytest.fixture(scope="session")
def formats() -> type[Formats]:
    return Formats
