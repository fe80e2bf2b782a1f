"""Train on Fashion-MNIST for ten minutes of two cores: a GEBM against its own base, a GAN and a VAE of the same networks.

    python -m benchmarks.fashion_mnist --path FOLDER [--cache DIR] [--minutes 10] [--seeds 0 1 2] [--models gebm gan vae]
                                       [--samplers hmc] [--draws 10000] [--sets 2] [--threads 2] [--table]

Scores are FIDs on features of the kit's classifier for these data, of ``--draws`` draws against the test part. Sampler
and beta are chosen by FID against the validation part; beta = 1 is shown too. The minutes are training time. The number
of cycles that fill them is computed beforehand, from the speed of the first two hundred cycles; the table has the
seconds that they took. Runs and records are kept in ``--cache``, so an interrupted study resumes.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.fashion_mnist.settings import MODELS, ON_BASE
from benchmarks.fashion_mnist.study import Setting, scores, trained
from gebm_kit.engine.evaluation.intervals import paired_ratio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="of the idx files")
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmark-fashion-mnist"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--samplers", nargs="+", default=["hmc"])
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--sets", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print existing records, run nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", UserWarning)
    setting = Setting(options.path, options.minutes, options.draws, options.sets)
    records: dict[tuple[str, int], dict[str, Any]] = {}
    for seed in options.seeds:
        for kind in options.models:
            path = options.cache / f"{kind}-{seed}.json"
            if not path.exists() and not options.table:
                run = trained(kind, seed, setting, options.cache)
                found = {
                    "seconds": _seconds(options.cache, kind, seed),
                    "steps": run.step,
                    **scores(kind, run, options.samplers, setting, seed),
                }
                path.write_text(json.dumps(found, indent=1))
                print(f"{kind}, seed {seed}: {json.dumps(found)}", file=sys.stderr, flush=True)
            if path.exists():
                records[kind, seed] = json.loads(path.read_text())
    print(markdown(records, options.seeds, options.cache))
    return 0


NAMES = {"gebm": "features from labels", "gebm-unlabelled": "features without labels"}


def markdown(records: dict[tuple[str, int], dict[str, Any]], seeds: list[int], folder: Path) -> str:
    """Format a row for each energy and seed, then ratios paired over seeds, and the same on pixels."""
    lines = [
        "| energy | seed | data | base | GEBM, beta = 1 | GEBM, beta by held-out data | GAN | VAE "
        "| gradients a draw | R-hat | seconds of GEBM, GAN, VAE |",
        "|" + "---|" * 11,
    ]
    ratios: list[str] = []
    for kind in ON_BASE:
        columns: dict[str, list[float]] = {}
        for seed in seeds:
            if (kind, seed) in records:
                others = {other: records[other, seed] for other in ("gan", "vae") if (other, seed) in records}
                row = _row(kind, seed, records[kind, seed], others, columns)
                seconds = [_seconds(folder, "base", seed) + _seconds(folder, kind, seed)]
                seconds += [_seconds(folder, other, seed) for other in others]
                lines.append(f"{row} {', '.join(f'{value:.0f}' for value in seconds)} |")
        for other, name in (("base", "its own base"), ("gan", "the GAN"), ("vae", "the VAE")):
            cells = [_ratio(columns.get(which, []), columns.get(other, [])) for which in ("one", "best")]
            pixels = _ratio(columns.get("one pixels", []), columns.get(f"{other} pixels", []))
            ratios.append(f"| {NAMES[kind]} | {name} | {' | '.join(cells)} | {pixels} |")
    headings = "| energy | GEBM over | beta = 1 | beta by held-out data | on pixels, beta = 1 |"
    return "\n".join([*lines, "", headings, "|" + "---|" * 5, *ratios])


def _seconds(folder: Path, kind: str, seed: int) -> float:
    """Return the seconds of training, as the study's clock measured them."""
    seconds: float = json.loads((folder / f"{kind}-{seed}.lengths.json").read_text())["seconds"]
    return seconds


def _row(
    kind: str, seed: int, record: dict[str, Any], others: dict[str, dict[str, Any]], columns: dict[str, list[float]]
) -> str:
    """Format one line of the table, and add its figures to ``columns``."""
    one, best = (record["gebm"][record[key]] for key in ("chosen_at_one", "chosen"))
    values = {"base": record["base"], "one": one["fid"], "best": best["fid"]}
    values |= {other: found["base"] for other, found in others.items()}
    pixels = {"base": record["base_pixels"], "one": one["pixels"]}
    pixels |= {other: found["base_pixels"] for other, found in others.items()}
    for name, found in {**values, **{f"{name} pixels": found for name, found in pixels.items()}}.items():
        columns.setdefault(name, []).append(fmean(found))
    cells = [f"{record['data']:.2f}"]
    for name in ("base", "one", "best", "gan", "vae"):
        chosen = f" ({record['chosen']})" if name == "best" else ""
        cells.append(f"{fmean(values[name]):.2f}{chosen}" if name in values else "")
    cost = f"{one['grad_evals_per_draw']:.0f} / {best['grad_evals_per_draw']:.0f}"
    rhat = f"{one['rhat']:.2f} / {best['rhat']:.2f}"
    return f"| {NAMES[kind]} | {seed} | {' | '.join(cells)} | {cost} | {rhat} |"


def _ratio(first: list[float], second: list[float]) -> str:
    if not first or len(first) != len(second):
        return ""
    if len(first) == 1:
        return f"{first[0] / second[0]:.2f}"
    found = paired_ratio(first, second).estimate
    return f"{found.value:.2f} ({found.low:.2f}-{found.high:.2f})"


if __name__ == "__main__":
    sys.exit(main())
