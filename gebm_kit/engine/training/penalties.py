"""The penalties of a phase, and the loss of an energy step with those that are due.

The penalties r1 and r2 need the slopes of the energy at data and at base draws, where the loss evaluates it anyway. A step
with both takes them from the loss's own forward pass: one forward pass, one pass back to the images, and one pass back
through both of these for loss and penalties together. Each penalty by itself would add a forward pass, and two passes back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core.interfaces import Batch, Energy, Loss, LossTerms, Penalty, SlopePenalty
from gebm_kit.core.model import GEBM


def build_penalties(nodes: Sequence[ComponentNode], facts: dict[str, Any], device: torch.device) -> list[Penalty]:
    """Build a phase's penalties.

    Raises:
        RecipeError, PluginError: as for `build`.
    """
    return [build("penalty", node, facts).to(device) for node in nodes]


def with_penalties(
    loss: Tensor, due: Sequence[Penalty], energy: Energy, batch: Batch, generator: torch.Generator
) -> Tensor:
    """Return the loss plus each penalty times its ``every``, so that a penalty's mean force does not depend on that; ()."""
    for penalty in due:
        loss = loss + penalty.every * penalty(energy, batch, generator)
    return loss


class PenalisedLoss:
    """A loss and the penalties that are due, in one forward pass of the energy where that serves them all.

    Whether a loss evaluates the energy once at ``cat([x, x_base])`` is seen at the first step with such penalties, by
    comparing the rows. Later steps compare their number alone, so nothing waits for the device.
    """

    def __init__(self) -> None:
        self._seen: Loss | None = None
        self._joint = False

    def __call__(
        self,
        loss: Loss,
        model: GEBM,
        batch: Batch,
        due: Sequence[Penalty],
        generator: torch.Generator,
        first_order: tuple[GEBM, contextlib.AbstractContextManager[Any]] | None = None,
    ) -> tuple[LossTerms, Tensor]:
        """Return the loss's terms, and the total to minimise, ().

        Args:
            model: the model in full precision and uncompiled, as second derivatives need it.
            first_order: the model and the context in which the loss alone is computed, if they are others.
        """
        if first_order is not None:
            fast, context = first_order
            with context:
                terms = loss.energy_loss(fast, batch)
            return terms, with_penalties(terms.loss, due, model.energy, batch, generator)
        if not _at_both(due) or (self._seen is loss and not self._joint):
            terms = loss.energy_loss(model, batch)
            return terms, with_penalties(terms.loss, due, model.energy, batch, generator)
        with _recorded(model.energy) as passes:
            terms = loss.energy_loss(model, batch)
        if self._seen is not loss:
            self._seen, self._joint = loss, _serves(passes, batch)
        assert batch.x is not None
        if not (self._joint and len(passes) == 1 and len(passes[0][0]) == len(batch.x) + len(batch.x_base)):
            return terms, with_penalties(terms.loss, due, model.energy, batch, generator)
        rows, energies = passes[0]
        (slopes,) = torch.autograd.grad(energies.sum(), rows, create_graph=True)
        data, base = slopes.flatten(1).square().sum(1).split([len(batch.x), len(batch.x_base)])
        total = terms.loss
        for penalty in due:
            if isinstance(penalty, SlopePenalty):
                total = total + penalty.every * penalty.of_slopes(data if penalty.at == "x" else base)
            else:
                total = total + penalty.every * penalty(model.energy, batch, generator)
        return terms, total


def _at_both(due: Sequence[Penalty]) -> bool:
    return {penalty.at for penalty in due if isinstance(penalty, SlopePenalty)} == {"x", "x_base"}


def _serves(passes: Sequence[tuple[Tensor, Tensor]], batch: Batch) -> bool:
    """Return whether the energy was evaluated once, at data and base draws; waits for the device."""
    if len(passes) != 1 or batch.x is None or batch.x.shape[1:] != batch.x_base.shape[1:]:
        return False
    rows = passes[0][0].detach()
    both = torch.cat([batch.x, batch.x_base.to(batch.x.dtype)])
    return rows.shape == both.shape and torch.equal(rows, both)


@contextlib.contextmanager
def _recorded(energy: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record the forward passes inside the block as pairs of rows, which then have a gradient, and energies."""
    passes: list[tuple[Tensor, Tensor]] = []

    def before(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not torch.is_grad_enabled() or not arguments or arguments[0].requires_grad:
            return None  # rows with a gradient belong to a loss that differentiates them itself
        return (arguments[0].detach().requires_grad_(), *arguments[1:])

    def after(_: nn.Module, arguments: tuple[Any, ...], energies: Tensor) -> None:
        if torch.is_grad_enabled() and arguments:
            passes.append((arguments[0], energies))

    handles = [energy.register_forward_pre_hook(before), energy.register_forward_hook(after)]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()
