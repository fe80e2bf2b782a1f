"""Tilt a GAN of Fashion-MNIST, trained here, by a scorer: the posterior against best-of-N and gradient ascent.

    python -m benchmarks.tilt --data FOLDER --out DIR [--seeds 0 1 2] [--run RUN] [--steps 2000] [--samples 400]
                              [--threads 1] [--parts frontier classes partition] [--json]

FOLDER holds Fashion-MNIST's four idx files. For each seed a plain GAN (dcgan of width 16, logistic loss, r1) is trained,
or --run names one that all seeds share, and two classifiers of other shapes are: the scorer, a TorchScript program that
returns the log-odds of the class `TARGET`, and a judge, which takes no part in anything but the shares that are reported.
Three parts:

- frontier: the betas at which the posterior has the KL of best-of-4, of best-of-16 and of best-of-64, found by importance
  weights of separate base draws, and two beyond. Differences of mean scores are paired by seed, with Student's t intervals.
  Best-of-N has at least as many evaluations behind it as the posterior. Gradient ascent is compared at the lower bound of
  its KL, where the posterior's score is read off the chord between two betas, which lies below the true frontier.
- classes: energy `classifier`, for each class, at beta 1: the share of draws that the judge gives the asked class.
- partition: log Z by annealing (smc) against importance sampling from other base draws, where that is reliable.

Everything is kept in DIR, and an interrupted study resumes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gebm_kit as gk
from benchmarks.classifiers import interval, trained
from benchmarks.records import Recorded
from gebm_kit.core.estimators import pareto_k
from gebm_kit.core.model import LatentPotential
from gebm_kit.core.trust import trust_programs
from gebm_kit.data.idx import Idx
from gebm_kit.engine.likelihood.estimate_log_partition import estimate_log_partition
from gebm_kit.engine.run_directory.run import Run
from gebm_kit.engine.tilting.base_pool import best_of_kl
from gebm_kit.engine.tilting.subjects import Facts, subject_of

TARGET = 8
"""The class that the scorer likes: bags."""

CLASSES = 10

STEPS, SMOOTHING = 1200, 0.02
"""Training steps and label smoothing of the scorer and of the judge."""

GAN = [
    "loss=logistic", "train.penalty={name: r1, weight: 5.0, every: 4}", "train.noise=0.1", "train.final.steps=0",
    "train.final.loss=null", "sampler=imh", "sample={num_chains: 50, num_samples: 500, warmup: 0, steps: 1, thin: 1}",
    "eval={metrics: [frechet], num_samples: 500, num_sets: 2, log_partition: importance-sampling}",
]  # fmt: skip
"""Overrides that make the recipe `fashion_mnist` a plain GAN."""

NUM_BASE = 8_192
"""Base draws that a tilt scores."""

POOL = 16_384
"""Other base draws, which find the betas and give log Z by importance sampling."""

RELIABLE = 0.5
"""Pareto k of importance weights below which their mean has a standard error that can be trusted."""


class LogOdds(nn.Module):
    """A classifier's log-odds of one class, ``log p / (1 - p)``; (B, 1, 28, 28) -> (B,)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        others = torch.cat([logits[:, :8], logits[:, 9:]], 1)  # TARGET is 8
        return logits[:, 8] - others.logsumexp(1)


def classifier(width: int, kernel: int) -> nn.Module:
    """Build a classifier, (B, 1, 28, 28) -> logits (B, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, width, kernel, 2, kernel // 2), nn.ReLU(), nn.Conv2d(width, 2 * width, kernel, 2, kernel // 2),
        nn.ReLU(), nn.Flatten(), nn.Linear(2 * width * 49, 128), nn.ReLU(), nn.Linear(128, CLASSES),
    )  # fmt: skip


class Subjects:
    """The GAN, the scorer and the judge of one seed; made once, and kept in a folder."""

    def __init__(self, data: Path, folder: Path, seed: int, steps: int, given: Path | None) -> None:
        self.seed, self.dataset = seed, Idx(str(data))
        words = [
            f"data={{name: idx, path: {json.dumps(str(data))}}}",
            *GAN,
            f"train.seed={seed}",
            f"train.steps={steps}",
        ]
        self.run: Run = (
            gk.load_run(given) if given else gk.train("fashion_mnist", words, out=folder / "gan", resume=True)
        )
        self.scorer = folder / "scorer.pt"
        self.judge = self._network(folder / "judge.pt", 32, 5, 100 + seed)
        if not self.scorer.exists():
            network = self._network(folder / "classifier.pt", 16, 3, seed)
            torch.jit.script(LogOdds(network).eval()).save(str(self.scorer))

    def _network(self, path: Path, width: int, kernel: int, seed: int) -> nn.Module:
        if path.exists():
            return torch.jit.load(str(path))
        torch.manual_seed(seed)
        network = classifier(width, kernel)
        trained(network, self.dataset.split("train"), self.dataset.labels("train"), seed, STEPS, SMOOTHING)
        found = torch.jit.script(network)
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(str(path))
        return found

    def accuracy(self) -> float:
        """Return the judge's accuracy on the test part."""
        rows, labels = self.dataset.split("test"), self.dataset.labels("test")
        found = torch.cat([self.judge(rows.batch(part)).argmax(1) for part in torch.arange(len(rows)).split(1000)])
        return float((found == labels).double().mean())

    def share(self, x: Tensor, label: int) -> float:
        """Return the share of draws that the judge gives a class."""
        return float((torch.cat([self.judge(part).argmax(1) for part in x.split(1000)]) == label).double().mean())

    @torch.no_grad()
    def base_scores(self, scorer: Callable[[Tensor], Tensor]) -> Tensor:
        """Return scores of `POOL` base draws that nothing else uses, float64."""
        base = self.run.model.base.eval()
        z = torch.randn(POOL, base.latent_dim, generator=torch.Generator().manual_seed(10_000 + self.seed))
        return torch.cat([scorer(base(part)) for part in z.split(1024)]).double()


# --- what importance weights say -------------------------------------------------------------------------------------


def log_partition(score: Tensor, beta: float) -> float:
    """Return ``log mean exp(beta r)``."""
    return float((beta * score).logsumexp(0)) - math.log(len(score))


def kl(score: Tensor, beta: float) -> float:
    """Return the KL of the tilted law by self-normalised importance weights."""
    return beta * float(((beta * score).softmax(0) * score).sum()) - log_partition(score, beta)


def beta_of(score: Tensor, wanted: float) -> float:
    """Return the beta with a given KL."""
    low, high = 0.0, 20.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if kl(score, middle) < wanted else (low, middle)
    return low


# --- parts -----------------------------------------------------------------------------------------------------------

SIZES = (4, 16, 64)
"""Numbers of best-of-N."""

BEYOND = (5.0,)
"""KL of a further beta; best-of-N would need an N of 400."""


def frontier(subjects: Subjects, options: argparse.Namespace) -> dict[str, Any]:
    """Tilt at the KLs of best-of-N and beyond."""
    with trust_programs():
        score = subjects.base_scores(torch.jit.load(str(subjects.scorer)))
        betas = [beta_of(score, kl) for kl in (*map(best_of_kl, SIZES), *BEYOND)]
        found = gk.tilt(
            subjects.run, subjects.scorer, betas=betas, data=subjects.dataset, num_samples=options.samples,
            num_base=NUM_BASE, seed=subjects.seed,
        )  # fmt: skip
    levels = []
    for level in found.levels:
        row = {k: v for k, v in level.as_dict().items() if k not in ("sampler_reason", "log_partition")}
        levels.append({**row, "share": subjects.share(level.draws.x, TARGET), "k": pareto_k(level.beta * score)})
    return {
        "levels": levels,
        "best_of": [best.as_dict() for best in found.best_of],
        "ascent": [climb.as_dict() for climb in found.ascent],
        "base_score": float(score.mean()),
        "judge_accuracy": subjects.accuracy(),
    }


def partition(subjects: Subjects, options: argparse.Namespace) -> dict[str, Any]:
    """Compare log Z by annealing with importance sampling from other base draws, at betas where that is reliable."""
    with trust_programs():
        score = subjects.base_scores(torch.jit.load(str(subjects.scorer)))
        model = subject_of(
            subjects.run, subjects.scorer, Facts(subjects.dataset), None, label=None, with_data=False
        ).model
    rows = []
    for beta in (beta_of(score, wanted) for wanted in (0.636, 1.835)):
        weights = (beta * (score - score.max())).exp()
        some = -beta * score[:1024]
        generator = torch.Generator().manual_seed(subjects.seed)
        with LatentPotential(model, beta, block_size=256) as potential:
            smc = estimate_log_partition(potential, some[:512], some[512:], generator, torch.float32, method="smc")
        rows.append(
            {
                "beta": beta,
                "k": pareto_k(beta * score),
                "importance": log_partition(score, beta),
                "importance_se": float(weights.std() / weights.mean()) / math.sqrt(len(weights)),
                "smc": smc.value,
                "smc_se": smc.se,
            }
        )
    return {"rows": rows}


def classes(subjects: Subjects, options: argparse.Namespace) -> dict[str, Any]:
    """Draw each class by energy `classifier`, and have the judge look."""
    rows = []
    for label in range(CLASSES):
        node = {"name": "classifier", "target": label}
        model = subject_of(subjects.run, node, Facts(subjects.dataset), None, label=None, with_data=False).model
        draws = gk.sample(model, "auto", num_samples=options.samples // 2, seed=subjects.seed)
        found = draws.diagnostics
        rows.append(
            {
                "label": label,
                "share": subjects.share(draws.x, label),
                "converged": found.converged,
                "evaluations": (found.forward_evals + 3 * found.grad_evals) / len(draws.x),
            }
        )
    base = subjects.run.model.base.eval()
    with torch.no_grad():
        z = torch.randn(4096, base.latent_dim, generator=torch.Generator().manual_seed(subjects.seed))
        x = torch.cat([base(part) for part in z.split(1024)])
    return {"rows": rows, "base": [subjects.share(x, label) for label in range(CLASSES)]}


PARTS = {"frontier": frontier, "partition": partition, "classes": classes}


class Job(Recorded):
    """One part of the study on one seed."""

    def __init__(self, part: str, seed: int, options: argparse.Namespace) -> None:
        self.part, self.seed, self.options = part, seed, options

    @property
    def settings(self) -> dict[str, Any]:
        return {"run": str(self.options.run), "steps": self.options.steps, "samples": self.options.samples}

    def path(self, folder: Path) -> Path:
        return folder / f"{self.part}-{self.seed}.json"


# --- the tables ------------------------------------------------------------------------------------------------------


def chord(found: dict[str, Any], wanted: float) -> float | None:
    """Return the posterior's mean score at a KL, on the chord between neighbouring betas; None beyond the last."""
    points = [(0.0, found["base_score"]), *((v["kl"]["value"], v["score"]["value"]) for v in found["levels"])]
    for (left, low), (right, high) in itertools.pairwise(points):
        if left <= wanted <= right:
            return low + (high - low) * (wanted - left) / (right - left)
    return None


def show_frontier(found: list[dict[str, Any]]) -> None:
    print(
        "\n| N | KL of best-of-N | KL of the posterior | posterior's score | best-of-N's score | difference, paired |"
    )
    print("|---|---|---|---|---|---|")
    for i, n in enumerate(SIZES):
        levels, bests = [f["levels"][i] for f in found], [f["best_of"][i + 1] for f in found]
        gaps = [v["score"]["value"] - b["score"]["value"] for v, b in zip(levels, bests, strict=True)]
        scores = [interval([row["score"]["value"] for row in rows]) for rows in (levels, bests)]
        kls = interval([v["kl"]["value"] for v in levels])
        print(f"| {n} | {best_of_kl(n):.3f} | {kls} | {' | '.join(scores)} | {interval(gaps)} |")
    print("\n| beta | KL | score | judged the class | diversity | best-of-N's diversity | evaluations a draw | R-hat |")
    print("|---|---|---|---|---|---|---|---|")
    for i in range(len(SIZES) + len(BEYOND)):
        levels = [f["levels"][i] for f in found]
        other = interval([f["best_of"][i + 1]["diversity"]["value"] for f in found]) if i < len(SIZES) else ""
        columns = [
            [v["beta"] for v in levels],
            [v["kl"]["value"] for v in levels],
            [v["score"]["value"] for v in levels],
        ]
        columns += [[v["share"] for v in levels], [v["diversity"]["value"] for v in levels]]
        rhat = max(v["nested_rhat_max"] or v["rhat_max"] for v in levels)
        cost = statistics.mean(v["evaluations"] for v in levels)
        print(f"| {' | '.join(map(interval, columns))} | {other} | {cost:.0f} | {rhat:.3f} |")
    show_ascent(found)
    print(f"\njudge's accuracy: {[round(f['judge_accuracy'], 3) for f in found]}")
    print(f"samplers: {[[v['sampler'] for v in f['levels']] for f in found]}")


def show_ascent(found: list[dict[str, Any]]) -> None:
    print("\n| steps | evaluations | KL at least | score | posterior's score at that KL | difference | diversity |")
    print("|---|---|---|---|---|---|---|")
    for steps in sorted({a["steps"] for f in found for a in f["ascent"]}):
        rows = [(f, a) for f in found for a in f["ascent"] if a["steps"] == steps]
        if len(rows) < len(found):
            continue
        there = [chord(f, a["kl_at_least"]) for f, a in rows]
        own = [a["score"]["value"] for _, a in rows]
        known = [value for value in there if value is not None]
        pairs = ["beyond the last beta", ""]
        if len(known) == len(there):
            pairs = [interval(known), interval([t - o for t, o in zip(known, own, strict=True)])]
        bounds, spreads = [a["kl_at_least"] for _, a in rows], [a["diversity"]["value"] for _, a in rows]
        print(
            f"| {steps} | {3 * steps} | {interval(bounds)} | {interval(own)} | {' | '.join(pairs)} | {interval(spreads)} |"
        )


def show_partition(found: list[dict[str, Any]]) -> None:
    print("\n| seed | beta | Pareto k | log Z, importance | log Z, annealing | difference in standard errors |")
    print("|---|---|---|---|---|---|")
    for seed, one in enumerate(found):
        for row in one["rows"]:
            off = (row["smc"] - row["importance"]) / math.hypot(row["smc_se"], row["importance_se"])
            note = "" if row["k"] < RELIABLE else ", not reliable"
            ways = [f"{row[way]:.4f} ± {row[f'{way}_se']:.4f}" for way in ("importance", "smc")]
            print(f"| {seed} | {row['beta']:.3f} | {row['k']:.2f}{note} | {' | '.join(ways)} | {off:+.1f} |")


def show_classes(found: list[dict[str, Any]]) -> None:
    shares = [[row["share"] for row in one["rows"]] for one in found]
    rows = [row for one in found for row in one["rows"]]
    print("\n| share of the asked class, mean of ten classes | lowest class | base | evaluations a draw | converged |")
    print("|---|---|---|---|---|")
    print(
        f"| {interval([statistics.mean(one) for one in shares])} | {interval([min(one) for one in shares])} | "
        f"{interval([statistics.mean(one['base']) for one in found])} | "
        f"{statistics.mean(row['evaluations'] for row in rows):.0f} | "
        f"{sum(row['converged'] for row in rows)} of {len(rows)} |"
    )
    print(f"\nby class: {[round(statistics.mean(one[label] for one in shares), 3) for label in range(CLASSES)]}")


SHOW = {"frontier": show_frontier, "partition": show_partition, "classes": show_classes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--run", type=Path, help="a trained GAN, instead of one for each seed")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    for part in options.parts:
        for seed in options.seeds:
            job = Job(part, seed, options)
            if job.record(options.out) is None:
                subjects = Subjects(options.data, options.out / f"seed-{seed}", seed, options.steps, options.run)
                job.save(options.out, {"settings": job.settings, "found": PARTS[part](subjects, options)})
                print(f"{part}, seed {seed}: done", flush=True)
    for part in options.parts:
        found = [(Job(part, seed, options).record(options.out) or {})["found"] for seed in options.seeds]
        print(json.dumps({part: found}, indent=1)) if options.json else SHOW[part](found)


if __name__ == "__main__":
    main()
