"""Measure how fast training gets its images, and how much of a training step it waits for them.

    python -m benchmarks.input_pipeline [--threads 2] [--seconds 3] [--cycles 10] [--recipe cifar10_sngan_small]
        [--images 60000] [--faces 2000] [--json]

All files are made by the benchmark in the true formats, with random pixels: the six files of the CIFAR-10 binary
archive, and a folder of JPEG images like CelebA's.

**Prepare**: images a second that `gebm-kit data prepare` decodes and writes, for CIFAR-10 and for faces (178 x 218,
cropped and shrunk to 64 x 64).

**Read**: images a second that the feed gives out of the prepared cache, shuffled, as floating-point batches of 128 in
[-1, 1]. ``resident`` is how training holds data of this size; ``mapped`` is how it reads larger data, ahead in a
thread. The value is the fastest of three rounds, since a busy machine only slows. Goal: 20,000.

**Wait**: the share of a training cycle spent waiting for a batch that is read ahead. As an upper bound, the share spent
on getting batches altogether, including scaling to [-1, 1]. Goal: 2 % for the first.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gebm_kit.config.load import load_recipe
from gebm_kit.core.interfaces import Dataset
from gebm_kit.engine.datasets import batches as feeding
from gebm_kit.engine.datasets.batches import RESIDENT_BYTES, Feed
from gebm_kit.engine.datasets.open import open_dataset
from gebm_kit.engine.datasets.prepare import prepare
from gebm_kit.engine.datasets.prepared_cache import PreparedDataset
from gebm_kit.engine.training.trainer import Trainer

BATCH = 128
ROUNDS = 3
GOALS = {"images_per_second": 20_000, "waiting": 0.02}


def make_cifar10(folder: Path, num: int) -> None:
    """Write six files of records of 3,073 bytes."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
        records = rng.integers(0, 256, (num // 6, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())


def make_faces(folder: Path, num: int) -> None:
    """Write images of 178 x 218 and the partition file; smooth images, so that files are as large as photographs (8 kB)."""
    rng = np.random.default_rng(0)
    (folder / "img_align_celeba").mkdir(parents=True)
    lines = []
    for number in range(1, num + 1):
        coarse = Image.fromarray(rng.integers(0, 256, (28, 23, 3), dtype=np.uint8))
        name = f"{number:06d}.jpg"
        coarse.resize((178, 218), Image.Resampling.BICUBIC).save(folder / "img_align_celeba" / name, quality=85)
        lines.append(f"{name} {2 if number % 10 == 0 else 1 if number % 10 == 5 else 0}\n")
    (folder / "list_eval_partition.txt").write_text("".join(lines))


def preparing(recipe: str, path: Path, threads: int) -> float:
    """Measure images prepared a second."""
    start = time.perf_counter()
    made = prepare(load_recipe(recipe, [f"data.path={path}"]), threads=threads, force=True)
    return float(sum(made.index["counts"].values()) / (time.perf_counter() - start))


def reading(dataset: Dataset, resident: bool, seconds: float) -> float:
    """Measure images a second that a feed gives out, in the fastest of some rounds."""
    feeding.RESIDENT_BYTES = RESIDENT_BYTES if resident else 0
    feed = Feed(dataset.split("train"), BATCH, 0, torch.device("cpu"), torch.float32)
    best = 0.0
    for _ in range(ROUNDS):
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds / ROUNDS:
            count += len(feed.next())
        best = max(best, count / (time.perf_counter() - start))
    return best


class Clock:
    """Seconds spent inside the functions it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def waiting(recipe: str, path: Path, cycles: int) -> dict[str, float]:
    """Measure the shares of training cycles, with the data mapped."""
    feeding.RESIDENT_BYTES = 0
    wanted = load_recipe(recipe, [f"data.path={path}", "train.start_steps=0"])
    dataset = open_dataset(wanted)
    assert isinstance(dataset, PreparedDataset)
    torch.manual_seed(0)
    trainer = Trainer(wanted, dataset, torch.device("cpu"))
    trainer.cycle()  # allocates, and starts the thread
    whole, stalls, batches = Clock(), Clock(), Clock()
    assert trainer.feed._ahead is not None
    trainer.feed._ahead.take = stalls.around(trainer.feed._ahead.take)  # type: ignore[method-assign]
    trainer.feed.next = batches.around(trainer.feed.next)  # type: ignore[method-assign]
    cycle = whole.around(trainer.cycle)
    for _ in range(cycles):
        cycle()
    return {
        "seconds_per_cycle": whole.seconds / cycles,
        "waiting": stalls.seconds / whole.seconds,
        "getting batches": batches.seconds / whole.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--cycles", type=int, default=10)
    parser.add_argument("--recipe", default="cifar10_sngan_small")
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--faces", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["GEBM_KIT_DATA_CACHE"] = str(folder / "cache")
        make_cifar10(folder / "cifar10", arguments.images)
        make_faces(folder / "celeba", arguments.faces)
        found: dict[str, Any] = {
            "prepare, images/s": {
                "cifar10": preparing(arguments.recipe, folder / "cifar10", arguments.threads),
                "celeba": preparing("celeba", folder / "celeba", arguments.threads),
                "celeba, one thread": preparing("celeba", folder / "celeba", 1),
            }
        }
        dataset = open_dataset(load_recipe(arguments.recipe, [f"data.path={folder / 'cifar10'}"]))
        found["read, images/s"] = {
            "resident": reading(dataset, True, arguments.seconds),
            "mapped": reading(dataset, False, arguments.seconds),
        }
        found["training"] = waiting(arguments.recipe, folder / "cifar10", arguments.cycles)
    found["load"] = os.getloadavg()[0]
    if arguments.json:
        print(json.dumps(found))
        return
    for name in ("prepare, images/s", "read, images/s"):
        for what, rate in found[name].items():
            print(f"{name:20} {what:20} {rate:12,.0f}")
    for what, value in found["training"].items():
        print(f"{'training':20} {what:20} {value:12.4f}")
    print(
        f"goals: read {GOALS['images_per_second']:,} images/s, waiting {GOALS['waiting']}; "
        f"load of the machine {found['load']:.1f}"
    )


if __name__ == "__main__":
    main()
