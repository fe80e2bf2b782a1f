"""Images decoded once: the same bytes as from the files, checked for being up to date, whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gebm_kit.config.build import build_dataset
from gebm_kit.config.load import load_recipe
from gebm_kit.config.schema import Recipe
from gebm_kit.core.class_names import class_names_of
from gebm_kit.core.errors import DataError, RunFailed, UsageError
from gebm_kit.core.interfaces import Dataset, HasLabels
from gebm_kit.core.progress import GebmKitWarning, Progress
from gebm_kit.engine.datasets import batches as feed, open as opening, prepare as making
from gebm_kit.engine.datasets.batches import Feed
from gebm_kit.engine.datasets.open import open_dataset
from gebm_kit.engine.datasets.prepare import prepare
from gebm_kit.engine.datasets.prepared_cache import PARTS, PreparedDataset, find_prepared, place_of
from gebm_kit.engine.process.lock import DirectoryLock
from gebm_kit.engine.train import train
from gebm_kit.engine.training.dry_run import plan

RECIPE = """\
schema: 1
data: {data}
base: {{name: mlp, latent_dim: 2, hidden: [8]}}
energy: {{name: mlp, hidden: [8]}}
train: {{steps: 6, energy_steps: 2, start_steps: 0, batch_size: 4, log_every: 2, checkpoint_every: 3, flip: true}}
ema: {{decay: 0}}
sampler: {{name: mala, step_size: 0.05}}
sample: {{num_samples: 12, num_chains: 6, warmup: 1, steps: 2, thin: 1}}
eval: {{metrics: [{{name: frechet, features: pixels}}], num_samples: 8, num_sets: 2}}
device: cpu
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, quick_evaluation: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache in an empty working directory."""
    monkeypatch.setenv("GEBM_KIT_DATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def recipe(data: str, *words: str) -> Recipe:
    Path("tiny.yaml").write_text(RECIPE.format(data=data))
    return load_recipe("tiny.yaml", words)


def write_idx(folder: Path, part: str, num: int) -> None:
    rng = np.random.default_rng(num)
    for name, array in (("images-idx3", rng.integers(0, 256, (num, 6, 5))), ("labels-idx1", np.arange(num) % 3)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (folder / f"{part}-{name}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())


def make_idx(formats: Any) -> str:
    Path("files").mkdir()
    write_idx(Path("files"), "train", 30)
    write_idx(Path("files"), "t10k", 9)
    return "{name: idx, path: files}"


def make_folder(formats: Any, num: int = 40) -> str:
    rng = np.random.default_rng(0)
    for index in range(num):
        place = Path("files") / ("cats" if index % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(place / f"{index:02d}.png")
    return "{name: image-folder, path: files, size: 8, valid_fraction: 0.2, test_fraction: 0.2}"


def make_celeba(formats: Any) -> str:
    formats.celeba(Path("files"), (20, 6, 5))
    (Path("files") / "img_align_celeba" / "000003.jpg").write_bytes(b"no image")
    return "{name: celeba, path: files, size: 8, attribute: Smiling}"


def make_cifar10(formats: Any) -> str:
    formats.cifar10(Path("files"), each=7)
    return "{name: cifar10, path: files}"


def make_imagenet32(formats: Any) -> str:
    formats.imagenet32(Path("files"), each=10)
    return "{name: imagenet32, path: files, valid_fraction: 0.2}"


def make_lsun(formats: Any) -> str:
    formats.lsun(Path("files"), 20)
    return "{name: lsun, path: files, size: 8, valid_fraction: 0.2, test_fraction: 0.2}"


MAKERS: dict[str, Callable[[Any], str]] = {
    "idx": make_idx,
    "image-folder": make_folder,
    "celeba": make_celeba,
    "cifar10": make_cifar10,
    "imagenet32": make_imagenet32,
    "lsun": make_lsun,
}

pytestmark = pytest.mark.filterwarnings("ignore:whether the chains have mixed")
skips = pytest.mark.filterwarnings("ignore:.*is skipped", "ignore:.*were skipped")


def same(a: Dataset, b: Dataset) -> bool:
    """Return whether all rows, labels and facts about them are the same, bit for bit."""
    facts = [(tuple(d.data_shape), d.value_range, getattr(d, "num_classes", None), class_names_of(d)) for d in (a, b)]
    rows = all(torch.equal(a.split(part).first(10**6), b.split(part).first(10**6)) for part in PARTS)
    labels = not isinstance(a, HasLabels) or (
        isinstance(b, HasLabels) and all(torch.equal(a.labels(part), b.labels(part)) for part in PARTS)
    )
    return facts[0] == facts[1] and rows and labels


class TestNamesOfClasses:
    def test_weights_and_names_of_the_recipe_need_nothing_new(self, formats: Any) -> None:
        made = prepare(recipe(make_folder(formats)))
        words = ["data.class_weights={a: 1, b: 2}", "data.class_names=[a, b]"]
        other = recipe("{name: image-folder, path: files, size: 8, valid_fraction: 0.2, test_fraction: 0.2}", *words)
        assert find_prepared(other).folder == made.path
        opened: Any = open_dataset(other)
        assert isinstance(opened, PreparedDataset)
        assert opened.class_names == ("a", "b")

    @pytest.mark.parametrize("names", [["a"], "ab", [1, 2], ["a", ""]])
    def test_damaged_names(self, formats: Any, names: Any) -> None:
        wanted = recipe(make_folder(formats))
        index = prepare(wanted).path / "index.json"
        assert json.loads(index.read_text())["class_names"] == ["cats", "dogs"]
        index.write_text(json.dumps(json.loads(index.read_text()) | {"class_names": names}))
        assert "class_names are not 2 names" in find_prepared(wanted).problem

    def test_data_prepared_before_names_were_kept(self, formats: Any) -> None:
        wanted = recipe(make_folder(formats))
        index = prepare(wanted).path / "index.json"
        old = {key: value for key, value in json.loads(index.read_text()).items() if key != "class_names"}
        index.write_text(json.dumps(old))
        opened = open_dataset(wanted)
        assert isinstance(opened, PreparedDataset)
        assert class_names_of(opened) is None


class TestRows:
    @skips
    @pytest.mark.parametrize("name", MAKERS)
    def test_they_are_those_of_the_files(self, name: str, formats: Any) -> None:
        wanted = recipe(MAKERS[name](formats))
        files = build_dataset(wanted)
        seen: list[Progress] = []
        made = prepare(wanted, threads=3, on_progress=seen.append)
        opened = open_dataset(wanted)
        assert made.made
        assert isinstance(opened, PreparedDataset)
        assert same(files, opened)
        assert made.index["counts"] == {part: len(files.split(part)) for part in PARTS}
        assert seen[-1].step == seen[-1].total == sum(made.index["counts"].values())
        for file, facts in made.index["files"].items():
            content = (made.path / file).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (facts["bytes"], facts["sha256"])
        if name == "celeba":
            assert [Path(entry["image"]).name for entry in made.index["skipped"]] == ["000003.jpg"]
            with pytest.warns(GebmKitWarning, match=r"1 image.*000003\.jpg"):
                open_dataset(wanted)

    def test_threads_change_nothing(self, formats: Any) -> None:
        wanted = recipe(make_folder(formats))
        digests = {prepare(wanted, threads=threads, force=True).index["checksum"] for threads in (1, 2, 7)}
        assert len(digests) == 1

    def test_every_built_in_reader_of_image_files_is_tested(self) -> None:
        from gebm_kit.core.components import BUILTIN
        from gebm_kit.core.plugins import installed

        can = {
            record.component.name
            for record in installed().registry.of_kind("dataset")
            if record.distribution == BUILTIN and hasattr(record.load(), "sources")
        }
        assert can == set(MAKERS)

    def test_data_larger_than_memory_is_mapped(self, formats: Any) -> None:
        """Only the requested rows of a part are read; the file has 50 GB, but is sparse and takes no space."""
        made = prepare(recipe(make_folder(formats)))
        num = 50 * 10**9 // (3 * 8 * 8)
        os.truncate(made.path / "train.u8", num * 3 * 8 * 8)
        index = {**made.index, "counts": {**made.index["counts"], "train": num}}
        with open(made.path / "train.u8", "r+b") as file:
            file.seek(-3 * 8 * 8, os.SEEK_END)
            file.write(bytes([255] * 3 * 8 * 8))
        split = PreparedDataset(made.path, index).split("train")
        assert len(split) == num
        assert torch.equal(split.batch(torch.tensor([num // 2, num - 1]))[:, 0, 0, 0], torch.tensor([-1.0, 1.0]))


class TestTraining:
    @pytest.mark.parametrize("resident", [True, False])
    def test_it_is_the_same_bit_for_bit(self, resident: bool, formats: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Training is the same from files, from prepared data, and resumed from prepared data after half of the steps."""
        if not resident:
            monkeypatch.setattr(feed, "RESIDENT_BYTES", 0)
        wanted = recipe(make_folder(formats))
        runs = [train(wanted, out="files-run"), train(recipe_with(wanted, steps=3), out="half")]
        prepare(wanted)
        runs[1] = train(wanted, out="half", resume=True)
        runs.append(train(wanted, out="prepared-run"))
        weights = [run.model.state_dict() for run in runs]
        for other in weights[1:]:
            assert all(torch.equal(value, other[name]) for name, value in weights[0].items())
        scores = [run.evaluation["metrics"] for run in runs if run.evaluation is not None]
        assert len(scores) == 3
        assert scores[0] == scores[2]

    def test_batches_come_in_the_same_order(self, formats: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted = recipe(make_folder(formats))
        files = build_dataset(wanted)
        prepare(wanted)
        monkeypatch.setattr(feed, "RESIDENT_BYTES", 0)
        feeds = [
            Feed(d.split("train"), 7, 3, torch.device("cpu"), torch.float32) for d in (files, open_dataset(wanted))
        ]
        assert feeds[1].resident_bytes == 0
        for _ in range(9):
            a, b = (source.next() for source in feeds)
            assert a.dtype == torch.float32
            assert torch.equal(a, b)

    def test_a_dry_run_says_where_they_are(self, formats: Any) -> None:
        wanted = recipe(make_folder(formats))
        assert plan(wanted, cycles=1)["data"]["prepared"] is None
        made = prepare(wanted)
        assert plan(wanted, cycles=1)["data"]["prepared"] == str(made.path)

    def test_large_data_that_are_not_prepared_name_the_command(
        self, formats: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted = recipe(make_folder(formats), "data.size=4", "train.seed=3")
        monkeypatch.setattr(opening, "RESIDENT_BYTES", 100)
        with pytest.warns(
            GebmKitWarning, match=r"`gebm-kit data prepare \S*tiny\.yaml data\.size=4` decodes them once"
        ):
            open_dataset(wanted)


def recipe_with(wanted: Recipe, *, steps: int) -> Recipe:
    assert wanted.path is not None
    return load_recipe(wanted.path, [f"train.steps={steps}"])


class TestOutOfDate:
    @pytest.fixture
    def wanted(self, formats: Any) -> Recipe:
        wanted = recipe(make_folder(formats))
        prepare(wanted)
        return wanted

    def refused(self, wanted: Recipe, message: str) -> None:
        with pytest.warns(
            GebmKitWarning, match=rf"are not used: .*{message}.*`gebm-kit data prepare .*` prepares them again"
        ):
            assert not isinstance(open_dataset(wanted), PreparedDataset)
        with pytest.warns(GebmKitWarning, match=f"are made again: .*{message}"):
            assert prepare(wanted).made
        opened = open_dataset(wanted)
        assert isinstance(opened, PreparedDataset)
        assert same(build_dataset(wanted), opened)

    def test_a_changed_file(self, wanted: Recipe) -> None:
        Image.new("RGB", (12, 10)).save("files/cats/01.png")
        self.refused(wanted, r"cats/01\.png was changed")

    def test_a_file_put_back_to_an_older_one(self, wanted: Recipe) -> None:
        os.utime("files/cats/01.png", (1, 1))
        self.refused(wanted, "files has changed since they were made")

    def test_a_new_file(self, wanted: Recipe) -> None:
        Image.new("RGB", (12, 10)).save("files/dogs/new.png")
        self.refused(wanted, r"had 40 file\(s\) .* has 41 now")

    def test_a_renamed_file(self, wanted: Recipe) -> None:
        os.rename("files/dogs/00.png", "files/dogs/99.png")
        self.refused(wanted, "files has changed since they were made")

    def test_what_is_no_image_does_not_count(self, wanted: Recipe) -> None:
        Path("files/notes.txt").write_text("none")
        Path("files/.hidden.png").write_text("none")
        assert isinstance(open_dataset(wanted), PreparedDataset)

    @pytest.mark.parametrize("damage", ["cut", "lost", "index", "format"])
    def test_damage_to_what_is_prepared(self, damage: str, wanted: Recipe) -> None:
        rows = find_prepared(wanted).folder
        if damage == "cut":
            os.truncate(rows / "valid.u8", 100)
            message = r"valid\.u8 has 100 bytes"
        elif damage == "lost":
            (rows / "test.u8").unlink()
            message = "damaged"
        elif damage == "index":
            (rows / "index.json").write_text('{"format": 1}')
            message = "damaged"
        else:
            content = json.loads((rows / "index.json").read_text())
            (rows / "index.json").write_text(json.dumps({**content, "format": 0}))
            message = "not of format"
        self.refused(wanted, message)

    def test_files_that_are_gone_altogether_are_replaced_by_what_is_prepared(self, wanted: Recipe) -> None:
        before = build_dataset(wanted)
        for part in PARTS:
            before.split(part).stored(None)  # keeps them in memory
        Path("files").rename("elsewhere")
        with pytest.warns(GebmKitWarning, match="are gone; the prepared data are used instead"):
            assert same(before, open_dataset(wanted))
        with pytest.raises(DataError, match="does not exist"):
            prepare(wanted, force=True)
        with pytest.warns(GebmKitWarning, match="are gone"):
            assert isinstance(open_dataset(wanted), PreparedDataset)

    def test_other_data_are_not_mistaken_for_them(self, wanted: Recipe) -> None:
        assert wanted.path is not None
        for words in (["data.size=4"], ["data.seed=1"], ["data.path=elsewhere"]):
            assert find_prepared(load_recipe(wanted.path, words)).index is None
        for words in (["data.cache_mb=0"], ["train.seed=5"], [f"data.path={Path('files').absolute()}"]):
            assert find_prepared(load_recipe(wanted.path, words)).index is not None

    def test_a_file_that_would_be_read_first_counts_before_it_is_there(self, formats: Any) -> None:
        formats.cifar10(Path("cifar"), archive=False)
        wanted = recipe("{name: cifar10, path: cifar}")
        prepare(wanted)
        formats.cifar10(Path("other"))
        os.rename("other/cifar-10-binary.tar.gz", "cifar/cifar-10-binary.tar.gz")
        with pytest.warns(GebmKitWarning, match=r"tar\.gz had 0 file\(s\) .* and has 1 now"):
            open_dataset(wanted)

    def test_checksums_are_looked_at_on_demand(self, wanted: Recipe) -> None:
        made = prepare(wanted, check=True)
        assert not made.made
        with open(made.path / "train.u8", "r+b") as file:
            file.write(b"other")
        assert not prepare(wanted).made
        with pytest.raises(DataError, match=r"train\.u8 is damaged: its checksum"):
            prepare(wanted, check=True)
        assert prepare(wanted, force=True).made
        assert same(build_dataset(wanted), open_dataset(wanted))


class TestWholeOrAbsent:
    def left(self, wanted: Recipe) -> set[str]:
        return {path.name for path in place_of(wanted).iterdir()} - {".lock"}

    @pytest.mark.parametrize("before", [False, True], ids=["nothing before", "something before"])
    def test_an_error_leaves_what_was_there(self, before: bool, formats: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted = recipe(make_folder(formats))
        if before:
            prepare(wanted)

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(making.os, "fsync", full)
            with pytest.raises(RunFailed, match="No space left"):
                prepare(wanted, force=True)
        assert self.left(wanted) == ({"rows"} if before else set())
        assert (find_prepared(wanted).index is not None) == before

    def test_a_signal_leaves_nothing(self, formats: Any, cache: Path) -> None:
        make_folder(formats)
        Path("tiny.yaml").write_text(RECIPE.format(data="{name: image-folder, path: files, size: 8}"))
        program = """
import os, signal, sys
from gebm_kit.cli.app import main
from gebm_kit.engine.datasets import prepare
real = prepare._Part.add
def add(self, piece):
    real(self, piece)
    os.kill(os.getpid(), signal.SIGTERM)
prepare._Part.add = add
sys.exit(main(["data", "prepare", "tiny.yaml"]))
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 128 + signal.SIGTERM, done.stderr
        assert "stopped by SIGTERM" in done.stderr
        assert "Traceback" not in done.stderr
        (root,) = cache.iterdir()
        assert [path.name for path in root.iterdir()] == [".lock"]

    def test_what_a_killed_process_left_is_removed(self, formats: Any) -> None:
        wanted = recipe(make_folder(formats))
        for name in (".new-17", ".old-17"):
            (place_of(wanted) / name).mkdir(parents=True)
            (place_of(wanted) / name / "train.u8").write_bytes(b"half")
        assert find_prepared(wanted).index is None
        prepare(wanted)
        assert self.left(wanted) == {"rows"}

    def test_one_process_at_a_time(self, formats: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gebm_kit.engine.process.lock.LOCK_SECONDS", 0.0)
        wanted = recipe(make_folder(formats))
        place_of(wanted).mkdir(parents=True)
        with DirectoryLock(work="preparing", hint="") as lock:
            lock.hold(place_of(wanted))
            with pytest.raises(UsageError, match="another process is preparing"):
                prepare(wanted)
        assert prepare(wanted).made

    def test_too_little_space_is_said_at_once(self, formats: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(making.shutil, "disk_usage", lambda _: making.shutil._ntuple_diskusage(10, 5, 5))
        wanted = recipe(make_folder(formats))
        with pytest.raises(RunFailed, match=r"take 0\.0 GB, and 0\.0 GB are free") as caught:
            prepare(wanted)
        assert "GEBM_KIT_DATA_CACHE" in caught.value.hint
        assert self.left(wanted) == set()


class TestRefusals:
    @pytest.mark.filterwarnings("ignore:.*is skipped")
    def test_too_many_corrupt_images(self, formats: Any) -> None:
        data = make_folder(formats)
        for index in range(1, 9, 2):
            Path(f"files/cats/{index:02d}.png").write_bytes(b"no image")
        with pytest.raises(DataError, match=r"\d images can't be decoded, 2 are allowed: .*cats/0\d\.png") as caught:
            prepare(recipe(data, "data.max_corrupt=2"))
        assert "data.max_corrupt" in caught.value.hint
        made = prepare(recipe(data, "data.max_corrupt=4"))
        assert [Path(entry["image"]).name for entry in made.index["skipped"]] == [
            "01.png",
            "03.png",
            "05.png",
            "07.png",
        ]
        assert {entry["reason"] for entry in made.index["skipped"]} == {"it is not an image in a known format"}
        assert sum(made.index["counts"].values()) == 40

    def test_what_is_no_dataset_of_image_files(self) -> None:
        with pytest.raises(UsageError, match="'digits' does not consist of image files"):
            prepare(recipe("{name: digits}"))

    def test_files_that_are_not_there(self, cache: Path) -> None:
        with pytest.raises(DataError, match="does not exist"):
            prepare(recipe("{name: image-folder, path: nowhere}"))
        assert not cache.exists()
