"""What every conditional component promises. Components are found by their parameter ``conditional``, with their choices.

A choice is a parameter with a few named values, such as ``network`` of the vae: each value is tried, the others at their
defaults.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from gebm_kit.core.classes import CAPABILITIES
from gebm_kit.core.components import Registered, parameters
from gebm_kit.core.errors import DataError, GebmKitError, UsageError
from gebm_kit.core.interfaces import Base, Energy
from gebm_kit.core.layers import Activation
from gebm_kit.core.model import GEBM, DataPotential, LatentPotential
from gebm_kit.core.plugins import installed
from gebm_kit.core.priors import PriorName
from gebm_kit.testing.host_sync import forbid_host_sync
from gebm_kit.testing.model_checks import check_base, check_energy

K = 3
SHAPES = ((3,), (1, 8, 8))
"""Shapes of data, of which a component is built for the first that it accepts."""

SMALL: dict[str, Any] = {"hidden": [8], "width": 4, "latent_dim": 5, "transforms": 2}
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@dataclasses.dataclass(frozen=True)
class Case:
    """A registered component with one of its choices."""

    record: Registered
    choice: tuple[str, Any] | None = None

    def __str__(self) -> str:
        component = self.record.component
        return f"{component.kind}-{component.name}" + (f"-{self.choice[0]}={self.choice[1]}" if self.choice else "")

    @property
    def kind(self) -> str:
        return self.record.component.kind

    def built(self, **changes: Any) -> Any:
        """Return it for the first shape of data that it accepts."""
        target, problem = self.record.load(), None
        for shape in SHAPES:
            facts = {"data_shape": shape, "value_range": (-1.0, 1.0) if len(shape) == 3 else None, "num_classes": K}
            values = {**facts, **SMALL, "conditional": True, **dict([self.choice] if self.choice else []), **changes}
            try:
                torch.manual_seed(0)
                part = target(**{name: value for name, value in values.items() if name in parameters(target)})
            except DataError as error:
                problem = error
                continue
            part.shape = shape
            return part
        assert problem is not None
        raise problem

    def perturbed(self) -> Any:
        """Return it in eval mode with every weight moved: some start at values that make all classes alike."""
        part, generator = self.built(), torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        return part.eval()

    def rows(self, part: Any, num: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return codes of a base, or points of an energy."""
        shape = (part.latent_dim,) if self.kind == "base" else part.shape
        return torch.randn(num, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def cases() -> Iterator[Case]:
    for kind in ("base", "energy"):
        for record in installed().registry.of_kind(kind):
            schema = parameters(record.load())
            if "conditional" not in schema:
                continue
            yield Case(record)
            for parameter in schema.values():
                if typing.get_origin(parameter.annotation) is Literal and parameter.annotation not in (
                    Activation,
                    PriorName,
                ):
                    others = [v for v in typing.get_args(parameter.annotation) if v != parameter.default]
                    yield from (Case(record, (parameter.name, value)) for value in others)


def serves_classes(case: Case) -> bool:
    try:
        case.built()
    except GebmKitError:
        return False
    return True


ALL = list(cases())
CASES = [case for case in ALL if serves_classes(case)]


def test_what_is_found() -> None:
    assert {str(case) for case in CASES} >= {
        "base-mlp", "base-dcgan", "base-dcgan-norm=layer", "base-sngan", "base-resnet", "base-vae", "base-vae-network=conv",
        "energy-mlp", "energy-conv", "energy-projected", "energy-sngan", "energy-resnet",
    }  # fmt: skip
    assert {str(case) for case in ALL} - {str(case) for case in CASES} == {"base-dcgan-norm=none"}
    with pytest.raises(GebmKitError, match="conditional gives each norm a gain and a shift for each class"):
        next(case for case in ALL if case not in CASES).built()


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


# --- the function of rows and labels ---------------------------------------------------------------------------------


def test_a_label_changes_the_output_of_its_own_row(case: Case) -> None:
    part = case.perturbed()
    given = case.rows(part, 6)
    before = part(given, LABELS)
    for row in range(6):
        labels = LABELS.clone()
        labels[row] = (labels[row] + 1) % K
        after = part(given, labels)
        others = torch.arange(6) != row
        torch.testing.assert_close(after[others], before[others], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(after[row], before[row], rtol=1e-4)


def test_blocks_of_rows_equal_the_whole(case: Case) -> None:
    part = case.perturbed()
    given = case.rows(part, 6)
    whole = part(given, LABELS)
    for size in (1, 3, 4):
        blocks = torch.cat([part(*block) for block in zip(given.split(size), LABELS.split(size), strict=True)])
        torch.testing.assert_close(blocks, whole, rtol=1e-4, atol=1e-5)


def test_rows_of_a_class_equal_the_model_of_the_class(case: Case) -> None:
    part = case.perturbed()
    model, given = model_of(part), case.rows(part, 6)
    for label in range(K):
        own, labels = model.given(label), torch.full((6,), label)
        found = own.decode(given) if case.kind == "base" else own.energy_at(given)
        torch.testing.assert_close(found, part(given, labels), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("block_size", [None, 3, 4])
def test_chains_carry_their_labels(case: Case, block_size: int | None) -> None:
    part = case.perturbed()
    if case.kind == "energy":
        x = case.rows(part, 6).flatten(1)
        with DataPotential(part, part.shape, block_size=block_size, labels=LABELS) as potential:
            potential.value(x)
            with forbid_host_sync():
                found = potential.value_and_grad(x)
        each = [DataPotential(model_of(part).given(label).energy, part.shape) for label in LABELS.tolist()]
    else:
        model, x = model_of(part), case.rows(part, 6)
        with LatentPotential(model, block_size=block_size, labels=LABELS) as potential:
            potential.value(x)  # a flow builds its transforms once
            with forbid_host_sync():
                found = potential.value_and_grad(x)
        each = [LatentPotential(model.given(label)) for label in LABELS.tolist()]
    for row, alone in enumerate(each):
        with alone:
            expected = alone.value_and_grad(x[row : row + 1])
        torch.testing.assert_close(found.value[row], expected.value[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.grad[row], expected.grad[0], rtol=1e-3, atol=1e-3)
    assert bool((found.grad != 0).any(1).all())


def test_the_gradient_of_a_row_reaches_its_own_input_alone(case: Case) -> None:
    part = case.perturbed()
    given = case.rows(part, 6).requires_grad_()
    found = part(given, LABELS).flatten(1) if case.kind == "base" else part(given, LABELS)[:, None]
    (grad,) = torch.autograd.grad(found[2].square().sum(), given)
    assert bool((grad[2] != 0).any())
    assert not bool((grad[torch.arange(6) != 2] != 0).any())


def test_float64_agrees_with_float32(case: Case) -> None:
    part = case.perturbed()
    given = case.rows(part, 6)
    single = part(given, LABELS)
    double = part.double()(given.double(), LABELS)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(single.double(), double, rtol=2e-3, atol=2e-3)


def test_every_weight_learns(case: Case) -> None:
    part = case.built().train()
    labels, weight = LABELS.repeat(2), torch.randn(12, generator=torch.Generator().manual_seed(0))
    found = part(case.rows(part, 12), labels).flatten(1) if case.kind == "base" else part(case.rows(part, 12), labels)
    loss = (found.sum(1) if found.ndim > 1 else found).square().mul(weight).sum()
    if hasattr(part, "pretraining_loss"):
        loss = loss + part.pretraining_loss(points(part, 12), labels)
    loss.backward()
    assert [name for name, p in part.named_parameters() if p.requires_grad and p.grad is None] == []


def test_state_round_trip(case: Case) -> None:
    part, twin = case.perturbed(), case.built().eval()
    twin.load_state_dict(part.state_dict())
    given = case.rows(part, 2)
    assert torch.equal(part(given, LABELS[1:3]), twin(given, LABELS[1:3]))


def test_it_passes_its_conformance_check(case: Case) -> None:
    if case.kind == "base":
        check_base(case.perturbed())
    else:
        part = case.perturbed()
        if getattr(part, "bound", None) is None:  # bounded energies are flat far out
            check_energy(part, part.shape)


# --- what a base offers beyond G(z) ----------------------------------------------------------------------------------
OFFERING = [case for case in CASES if any(hasattr(case.record.load(), name) for name in CAPABILITIES)]


@pytest.mark.parametrize("case", OFFERING, ids=str)
def test_capabilities_take_labels(case: Case) -> None:
    part = case.perturbed().double()
    x = points(part, 6).double()
    for name in CAPABILITIES:
        if not hasattr(part, name):
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            whole = getattr(part, name)(x, LABELS)
            torch.manual_seed(0)
            other = getattr(part, name)(x, (LABELS + 1) % K)
            assert not torch.allclose(whole, other)
            torch.manual_seed(0)
            own = getattr(model_of(part).given(1).base, name)(x)
            torch.manual_seed(0)
            torch.testing.assert_close(own, getattr(part, name)(x, torch.ones(6, dtype=torch.int64)))
        if name != "pretraining_loss":
            alone = [getattr(part, name)(*pair) for pair in zip(x.split(1), LABELS.split(1), strict=True)]
            torch.testing.assert_close(torch.cat(alone), whole)
        with pytest.raises(UsageError, match="is conditional: it needs the class of every row"):
            getattr(part, name)(x)
    if hasattr(part, "log_prob"):
        check_density(part, case.rows(part, 6, torch.float64))


def check_density(part: Any, z: Tensor) -> None:
    """Check ``log b(x | y)`` against the map of the class, z -> G(z, y)."""
    x = part(z, LABELS).detach()
    torch.testing.assert_close(part.encode(x, LABELS), z, rtol=1e-6, atol=1e-6)
    jacobians = [
        torch.autograd.functional.jacobian(lambda one, k=label: part(one[None], torch.tensor([k]))[0], z[row])
        for row, label in enumerate(LABELS.tolist())
    ]
    log_det = torch.linalg.slogdet(torch.stack(jacobians))[1]
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(part.log_prob(x, LABELS), normal - log_det, rtol=1e-5, atol=1e-5)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_without_labels_is_refused(case: Case) -> None:
    part = case.built()
    with pytest.raises(UsageError, match="is conditional: it needs the class of every row"):
        part(case.rows(part, 2))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, K]), f"^there is no class {K}; allowed are whole numbers from 0 to {K - 1}$"),
        (torch.tensor([-1, 0]), f"^there is no class -1; allowed are whole numbers from 0 to {K - 1}$"),
        (torch.tensor([0.0, 1.0]), "^labels must be a tensor of whole numbers from 0 to 2, shape .N,., got float32"),
        (torch.tensor([[0], [1]]), "^labels must be a tensor of whole numbers from 0 to 2, shape .N,., got int64"),
        ([0, 1], "^labels must be a tensor of whole numbers from 0 to 2, shape .N,., got list"),
    ],
)
def test_labels_that_are_no_classes_are_refused(case: Case, labels: Any, message: str) -> None:
    part = case.built()
    with pytest.raises(UsageError, match=message):
        part(case.rows(part, 2), labels)


def test_another_number_of_labels_is_refused(case: Case) -> None:
    part = case.built()
    given, model = case.rows(part, 4), model_of(part)
    with pytest.raises(UsageError, match="there are 3 labels for 4 rows; each row needs one"):
        (model.decode if case.kind == "base" else model.energy_at)(given, LABELS[:3])


def test_labels_of_an_unconditional_one_are_refused(case: Case) -> None:
    part = case.built(conditional=False)
    assert not part.conditional
    assert part.num_classes is None
    with pytest.raises(UsageError, match="is not conditional"):
        part(case.rows(part, 2), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("count", [None, 1])
def test_data_without_classes_are_refused(case: Case, count: int | None) -> None:
    with pytest.raises(GebmKitError, match="conditional is true, and the dataset has"):
        case.built(num_classes=count)


def test_unconditional_weights_are_what_they_were(case: Case) -> None:
    with_facts, without = (
        case.built(conditional=False, **changes).state_dict() for changes in ({}, {"num_classes": None})
    )
    assert with_facts.keys() == without.keys()
    assert not any("embedding" in name or "projection" in name for name in without)


# --- parts -----------------------------------------------------------------------------------------------------------


def points(part: Any, num: int) -> Tensor:
    return torch.randn(num, *part.data_shape, generator=torch.Generator().manual_seed(3)).clamp(-1.0, 1.0)


class Bowl(Energy):
    """E(x) = |x|^2 / 2, without classes."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x.flatten(1).square().sum(1)


class Same(Base):
    """G(z) = z, without classes."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.data_shape, self.latent_dim = shape, torch.Size(shape).numel()

    def forward(self, z: Tensor) -> Tensor:
        return z.unflatten(1, self.data_shape)


def model_of(part: nn.Module) -> GEBM:
    return GEBM(part, Bowl()) if isinstance(part, Base) else GEBM(Same(part.shape), part)  # type: ignore[arg-type]
