"""Frozen models, which are only evaluated: whatever does not depend on the input is computed once.

Parameters get no gradient and modules are in eval mode. Parametrised weights (spectral norm) become constants. A batch norm
behind a linear layer or a convolution is folded into that layer's weights, ``norm(W x + b) = W' x + b'``. This saves two
passes over the layer's output; results differ only by rounding. On a CPU, the weights of convolutions are stored channels
last, which makes the convolutions faster.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fusion
from torch.nn.utils.parametrize import ParametrizationList

Function = Callable[[Tensor], Tensor]

_LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@contextlib.contextmanager
def fixed(*modules: nn.Module) -> Iterator[None]:
    """Switch off the gradients of the modules' parameters inside the block; nothing else changes."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class Frozen:
    """A module held frozen until `restore`; in nested uses, the outermost one restores it."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._training = [m for m in module.modules() if m.training]
        self._replaced: list[nn.Module] = []
        for parameter in self._parameters:
            parameter.requires_grad_(False)
        for part in self._training:
            part.training = False
        with torch.no_grad():  # parametrised weights first: the steps below read them
            for weight in [m for m in module.modules() if isinstance(m, ParametrizationList)]:
                if "forward" not in weight.__dict__:
                    self._replace(weight, functools.partial(_constant, weight()))
            for part in module.modules():
                self._speed_up(part)

    def restore(self) -> None:
        """Undo the changes that this object made to the module."""
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        for part in self._training:
            part.training = True
        for part in self._replaced:
            del part.__dict__["forward"]
        self._parameters, self._training, self._replaced = [], [], []

    def _speed_up(self, part: nn.Module) -> None:
        if "forward" in part.__dict__:
            return
        if type(part).forward is nn.Sequential.forward:
            steps = _steps(cast(nn.Sequential, part))
            if steps is not None:
                self._replace(part, functools.partial(_in_turn, steps))
        elif _is_one_of(part, _CONVOLUTIONS) and cast(nn.Conv2d, part).weight.device.type == "cpu":
            self._replace(
                part, _convolution(part, cast(Tensor, part.weight).detach(), cast("Tensor | None", part.bias))
            )

    def _replace(self, part: nn.Module, forward: Callable[..., Tensor]) -> None:
        part.__dict__["forward"] = forward
        self._replaced.append(part)


def _constant(value: Tensor, *inputs: Tensor) -> Tensor:
    return value


def _in_turn(steps: list[Function], value: Tensor) -> Tensor:
    for step in steps:
        value = step(value)
    return value


def _steps(layers: nn.Sequential) -> list[Function] | None:
    """Return the layers' functions in order, each norm folded into the layer before it; None if no norm can be folded."""
    steps: list[Function] = []
    before: nn.Module | None = None
    for layer in layers:
        if before is not None and _can_fold(before, layer):
            steps[-1] = _folded(before, cast(nn.BatchNorm2d, layer))
            before = None
        else:
            steps.append(layer)
            before = layer
    return steps if len(steps) < len(layers) else None


def _can_fold(layer: nn.Module, norm: nn.Module) -> bool:
    if not (_is_one_of(layer, _LAYERS) and _is_one_of(norm, _NORMS)) or _hooked(layer) or _hooked(norm):
        return False
    if isinstance(layer, nn.ConvTranspose2d) and layer.groups > 1:
        return False
    norm = cast(nn.BatchNorm2d, norm)
    outputs = layer.out_features if isinstance(layer, nn.Linear) else cast(nn.Conv2d, layer).out_channels
    return norm.running_mean is not None and norm.num_features == outputs


def _is_one_of(part: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Return whether the part computes what one of ``kinds`` does; a subclass that overrides ``forward`` may not."""
    return any(isinstance(part, kind) and type(part).forward is kind.forward for kind in kinds)


def _hooked(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)


def _folded(layer: nn.Module, norm: nn.BatchNorm2d) -> Function:
    """Return one function that computes ``norm(layer(x))``."""
    weight, bias = cast(Tensor, layer.weight), cast("Tensor | None", layer.bias)
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale, shift = (norm.weight, norm.bias) if norm.affine else (torch.ones_like(mean), torch.zeros_like(mean))
    if not isinstance(layer, nn.Linear):
        weight, bias = fusion.fuse_conv_bn_weights(
            weight, bias, mean, variance, norm.eps, scale, shift, transpose=isinstance(layer, nn.ConvTranspose2d)
        )
        return _convolution(layer, weight.detach(), bias.detach())
    weight, bias = fusion.fuse_linear_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
    weight, bias = weight.detach(), bias.detach()

    def linear(x: Tensor) -> Tensor:
        # With more than two axes, the norm's channel axis is not the axis of the layer's outputs.
        return F.linear(x, weight, bias) if x.dim() == 2 else norm(layer(x))

    return linear


def _convolution(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
    """Return the convolution with other weights, stored channels last on a CPU, where that is faster."""
    if weight.device.type == "cpu":
        weight = weight.contiguous(memory_format=torch.channels_last)
    if not isinstance(layer, nn.ConvTranspose2d):
        return functools.partial(cast(nn.Conv2d, layer)._conv_forward, weight=weight, bias=bias)
    shape = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)

    def transposed(x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None:
            return nn.ConvTranspose2d.forward(layer, x, output_size)
        return F.conv_transpose2d(x, weight, bias, *shape)  # type: ignore[arg-type]  # its padding is never a string

    return transposed
