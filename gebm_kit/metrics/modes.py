"""Modes covered and share of high-quality points, for toys whose modes are known."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.errors import RunFailed, UsageError
from gebm_kit.core.interfaces import Dataset, EvalContext, HasModes, Metric


class Modes(Metric):
    """Number of modes covered (``modes.covered``) and share of high-quality points (``modes.high_quality``).

    A point is of high quality when it lies within ``radius`` standard deviations of its nearest mode; a mode is covered when
    it has at least ``min_points`` such points. In two dimensions a true draw is of high quality with probability
    ``1 - exp(-radius^2 / 2)``, 0.9997 at 4.

    Args:
        radius: largest distance of a high-quality point, in standard deviations of its mode.
        min_points: high-quality points that it takes to cover a mode.

    References:
        VEEGAN: Reducing Mode Collapse in GANs using Implicit Variational Learning. A. Srivastava et al., NeurIPS 2017.
        https://arxiv.org/abs/1705.07761
    """

    ratio: ClassVar[bool] = False
    lower_is_better: ClassVar[bool | None] = False

    def __init__(
        self,
        radius: Annotated[float, Range(0, None, low_open=True)] = 4.0,
        min_points: Annotated[int, Range(1, None)] = 20,
    ) -> None:
        check_arguments(self, radius=radius, min_points=min_points)
        self.radius, self.min_points = radius, min_points

    def __call__(self, context: EvalContext) -> dict[str, float]:
        dataset = _with_modes(context.dataset)
        points = context.samples.double()
        if not bool(torch.isfinite(points).all()):
            raise RunFailed("the draws contain values that are not finite (NaN or infinity), so they can't be scored")
        distance, mode = torch.cdist(points, dataset.mode_centres.to(points)).min(dim=1)
        good = distance <= self.radius * dataset.mode_std
        counts = torch.bincount(mode[good], minlength=len(dataset.mode_centres))
        return {
            "modes.covered": float((counts >= self.min_points).sum()),
            "modes.high_quality": float(good.double().mean()),
        }

    def check(self, dataset: Dataset) -> None:
        """Raise if the modes of the dataset are not known."""
        _with_modes(dataset)

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        modes = len(_with_modes(context.dataset).mode_centres)
        return {**super().protocol(context), "modes": modes, "radius": self.radius, "min_points": self.min_points}


def _with_modes(dataset: object) -> HasModes:
    if not isinstance(dataset, HasModes):
        raise UsageError(
            "metric modes needs a dataset whose modes are known; for this one they are not",
            hint="It is meant for eight-gaussians and twenty-five-gaussians; remove it from eval.metrics.",
        )
    return dataset
