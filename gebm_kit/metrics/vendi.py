"""Vendi score: how many different draws there are in effect."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, EvalContext, Metric
from gebm_kit.metrics.feature_space import check_features, feature_space, normalised


class Vendi(Metric):
    """``VS = exp(-sum_i l_i log l_i)``, with l the eigenvalues of K / N and ``K_ij`` the cosine of draws i and j's features.

    The value is the effective number of different draws: 1 for N equal draws, N for N draws of orthogonal features. It can't
    exceed the number of features, and it grows with N, so compare values at the same N.

    The score looks at the draws alone and compares them with no data. Noise is more diverse than any data, so neither
    direction is better: read it beside the value of held-out data (``metrics.data.vendi``) and beside a figure of fidelity,
    such as the precision of ``prdc``. A value far below that of data means missing variety.

    The eigenvalues come from the smaller of the (N, N) matrix of cosines and the (F, F) matrix with the same spectrum. A row
    of zeros has no direction: as in the published code, it is similar to nothing.

    Args:
        features: feature map; ``auto`` is ``classifier`` for labelled data, else ``pixels``.

    References:
        The Vendi Score: A Diversity Evaluation Metric for Machine Learning. D. Friedman, A. B. Dieng, TMLR 2023.
        https://arxiv.org/abs/2210.02410
    """

    ratio: ClassVar[bool] = False
    lower_is_better: ClassVar[bool | None] = None

    def __init__(self, features: str = "auto") -> None:
        self.features = features

    def __call__(self, context: EvalContext) -> dict[str, float]:
        if len(context.samples) < 1:
            raise UsageError("metric vendi needs at least 1 draw, got 0")
        space = feature_space(self.features, context)
        return {"vendi": float(vendi(normalised(space.of(context.samples, "the draws"))))}

    def check(self, dataset: Dataset) -> None:
        """Raise if the feature map does not exist or can't be used with the dataset."""
        check_features(self.features, dataset, "vendi")

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        space = feature_space(self.features, context)
        return {"samples": len(context.samples), **space.protocol(), "similarity": "cosine"}


def vendi(rows: Tensor) -> Tensor:
    """Return the Vendi score of rows of length one, (N, F) -> ()."""
    matrix = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    shares = torch.linalg.eigvalsh(matrix / len(rows)).clamp_min(0.0)  # rounding makes some of them negative
    return torch.special.entr(shares).sum().exp()
