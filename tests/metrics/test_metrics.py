"""What every registered metric must do, and metrics against known answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from gebm_kit.core.components import BUILTIN
from gebm_kit.core.errors import RecipeError, RunFailed, UsageError
from gebm_kit.core.interfaces import Base, Dataset, Energy, EvalContext, Metric
from gebm_kit.core.model import GEBM
from gebm_kit.core.plugins import installed
from gebm_kit.core.seeds import stream
from gebm_kit.data.digits import Digits
from gebm_kit.data.toys import TwentyFiveGaussians, TwoMoons
from gebm_kit.features.pixels import Pixels
from gebm_kit.metrics.authenticity import Authenticity
from gebm_kit.metrics.cmmd import Cmmd
from gebm_kit.metrics.data_copying import DataCopying
from gebm_kit.metrics.frechet import Fid, Frechet, Moments, distance_of_rows, extrapolated, frechet_distance, moments
from gebm_kit.metrics.inception_score import InceptionScore
from gebm_kit.metrics.kale import KaleMetric
from gebm_kit.metrics.kid import Kid
from gebm_kit.metrics.mmd import Mmd, kernel_sum, median_distance
from gebm_kit.metrics.modes import Modes
from gebm_kit.metrics.prdc import Prdc
from gebm_kit.metrics.sliced_wasserstein import SlicedWasserstein, wasserstein_squared
from gebm_kit.metrics.vendi import Vendi

F64 = torch.float64
NAMES = [r.component.name for r in installed().registry.of_kind("metric") if r.distribution == BUILTIN]


class Identity(Base):
    """``G(z) = z``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = dim, (dim,)

    def forward(self, z: Tensor) -> Tensor:
        return z


class Quadratic(Energy):
    """``E(x) = a |x|^2 / 2 - b . x``: exponential tilting of a standard normal into another Gaussian."""

    def __init__(self, a: float, b: Tensor) -> None:
        super().__init__()
        self.a, self.b = a, nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.a * x.square().sum(1) - x @ self.b


class Classes(Pixels):
    """A classifier whose logits are its features."""

    def logits(self, features: Tensor) -> Tensor:
        return features


def context(
    samples: Tensor, reference: Tensor, dataset: Dataset | None = None, model: GEBM | None = None, seed: int = 0
) -> EvalContext:
    maps = {"pixels": Pixels(), "classifier": Classes()}
    return EvalContext(samples, reference, dataset, maps.__getitem__, stream(seed, "test"), model)


def normal(num: int, dim: int, seed: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * torch.randn(num, dim, generator=stream(seed, "normal", num, dim), dtype=F64)


OF_FEATURES = (
    Frechet, Fid, Kid, Prdc, InceptionScore, Mmd, SlicedWasserstein, Cmmd, Vendi, Authenticity, DataCopying,
)  # fmt: skip


@pytest.mark.parametrize("kind", OF_FEATURES)
class TestFeaturesAreCheckedBeforehand:
    def test_the_name_must_be_installed(self, kind: Callable[..., Metric]) -> None:
        with pytest.raises(RecipeError, match=r"features 'pixel' is unknown; did you mean pixels\?"):
            kind(features="pixel").check(Digits())

    @pytest.mark.parametrize("name", ["classifier", f"{BUILTIN}:classifier"])
    def test_the_classifier_needs_labels(self, kind: Callable[..., Metric], name: str) -> None:
        kind(features=name).check(Digits())
        with pytest.raises(UsageError, match="need a dataset with labels"):
            kind(features=name).check(TwoMoons())

    def test_others_serve_all_data(self, kind: Callable[..., Metric]) -> None:
        for name in ("auto", "pixels"):
            if kind is InceptionScore:  # needs a classifier
                with pytest.raises(UsageError, match="needs class probabilities"):
                    kind(features=name).check(TwoMoons())
            else:
                kind(features=name).check(TwoMoons())


def test_every_metric_names_its_values_and_is_repeatable() -> None:
    toy = TwentyFiveGaussians(num_test=400)
    model = GEBM(Identity(2), Quadratic(0.1, torch.zeros(2)))
    for name in NAMES:
        arguments = {
            "ood-auroc": {"dataset": "two-moons"}, "inception-score": {"features": "classifier"},
            "cmmd": {"features": "pixels"},
        }.get(name, {})  # fmt: skip
        metric: Metric = installed().registry.get("metric", name).load()(**arguments)
        case = lambda: context(normal(300, 2, 1).float(), toy.split("test").first(400), toy, model)  # noqa: E731
        values = metric(case())
        assert values
        assert all(key == name or key.startswith(f"{name}.") for key in values)
        assert (set(values) == {name}) == (len(values) == 1)
        assert all(isinstance(value, float) and math.isfinite(value) for value in values.values())
        assert metric(case()) == values
        protocol = metric.protocol(case())
        assert protocol
        assert "checksum" in str(protocol) or name in ("modes", "kale", "ood-auroc")


@pytest.mark.parametrize("name", ["frechet", "fid", "kid", "prdc", "mmd", "sliced-wasserstein", "modes"])
def test_draws_that_are_not_finite_are_refused(name: str) -> None:
    toy = TwentyFiveGaussians(num_test=50)
    bad = normal(60, 2, 0).float()
    bad[3, 1] = math.nan
    metric: Metric = installed().registry.get("metric", name).load()()
    with pytest.raises(RunFailed, match="not finite"):
        metric(context(bad, toy.split("test").first(50), toy))


@pytest.mark.parametrize("name", ["frechet", "fid", "kid", "mmd"])
def test_one_draw_is_not_enough(name: str) -> None:
    metric: Metric = installed().registry.get("metric", name).load()()
    with pytest.raises(UsageError, match="at least 2 draws"):
        metric(context(normal(1, 2, 0), normal(9, 2, 0)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mmd(bandwidth_scale=0.0),
        lambda: Kid(subsets=0),
        lambda: Kid(subset_size=1),
        lambda: Kid(seed=-1),
        lambda: InceptionScore(splits=0),
        lambda: Prdc(nearest_k=0),
        lambda: SlicedWasserstein(num_directions=0),
        lambda: Modes(radius=-1.0),
        lambda: Modes(min_points=0),
        lambda: KaleMetric(num_draws=1),
    ],
)
def test_parameters_out_of_range(make: Callable[[], Any]) -> None:
    with pytest.raises(UsageError):
        make()


class TestFrechet:
    def test_distance_of_known_gaussians(self) -> None:
        """For covariances that commute: |m1 - m2|^2 + sum (s1 - s2)^2."""
        rotation = torch.linalg.qr(normal(5, 5, 0)).Q
        first, second = torch.tensor([1.0, 2, 3, 0.5, 0]).double(), torch.tensor([2.0, 2, 1, 0.1, 3]).double()
        mean = torch.tensor([1.0, 0, -2, 0, 0]).double()
        a = Moments(mean, rotation @ torch.diag(first.square()) @ rotation.T)
        b = Moments(torch.zeros(5).double(), rotation @ torch.diag(second.square()) @ rotation.T)
        assert float(frechet_distance(a, b)) == pytest.approx(5.0 + float((first - second).square().sum()), abs=1e-6)
        assert float(frechet_distance(b, a)) == pytest.approx(float(frechet_distance(a, b)), abs=1e-6)
        assert float(frechet_distance(a, a)) == pytest.approx(0.0, abs=1e-6)

    def test_against_the_matrix_square_root(self) -> None:
        from scipy.linalg import sqrtm

        a, b = moments(normal(50, 6, 1) @ normal(6, 6, 2)), moments(1 + normal(40, 6, 3))
        cross = sqrtm((a.covariance @ b.covariance).numpy()).real.trace()
        direct = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
        assert float(frechet_distance(a, b)) == pytest.approx(float(direct), rel=1e-8)

    @pytest.mark.parametrize(("first", "second"), [(20, 30), (30, 20), (20, 200), (200, 20), (200, 150)])
    def test_rows_give_what_their_moments_give(self, first: int, second: int) -> None:
        a, b = normal(first, 50, 1) @ normal(50, 50, 2), 1 + normal(second, 50, 3)
        assert float(distance_of_rows(a, b)) == pytest.approx(float(frechet_distance(moments(a), moments(b))), rel=1e-6)

    def test_pixels_of_large_images_need_no_covariance(self) -> None:
        """(F, F) would be 160 GB here."""
        x = normal(20, 140_000, 1)
        assert Frechet()(context(x, x.flip(0)))["frechet"] == pytest.approx(0.0, abs=1e-3)
        assert Frechet()(context(x, x + 1))["frechet"] == pytest.approx(140_000, rel=1e-6)

    @pytest.mark.parametrize(("shift", "std"), [(0.0, 1.0), (1.0, 1.0), (0.0, 1.5)])
    def test_the_extrapolated_value_is_unbiased_where_the_plain_one_is_not(self, shift: float, std: float) -> None:
        dim, num, repeats = 8, 400, 60
        truth = dim * (std - 1) ** 2 + dim * shift**2
        exact = Moments(torch.zeros(dim).double(), torch.eye(dim).double())
        plain, flat = [], []
        for seed in range(repeats):
            x = normal(num, dim, seed, mean=shift, std=std)
            noise = float(2 * shift * (x.mean(0) - shift).sum())  # has mean zero: a control variate
            plain.append(float(frechet_distance(moments(x), exact)) - truth - noise)
            flat.append(extrapolated(x, exact, stream(seed, "shuffle")) - truth - noise)
        # A second-order bias of about (F/N)^2 is left, far below the first-order bias that is removed.
        left = 2 * dim * (dim / num) ** 2 * std**2
        assert abs(sum(flat) / repeats) < left + 4.5 * float(torch.tensor(flat).std()) / math.sqrt(repeats)
        # The negative control: without extrapolation the same test fails.
        assert stats.ttest_1samp(plain, 0.0).pvalue < 1e-5
        assert sum(plain) / repeats > 0.05

    def test_equal_laws_may_come_out_below_zero(self) -> None:
        values = []
        for seed in range(40):
            case = context(normal(300, 4, seed), normal(100_000, 4, 999), seed=seed)
            values.append(Frechet()(case)["frechet"])
        assert min(values) < 0 < max(values)

    def test_bias_is_independent_of_the_order_of_the_draws(self) -> None:
        """Draws of a chain come in order of time; this is the extreme case, draws sorted by value."""
        x = normal(800, 2, 0)
        x, exact = x[x[:, 0].argsort()], Moments(torch.zeros(2).double(), torch.eye(2).double())
        assert extrapolated(x, exact, stream(0)) < 0.1

    def test_too_few_draws_are_not_extrapolated_and_the_protocol_says_so(self) -> None:
        few, many = context(normal(60, 8, 0), normal(500, 8, 1)), context(normal(70, 8, 0), normal(500, 8, 1))
        assert Frechet().protocol(few)["extrapolated"] is False
        assert Frechet().protocol(many)["extrapolated"] is True
        assert Frechet(extrapolate=False).protocol(many)["extrapolated"] is False
        plain = float(frechet_distance(moments(few.samples), moments(few.reference)))
        assert Frechet()(few)["frechet"] == pytest.approx(plain)

    def test_auto_is_the_classifier_where_there_are_labels(self) -> None:
        case = context(normal(50, 2, 0), normal(50, 2, 1))
        assert Frechet().protocol(case)["features"] == "pixels"
        digits = context(torch.rand(80, 1, 8, 8), torch.rand(80, 1, 8, 8), Digits())
        assert Frechet().protocol(digits)["features"] == "classifier"
        assert Frechet("pixels").protocol(digits)["features"] == "pixels"

    def test_rank_deficient_features(self) -> None:
        x = normal(50, 3, 0) @ normal(3, 10, 1)
        assert math.isfinite(Frechet(extrapolate=False)(context(x, x + 1))["frechet"])
        assert Frechet(extrapolate=False)(context(x, x))["frechet"] == pytest.approx(0.0, abs=1e-6)


class TestMmd:
    def test_against_the_definition(self) -> None:
        x, y = normal(7, 3, 0), normal(5, 3, 1, mean=0.5)
        value = Mmd()(context(x, y))["mmd"]
        s = median_distance(y)

        def k(a: Tensor, b: Tensor) -> Tensor:
            return torch.exp(-torch.cdist(a, b).square() / (2 * s**2))

        off_x, off_y = ~torch.eye(7, dtype=torch.bool), ~torch.eye(5, dtype=torch.bool)
        expected = k(x, x)[off_x].mean() + k(y, y)[off_y].mean() - 2 * k(x, y).mean()
        assert value == pytest.approx(float(expected), abs=1e-12)

    def test_mean_is_zero_under_equality_and_exact_otherwise(self) -> None:
        """For normals N(m, I) and N(0, I) in d dimensions and width s, with v = s^2 + 2:
        MMD^2 = 2 (s^2 / v)^{d/2} (1 - exp(-|m|^2 / (2 v)))."""
        dim, num = 3, 60
        for shift in (0.0, 0.4):
            values, truths = [], []
            for seed in range(200):
                y = normal(num, dim, seed)
                values.append(Mmd()(context(normal(num, dim, 10_000 + seed, mean=shift), y))["mmd"])
                s2 = median_distance(y) ** 2
                v = s2 + 2
                truths.append(2 * (s2 / v) ** (dim / 2) * (1 - math.exp(-dim * shift**2 / (2 * v))))
            gaps = [value - truth for value, truth in zip(values, truths, strict=True)]
            # the width depends on the reference, a second-order effect here
            assert abs(sum(gaps) / 200) < 4.5 * float(torch.tensor(gaps).std()) / math.sqrt(200) + 2e-4

    def test_the_biased_statistic_fails_the_same_test(self) -> None:
        """Negative control: with the diagonal kept (a V-statistic) the mean under equality is not zero."""
        values = []
        for seed in range(200):
            x, y = normal(60, 3, seed), normal(60, 3, 10_000 + seed)
            s = median_distance(y)
            values.append((kernel_sum(x, x, s) + kernel_sum(y, y, s) - 2 * kernel_sum(x, y, s)) / 3600)
        assert stats.ttest_1samp(values, 0.0).pvalue < 1e-5

    def test_bandwidth_is_that_of_the_reference_alone(self) -> None:
        metric, y = Mmd(), normal(100, 2, 0)
        near, far = context(normal(50, 2, 1), y), context(normal(50, 2, 1, mean=100.0), y)
        assert metric.protocol(near)["bandwidth"] == metric.protocol(far)["bandwidth"]
        other = context(normal(50, 2, 1), 3 * y)  # the same metric with another reference
        assert metric.protocol(other)["bandwidth"] == pytest.approx(3 * metric.protocol(near)["bandwidth"])
        assert Mmd(bandwidth_scale=2.0).protocol(near)["bandwidth"] == pytest.approx(
            2 * metric.protocol(near)["bandwidth"]
        )

    def test_far_from_the_origin(self) -> None:
        x, y = normal(200, 2, 0), normal(200, 2, 1, mean=0.3)
        here, there = Mmd()(context(x, y))["mmd"], Mmd()(context(x + 1e6, y + 1e6))["mmd"]
        assert there == pytest.approx(here, abs=1e-6)

    def test_blocks_do_not_change_the_sum(self) -> None:
        x, y = normal(2500, 2, 0), normal(1300, 2, 1)
        whole = torch.exp(-torch.cdist(x, y).square() / 2).sum()
        assert kernel_sum(x, y, 1.0) == pytest.approx(float(whole), rel=1e-10)

    def test_ten_thousand_by_ten_thousand_never_holds_the_kernel_matrix(self) -> None:
        """The full matrix would take 800 MB; the process must not grow by nearly as much."""
        import resource

        x, y = normal(10_000, 2, 0), normal(10_000, 2, 1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kernel_sum(x, y, 1.0)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024  # in KiB

    def test_identical_reference_rows(self) -> None:
        with pytest.raises(UsageError, match="identical"):
            Mmd()(context(normal(9, 2, 0), torch.zeros(9, 2)))


class TestSlicedWasserstein:
    def test_one_dimension_in_closed_form(self) -> None:
        """N(m, s^2) against N(0, 1): W_2^2 = m^2 + (s - 1)^2, on exact quantiles."""
        grid = (torch.arange(100_000, dtype=F64) + 0.5) / 100_000
        quantiles = math.sqrt(2) * torch.erfinv(2 * grid - 1)
        value = SlicedWasserstein()(context((0.7 + 1.5 * quantiles)[:, None], quantiles[:, None]))
        assert value["sliced-wasserstein"] == pytest.approx(math.sqrt(0.7**2 + 0.5**2), rel=1e-5)

    def test_a_shift_in_many_dimensions(self) -> None:
        """x + m against x: W_2 along u is |u . m|, so SW_2 = |m| / sqrt(d)."""
        x, shift = normal(500, 6, 0), torch.tensor([3.0, 0, 4, 0, 0, 0]).double()
        value = SlicedWasserstein(num_directions=20_000)(context(x + shift, x))["sliced-wasserstein"]
        assert value == pytest.approx(5 / math.sqrt(6), rel=0.02)

    @pytest.mark.parametrize(("num", "other"), [(5, 5), (4, 6), (3, 7), (1, 5), (100, 1)])
    def test_samples_of_two_sizes(self, num: int, other: int) -> None:
        """Repeating rows makes the sizes equal and leaves both laws unchanged."""
        x, y = normal(num, 3, 0), normal(other, 3, 1)
        many = x.repeat_interleave(other, 0).sort(0).values - y.repeat_interleave(num, 0).sort(0).values
        assert torch.allclose(wasserstein_squared(x, y), many.square().mean(0), atol=1e-12)
        assert torch.allclose(wasserstein_squared(y, x), wasserstein_squared(x, y), atol=1e-12)

    def test_equal_sets_have_distance_zero_in_any_order(self) -> None:
        x = normal(50, 4, 0)
        assert SlicedWasserstein()(context(x.flip(0), x))["sliced-wasserstein"] == pytest.approx(0.0, abs=1e-12)

    def test_directions_are_fixed_by_the_seed(self) -> None:
        x, y = normal(50, 4, 0), normal(50, 4, 1)
        first = SlicedWasserstein(8)(context(x, y, seed=1))
        assert SlicedWasserstein(8)(context(x, y, seed=2)) == first
        assert SlicedWasserstein(8, seed=1)(context(x, y)) != first


class TestModes:
    def test_true_draws_cover_all(self) -> None:
        toy = TwentyFiveGaussians(num_test=10_000)
        values = Modes()(context(toy.split("test").first(10_000), torch.zeros(2, 2), toy))
        assert values["modes.covered"] == 25
        expected = 1 - math.exp(-8)
        assert abs(values["modes.high_quality"] - expected) < 4.5 * math.sqrt(expected * (1 - expected) / 1e4)

    def test_counts(self) -> None:
        toy = TwentyFiveGaussians(num_test=1)
        centres = toy.mode_centres
        samples = torch.cat([
            centres[0].expand(20, 2),  # covered
            centres[1].expand(19, 2),  # one short
            centres[2].expand(15, 2), centres[2].expand(15, 2) + torch.tensor([0.199, 0.0]),  # within 4 std: covered
            centres[3].expand(30, 2) + torch.tensor([0.201, 0.0]),  # beyond 4 std
            torch.full((1, 2), 1e6),
        ])  # fmt: skip
        values = Modes()(context(samples, samples, toy))
        assert values == {"modes.covered": 2.0, "modes.high_quality": pytest.approx(69 / 100)}
        assert Modes(min_points=19)(context(samples, samples, toy))["modes.covered"] == 3
        assert Modes(radius=5.0)(context(samples, samples, toy))["modes.covered"] == 3

    def test_data_without_modes_is_refused(self) -> None:
        for dataset in (TwoMoons(num_train=1, num_valid=1, num_test=1), None):
            with pytest.raises(UsageError, match="whose modes are known"):
                Modes()(context(normal(9, 2, 0), normal(9, 2, 0), dataset))

    def test_no_ratio_and_higher_is_better(self) -> None:
        assert not Modes.ratio
        assert Modes.lower_is_better is False


class TestKale:
    def test_equals_the_kl_between_gaussians_for_the_exact_energy(self) -> None:
        """P = N(m, I), B = N(0, I): the optimal energy is -m . x up to a constant and KL = |m|^2 / 2."""
        shift = torch.tensor([0.6, -0.8], dtype=F64)
        model = GEBM(Identity(2), Quadratic(0.0, shift))
        data = normal(20_000, 2, 0) + shift
        value = KaleMetric(num_draws=100_000)(context(data, data, model=model))["kale"]
        assert value == pytest.approx(0.5, abs=0.03)

    def test_is_a_lower_bound_for_any_energy(self) -> None:
        shift = torch.tensor([1.0, 0.0], dtype=F64)
        data = normal(20_000, 2, 0) + shift
        for a, b in ((0.0, 0.3 * shift), (0.5, shift), (0.2, -shift), (0.0, torch.tensor([0.0, 1.0]).double())):
            value = KaleMetric()(context(data, data, model=GEBM(Identity(2), Quadratic(a, b))))["kale"]
            assert value < 0.5 + 0.03

    def test_needs_a_model(self) -> None:
        with pytest.raises(UsageError, match="property of a model"):
            KaleMetric()(context(normal(9, 2, 0), normal(9, 2, 0)))

    def test_leaves_the_model_as_it_was(self) -> None:
        model = GEBM(Identity(2), Quadratic(0.1, torch.zeros(2))).train()
        KaleMetric(num_draws=50)(context(normal(9, 2, 0), normal(9, 2, 0), model=model))
        assert model.training
        assert all(p.requires_grad for p in model.parameters())
