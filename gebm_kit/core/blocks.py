"""Evaluation of chains in fixed blocks: a frozen module, points with their labels, and counts of what was evaluated.

Shapes: C chains, Z latent size.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gebm_kit.core.errors import UsageError
from gebm_kit.core.frozen import Frozen
from gebm_kit.core.model_contracts import check_energy_output, refuse_changed
from gebm_kit.core.networks import Energy
from gebm_kit.core.sampling import ValueAndGrad
from gebm_kit.core.threads import PieceThreads


def checked_beta(inverse_temperature: float) -> float:
    """Return beta as a float, once it is known to be finite and not negative."""
    if not (math.isfinite(inverse_temperature) and inverse_temperature >= 0):
        raise UsageError(f"inverse_temperature (beta) must be finite and >= 0, got {inverse_temperature}")
    return float(inverse_temperature)


class Function(NamedTuple):
    """Function that a potential evaluates, and the components behind it, which errors name.

    Attributes:
        evaluate: (C, Z) and the chains' labels, (C,) or None -> (C,).
        energy: the energy, which returns the values.
        reader_kind, reader: the component that is handed the points, with its kind.
    """

    evaluate: Callable[[Tensor, Tensor | None], Tensor]
    energy: Energy
    reader_kind: str
    reader: nn.Module


class BlockPotential:
    """What the potentials share: freezing the model, evaluating it in fixed blocks, and counting evaluations.

    Attributes:
        forward_evals, grad_evals: rows evaluated so far without and with gradient (padding not counted).
        labels: classes of the chains, (C,) int64, cut into blocks with them; None for a model without classes.
    """

    def __init__(self, module: nn.Module, block_size: int | None, labels: Tensor | None = None) -> None:
        if block_size is not None and block_size < 1:
            raise UsageError(f"block_size must be at least 1, got {block_size}")
        self.block_size = block_size
        self.labels = labels
        self.forward_evals = 0
        self.grad_evals = 0
        self._frozen = Frozen(module)
        self._threads = PieceThreads()

    def close(self) -> None:
        """Restore the model's training mode and which of its parameters require gradients."""
        self._threads.close()
        self._frozen.restore()

    def __enter__(self):  # type: ignore[no-untyped-def]  # Self, for subclasses
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _evaluate(self, function: Function, points: Tensor, on_rows: Callable[[int], None] | None = None) -> Tensor:
        self.forward_evals += points.shape[0]
        evaluate = reporting_rows(functools.partial(_value, function), on_rows)
        if self._one_block(points):
            return evaluate(self._labelled(points))
        return torch.cat(self._threads.map(evaluate, self._blocks(points)))[: points.shape[0]]

    def _differentiate(self, function: Function, points: Tensor) -> ValueAndGrad:
        self.grad_evals += points.shape[0]
        if self._one_block(points):
            return _value_and_grad(function, self._labelled(points))
        parts = self._threads.map(functools.partial(_value_and_grad, function), self._blocks(points))
        num = points.shape[0]
        return ValueAndGrad(torch.cat([p.value for p in parts])[:num], torch.cat([p.grad for p in parts])[:num])

    def _one_block(self, points: Tensor) -> bool:
        return self.block_size is None or points.shape[0] == self.block_size

    def _blocks(self, points: Tensor) -> list[Rows]:
        """Split into equal blocks, each with the labels of its rows.

        The last is filled up with copies of the last row, so that every evaluation has one shape.
        """
        assert self.block_size is not None
        labels = self._labelled(points).labels
        parts = _filled(points, self.block_size).split(self.block_size)
        if labels is None:
            return [Rows(part) for part in parts]
        of_parts = _filled(labels, self.block_size).split(self.block_size)
        return [Rows(*pair) for pair in zip(parts, of_parts, strict=True)]

    def _labelled(self, points: Tensor) -> Rows:
        """Return points with their labels.

        Raises:
            UsageError: there are not as many points as labels.
        """
        if self.labels is not None and len(self.labels) != len(points):
            raise UsageError(
                f"{len(points)} points are evaluated, and the chains have {len(self.labels)} labels",
                hint="A sampler that evaluates other rows than its chains serves one class at a time: model.given(label).",
            )
        return Rows(points, self.labels)


class Rows(NamedTuple):
    """Points, and their labels where the model has classes."""

    points: Tensor
    labels: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.points.device


def _filled(rows: Tensor, size: int) -> Tensor:
    """Return the rows with copies of the last one behind them, up to a multiple of ``size``."""
    short = -rows.shape[0] % size
    return torch.cat([rows, rows[-1:].expand(short, *rows.shape[1:])]) if short else rows


def reporting_rows(
    function: Callable[[Rows], Tensor], on_rows: Callable[[int], None] | None
) -> Callable[[Rows], Tensor]:
    """Return ``function``, which then reports the number of rows that it has been called with; threads may call it."""
    if on_rows is None:
        return function
    lock, done = threading.Lock(), 0

    def reporting(rows: Rows) -> Tensor:
        nonlocal done
        value = function(rows)
        with lock:
            done += len(rows.points)
            on_rows(done)
        return value

    return reporting


def _checked(function: Function, rows: Rows) -> Tensor:
    """Evaluate and check what comes back; nothing here waits for the device."""
    points = rows.points
    version = points._version
    energy = function.evaluate(points, rows.labels)
    check_energy_output(function.energy, energy, points.shape[0])
    if points._version != version:
        refuse_changed(function.reader_kind, function.reader, "its input")
    return energy


def _value(function: Function, rows: Rows) -> Tensor:
    with torch.no_grad():
        return _checked(function, rows)


def _value_and_grad(function: Function, rows: Rows) -> ValueAndGrad:
    points = rows.points.detach().requires_grad_()
    with torch.enable_grad():
        value = _checked(function, rows._replace(points=points))
        if not value.requires_grad:  # a constant energy
            return ValueAndGrad(value, torch.zeros_like(points).detach())
        (grad,) = torch.autograd.grad(value.sum(), points, materialize_grads=True)
    return ValueAndGrad(value.detach(), grad)
