"""Tests of the energy on features learned beforehand: they are learned, stay fixed, and are kept by a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gebm_kit.config.load import load_recipe
from gebm_kit.core.errors import DataError, Interrupted, RecipeError, UsageError
from gebm_kit.core.interfaces import HasFitting
from gebm_kit.core.progress import Progress
from gebm_kit.data.digits import Digits
from gebm_kit.energies.pretext import blanked_square, classify, contrast, view
from gebm_kit.energies.projected import ProjectedEnergy
from gebm_kit.engine.run_directory.run import load_run
from gebm_kit.engine.train import train

CPU = torch.device("cpu")

RECIPE = """\
schema: 1
data: {name: digits}
base: {name: dcgan, latent_dim: 6, width: 4}
energy: {name: projected, width: 4, dim: 8, hidden: [8], steps: 12}
train: {steps: 6, batch_size: 16, log_every: 1, checkpoint_every: 3, final: {steps: 2}}
sample: {num_samples: 20, num_chains: 10, warmup: 2, steps: 4, thin: 1}
eval: {metrics: [mmd], num_samples: 20, num_sets: 2, log_partition: importance-sampling}
"""

pytestmark = [
    pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning"),
    pytest.mark.usefixtures("quick_evaluation"),
]


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


class Unlabelled:
    """The digits without labels."""

    def __init__(self, digits: Digits) -> None:
        self.data_shape, self.value_range, self.split = digits.data_shape, digits.value_range, digits.split


def energy(**arguments: Any) -> ProjectedEnergy:
    torch.manual_seed(0)
    return ProjectedEnergy(**{"width": 8, "dim": 16, "data_shape": (1, 8, 8), **arguments})


def trunk_of(model: ProjectedEnergy) -> dict[str, Tensor]:
    names = ("trunk", "mean", "std", "fitted")
    return {name: value.clone() for name, value in model.state_dict().items() if name.startswith(names)}


def features(model: ProjectedEnergy, x: Tensor) -> Tensor:
    return (model.trunk(x) - model.mean) / model.std


class TestFit:
    def test_features_of_labels_tell_the_classes_apart(self, digits):
        """A linear least-squares fit on the features classifies nearly all held-out digits, on random ones far fewer."""
        right = {}
        for steps in (0, 200):
            model = energy(features="labels", steps=steps)
            model.fit(digits, CPU, seed=1)
            with torch.no_grad():
                train, test = (
                    features(model, digits.split(part).batch(torch.arange(len(digits.split(part)))))
                    for part in ("train", "test")
                )
            targets = F.one_hot(digits.labels("train"), 10).float()
            weights = torch.linalg.lstsq(F.pad(train, (0, 1), value=1.0), targets).solution
            guess = (F.pad(test, (0, 1), value=1.0) @ weights).argmax(1)
            right[steps] = (guess == digits.labels("test")).float().mean().item()
        assert right[200] > 0.9
        assert right[0] < right[200] - 0.1

    def test_contrastive_features_find_the_other_view_of_an_image(self, digits):
        """Among views of 200 images, fewer wrong views are nearer to a view than its partner is."""
        found = {}
        x = digits.split("test").batch(torch.arange(200))
        for steps in (0, 200):
            model = energy(features="contrastive", steps=steps)
            model.fit(digits, CPU, seed=1)
            torch.manual_seed(3)
            with torch.no_grad():
                one, two = (F.normalize(features(model, view(x, -1.0, 1.0)), dim=1) for _ in range(2))
            alike = one @ two.T
            found[steps] = (alike > alike.diagonal().unsqueeze(1)).float().sum(1).mean().item()
        assert found[200] < 0.7 * found[0]

    def test_features_are_standardised_by_the_training_part(self, digits):
        model = energy(steps=5)
        model.fit(digits, CPU, seed=1)
        with torch.no_grad():
            found = features(model, digits.split("train").batch(torch.arange(len(digits.split("train")))))
        torch.testing.assert_close(found.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
        torch.testing.assert_close(found.std(0), torch.ones(16), atol=1e-3, rtol=0)
        assert model.fitted

    @pytest.mark.parametrize("rows", [100, 10_000])
    def test_the_seed_decides_and_global_randomness_is_left_alone(self, digits, monkeypatch, rows):
        monkeypatch.setattr("gebm_kit.energies.projected.STANDARDISED_BY", rows)
        made = []
        for seed in (1, 1, 2):
            model = energy(steps=5)
            torch.manual_seed(7)
            before = torch.get_rng_state()
            model.fit(digits, CPU, seed)
            assert torch.equal(torch.get_rng_state(), before)
            made.append(trunk_of(model))
        assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
        assert not torch.equal(made[0]["trunk.0.weight"], made[2]["trunk.0.weight"])

    def test_only_the_training_part_is_read(self, digits):
        asked = []

        class Watched(Unlabelled):
            def __init__(self) -> None:
                super().__init__(digits)
                self.split = lambda name: asked.append(name) or digits.split(name)

        energy(steps=2).fit(Watched(), CPU, seed=1)
        assert set(asked) == {"train"}

    def test_progress_is_told(self, digits):
        told = []
        energy(steps=3).fit(digits, CPU, 1, lambda *at: told.append(at))
        assert told == [(1, 3), (2, 3), (3, 3)]

    def test_which_task(self, digits):
        bare = Unlabelled(digits)
        assert energy().pretext(digits) is classify
        assert energy().pretext(bare) is contrast
        assert energy(features="contrastive").pretext(digits) is contrast

    def test_after_a_failure_the_features_are_fixed_all_the_same(self, digits):
        model = energy(steps=3)

        def stop(step: int, total: int) -> None:
            raise Interrupted("stopped", signum=2)

        with pytest.raises(Interrupted):
            model.fit(digits, CPU, 1, stop)
        assert not any(parameter.requires_grad for parameter in model.trunk.parameters())
        assert not model.fitted


class TestBadInput:
    def test_labels_that_are_not_there(self, digits):
        with pytest.raises(UsageError, match="needs data of two classes or more, and these have no labels") as error:
            energy(features="labels").fit(Unlabelled(digits), CPU, 1)
        assert "contrastive" in error.value.hint

    def test_points(self):
        with pytest.raises(DataError, match="works on images"):
            ProjectedEnergy(data_shape=(2,))

    def test_a_bound_holds_and_leaves_small_energies_alone(self):
        torch.manual_seed(0)
        free, bounded = energy(steps=0), energy(steps=0, bound=0.5)
        bounded.load_state_dict(free.state_dict())
        x = 30 * torch.randn(200, 1, 8, 8)
        open_ended = free(x)
        assert bounded(x).abs().max() <= 0.5 < open_ended.abs().max()
        torch.testing.assert_close(bounded(x), 0.5 * torch.tanh(open_ended / 0.5))

    @pytest.mark.parametrize(
        "arguments", [{"width": 0}, {"dim": 0}, {"steps": -1}, {"features": "classes"}, {"bound": 0.0}]
    )
    def test_arguments_out_of_range(self, arguments):
        with pytest.raises((UsageError, RecipeError)):
            energy(**arguments)

    def test_hidden(self):
        with pytest.raises(RecipeError, match="hidden"):
            energy(hidden=[0])


class TestView:
    def test_blanked_square_is_dark_and_in_proportion(self):
        torch.manual_seed(0)
        mask = blanked_square(torch.zeros(2000, 1, 20, 20))
        share = 1.0 - mask.mean().item()
        # the square's side is 0.3 and its centre anywhere; the part beyond the edge is lost, so E = (0.3 - 0.3^2 / 4)^2
        assert share == pytest.approx((0.3 - 0.3**2 / 4) ** 2, rel=0.15)

    def test_values_stay_near_their_range(self):
        torch.manual_seed(0)
        x = torch.rand(50, 3, 16, 16) * 2 - 1
        seen = view(x, -1.0, 1.0)
        assert seen.shape == x.shape
        assert seen.min() > -1.5
        assert seen.max() < 2.5

    def test_each_image_of_a_batch_is_seen_in_its_own_way(self):
        torch.manual_seed(0)
        x = torch.rand(1, 1, 16, 16).expand(2, 1, 16, 16)
        one, two = view(x, 0.0, 1.0)
        assert not torch.allclose(one, two, atol=0.1)


class TestRun:
    def recipe(self, tmp_path: Path, *words: str) -> Any:
        (tmp_path / "projected.yaml").write_text(RECIPE)
        return load_recipe(str(tmp_path / "projected.yaml"), list(words))

    def test_fitted_once_and_the_same_ever_after(self, tmp_path, digits):
        told: list[Progress] = []
        run = train(self.recipe(tmp_path), out=tmp_path / "run", on_progress=told.append)
        assert [report.step for report in told if report.stage == "fit"] == list(range(1, 13))
        assert isinstance(run.model.energy, HasFitting)
        assert run.model.energy.fitted
        early = load_run(run.path, "step-6").model.energy
        now = trunk_of(run.model.energy)
        assert all(torch.equal(value, now[name]) for name, value in trunk_of(early).items())
        assert not torch.equal(early.readout.linear.weight, run.model.energy.readout.linear.weight)

    def test_float64(self, tmp_path):
        run = train(self.recipe(tmp_path, "precision=float64"), out=tmp_path / "run")
        assert run.model.energy.mean.dtype == torch.float64

    def test_resumed_to_the_bit_without_fitting_again(self, tmp_path):
        whole = train(self.recipe(tmp_path), out=tmp_path / "whole")

        def stop(report: Progress) -> None:
            if report.stage == "train" and report.step == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(self.recipe(tmp_path), out=tmp_path / "cut", on_progress=stop)
        told: list[Progress] = []
        cut = train(self.recipe(tmp_path), out=tmp_path / "cut", resume=True, on_progress=told.append)
        assert not [report for report in told if report.stage == "fit"]
        theirs = cut.model.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in whole.model.state_dict().items())

    def test_an_energy_that_comes_with_its_features_keeps_them(self, tmp_path):
        first = train(self.recipe(tmp_path), out=tmp_path / "first")
        told: list[Progress] = []
        more = self.recipe(tmp_path, f"train.init_from={first.path}", "train.part=energy", "train.seed=3")
        second = train(more, out=tmp_path / "second", on_progress=told.append)
        assert not [report for report in told if report.stage == "fit"]
        now = trunk_of(second.model.energy)
        assert all(torch.equal(value, now[name]) for name, value in trunk_of(first.model.energy).items())

    def test_a_fresh_one_on_the_base_of_another_run_is_fitted(self, tmp_path):
        first = train(self.recipe(tmp_path, "energy={name: conv, width: 4}"), out=tmp_path / "first")
        more = self.recipe(tmp_path, f"train.init_from={first.path}", "train.part=energy", "ema.decay=0")
        with pytest.warns(UserWarning, match="does not fit; it starts afresh"):
            second = train(more, out=tmp_path / "second")
        assert second.model.energy.fitted
        mine, theirs = first.model.base.state_dict(), second.model.base.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
