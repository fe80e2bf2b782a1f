"""Classifiers that look at draws from outside, and figures over seeds, for studies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gebm_kit.core.interfaces import Split
from gebm_kit.engine.evaluation.intervals import mean_interval


def trained(
    network: nn.Module, rows: Split, labels: Tensor, seed: int, steps: int, label_smoothing: float = 0.0
) -> nn.Module:
    """Train by cross-entropy with AdamW under a one-cycle rate, batches of 128.

    Args:
        network: (B, *D) -> logits (B, K); it is changed in place.
        rows: the training part.
        labels: the class of each row, (N,).
        seed: seed of the order of the rows.
        steps: number of steps.
        label_smoothing: share of the target that is spread over all classes.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(rows), (128,), generator=generator)
        logits = network(rows.batch(chosen))
        loss = nn.functional.cross_entropy(logits, labels[chosen], label_smoothing=label_smoothing)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def interval(values: Sequence[float], digits: int = 3) -> str:
    """Return the mean over seeds and its 95 % interval, as text."""
    found = mean_interval(values)
    if found.low is None:
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"
