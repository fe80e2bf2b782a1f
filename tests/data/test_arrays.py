"""Arrays from files: what is read, how it is split and scaled, and which errors bad files give."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import HasLabels
from gebm_kit.data.arrays import Arrays

PARTS = ("train", "valid", "test")
RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(50, 3))


def all_rows(data: Arrays) -> torch.Tensor:
    return torch.cat([data.split(part).first(10**6) for part in PARTS])


def same_rows(first: torch.Tensor, second: torch.Tensor) -> bool:
    return {row.numpy().tobytes() for row in first} == {row.numpy().tobytes() for row in second}


def write(path: Path, content: Any) -> str:
    if path.suffix == ".npy":
        np.save(path, content)
    elif path.suffix == ".npz":
        np.savez(path, **(content if isinstance(content, dict) else {"x": content}))
    elif path.suffix == ".safetensors":
        save_file({k: torch.as_tensor(v) for k, v in content.items()}, path)
    elif path.suffix == ".csv" and isinstance(content, np.ndarray):
        np.savetxt(path, content, delimiter=",", fmt="%.17g")
    else:
        path.write_text(content, encoding="utf-8")
    return path.name


class TestReading:
    @pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".csv"])
    def test_every_format_gives_the_same_rows(self, suffix: str, tmp_path: Path) -> None:
        content = {"x": POINTS} if suffix == ".safetensors" else POINTS
        data = Arrays(write(tmp_path / f"a{suffix}", content), directory=tmp_path)
        assert data.data_shape == (3,)
        assert data.value_range is None
        assert not isinstance(data, HasLabels)
        assert same_rows(all_rows(data), torch.from_numpy(POINTS).float())

    def test_splits_have_their_shares(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.npy", np.arange(1000.0))
        data = Arrays(path, valid_fraction=0.05, test_fraction=0.25, directory=tmp_path)
        assert [len(data.split(part)) for part in PARTS] == [700, 50, 250]
        assert data.data_shape == (1,)
        other = Arrays(path, seed=1, directory=tmp_path)
        assert not torch.equal(other.split("test").first(50), Arrays(path, directory=tmp_path).split("test").first(50))

    def test_three_rows_are_enough(self, tmp_path: Path) -> None:
        data = Arrays(write(tmp_path / "a.npy", POINTS[:3]), directory=tmp_path)
        assert [len(data.split(part)) for part in PARTS] == [1, 1, 1]

    def test_absolute_path(self, tmp_path: Path) -> None:
        write(tmp_path / "a.npy", POINTS)
        assert Arrays(str(tmp_path / "a.npy"), directory=Path("/nowhere")).data_shape == (3,)

    def test_key_chooses_among_arrays(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.npz", {"first": POINTS, "second": POINTS[:, :2]})
        assert Arrays(path, key="second", directory=tmp_path).data_shape == (2,)

    @pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
    def test_labels_of_an_archive_stay_with_their_rows(self, suffix: str, tmp_path: Path) -> None:
        x = np.arange(40.0)[:, None]
        data = Arrays(write(tmp_path / f"a{suffix}", {"x": x, "y": np.arange(40) % 5}), labels="y", directory=tmp_path)
        assert isinstance(data, HasLabels)
        assert data.num_classes == 5
        for part in PARTS:
            assert torch.equal(data.split(part).first(99)[:, 0] % 5, data.labels(part).float())

    def test_labels_of_npy_are_a_second_file(self, tmp_path: Path) -> None:
        write(tmp_path / "a.npy", POINTS)
        write(tmp_path / "y.npy", np.arange(50) % 2)
        assert Arrays("a.npy", labels="y.npy", directory=tmp_path).num_classes == 2

    def test_labels_of_csv_are_a_column_of_words(self, tmp_path: Path) -> None:
        lines = "".join(f"{i}.5,{'dog' if i % 2 else 'cat'},{-i}\n" for i in range(10))
        data = Arrays(write(tmp_path / "a.csv", "u,kind,v\n" + lines), labels="kind", directory=tmp_path)
        assert data.data_shape == (2,)
        assert data.num_classes == 2
        for part in PARTS:
            rows = data.split(part).first(99)
            assert torch.equal(data.labels(part).float(), (rows[:, 0] - 0.5) % 2)
            assert torch.equal(rows[:, 1], 0.5 - rows[:, 0])

    def test_labels_of_csv_without_header_are_a_column_number(self, tmp_path: Path) -> None:
        lines = "".join(f"{i},{10 * (i % 3)}\n" for i in range(9))
        data = Arrays(write(tmp_path / "a.csv", lines), labels="2", directory=tmp_path)
        assert data.data_shape == (1,)
        assert torch.equal(data.labels("train").float(), data.split("train").first(9)[:, 0] % 3)

    def test_csv_with_byte_order_mark_and_blank_lines(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n\r\n3,4\r\n5,6\r\n")
        assert same_rows(all_rows(Arrays("a.csv", directory=tmp_path)), torch.tensor([[1.0, 2], [3, 4], [5, 6]]))


class TestImages:
    @pytest.mark.parametrize(
        ("shape", "expected"),
        [((9, 6, 5), (1, 6, 5)), ((9, 3, 6, 5), (3, 6, 5)), ((9, 6, 5, 3), (3, 6, 5)), ((9, 6, 5, 1), (1, 6, 5))],
    )
    def test_layouts(self, shape: tuple[int, ...], expected: tuple[int, ...], tmp_path: Path) -> None:
        pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
        data = Arrays(write(tmp_path / "a.npy", pixels), directory=tmp_path)
        assert data.data_shape == expected
        assert data.value_range == (-1.0, 1.0)
        chans_first = pixels.reshape(9, 1, 6, 5) if len(shape) == 3 else pixels
        if len(shape) == 4 and shape[1] == 6:
            chans_first = pixels.transpose(0, 3, 1, 2)
        assert same_rows(all_rows(data), torch.from_numpy(chans_first.copy()).float() / 127.5 - 1)

    def test_bytes_fill_the_whole_range(self, tmp_path: Path) -> None:
        pixels = np.zeros((6, 4, 4), dtype=np.uint8)
        pixels[:, 0, 0] = 255
        rows = all_rows(Arrays(write(tmp_path / "a.npy", pixels), directory=tmp_path))
        assert float(rows.min()) == -1.0
        assert float(rows.max()) == 1.0

    def test_tables_of_bytes_are_taken_as_numbers(self, tmp_path: Path) -> None:
        data = Arrays(write(tmp_path / "a.npy", np.full((6, 4), 200, dtype=np.uint8)), directory=tmp_path)
        assert data.value_range is None
        assert float(all_rows(data).min()) == 200.0


class TestStandardise:
    def test_uses_the_training_rows_alone(self, tmp_path: Path) -> None:
        rows = RNG.normal(3.0, 5.0, size=(200, 2))
        path = write(tmp_path / "a.npy", rows)
        plain, scaled = Arrays(path, directory=tmp_path), Arrays(path, standardise=True, directory=tmp_path)
        train = scaled.split("train").first(999).double()
        assert torch.allclose(train.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-6)
        assert torch.allclose(train.std(0, correction=0), torch.ones(2, dtype=torch.float64), atol=1e-6)
        base = plain.split("train").first(999).double()
        expected = (plain.split("test").first(999).double() - base.mean(0)) / base.std(0, correction=0)
        assert torch.allclose(scaled.split("test").first(999).double(), expected, atol=1e-5)
        assert not torch.allclose(expected.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-3)

    def test_test_rows_do_not_change_training_rows(self, tmp_path: Path) -> None:
        rows = RNG.normal(size=(100, 2)).astype(np.float32)
        path = write(tmp_path / "a.npy", rows)
        held = {row.numpy().tobytes() for row in Arrays(path, directory=tmp_path).split("test").first(99)}
        moved = np.stack([row + 100 if row.tobytes() in held else row for row in rows])
        write(tmp_path / "b.npy", moved)
        first = Arrays("a.npy", standardise=True, directory=tmp_path).split("train").first(99)
        assert torch.equal(first, Arrays("b.npy", standardise=True, directory=tmp_path).split("train").first(99))

    def test_constant_columns_are_only_centred(self, tmp_path: Path) -> None:
        rows = np.column_stack([RNG.normal(size=50), np.full(50, 1e6 + 0.1)])
        data = Arrays(write(tmp_path / "a.npy", rows), standardise=True, directory=tmp_path)
        assert float(all_rows(data)[:, 1].abs().max()) == 0.0

    def test_images_per_channel(self, tmp_path: Path) -> None:
        pixels = RNG.integers(0, 256, (40, 3, 5, 5), dtype=np.uint8)
        data = Arrays(write(tmp_path / "a.npy", pixels), standardise=True, directory=tmp_path)
        assert data.value_range is None
        train = data.split("train").first(99)
        assert torch.allclose(train.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)


NAN = np.where(np.arange(30).reshape(10, 3) == 14, np.nan, 1.0)
BAD_FILES: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "nan": ("a.npy", NAN, {}, r"row 4, column 2 .* holds nan"),
    "infinity": ("a.npy", np.where(np.isnan(NAN), np.inf, 1.0), {}, r"row 4, column 2 .* holds inf"),
    "too large for single precision": ("a.npy", np.full((5, 2), 1e300), {}, r"holds inf.*10 such values"),
    "nan in an image": ("a.npy", np.full((5, 4, 4), np.nan), {}, r"row 0, pixel \(0, 0, 0\)"),
    "nan in csv": ("a.csv", "u,v\n1,2\n3,nan\n5,6\n", {}, r"line 3: column 'v' holds 'nan'"),
    "word in csv": ("a.csv", "u,v\n1,2\n3,4\n5,six\n", {}, r"line 4: column 'v' holds 'six', which is not a number"),
    "word without header": ("a.csv", "1,2\n3,4\n5,six\n", {}, r"line 3: column '2' holds 'six'"),
    "empty cell": ("a.csv", "u,v\n1,2\n3,\n", {}, r"line 3: column 'v' is empty"),
    "ragged csv": ("a.csv", "1,2\n3,4,5\n", {}, r"line 2: 3 fields where the first line has 2"),
    "header alone": ("a.csv", "u,v\n", {}, "no row of data"),
    "empty csv": ("a.csv", "", {}, "no row of data"),
    "empty array": ("a.npy", np.zeros((0, 3)), {}, r"empty array of shape \(0, 3\)"),
    "a number": ("a.npy", np.float64(3.0), {}, "empty array|shape"),
    "two rows": ("a.npy", POINTS[:2], {}, "2 rows"),
    "text array": ("a.npy", np.array(["a", "b", "c"]), {}, "type <U1; numbers are needed"),
    "complex array": ("a.npy", np.zeros((5, 2), dtype=complex), {}, "complex128; numbers are needed"),
    "complex tensor": ("a.safetensors", {"x": torch.zeros(5, 2, dtype=torch.complex64)}, {}, "complex"),
    "five dimensions": ("a.npy", np.zeros((5, 2, 2, 2, 2)), {}, r"shape \(5, 2, 2, 2, 2\); allowed"),
    "five channels": ("a.npy", np.zeros((5, 5, 4, 4)), {}, "1 or 3 channels"),
    "misspelt key": ("a.npz", {"images": POINTS, "other": POINTS}, {"key": "imagse"}, "did you mean images"),
    "which key": ("a.npz", {"images": POINTS, "other": POINTS}, {}, r"holds 2 arrays \(images, other\)"),
    "misspelt labels": ("a.npz", {"x": POINTS, "target": np.zeros(50)}, {"labels": "tragte"}, "target"),
    "misspelt key of safetensors": ("a.safetensors", {"images": POINTS}, {"key": "image"}, "did you mean images"),
    "misspelt column": ("a.csv", "size,kind\n1,2\n", {"labels": "knid"}, "did you mean kind"),
    "column of no header": ("a.csv", "1,2\n3,4\n", {"labels": "kind"}, "number of a column, from 1 to 2"),
    "nothing beside labels": ("a.csv", "kind\n1\n2\n", {"labels": "kind"}, "no column left"),
    "key of a csv": ("a.csv", "1,2\n", {"key": "x"}, "holds one array"),
    "labels of another length": ("a.npz", {"x": POINTS, "y": np.zeros(49)}, {"labels": "y"}, r"\(49,\) for 50 rows"),
    "fractional labels": ("a.npz", {"x": POINTS, "y": np.full(50, 0.5)}, {"labels": "y"}, "whole numbers from 0"),
    "negative labels": (
        "a.npz",
        {"x": POINTS, "y": np.full(50, -1)},
        {"labels": "y"},
        "whole numbers from 0; the smallest is -1",
    ),
    "labels file missing": ("a.npy", POINTS, {"labels": "y.npy"}, "names another .npy file"),
    "outside value_range": ("a.npy", POINTS * 100, {"value_range": [-1.0, 1.0]}, r"outside value_range \[-1, 1\]"),
    "unknown suffix": ("a.txt", "1,2\n", {}, r"type .txt can't be read; allowed: .npz, .npy"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case: str, tmp_path: Path) -> None:
    name, content, arguments, message = BAD_FILES[case]
    write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        Arrays(name, directory=tmp_path, **arguments)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def _pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def _pickled_member(path: Path) -> None:
    np.savez(path, x=np.array([{"a": 1}], dtype=object))


def _bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps([1, 2, 3]))


def _truncated_npy(path: Path) -> None:
    np.save(path, POINTS)
    path.write_bytes(path.read_bytes()[:-100])


def _truncated_npz(path: Path) -> None:
    np.savez(path, x=POINTS)
    path.write_bytes(path.read_bytes()[:-100])


def _truncated_safetensors(path: Path) -> None:
    save_file({"x": torch.from_numpy(POINTS)}, path)
    path.write_bytes(path.read_bytes()[:-100])


def _noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4)


def _nothing(path: Path) -> None:
    path.write_bytes(b"")


def _archive_in_disguise(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=POINTS)


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("a.npy", _pickled, "pickled"),
    ("a.npz", _pickled_member, "pickled"),
    ("a.npy", _bare_pickle, "pickled"),
    ("a.npz", _bare_pickle, "not a .npz"),
    ("a.npy", _truncated_npy, "a.npy"),
    ("a.npz", _truncated_npz, "is not a .npz archive: File is not a zip file"),
    ("a.safetensors", _truncated_safetensors, "can't be read as .safetensors"),
    *((f"a{suffix}", _noise, f"a{suffix}") for suffix in (".npy", ".npz", ".safetensors", ".csv")),
    *((f"a{suffix}", _nothing, f"a{suffix}") for suffix in (".npy", ".npz", ".safetensors", ".csv")),
    ("a.npy", _archive_in_disguise, "rename it to .npz"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_damaged_files(name: str, damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    damage(tmp_path / name)
    with pytest.raises(DataError, match=message):
        Arrays(name, directory=tmp_path)


def test_no_pickle_is_ever_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (marker.write_text, ("it ran",))

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError):
        Arrays("a.npy", directory=tmp_path)
    assert not marker.exists()


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.npy does not exist"):
        Arrays("a.npy", directory=tmp_path)
    (tmp_path / "b.npy").mkdir()
    with pytest.raises(DataError, match="is a directory"):
        Arrays("b.npy", directory=tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        {"valid_fraction": 0.5, "test_fraction": 0.5},
        {"standardise": True, "value_range": [-1.0, 1.0]},
        {"value_range": [1.0, -1.0]},
        {"value_range": [1.0]},
    ],
)
def test_contradictions(arguments: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "a.npy", POINTS)
    with pytest.raises(UsageError):
        Arrays("a.npy", directory=tmp_path, **arguments)


def test_value_range_is_kept_and_bytes_refuse_another(tmp_path: Path) -> None:
    write(tmp_path / "a.npy", RNG.uniform(0, 1, (20, 2)))
    assert Arrays("a.npy", value_range=[0.0, 1.0], directory=tmp_path).value_range == (0.0, 1.0)
    write(tmp_path / "b.npy", np.zeros((20, 4, 4), dtype=np.uint8))
    with pytest.raises(UsageError, match="leave value_range out"):
        Arrays("b.npy", value_range=[0.0, 1.0], directory=tmp_path)


def test_labels_of_unlabelled_data_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.npy", POINTS)
    with pytest.raises(UsageError, match="no labels"):
        Arrays("a.npy", directory=tmp_path).labels("train")


class TestOddNumbers:
    """Numbers of odd types and sizes are read as they are, or refused."""

    @pytest.mark.parametrize("kind", ["uint16", "uint32", "uint64"])
    def test_unsigned_numbers_of_safetensors_are_read(self, tmp_path: Path, kind: str) -> None:
        values = torch.arange(40).reshape(20, 2).to(getattr(torch, kind))
        save_file({"x": values, "y": torch.arange(20).remainder(3).to(values.dtype)}, tmp_path / "a.safetensors")
        data = Arrays(str(tmp_path / "a.safetensors"), key="x", labels="y")
        assert sorted(torch.cat([data.split(p).rows[:, 0] for p in ("train", "valid", "test")]).tolist()) == list(
            range(0, 40, 2)
        )
        assert data.num_classes == 3

    def test_two_numbers_in_a_byte_are_refused(self, tmp_path: Path) -> None:
        header = json.dumps({"x": {"dtype": "F4", "shape": [20, 4], "data_offsets": [0, 40]}}).encode()
        (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\1" * 40)
        with pytest.raises(DataError, match="can't be read"):
            Arrays(str(tmp_path / "a.safetensors"))

    @pytest.mark.parametrize("shape", [(40, 2), (40, 8, 8), (40, 3, 8, 8)])
    @pytest.mark.parametrize(("centre", "scale"), [(0, 1e-300), (0, 1e-43), (1.7e9, 1)])
    def test_numbers_that_single_precision_merges_are_refused(self, tmp_path: Path, shape, centre, scale) -> None:
        np.save(tmp_path / "x.npy", centre + scale * np.random.default_rng(0).normal(size=shape))
        with pytest.raises(DataError, match="single precision can't tell them apart"):
            Arrays(str(tmp_path / "x.npy"))

    def test_numbers_too_small_to_be_standardised_are_refused(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", 1e-300 * np.random.default_rng(0).normal(size=(40, 2)))
        with pytest.raises(DataError, match="take another unit"):
            Arrays(str(tmp_path / "x.npy"), standardise=True)

    def test_small_numbers_are_standardised(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", 1e-100 * np.random.default_rng(0).normal(size=(40, 2)))
        assert Arrays(str(tmp_path / "x.npy"), standardise=True).split("train").rows.std() == pytest.approx(1, abs=0.05)

    def test_bytes_of_black_and_white_are_not_grey_levels(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", (np.random.default_rng(0).random((40, 8, 8)) > 0.5).astype("u1"))
        with pytest.raises(DataError, match="two ways"):
            Arrays(str(tmp_path / "x.npy"))
        rows = Arrays(str(tmp_path / "x.npy"), pixels="unit").split("train").rows
        assert set(rows.unique().tolist()) == {-1.0, 1.0}

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_two_arrays_of_one_name_are_refused(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 2)))
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            for _ in range(2):
                archive.write(tmp_path / "x.npy", "x.npy")
        with pytest.raises(DataError, match="2 arrays that are called 'x'"):
            Arrays(str(tmp_path / "a.npz"))
