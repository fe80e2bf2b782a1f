"""Pictures of tables: which columns are drawn, the distances, odd tables, and ranks of log-densities."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor

from gebm_kit.core.interfaces import Base, Energy
from gebm_kit.core.model import GEBM
from gebm_kit.core.units import TableUnits
from gebm_kit.engine.figures import table_columns, table_figures
from gebm_kit.engine.figures.density_figure import density_calibration, ranks_among
from gebm_kit.engine.figures.run_figures import OfTable, _log_densities, draw_all
from gebm_kit.engine.figures.table_columns import bin_edges, columns_of_table, ks_distances, limits_of, shown_name

NAMES = ["marginals.png", "quantiles.png", "pairs.png"]


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sizes(paths: list[Path]) -> list[tuple[int, int]]:
    found = []
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert np.asarray(image.convert("RGB")).std() > 0
            found.append(image.size)
    return found


class TestColumns:
    def test_distances_are_those_of_scipy(self) -> None:
        one, other = draws(300, 4).numpy(), 1.4 * draws(170, 4, seed=1).numpy()
        one[:, 3], other[:, 3] = one[:, 3].round(), other[:, 3].round()
        expected = [ks_2samp(a, b).statistic for a, b in zip(one.T, other.T, strict=True)]
        assert ks_distances(one, other).tolist() == pytest.approx(expected)
        one[0, 0], other[:, 1] = math.nan, math.inf
        found = ks_distances(one, other)
        assert found[0] == pytest.approx(ks_2samp(one[1:, 0], other[:, 0]).statistic)
        assert found[1] == 1

    def test_the_columns_that_differ_most_are_chosen(self) -> None:
        data, base, gebm = (draws(500, 30, seed=k) for k in range(3))
        base[:, 7] += 2
        gebm[:, 21] *= 4
        columns = columns_of_table({"data": data, "base": base, "GEBM": gebm}, None)
        assert columns.most_different(2) == [7, 21]
        assert columns.most_different(8) == sorted(columns.most_different(8))
        assert len(columns.most_different(100)) == 30
        assert columns.names[:2] == ("x1", "x2")

    def test_values_are_measured(self) -> None:
        units = TableUnits(("a", "b"), (5.0, 1.0), (2.0, 3.0), (1.0, 0.0), ((), ()), (True, False))
        x = draws(50, 2)
        columns = columns_of_table({"data": x, "base": x, "GEBM": x}, units)
        assert np.array_equal(columns.values["data"], units.measured(x).numpy())
        assert np.array_equal(columns.free["data"], units.scaled(x).numpy())
        assert columns.steps.tolist() == [1.0, 0.0]
        assert columns.distance.tolist() == [0.0, 0.0]

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("alcohol", "alcohol"), ("", "x3"), ("3", "x3"), ("2024", "2024"), ("a\tb\nc", "a b c"),
            ("a" * 60, "a" * 25 + "…"), ("\x07price", "price"),
        ],
    )  # fmt: skip
    def test_names_are_short_lines(self, name: str, shown: str) -> None:
        assert shown_name(name, 3) == shown

    def test_bins_are_cells_of_the_grid(self) -> None:
        edges = bin_edges(2.7, 8.2, 1.0, 40)
        assert edges.tolist() == [2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5]
        assert len(bin_edges(0.0, 1000.0, 1.0, 40)) <= 42
        assert len(bin_edges(-1.0, 1.0, 0.0, 40)) == 41

    def test_stray_draws_do_not_flatten_the_data(self) -> None:
        data, other = draws(100).numpy(), np.concatenate([draws(100).numpy(), np.full(20, 1e9)])
        low, high = limits_of([data, other])
        assert low <= data.min() < data.max() <= high < 20


class TestPictures:
    @pytest.mark.parametrize("width", [1, 2, 5, 30])
    def test_any_width(self, tmp_path: Path, width: int) -> None:
        data, base, gebm = (draws(80, width, seed=k) for k in range(3))
        paths = table_figures.draw_table(tmp_path / "figures", data, base, gebm, None)
        assert [path.name for path in paths] == NAMES[: 2 if width == 1 else 3]
        assert all(size[0] < 2500 and size[1] < 2500 for size in sizes(paths))

    def test_odd_tables_and_names(self, tmp_path: Path) -> None:
        names = ("in $ (a_b$)", "<b>w</b> & x^2", "年齢", "a" * 80, "", "tab\tand\nline", "constant", "whole")
        data, base, gebm = (draws(60, 8, seed=k) for k in range(3))
        for x in (data, base, gebm):
            x[:, 6] = 0
        base[0], base[1], base[2:5] = math.nan, math.inf, 1e20
        scale = (1.0, 1e-3, 12.0, 1.0, 1e12, 1e-10, 1.0, 1.0)
        units = TableUnits(names, (5.0, 1.7e9, 40.0, 0.0, 0.0, 1e-9, 2.5, 3.0), scale, (0.0,) * 7 + (1.0,), ((),) * 8)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sizes(table_figures.draw_table(tmp_path, data, base, gebm, units))

    @pytest.mark.parametrize("kind", ["one row", "equal", "nan draws"])
    def test_hardly_any_data(self, tmp_path: Path, kind: str) -> None:
        data, base, gebm = (draws(40, 3, seed=k) for k in range(3))
        if kind == "one row":
            data, base, gebm = data[:1], base[:1], gebm[:2]
        elif kind == "equal":
            data = base = gebm = torch.ones(10, 3)
        else:
            base = gebm = torch.full((10, 3), math.nan)
        sizes(table_figures.draw_table(tmp_path, data, base, gebm, None))

    def test_the_legend_says_that_draws_lie_outside(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kept: list[Any] = []
        monkeypatch.setattr(table_figures, "save_figure", lambda figure, path: kept.append(figure) or path)
        x = draws(100, 2)
        far = torch.cat([x[:60], x[60:] + 1e4])
        columns = columns_of_table({"data": x, "base": x, "GEBM": far}, None)
        for draw in (table_figures.marginals, table_figures.quantiles, table_figures.pairs):
            draw(Path("f.png"), columns)
            texts = [text.get_text() for text in kept[-1].legends[0].get_texts()]
            assert texts[1:] == ["base", "GEBM (up to 40% of draws not shown)"]

    def test_a_wide_and_long_table_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = draws(20_000, 200)
        columns = columns_of_table({"data": x, "base": x, "GEBM": x}, None)
        assert columns.values["data"].shape == (table_columns.MOST_ROWS, 200)
        asked: list[list[int]] = []
        monkeypatch.setattr(table_figures, "save_figure", lambda figure, path: asked.append(figure.axes) or path)
        table_figures.marginals(Path("m.png"), columns)
        table_figures.quantiles(Path("q.png"), columns)
        assert [len(axes) for axes in asked] == [24, 8]

    def test_names_stand_beside_the_axes_as_they_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kept: list[Any] = []
        monkeypatch.setattr(table_figures, "save_figure", lambda figure, path: kept.append(figure) or path)
        units = TableUnits(("cost in $", "time"), (5.0, 1.7e9), (2.0, 1e-3))
        x = draws(50, 2)
        columns = columns_of_table({"data": x, "base": x, "GEBM": x}, units)
        table_figures.marginals(Path("m.png"), columns)
        assert [axis.get_xlabel() for axis in kept[0].axes] == ["cost in $", "time (+1.7e9)"]
        assert [axis.get_title() for axis in kept[0].axes] == ["KS base 0.00, GEBM 0.00"] * 2


class Normal(Base):
    latent_dim = 3
    data_shape = (3,)

    def forward(self, z: Tensor) -> Tensor:
        return z

    def log_prob(self, x: Tensor) -> Tensor:
        return (-0.5 * x.square() - 0.5 * math.log(2 * math.pi)).sum(1)


class Well(Energy):
    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * x.flatten(1).square().sum(1)


class TestDensity:
    def test_ranks_are_uniform_for_draws_of_the_model(self) -> None:
        values, others = draws(4000).double().numpy(), draws(4000, seed=1).double().numpy()
        ranks = ranks_among(values, others)
        assert ((ranks >= 0) & (ranks <= 1)).all()
        assert ks_2samp(ranks, np.linspace(0, 1, 4000)).pvalue > 0.01
        assert ranks_among(np.array([-9.0, 9.0, 1.0]), np.array([1.0, 1.0])).tolist() == [0.0, 1.0, 0.5]

    def test_log_densities_of_base_and_gebm(self) -> None:
        model = GEBM(Normal(), Well())
        sets = {"data": draws(50, 3) / 2, "base": draws(60, 3, seed=1), "GEBM": draws(70, 3, seed=2) / 2}
        found = _log_densities(model, sets, beta=2.0)
        assert {label: [values.size for values in both] for label, both in found.items()} == {
            "base": [50, 60],
            "GEBM": [50, 70],
        }
        expected = Normal().log_prob(sets["GEBM"]) - 2 * Well()(sets["GEBM"])
        assert found["GEBM"][1] == pytest.approx(expected.double().numpy(), rel=1e-5)

    @pytest.mark.parametrize("kind", ["plain", "not finite", "one"])
    def test_picture(self, tmp_path: Path, kind: str) -> None:
        rows = draws(90).double().numpy()
        if kind == "not finite":
            rows[:] = -math.inf
        rows = rows[:1] if kind == "one" else rows
        found = {"base": (rows, draws(80).double().numpy()), "GEBM": (draws(70).numpy(), draws(60).numpy())}
        sizes([density_calibration(tmp_path / "density.png", found)])

    def test_a_table_of_a_model_with_a_density_has_all_pictures(self, tmp_path: Path) -> None:
        sets = {"data": draws(50, 3) / 2, "base": draws(60, 3, seed=1), "gebm": draws(70, 3, seed=2) / 2}
        paths = draw_all(tmp_path, model=GEBM(Normal(), Well()), table=OfTable(None), **sets)
        assert [path.name for path in paths] == [*NAMES, "density.png", "energies.png"]
