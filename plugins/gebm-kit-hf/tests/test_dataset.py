"""Datasets of the library: folders, parquet, zip and saved datasets; streamed or not, they have the same rows."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gebm_kit_hf", reason="the plugin package gebm-kit-hf is not installed")
pytest.importorskip("datasets", reason="the library datasets is not installed")

import datasets
import pyarrow
import pyarrow.parquet

from gebm_kit.cli.app import main
from gebm_kit.config.load import load_recipe
from gebm_kit.config.schema import Recipe
from gebm_kit.core.errors import DataError, RecipeError, UsageError
from gebm_kit.core.interfaces import HasLabels
from gebm_kit.core.progress import GebmKitWarning, Progress
from gebm_kit.core.trust import paths_trusted, trust_paths
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


def naming(path: str, name: str = "named.parquet", whole: int = 0) -> Path:
    """Write a parquet file whose rows, but for the first ``whole``, name a file in place of an image."""
    images = [
        {"bytes": png(PIXELS[i]), "path": None} if i < whole else {"bytes": None, "path": path} for i in range(40)
    ]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"image": pyarrow.array(images, kind)})
    declared = json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": declared}), name)
    return Path(name)


class Server:
    """A server that counts connections, and whether there were any."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(8)
        self._socket.settimeout(0.05)
        self.port = self._socket.getsockname()[1]

    def was_asked(self) -> bool:
        try:
            self._socket.accept()[0].close()
        except TimeoutError:
            return False
        return True


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found._socket.close()


class TestWhatADatasetNames:
    def outside(self) -> Path:
        Path("outside").mkdir()
        Path("outside/secret.png").write_bytes(png(PIXELS[0]))
        return Path("outside/secret.png").resolve()

    @pytest.mark.parametrize("whole", [0, 39])
    @pytest.mark.parametrize(
        "path",
        [
            "{file}",
            "outside/secret.png",
            "../secret.png",
            "file://{file}",
            "zip://x.png::{file}",
            "/dev/zero",
            "/etc/passwd",
        ],
    )
    def test_files_elsewhere_are_not_opened(self, path: str, whole: int) -> None:
        naming(path.format(file=self.outside()), whole=whole)
        with pytest.raises(
            DataError, match=rf"in row {whole} of split 'train' names a file that is not part"
        ) as caught:
            HuggingFace("named.parquet", size=8)
        assert "--trust-paths" in caught.value.hint

    @pytest.mark.parametrize("scheme", ["ftp", "http", "https", "zip://x.png::http", "filecache::http"])
    def test_no_server_is_asked(self, scheme: str, server: Server) -> None:
        naming(f"{scheme}://127.0.0.1:{server.port}/x.png")
        with pytest.raises(DataError, match="is not part of the data"):
            HuggingFace("named.parquet", size=8)
        with pytest.raises(DataError, match="is not part of the data"):
            prepare(recipe("{name: hf, path: named.parquet, size: 8, streaming: true}"))
        with trust_paths(), pytest.raises(DataError, match="HF_HUB_OFFLINE forbids connections"):
            HuggingFace("named.parquet", size=8)
        assert not server.was_asked()

    def test_trust_opens_them(self) -> None:
        naming(str(self.outside()))
        with trust_paths():
            data = HuggingFace("named.parquet", size=8)
            assert {pixels for pixels, _ in rows_of(data, "train")} == {
                pixels for pixels, _ in expected([0], labelled=False)
            }
        assert not paths_trusted()

    def test_the_command_line_gives_trust_for_one_command(self) -> None:
        naming(str(self.outside()))
        Path("tiny.yaml").write_text(RECIPE.format(data="{name: hf, path: named.parquet, size: 8}"))
        assert main(["data", "prepare", "tiny.yaml", "--quiet"]) == 2
        assert main(["data", "prepare", "tiny.yaml", "--quiet", "--trust-paths"]) == 0
        assert not paths_trusted()
        assert main(["train", "tiny.yaml", "--quiet", "--dry-run", "data.seed=1"]) == 2
        assert main(["train", "tiny.yaml", "--quiet", "--dry-run", "data.seed=1", "--trust-paths"]) == 0

    @pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
    @pytest.mark.parametrize(
        "path", ["ftp://127.0.0.1:{port}/x.png", "{file}", "../outside/*.png", "zip://*::ftp://h/x.zip"]
    )
    @pytest.mark.parametrize("key", ["configs", '"c\\x6fnfigs"'])
    def test_a_readme_that_names_files_elsewhere(self, key: str, path: str, name: str, server: Server) -> None:
        path = path.format(port=server.port, file=self.outside())
        text = f'{key}:\n- config_name: default\n  data_files:\n  - split: train\n    path: "{path}"\n'
        (folder() / name).write_text(f"---\n{text}---\n" if name == "README.md" else text)
        with pytest.raises(DataError, match="names files that are not part of the data"):
            HuggingFace("images", size=8)
        assert not server.was_asked()

    def test_a_readme_may_name_its_own_files(self) -> None:
        text = "license: mit\nhomepage: https://example.org\nconfigs:\n- config_name: x\n  data_files: 'train/*/*.png'\n"
        (folder() / "README.md").write_text(f"---\n{text}---\n# Images\n")
        data = HuggingFace("images", size=8)
        assert sum(len(data.split(part)) for part in PARTS) == 40

    @pytest.mark.parametrize("name", ["../other", "/etc", "data://x"])
    def test_saved_datasets_that_name_files_elsewhere(self, name: str) -> None:
        as_dataset().save_to_disk("one")
        state = json.loads(Path("one/state.json").read_text())
        state["_data_files"][0]["filename"] = name
        Path("one/state.json").write_text(json.dumps(state))
        datasets.DatasetDict({"train": as_dataset()}).save_to_disk("many")
        Path("many/dataset_dict.json").write_text(json.dumps({"splits": [name]}))
        for path in ("one", "many"):
            with pytest.raises(DataError, match="names a file that is not part of the data"):
                HuggingFace(path, size=8)

    def test_damaged_lists(self) -> None:
        for name, content in (("README.md", "---\n" + "[" * 5000 + "\n---\n"), ("dataset_infos.json", "[" * 5000)):
            (folder() / name).write_text(content)
            with pytest.raises(DataError, match="nested more than"):
                HuggingFace("images", size=8)
            (Path("images") / name).unlink()
        os.mkfifo("images/README.md")
        os.mkfifo("pipe.parquet")
        for path in ("images", "pipe.parquet"):
            with pytest.raises(DataError, match="is a named pipe"):
                HuggingFace(path, size=8)

    def test_links_inside_the_folder_belong_to_it(self) -> None:
        folder()
        Path("images/train/a/000.png").rename("moved.png")
        Path("images/train/a/000.png").symlink_to(Path("moved.png").resolve())
        assert rows_of(HuggingFace("images", test="test", label="label", size=8), "test") == expected(range(40, NUM))


def test_zip_bombs_are_found_by_their_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile("images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2**22))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2**20))
    with pytest.raises(DataError, match=r"images\.zip unpacks to 4\.2 MB, and 1\.0 MB are free"):
        HuggingFace("images.zip", size=8)


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
