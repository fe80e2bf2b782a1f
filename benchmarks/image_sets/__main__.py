"""Train the shipped image recipe on five sets of images, ten minutes of one core each, against a GAN of the same networks.

    python -m benchmarks.image_sets --folder SETS [--fashion FOLDER] [--cache DIR] [--minutes 10] [--seeds 0 1 2]
                                    [--sets fashion-mnist mnist5k digits emoji icons] [--models gebm gan] [--table]

``SETS`` is what `benchmarks.image_sets.prepare` wrote. The minutes are training time; the cycles that fill them are counted
once for each set, on CPU time. Everything is done by the code of ``gebm-kit train``, its evaluation included: sampler, beta
and number of draws are those of the recipe. Records are kept in ``--cache``; an interrupted study resumes. Two processes may
work on one cache if their sets or models differ.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.image_sets.settings import ON_PIXELS, SETS
from benchmarks.image_sets.study import trained
from gebm_kit.engine.evaluation.intervals import paired_ratio

Record = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the prepared sets")
    parser.add_argument(
        "--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="of the idx files"
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmark-image-sets"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--models", nargs="+", default=["gebm", "gan"], choices=["gebm", "gan"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print existing records, run nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", UserWarning)
    folders = {"sets": options.folder.resolve(), "fashion": options.fashion.resolve()}
    found: dict[tuple[str, str, int], Record] = {}
    for seed in options.seeds:
        for name in options.sets:
            for model in options.models:
                kept = options.cache / f"{name}-{model}-{seed}.json"
                if kept.exists() or not options.table:
                    found[name, model, seed] = trained(name, model, seed, options.minutes, folders, options.cache)
    print(markdown(found))
    return 0


def markdown(found: dict[tuple[str, str, int], Record]) -> str:
    """Format a row for each set and seed, then the ratios over the seeds."""
    lines = [
        "| set | seed | data | base | GEBM | GAN | GEBM over base | 4x over 1x | E: share of the base-data gap | sampler "
        "| seconds of training, of evaluation |",
        "|" + "---|" * 11,
    ]
    pairs: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for (name, model, seed), record in found.items():
        if model == "gebm":
            lines.append(_row(record, found.get((name, "gan", seed)), pairs.setdefault(name, {})))
    lines += ["", "| set | seeds | GEBM over its base | GEBM over the GAN | the same on pixels |", "|" + "---|" * 5]
    for name, columns in pairs.items():
        count = len(columns["base"])
        cells = [_ratio(columns.get(key, [])) for key in ("base", "gan")]
        pixels = ", ".join(_ratio(columns.get(f"{key} pixels", [])) for key in ("base", "gan"))
        lines.append(f"| {name} | {count} | {' | '.join(cells)} | {pixels} |")
    return "\n".join(lines)


def _row(record: Record, gan: Record | None, columns: dict[str, list[tuple[float, float]]]) -> str:
    """Format one line, and add its figures to ``columns``."""
    metrics, equilibrium = record["eval"]["metrics"], record["eval"]["equilibrium"]
    for suffix, key in (("", "frechet"), (" pixels", ON_PIXELS.get(record["set"], "fid"))):
        own = metrics["gebm"][key]["value"]
        columns.setdefault(f"base{suffix}", []).append((own, metrics["base"][key]["value"]))
        if gan is not None:
            columns.setdefault(f"gan{suffix}", []).append((own, gan["eval"]["metrics"]["base"][key]["value"]))
    value = {name: metrics[name]["frechet"]["value"] for name in ("data", "base", "gebm")}
    other = "" if gan is None else f"{gan['eval']['metrics']['base']['frechet']['value']:.2f}"
    lengths = _interval(equilibrium["ratio"], equilibrium["longest"])
    seconds = f"{record['training'][1]:.0f}, {record['whole'][1] - record['training'][1]:.0f}"
    return (
        f"| {record['set']} | {record['seed']} | {value['data']:.2f} | {value['base']:.2f} | {value['gebm']:.2f} | {other} "
        f"| {value['gebm'] / value['base']:.2f} | {lengths} | {_interval(equilibrium['gap'])} "
        f"| {_sampler(record)} | {seconds} |"
    )


def _interval(estimate: dict[str, Any] | None, longest: int = 4) -> str:
    if estimate is None:
        return ""
    ends = "" if estimate["low"] is None else f" ({estimate['low']:.2f}-{estimate['high']:.2f})"
    return f"{estimate['value']:.2f}{ends}" + ("" if longest == 4 else f", {longest}x")


def _sampler(record: Record) -> str:
    reason = record["eval"]["diagnostics"]["sampler_reason"] or ""
    return reason.split(" ", 1)[0]


def _ratio(pairs: list[tuple[float, float]]) -> str:
    if not pairs:
        return ""
    if len(pairs) == 1:
        return f"{pairs[0][0] / pairs[0][1]:.2f}"
    found = paired_ratio([own for own, _ in pairs], [other for _, other in pairs]).estimate
    return f"{found.value:.2f} ({found.low:.2f}-{found.high:.2f})"


if __name__ == "__main__":
    sys.exit(main())
