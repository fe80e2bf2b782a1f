"""Verdicts: sentences from constructed intervals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gebm_kit.engine.evaluation.equilibrium import Equilibrium, along_the_chains, gap_of, rows_in_groups, summary_of
from gebm_kit.engine.evaluation.intervals import Estimate
from gebm_kit.engine.evaluation.verdict import of_difference, of_equilibrium, of_ratio, verdict


def estimate(value: float, low: float | None, high: float | None) -> Estimate:
    return Estimate(value, low, high, 5)


def equilibrium(**given: Any) -> Equilibrium:
    def rows(mean: float) -> list[torch.Tensor]:
        return rows_in_groups(mean + torch.linspace(-1, 1, 200, dtype=torch.float64))

    model, data, base = summary_of(rows(0.0)), summary_of(rows(0.0)), summary_of(rows(4.0))
    return Equilibrium(model, data, base, **{"gap": gap_of(model, data, base), "unit": "the chain length", **given})


@pytest.mark.parametrize(
    ("ratio", "lower", "word"),
    [
        (estimate(0.59, 0.53, 0.66), True, "better than"),
        (estimate(1.4, 1.2, 1.6), True, "worse than"),
        (estimate(0.95, 0.8, 1.1), True, "no different from"),
        (estimate(1.4, 1.2, 1.6), False, "better than"),
        (estimate(0.59, 0.53, 0.66), False, "worse than"),
        (estimate(0.9, None, None), True, "not known"),
    ],
)
def test_a_ratio_is_read_by_its_interval(ratio: Estimate, lower: bool, word: str) -> None:
    text = of_ratio("fid", ratio, lower)
    assert word in text
    assert f"{ratio.value:.3g}" in text
    assert "fid" in text
    if ratio.low is not None:
        assert f"95 % interval {ratio.low:.3g} to {ratio.high:.3g}" in text
    assert text.endswith(".")
    assert text.count(". ") == 0


@pytest.mark.parametrize(
    ("difference", "lower", "word"),
    [
        (estimate(0.1, 0.05, 0.15), False, "better than"),
        (estimate(-0.1, -0.15, -0.05), False, "worse than"),
        (estimate(-0.1, -0.15, -0.05), True, "better than"),
        (estimate(0.0, -0.1, 0.1), False, "no different from"),
        (estimate(0.0, None, None), False, "not known"),
    ],
)
def test_a_value_without_a_ratio_is_read_by_its_difference(difference: Estimate, lower: bool, word: str) -> None:
    assert word in of_difference("prdc.recall", difference, lower)


def test_one_sentence_a_metric_and_one_for_equilibrium() -> None:
    ratio = estimate(0.5, 0.4, 0.6)
    metrics = {"ratio": {"fid": ratio, "fid.train": ratio}}
    protocol = {
        "fid": {"lower_is_better": True}, "prdc": {"lower_is_better": False}, "modes": {"lower_is_better": None}
    }  # fmt: skip
    difference = estimate(0.2, 0.1, 0.3)
    names = ("fid", "fid.train", "prdc.recall", "modes.covered")
    found = verdict(metrics, protocol, dict.fromkeys(names, difference), equilibrium())
    assert list(found) == ["fid", "prdc.recall", "equilibrium"]


class TestEquilibrium:
    def test_a_law_that_holds(self) -> None:
        found = equilibrium(metric="fid", **along_the_chains({1: [1.0, 1.1, 0.9], 2: [1, 1, 1], 4: [1.05, 1.0, 0.95]}))
        assert found.worsens is False
        assert "agree within 10 %" in of_equilibrium(found)
        assert "fid holds as chains run on: at 4x the chain length" in of_equilibrium(found)

    def test_a_law_that_gets_worse_is_warned_about_with_what_to_try(self) -> None:
        values = {1: [1.0, 1.1, 0.9], 2: [1.5, 1.6, 1.4], 4: [2.0, 2.2, 1.8]}
        found = equilibrium(metric="fid", **along_the_chains(values))
        assert found.worsens
        assert found.ratio is not None
        assert found.ratio.value == pytest.approx(2.0)
        assert "fid gets worse as chains run on" in of_equilibrium(found)
        with pytest.warns(UserWarning, match=r"gets worse as its chains run on: fid at 4x.*kale-dv.*train\.negatives"):
            found.warn()

    def test_a_slight_change_is_said_without_a_warning(self, recwarn: pytest.WarningsRecorder) -> None:
        found = equilibrium(metric="kid", **along_the_chains({1: [1.0, 1.1, 0.9], 4: [1.02, 1.123, 0.917]}))
        assert found.worsens is False
        assert "slightly worse as chains run on, within 5 %" in of_equilibrium(found)
        found.warn()
        assert not recwarn.list

    def test_the_direction_of_the_metric_decides(self) -> None:
        values = {1: [1.0, 1.1, 0.9], 2: [2.0, 2.2, 1.8]}
        higher = equilibrium(metric="recall", lower_is_better=False, **along_the_chains(values))
        assert higher.worsens is False
        assert higher.improves
        assert "still gets better" in of_equilibrium(higher)
        assert higher.longest == 2

    def test_a_metric_near_zero_is_judged_by_its_difference(self) -> None:
        """The ratio of a value that may be zero has no interval, and a law may still run away from it."""
        found = equilibrium(metric="fid", **along_the_chains({1: [0.01, -0.02, 0.0], 4: [0.5, 0.55, 0.45]}))
        assert found.ratio is not None
        assert found.ratio.low is None
        assert found.worsens
        held = equilibrium(metric="fid", **along_the_chains({1: [0.01, -0.02, 0.0], 4: [0.0, 0.01, -0.01]}))
        assert held.worsens is False

    def test_one_group_has_no_interval_and_no_warning(self, recwarn: pytest.WarningsRecorder) -> None:
        found = equilibrium(metric="fid", **along_the_chains({1: [1.0], 2: [3.0], 4: [9.0]}))
        assert found.worsens is None
        found.warn()
        assert not recwarn.list
        assert "is not known" in of_equilibrium(found)

    def test_lengths_that_are_missing_come_with_the_reason(self) -> None:
        found = equilibrium(metric="fid", at={1: estimate(1, 0.9, 1.1)}, reason="the budget allows no more")
        tree = found.as_dict()
        assert tree["metric_at_1x"]["value"] == 1
        assert tree["metric_at_2x"] is tree["metric_at_4x"] is tree["ratio"] is None
        assert "longer chains were not tried (the budget allows no more)" in of_equilibrium(found)

    def test_energies_far_from_the_data(self) -> None:
        low = summary_of(rows_in_groups(torch.linspace(-3, -2, 200, dtype=torch.float64)))
        plain = equilibrium()
        found = equilibrium(gap=gap_of(low, plain.data, plain.base))
        found = Equilibrium(low, plain.data, plain.base, found.gap)
        assert found.agrees is False
        assert "lower energies than held-out data" in of_equilibrium(found)


class TestEnergies:
    def test_errors_cover_the_spread_of_groups(self) -> None:
        generator = torch.Generator().manual_seed(0)
        truth = 0
        for _ in range(100):
            found = summary_of(rows_in_groups(torch.randn(400, generator=generator, dtype=torch.float64)))
            truth += abs(found.mean) < 2.26 * found.se  # Student's t, 9 degrees of freedom
        assert truth > 85

    def test_correlated_draws_are_worth_their_groups(self) -> None:
        """Groups of equal draws: the error is that of the groups, not of the many rows."""
        groups = [torch.full((1000,), float(k), dtype=torch.float64) for k in range(5)]
        assert summary_of(groups).se == pytest.approx(math.sqrt(2.5 / 5))

    def test_walls_are_counted_and_left_out(self) -> None:
        rows = torch.tensor([0.0, 1.0, math.inf, 2.0, 3.0, math.inf], dtype=torch.float64)
        found = summary_of([rows])
        assert (found.mean, found.outside, found.rows) == (1.5, 2, 4)
        assert summary_of([rows[[2, 5]]]).rows == 0

    def test_the_gap_is_a_share_of_that_of_the_base(self) -> None:
        def at(mean: float) -> Any:
            return summary_of(rows_in_groups(mean + torch.linspace(-0.01, 0.01, 100, dtype=torch.float64)))

        assert gap_of(at(1.0), at(0.0), at(4.0)).value == pytest.approx(0.25)  # type: ignore[union-attr]
        assert gap_of(at(-1.0), at(0.0), at(4.0)).value == pytest.approx(0.25)  # type: ignore[union-attr]
        assert gap_of(at(1.0), at(2.0), at(2.0)) is None
