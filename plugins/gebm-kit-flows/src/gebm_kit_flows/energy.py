"""The energy of a flow.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033
    (Section 5 and Appendix E, the experiments on density estimation)
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from torch import Tensor

from gebm_kit.core.classes import checked_classes, own_labels
from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import RecipeError
from gebm_kit.core.interfaces import Energy
from gebm_kit.core.layers import Activation, check_sizes
from gebm_kit_flows.transforms import log_normal, maf, nsf, realnvp

SPLINE_BINS = 8
"""Bins of each spline, as by default in the ``nsf`` base."""


class FlowEnergy(Energy):
    """Minus the log-density of a flow, ``E(x) = ½|T(x)|² + D/2 log 2π - log |det dT/dx|``; (B, *D) -> (B,).

    It takes one pass of the networks. It grows without bound away from the data, so the tilted model's mass can't move far
    out. With a flow of the same kind as the base, the two together can express a ratio of densities.

    Args:
        flow: the kind of flow.
        transforms: number of layers.
        hidden: widths of the hidden layers of each network.
        activation: activation of the networks.
        conditional: whether the energy is that of a flow of each class, for data with labels. The networks then take a
            learned vector of the class beside their input.
        data_shape: ``*D``.
        num_classes: number of classes of the data, or None.

    Raises:
        RecipeError: a width is below 1, or the data have one dimension.
        UsageError: another argument is outside its range; ``conditional`` is set for data without labels.
    """

    def __init__(
        self,
        flow: Literal["maf", "nsf", "realnvp"] = "maf",
        transforms: Annotated[int, Range(1, None)] = 5,
        hidden: list[int] = [128, 128],  # noqa: B006  (read only)
        activation: Activation = "relu",
        conditional: bool = False,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        num_classes: Annotated[int | None, Injected] = None,
    ) -> None:
        super().__init__()
        check_arguments(self, flow=flow, transforms=transforms, activation=activation)
        check_sizes("hidden", hidden)
        dim = math.prod(data_shape)
        if dim < 2:
            raise RecipeError(f"the flow energy needs data of at least 2 dimensions; these have {dim}")
        self.conditional = conditional
        self.num_classes = classes = checked_classes("the flow energy", num_classes, conditional)
        match flow:
            case "maf":
                self.bijection = maf(dim, transforms, hidden, activation, classes)
            case "nsf":
                self.bijection = nsf(
                    dim, transforms, hidden, activation, SPLINE_BINS, coupling=False, num_classes=classes
                )
            case "realnvp":
                self.bijection = realnvp(dim, transforms, hidden, activation, classes)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = own_labels("energy", self, labels)
        z, log_det = self.bijection.with_log_det(x.flatten(1), labels)
        return -(log_normal(z) + log_det)
