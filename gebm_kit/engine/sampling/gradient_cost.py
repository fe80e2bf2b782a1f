"""The cost of one gradient of a model, measured: seconds and memory, before anything long begins."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gebm_kit.core.interfaces import HoldsWeights
from gebm_kit.core.model import GEBM, LatentPotential

SECONDS = 0.5
"""Seconds after which a measurement is not repeated."""

MOST_REPEATS = 10
"""Most repetitions."""


def gradient_cost(model: GEBM, rows: int = 1) -> dict[str, Any]:
    """Return what one gradient of E(G(z)) with respect to z costs.

    Args:
        model: the model, on its device.
        rows: codes at once.

    Returns:
        ``rows``; ``seconds`` of a gradient and ``forward_seconds`` of a value; ``memory_bytes``, the most that tensors take
        at any time beside the weights; ``weights_bytes`` of base and energy.
    """
    device = model.device
    generator = torch.Generator(device).manual_seed(0)
    z = torch.randn(rows, model.latent_dim, generator=generator, device=device, dtype=model.dtype)
    labels = torch.zeros(rows, dtype=torch.int64, device=device) if model.conditional else None
    with LatentPotential(model, labels=labels) as potential:
        with _peak(device) as peak:
            potential.tilt_and_grad(z)  # this one also allocates and starts threads
        seconds = _seconds(lambda: potential.tilt_and_grad(z).value, device)
        forward = _seconds(lambda: potential.energy(z), device)
    return {
        "rows": rows,
        "seconds": seconds,
        "forward_seconds": forward,
        "memory_bytes": peak[0],
        "weights_bytes": weights_bytes(model),
    }


def held_weights(part: object) -> list[Tensor]:
    """Return the fixed weights that a base or an energy holds beside its parameters."""
    return list(part.held_weights()) if isinstance(part, HoldsWeights) else []


def weights_bytes(model: GEBM) -> int:
    """Return the bytes of parameters, buffers and held weights."""
    tensors = [*model.parameters(), *model.buffers()]
    for part in (model.base, model.energy):
        tensors += [held for module in part.modules() for held in held_weights(module)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _seconds(evaluate: Any, device: torch.device) -> float:
    """Return the seconds of a call, the mean of a few."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began, taken, done = time.perf_counter(), 0.0, 0
    while done < MOST_REPEATS and taken < SECONDS:
        evaluate()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken, done = time.perf_counter() - began, done + 1
    return taken / done


@contextmanager
def _peak(device: torch.device) -> Iterator[list[int]]:
    """Measure the most bytes of tensors that are made inside the block and in use at one time."""
    found = [0]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        torch.cuda.synchronize(device)
        found[0] = torch.cuda.max_memory_allocated(device) - before
        return
    with _Live() as live:
        yield found
    found[0] = live.most


class _Live(TorchDispatchMode):
    """A mode that adds up the bytes of new tensors as long as they are in use."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and id(storage := leaf.untyped_storage()) not in given:
                self._add(storage)
        return made

    def _add(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, size).atexit = False

    def _drop(self, size: int) -> None:
        self.now -= size
