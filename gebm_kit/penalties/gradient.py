"""Gradient penalty on interpolates between data and base draws.

References:
    Improved Training of Wasserstein GANs. I. Gulrajani et al., NeurIPS 2017. https://arxiv.org/abs/1704.00028
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033
    (Section 3.1: the energy's class must be regular enough for KALE to see mismatched supports)
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from gebm_kit.core import reduce
from gebm_kit.core.classes import scored
from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Batch, Energy, Penalty


def squared_gradient_norm(energy: Energy, x: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return ``|grad_x E(x)|^2`` of each row, differentiable in the energy's parameters; (B, *D) -> (B,).

    Args:
        labels: classes of the rows, (B,), for a conditional energy.
    """
    x = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(scored(energy, x, labels).sum(), x, create_graph=True)
    return grad.flatten(1).square().sum(1)


class GradientPenalty(Penalty):
    """The penalty ``weight * E[(|grad E(x)| - centre)^2]`` at ``x = u x_P + (1 - u) x_B``, u uniform on [0, 1] for each row.

    The defaults, centre 0 and weight 0.1, are those of the GEBM authors' implementation. The penalty is then
    ``weight * E[|grad E|^2]``. It favours a flat energy and makes KALE a smooth distance. Centre 1 is WGAN-GP's penalty,
    which favours a slope of one.

    Args:
        weight: weight of the penalty in the energy loss.
        every: energy steps from one evaluation to the next. The engine multiplies the penalty by this number, so its mean
            force stays the same.
        centre: slope that the penalty favours.

    Raises:
        UsageError: an argument is outside its range; at evaluation, the batch has no data.
    """

    def __init__(
        self,
        weight: Annotated[float, Range(0, None)] = 0.1,
        every: Annotated[int, Range(1, None)] = 1,
        centre: Annotated[float, Range(0, None)] = 0.0,
    ) -> None:
        super().__init__()
        check_arguments(self, weight=weight, every=every, centre=centre)
        self.weight = float(weight)
        self.every = every
        self.centre = float(centre)

    def forward(self, energy: Energy, batch: Batch, generator: torch.Generator) -> Tensor:
        if batch.x is None:
            raise UsageError("the gradient penalty needs data, and the batch has none")
        share = reduce.rand_rows(batch.x, generator)
        between = torch.lerp(batch.x_base.detach().to(batch.x.dtype), batch.x, share)
        squared = squared_gradient_norm(energy, between)
        if self.centre > 0:
            # Adding the smallest normal number keeps the root's derivative finite where the gradient vanishes.
            slope = (squared + torch.finfo(squared.dtype).tiny).sqrt()
            squared = (slope - self.centre).square()
        return self.weight * reduce.mean(squared)
