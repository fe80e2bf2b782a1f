"""Labels and names of classes in every dataset that has them, and texts that are no classes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gebm_kit.core.class_names import class_names_of
from gebm_kit.core.components import parameters
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import Dataset, HasClassNames, HasLabels
from gebm_kit.core.plugins import installed
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.data.arrays import Arrays
from gebm_kit.data.celeba import Celeba
from gebm_kit.data.cifar10 import Cifar10
from gebm_kit.data.class_texts import class_indices
from gebm_kit.data.image_folder import ImageFolder
from gebm_kit.data.tabular import Tabular
from gebm_kit.data.toys import EightGaussians, TwentyFiveGaussians, TwoMoons

from .test_datasets import NAMES, PARTS, make
from .test_image_folder import fill

NUM = 60
VALUES = np.random.default_rng(0).normal(size=(NUM, 3))
TOYS = [
    name
    for name in NAMES
    if (known := parameters(installed().registry.get("dataset", name).load())).keys() >= {"num_train", "labels"}
]
ALWAYS = {"digits", "cifar10", "imagenet32"}
NEVER = {"curve", "redwine", "lsun"}
WORDS = {
    "idx": "train-labels-idx1-ubyte",
    "arrays": r"data\.labels=",
    "tabular": r"data\.labels=COLUMN",
    "celeba": r"data\.attribute=Smiling",
    "image-folder": "sub-folder",
    "hf": r"data\.label=",
    **dict.fromkeys(TOYS, r"data\.labels=true"),
}
"""What the hint of each dataset that may have labels names."""


def table(folder: Path, classes: Callable[[int], object], suffix: str = ".csv") -> Path:
    path = folder / f"table{suffix}"
    if suffix == ".csv":
        lines = [f"{VALUES[i, 0]},{classes(i)},{VALUES[i, 1]}\n" for i in range(NUM)]
        path.write_text("u,kind,v\n" + "".join(lines), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        columns = {"u": VALUES[:, 0], "kind": [classes(i) for i in range(NUM)], "v": VALUES[:, 1]}
        parquet.write_table(pyarrow.table(columns), path)
    return path


# --- every dataset ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [record.component.name for record in installed().registry.of_kind("dataset")])
def test_every_dataset_says_how_to_give_it_labels(name: str) -> None:
    target: Any = installed().registry.get("dataset", name).load()
    if name in ALWAYS:
        return
    assert name in NEVER | WORDS.keys(), f"{name}: add it to this test, with a how_to_label of its own"
    assert target.how_to_label != Dataset.how_to_label
    assert re.search(WORDS.get(name, "image-folder|dataset with labels"), target.how_to_label)


@pytest.mark.parametrize("name", NAMES)
def test_names_belong_to_classes(name: str, tmp_path: Path, formats: Any) -> None:
    data = make(name, tmp_path, formats)
    assert isinstance(data, HasLabels) or not isinstance(data, HasClassNames)
    if isinstance(data, HasClassNames):
        assert len(set(data.class_names)) == len(data.class_names) == data.num_classes  # type: ignore[attr-defined]
        line = data.describe_reading()  # type: ignore[attr-defined]
        for called in (class_names_of(data) or ())[:10]:
            assert called in line


@pytest.mark.parametrize("name", TOYS)
def test_components_of_toys_are_labels_if_asked_for(name: str) -> None:
    target: Any = installed().registry.get("dataset", name).load()
    small = {"num_train": 500, "num_valid": 50, "num_test": 60}
    plain, labelled = target(**small), target(**small, labels=True)
    assert not isinstance(plain, HasLabels)
    for part in PARTS:
        assert torch.equal(plain.split(part).first(999), labelled.split(part).first(999))
        assert len(labelled.labels(part)) == len(labelled.split(part))
    assert labelled.labels("train").unique().tolist() == list(range(labelled.num_classes))


@pytest.mark.parametrize("toy", [EightGaussians, TwentyFiveGaussians])
def test_a_point_of_a_mixture_is_near_the_centre_of_its_class(toy: Any) -> None:
    data = toy(num_train=400, num_valid=9, num_test=9, labels=True)
    distance = (data.split("train").first(400) - data.mode_centres[data.labels("train")]).norm(dim=1)
    assert float(distance.max()) < 6 * data.mode_std


def test_the_moons_are_told_apart() -> None:
    data = TwoMoons(num_train=400, num_valid=9, num_test=9, noise=0.0, labels=True)
    x, lower = data.split("train").first(400), data.labels("train").bool()
    assert float((x[~lower] - torch.tensor([-0.5, -0.25])).norm(dim=1).sub(1).abs().max()) < 1e-5
    assert float((x[lower] - torch.tensor([0.5, 0.25])).norm(dim=1).sub(1).abs().max()) < 1e-5


# --- files -----------------------------------------------------------------------------------------------------------


def test_cifar10_has_its_published_names(formats: Any, tmp_path: Path) -> None:
    data = Cifar10(str(formats.cifar10(tmp_path)))
    assert data.class_names[3] == "cat"
    assert "10 classes (airplane, automobile" in data.describe_reading()


def test_an_attribute_of_celeba_names_its_classes(formats: Any, tmp_path: Path) -> None:
    folder = str(formats.celeba(tmp_path))
    for attribute in ("Smiling", "Male"):
        assert Celeba(folder, size=8, attribute=attribute).class_names == (f"not {attribute}", attribute)
    assert not isinstance(Celeba(folder, size=8), HasClassNames)
    with pytest.raises(UsageError, match="CelebA has no attribute 'smiling'"):
        Celeba(folder, size=8, attribute="smiling")


def test_folders_name_the_classes(tmp_path: Path) -> None:
    for name in ("zebra", "ant hill", "Ärger"):
        fill(tmp_path / name, num=8)
    data = ImageFolder(".", size=8, directory=tmp_path)
    assert data.class_names == ("ant hill", "zebra", "Ärger")


def test_folders_that_look_the_same_are_refused(tmp_path: Path) -> None:
    for name in ("caf\u00e9", "cafe\u0301"):
        fill(tmp_path / name, num=4)
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system has one form of a letter only")
    with pytest.raises(DataError, match="look the same"):
        ImageFolder(".", size=8, directory=tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("dataset", [Arrays, Tabular])
class TestTables:
    def test_texts_are_sorted_and_numbered(self, tmp_path: Path, dataset: Any, suffix: str) -> None:
        path = table(tmp_path, lambda i: ("red", "blue", "dark red")[i % 3], suffix)
        data = dataset(str(path), labels="kind")
        assert data.class_names == ("blue", "dark red", "red")
        assert data.data_shape == (2,)
        assert data.units.columns == ("u", "v")
        kinds = {f"{VALUES[i, 0]:.5f}": ("red", "blue", "dark red")[i % 3] for i in range(NUM)}
        for part in PARTS:
            rows = data.units.measured(data.split(part).first(99))
            found = [data.class_names[k] for k in data.labels(part).tolist()]
            assert [kinds[f"{value:.5f}"] for value in rows[:, 0].tolist()] == found
        assert "labels: 3 classes (blue, dark red, red)" in data.describe_reading()

    def test_whole_numbers_are_ids(self, tmp_path: Path, dataset: Any, suffix: str) -> None:
        data = dataset(str(table(tmp_path, lambda i: (10, -1, 9)[i % 3], suffix)), labels="kind")
        assert data.class_names == ("-1", "9", "10")
        assert dataset(str(table(tmp_path, lambda i: 2 * (i % 2), suffix)), labels="2").class_names == ("0", "2")

    def test_measurements_and_ids_are_no_classes(self, tmp_path: Path, dataset: Any, suffix: str) -> None:
        with pytest.raises(DataError, match=r"column 'kind': a class is '.*', which is not a whole number"):
            dataset(str(table(tmp_path, lambda i: float(VALUES[i, 2]), suffix)), labels="kind")
        with pytest.raises(DataError, match="each of the 60 rows has a label of its own"):
            dataset(str(table(tmp_path, lambda i: f"row {i}", suffix)), labels="kind")
        with pytest.raises(DataError, match="the 60 rows have 40 different labels, fewer than 2 rows each"):
            dataset(str(table(tmp_path, lambda i: i % 40, suffix)), labels="kind")

    def test_a_missing_class_is_refused_or_its_row_dropped(self, tmp_path: Path, dataset: Any, suffix: str) -> None:
        missing = "" if suffix == ".csv" else None
        path = str(table(tmp_path, lambda i: ("a", missing, "b")[i % 3], suffix))
        with pytest.raises(DataError, match=r"column 'kind' is (empty|missing) \(20 such values\)"):
            dataset(path, labels="kind")
        with pytest.warns(GebmKitWarning, match="20 of 60 rows have a missing value"):
            data = dataset(path, labels="kind", missing="drop")
        assert data.class_names == ("a", "b")
        assert sum(len(data.labels(part)) for part in PARTS) == 40

    @pytest.mark.parametrize(
        ("first", "second", "message"),
        [
            ("dark  red", "dark red", "look the same"),
            ("caf\u00e9", "cafe\u0301", "look the same"),
            ("a\u00a0b", "a b", "look the same"),
            ("a\u200bb", "c", "letters that can't be seen"),
        ],
    )
    def test_texts_that_look_the_same(
        self, tmp_path: Path, dataset: Any, suffix: str, first: str, second: str, message: str
    ) -> None:
        with pytest.raises(DataError, match=message):
            dataset(str(table(tmp_path, lambda i: (first, second)[i % 2], suffix)), labels="kind")

    def test_texts_that_differ_in_case_are_two_classes_and_a_warning(
        self, tmp_path: Path, dataset: Any, suffix: str
    ) -> None:
        path = str(table(tmp_path, lambda i: ("Red", "red", "blue")[i % 3], suffix))
        with pytest.warns(GebmKitWarning, match="'Red', 'red' differ in upper and lower case alone"):
            assert dataset(path, labels="kind").class_names == ("Red", "blue", "red")


def test_spaces_around_a_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the class ' red' has spaces around it"):
        Tabular(str(table(tmp_path, lambda i: ("red", " red")[i % 2], ".parquet")), labels="kind")


def test_conditions_choose_rows_with_their_classes(tmp_path: Path) -> None:
    path = str(table(tmp_path, lambda i: ("red", "blue", "dark red")[i % 3]))
    assert Tabular(path, labels="kind", where="kind != 'red'").class_names == ("blue", "dark red")


@pytest.mark.parametrize("dataset", [Arrays, Tabular])
def test_classes_that_a_parquet_file_declares(tmp_path: Path, dataset: Any) -> None:
    datasets = pytest.importorskip("datasets", reason="the library datasets is not installed")
    names = ["zebra", "ant", "none so far"]

    def write(labels: list[int | None]) -> str:
        kinds = {
            "u": datasets.Value("float64"),
            "v": datasets.Value("float64"),
            "kind": datasets.ClassLabel(names=names),
        }
        columns = {"u": VALUES[:, 0].tolist(), "v": VALUES[:, 1].tolist(), "kind": labels}
        datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(tmp_path / "x.parquet")
        return str(tmp_path / "x.parquet")

    data = dataset(write([i % 2 for i in range(NUM)]), labels="kind")
    assert data.class_names == tuple(names)  # in the order of the file, with the class that no row has
    assert data.num_classes == 3
    assert data.labels("train").unique().tolist() == [0, 1]
    with pytest.raises(DataError, match="a label is '-1', not one of 0 to 2"):
        dataset(write([i % 2 - 1 for i in range(NUM)]), labels="kind")


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_arrays_of_text_are_classes(tmp_path: Path, suffix: str) -> None:
    kinds = np.array(["owl", "cat"])[np.arange(NUM) % 2]
    if suffix == ".npz":
        np.savez(tmp_path / "x.npz", x=VALUES, y=kinds)
        data = Arrays(str(tmp_path / "x.npz"), labels="y")
    else:
        np.save(tmp_path / "x.npy", VALUES)
        np.save(tmp_path / "y.npy", kinds)
        data = Arrays(str(tmp_path / "x.npy"), labels="y.npy")
    assert data.class_names == ("cat", "owl")
    of_row = {tuple(np.float32(VALUES[i]).tolist()): kinds[i] for i in range(NUM)}
    rows = data.split("train").first(99).tolist()
    assert [of_row[tuple(row)] for row in rows] == [data.class_names[k] for k in data.labels("train").tolist()]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (VALUES[:, 0], r"whole numbers from 0; row 0 \(counted from 0\) has 0.12573 \(60 such labels\)"),
        (np.where(np.arange(NUM) == 7, np.nan, 1.0), r"whole numbers from 0; row 7 \(counted from 0\) has nan$"),
        (np.where(np.arange(NUM) == 7, np.inf, 1.0), "row 7 .* has inf"),
        (np.arange(NUM) % 3 - 1, "whole numbers from 0; the smallest is -1"),
        (np.arange(NUM) % 50, "the 60 rows have 50 different labels"),
        (np.zeros((NUM, 2)), r"labels have shape \(60, 2\) for 60 rows"),
        (np.array(["a", ""])[np.arange(NUM) % 2], "the name of a class is empty"),
        (np.array([b"a", b"b"])[np.arange(NUM) % 2], "numbers are needed"),
    ],
)
def test_labels_of_arrays_that_are_no_classes(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "x.npz", x=VALUES, y=labels)
    with pytest.raises(DataError, match=message):
        Arrays(str(tmp_path / "x.npz"), labels="y")


def test_whole_numbers_that_single_and_double_precision_join_stay_apart() -> None:
    indices, names = class_indices([str(2**53 + 1), str(2**53), str(2**53)])
    assert names == (str(2**53), str(2**53 + 1))
    assert indices.tolist() == [1, 0, 0]


def test_sub_folders_that_are_parts_of_the_data_are_pointed_out(tmp_path: Path) -> None:
    for name in ("train", "Val"):
        fill(tmp_path / name, num=8)
    with pytest.warns(GebmKitWarning, match="Val, train are taken for classes, and have the names of parts"):
        assert ImageFolder(".", size=8, directory=tmp_path).num_classes == 2


@pytest.mark.parametrize("name", ["cifar10", "celeba"])
def test_published_names_are_known_before_the_download(name: str, formats: Any, tmp_path: Path) -> None:
    target: Any = installed().registry.get("dataset", name).load()
    chosen = {"attribute": "Male"} if name == "celeba" else {}
    known = {p.name: p.default for p in parameters(target).values()} | chosen
    data = target(str(getattr(formats, name)(tmp_path)), **chosen)
    assert target.expected(known).class_names == data.class_names
