"""Refine generators that were trained elsewhere, and compare Fréchet distances before and after in a markdown table.

    python benchmarks/plain_gan.py DATA gan-0.pt --seed 0
    python benchmarks/refine.py DATA gan-0.pt [gan-1.pt ...] --out DIR [--steps 1500] [--features labels contrastive]
                                [--threads 1]

DATA is a folder in MNIST's format, and a generator is a TorchScript program of codes (B, 64, 1, 1).

Each generator is refined by the recipe `refine` with 1,500 updates, once with features learned from labels and once
with features learned without them. Draws are made at inverse temperature 1 and at the beta that the validation part
chooses. The Fréchet distance is against the test part, on features of a classifier of the dataset, which is another
network than the energy's. Seconds are processor time of the training, including the learning of features. Runs are kept
in DIR, and an interrupted one resumes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from gebm_kit.config.load import load_recipe
from gebm_kit.core.errors import Interrupted
from gebm_kit.core.progress import Progress
from gebm_kit.core.trust import trust_programs
from gebm_kit.engine.refine import RECIPE, recipe_words, refine, refined
from gebm_kit.engine.train import train

SETTINGS = [
    "sample={num_samples: 600, num_chains: 150, warmup: 40, steps: 20, thin: 5}",
    "eval={metrics: [frechet], num_samples: 600, num_sets: 4, log_partition: importance-sampling}",
]
"""Overrides for smaller draw sets than the recipe's, since the distance is extrapolated to infinitely many draws."""

FIRST = 500
"""Number of updates at a constant rate; the rate of the others falls to zero."""


class Clock:
    """A clock of the processor seconds until training ends, which also prints progress."""

    def __init__(self) -> None:
        self.start, self.seconds, self._told = time.process_time(), 0.0, 0.0

    def __call__(self, report: Progress) -> None:
        if report.stage in ("fit", "train"):
            self.seconds = time.process_time() - self.start
        if time.monotonic() - self._told > 30:
            self._told = time.monotonic()
            values = {name: round(value, 3) for name, value in report.scalars.items() if name in ("kale", "acceptance")}
            print(f"  {report.stage} {report.step}/{report.total} {values or ''}", flush=True)


def study(data: str, generator: Path, features: str, options: argparse.Namespace) -> dict[str, Any]:
    """Refine one generator: what `refine` found, the checksum of its file before and after, and the seconds of training."""
    before = hashlib.sha256(generator.read_bytes()).hexdigest()
    words = [*recipe_words(str(generator), data, options.latent), *SETTINGS, f"train.seed={options.seed}"]
    words += [f"energy.features={features}", f"train.steps={FIRST}", f"train.final.steps={options.steps - FIRST}"]
    name = f"{generator.stem}-{features}"
    clock, record = Clock(), options.out / f"{name}.json"
    known = json.loads(record.read_text()) if record.exists() else {"seconds": 0.0}
    try:
        run = train(load_recipe(RECIPE, words), out=options.out / name, resume=True, on_progress=clock)
    except Interrupted:
        record.write_text(json.dumps({"seconds": known["seconds"] + clock.seconds}))
        raise
    found = refined(run) or refine(run, on_progress=clock)
    after = hashlib.sha256(generator.read_bytes()).hexdigest()
    inside = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (run.path / "base").glob("*.pt")}
    result = {
        "generator": str(generator),
        "features": features,
        "unchanged": before == after and set(inside.values()) == {before} and found["generator"]["sha256"] == before,
        "seconds": known["seconds"] + clock.seconds,
        "first": run.evaluation,
        "refined": found,
    }
    record.write_text(json.dumps(result, indent=2))
    return result


def row(result: dict[str, Any]) -> str:
    """Format a line of the table."""
    first, found = result["first"], result["refined"]
    last = found["evaluation"]

    def cell(evaluation: dict[str, Any], column: str) -> str:
        value = evaluation["metrics"][column]["frechet"]
        low, high = value["low"], value["high"]
        return f"{value['value']:.2f}" + (f" ({low:.2f}-{high:.2f})" if low is not None else "")

    tried = ", ".join(f"{trial['value']:.2f} at {trial['inverse_temperature']:g}" for trial in found["tried"])
    gradients = first["diagnostics"]["grad_evals"] / first["protocol"]["frechet"]["sets"]
    cells = [
        Path(result["generator"]).stem,
        result["features"],
        cell(first, "data"),
        cell(first, "base"),
        cell(first, "gebm"),
        cell(first, "ratio"),
        f"{found['inverse_temperature']:g} ({tried})",
        cell(last, "gebm"),
        cell(last, "ratio"),
        f"{gradients / first['protocol']['frechet']['samples']:.0f}",
        f"{first['kale_train']:.2f} / {first['kale_test']:.2f}",
        f"{result['seconds']:.0f}",
        "yes" if result["unchanged"] else "NO",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Refine generators that were trained elsewhere.")
    parser.add_argument("data")
    parser.add_argument("generators", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--features", nargs="+", default=["labels", "contrastive"])
    parser.add_argument("--latent", default="64x1x1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("always")
    options.out.mkdir(parents=True, exist_ok=True)
    with trust_programs():
        results = [
            study(options.data, generator, features, options)
            for generator in options.generators
            for features in options.features
        ]
    headings = [
        "generator",
        "features from",
        "held-out",
        "before",
        "after, beta 1",
        "ratio",
        "beta (on validation data)",
        "after",
        "ratio",
    ]
    headings += ["gradients a draw", "KALE train / test", "s", "unchanged"]
    print("\n| " + " | ".join(headings) + " |\n|" + "---|" * len(headings))
    for result in results:
        print(row(result))


if __name__ == "__main__":
    main()
