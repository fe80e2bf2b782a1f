"""Trying out components without leaving a trace: weights, buffers, attributes and random numbers are put back exactly."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_TABLES = ("_parameters", "_buffers")
"""Tables of a module that hold its own tensors by name."""


@contextlib.contextmanager
def preserved(*modules: nn.Module, device: torch.device | None = None) -> Iterator[None]:
    """Put back, after the block, everything that evaluating ``modules`` may change.

    That is: parameters, buffers and other tensors that a module holds, gradients, training modes, attributes that were set
    anew, and the states of torch's, numpy's and Python's random-number generators.

    Args:
        modules: the modules that the block evaluates.
        device: the device whose random numbers are put back as well as the CPU's.
    """
    cuda = [device] if device is not None and device.type == "cuda" else []
    kept = [_Kept(part) for module in modules for part in module.modules()]
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  # a component may draw from it
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        with torch.no_grad():
            for part in kept:
                part.restore()


class _Kept:
    """What one module holds itself, its parts left out."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        program = isinstance(module, torch.jit.ScriptModule)  # its tables can't be replaced, and neither can it
        self._attributes = {"training": module.training} if program else dict(vars(module))
        self._tables = {} if program else {name: dict(getattr(module, name)) for name in _TABLES}
        parameters, buffers = list(module.parameters(recurse=False)), list(module.buffers(recurse=False))
        held: list[Any] = [*self._attributes.values(), *parameters, *buffers]
        tensors = [
            value for value in held if isinstance(value, Tensor) and not is_lazy(value) and not value.is_inference()
        ]
        self._parameters = [(parameter, parameter.grad, parameter.requires_grad) for parameter in parameters]
        tensors += [grad for _, grad, _ in self._parameters if grad is not None]
        self._values = [(tensor, tensor.detach().clone()) for tensor in tensors]

    def restore(self) -> None:
        own = vars(self._module)
        if self._tables:
            for name in own.keys() - self._attributes.keys():
                del own[name]
            own.update(self._attributes)
        else:
            self._module.training = self._attributes["training"]
        for name, table in self._tables.items():
            now = getattr(self._module, name)
            now.clear()
            now.update(table)
        for tensor, value in self._values:
            if tensor.shape != value.shape:
                tensor.data = value
            elif not torch.equal(tensor.detach(), value):
                tensor.detach().copy_(value)
        for parameter, grad, wanted in self._parameters:
            parameter.requires_grad_(wanted)
            parameter.grad = grad
