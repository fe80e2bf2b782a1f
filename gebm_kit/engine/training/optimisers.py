"""The optimisers that a recipe names, in their fused form, which can skip an update through a flag on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gebm_kit.config.optimizer import OptimizerSection
from gebm_kit.engine.process.data_parallel import average_gradients
from gebm_kit.engine.training.non_finite import gradient_norm


def make_optimizer(section: OptimizerSection, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the section's optimiser for ``parameters``, which may be empty: a base that is a program has none."""
    groups: list[dict[str, Any]] = [{"params": list(parameters)}]
    if section.name == "sgd":
        momentum, weight_decay = section.beta1, section.weight_decay
        made = torch.optim.SGD(groups, section.lr, momentum=momentum, weight_decay=weight_decay, fused=True)
        if momentum > 0:  # otherwise a skipped first step would leave the buffers uninitialised
            for parameter in parameters:
                made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return made
    kind = torch.optim.AdamW if section.name == "adamw" else torch.optim.Adam
    betas = (section.beta1, section.beta2)
    return kind(groups, section.lr, betas=betas, weight_decay=section.weight_decay, fused=True)


def differentiated(optimizer: torch.optim.Optimizer, loss: Tensor, limit: float | None) -> Tensor:
    """Give the optimiser's parameters the gradient of ``loss``, averaged over the ranks, and return its norm.

    Args:
        limit: norm above which the gradient is scaled down to it; None: not limited.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    average_gradients(parameters)
    return gradient_norm(parameters) if limit is None else nn.utils.clip_grad_norm_(parameters, limit)


def set_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = value


def flatten_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of an optimiser's state as ``prefix.INDEX.NAME``; hyper-parameters come from the recipe."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{index}.{name}": value
        for index, entries in state.items()
        for name, value in entries.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """Restore an optimiser's state from `flatten_optimizer`'s tensors.

    Raises:
        ValueError, IndexError: a tensor belongs to no parameter, or has another shape.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        head, _, rest = key.partition(".")
        if head == prefix:
            index, _, name = rest.partition(".")
            if value.dim() > 0 and value.shape != parameters[int(index)].shape:
                raise ValueError(f"{key} has shape {tuple(value.shape)}, not {tuple(parameters[int(index)].shape)}")
            state.setdefault(int(index), {})[name] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def rate(section: OptimizerSection, cycle: int, length: int) -> float:
    """Return the learning rate in cycle ``cycle`` (from 0) of a phase of ``length`` cycles: ``lr * warm-up * decay``."""
    return section.lr * warmup(section, cycle) * decay(section, cycle, length)


def warmup(section: OptimizerSection, cycle: int) -> float:
    """Return the warm-up factor ``min(1, (cycle + 1) / warmup_steps)``; 1 without warm-up.

    The factor rises linearly from 0 just before the first cycle to 1 in the last warm-up cycle, and stays 1.
    """
    return min(1.0, (cycle + 1) / section.warmup_steps) if section.warmup_steps else 1.0


def decay(section: OptimizerSection, cycle: int, length: int) -> float:
    """Return the schedule's factor without warm-up, which starts at 1.

    ``cosine`` and ``linear`` fall from 1 at the fraction ``decay_start`` of the phase to ``end_scale`` at its end.
    ``multi-step`` multiplies by ``factor`` once for each milestone reached: a fraction of the phase if below 1, else a
    cycle.
    """
    if section.schedule == "constant":
        return 1.0
    if section.schedule == "multi-step":
        passed = sum(cycle >= (at if at >= 1 else at * length) for at in section.milestones)
        return section.factor**passed
    share = cycle / max(length, 1)
    if share <= section.decay_start:
        return 1.0
    fallen = (share - section.decay_start) / (1.0 - section.decay_start)
    if section.schedule == "cosine":
        fallen = 0.5 * (1 - math.cos(math.pi * fallen))
    return 1.0 - fallen * (1.0 - section.end_scale)
