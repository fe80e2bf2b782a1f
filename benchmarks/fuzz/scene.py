"""The files that are mutated, and the command that reads each."""

from __future__ import annotations

import contextlib
import gzip
import io
import random
import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.fuzz.mutations import (
    mutated_bytes,
    mutated_gzip,
    mutated_json,
    mutated_npy,
    mutated_png,
    mutated_safetensors,
    mutated_text,
    mutated_zip,
)
from gebm_kit.cli.app import main

TOY = """\
schema: 1
data: {name: eight-gaussians, num_train: 200, num_valid: 60, num_test: 60}
base: {name: mlp, latent_dim: 2, hidden: [4]}
energy: {name: mlp, hidden: [4]}
loss: {name: kale}
train: {steps: 2, start_steps: 0, final: {steps: 0}, batch_size: 16, checkpoint_every: 1, log_every: 1}
sample: {num_samples: 8, num_chains: 4, warmup: 2, steps: 2, thin: 1}
eval: {metrics: [mmd], num_samples: 20, num_sets: 2, budget: 0.1}
device: cpu
"""


@dataclass(frozen=True)
class Reader:
    """One file that is mutated, and the commands of which one reads it.

    Attributes:
        name: what is read.
        file: the file, in the scene.
        mutate: how it is mutated.
        commands: words of gebm-kit; one is chosen for each case.
    """

    name: str
    file: str
    mutate: Callable[[bytes, random.Random], bytes]
    commands: tuple[tuple[str, ...], ...]


SAMPLE = ("sample", "run", "--num-samples", "4", "--out", "draws.npz", "--json")
RESUME = ("train", "toy.yaml", "--out", "run", "--resume", "--json")
RUN_COMMANDS = (("runs", ".", "--json"), ("compare", "run", "other", "--json"), SAMPLE, ("runs", "."))


def _dry(data: str, recipe: str = "toy.yaml") -> tuple[tuple[str, ...], ...]:
    return (("train", recipe, f"data={data}", "--out", "never", "--dry-run", "--json"),)


GREY, COLOUR = "images.yaml", "colour.yaml"
"""Recipes for grey and for colour images."""


def readers() -> list[Reader]:
    """Return every reader that is fuzzed."""
    step = "run/checkpoints/step-0000002"
    found = [
        Reader("recipe", "toy.yaml", mutated_text, (("recipes", "check", "toy.yaml", "--json"),)),
        Reader("run's resolved recipe", "run/resolved.yaml", mutated_text, RUN_COMMANDS),
        Reader("run's recipe", "run/recipe.yaml", mutated_text, RUN_COMMANDS),
        Reader("run's status", "run/status.json", mutated_json, RUN_COMMANDS),
        Reader("run's environment", "run/env.json", mutated_json, RUN_COMMANDS),
        Reader("run's log", "run/metrics.jsonl", mutated_text, RUN_COMMANDS),
        Reader("run's overrides", "run/overrides.txt", mutated_text, RUN_COMMANDS),
        Reader("checkpoint's state", f"{step}/state.json", mutated_json, (SAMPLE, RESUME)),
        Reader("checkpoint's tensors", f"{step}/model.safetensors", mutated_safetensors, (SAMPLE, RESUME)),
    ]
    for ending, mutate in (("csv", mutated_text), ("npy", mutated_npy), ("npz", mutated_zip)):
        found.append(
            Reader(
                f"{ending} of rows to score", f"rows.{ending}", mutate, (("score", "run", f"rows.{ending}", "--json"),)
            )
        )
        found.append(
            Reader(f"{ending} of a table", f"table.{ending}", mutate, _dry(f"{{name: tabular, path: table.{ending}}}"))
        )
    tensors, images, labels = "rows.safetensors", "mnist/train-images-idx3-ubyte", "mnist/train-labels-idx1-ubyte.gz"
    cifar, idx = "{name: cifar10, path: cifar-10-binary.tar.gz}", "{name: idx, path: mnist}"
    program = ("train", "program.yaml", "--out", "never", "--dry-run", "--trust-program", "--json")
    found += [
        Reader("safetensors of arrays", tensors, mutated_safetensors, _dry(f"{{name: arrays, path: {tensors}}}")),
        Reader("npz of images", "images.npz", mutated_zip, _dry("{name: arrays, path: images.npz}", GREY)),
        Reader("idx", images, mutated_bytes, _dry(idx, GREY)),
        Reader("idx labels", labels, mutated_gzip, _dry(idx, GREY)),
        Reader("tar", "cifar-10-binary.tar.gz", mutated_gzip, _dry(cifar, COLOUR)),
        Reader("PNG", "folder/a0.png", mutated_png, _dry("{name: image-folder, path: folder, size: 8}", COLOUR)),
        Reader("program", "program.pt", mutated_zip, (program,)),
    ]
    with contextlib.suppress(ImportError):
        import pyarrow  # noqa: F401

        found.append(
            Reader("parquet of a table", "table.parquet", mutated_bytes, _dry("{name: tabular, path: table.parquet}"))
        )
    return found


def without_pictures() -> None:
    """Draw no pictures in this process: they read nothing, and take most of the time of runs as small as these."""
    from gebm_kit.engine.evaluation import evaluation_files
    from gebm_kit.engine.figures import chain_figures, comparison_figure

    evaluation_files.draw_all = lambda *_, **__: []  # type: ignore[assignment]
    chain_figures.draw_chains = lambda *_, **__: []  # type: ignore[assignment]
    comparison_figure.draw_comparison = lambda path, _: path  # type: ignore[assignment]


def make_scene(folder: Path) -> None:
    """Make every file that is mutated, in the current directory ``folder``."""
    (folder / "toy.yaml").write_text(TOY)
    image = TOY.replace("eight-gaussians, num_train: 200, num_valid: 60, num_test: 60", "digits")
    (folder / GREY).write_text(image)
    (folder / COLOUR).write_text(image)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 2)).astype(np.float32)
    for name in ("rows", "table"):
        np.savetxt(folder / f"{name}.csv", rows, delimiter=",", header="a,b", comments="")
        np.save(folder / f"{name}.npy", rows)
        np.savez(folder / f"{name}.npz", x=rows)
    save_file({"x": torch.from_numpy(rows)}, folder / "rows.safetensors")
    images = rng.integers(0, 256, size=(40, 8, 8), dtype=np.uint8)
    labels = (np.arange(40) % 3).astype(np.uint8)
    np.savez(folder / "images.npz", x=images, y=labels)
    (folder / "mnist").mkdir()
    for part in ("train", "t10k"):
        (folder / f"mnist/{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4B3I", 0, 0, 8, 3, 40, 8, 8) + images.tobytes()
        )
        packed = gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, 40) + labels.tobytes())
        (folder / f"mnist/{part}-labels-idx1-ubyte.gz").write_bytes(packed)
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz", compresslevel=1) as archive:
        for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            content = bytes([1]) + rng.integers(0, 256, size=3072, dtype=np.uint8).tobytes()
            info.size = len(content) * 4
            archive.addfile(info, io.BytesIO(content * 4))
    (folder / "folder").mkdir()
    for number in range(12):
        pixels = rng.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"folder/a{number}.png")
    with contextlib.suppress(ImportError):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"a": rows[:, 0], "b": rows[:, 1]}), folder / "table.parquet")
    torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))).save(
        str(folder / "program.pt")
    )
    program = (
        "base: {name: pretrained, path: program.pt, latent_dim: 2}\ntrain: {part: energy, steps: 2, batch_size: 16}\n"
    )
    kept = [line for line in TOY.splitlines() if not line.startswith(("base:", "train:"))]
    (folder / "program.yaml").write_text("\n".join(kept) + "\n" + program)
    for name in ("run", "other"):
        with quiet():
            code = main(["train", "toy.yaml", "--out", name, "--quiet"])
        if code:
            raise SystemExit(f"the run of the scene was not made: exit code {code}")


@contextlib.contextmanager
def quiet() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Keep what is printed in the block."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        yield out, err
