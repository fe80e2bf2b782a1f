"""A model with classes as a classifier: accuracy and calibration of its class probabilities on labelled rows.

With p_i the probabilities of row i by Bayes' rule and y_i its label, over n rows:

- *accuracy*: share of rows whose most probable class is y_i, with Wilson's interval;
- *nll*: mean of ``-log p_i(y_i)`` in nats, and *brier*: mean of ``sum_y (p_i(y) - 1[y = y_i])^2``, with Student's intervals;
- *calibration_error*: rows are sorted by confidence ``max_y p_i(y)`` into `BINS` bins of equal width, and the distance
  between mean confidence and accuracy is averaged over the bins by their rows. Noise alone makes it larger than zero.

A model whose base has classes and no density has no class probabilities: see
`gebm_kit.engine.likelihood.class_densities`. Then the accuracy is that of the energy's part alone, and the rest is None.

References:
    On Calibration of Modern Neural Networks. C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, ICML 2017.
    https://arxiv.org/abs/1706.04599 (the expected calibration error with 15 bins)
    Probable inference, the law of succession, and statistical inference. E. B. Wilson, JASA 1927.
    https://doi.org/10.1080/01621459.1927.10502953
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.files import plain
from gebm_kit.engine.evaluation.intervals import Estimate, mean_interval
from gebm_kit.engine.likelihood.class_densities import ENERGY_PART, ClassRows

BINS = 15
"""Bins of confidence, of equal width, as in Guo et al. (2017)."""

NORMAL = 1.959963984540054
"""Quantile of the standard normal for a 95 % interval."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows whose confidence is above ``low`` and at most ``high``: their number, mean confidence and accuracy."""

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Classification:
    """How well a model tells the classes of labelled rows.

    Attributes:
        law: ``bayes``, or ``energy-part`` where there are no probabilities (``reason`` says why).
        rows: labelled rows that were classified.
        undefined: further rows that no class can have made; they are left out.
        accuracy: share of rows whose class is found.
        majority: accuracy of naming always the most frequent class of these rows.
        nll, brier, calibration_error: see above; None without probabilities.
        bins: the bins behind ``calibration_error``; empty without probabilities.
        of_classes: accuracy among the rows of each class, by label; None for a class without rows.
    """

    law: str
    rows: int
    undefined: int
    accuracy: Estimate
    majority: float
    nll: Estimate | None = None
    brier: Estimate | None = None
    calibration_error: float | None = None
    bins: tuple[Bin, ...] = ()
    of_classes: dict[str, float | None] | None = None

    @property
    def reason(self) -> str | None:
        """Why there are no probabilities, in words; None where there are some."""
        return ENERGY_PART if self.law == "energy-part" else None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON, without ``of_classes``."""
        found = {
            "law": self.law,
            "reason": self.reason,
            "rows": self.rows,
            "undefined": self.undefined,
            "accuracy": self.accuracy.as_dict(),
            "majority": self.majority,
            "nll": None if self.nll is None else self.nll.as_dict(),
            "brier": None if self.brier is None else self.brier.as_dict(),
            "calibration_error": self.calibration_error,
            "bins": [asdict(one) for one in self.bins],
        }
        known: dict[str, Any] = plain(found)
        return known


def classified(rows: ClassRows, labels: Tensor) -> Classification | None:
    """Compare the most probable classes, and their probabilities, with the labels, (N,); None where no row is left."""
    scores = rows.log_probabilities() if rows.law == "bayes" else -rows.energy
    known = ~scores.isnan().any(1) & (scores.amax(1) > -math.inf)
    scores, labels = scores[known], labels.cpu()[known]
    if not len(labels):
        return None
    right = scores.argmax(1) == labels
    counts = torch.bincount(labels, minlength=scores.shape[1])
    hits = torch.bincount(labels[right], minlength=scores.shape[1])
    found = [(int(hit), int(count)) for hit, count in zip(hits, counts, strict=True)]
    common: dict[str, Any] = {
        "law": rows.law,
        "rows": len(labels),
        "undefined": int((~known).sum()),
        "accuracy": share_interval(int(right.sum()), len(labels)),
        "majority": int(counts.max()) / len(labels),
        "of_classes": {str(k): hit / count if count else None for k, (hit, count) in enumerate(found)},
    }
    if rows.law != "bayes":
        return Classification(**common)
    probabilities = scores.exp()
    truth = torch.nn.functional.one_hot(labels, scores.shape[1])
    confidence = probabilities.amax(1)
    bins = bins_of(confidence, right)
    gaps = [
        abs(b.confidence - b.accuracy) * b.rows for b in bins if b.confidence is not None and b.accuracy is not None
    ]
    return Classification(
        **common,
        nll=mean_interval((-scores.gather(1, labels[:, None]).squeeze(1)).tolist()),
        brier=mean_interval((probabilities - truth).square().sum(1).tolist()),
        calibration_error=sum(gaps) / len(labels),
        bins=bins,
    )


def bins_of(confidence: Tensor, right: Tensor) -> tuple[Bin, ...]:
    """Sort rows by confidence, (N,) in (0, 1], into `BINS` bins of equal width; ``right`` says whose class is found."""
    places = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    found = []
    for place in range(BINS):
        its = places == place
        some = bool(its.any())
        found.append(
            Bin(
                place / BINS,
                (place + 1) / BINS,
                int(its.sum()),
                float(confidence[its].mean()) if some else None,
                float(right[its].double().mean()) if some else None,
            )
        )
    return tuple(found)


def share_interval(hits: int, num: int) -> Estimate:
    """Return a share and Wilson's 95 % interval, which holds for shares near 0 and 1 too."""
    share, square = hits / num, NORMAL**2
    centre = (share + square / (2 * num)) / (1 + square / num)
    half = NORMAL * math.sqrt(share * (1 - share) / num + square / (4 * num**2)) / (1 + square / num)
    return Estimate(share, max(centre - half, 0.0), min(centre + half, 1.0), num)
