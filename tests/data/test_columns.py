"""Choosing columns and rows of tables: one message for all problems, missing rows, row labels, conditions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from gebm_kit.core.errors import DataError
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.data.arrays import Arrays
from gebm_kit.data.columns import read_table
from gebm_kit.data.tabular import Tabular, resolution

NUM = 40
VALUES = np.random.default_rng(0).normal(size=(NUM, 2))


def csv(folder, header, line):
    path = folder / "x.csv"
    path.write_text("\n".join([header, *(line(i) for i in range(NUM))] if header else [line(i) for i in range(NUM)]))
    return path


def parquet(folder, columns, **metadata):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    files.write_table(pyarrow.table(columns), folder / "x.parquet")
    return folder / "x.parquet"


def whole(data):
    return torch.cat([data.split(part).first(10**6) for part in ("train", "valid", "test")])


class TestProblems:
    def test_all_of_them_come_in_one_message_with_the_columns_that_work(self, tmp_path):
        path = csv(
            tmp_path,
            "a,visit,b,one,clinic,gaps",
            lambda i: f"{VALUES[i, 0]},2020-01-{i % 28 + 1:02d},{VALUES[i, 1]},1,{'ns'[i % 2]},{'' if i % 4 else i}",
        )
        with pytest.raises(DataError) as caught:
            Tabular(str(path))
        message, hint = caught.value.message, caught.value.hint
        assert "4 columns can't be used" in message
        for words in ("'visit' holds '2020-01-01', which is a date", "'one' is constant (1)", "'clinic' holds 'n'"):
            assert words in message
        assert "line 3: column 'gaps' is empty (30 such values)" in message
        assert 'columns=["a", "b"]' in hint
        assert (
            'missing=drop with columns=["a", "b", "gaps"] leaves out the rows with a missing value (30 of 40)' in hint
        )
        for columns in re.findall(r"columns=(\[.*?\])", hint):
            drop = "gaps" in columns
            with pytest.warns(GebmKitWarning, match="30 of 40") if drop else _nothing():
                Tabular(str(path), columns=json.loads(columns), missing="drop" if drop else "refuse")

    @pytest.mark.parametrize("dataset", [Tabular, Arrays])
    @pytest.mark.parametrize("text", ["2024_07", "1_000", "0x1F", "1,5", "31.12.2020"])
    def test_text_that_looks_like_numbers(self, tmp_path, dataset, text):
        path = csv(tmp_path, "id,a", lambda i: f'"{text}",{VALUES[i, 0]}')
        with pytest.raises(DataError, match=f"line 2: column 'id' holds '{re.escape(text)}'.*40 such values"):
            dataset(str(path))

    def test_parquet_says_the_type(self, tmp_path):
        days = np.arange(NUM).astype("datetime64[D]")
        path = parquet(tmp_path, {"day": days, "word": ["x"] * NUM, "a": VALUES[:, 0], "b": VALUES[:, 1]})
        with pytest.raises(DataError, match=r"2 columns.*'day' holds date32.*'word' holds string") as caught:
            Tabular(str(path))
        assert 'columns=["a", "b"]' in caught.value.hint

    def test_two_columns_of_one_name(self, tmp_path):
        path = csv(tmp_path, "a,a,b", lambda i: f"{VALUES[i, 0]},{VALUES[i, 1]},{i % 7}")
        with pytest.raises(DataError, match="more than one column is called 'a'"):
            read_table(path)
        with pytest.raises(DataError, match="more than one column is called 'a'"):
            read_table(path, columns=["a", "b"])
        assert read_table(path, columns=["2", "b"]).columns == ("a", "b")


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *args):
        return False


class TestRowLabels:
    @pytest.mark.parametrize("dataset", [Tabular, Arrays])
    @pytest.mark.parametrize("name", ["", "Unnamed: 0"])
    @pytest.mark.parametrize("label", [str, lambda i: str(i * 7 % NUM), lambda i: f"row {i}"])
    def test_a_first_column_without_a_name_is_left_out_with_a_warning(self, tmp_path, dataset, name, label):
        path = csv(tmp_path, f"{name},a,b", lambda i: f"{label(i)},{VALUES[i, 0]},{VALUES[i, 1]}")
        with pytest.warns(GebmKitWarning, match="column 1 .* left out: no measurement, but row labels"):
            data = dataset(str(path))
        assert data.units.columns == ("a", "b")
        assert "left out: column 1" in data.describe_reading()

    def test_an_index_in_parquet(self, tmp_path):
        pandas = pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")
        index = pandas.Index(np.arange(NUM) * 3, name="key")
        pandas.DataFrame({"a": VALUES[:, 0], "b": VALUES[:, 1]}, index=index).to_parquet(tmp_path / "x.parquet")
        with pytest.warns(GebmKitWarning, match="row labels"):
            assert Tabular(str(tmp_path / "x.parquet")).columns == ("a", "b")

    @pytest.mark.parametrize("first", [0, 1])
    @pytest.mark.parametrize("header", ["id,a", ""])
    def test_another_column_that_counts_the_rows_is_refused_until_it_is_named(self, tmp_path, first, header):
        path = csv(tmp_path, header, lambda i: f"{i + first},{VALUES[i, 0]}")
        name = "id" if header else "1"
        with pytest.raises(DataError, match=f"column '{name}' counts the rows") as caught:
            Tabular(str(path))
        assert f'columns=["{"a" if header else "2"}"]' in caught.value.hint
        assert Tabular(str(path), columns=["1", "2"]).data_shape == (2,)

    def test_counting_may_start_anywhere(self, tmp_path):
        path = csv(tmp_path, "case,a", lambda i: f"{i + 1000},{VALUES[i, 0]}")
        with pytest.raises(DataError, match="column 'case' counts the rows"):
            Tabular(str(path))

    @pytest.mark.parametrize("name", ["id", "index", "customer_id", "Row", "row_number"])
    def test_an_id_that_never_repeats_is_refused_in_any_order(self, tmp_path, name):
        path = csv(tmp_path, f"a,{name}", lambda i: f"{VALUES[i, 0]},{7 * (NUM - i)}")
        with pytest.raises(DataError, match=f"column '{name}' holds a different whole number in every row"):
            Tabular(str(path))
        assert Tabular(str(path), columns=["a", name]).data_shape == (2,)

    def test_an_id_that_repeats_is_kept(self, tmp_path):
        path = csv(tmp_path, "a,id", lambda i: f"{VALUES[i, 0]},{i % 5}")
        assert Tabular(str(path)).data_shape == (2,)

    def test_leading_zeros_are_warned_of_until_the_column_is_named(self, tmp_path):
        path = csv(tmp_path, "zip,a", lambda i: f"0{2139 + i % 7},{VALUES[i, 0]}")
        with pytest.warns(GebmKitWarning, match="column 'zip' holds 02139, read as 2139"):
            Tabular(str(path))
        assert Tabular(str(path), columns=["zip", "a"]).data_shape == (2,)

    def test_arrays_of_numbers_too(self, tmp_path):
        np.save(tmp_path / "x.npy", np.column_stack([np.arange(NUM), VALUES]))
        with pytest.raises(DataError, match="column '1' counts the rows"):
            Tabular(str(tmp_path / "x.npy"))

    def test_thousands_of_columns_take_no_longer_than_their_number(self, tmp_path):
        """A loop over all pairs of these columns would take minutes."""
        path = tmp_path / "wide.csv"
        path.write_text("a" + "," * 300_000 + "\n1" + "," * 300_000 + "\n")
        assert read_table(path).columns == ("a",)

    def test_a_number_of_thousands_of_digits_is_not_a_column(self, tmp_path):
        with pytest.raises(DataError, match="has no column"):
            read_table(csv(tmp_path, "x", str), columns=["9" * 5000])

    def test_a_single_column_may_count(self, tmp_path):
        assert len(read_table(csv(tmp_path, "x", str)).rows) == NUM

    def test_empty_columns_at_the_end_are_left_out_and_nameless_ones_refused(self, tmp_path):
        with pytest.warns(GebmKitWarning, match=r"column 3 \(empty\)"):
            Tabular(str(csv(tmp_path, "a,b,", lambda i: f"{VALUES[i, 0]},{VALUES[i, 1]},")))
        with pytest.raises(DataError, match="column 2 has no name and holds '5'"):
            Tabular(str(csv(tmp_path, "a,,b", lambda i: f"{VALUES[i, 0]},5,{VALUES[i, 1]}")))


class TestMissing:
    @pytest.mark.parametrize("dataset", [Tabular, Arrays])
    @pytest.mark.parametrize("suffix", [".csv", ".npy", ".npz", ".parquet"])
    def test_drop_leaves_out_rows_and_says_how_many(self, tmp_path, dataset, suffix):
        rows = VALUES.copy()
        rows[::5, 1] = np.nan
        path = tmp_path / f"x{suffix}"
        if suffix == ".csv":
            np.savetxt(path, rows, delimiter=",")
        elif suffix == ".parquet":
            parquet(tmp_path, {"1": rows[:, 0], "2": rows[:, 1]})
        elif suffix == ".npy":
            np.save(path, rows)
        else:
            np.savez(path, x=rows)
        with pytest.raises(DataError, match=r"missing|holds nan"):
            dataset(str(path))
        with pytest.warns(GebmKitWarning, match=r"8 of 40 .*missing value and are dropped"):
            data = dataset(str(path), missing="drop")
        assert sum(len(data.split(part)) for part in ("train", "valid", "test")) == NUM - 8
        assert "8 row(s) with a missing value dropped" in data.describe_reading()

    def test_labels_go_with_their_rows(self, tmp_path):
        rows = np.arange(NUM, dtype=float)
        rows[3] = np.nan
        np.savez(tmp_path / "x.npz", x=rows, y=np.arange(NUM) % 3)
        with pytest.warns(GebmKitWarning, match="1 of 40"):
            data = Arrays(str(tmp_path / "x.npz"), labels="y", missing="drop")
        for part in ("train", "valid", "test"):
            assert torch.equal(data.split(part).first(99)[:, 0] % 3, data.labels(part).float())

    def test_infinity_and_text_are_not_missing(self, tmp_path):
        for text in ("inf", "red"):
            path = csv(tmp_path, "a,b", lambda i, text=text: f"{VALUES[i, 0]},{text if i == 4 else i * i}")
            with pytest.raises(DataError, match="line 6: column 'b'"):
                Tabular(str(path), missing="drop")

    def test_nothing_left(self, tmp_path):
        path = csv(tmp_path, "a,b", lambda i: f"{VALUES[i, 0]},")
        with pytest.raises(DataError, match="each of the 40 rows has a missing value"):
            Tabular(str(path), missing="drop")


class TestConditions:
    @pytest.mark.parametrize("suffix", [".csv", ".parquet"])
    @pytest.mark.parametrize(
        ("where", "kept"),
        [
            ("kind == 'red'", lambda i: i % 2 == 0),
            ("kind = 'red'", lambda i: i % 2 == 0),
            (['kind != "red"'], lambda i: i % 2 == 1),
            (["kind == 'red'", "age >= 18"], lambda i: i % 2 == 0 and i >= 18),
            (["age<5"], lambda i: i < 5),
            (["age != 3", "age <= 7"], lambda i: i <= 7 and i != 3),
        ],
    )
    def test_text_and_numbers(self, tmp_path, suffix, where, kept):
        if suffix == ".csv":
            path = csv(tmp_path, "age,kind,a", lambda i: f"{i},{('red', 'blue')[i % 2]},{i * i}")
        else:
            kinds = [("red", "blue")[i % 2] for i in range(NUM)]
            path = parquet(tmp_path, {"age": np.arange(NUM), "kind": kinds, "a": np.arange(NUM) ** 2})
        found = read_table(path, columns=["a"], where=where)
        assert found.rows[:, 0].tolist() == [float(i * i) for i in range(NUM) if kept(i)]
        assert found.total == NUM

    def test_problems_of_other_rows_do_not_matter(self, tmp_path):
        path = csv(tmp_path, "kind,a", lambda i: f"{'xy'[i % 2]},{i * i if i % 2 else 'none yet'}")
        assert len(read_table(path, columns=["a"], where="kind == 'y'").rows) == NUM // 2

    @pytest.mark.parametrize(
        ("where", "message"),
        [
            ("kind == red", "must read column=number or column='text'"),
            ("kind < 'red'", "must read column=number or column='text'"),
            ("kind", "must read"),
            ("kind = 3", "line 2: column 'kind' holds 'red'"),
            ("knid == 'red'", "no column 'knid'; did you mean kind"),
            ("kind == 'green'", "none of the 40 rows meets where="),
            ("kind == 1_0", "must read"),
        ],
    )
    def test_conditions_that_are_refused(self, tmp_path, where, message):
        path = csv(tmp_path, "kind,a", lambda i: f"red,{i * i}")
        with pytest.raises(DataError, match=re.escape(message)):
            read_table(path, columns=["a"], where=where)

    def test_text_of_a_column_of_numbers(self, tmp_path):
        np.save(tmp_path / "x.npy", VALUES)
        with pytest.raises(DataError, match="holds numbers, and where compares it with text"):
            read_table(tmp_path / "x.npy", where="1 == 'red'")


class TestPrecision:
    @pytest.mark.parametrize("suffix", [".csv", ".npy", ".npz", ".parquet"])
    @pytest.mark.parametrize("kind", ["float64", "int64", "uint32", "uint64"])
    @pytest.mark.parametrize("dataset", [Tabular, Arrays])
    def test_large_values_are_standardised_before_they_are_cut_or_refused(self, tmp_path, dataset, kind, suffix):
        rows = 1.7e9 + VALUES * (1 if kind == "float64" else 100)
        rows = rows.astype(kind)
        path = tmp_path / f"x{suffix}"
        if suffix == ".csv":
            np.savetxt(path, rows, delimiter=",", fmt="%.17g")
        elif suffix == ".parquet":
            parquet(tmp_path, {"1": rows[:, 0], "2": rows[:, 1]})
        elif suffix == ".npy":
            np.save(path, rows)
        else:
            np.savez(path, x=rows)
        data = dataset(str(path), standardise=True)
        found = whole(data)
        assert len(found[:, 0].unique()) >= len(np.unique(rows[:, 0]))  # noise may tell equal values apart
        assert 0.5 < float(found.std()) < 2
        torch.testing.assert_close(
            data.units.measured(found).sort(0).values,
            torch.from_numpy(np.sort(rows.astype(float), 0)),
            rtol=0,
            atol=1.0 if dataset is Tabular and kind != "float64" else 1e-4,  # noise of at most half a unit
        )
        with pytest.raises(DataError, match="lie too close together for their size"):
            dataset(str(path), standardise=False)

    @pytest.mark.parametrize("dataset", [Tabular, Arrays])
    def test_more_digits_than_double_precision(self, tmp_path, dataset):
        rows = np.column_stack([2**60 + np.arange(NUM) * np.arange(NUM) % 17, np.arange(NUM) % 7])
        np.save(tmp_path / "x.npy", rows)
        with pytest.raises(DataError, match="more digits than double precision holds"):
            dataset(str(tmp_path / "x.npy"), standardise=True)
        np.savetxt(tmp_path / "x.csv", rows, delimiter=",", fmt="%d")
        with pytest.raises(DataError, match="more digits than double precision holds"):
            dataset(str(tmp_path / "x.csv"))

    @pytest.mark.parametrize("dataset", [Tabular, Arrays])
    @pytest.mark.parametrize(("size", "standardise"), [(1e300, True), (1e40, False)])
    def test_numbers_too_large_to_compute_with(self, tmp_path, dataset, size, standardise):
        np.save(tmp_path / "x.npy", VALUES * size)
        with pytest.raises(DataError, match="too large|not a finite number in single precision"):
            dataset(str(tmp_path / "x.npy"), standardise=standardise)

    def test_unsigned_numbers_do_not_wrap_around(self, tmp_path):
        np.save(tmp_path / "x.npy", np.full((NUM, 2), 2**63 + 5, dtype=np.uint64))
        for dataset in (Tabular, Arrays):
            with pytest.raises(DataError, match="9223372036854775813"):
                dataset(str(tmp_path / "x.npy"))

    def test_noise_is_no_wider_than_the_values(self):
        column = 1.7e9 + torch.randn(300, 1, dtype=torch.float64)
        assert float(resolution(column)) < 1e-5
        assert float(resolution(1.7e9 + (100 * (column - 1.7e9)).round())) == 1.0

    def test_a_value_that_fills_most_rows_does_not_decide_the_grid(self):
        column = torch.zeros(300, 1, dtype=torch.float64)
        column[:12] = torch.arange(1, 13, dtype=torch.float64).unsqueeze(1) * 3
        assert float(resolution(column)) <= 3.0


class TestClasses:
    @pytest.mark.parametrize("suffix", [".npz", ".csv"])
    @pytest.mark.parametrize("ids", [(0, 1, 10**9), (3, 7, 9), (2**40, 5, 6)])
    def test_labels_are_ids(self, tmp_path, suffix, ids):
        labels = np.array(ids)[np.arange(NUM) % 3]
        path = tmp_path / f"x{suffix}"
        if suffix == ".npz":
            np.savez(path, x=np.arange(NUM) * np.arange(NUM), y=labels)
        else:
            path.write_text("x,y\n" + "".join(f"{i * i},{labels[i]}\n" for i in range(NUM)))
        data = Arrays(str(path), labels="y")
        assert data.num_classes == 3
        assert data.class_values == tuple(map(str, sorted(ids)))
        for part in ("train", "valid", "test"):
            roots = data.split(part).first(99)[:, 0].sqrt().long()
            assert [int(data.class_values[k]) for k in data.labels(part)] == [ids[i % 3] for i in roots.tolist()]
        assert f"3 classes ({', '.join(data.class_values)})" in data.describe_reading()

    def test_a_label_for_each_row_is_refused(self, tmp_path):
        np.savez(tmp_path / "x.npz", x=VALUES, y=np.arange(NUM))
        with pytest.raises(DataError, match="each of the 40 rows has a label of its own"):
            Arrays(str(tmp_path / "x.npz"), labels="y")

    def test_one_number_written_in_two_ways_is_one_class(self, tmp_path):
        path = csv(tmp_path, "a,y", lambda i: f"{i * i},{('1', '1.0', '2')[i % 3]}")
        assert Arrays(str(path), labels="y").class_values == ("1", "2")

    def test_a_missing_label(self, tmp_path):
        path = csv(tmp_path, "a,y", lambda i: f"{i * i},{('1', '', '2')[i % 3]}")
        with pytest.raises(DataError, match="line 3: column 'y' is empty"):
            Arrays(str(path), labels="y")
        with pytest.warns(GebmKitWarning, match="13 of 40"):
            assert Arrays(str(path), labels="y", missing="drop").num_classes == 2

    def test_ids_that_double_precision_can_t_hold(self, tmp_path):
        np.savez(tmp_path / "x.npz", x=VALUES, y=np.array([0, 1e300])[np.arange(NUM) % 2])
        with pytest.raises(DataError, match="too large to tell"):
            Arrays(str(tmp_path / "x.npz"), labels="y")


class TestParquet:
    def test_numbers_of_every_kind(self, tmp_path):
        pyarrow = pytest.importorskip("pyarrow")
        import decimal

        columns = {
            "whole": pyarrow.array([1, 2, 4], pyarrow.int8()),
            "yes": pyarrow.array([True, False, True]),
            "exact": pyarrow.array([decimal.Decimal("1.5"), decimal.Decimal("2.25"), decimal.Decimal("0.1")]),
            "half": pyarrow.array([0.5, 0.25, 1.0], pyarrow.float32()),
        }
        found = read_table(parquet(tmp_path, columns))
        assert found.rows.tolist() == [[1, 1, 1.5, 0.5], [2, 0, 2.25, 0.25], [4, 1, 0.1, 1.0]]

    @pytest.mark.parametrize("cut", [0, 4, 100, 400])
    def test_damage(self, tmp_path, cut):
        path = parquet(tmp_path, {"a": VALUES[:, 0]})
        path.write_bytes(path.read_bytes()[: -1 - cut] if cut else b"PAR1PAR1")
        with pytest.raises(DataError, match=r"x.parquet can't be read as .parquet"):
            read_table(path)

    def test_more_rows_than_memory(self, tmp_path, monkeypatch):
        path = parquet(tmp_path, {"a": np.zeros(10_000)})
        monkeypatch.setattr("gebm_kit.data.parquet_files.available_memory", lambda: 100_000)
        with pytest.raises(DataError, match="unpacks to 80.0 kB, more than half of the memory"):
            read_table(path)

    def test_no_rows(self, tmp_path):
        with pytest.raises(DataError, match="holds no row of data"):
            read_table(parquet(tmp_path, {"a": np.zeros(0)}))


def test_options_without_a_meaning_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VALUES)
    with pytest.raises(DataError, match="header=true has a meaning for .csv files only"):
        Tabular(str(tmp_path / "x.npy"), header=True)
    with pytest.raises(DataError, match="columns has a meaning for .csv and .parquet files only"):
        Arrays(str(tmp_path / "x.npy"), columns=["1"])


class TestParquetTypes:
    """A column of an odd type is named, and does not keep the others from being read."""

    @staticmethod
    def table(tmp_path, **columns):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        made = pyarrow.table({"a": VALUES[:, 0], "b": VALUES[:, 1]} | {n: make(pyarrow) for n, make in columns.items()})
        parquet.write_table(made, tmp_path / "x.parquet")
        return tmp_path / "x.parquet"

    @pytest.mark.parametrize("value", [[1, 2], {"x": 1}, b"\xff"])
    def test_lists_and_bytes(self, tmp_path, value):
        path = self.table(tmp_path, odd=lambda pa: pa.array([value] * NUM))
        with pytest.raises(DataError, match="column 'odd' holds") as caught:
            Tabular(str(path))
        assert 'columns=["a", "b"]' in caught.value.hint
        assert Tabular(str(path), columns=["a", "b"]).data_shape == (2,)
        for options in ({"where": "odd == 'x'", "columns": ["a"]}, {"labels": "odd"}):
            with pytest.raises(DataError, match="column 'odd' holds .* text or numbers are needed"):
                read_table(path, **options)

    @pytest.mark.parametrize("kind", ["int64", "decimal128"])
    def test_long_whole_numbers_beside_a_missing_one(self, tmp_path, kind):
        def long(pa):
            values = [None, *(2**60 + 3 * i * i for i in range(NUM - 1))]
            return pa.array(values, pa.int64() if kind == "int64" else pa.decimal128(30, 0))

        with pytest.raises(DataError, match="column 'odd' holds 1152921504606846979, which has more digits"):
            read_table(self.table(tmp_path, odd=long), missing="drop")

    def test_decimals_of_many_digits_are_not_rounded_without_a_word(self, tmp_path):
        from decimal import Decimal

        path = self.table(tmp_path, odd=lambda pa: pa.array([Decimal(10**30 + i * i) for i in range(NUM)]))
        with pytest.raises(DataError, match="more digits than double precision holds"):
            read_table(path)
