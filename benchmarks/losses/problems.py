"""Losses with the settings of the comparison, and its problems."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.kale_known_kl import Case

Node = dict[str, object]

LOSSES: dict[str, Node] = {
    "kale": {"name": "kale"},
    "kale-dv": {"name": "kale-dv"},
    "smile": {"name": "smile"},
    "flo": {"name": "flo"},
    "logistic": {"name": "logistic"},
    "hinge": {"name": "hinge"},
    "wasserstein": {"name": "wasserstein"},
    "cd": {"name": "cd", "steps": 5, "step_size": 0.1},
    "pcd": {"name": "pcd", "steps": 3, "step_size": 0.1},
    "kale, A by Adam": {"name": "kale", "update": "adam"},
    "kale-dv, average": {"name": "kale-dv", "moving_average": 0.9},
    "smile, clipped": {"name": "smile", "gradient": "clipped"},
    "pcd, data space": {"name": "pcd", "space": "data", "steps": 3, "step_size": 0.005},
}

VARIANTS = ("kale, A by Adam", "kale-dv, average", "smile, clipped", "pcd, data space")
"""Variants of a loss, which run with one seed only."""

WITHOUT_RATIO = ("hinge", "wasserstein", "pcd, data space")
"""Losses whose critic is not a log density ratio."""

LIPSCHITZ = {"name": "gradient", "weight": 10.0, "centre": 1.0, "every": 4}
"""The penalty of `wasserstein`; the recipe's asks for a flat energy and not for a slope of one."""


@dataclass(frozen=True)
class Problem:
    """A shipped recipe, shortened, and the metric that compares its runs.

    Attributes:
        recipe: its short name.
        metric: value name; smaller is better.
        steps, final_steps: cycles of its two phases.
        seeds: number of seeds.
        sample: settings of ``sample`` and ``eval``.
        also: a second value of the GEBM to report, or None.
    """

    recipe: str
    metric: str
    steps: int
    final_steps: int
    seeds: int
    sample: tuple[str, ...]
    also: str | None = None

    def overrides(self, loss: str, seed: int) -> list[str]:
        """Return the overrides of the recipe."""
        node = ", ".join(f"{key}: {value}" for key, value in LOSSES[loss].items())
        words = [
            f"loss={{{node}}}",
            f"train.steps={self.steps}",
            f"train.final.steps={self.final_steps}",
            f"train.seed={seed}",
            f"eval.seed={seed}",
            *self.sample,
        ]
        if loss == "wasserstein":
            penalty = "{" + ", ".join(f"{key}: {value}" for key, value in LIPSCHITZ.items()) + "}"
            words += [f"train.penalty={penalty}", f"train.final.penalty={penalty}"]
        return words


TOYS = (
    "eval.metrics=[sliced-wasserstein, modes]", "eval.num_samples=2500", "eval.num_sets=3", "sample.num_chains=500",
    "sampler={name: isir, num_candidates: 32}", "sample.warmup=20", "sample.steps=25", "sample.thin=5",
)  # fmt: skip
"""The sampler isir, whose jumps cross between modes.

A local kernel would not cross in so few steps, and the losses would then differ by where its chains were left.
"""

DIGITS = (
    "eval.metrics=[frechet]", "eval.num_samples=2000", "eval.num_sets=3", "sample.num_chains=250", "sample.warmup=60",
    "sample.steps=40", "sample.thin=5",
)  # fmt: skip

PROBLEMS = {
    "eight-gaussians": Problem("eight_gaussians", "sliced-wasserstein", 1200, 400, 3, TOYS, also="modes.high_quality"),
    "twenty-five-gaussians": Problem(
        "twenty_five_gaussians", "sliced-wasserstein", 1600, 600, 3, TOYS, also="modes.high_quality"
    ),
    "digits": Problem("quickstart", "frechet", 1200, 600, 1, DIGITS),
}

GAUSSIANS = [Case(differs, dim, kl) for differs in ("mean", "variance") for dim, kl in ((2, 1.0), (10, 2.0))]
"""Pairs of Gaussians of known divergence, for the losses that estimate a log-ratio."""

GAUSSIAN_SEEDS = 1
GAUSSIAN_CHAINS = {"step_size": 0.4}
"""Settings of `cd` and `pcd` for these pairs: smooth targets allow longer steps."""
