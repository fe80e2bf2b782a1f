"""Files and addresses that a dataset names, in its rows, its README and its lists: none is opened unless it is trusted."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
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
from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import HasLabels
from gebm_kit.core.trust import paths_trusted, trust_paths
from gebm_kit.engine.datasets.prepare import prepare
from gebm_kit.engine.datasets.prepared_cache import PARTS
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
        text = (
            "license: mit\nhomepage: https://example.org\nconfigs:\n- config_name: x\n  data_files: 'train/*/*.png'\n"
        )
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


def test_damaged_arrow_files_are_refused_before_they_are_mapped() -> None:
    """The library trusts the offsets in an arrow file; wrong ones lead outside the file, and end the process."""
    as_dataset().save_to_disk("saved")
    (file,) = Path("saved").glob("*.arrow")
    whole, rng, refused = file.read_bytes(), np.random.default_rng(0), 0
    for _ in range(20):
        damaged = bytearray(whole)
        for place in rng.integers(0, 2000, 4):
            damaged[place] = int(rng.choice([0, 1, 127, 255]))
        file.unlink()  # not written in place: earlier datasets still map it
        file.write_bytes(damaged)
        shutil.copy(file, "one.arrow")
        for path in ("saved", "one.arrow"):
            try:
                data = HuggingFace(path, size=8, max_corrupt=NUM)
                for part in PARTS:
                    data.split(part).first(99)
            except DataError:
                refused += 1
    assert 10 < refused < 40
