"""Train a model with classes as its recipe says, and measure whether its draws are of the class that was asked for.

    python -m benchmarks.classes --out DIR [--recipe fashion_mnist_conditional] [--seeds 0 1 2] [--shared-base]
                                 [--clearer 1 2 4] [--threads 1] [-- OVERRIDE ...]

For each seed the recipe is trained and evaluated by the command's own code. A judge, a classifier of another shape that
takes no part in anything else, then tells the share of draws that are of the asked class, for the base and for the GEBM,
with as many draws of each class. The table has the Fréchet distances overall and class by class as the evaluation found
them, and the accuracy of the model as a classifier beside that of a plain classifier on the network of the final energy.

With --clearer each class is also drawn from the model times p(class | x)^W, by the energy `classifier`, for each W.

With --shared-base the base has no classes and the energy alone does: Bayes' rule is then exact whatever the base.
Everything is kept in DIR, and an interrupted study resumes.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gebm_kit as gk
from benchmarks.classifiers import interval, trained
from benchmarks.records import Recorded
from gebm_kit.core.datasets import SplitName
from gebm_kit.core.interfaces import HasLabels
from gebm_kit.core.progress import Progress
from gebm_kit.energies.classifier import ClassifierEnergy
from gebm_kit.energies.projected import ProjectedEnergy
from gebm_kit.energies.sum import SumEnergy
from gebm_kit.engine.run_directory.run import Run

PER_CLASS = 200
"""Draws of each class that the judge sees."""

JUDGE_STEPS = 1500
"""Steps of 128 rows by which the judge and the plain classifier learn, as many as the features of `projected`."""

CHAINS: dict[str, Any] = {"num_chains": 250, "warmup": 60, "steps": 40, "thin": 5}
"""Chains of the clearer draws, as in the recipe."""

SMALL = 16
"""Longest side of images that the judge sees as a vector."""


def judge_network(shape: Sequence[int], classes: int) -> nn.Module:
    """Build the judge, (B, C, H, W) -> logits (B, K): convolutions with maximum pooling, or an MLP for small images."""
    channels, height, width = shape
    if max(height, width) < SMALL:
        size = math.prod(shape)
        return nn.Sequential(nn.Flatten(), nn.Linear(size, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
                             nn.Linear(256, classes))  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(channels, 24, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(24, 48, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48 * (height // 4) * (width // 4), 128), nn.ReLU(),
        nn.Linear(128, classes),
    )  # fmt: skip


def plain_network(run: Run, classes: int) -> nn.Module:
    """Build a classifier of the network that the energy stands on: the trunk of `projected`, and one linear layer."""
    energy = run.model.energy
    if not isinstance(energy, ProjectedEnergy):
        return judge_network(run.model.base.data_shape, classes)
    trunk = copy.deepcopy(energy.trunk).requires_grad_(True).train()
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    return nn.Sequential(trunk, nn.Linear(energy.dim, classes))


def _labels(run: Run, part: SplitName) -> Tensor:
    assert isinstance(run.dataset, HasLabels)
    return run.dataset.labels(part)


@torch.no_grad()
def classified(network: nn.Module, x: Tensor) -> Tensor:
    """Return the most probable class of each row."""
    return torch.cat([network(part).argmax(1) for part in x.split(500)])


def accuracy(network: nn.Module, run: Run) -> float:
    """Return a classifier's accuracy on the test part."""
    rows = run.dataset.split("test")
    return float((classified(network, rows.first(len(rows))) == _labels(run, "test")).double().mean())


def words(seed: int, shared: bool, extra: Sequence[str]) -> list[str]:
    """Return the overrides of the recipe."""
    return [f"train.seed={seed}", f"eval.seed={seed}", *(["base.conditional=false"] if shared else []), *extra]


def known_rows(run: Run, seed: int) -> tuple[Any, ...]:
    """Return what a classifier of the study learns from."""
    return run.dataset.split("train"), _labels(run, "train"), seed, JUDGE_STEPS


def labels_asked(run: Run) -> Tensor:
    """Return the classes of the draws that the judge sees, as many of each."""
    assert run.model.num_classes is not None
    return torch.arange(run.model.num_classes).repeat(PER_CLASS)


def judge_of(run: Run, seed: int) -> nn.Module:
    """Train the judge of a seed."""
    assert run.model.num_classes is not None
    torch.manual_seed(1000 + seed)
    return trained(judge_network(run.model.base.data_shape, run.model.num_classes), *known_rows(run, seed))


class Job(Recorded):
    """One seed of the study."""

    def __init__(self, seed: int, options: argparse.Namespace) -> None:
        self.seed, self.options = seed, options
        self.name = f"{options.recipe}{'-shared' if options.shared_base else ''}-{seed}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"recipe": self.options.recipe, "shared": self.options.shared_base, "overrides": self.options.overrides}

    def path(self, folder: Path) -> Path:
        return folder / f"{self.name}.json"

    def run(self, folder: Path) -> dict[str, Any]:
        """Train, evaluate, draw, and let the judge look."""
        start, training = time.process_time(), 0.0

        def clock(report: Progress) -> None:
            nonlocal training
            if report.stage == "train":
                training = time.process_time() - start

        options = self.options
        chosen = words(self.seed, options.shared_base, options.overrides)
        run = gk.train(options.recipe, chosen, out=folder / self.name, resume=True, on_progress=clock)
        judge, labels = judge_of(run, self.seed), labels_asked(run)
        classes = len(labels) // PER_CLASS
        plain = trained(plain_network(run, classes), *known_rows(run, self.seed))
        draws = gk.sample(run, labels="all", num_samples=len(labels), seed=self.seed)
        base = run.model.base.eval()
        z = base.sample_prior(len(labels), torch.Generator().manual_seed(self.seed))
        with torch.no_grad():
            pairs = zip(z.split(500), labels.split(500), strict=True)
            x = torch.cat([run.model.decode(*pair) for pair in pairs])
        assert draws.labels is not None
        return {
            "training": training,
            "judge": accuracy(judge, run),
            "plain": accuracy(plain, run),
            "base": by_class(classified(judge, x), labels, classes),
            "gebm": by_class(classified(judge, draws.x), draws.labels, classes),
            "sampler": draws.diagnostics.as_dict(),
            "evaluation": run.evaluation,
        }


class Clearer(Job):
    """Draws of one seed's model times ``p(class | x)^weight``, for each weight."""

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "weights": self.options.clearer}

    def path(self, folder: Path) -> Path:
        return folder / f"{self.name}-clearer.json"

    def run(self, folder: Path) -> dict[str, Any]:
        """Let the judge look at the draws for each weight."""
        run = gk.load_run(folder / self.name)
        judge, labels = judge_of(run, self.seed), labels_asked(run)
        return {str(weight): self._drawn(run, weight, judge, labels) for weight in self.options.clearer}

    def _drawn(self, run: Run, weight: float, judge: nn.Module, labels: Tensor) -> dict[str, Any]:
        beta = run.evaluation["inverse_temperature"] if run.evaluation else 1.0
        classifier = ClassifierEnergy(data_shape=run.model.data_shape, num_classes=run.model.num_classes)
        classifier.fit(run.dataset, run.model.device, 0)
        clearer = gk.GEBM(run.model.base, SumEnergy([run.model.energy, classifier], [beta, weight]))
        clearer.class_weights.copy_(run.model.class_weights)
        draws = gk.sample(clearer, labels=labels, num_samples=len(labels), seed=self.seed, **CHAINS)
        scored = gk.evaluate(
            clearer, data=run.dataset, metrics=["frechet"], num_samples=2000, num_sets=3, seed=self.seed
        )
        assert draws.labels is not None
        return {
            "share": by_class(classified(judge, draws.x), draws.labels, len(labels) // PER_CLASS),
            "frechet": scored.metrics["gebm"]["frechet"].value,
            "base": scored.metrics["base"]["frechet"].value,
            "rhat": draws.diagnostics.rhat_max,
        }


def by_class(found: Tensor, asked: Tensor, classes: int) -> list[float]:
    """Return the share of rows of each asked class that are found to be of it."""
    return [float((found[asked == label] == label).double().mean()) for label in range(classes)]


def ratio(metrics: dict[str, Any]) -> str:
    """Return the Fréchet distance of the GEBM and of its base, and their ratio with its interval."""
    gebm, base, found = (metrics[column]["frechet"] for column in ("gebm", "base", "ratio"))
    low, high = found["low"], found["high"]
    between = "" if low is None else f" ({low:.2f} to {high:.2f})"
    return f"{gebm['value']:.2f} over {base['value']:.2f}: {found['value']:.2f}{between}"


def show(records: dict[int, dict[str, Any]]) -> None:
    """Print the tables."""
    print("| seed | asked class, base | asked class, GEBM | difference | Fréchet, GEBM over base | model as classifier | "
          "plain classifier | judge | CPU seconds of training |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for seed, one in records.items():
        base, gebm = statistics.mean(one["base"]), statistics.mean(one["gebm"])
        found = one["evaluation"]
        told = found["classifier"]
        law = "" if told["law"] == "bayes" else f" ({told['law']})"
        print(
            f"| {seed} | {base:.4f} | {gebm:.4f} | {gebm - base:+.4f} | {ratio(found['metrics'])} | "
            f"{told['accuracy']['value']:.3f}{law} | {one['plain']:.3f} | {one['judge']:.3f} | {one['training']:.0f} |"
        )
    gains = [statistics.mean(one["gebm"]) - statistics.mean(one["base"]) for one in records.values()]
    print(
        f"\nGEBM: {interval([statistics.mean(one['gebm']) for one in records.values()])}; over its base: {interval(gains)}"
    )
    print("\n| class | asked class, base | asked class, GEBM | Fréchet of the base | Fréchet of the GEBM |")
    print("|---|---|---|---|---|")
    first = next(iter(records.values()))
    for label in range(len(first["base"])):
        cells = [interval([one[kind][label] for one in records.values()]) for kind in ("base", "gebm")]
        for column in ("base", "gebm"):
            scores = [one["evaluation"]["classes"][str(label)]["metrics"] for one in records.values()]
            known = [score[column]["frechet"]["value"] for score in scores if "frechet" in score.get(column, {})]
            cells.append(interval(known, 2) if known else "")
        print(f"| {label} | {' | '.join(cells)} |")


def kept(job: Job, folder: Path) -> dict[str, Any]:
    """Return what a job found, from its record or by running it."""
    found = job.record(folder)
    if found is None:
        found = {"settings": job.settings, "found": job.run(folder)}
        job.save(folder, found)
    result: dict[str, Any] = found["found"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="fashion_mnist_conditional")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--shared-base", action="store_true")
    parser.add_argument("--clearer", nargs="*", type=float, default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print what is there, and train nothing")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", UserWarning)
    records, clearer = {}, []
    for seed in options.seeds:
        job = Job(seed, options)
        found = job.record(options.out) if options.table else {"found": kept(job, options.out)}
        if found is not None:
            records[seed] = found["found"]
            clearer += [] if options.table or not options.clearer else [kept(Clearer(seed, options), options.out)]
    if records:
        show(records)
    for weight in options.clearer if clearer else ():
        each = [found[str(weight)] for found in clearer]
        share, frechet = (
            interval([statistics.mean(one["share"]) for one in each]), interval([one["frechet"] for one in each], 2)
        )  # fmt: skip
        print(f"times p(class | x)^{weight:g}: asked class {share}; Fréchet {frechet}")


if __name__ == "__main__":
    main()
