"""FID's Inception features: they equal torch-fidelity's, the weights file is found and verified, recipes use them."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

import gebm_kit_inception
from gebm_kit.cli.app import main
from gebm_kit.core.builtins import FIRST_PARTY
from gebm_kit.core.components import parameters
from gebm_kit.core.errors import DataError, PluginError, UsageError
from gebm_kit.core.interfaces import Dataset, EvalContext, FeatureMap, HasLogits, SplitName
from gebm_kit.core.plugins import installed
from gebm_kit.core.seeds import stream
from gebm_kit.data.tensors import TensorDataset
from gebm_kit.metrics.frechet import Fid
from gebm_kit.metrics.inception_score import InceptionScore
from gebm_kit.metrics.kid import Kid
from gebm_kit_inception.features import Inception, as_bytes
from gebm_kit_inception.weights import FILE_NAMES, STANDARD_SHA256

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


class Images(TensorDataset):
    def __init__(
        self, shape: tuple[int, ...] = (3, 16, 16), value_range: tuple[float, float] | None = (-1.0, 1.0)
    ) -> None:
        parts: dict[SplitName, Tensor] = {part: torch.zeros(2, *shape) for part in ("train", "valid", "test")}
        self._fill(parts, value_range=value_range)


class Bytes(torch.utils.data.Dataset[Tensor]):
    """Images in the form that torch-fidelity takes."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def images(num: int, seed: int = 0, shape: tuple[int, ...] = (3, 16, 16)) -> Tensor:
    """Return random bytes on a coarse grid, so that images differ by more than noise."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.integers(0, 256, (num, shape[0], 4, 4), dtype=np.uint8))
    return coarse.repeat_interleave(shape[1] // 4, 2).repeat_interleave(shape[2] // 4, 3)


def as_data(image: Tensor) -> Tensor:
    return image.float() / 127.5 - 1.0


def fitted(weights: Any, dataset: Dataset | None = None, **arguments: Any) -> Inception:
    features = Inception(str(weights.path), weights.sha256, **arguments)
    features.fit(dataset or Images(), CPU)
    return features


@pytest.fixture(scope="module")
def theirs(weights: Any) -> Any:
    path = str(weights.path)
    return FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=path)


class TestTheKitKnowsIt:
    def test_what_the_plugin_brings(self) -> None:
        brought = [(component.kind, component.name) for component in gebm_kit_inception.gebm_components()]
        assert list(FIRST_PARTY["gebm-kit-inception"]) == brought
        assert installed().registry.get("features", "inception").distribution == "gebm-kit-inception"

    def test_every_parameter_is_documented(self) -> None:
        readme = (ROOT / "plugins/gebm-kit-inception/README.md").read_text()
        for parameter in parameters(Inception).values():
            assert parameter.injected or f"`{parameter.name}`" in readme
        assert "`inception`" in (ROOT / "docs/metrics.md").read_text()
        for text in (STANDARD_SHA256, FILE_NAMES[0]):
            assert text in readme

    @pytest.mark.parametrize("words", [["list", "features"], ["describe", "features", "inception"]])
    def test_looking_at_it_imports_neither_torch_fidelity_nor_torchvision(self, words: list[str]) -> None:
        program = f"""
import sys
from gebm_kit.cli.app import main
code = main({words!r})
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "inception" in done.stdout
        assert not {"torch_fidelity", "torchvision"} & set(done.stderr.split())
        assert ("torch" in done.stderr.split()) == (words[0] == "describe")


class TestFeatures:
    def test_are_torch_fidelitys(self, weights: Any, theirs: Any) -> None:
        image = images(5)
        expected, logits = theirs(image)
        ours = fitted(weights, block_size=2)
        found = ours(as_data(image))
        assert found.shape == (5, 2048)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert float(expected.std(0).mean()) > 1e-3  # otherwise the comparison would show nothing
        assert isinstance(ours, HasLogits)
        assert torch.allclose(ours.logits(found), logits, rtol=1e-4, atol=1e-3)
        assert ours.logits(found.double()).dtype == torch.float64
        assert (ours.checksum, ours.resize) == (weights.sha256, "bilinear to 299x299 as in TensorFlow 1")

    def test_grey_images_and_other_value_ranges(self, weights: Any, theirs: Any) -> None:
        image = images(3, shape=(1, 8, 12))
        expected, _ = theirs(image.expand(-1, 3, -1, -1))
        ours = fitted(weights, Images((1, 8, 12), (0.0, 1.0)))
        assert torch.allclose(ours(image.double() / 255), expected, rtol=1e-4, atol=1e-4)
        assert ours.resize.startswith("grey to RGB, bilinear")

    def test_every_byte_survives_and_the_rest_is_clipped(self) -> None:
        every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
        for low, high in ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-0.5, 0.5)):
            data = every.float() / 255 * (high - low) + low
            assert torch.equal(as_bytes(data, low, high), every.expand(1, 3, 16, 16))
        assert as_bytes(torch.tensor([[[[-9.0, 9.0, 0.0]]]]), -1.0, 1.0)[0, 0, 0].tolist() == [0, 255, 128]

    def test_draws_that_are_not_finite_stay_so(self, weights: Any) -> None:
        x = as_data(images(3))
        x[1, 0, 0, 0] = torch.nan
        found = fitted(weights)(x)
        assert torch.isfinite(found).all(1).tolist() == [True, False, True]

    def test_metrics_are_torch_fidelitys_from_the_images_on(self, weights: Any) -> None:
        draws, reference = images(24, 1), images(20, 2)
        answers = torch_fidelity.calculate_metrics(
            input1=Bytes(draws), input2=Bytes(reference), cuda=False, verbose=False, fid=True, isc=True, kid=True,
            kid_subsets=4, kid_subset_size=15, isc_splits=3, save_cpu_ram=True, cache=False,
            feature_extractor_weights_path=str(weights.path),
        )  # fmt: skip
        features = fitted(weights)
        x, y = as_data(draws), as_data(reference)

        def value(metric: Any) -> float:
            (found,) = metric(EvalContext(x, y, Images(), lambda name: features, stream(0))).values()
            return float(found)

        assert value(InceptionScore("inception", splits=3)) == pytest.approx(answers["inception_score_mean"], abs=1e-4)
        kid = value(Kid("inception", subsets=4, subset_size=15))
        assert kid == pytest.approx(answers["kernel_inception_distance_mean"], abs=1e-4, rel=1e-4)
        assert value(Fid("inception")) == pytest.approx(answers["frechet_inception_distance"], abs=1e-4, rel=1e-4)


class TestTheFile:
    def test_without_it_the_message_says_where_from_and_where_to(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="need the weights of FID's Inception network") as caught:
            Inception().check(Images())
        assert str(tmp_path / "cache") in caught.value.message
        for text in ("https://", FILE_NAMES[0], str(tmp_path / "cache"), STANDARD_SHA256, "weights: FILE"):
            assert text in caught.value.hint
        with pytest.raises(DataError, match="no weights file /nowhere/at.pth"):
            Inception("/nowhere/at.pth").check(Images())

    @pytest.mark.parametrize("folder", ["cache", "torch/hub/checkpoints"])
    @pytest.mark.parametrize("name", FILE_NAMES)
    def test_is_found_by_either_name_in_either_cache(
        self, weights: Any, tmp_path: Path, folder: str, name: str
    ) -> None:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).symlink_to(weights.path)
        Inception(sha256=weights.sha256).check(Images())
        with pytest.raises(DataError, match="damaged or not the standard weights of FID") as caught:
            Inception().check(Images())
        assert weights.sha256 in caught.value.message
        assert STANDARD_SHA256 in caught.value.message

    def test_relative_paths_start_where_the_recipe_is_used(self, weights: Any, tmp_path: Path) -> None:
        shutil.copy(weights.path, tmp_path / "mine.pth")
        Inception("mine.pth", weights.sha256, directory=tmp_path).check(Images())

    def test_what_is_damaged_is_not_opened(self, weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        content = bytearray(weights.path.read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "bad.pth").write_bytes(content)
        monkeypatch.setattr(torch, "load", lambda *arguments, **named: pytest.fail("opened"))
        with pytest.raises(DataError, match="is damaged or not the weights that the recipe names"):
            Inception(str(tmp_path / "bad.pth"), weights.sha256).fit(Images(), CPU)

    def test_code_in_a_file_is_not_run(self, tmp_path: Path) -> None:
        class Code:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "run",))

        for number, content in enumerate((pickle.dumps({"fc.weight": Code()}), b"text", b"")):
            path = tmp_path / f"{number}.pth"
            path.write_bytes(content)
            with pytest.raises(DataError, match="is not a file of weights"):
                Inception(str(path), hashlib.sha256(content).hexdigest()).fit(Images(), CPU)
        torch.save({"fc.weight": Code()}, tmp_path / "zip.pth")
        digest = hashlib.sha256((tmp_path / "zip.pth").read_bytes()).hexdigest()
        with pytest.raises(DataError, match="is not a file of weights"):
            Inception(str(tmp_path / "zip.pth"), digest).fit(Images(), CPU)
        assert not (tmp_path / "run").exists()

    def test_torch_fidelity_never_unpickles_the_file(self, weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """torch-fidelity loads with code allowed; it gets not the file, but the file's tensors, written again."""
        seen: list[tuple[Any, Any]] = []
        real = torch.load

        def spy(source: Any, *arguments: Any, **named: Any) -> Any:
            seen.append((source, named.get("weights_only")))
            return real(source, *arguments, **named)

        monkeypatch.setattr(torch, "load", spy)
        fitted(weights)
        assert [only for _, only in seen] == [True, False]
        assert not any(isinstance(source, str | Path) for source, _ in seen)

    def test_weights_of_another_network(self, tmp_path: Path) -> None:
        for state, message in (({"a": torch.ones(2)}, "another network"), ([torch.ones(2)], "no weights by name")):
            torch.save(state, tmp_path / "other.pth")
            digest = hashlib.sha256((tmp_path / "other.pth").read_bytes()).hexdigest()
            with pytest.raises(DataError, match=message):
                Inception(str(tmp_path / "other.pth"), digest).fit(Images(), CPU)

    def test_a_checksum_that_is_none(self) -> None:
        with pytest.raises(UsageError, match="64 hexadecimal digits, got '6726825d'"):
            Inception(sha256="6726825d")


class TestData:
    @pytest.mark.parametrize("shape", [(7,), (2, 8, 8), (8, 8)])
    def test_that_are_no_images(self, weights: Any, shape: tuple[int, ...]) -> None:
        with pytest.raises(UsageError, match="need images of 1 or 3 channels"):
            Inception(str(weights.path), weights.sha256).check(Images(shape))

    def test_that_are_unbounded(self, weights: Any) -> None:
        with pytest.raises(UsageError, match="need images with a value range"):
            Inception(str(weights.path), weights.sha256).check(Images(value_range=None))


def test_a_torchvision_that_does_not_fit_is_named(weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(PluginError, match="need torch-fidelity, which can't be imported") as caught:
        fitted(weights)
    assert "matching releases and matching builds" in caught.value.hint


def test_a_recipe_with_it(
    weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without the file the recipe is refused before training. With it, the protocol has its checksum, and the features of
    the reference are computed once."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", x=rng.random((40, 1, 8, 8), dtype=np.float32))
    monkeypatch.chdir(tmp_path)
    words = [
        "data={name: arrays, path: images.npz, value_range: [0.0, 1.0]}", "base={name: mlp, latent_dim: 2}",
        "train.steps=2", "train.start_steps=0", "train.final.steps=0", "eval.num_samples=6", "eval.num_sets=2",
        "sample.num_chains=6", "sample.num_samples=6", "sample.warmup=2", "sample.steps=4", "sample.thin=1",
        "eval.metrics=[{name: fid, features: inception}, {name: inception-score, features: inception, splits: 2}]",
        "eval.num_reference=6", "eval.log_partition=importance-sampling", "eval.budget=1000",
    ]  # fmt: skip
    assert main(["train", "quickstart", *words, "--out", "run", "--quiet"]) == 2
    assert "need the weights of FID's Inception network" in capfd.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()

    node = f"eval.features=[{{name: inception, weights: '{weights.path}', sha256: {weights.sha256}}}]"
    assert main(["train", "quickstart", *words, node, "--out", "run2", "--quiet"]) == 0
    line = f"features inception ({weights.sha256[:8]}), resize grey to RGB, bilinear to 299x299 as in TensorFlow 1"
    out = capfd.readouterr().out
    assert line in out
    assert "fid.train" in out

    rows: list[int] = []
    real = Inception.__call__
    monkeypatch.setattr(Inception, "__call__", lambda self, x: rows.append(len(x)) or real(self, x))
    assert main(["eval", "run2", "--json", "--quiet"]) == 0
    found = json.loads(capfd.readouterr().out)
    # two sets each of base, GEBM and GEBM after 2x and 4x the chain length; the floor's only set once more, to time a set
    # alone; and a single row for each metric's dimension
    assert sorted(rows) == [1, 1, 4] + 8 * [6]
    assert found["protocol"]["fid"]["features_checksum"] == weights.sha256
    assert found["protocol"]["fid"]["dimension"] == 2048
    assert found["metrics"]["gebm"]["inception-score"]["value"] >= 1.0


def test_it_is_a_feature_map_like_any_other(weights: Any) -> None:
    features = fitted(weights)
    assert isinstance(features, FeatureMap)
    x = as_data(images(3)).requires_grad_()
    out = features(x)
    assert not out.requires_grad
    assert torch.allclose(torch.cat([features(row) for row in x.split(1)]), out, atol=1e-4)
