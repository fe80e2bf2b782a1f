"""Pictures of chains: which ones are drawn, what they show, and that odd traces don't break them."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gebm_kit.engine.figures import chain_figures as sample_figures
from gebm_kit.engine.figures.chain_figures import Traces, chosen, draw_chains, energy_plot, rank_plot, trace_plot

NAMES = ["sample-trace.png", "sample-ranks.png", "sample-energy.png"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def record(trace: Tensor, start: Tensor | None = None, steps: int | None = None) -> dict[str, Tensor]:
    """Return the tensors of a recorder with values (N, C, Q); coordinates are numbered 10, 20, ..."""
    found = {
        "trace": trace,
        "coordinates": 10 * torch.arange(1, trace.shape[2]),
        "chains": torch.tensor(trace.shape[1]),
        "steps": torch.tensor(len(trace) if steps is None else steps),
        "acceptance": torch.tensor(0.5, dtype=torch.float64),
        "divergences": torch.tensor(0),
    }
    return found if start is None else found | {"start": start}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect every figure that is saved, to inspect its contents."""
    seen: list[Any] = []
    save = sample_figures.save_figure
    monkeypatch.setattr(
        sample_figures, "save_figure", lambda figure, path: (seen.append(figure), save(figure, path))[1]
    )
    return seen


def labels(axis: Any) -> list[str]:
    return axis.get_legend_handles_labels()[1]


def test_three_pictures_in_a_new_directory(tmp_path: Path) -> None:
    records = [record(noise(30, 20, 6), noise(20, 6, seed=1)), record(noise(30, 10, 6, seed=2), noise(10, 6, seed=3))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = draw_chains(tmp_path / "new" / "figures", records)
    assert [path.name for path in paths] == NAMES
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width > 900
            assert np.asarray(picture.convert("L")).std() > 10  # the picture is not blank


def test_the_potential_and_the_coordinates_that_differ_most() -> None:
    trace = noise(50, 40, 7)
    apart = torch.linspace(-1, 1, 40)
    for i, factor in ((1, 3.0), (3, 2.0), (4, 1.0)):
        trace[..., i] += factor * apart
    start = noise(40, 7, seed=1)
    found = chosen([record(trace[:, :15], start[:15], steps=150), record(trace[:, 15:], start[15:], steps=150)])
    assert found is not None
    assert found.labels == ("potential", "z[20]", "z[40]", "z[50]")
    torch.testing.assert_close(found.values, trace[..., [6, 1, 3, 4]].double())
    torch.testing.assert_close(found.start, start[:, [6, 1, 3, 4]].double())
    assert found.every == 3


@pytest.mark.parametrize(
    ("chains", "steps", "started"), [(1, 30, True), (1, 2, False), (2, 5, True), (3, 30, False), (200, 2, True)]
)
def test_few_chains_and_few_steps(tmp_path: Path, chains: int, steps: int, started: bool) -> None:
    start = noise(chains, 3, seed=1) if started else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(draw_chains(tmp_path, [record(noise(steps, chains, 3), start)])) == 3


def test_nothing_recorded_draws_nothing(tmp_path: Path) -> None:
    assert draw_chains(tmp_path / "a", []) == []
    assert draw_chains(tmp_path / "a", [record(noise(1, 20, 3))]) == []
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("value", "names"), [(0.0, NAMES), (1e30, NAMES), (math.nan, NAMES[:2]), (math.inf, NAMES[:2])]
)
def test_odd_potentials(tmp_path: Path, value: float, names: list[str]) -> None:
    trace, start = noise(20, 30, 3), noise(30, 3, seed=1)
    trace[..., -1], start[..., -1] = value, value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [path.name for path in draw_chains(tmp_path, [record(trace, start)])] == names
        trace[7, :, -1] = 1.0
        trace[3, 2, 0] = value
        assert len(draw_chains(tmp_path, [record(trace, start)])) == 3


def test_a_flat_potential_has_no_trace_and_no_ranks(tmp_path: Path, figures: list[Any]) -> None:
    values, start = noise(20, 30, 3).double(), noise(30, 3).double()
    values[..., 0], start[:, 0] = 0.0, 0.0
    traces = Traces(values, start, ("potential", "z[0]", "z[1]"), 1)
    trace_plot(tmp_path / "t.png", traces)
    assert [axis.get_ylabel() for axis in figures[0].axes] == ["z[0]", "z[1]"]
    rank_plot(tmp_path / "r.png", traces)
    assert [axis.get_title("left") for axis in figures[1].axes] == ["z[0]", "z[1]"]


def test_the_trace_shows_some_chains_and_the_range_of_all(tmp_path: Path, figures: list[Any]) -> None:
    values = noise(20, 100, 2).double()
    trace_plot(tmp_path / "t.png", Traces(values, None, ("potential", "z[0]"), 5))
    top, below = figures[0].axes
    assert "8 of 100 chains" in top.get_title("left")
    assert len(top.lines) == 8
    np.testing.assert_allclose(top.lines[0].get_xdata(), 5 * np.arange(1, 21))
    np.testing.assert_allclose(below.lines[7].get_ydata(), values[:, 99, 1])
    wide = below.collections[1].get_paths()[0].vertices[:, 1]
    assert wide.max() == pytest.approx(float(values[..., 1].quantile(0.95, dim=1).max()))


def test_ranks_are_flat_where_chains_forgot_their_start_and_not_elsewhere(tmp_path: Path, figures: list[Any]) -> None:
    start = noise(400, 2, seed=1).double()
    values = noise(50, 400, 2).double()
    values[..., 1] += 3 * start[:, 1].sign()
    rank_plot(tmp_path / "r.png", Traces(values, start, ("potential", "z[0]"), 1))
    forgot, stuck = figures[0].axes
    assert labels(forgot)[0] == "lowest quarter of starts"
    heights = [patch.get_data().values for patch in forgot.patches]
    band = forgot.collections[0].get_paths()[0].vertices[:, 1]
    inside = np.mean([(band.min() < height) & (height < band.max()) for height in heights])
    assert inside > 0.85
    lowest, highest = (stuck.patches[i].get_data().values for i in (0, 3))
    np.testing.assert_allclose(lowest[:9], 2, atol=0.3)
    np.testing.assert_allclose(lowest[11:], 0, atol=0.1)
    np.testing.assert_allclose(highest[11:], 2, atol=0.3)


def test_the_potential_is_drawn_beside_the_bases(tmp_path: Path, figures: list[Any]) -> None:
    values, start = 2 + noise(50, 300, 1).double(), 5 + 2 * noise(300, 1, seed=1).double()
    energy_plot(tmp_path / "e.png", Traces(values, start, ("potential",), 2))
    left, right = figures[0].axes
    assert [text.split(" (")[0] for text in labels(left)] == ["their start", "chains"]
    for patch, v in zip(left.patches[1::2], (start, values), strict=True):
        density, edges, _ = patch.get_data()
        assert float((density * np.diff(edges)).sum()) == pytest.approx(1, abs=0.02)
        assert float((density * np.diff(edges) * (edges[1:] + edges[:-1]) / 2).sum()) == pytest.approx(
            float(v.mean()), abs=0.15
        )
    assert labels(right) == ["mean of the chains", "mean at their start"]
    np.testing.assert_allclose(right.lines[0].get_ydata(), values[..., 0].mean(1))
    assert right.lines[1].get_ydata()[0] == pytest.approx(float(start.mean()))


def test_a_base_far_away_is_named_not_drawn(tmp_path: Path, figures: list[Any]) -> None:
    values, start = noise(50, 300, 1).double(), 9000 + 2000 * noise(300, 1, seed=1).double()
    energy_plot(tmp_path / "e.png", Traces(values, start, ("potential",), 1))
    left, right = figures[0].axes
    assert left.get_xlim()[1] < 300
    assert "not shown" in labels(left)[0] or "not shown" in labels(left)[1]
    assert "not shown" in labels(right)[1]
    assert right.get_ylim()[1] < 10
