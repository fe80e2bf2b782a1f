"""Feature maps in an evaluation: parameters, the cache on disk, and checks before drawing."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gebm_kit.config.load import load_recipe
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core.components import BUILTIN
from gebm_kit.core.errors import RecipeError, UsageError
from gebm_kit.core.interfaces import Dataset, FeatureMap, HasLogits
from gebm_kit.data.digits import Digits
from gebm_kit.data.toys import TwoMoons
from gebm_kit.engine.evaluation.feature_maps import FeatureMaps, FeatureSettings, features_of
from gebm_kit.engine.evaluation.metrics import check_metrics
from gebm_kit.features.classifier import Classifier
from gebm_kit.metrics.frechet import Fid
from gebm_kit.metrics.modes import Modes

CPU = torch.device("cpu")


class Halves(FeatureMap):
    """A map to half of every value, which counts the rows it computes."""

    def __init__(self, checksum: str = "a" * 64, resize: str = "none") -> None:
        self.checksum, self.resize, self.rows = checksum, resize, 0

    def fit(self, dataset: Dataset, device: torch.device) -> None:
        return

    def __call__(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return 0.5 * x.flatten(1)


class Quick(Halves):
    cached: ClassVar[bool] = False


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEBM_KIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def rows() -> Tensor:
    return torch.rand(7, 1, 3, 3, generator=torch.Generator().manual_seed(0))


class TestOnDisk:
    def test_a_second_process_reads_what_the_first_computed(self, rows: Tensor, cache: Path) -> None:
        first, second = Halves(), Halves()
        assert torch.equal(features_of("halves", first, rows), 0.5 * rows.flatten(1))
        assert torch.equal(features_of("halves", second, rows.clone()), 0.5 * rows.flatten(1))
        assert (first.rows, second.rows) == (7, 0)
        assert len(list(cache.iterdir())) == 1  # and no temporary file

    def test_whatever_the_features_depend_on_is_in_the_key(self, rows: Tensor, cache: Path) -> None:
        features_of("halves", Halves(), rows)
        changed = rows.clone()
        changed[-1, 0, 2, 2] += 1e-6
        others: list[tuple[str, Halves, Tensor]] = [
            ("other", Halves(), rows),
            ("halves", Halves(checksum="b" * 64), rows),
            ("halves", Halves(resize="to 299"), rows),
            ("halves", Halves(), changed),
            ("halves", Halves(), rows[:6]),
            ("halves", Halves(), rows.reshape(7, 9)),
            ("halves", Halves(), rows.double()),
        ]
        for count, (name, features, x) in enumerate(others, start=2):
            assert torch.equal(features_of(name, features, x), 0.5 * x.flatten(1))
            assert features.rows == len(x)
            assert len(list(cache.iterdir())) == count

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "stranger", "another key", "no tensor"])
    def test_a_damaged_file_is_replaced_with_a_warning(self, damage: str, rows: Tensor, cache: Path) -> None:
        expected = features_of("halves", Halves(), rows)
        (path,) = cache.iterdir()
        content = bytearray(path.read_bytes())
        with safe_open(path, framework="pt") as archive:
            metadata = archive.metadata()
        if damage == "stranger":  # a valid file of other rows under this name
            features_of("halves", Halves(), rows + 1)
            (other,) = (p for p in cache.iterdir() if p != path)
            os.replace(other, path)
        elif damage == "another key":
            save_file({"features": expected}, path, metadata | {"key": "0" * 64})
        elif damage == "no tensor":
            save_file({"others": expected}, path, metadata)
        else:
            content[-3] ^= 1
            path.write_bytes({"truncated": content[:-20], "empty": b"", "flipped": bytes(content)}[damage])
        again = Halves()
        with pytest.warns(UserWarning, match="computed again"):
            assert torch.equal(features_of("halves", again, rows), expected)
        assert again.rows == 7
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(features_of("halves", Halves(), rows), expected)  # the file was replaced

    def test_an_unwritable_directory_only_costs_time(
        self, rows: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("GEBM_KIT_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.warns(UserWarning, match="could not be cached"):
            assert torch.equal(features_of("halves", Halves(), rows), 0.5 * rows.flatten(1))

    def test_only_constant_data_and_costly_maps(
        self, rows: Tensor, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = {"halves": Halves(), "quick": Quick()}
        monkeypatch.setattr(FeatureSettings, "build", lambda self, name, device: made[name])
        maps = FeatureMaps(TwoMoons(num_train=1, num_valid=1, num_test=1), CPU, constant=[rows])
        for name in made:
            maps(name)(rows.clone())
            assert not cache.exists()
        maps("quick")(rows)
        assert not cache.exists()
        maps("halves")(rows)
        assert len(list(cache.iterdir())) == 1
        maps("halves")(rows)  # remembered
        assert made["halves"].rows == 14


class TestSettings:
    def test_parameters_come_from_the_list_by_any_address(self) -> None:
        settings = FeatureSettings((ComponentNode("classifier", {"dim": 3, "steps": 5, "seed": 1}),))
        for name in ("classifier", f"{BUILTIN}:classifier"):
            built = settings.build(name, CPU)
            assert isinstance(built, Classifier)
            assert (built.dim, built.steps, built.seed) == (3, 5, 1)
        plain = FeatureSettings().build("classifier", CPU)
        assert isinstance(plain, Classifier)
        assert plain.dim is None

    def test_the_same_map_twice_is_refused(self) -> None:
        node = ComponentNode("classifier", {})
        with pytest.raises(UsageError, match="lists 'classifier' twice"):
            FeatureSettings((node, node)).build("classifier", CPU)

    def test_logits_are_those_of_the_network(self) -> None:
        maps = FeatureMaps(Digits(), CPU, FeatureSettings((ComponentNode("classifier", {"steps": 20}),)))
        found, x = maps("classifier"), Digits().split("test").first(9)
        assert isinstance(found, HasLogits)
        inner: Any = found
        expected = inner._inner.network(x)
        assert torch.allclose(found.logits(found(x).double()).float(), expected, atol=1e-4)
        assert found.logits(found(x)).shape == (9, 10)
        assert not isinstance(maps("pixels"), HasLogits)

    def test_maps_look_at_the_data_before_anything_is_drawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: FeatureMap, dataset: Dataset) -> None:
            raise UsageError("not for these data")

        monkeypatch.setattr(Classifier, "check", refuse)
        FeatureSettings().check([Fid("pixels"), Fid(), Modes()], Digits())
        with pytest.raises(UsageError, match="not for these data"):
            FeatureSettings().check([Fid("pixels"), Fid("classifier")], Digits())
        recipe = load_recipe("quickstart", ["eval.metrics=[{name: fid, features: classifier}]"])
        with pytest.raises(UsageError, match="not for these data"):
            check_metrics(recipe, Digits())

    def test_a_recipe_gives_parameters_and_is_checked(self) -> None:
        recipe = load_recipe("quickstart", ["eval.features=[{name: classifier, dim: 4}]", "eval.num_reference=50"])
        assert recipe.eval.features[0].parameters["dim"] == 4
        assert recipe.eval.num_reference == 50
        assert FeatureSettings.of(recipe).nodes == recipe.eval.features
        assert FeatureSettings.of(None).nodes == ()
        with pytest.raises(RecipeError, match="did you mean dim"):
            load_recipe("quickstart", ["eval.features=[{name: classifier, dims: 4}]"])
        with pytest.raises(RecipeError, match="did you mean classifier"):
            load_recipe("quickstart", ["eval.features=[clasifier]"])
