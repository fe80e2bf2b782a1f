"""Exponential moving average of a module's parameters.

References:
    The Unusual Effectiveness of Averaging in GAN Training. Y. Yazici et al., ICLR 2019. https://arxiv.org/abs/1806.04498
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

COUNT = "num_updates"
"""Key of the number of updates in an average's state; every other key names a tensor of the module."""


class EMA:
    """``average <- d average + (1 - d) parameter`` with ``d = min(decay, (1 + n) / (10 + n))`` at the n-th update, n >= 0.

    The warm-up of d (TensorFlow's rule) forgets the random start. Without warm-up, d equals ``decay`` from the first
    update. Batch norm's running statistics are averaged too, so that they match the averaged weights. Other buffers
    (spectral norm's vectors, counters) are copied unchanged.

    Args:
        module: module to average; the average starts as a copy of it.
        decay: upper limit of d, 0 <= decay < 1.
        warmup: whether d rises to ``decay`` gradually.

    Attributes:
        num_updates: n, () int64 on the module's device.
    """

    def __init__(self, module: nn.Module, decay: float, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.warmup = warmup
        self._tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        self._averaged = [
            name
            for name, tensor in self._tensors.items()
            if tensor.is_floating_point() and (name in parameters or name.endswith(("running_mean", "running_var")))
        ]
        device = next(iter(self._tensors.values())).device if self._tensors else None
        self.num_updates = torch.zeros((), dtype=torch.int64, device=device)
        self._copied = [n for n in self._tensors if n not in set(self._averaged)]

    @torch.no_grad()
    def update(self, module: nn.Module, skip: Tensor | None = None) -> None:
        """Update the average with the module's current tensors; change nothing if ``skip``, a device flag (), is 1."""
        now = module.state_dict()
        taken = torch.ones_like(self.num_updates) if skip is None else 1 - skip.to(torch.int64)
        n = self.num_updates.double()
        decay = ((1 + n) / (10 + n)).clamp_max(self.decay) if self.warmup else torch.full_like(n, self.decay)
        weight = (1 - decay) * taken
        self.num_updates += taken
        weights = {dtype: weight.to(dtype) for dtype in {self._tensors[name].dtype for name in self._averaged}}
        averages = self._of(self._tensors, self._averaged)
        _foreach("_foreach_lerp_", averages, self._of(now, self._averaged), [weights[a.dtype] for a in averages])
        copies = self._of(now, self._copied)
        if skip is not None:
            copies = [
                torch.where(skip.bool(), self._tensors[n], new) for n, new in zip(self._copied, copies, strict=True)
            ]
        _foreach("_foreach_copy_", self._of(self._tensors, self._copied), copies)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into ``module``, in place."""
        target, names = module.state_dict(), list(self._tensors)
        _foreach("_foreach_copy_", self._of(target, names), self._of(self._tensors, names))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average under the module's own names, and the number of updates under `COUNT`."""
        return {**self._tensors, COUNT: self.num_updates}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the average from a `state_dict`.

        Raises:
            KeyError: a tensor is missing.
            RuntimeError: a tensor has another shape.
        """
        for name, tensor in self._tensors.items():
            if state[name].shape != tensor.shape:
                raise RuntimeError(f"average {name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}")
            tensor.copy_(state[name])
        self.num_updates.copy_(state[COUNT])

    @staticmethod
    def _of(tensors: Mapping[str, Tensor], names: list[str]) -> list[Tensor]:
        return [tensors[name] for name in names]


def _foreach(operation: str, targets: list[Tensor], *arguments: object) -> None:
    """Apply one of torch's in-place operations to lists of tensors; do nothing if the lists are empty."""
    if targets:
        getattr(torch, operation)(targets, *arguments)


def averages_of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the state of one part's moving average (``base`` or ``energy``) in a checkpoint; empty if it has none."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@contextlib.contextmanager
def carrying(model: nn.Module, averages: Sequence[tuple[nn.Module, EMA | None]]) -> Iterator[None]:
    """Load each part's average, if it has one, into ``model`` inside the block, with the whole model in eval mode.

    Afterwards restore the parts' own tensors and every module's mode.
    """
    modes = {module: module.training for module in model.modules()}
    found = [(part, ema) for part, ema in averages if ema is not None]
    kept = [{name: value.clone() for name, value in part.state_dict().items()} for part, _ in found]
    for part, ema in found:
        ema.copy_to(part)
    model.eval()
    try:
        yield
    finally:
        for (part, _), tensors in zip(found, kept, strict=True):
            part.load_state_dict(tensors)
        for module, training in modes.items():
            module.training = training
