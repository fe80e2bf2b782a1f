"""Compare training that is killed again and again with uninterrupted training: are the weights the same, bit for bit?

    python benchmarks/kill_and_resume.py [--kills 30] [--threads 1] [--seed 0] [--out DIR] [--json]

The uninterrupted training is one process. The other is the command ``gebm-kit train RECIPE --out DIR --resume``,
started over and over. Each time the whole process gets SIGKILL at a random instant, until it has been killed
``--kills`` times; the next one runs to the end. Instants are uniform between the start of the process and ``--span``
seconds after it first could have trained, so they hit its start, its training and the writing of its checkpoints. The
benchmark compares every tensor of the last checkpoints (weights, averages, optimisers, random numbers) and every row of
the logs. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from gebm_kit.engine.run_directory.checkpoint import newest_whole
from gebm_kit.engine.run_directory.create import is_unmade
from gebm_kit.engine.run_directory.run import load_run

RECIPE = """\
schema: 1
data: {name: digits}
base: {name: mlp, latent_dim: 16, norm: batch}
energy: {name: mlp}
loss: {name: kale}
train: {steps: 280, final: {steps: 20}, batch_size: 256, checkpoint_every: 5, log_every: 10, noise: 0.1,
        penalty: {name: gradient, every: 4}}
sample: {num_samples: 200, num_chains: 100, warmup: 10, steps: 10, thin: 5}
eval: {metrics: [mmd], num_samples: 200, num_sets: 2}
device: cpu
"""


def command(recipe: Path, out: Path, threads: int) -> list[str]:
    words = ["train", str(recipe), "--out", str(out), "--resume", "--quiet", "--threads", str(threads)]
    return [sys.executable, "-m", "gebm_kit", *words]


def where(out: Path) -> tuple[str, int]:
    """Return the phase a killed process was in, and the step that training will resume from."""
    if is_unmade(out):
        return "before the run was made", 0
    run = load_run(out)
    found, complaints = newest_whole(run.checkpoints)
    if complaints:
        raise SystemExit(f"a kill left a damaged checkpoint: {complaints}")
    half = list(run.checkpoints.glob(".*"))
    phase = "while a checkpoint was written" if half else "training, or on the way to it"
    return ("evaluation" if run.state == "trained" else phase), found.step if found else 0


def tensors(out: Path) -> dict[str, torch.Tensor]:
    parts = load_run(out).checkpoint.tensors
    return {f"{part}/{name}": value for part, named in parts.items() for name, value in named.items()}


def rows(out: Path) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in load_run(out).metrics() if "energy_loss" in row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--span", type=float, default=1.2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-kill"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    recipe = options.out / "kill.yaml"
    recipe.write_text(RECIPE)
    straight, killed = options.out / "straight", options.out / "killed"
    subprocess.run(command(recipe, straight, options.threads), check=True, capture_output=True)
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "gebm_kit", "train", str(recipe), "--dry-run"], capture_output=True, check=True
    )
    ready = time.monotonic() - start
    chance, phases, steps, finished = random.Random(options.seed), Counter[str](), [], 0
    while sum(phases.values()) < options.kills:
        process = subprocess.Popen(
            command(recipe, killed, options.threads), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            _, said = process.communicate(timeout=chance.uniform(0.0, ready + options.span))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            phase, step = where(killed)
            phases[phase] += 1
            steps.append(step)
        else:
            if process.returncode:
                raise SystemExit(f"exit code {process.returncode}: {said.decode()}")
            finished += 1  # everything was done before the last kill, so another kill would hit nothing
            break
    if not finished:
        subprocess.run(command(recipe, killed, options.threads), check=True, capture_output=True)
    first, second = tensors(straight), tensors(killed)
    different = [name for name in first.keys() | second.keys() if not torch.equal(first[name], second[name])]
    found = {
        "kills": sum(phases.values()),
        "phases": dict(phases),
        "resumed_from": steps,
        "tensors": len(first),
        "different_tensors": different,
        "same_rows": rows(straight) == rows(killed),
    }
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"{found['kills']} kills: " + ", ".join(f"{count} {phase}" for phase, count in phases.items()))
        print(f"resumed from steps {steps}")
        print(f"{len(first)} tensors of the last checkpoint, {len(different)} of them different: {different[:5]}")
        print(f"rows of the logs {'are equal' if found['same_rows'] else 'differ'}")
    sys.exit(bool(different) or not found["same_rows"])


if __name__ == "__main__":
    main()
