"""Rows under each class, and class probabilities by Bayes' rule, against toys whose classes are known Gaussians."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gebm_kit as gk
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import Base, Energy
from gebm_kit.engine.likelihood.class_densities import ByClass, ClassRows, law_of

K = 3
CENTRES = torch.tensor([[0.0, 0.0], [1.5, 0.0], [0.0, -1.0]], dtype=torch.float64)
MEANS = torch.tensor([[1.0, 0.0], [0.5, 1.0], [-0.5, -0.5]], dtype=torch.float64)
SCALES = torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.2, 0.3])

pytestmark = pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")


def gaussian(x: Tensor, mean: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """log N(x; mean, scale^2 I), (N,)."""
    scale = torch.as_tensor(scale, dtype=x.dtype)
    return -0.5 * ((x - mean) / scale[..., None]).square().sum(1) - 2 * scale.log() - math.log(2 * math.pi)


class Plain(Base):
    """N(0, I), without saying its density."""

    latent_dim, data_shape = 2, (2,)

    def forward(self, z: Tensor) -> Tensor:
        return z


class PlainDensity(Plain):
    def log_prob(self, x: Tensor) -> Tensor:
        return gaussian(x, torch.zeros(2, dtype=x.dtype))


class Moved(Base):
    """N(c_y, I), without saying its density."""

    conditional, num_classes = True, K
    latent_dim, data_shape = 2, (2,)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return z + CENTRES[labels].to(z)


class MovedDensity(Moved):
    def log_prob(self, x: Tensor, labels: Tensor) -> Tensor:
        return gaussian(x, CENTRES[labels].to(x))


class Tilt(Energy):
    """E(x, y) = log b(x | y) - log N(x; m_y, s_y^2 I) + 2 y, so that q(x | y) is that Gaussian and A_y is -2 y."""

    conditional, num_classes = True, K

    def __init__(self, moved: bool) -> None:
        super().__init__()
        self.register_buffer("centres", CENTRES.clone() * moved)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return gaussian(x, self.centres[labels]) - gaussian(x, MEANS[labels], SCALES[labels]) + 2.0 * labels


class Shared(Energy):
    """E(x) = |x|^2 / 2, whatever the class: q(x | y) = N(c_y / 2, I / 2) over `Moved`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.square().sum(1)


def model(base: Base, energy: Energy | None = None) -> gk.GEBM:
    found = gk.GEBM(base, energy or Tilt(base.conditional))
    found.class_weights.copy_(WEIGHTS)
    return found


def rows(num: int = 40) -> Tensor:
    return torch.randn(num, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def exact(x: Tensor, *, shared: bool = False) -> Tensor:
    """log q(x | y) of the toys, (N, K)."""
    means, scales = (CENTRES / 2, torch.full((K,), math.sqrt(0.5))) if shared else (MEANS, SCALES)
    return torch.stack([gaussian(x, means[label], scales[label].double()) for label in range(K)], 1)


def bayes(log_density: Tensor) -> Tensor:
    return torch.softmax(WEIGHTS.double().log() + log_density, 1)


EXACT = {
    "no classes in the base": (Plain(), None, False),
    "no classes in the base, density": (PlainDensity(), None, False),
    "density of each class": (MovedDensity(), None, False),
    "density of each class, one energy": (MovedDensity(), Shared(), True),
}


@pytest.mark.parametrize("name", EXACT)
class TestKnownClasses:
    def scores(self, name: str, **options: Any) -> Any:
        base, energy, _ = EXACT[name]
        return gk.score(model(base, energy), rows(), seed=1, **options)

    def test_probabilities_are_those_of_bayes_rule(self, name: str) -> None:
        found, expected = self.scores(name).classes, bayes(exact(rows(), shared=EXACT[name][2]))
        assert found.law == "bayes"
        assert found.reason is None
        torch.testing.assert_close(found.probabilities.sum(1), torch.ones(40, dtype=torch.float64))
        torch.testing.assert_close(found.probabilities, expected, rtol=0.0, atol=0.02)
        assert torch.equal(found.labels, found.probabilities.argmax(1))

    def test_log_partitions_belong_to_them(self, name: str) -> None:
        found, shared = self.scores(name).classes, EXACT[name][2]
        expected = [-0.25 * float(c.square().sum()) - math.log(2.0) for c in CENTRES] if shared else [0.0, -2.0, -4.0]
        for label, value in enumerate(expected):
            partition = found.log_partitions[label]
            assert partition.value == pytest.approx(value, abs=max(5 * partition.se, 1e-9))

    def test_densities_of_classes_and_of_their_mixture(self, name: str) -> None:
        found, expected = self.scores(name), exact(rows(), shared=EXACT[name][2])
        mixture = torch.logsumexp(WEIGHTS.double().log() + expected, 1)
        if found.log_density is None:
            base = gaussian(rows(), torch.zeros(2, dtype=torch.float64))
            torch.testing.assert_close(-found.classes.energy, expected - base[:, None], rtol=0.0, atol=0.1)
            torch.testing.assert_close(-found.energy, mixture - base, rtol=0.0, atol=0.1)
        else:
            torch.testing.assert_close(found.classes.log_density, expected, rtol=0.0, atol=0.1)
            torch.testing.assert_close(found.log_density, mixture, rtol=0.0, atol=0.1)
            torch.testing.assert_close(found.log_base - found.energy, found.log_density)

    def test_a_class_that_is_given_is_the_same_as_among_all(self, name: str) -> None:
        every = self.scores(name).classes
        for label in range(K):
            found = self.scores(name, labels=label)
            assert found.classes is None
            if found.log_density is None:
                assert found.columns().keys() == {"energy"}
                shift = every.log_partitions[label].value
                torch.testing.assert_close(found.energy + shift, every.energy[:, label])
            else:
                assert found.log_partition == every.log_partitions[label]
                torch.testing.assert_close(found.log_density, every.log_density[:, label])

    def test_each_row_can_have_its_own_class(self, name: str) -> None:
        labels = torch.arange(40) % K
        found, each = self.scores(name, labels=labels), [self.scores(name, labels=label) for label in range(K)]
        for index in range(40):
            assert float(found.energy[index]) == pytest.approx(float(each[index % K].energy[index]))
            if found.log_density is not None:
                assert float(found.log_density[index]) == pytest.approx(float(each[index % K].log_density[index]))
        for same in (labels.tolist(), labels.numpy(), labels.to(torch.int32)):
            assert torch.equal(self.scores(name, labels=same).energy, found.energy)

    @pytest.mark.parametrize("broken", ["weights", "log-partition"])
    def test_a_broken_rule_is_found(self, name: str, broken: str) -> None:
        shared, found = EXACT[name][2], self.scores(name).classes
        weights = torch.full((K,), 1 / K, dtype=torch.float64) if broken == "weights" else WEIGHTS.double()
        wrong = torch.tensor([p.value for p in found.log_partitions.values()]) * (broken == "log-partition")
        scores = -found.energy if found.log_density is None else found.log_density
        twin = torch.softmax(weights.log() + scores + wrong, 1)
        assert float((twin - bayes(exact(rows(), shared=shared))).abs().max()) > 0.05


def test_densities_from_python() -> None:
    subject = model(MovedDensity())
    found, scores = gk.log_density(subject, rows(), seed=1), gk.score(subject, rows(), seed=1)
    assert found.log_partition is None
    assert torch.equal(found.gebm, scores.log_density)
    assert torch.equal(found.classes.probabilities, scores.classes.probabilities)
    given = gk.log_density(subject, rows(), labels=2, seed=1)
    assert given.log_partition == found.classes.log_partitions[2]
    torch.testing.assert_close(given.gebm, found.classes.log_density[:, 2])
    torch.testing.assert_close(given.base, gaussian(rows(), CENTRES[2]))


def test_the_inverse_temperature_is_that_of_every_part() -> None:
    found = gk.score(model(Plain()), rows(), inverse_temperature=0.5, seed=1).classes
    base = gaussian(rows(), torch.zeros(2, dtype=torch.float64))[:, None]
    unnormalised = base + 0.5 * (exact(rows()) - base - 2.0 * torch.arange(K))
    grid = torch.cartesian_prod(*[torch.linspace(-8, 8, 400, dtype=torch.float64)] * 2)
    on_grid = gaussian(grid, torch.zeros(2, dtype=torch.float64))[:, None]
    on_grid = on_grid + 0.5 * (exact(grid) - on_grid - 2.0 * torch.arange(K))
    normaliser = torch.logsumexp(on_grid, 0) + 2 * math.log(16 / 399)
    torch.testing.assert_close(found.probabilities, bayes(unnormalised - normaliser), rtol=0.0, atol=0.02)


class TestEnergyPartAlone:
    """A base with classes and no density: its ratio between classes is not known."""

    def test_there_are_no_probabilities(self) -> None:
        found = gk.score(model(Moved()), rows(), seed=1)
        assert law_of(model(Moved())) == "energy-part"
        assert found.energy is None
        assert found.log_density is None
        assert found.classes.probabilities is None
        assert "is not known and there are no class probabilities" in found.classes.reason
        assert list(found.columns()) == ["energy_0", "energy_1", "energy_2"]
        assert found.as_dict()["mean_energy"] is None
        assert found.as_dict()["classes"]["rows"] is None
        base = torch.stack([gaussian(rows(), centre) for centre in CENTRES], 1)
        torch.testing.assert_close(-found.classes.energy, exact(rows()) - base, rtol=0.0, atol=0.1)

    def test_they_are_not_those_of_the_energy(self) -> None:
        """The softmax of the energy's part is far from Bayes' rule, which is why it is not called a probability."""
        found = gk.score(model(Moved()), rows(), seed=1).classes
        pretended = torch.softmax(WEIGHTS.double().log() - found.energy, 1)
        assert float((pretended - bayes(exact(rows()))).abs().max()) > 0.2
        wrong = ClassRows(found.energy, None, torch.zeros(K), WEIGHTS.double(), "energy-part")
        with pytest.raises(UsageError, match="there are no class probabilities"):
            wrong.log_probabilities()

    def test_a_class_that_is_given_has_its_energy(self) -> None:
        found = gk.score(model(Moved()), rows(), labels=1)
        torch.testing.assert_close(found.energy, Tilt(True)(rows(), torch.ones(40, dtype=torch.int64)))
        assert found.columns().keys() == {"energy"}


def test_a_class_without_weight_has_no_probability() -> None:
    subject = model(Plain())
    subject.class_weights.copy_(torch.tensor([0.5, 0.5, 0.0]))
    found = gk.score(subject, rows(), seed=1).classes
    assert float(found.probabilities[:, 2].max()) == 0.0
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(40, dtype=torch.float64))


def test_rows_that_no_class_can_have_made() -> None:
    energy = torch.full((2, K), torch.inf, dtype=torch.float64)
    energy[1, 1] = 0.0
    found = ByClass.of(ClassRows(energy, None, torch.zeros(K), WEIGHTS.double(), "bayes"), {})
    assert found.probabilities[0].isnan().all()
    assert found.probabilities[1].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
@pytest.mark.parametrize("base", [Plain(), MovedDensity(), Moved()])
def test_files_have_a_column_a_class(tmp_path: Path, suffix: str, base: Base) -> None:
    found = gk.score(model(base), rows(7), seed=1)
    found.save(tmp_path / f"scores{suffix}")
    if suffix == ".npz":
        with np.load(tmp_path / "scores.npz") as archive:
            written = {name: archive[name] for name in archive.files}
    else:
        header, *lines = (tmp_path / "scores.csv").read_text().splitlines()
        values = np.array([[float(cell) for cell in line.split(",")] for line in lines])
        written = {name: values[:, index] for index, name in enumerate(header.split(",")) if name != "row"}
    assert list(written) == list(found.columns()) == found.as_dict()["columns"]
    for name, values in found.columns().items():
        np.testing.assert_allclose(written[name], values.numpy())
    known = law_of(model(base)) == "bayes"
    assert ("probability_2" in written, "class" in written) == (known, known)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (3, "there is no class 3; allowed are whole numbers from 0 to 2"),
        (-1, "there is no class -1"),
        ([0, 1], "there are 2 labels for 40 rows; each row needs one"),
        (1.0, "labels must be a class or the class of each row, whole numbers from 0 to 2, got 1.0"),
        (True, "labels must be a class"),
        ("all", "there is no class 'all'; allowed are whole numbers from 0 to 2"),
        ([0.0] * 40, "labels must be a class"),
        (torch.zeros(40), "labels must be a tensor of whole numbers"),
        (torch.zeros(40, dtype=torch.bool), "labels must be a class"),
        (torch.zeros(40, 1, dtype=torch.int64), "labels must be a tensor of whole numbers"),
    ],
)
def test_bad_labels(labels: Any, message: str) -> None:
    for use in (gk.score, gk.log_density):
        with pytest.raises(UsageError, match=message):
            use(model(MovedDensity()), rows(), labels=labels)


def test_classes_have_names() -> None:
    subject = model(MovedDensity())
    subject.class_names = ("a", "b", "c")
    named, given = gk.score(subject, rows(), labels="b", seed=1), gk.score(subject, rows(), labels=1, seed=1)
    assert torch.equal(named.log_density, given.log_density)
    each = gk.score(subject, rows(4), labels=["a", 1, "b", "c"], seed=1)
    assert torch.equal(each.energy, gk.score(subject, rows(4), labels=[0, 1, 1, 2], seed=1).energy)
    assert gk.score(subject, rows(), seed=1).as_dict()["classes"]["names"] == ["a", "b", "c"]
    with pytest.raises(UsageError, match=r"there is no class 'd'"):
        gk.score(subject, rows(), labels="d")


def test_classes_of_a_model_without_any() -> None:
    for use in (gk.score, gk.log_density):
        with pytest.raises(UsageError, match="the class 1 was given, and the model has no classes"):
            use(model(MovedDensity()).given(1), rows(), labels=1)


def test_rows_that_are_not_there() -> None:
    with pytest.raises(DataError, match="rows of data points are needed"):
        gk.score(model(Plain()), torch.tensor(1.0))


def test_the_model_is_left_as_it_was() -> None:
    subject = model(Moved()).train()
    gk.score(subject, rows(), seed=1)
    assert subject.training
    assert subject.energy.training
    assert torch.equal(subject.class_weights, WEIGHTS)


def test_a_model_of_a_class_has_the_density_of_its_class() -> None:
    given = model(MovedDensity()).given(1)
    torch.testing.assert_close(given.base.log_prob(rows()), gaussian(rows(), CENTRES[1]))
    assert not hasattr(model(Moved()).given(1).base, "log_prob")
    one = gk.log_density(given, rows(), seed=1)
    torch.testing.assert_close(one.gebm, exact(rows())[:, 1], rtol=0.0, atol=0.1)
    assert replace(one, classes=None).log_partitions is None
