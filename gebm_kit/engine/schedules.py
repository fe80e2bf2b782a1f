"""Learning-rate schedules: pure functions of the section, the cycle and the length of its phase."""

from __future__ import annotations

import math

from gebm_kit.config.schema import OptimizerSection


def rate(section: OptimizerSection, cycle: int, length: int) -> float:
    """Learning rate in cycle ``cycle`` (from 0) of a phase of ``length`` cycles: ``lr * warm-up * decay``."""
    return section.lr * warmup(section, cycle) * decay(section, cycle, length)


def warmup(section: OptimizerSection, cycle: int) -> float:
    """``(cycle + 1) / warmup_steps`` up to 1: on a line through 0 just before the first cycle, 1 from the last one on."""
    return min(1.0, (cycle + 1) / section.warmup_steps) if section.warmup_steps else 1.0


def decay(section: OptimizerSection, cycle: int, length: int) -> float:
    """The schedule without warm-up, 1 at first.

    ``cosine`` and ``linear`` fall from 1 at the share ``decay_start`` of the phase to ``end_scale`` at its end;
    ``multi-step`` multiplies by ``factor`` at each milestone that has been reached.
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
