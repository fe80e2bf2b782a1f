"""Channels last: the order of the weights' elements in memory that convolutions are fastest with.

A convolution whose weights lie so returns its output so, and thereby the whole network follows. Numbers are the same up to
the rounding of sums. Weights in a checkpoint are in the usual order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def channels_last(model: nn.Module) -> None:
    """Lay out the weights of a model's two-dimensional convolutions with the channels last; other models are left alone."""
    if any(isinstance(part, nn.Conv2d | nn.ConvTranspose2d) for part in model.modules()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def lay_out_states(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimiser's tensors the layout of their parameters: its fused kernels walk through both in memory order."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)
