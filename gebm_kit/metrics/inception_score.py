"""Inception Score: how confident a classifier is about each draw, and how varied the classes of all draws are."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, EvalContext, Metric
from gebm_kit.metrics.feature_space import Doubts, check_classes, feature_space


class InceptionScore(Metric):
    """``IS = exp( mean over draws of KL( p(c | x) || mean of p(c | x) ) )``, between 1 and the number of classes.

    The value is the mean score of ``splits`` parts of the shuffled draws, as published. With the same logits, seed and
    splits it equals torch-fidelity's. Higher is better only up to the value of data (``metrics.data``): the score looks at
    classes alone, compares with no data, and is maximal for a model that draws one image per class. It is biased downwards
    at finite N, and more so the smaller the parts are.

    The score needs a feature map with classes: the dataset's own classifier, or Inception with its 1,008 classes.

    Args:
        features: feature map with class probabilities; ``auto`` is ``classifier``, for labelled data.
        splits: parts that the draws are cut into.
        seed: seed of the shuffle, by numpy's legacy generator (``RandomState``), as in torch-fidelity; 2020 is its default.

    References:
        Improved Techniques for Training GANs. T. Salimans et al., NeurIPS 2016. https://arxiv.org/abs/1606.03498
        A Note on the Inception Score. S. Barratt, R. Sharma, 2018. https://arxiv.org/abs/1801.01973
    """

    ratio: ClassVar[bool] = False
    lower_is_better: ClassVar[bool | None] = False

    def __init__(
        self,
        features: str = "auto",
        splits: Annotated[int, Range(1, None)] = 10,
        seed: Annotated[int, Range(0, 2**32 - 1)] = 2020,
    ) -> None:
        check_arguments(self, splits=splits, seed=seed)
        self.features, self.splits, self.seed, self.least_rows = features, splits, seed, splits
        self._doubts = Doubts()

    def __call__(self, context: EvalContext) -> dict[str, float]:
        if len(context.samples) < self.splits:
            raise UsageError(
                f"metric inception-score cuts the draws into {self.splits} splits, but gets only {len(context.samples)}",
                hint="Draw more, or set fewer splits.",
            )
        space = feature_space(self.features, context)
        logits = space.logits(space.of(context.samples, "the draws"), "inception-score")
        part, classes = len(logits) // self.splits, logits.shape[1]
        if part < classes:
            self._doubts.warn(
                (part, classes),
                f"metric inception-score: parts of {part} draws are smaller than the {classes} classes, so no part can show "
                f"them all and the score is biased downwards (at most {part}). Draw more, or set fewer splits.",
            )
        order = np.random.RandomState(self.seed).permutation(len(logits))
        shuffled = logits[torch.from_numpy(order).to(logits.device)]
        ends = [index * len(logits) // self.splits for index in range(self.splits + 1)]
        scores = [score(shuffled[start:end]) for start, end in itertools.pairwise(ends)]
        return {"inception-score": float(torch.stack(scores).mean())}

    def check(self, dataset: Dataset) -> None:
        """Raise if the feature map does not exist, can't be used with the dataset or has no class probabilities."""
        check_classes(self.features, dataset, "inception-score")

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        space = feature_space(self.features, context)
        return {"samples": len(context.samples), **space.protocol(), "splits": self.splits, "shuffle_seed": self.seed}


def score(logits: Tensor) -> Tensor:
    """Return ``exp(mean KL(p || mean p))`` of one part, (N, K) -> (); in logarithms, so that no probability becomes 0."""
    log_p = logits.log_softmax(1)
    log_marginal = log_p.logsumexp(0) - torch.log(torch.tensor(float(len(logits)), dtype=logits.dtype))
    # a class of probability zero adds nothing, whatever its logarithms are
    terms = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_marginal))
    return terms.sum(1).mean().exp()
