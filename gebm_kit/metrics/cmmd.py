"""CLIP maximum mean discrepancy: squared MMD with a Gaussian kernel of fixed bandwidth on normalised embeddings."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from gebm_kit.core.interfaces import Dataset, EvalContext, Metric
from gebm_kit.metrics.feature_space import OfReference, check_features, check_num_rows, feature_space, normalised
from gebm_kit.metrics.mmd import kernel_sum

BANDWIDTH = 10.0
"""Bandwidth s of the kernel, as published (sigma in the authors' code)."""

SCALE = 1000.0
"""Factor on the squared MMD that makes values readable, as published."""


class Cmmd(Metric):
    """``CMMD = 1000 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y))``, ``k(a, b) = exp(-|a - b|^2 / (2 s^2))``, s = 10.

    The rows x of draws and y of reference data are CLIP embeddings divided by their length, as published; bandwidth and
    scale are the published ones too. Unlike FID it assumes no Gaussian law of the features, and it needs fewer rows.

    The means are over all pairs, those of a row with itself included. The value is therefore never negative, and biased
    upwards by about ``10 (v_x / N + v_y / M)`` for N draws and M reference rows, v being the variance of an embedding, which
    is at most 1. Compare values at the same numbers of rows. The value of held-out data (``metrics.data.cmmd``) shows the
    bias of equal laws.

    On other features than CLIP's the value is comparable only with values on the same features, which the protocol names.
    Draws are scored against held-out data (``cmmd``) and against training data (``cmmd.train``).

    Args:
        features: feature map; ``clip`` is in the plugin gebm-kit-inception. ``auto`` is ``classifier`` for labelled data,
            else ``pixels``.

    References:
        Rethinking FID: Towards a Better Evaluation Metric for Image Generation. S. Jayasumana et al., CVPR 2024.
        https://arxiv.org/abs/2401.09603
    """

    against_train: ClassVar[bool] = True

    least_rows = 2

    def __init__(self, features: str = "clip") -> None:
        self.features = features
        self._reference = OfReference(_Reference)

    def __call__(self, context: EvalContext) -> dict[str, float]:
        check_num_rows(context, self.least_rows, "cmmd")
        space = feature_space(self.features, context)
        x, reference = normalised(space.of(context.samples, "the draws")), self._reference(space, context)
        return {"cmmd": SCALE * (mean_kernel(x, x) + reference.within - 2.0 * mean_kernel(x, reference.rows))}

    def check(self, dataset: Dataset) -> None:
        """Raise if the feature map does not exist or can't be used with the dataset."""
        check_features(self.features, dataset, "cmmd")

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        space = feature_space(self.features, context)
        return {**super().protocol(context), **space.protocol(), "bandwidth": BANDWIDTH, "scale": SCALE}


class _Reference:
    """Normalised features of the reference, (M, F), and the mean of k over their pairs."""

    def __init__(self, features: Tensor) -> None:
        self.rows = normalised(features)
        self.within = mean_kernel(self.rows, self.rows)


def mean_kernel(x: Tensor, y: Tensor) -> float:
    """Return the mean of k over all pairs of rows; (N, F), (M, F)."""
    return kernel_sum(x, y, BANDWIDTH) / (len(x) * len(y))
