"""What a field of a .csv file says, where its first line belongs, and which text is refused."""

from __future__ import annotations

import os
import threading

import pytest

from gebm_kit.core.errors import DataError
from gebm_kit.data.csv_files import CsvFile, as_number, problem_of
from gebm_kit.data.fields import numbers


def rows_of(path):
    file = CsvFile(path)
    return [
        list(row) for _, columns in file.blocks(range(len(file.names))) for row in zip(*columns.values(), strict=True)
    ]


def write(tmp_path, content, name="x.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


class TestNumbers:
    @pytest.mark.parametrize("field", ["1", "-2.5", "+.5", "1e-3", "1.E5", "007"])
    def test_what_is_a_number(self, field):
        assert as_number(field) == float(field)
        assert not numbers([field]).bad.any()

    @pytest.mark.parametrize(
        "field",
        [
            *("2024_07", "1_000", "0x10", "0b1", "1,5", "1,234.5", "1'000", "2020-01-31", "31.12.2020", "12:30", "1 2"),
            *("5%", "$5", "true", "1.2.3", "1d5", "\u0663", "\uff11", "--1", "1e", "inf", "-Infinity", "9" * 400),
        ],
    )
    def test_what_is_none(self, field):
        found = numbers(["1", field])
        assert found.bad.tolist() == [False, True]
        assert problem_of(field).startswith("holds ")
        assert problem_of(field).endswith("number")

    @pytest.mark.parametrize("field", ["", "NA", "nan", "NaN", "null", "N/A", "None", "?"])
    def test_what_is_missing(self, field):
        found = numbers(["1", field])
        assert (found.missing.tolist(), found.bad.any()) == ([False, True], False)

    @pytest.mark.parametrize(("field", "bad"), [(str(2**53 + 1), True), (str(2**53 + 2), False), ("1e300", False)])
    def test_whole_numbers_must_survive_double_precision(self, field, bad):
        assert numbers([field]).bad.tolist() == [bad]


class TestFirstLine:
    @pytest.mark.parametrize(
        ("content", "names"),
        [
            ("a,b\n1,2\n", ("a", "b")),
            ("1,2\n3,4\n", ("1", "2")),
            ("1.5,NA\n3,4\n", ("1", "2")),
            ("region,2019,2020\nnorth,1,2\n", None),
            (",0,1\n0,5,6\n", ("", "0", "1")),
            ("region,2020-01\n1,2\n", ("region", "2020-01")),
        ],
    )
    def test_names_or_values(self, tmp_path, content, names):
        path = write(tmp_path, content)
        if names is None:
            with pytest.raises(
                DataError, match="same kinds of values as the second: names of columns, or a row"
            ) as caught:
                CsvFile(path)
            assert caught.value.hint == "Say which with header=true or header=false."
        else:
            assert CsvFile(path).names == names

    @pytest.mark.parametrize(
        "content",
        ["0,1\n0.5,0.6\n", "2019,2020\n1.5,1.6\n2.5,2.6\n3.5,3.6\n", "2020-01-01,1\n2020-01-02,2\n"],
    )
    def test_two_readings_are_refused_until_header_chooses(self, tmp_path, content):
        path = write(tmp_path, content)
        with pytest.raises(DataError, match="the first line.*or a row"):
            CsvFile(path)
        assert CsvFile(path, header=True).names == tuple(content.splitlines()[0].split(","))
        assert CsvFile(path, header=False).names == ("1", "2")

    def test_first_columns_without_a_name_are_row_labels_and_others_nameless(self, tmp_path):
        file = CsvFile(write(tmp_path, ",Unnamed: 1,a,,Unnamed: 4\n1,2,3,4,5\n"))
        assert (file.unnamed, file.nameless) == ((0, 1), (3, 4))


class TestMarks:
    @pytest.mark.parametrize("mark", [",", ";", "\t"])
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_each_mark(self, tmp_path, mark, end):
        path = write(tmp_path, end.join([mark.join("ab"), mark.join("12"), "", mark.join("34")]))
        assert rows_of(path) == [["1", "2"], ["3", "4"]]

    def test_a_comma_within_a_field_is_no_mark(self, tmp_path):
        assert rows_of(write(tmp_path, "a;b\n1,5;2,5\n")) == [["1,5", "2,5"]]
        assert rows_of(write(tmp_path, 'a,b\n"1,5",2\n')) == [["1,5", "2"]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_mark(tmp_path, encoding):
    path = write(tmp_path, "größe,b\n1,2\n".encode(encoding))
    assert CsvFile(path).names == ("größe", "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("größe\n1\n".encode("latin-1"), "can't be read as .csv: after line 0: 'utf-8'"),
        ("a,b\n1,2\n".encode("utf-16-le"), "line 1 holds a zero byte"),
        (b"a,b\n1,\0\n", "line 2 holds a zero byte"),
        (b"", "holds no row of data"),
        (b"\n\n", "holds no row of data"),
        (b"a,b\n", "holds no row of data"),
        (b",,\n1,2,3\n", None),
        (b'a,b\n"1"2,3\n', "line 2: ',' expected after"),
        (b'a,b\n"1,2\n', "unexpected end of data"),
        (b"a,b\n1,2,3\n", "line 2: 3 fields where the first line has 2"),
        (b"a,b\n1\n", "line 2: 1 fields where the first line has 2"),
        (b"a,b\n" + b"1" * 200_000 + b",2\n", "field larger than field limit"),
    ],
)
def test_text_that_is_refused(tmp_path, content, message):
    path = write(tmp_path, content)
    if message is None:
        assert CsvFile(path).names == ("1", "2", "3")
        with pytest.raises(DataError, match="holds no names of columns"):
            CsvFile(path, header=True)
        return
    with pytest.raises(DataError, match=message):
        rows_of(path)


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("gebm_kit.data.csv_files.LONGEST_LINE", 1000)
    with pytest.raises(DataError, match=r"line 2: more than 1\.0 kB in one line"):
        rows_of(write(tmp_path, "a,b\n" + "1" * 1000))


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.csv")
    seen = []

    def read():
        with pytest.raises(DataError, match="is a named pipe"):
            CsvFile(tmp_path / "x.csv")
        seen.append(True)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert seen
