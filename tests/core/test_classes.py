"""Classes: potentials carry labels with their chains, and a model is held at one class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Base, Energy
from gebm_kit.core.model import GEBM, DataPotential, LatentPotential

K = 3


# --- models and potentials -------------------------------------------------------------------------------------------
class Shifted(Base):
    """G(z, y) = z + c_y."""

    conditional = True
    num_classes = K

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = 2, (2,)
        self.register_buffer("centres", torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, -6.0]], dtype=torch.float64))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return z + self.centres[labels]


class Bowls(Energy):
    """E(x, y) = |x - m_y|^2 / 2."""

    conditional = True
    num_classes = K

    def __init__(self, count: int = K) -> None:
        super().__init__()
        self.num_classes = count
        self.register_buffer("means", torch.tensor([[1.0, 0.0], [4.0, 2.0], [0.0, -5.0]], dtype=torch.float64))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return 0.5 * (x - self.means[labels]).square().sum(1)


LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 1])


@pytest.mark.parametrize("block_size", [None, 1, 3, 7, 100])
def test_potentials_carry_labels_with_their_chains(block_size: int | None) -> None:
    model = GEBM(Shifted(), Bowls())
    z = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with LatentPotential(model, 0.5, block_size=block_size, labels=LABELS) as potential:
        found, x = potential.value_and_grad(z), potential.data(z)
        values, at_2 = potential.value(z), potential.at(2.0).tilt(z)
    for index, label in enumerate(LABELS.tolist()):
        with LatentPotential(model.given(label), 0.5) as alone:
            expected = alone.value_and_grad(z[index : index + 1])
            torch.testing.assert_close(found.value[index], expected.value[0])
            torch.testing.assert_close(found.grad[index], expected.grad[0])
            torch.testing.assert_close(values[index], expected.value[0])
            torch.testing.assert_close(x[index], alone.data(z[index : index + 1])[0])
            torch.testing.assert_close(at_2[index], 2.0 * alone.energy(z[index : index + 1])[0])
    with DataPotential(model.energy, (2,), block_size=block_size, labels=LABELS) as potential:
        torch.testing.assert_close(potential.value(x), model.energy_at(x, LABELS))


def test_blocks_on_several_threads_carry_labels() -> None:
    model = GEBM(Shifted(), Bowls())
    z, labels = torch.randn(40, 2, dtype=torch.float64), torch.arange(40) % K
    torch.set_num_threads(2)
    try:
        with LatentPotential(model, block_size=8, labels=labels) as potential:
            torch.testing.assert_close(potential.energy(z), model(z, labels))
    finally:
        torch.set_num_threads(1)


def test_other_rows_than_the_chains_are_refused() -> None:
    with (
        LatentPotential(GEBM(Shifted(), Bowls()), labels=LABELS) as potential,
        pytest.raises(UsageError, match=r"14 points are evaluated, and the chains have 7 labels"),
    ):
        potential.value(torch.zeros(14, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "needs the class of every row"),
        (torch.tensor([0, 3]), r"there is no class 3; allowed are whole numbers from 0 to 2"),
        (torch.tensor([0, -1]), "there is no class -1"),
        (torch.tensor([0.0, 1.0]), "labels must be a tensor of whole numbers"),
        (torch.tensor([[0, 1]]), "labels must be a tensor of whole numbers"),
    ],
)
def test_bad_labels_are_refused(labels: Tensor | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LatentPotential(GEBM(Shifted(), Bowls()), labels=labels)
    with pytest.raises(UsageError, match=message):
        DataPotential(Bowls(), (2,), labels=labels)


def test_labels_for_a_model_without_classes_are_refused() -> None:
    model = GEBM(Shifted(), Bowls()).given(1)
    assert not model.conditional
    with pytest.raises(UsageError, match="the model has no classes"):
        LatentPotential(model, labels=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UsageError, match="the model has no classes"):
        model.given(0)


def test_parts_with_other_numbers_of_classes_are_refused() -> None:
    with pytest.raises(UsageError, match="the base has 3 classes and the energy 4"):
        GEBM(Shifted(), Bowls(4))
    energy = Bowls()
    energy.num_classes = None
    with pytest.raises(UsageError, match="must set num_classes to a whole number"):
        GEBM(Shifted(), energy)


def test_given_shares_weights_and_takes_the_log_partition_of_its_class() -> None:
    model = GEBM(Shifted(), Bowls())
    model.class_log_partition.copy_(torch.tensor([0.5, 1.5, 2.5]))
    given = model.given(2)
    assert float(given.log_partition) == 2.5
    model.base.centres.mul_(2.0)
    z = torch.zeros(1, 2, dtype=torch.float64)
    assert torch.equal(given.decode(z), torch.tensor([[0.0, -12.0]], dtype=torch.float64))
    with pytest.raises(UsageError, match="there is no class 3"):
        model.given(3)
