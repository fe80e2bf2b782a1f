"""Feature maps: what every registered map must do, and the classifier with its cache."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from gebm_kit.core.cache import cache_directory
from gebm_kit.core.components import BUILTIN, parameters
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, FeatureMap, HasLabels, SplitName
from gebm_kit.core.plugins import installed
from gebm_kit.data.digits import Digits
from gebm_kit.data.tensors import TensorDataset
from gebm_kit.data.toys import EightGaussians
from gebm_kit.features.classifier import Classifier, weights_checksum

CPU = torch.device("cpu")
NAMES = [r.component.name for r in installed().registry.of_kind("features") if r.distribution == BUILTIN]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEBM_KIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Labelled(TensorDataset):
    """Three classes that differ in the mean of their first coordinate (points) or their brightness (images)."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        parts: dict[SplitName, Tensor] = {}
        labels: dict[SplitName, Tensor] = {}
        sizes: dict[SplitName, int] = {"train": 150, "valid": 30, "test": 60}
        for part, num in sizes.items():
            labels[part] = torch.arange(num) % 3
            centre = (labels[part].float() - 1).reshape(-1, *[1] * len(shape))
            parts[part] = (0.5 * centre + 0.05 * torch.randn(num, *shape, generator=generator)).clamp(-1, 1)
        self._fill(parts, value_range=(-1.0, 1.0), labels=labels)


def fitted(dataset: Dataset | None = None, steps: int = 30, **arguments: int) -> Classifier:
    features = Classifier(steps=steps, **arguments)
    features.fit(dataset or Labelled((1, 8, 8)), CPU)
    return features


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 12, 20)])
def test_every_map_gives_rows_of_features(name: str, shape: tuple[int, ...]) -> None:
    dataset = Labelled(shape)
    target = installed().registry.get("features", name).load()
    features: FeatureMap = target(**({"steps": 10} if "steps" in parameters(target) else {}))
    features.fit(dataset, CPU)
    assert features.checksum
    x = torch.rand(37, *shape, requires_grad=True)
    out = features(x)
    assert out.shape[0] == 37
    assert out.ndim == 2
    assert not out.requires_grad
    assert torch.isfinite(out).all()
    rows = torch.cat([features(part) for part in x.split(5)])  # a row's features depend on that row alone
    assert torch.allclose(out, rows, atol=1e-4)
    assert torch.equal(features(x), out)


def test_pixels_are_the_data() -> None:
    features = installed().registry.get("features", "pixels").load()()
    x = torch.rand(5, 3, 4, 4)
    assert torch.equal(features(x), x.reshape(5, 48))


class TestClassifier:
    def test_digits_are_learned(self) -> None:
        features = Classifier()
        features.fit(Digits(), CPU)
        assert features.accuracy(Digits(), "test") > 0.95
        x = Digits().split("train").first(2000)
        out = features(x)
        assert out.shape == (1199, 16)
        assert torch.allclose(out.mean(0), torch.zeros(16), atol=1e-3)
        assert torch.allclose(out.std(0), torch.ones(16), atol=1e-3)

    @pytest.mark.parametrize(
        ("shape", "dim"), [((1, 8, 8), 16), ((1, 28, 28), 64), ((3, 9, 13), 64), ((5,), 16), ((1, 2, 3), 16)]
    )
    def test_any_shape(self, shape: tuple[int, ...], dim: int) -> None:
        dataset = Labelled(shape)
        features = fitted(dataset, steps=60)
        assert features(dataset.split("test").first(7)).shape == (7, dim)
        assert features.accuracy(dataset) > 0.9

    def test_dim_is_a_parameter(self) -> None:
        assert fitted(dim=5)(torch.zeros(2, 1, 8, 8)).shape == (2, 5)

    def test_training_is_deterministic_and_leaves_the_default_generator_alone(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        first = fitted()
        monkeypatch.setenv("GEBM_KIT_CACHE", str(tmp_path / "another"))
        torch.manual_seed(5)
        state = torch.random.get_rng_state()
        second = fitted()
        assert torch.equal(torch.random.get_rng_state(), state)
        assert second.checksum == first.checksum
        assert fitted(seed=1).checksum != first.checksum

    def test_unlabelled_data_is_refused(self) -> None:
        with pytest.raises(UsageError, match="need a dataset with labels"):
            Classifier().fit(EightGaussians(num_train=5, num_valid=5, num_test=5), CPU)

    def test_the_checksum_sees_every_weight(self) -> None:
        weights = fitted().network.state_dict()
        checksum = weights_checksum(weights)
        for name in weights:
            changed = {key: value.clone() for key, value in weights.items()}
            changed[name].reshape(-1)[0] += 1e-3
            assert weights_checksum(changed) != checksum


class Counter:
    """Count of classifiers that are trained: each training makes one optimiser."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained = 0
        real = torch.optim.AdamW

        def counted(*arguments: Any, **named: Any) -> torch.optim.AdamW:
            self.trained += 1
            return real(*arguments, **named)

        monkeypatch.setattr(torch.optim, "AdamW", counted)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


class TestCache:
    def test_a_second_fit_loads_the_same_weights(self, counter: Counter, cache: Path) -> None:
        first, second = fitted(), fitted()
        assert counter.trained == 1
        assert first.checksum == second.checksum
        x = torch.rand(9, 1, 8, 8)
        assert torch.equal(first(x), second(x))
        assert len(list(cache.iterdir())) == 1  # and no temporary file

    def test_other_data_labels_or_settings_are_other_files(self, counter: Counter) -> None:
        fitted()
        fitted(Labelled((1, 8, 8), seed=1))
        flipped = Labelled((1, 8, 8))
        flipped.labels("train").neg_().add_(2)
        fitted(flipped)
        fitted(steps=31)
        fitted(dim=4)
        assert counter.trained == 5

    def test_test_data_plays_no_part(self, counter: Counter) -> None:
        fitted()
        other = Labelled((1, 8, 8))
        other.split("test").stored(None).zero_()  # type: ignore[attr-defined]
        fitted(other)
        assert counter.trained == 1

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text", "stranger"])
    def test_a_damaged_file_is_trained_again_with_a_warning(self, damage: str, counter: Counter, cache: Path) -> None:
        good = fitted().checksum
        (path,) = cache.iterdir()
        content = bytearray(path.read_bytes())
        if damage == "flipped":
            content[-20] ^= 1
        elif damage == "stranger":  # an intact file of other weights under this name
            path.unlink()
            fitted(seed=3)
            (other,) = cache.iterdir()
            content = bytearray(other.read_bytes())
        else:
            content = {"truncated": content[:-50], "empty": bytearray(), "text": bytearray(b"x" * 500)}[damage]
        path.write_bytes(bytes(content))
        counter.trained = 0
        with pytest.warns(UserWarning, match="is trained again"):
            assert fitted().checksum == good
        assert counter.trained == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert fitted().checksum == good  # the file was replaced
        assert counter.trained == 1

    def test_an_unwritable_directory_only_costs_time(
        self, counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("GEBM_KIT_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.warns(UserWarning, match="could not be cached"):
            assert fitted().checksum
        assert counter.trained == 1

    def test_a_full_disk_leaves_nothing_half_written(
        self, counter: Counter, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*arguments: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.warns(UserWarning, match="No space left"):
            fitted()
        assert list(cache.iterdir()) == []

    def test_the_file_holds_its_key_and_checksum(self, cache: Path) -> None:
        checksum = fitted().checksum
        (path,) = cache.iterdir()
        with safe_open(path, framework="pt") as archive:
            assert archive.metadata()["sha256"] == checksum
            assert archive.metadata()["key"].startswith(path.stem.removeprefix("classifier-"))

    def test_directory_follows_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GEBM_KIT_CACHE", "/a")
        assert cache_directory() == Path("/a")
        monkeypatch.delenv("GEBM_KIT_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", "/b")
        assert cache_directory() == Path("/b/gebm-kit")
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_directory() == Path.home() / ".cache" / "gebm-kit"


def test_labelled_fixture_is_a_labelled_dataset() -> None:
    assert isinstance(Labelled((2,)), HasLabels)
