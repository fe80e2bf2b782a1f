"""Learning-rate schedules as pure functions of the cycle."""

from __future__ import annotations

import math

import pytest

from gebm_kit.config.optimizer import OptimizerSection
from gebm_kit.config.tree import parse
from gebm_kit.engine.training.optimisers import rate


def rates(length: int, **settings: object) -> list[float]:
    section = OptimizerSection(lr=2.0, **settings)  # type: ignore[arg-type]
    return [rate(section, cycle, length) for cycle in range(length)]


def test_constant() -> None:
    assert rates(5) == [2.0] * 5


def test_linear_falls_to_its_end_from_where_the_decay_starts() -> None:
    expected = [2.0 * min(1.0, 1 - (n / 10 - 0.5) / 0.5 * 0.8) for n in range(10)]
    assert rates(10, schedule="linear", decay_start=0.5, end_scale=0.2) == pytest.approx(expected)


def test_cosine_is_half_way_in_the_middle_and_flat_at_both_ends() -> None:
    values = rates(1000, schedule="cosine", end_scale=0.5)
    assert values == pytest.approx([2.0 * (0.75 + 0.25 * math.cos(math.pi * n / 1000)) for n in range(1000)])
    assert values[500] == pytest.approx(1.5)
    assert values[0] - values[10] < 0.001


def test_multi_step_counts_shares_and_cycles_that_were_reached() -> None:
    values = rates(8, schedule="multi-step", milestones=(0.5, 6), factor=0.1)
    assert values == pytest.approx([2.0] * 4 + [0.2] * 2 + [0.02] * 2)


def test_the_order_of_milestones_does_not_matter() -> None:
    settings = {"schedule": "multi-step", "factor": 0.5}
    assert rates(9, milestones=(7, 0.2, 3), **settings) == rates(9, milestones=(0.2, 3, 7), **settings)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "multi-step"])
def test_warm_up_multiplies_any_schedule(schedule: str) -> None:
    plain, warm = rates(10, schedule=schedule), rates(10, schedule=schedule, warmup_steps=4)
    assert warm == pytest.approx([value * min(1.0, (n + 1) / 4) for n, value in enumerate(plain)])
    assert warm[3:] == plain[3:]


def test_a_recipe_sets_them_and_refuses_what_has_no_meaning() -> None:
    from pathlib import Path

    from gebm_kit.config.check import check
    from gebm_kit.core.errors import RecipeError

    text = (
        "schema: 1\ndata: digits\nbase: mlp\nenergy: mlp\nloss: kale\n"
        "optim: {base: {schedule: multi-step, milestones: [0.5, 800], factor: 0.3, warmup_steps: 5}}\n"
    )
    section = check(parse(text, name="toy"), directory=Path()).optim.base
    assert (section.milestones, section.factor, section.warmup_steps) == ((0.5, 800.0), 0.3, 5)
    for bad in ("milestones=[0]", "milestones=[-3]", "factor=1.5", "warmup_steps=-1", "schedule=step"):
        with pytest.raises(RecipeError, match=bad.partition("=")[0]):
            check(parse(text, name="toy", overrides=[f"optim.base.{bad}"]), directory=Path())
