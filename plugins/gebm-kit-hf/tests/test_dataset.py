"""Datasets of the library: folders, parquet, zip and saved datasets; streamed or not, they have the same rows."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gebm_kit_hf", reason="the plugin package gebm-kit-hf is not installed")
pytest.importorskip("datasets", reason="the library datasets is not installed")

import datasets

from gebm_kit.cli.app import main
from gebm_kit.config.load import load_recipe
from gebm_kit.config.schema import Recipe
from gebm_kit.core.errors import DataError, RecipeError, UsageError
from gebm_kit.core.interfaces import HasLabels
from gebm_kit.core.progress import GebmKitWarning, Progress
from gebm_kit.engine.datasets.open import open_dataset
from gebm_kit.engine.datasets.prepare import prepare
from gebm_kit.engine.datasets.prepared_cache import PARTS, PreparedDataset
from gebm_kit.engine.train import train
from gebm_kit_hf.dataset import HuggingFace

NUM = 60
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (NUM, 8, 8, 3), dtype=np.uint8)
CLASSES = np.arange(NUM) % 3

RECIPE = """\
schema: 1
data: {data}
base: {{name: mlp, latent_dim: 2, hidden: [8]}}
energy: {{name: mlp, hidden: [8]}}
train: {{steps: 4, energy_steps: 1, start_steps: 0, batch_size: 8, log_every: 2, checkpoint_every: 2}}
ema: {{decay: 0}}
sampler: {{name: mala, step_size: 0.05}}
sample: {{num_samples: 8, num_chains: 4, warmup: 1, steps: 2, thin: 1}}
eval: {{metrics: [{{name: frechet, features: pixels}}], num_samples: 4, num_sets: 2}}
device: cpu
"""


def recipe(data: str, *words: str) -> Recipe:
    Path("tiny.yaml").write_text(RECIPE.format(data=data))
    return load_recipe("tiny.yaml", words)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def as_dataset(rows: Any = range(NUM), column: str = "image", broken: tuple[int, ...] = ()) -> Any:
    images = [{"bytes": b"no image" if i in broken else png(PIXELS[i]), "path": f"{i:03d}.png"} for i in rows]
    features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    return datasets.Dataset.from_dict({column: images, "label": [int(CLASSES[i]) for i in rows]}, features=features)


def parquet(path: str = "rows.parquet", **arguments: Any) -> Path:
    as_dataset(**arguments).to_parquet(path)
    return Path(path)


def folder() -> Path:
    for split, rows in (("train", range(0, 40)), ("test", range(40, NUM))):
        for i in rows:
            place = Path("images") / split / "abc"[CLASSES[i]]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i:03d}.png").write_bytes(png(PIXELS[i]))
    return Path("images")


def rows_of(data: Any, part: str) -> set[tuple[bytes, int]]:
    """Return each row's pixels with its label, or with -1."""
    rows = data.split(part).first(10**6)
    labels = data.labels(part).tolist() if isinstance(data, HasLabels) else [-1] * len(rows)
    return {(row.numpy().tobytes(), label) for row, label in zip(rows, labels, strict=True)}


def expected(rows: Any = range(NUM), labelled: bool = True) -> set[tuple[bytes, int]]:
    scaled = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
    return {(scaled[i].numpy().tobytes(), int(CLASSES[i]) if labelled else -1) for i in rows}


class TestWholeDatasets:
    def test_a_parquet_file(self) -> None:
        parquet()
        data = HuggingFace("rows.parquet", label="label", size=8)
        assert data.data_shape == (3, 8, 8)
        assert data.value_range == (-1.0, 1.0)
        assert data.num_classes == 3
        parts = [rows_of(data, part) for part in PARTS]
        assert sum(map(len, parts)) == NUM
        assert set.union(*parts) == expected()
        assert all(parts)
        assert data.split("train").stored(torch.tensor([0])).dtype == torch.uint8
        other = HuggingFace("rows.parquet", label="label", size=8, seed=1)
        assert rows_of(other, "train") != parts[0]

    def test_a_folder_of_images_in_class_folders(self) -> None:
        folder()
        data = HuggingFace("images", test="test", label="label", size=8)
        assert rows_of(data, "test") == expected(range(40, NUM))
        assert rows_of(data, "train") | rows_of(data, "valid") == expected(range(40))
        assert len(data.split("train")) + len(data.split("valid")) == 40

    def test_a_folder_of_parquet_files(self) -> None:
        Path("many").mkdir()
        parquet("many/train-00000.parquet", rows=range(0, 50))
        parquet("many/validation-00000.parquet", rows=range(50, NUM))
        data = HuggingFace("many", valid="validation", size=8)
        assert rows_of(data, "valid") == expected(range(50, NUM), labelled=False)
        with pytest.raises(UsageError, match=r"data\.label"):
            data.labels("train")

    def test_what_save_to_disk_wrote(self) -> None:
        as_dataset().save_to_disk("saved")
        assert set.union(*(rows_of(HuggingFace("saved", size=8), p) for p in PARTS)) == expected(labelled=False)
        datasets.DatasetDict({"train": as_dataset(range(50)), "test": as_dataset(range(50, NUM))}).save_to_disk("both")
        assert rows_of(HuggingFace("both", test="test", size=8), "test") == expected(range(50, NUM), labelled=False)
        with pytest.raises(UsageError, match="save_to_disk"):
            HuggingFace("saved", streaming=True)

    def test_images_are_fitted_as_everywhere(self) -> None:
        wide = np.zeros((10, 30, 3), dtype=np.uint8)
        wide[:, 10:20] = 200
        images = [{"bytes": png(wide), "path": None}] * 30
        features = datasets.Features({"picture": datasets.Image(), "other": datasets.Image()})
        datasets.Dataset.from_dict({"picture": images, "other": images}, features=features).to_parquet("wide.parquet")
        data = HuggingFace("wide.parquet", image="picture", size=10, channels=1)
        rows = data.split("train").first(99)
        assert rows.shape[1:] == (1, 10, 10)
        assert torch.allclose(rows, torch.full_like(rows, 200 / 127.5 - 1))
        with pytest.raises(DataError, match="has 2 columns of type Image"):
            HuggingFace("wide.parquet")
        with pytest.raises(DataError, match="no column 'pictures'; did you mean picture"):
            HuggingFace("wide.parquet", image="pictures")

    def test_corrupt_images_are_named_and_the_next_of_their_class_stands_in(self) -> None:
        parquet(broken=(7, 20))
        data = HuggingFace("rows.parquet", label="label", size=8)
        with pytest.warns(
            UserWarning, match=r"in row (7|20) of split 'train' can't be decoded \(0(07|20)\.png: it is not an image"
        ):
            rows = [rows_of(data, part) for part in PARTS]
        assert set.union(*rows) <= expected()
        assert sorted(data.skipped()) == ["in row 20 of split 'train'", "in row 7 of split 'train'"]
        with pytest.raises(DataError, match="can't be decoded"):
            [rows_of(HuggingFace("rows.parquet", size=8, max_corrupt=0), part) for part in PARTS]

    @pytest.mark.filterwarnings("ignore:whether the chains have mixed")
    def test_it_trains(self, quick_evaluation: None) -> None:
        """Training on prepared data gives the same weights as on unprepared data."""
        parquet()
        wanted = recipe("{name: hf, path: rows.parquet, label: label, size: 8}")
        run = train(wanted, out="a")
        assert prepare(wanted).index["num_classes"] == 3
        again = train(wanted, out="b")
        assert isinstance(again.dataset, PreparedDataset)
        other = again.model.state_dict()
        assert all(torch.equal(value, other[name]) for name, value in run.model.state_dict().items())
        parquet(rows=range(50))
        with pytest.warns(GebmKitWarning, match=r"rows\.parquet was changed"):
            open_dataset(wanted)


class TestStreams:
    DATA = "{name: hf, path: rows.parquet, label: label, size: 8, streaming: true}"

    def test_the_rows_are_those_of_the_whole_dataset(self) -> None:
        parquet()
        wanted = recipe(self.DATA)
        seen: list[Progress] = []
        made = prepare(wanted, threads=2, on_progress=seen.append)
        assert (seen[0].total, seen[-1].step, seen[-1].total) == (
            -1,
            NUM,
            NUM,
        )  # parquet does not say how many there are
        streamed, whole = open_dataset(wanted), HuggingFace("rows.parquet", label="label", size=8)
        assert isinstance(streamed, PreparedDataset)
        for part in PARTS:
            assert torch.equal(streamed.split(part).first(99), whole.split(part).first(99))
            assert torch.equal(streamed.labels(part), whole.labels(part))
        assert made.index["num_classes"] == 3

    def test_training_needs_it_prepared(self) -> None:
        parquet()
        with pytest.raises(DataError, match="is streamed, and a stream must be prepared before training") as caught:
            train(recipe(self.DATA), out="run")
        assert "gebm-kit data prepare" in caught.value.hint

    def test_images_inside_an_archive(self) -> None:
        with zipfile.ZipFile("images.zip", "w") as archive:
            for i in range(NUM):
                archive.writestr(f"{i:03d}.png", png(PIXELS[i]))
        wanted = recipe("{name: hf, path: images.zip, size: 8, streaming: true}")
        prepare(wanted)
        data = open_dataset(wanted)
        assert set.union(*(rows_of(data, part) for part in PARTS)) == expected(labelled=False)

    def test_corrupt_images_are_left_out(self) -> None:
        parquet(broken=(7, 20))
        wanted = recipe(self.DATA)
        with pytest.warns(UserWarning, match="of at most 10"):
            made = prepare(wanted)
        assert sum(made.index["counts"].values()) == NUM - 2
        assert [entry["image"] for entry in made.index["skipped"]] == [
            "in row 20 of split 'train'",
            "in row 7 of split 'train'",
        ]
        with pytest.warns(GebmKitWarning, match="2 image"):
            data = open_dataset(wanted)
        assert set.union(*(rows_of(data, part) for part in PARTS)) == expected(set(range(NUM)) - {7, 20})
        with pytest.raises(DataError, match="can't be decoded"):
            prepare(recipe(self.DATA, "data.max_corrupt=0"))

    def test_a_stream_that_breaks_off_leaves_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        parquet()
        real = datasets.IterableDataset.iter

        def broken(self: Any, *arguments: Any, **others: Any) -> Any:
            yield next(real(self, batch_size=16))
            raise ConnectionResetError("the server is gone")

        monkeypatch.setattr(datasets.IterableDataset, "iter", broken)
        wanted = recipe(self.DATA)
        with pytest.raises(DataError, match="breaks off after row 16 of split 'train': ConnectionResetError"):
            prepare(wanted)
        (root,) = Path("cache").iterdir()
        assert [path.name for path in root.iterdir()] == [".lock"]


class TestErrors:
    def test_a_hub_that_can_t_be_reached(self, capfd: pytest.CaptureFixture[str]) -> None:
        for words in ([], ["data.streaming=true"]):
            Path("tiny.yaml").write_text(RECIPE.format(data="{name: hf, hub: nobody/nothing, size: 8}"))
            capfd.readouterr()
            assert main(["data", "prepare", "tiny.yaml", *words]) == 2
            out, err = capfd.readouterr()
            assert out == ""
            assert err.startswith("gebm-kit: the Hugging Face hub can't be reached for 'nobody/nothing'")
            assert err.count("\n") == 2  # the message, the hint
            assert "HF_HUB_OFFLINE" in err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "give one of the two"),
            ({"path": "x", "hub": "y"}, "give one of the two"),
            ({"path": "x", "revision": "main"}, "can't be used with data.path"),
            ({"path": "rows.parquet", "valid_fraction": 0.6, "test_fraction": 0.5}, "must be below 1"),
            ({"path": "rows.parquet", "size": 0}, "size must be"),
            ({"path": "rows.parquet", "channels": 2}, "channels must be"),
            ({"path": "rows.parquet", "valid": "train"}, "must be different splits"),
        ],
    )
    def test_parameters(self, arguments: dict[str, Any], message: str) -> None:
        parquet()
        with pytest.raises(UsageError, match=message):
            HuggingFace(**arguments)

    def test_files(self) -> None:
        parquet()
        Path("text.txt").write_text("hello")
        Path("empty").mkdir()
        Path("broken.parquet").write_bytes(b"no parquet")
        for path, message in (
            ("nowhere", "does not exist"),
            ("text.txt", r"is neither a folder nor one of \.parquet"),
            ("empty", "can't be opened"),
            ("broken.parquet", "can't be opened"),
        ):
            with pytest.raises(DataError, match=message):
                HuggingFace(path)
        with pytest.raises(DataError, match=r"no split 'tset' \(data\.test\)"):
            HuggingFace("rows.parquet", test="tset")
        with pytest.raises(DataError, match="no column 'labels' of class labels; did you mean label"):
            HuggingFace("rows.parquet", label="labels")

    def test_labels_that_are_hidden(self) -> None:
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        images = [{"bytes": png(PIXELS[i]), "path": None} for i in range(30)]
        datasets.Dataset.from_dict({"image": images, "label": [-1] * 30}, features=features).to_parquet("x.parquet")
        with pytest.raises(DataError, match="a label is -1"):
            HuggingFace("x.parquet", label="label", size=8)
        assert len(HuggingFace("x.parquet", size=8).split("train")) > 0

    def test_misspelt_keys_are_found_without_opening_anything(self) -> None:
        with pytest.raises(RecipeError, match="did you mean streaming"):
            recipe("{name: hf, hub: nobody/nothing, streamin: true}")


def test_the_command_line_does_not_import_the_library() -> None:
    recipe("{name: hf, hub: nobody/nothing}")
    program = """
import sys
from gebm_kit.cli.app import main
for words in (["list", "dataset"], ["describe", "dataset", "hf"], ["recipes", "check", "tiny.yaml"]):
    assert main(words) == 0
print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.split())
    assert "gebm_kit_hf" in loaded
    assert not loaded & {"datasets", "pandas", "pyarrow", "fsspec"}


def test_transparent_pixels_and_the_line_about_what_was_read() -> None:
    Path("clear").mkdir()
    for i in range(30):
        Image.new("RGBA", (8, 8), (7, 99, 200, 0)).save(f"clear/{i}.png")
    for colour, value in (("white", 1.0), ("black", -1.0)):
        data = HuggingFace("clear", size=8, background=colour)
        assert data.split("train").first(99).unique().tolist() == [value]
        assert f"transparent pixels are laid over {colour}" in data.describe_reading()
    with pytest.raises(UsageError, match="background is a colour"):
        HuggingFace("clear", size=8, background="whitish")


def test_labels_that_are_missing() -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    images = [{"bytes": png(PIXELS[i]), "path": None} for i in range(30)]
    datasets.Dataset.from_dict({"image": images, "label": [None, 1] * 15}, features=features).to_parquet("x.parquet")
    with pytest.raises(DataError, match="a label is None, not one of 0 to 1"):
        HuggingFace("x.parquet", label="label", size=8)


class TestClasses:
    def two(self, path: str = "two.parquet") -> None:
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "fine": datasets.ClassLabel(names=["ant", "bee", "cat"]),
                "coarse": datasets.ClassLabel(names=["insect", "mammal"]),
            }
        )
        images = [{"bytes": png(PIXELS[i]), "path": None} for i in range(NUM)]
        labels = {"fine": [i % 3 for i in range(NUM)], "coarse": [i % 3 // 2 for i in range(NUM)]}
        datasets.Dataset.from_dict({"image": images, **labels}, features=features).to_parquet(path)

    @pytest.mark.parametrize("label", ["label", "auto"])
    def test_a_column_named_or_found_names_the_classes(self, label: str) -> None:
        parquet()
        data = HuggingFace("rows.parquet", label=label, size=8)
        assert len(data.class_names) == data.num_classes == 3
        assert f"labels: 3 classes ({', '.join(data.class_names)})" in data.describe_reading()
        assert set.union(*(rows_of(data, part) for part in PARTS)) == expected()

    def test_class_folders(self) -> None:
        folder()
        data = HuggingFace("images", test="test", label="auto", size=8)
        assert rows_of(data, "test") == expected(range(40, NUM))
        assert data.class_names == tuple(sorted(data.class_names))

    def test_one_of_several_columns_is_named(self) -> None:
        self.two()
        with pytest.raises(DataError, match=r"has 2 columns of type ClassLabel \(fine, coarse\).*can't choose"):
            HuggingFace("two.parquet", label="auto", size=8)
        assert HuggingFace("two.parquet", label="coarse", size=8).class_names == ("insect", "mammal")
        assert not isinstance(HuggingFace("two.parquet", size=8), HasLabels)

    def test_a_column_of_another_type_declares_no_classes(self) -> None:
        images = [{"bytes": png(PIXELS[i]), "path": None} for i in range(30)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 15}, features=features).to_parquet("x.parquet")
        for label, message in (("label", "no column declares classes"), ("auto", r"has 0 columns of type ClassLabel")):
            with pytest.raises(DataError, match=message):
                HuggingFace("x.parquet", label=label, size=8)

    def test_splits_that_declare_other_classes(self) -> None:
        parts = {}
        for part, names in (("train", ["a", "b"]), ("test", ["b", "a"])):
            features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
            images = [{"bytes": png(PIXELS[i]), "path": None} for i in range(20)]
            parts[part] = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 10}, features=features)
        datasets.DatasetDict(parts).save_to_disk("both")
        with pytest.raises(DataError, match="declares the classes b, a, and the training split a, b"):
            HuggingFace("both", test="test", label="label", size=8)

    @pytest.mark.parametrize("streaming", [False, True])
    def test_prepared_data_keep_the_names(self, streaming: bool) -> None:
        parquet()
        wanted = recipe(f"{{name: hf, path: rows.parquet, label: auto, size: 8, streaming: {str(streaming).lower()}}}")
        made = prepare(wanted)
        opened = open_dataset(wanted)
        assert (
            tuple(made.index["class_names"])
            == opened.class_names
            == HuggingFace("rows.parquet", label="label").class_names
        )
