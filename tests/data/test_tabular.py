"""Tables for density estimation: splits, noise, scales, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.data.tabular import RedWine, Tabular, resolution

PARTS = ("train", "valid", "test")


def write(tmp_path, rows, header=None, name="table.csv"):
    lines = [",".join(header)] if header else []
    lines += [",".join(map(str, row)) for row in rows]
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def numbers(num=300, dim=3, seed=0):
    return np.random.default_rng(seed).normal(size=(num, dim)) * [1.0, 10.0, 100.0][:dim] + [0.0, 5.0, -20.0][:dim]


def whole(dataset):
    return torch.cat([dataset.split(part).first(10_000) for part in PARTS])


class TestSplit:
    def test_sizes(self, tmp_path):
        data = Tabular(write(tmp_path, numbers(1000)))
        assert [len(data.split(part)) for part in PARTS] == [810, 90, 100]

    def test_validation_has_at_most_a_thousand_rows(self, tmp_path):
        np.save(tmp_path / "many.npy", numbers(20_000))
        data = Tabular(str(tmp_path / "many.npy"))
        assert [len(data.split(part)) for part in PARTS] == [17_000, 1000, 2000]

    def test_equal_rows_stay_together(self, tmp_path):
        rows = np.repeat(np.arange(60.0)[:, None] * [1, 7], 5, axis=0)
        data = Tabular(write(tmp_path, rows), dequantise=False, standardise=False)
        seen = [{tuple(row) for row in data.split(part).first(1000).tolist()} for part in PARTS]
        assert not seen[0] & seen[1]
        assert not seen[0] & seen[2]
        assert not seen[1] & seen[2]
        assert sum(len(data.split(part)) for part in PARTS) == 300

    def test_a_seed_decides(self, tmp_path):
        path = write(tmp_path, numbers())
        assert torch.equal(whole(Tabular(path, seed=1)), whole(Tabular(path, seed=1)))
        assert not torch.equal(whole(Tabular(path, seed=1)), whole(Tabular(path, seed=2)))


class TestNoise:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([1.0, 2.0, 4.0, 7.0], 1.0),
            ([0.1, 0.2, 0.7, 1.3], 0.1),
            ([0.25, 0.5, 1.0, 2.75], 0.05),
            ([0.005, 0.01, 0.025], 0.005),
            ([10.0, 40.0, 70.0], 10.0),
            ([0.0, 3.0, 1e6 + 1], 1.0),
        ],
    )
    def test_the_grid_of_a_column(self, values, expected):
        assert float(resolution(torch.tensor(values * 30).unsqueeze(1))) == pytest.approx(expected)

    def test_few_odd_values_do_not_hide_the_grid(self):
        column = torch.cat([torch.arange(97) / 10, torch.tensor([math.pi, math.e, math.sqrt(2)])])
        assert float(resolution(column.unsqueeze(1))) == pytest.approx(0.1)

    def test_odd_multiples_have_the_step_from_one_to_the_next(self):
        column = torch.tensor([math.pi * k for k in range(10)] * 30, dtype=torch.float64)
        assert float(resolution(column.unsqueeze(1))) == pytest.approx(math.pi)

    def test_continuous_columns_get_none(self):
        column = torch.randn(500, 1, dtype=torch.float64)
        assert float(resolution(column)) < 1e-5

    def test_it_fills_the_grid_and_no_more(self, tmp_path):
        rows = np.random.default_rng(0).integers(0, 5, size=(2000, 1)).astype(float)
        rows = np.concatenate([rows, numbers(2000, 1)], axis=1)
        data = Tabular(write(tmp_path, rows), standardise=False)
        column = whole(data)[:, 0]
        noise = column - column.round()
        assert noise.abs().max() <= 0.5
        assert abs(float(noise.std()) - math.sqrt(1 / 12)) < 0.02
        assert len(column.unique()) > 1990
        assert set(column.round().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}

    def test_it_can_be_left_out(self, tmp_path):
        rows = np.random.default_rng(0).integers(0, 5, size=(200, 2)).astype(float)
        data = Tabular(write(tmp_path, rows), dequantise=False, standardise=False)
        assert torch.equal(whole(data), whole(data).round())


class TestScale:
    def test_mean_and_deviation_are_those_of_the_training_rows(self, tmp_path):
        data = Tabular(write(tmp_path, numbers()))
        train = data.split("train").first(1000).double()
        torch.testing.assert_close(train.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)
        torch.testing.assert_close(train.std(0, correction=0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
        assert data.split("test").first(1000).mean(0).abs().max() > 1e-3

    def test_log_det_is_that_of_the_scaling(self, tmp_path):
        path = write(tmp_path, numbers())
        data, raw = Tabular(path), Tabular(path, standardise=False)
        assert raw.log_det == 0.0
        points = raw.split("test").first(2).double()
        slope = torch.autograd.functional.jacobian(lambda x: (x - data.mean) / data.std, points[0])
        assert data.log_det == pytest.approx(float(slope.det().abs().log()))
        torch.testing.assert_close(data.standardised(points), data.split("test").first(2), rtol=1e-5, atol=1e-5)


class TestColumns:
    def test_by_name_and_number_in_the_order_asked_for(self, tmp_path):
        path = write(tmp_path, numbers(), header=["a", "b", "c"])
        data = Tabular(path, columns=["c", "1"], standardise=False)
        everything = Tabular(path, standardise=False)
        assert data.columns == ("c", "a")
        assert data.data_shape == (2,)
        assert abs(float(whole(data)[:, 0].mean()) - float(whole(everything)[:, 2].mean())) < 1.0

    @pytest.mark.parametrize(
        ("columns", "message"),
        [(["d"], "no column 'd'"), (["4"], "no column '4'"), (["a", "1"], "asked for twice"), ([], "columns is empty")],
    )
    def test_columns_that_are_not_there(self, tmp_path, columns, message):
        with pytest.raises(DataError, match=message):
            Tabular(write(tmp_path, numbers(), header=["a", "b", "c"]), columns=columns)

    @pytest.mark.parametrize("mark", [",", ";", "\t"])
    def test_of_a_csv_with_words_in_other_columns(self, tmp_path, mark):
        rows = [mark.join([f"{k}", f"name {k}", f"{k * k}"]) for k in range(30)]
        (tmp_path / "x.csv").write_text("\n".join([mark.join(['"a 1"', "b", "c"]), *rows]))
        data = Tabular(str(tmp_path / "x.csv"), columns=["c", "a 1"], dequantise=False, standardise=False)
        table = whole(data)
        assert torch.equal(table[:, 0], table[:, 1] ** 2)
        assert sorted(table[:, 1].tolist()) == list(range(30))

    @pytest.mark.parametrize("suffix", [".csv", ".npy"])
    def test_rows_by_a_condition(self, tmp_path, suffix):
        rows = np.stack([np.arange(60.0) % 2, np.arange(60.0), np.arange(60.0) % 3], axis=1)
        path = write(tmp_path, rows) if suffix == ".csv" else str(tmp_path / "x.npy")
        np.save(tmp_path / "x.npy", rows)
        data = Tabular(path, columns=["2"], where=["1=1", "3 = 0"], dequantise=False, standardise=False)
        assert sorted(whole(data).flatten().tolist()) == [3.0 + 6 * k for k in range(10)]
        with pytest.raises(DataError, match="none of the 60 rows meets where="):
            Tabular(path, where=["1=2"])
        with pytest.raises(DataError, match="must read column=number"):
            Tabular(path, where=["1=one"])
        with pytest.raises(DataError, match="no column 'label'"):
            Tabular(path, where=["label=1"])


class TestRefused:
    def test_an_absent_file_says_where_it_comes_from(self, tmp_path):
        with pytest.raises(DataError, match="does not exist") as caught:
            Tabular(str(tmp_path / "x.csv"), origin="https://example.org, table.csv")
        assert caught.value.hint == "Where it comes from: https://example.org, table.csv"
        with pytest.raises(DataError, match="does not exist"):
            Tabular(str(tmp_path / "x.csv"))

    def test_lines_of_another_length(self, tmp_path):
        (tmp_path / "x.csv").write_text("a,b\n1,2\n3,4,5\n6,7\n")
        with pytest.raises(DataError, match="line 3: 3 fields where the first line has 2"):
            Tabular(str(tmp_path / "x.csv"))

    @pytest.mark.parametrize("text", ["", "a,b\n"])
    def test_a_csv_without_rows(self, tmp_path, text):
        (tmp_path / "x.csv").write_text(text)
        with pytest.raises(DataError, match="holds no row of data"):
            Tabular(str(tmp_path / "x.csv"))

    def test_what_is_no_text(self, tmp_path):
        (tmp_path / "x.csv").write_bytes(b"a,b\n1,2\n\xff\xfe,3\n")
        with pytest.raises(DataError, match="can't be read as .csv"):
            Tabular(str(tmp_path / "x.csv"))

    def test_what_other_columns_lack_does_not_matter(self, tmp_path):
        rows = [[k, "", k + 1] for k in range(40)]
        assert Tabular(write(tmp_path, rows), columns=["1", "3"]).data_shape == (2,)
        with pytest.raises(DataError, match="line 1: column '2' is empty"):
            Tabular(write(tmp_path, rows))

    def test_missing_values_in_an_array(self, tmp_path):
        rows = numbers()
        rows[7, 1] = np.nan
        np.save(tmp_path / "x.npy", rows)
        with pytest.raises(DataError, match="row 8, column '2' is missing"):
            Tabular(str(tmp_path / "x.npy"))

    @pytest.mark.parametrize(("value", "message"), [("", "is empty"), ("red", "'red'"), ("inf", "'inf'")])
    def test_missing_values_and_words_in_a_csv(self, tmp_path, value, message):
        rows = [[1.0, 2.0], [3.0, value], [5.0, 6.0]]
        with pytest.raises(DataError, match=f"line 3: column 'b' .*{message}"):
            Tabular(write(tmp_path, rows, header=["a", "b"]))

    def test_constant_columns(self, tmp_path):
        rows = numbers()
        rows[:, 1] = 4.0
        with pytest.raises(DataError, match=r"column 'b' is constant \(4\)"):
            Tabular(write(tmp_path, rows, header=["a", "b", "c"]))
        assert Tabular(write(tmp_path, rows, header=["a", "b", "c"]), columns=["a", "c"]).data_shape == (2,)

    def test_columns_constant_in_training(self, tmp_path):
        rows = numbers(100, 2)
        rows[:, 1] = 4.0
        for odd in range(100):
            changed = rows.copy()
            changed[odd, 1] = 5.0
            try:
                Tabular(write(tmp_path, changed), dequantise=False)
            except DataError as error:
                assert "column '2' has one value in all training rows" in str(error)  # noqa: PT017
                return
        pytest.fail("the odd row was never outside the training part")

    @pytest.mark.parametrize(("num", "message"), [(1, "has one row"), (2, "has 2 rows")])
    def test_too_few_rows(self, tmp_path, num, message):
        with pytest.raises(DataError, match=message):
            Tabular(write(tmp_path, numbers(num)))

    def test_rows_that_are_all_alike(self, tmp_path):
        rows = np.concatenate([np.ones((50, 2)), np.full((50, 2), 2.0)])
        with pytest.raises(DataError, match="2 different rows"):
            Tabular(write(tmp_path, rows))

    def test_images(self, tmp_path):
        np.save(tmp_path / "x.npy", np.zeros((5, 4, 4)))
        with pytest.raises(DataError, match="a table"):
            Tabular(str(tmp_path / "x.npy"))

    def test_fractions(self, tmp_path):
        with pytest.raises(UsageError):
            Tabular(write(tmp_path, numbers()), test_fraction=1.0)

    def test_parquet_without_its_package(self, tmp_path, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
        (tmp_path / "x.parquet").write_bytes(b"PAR1")
        with pytest.raises(DataError, match="needs pyarrow"):
            Tabular(str(tmp_path / "x.parquet"))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = numbers()
    table = pyarrow.table({"a": rows[:, 0], "b": rows[:, 1]})
    parquet.write_table(table, tmp_path / "x.parquet")
    data = Tabular(str(tmp_path / "x.parquet"))
    assert data.columns == ("a", "b")
    parquet.write_table(pyarrow.table({"a": ["x", "y", "z"]}), tmp_path / "words.parquet")
    with pytest.raises(DataError, match="column 'a' holds string"):
        Tabular(str(tmp_path / "words.parquet"))


def test_red_wine():
    data = RedWine()
    assert sum(len(data.split(part)) for part in PARTS) == 1599
    assert data.data_shape == (11,)
    assert data.columns[0] == "fixed acidity"
    assert (data.resolution > 0).all()
    assert torch.isfinite(whole(data)).all()
    assert float(data.mean[10]) == pytest.approx(10.42, abs=0.05)  # per cent of alcohol, as published
