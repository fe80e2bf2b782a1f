"""Components that fail on torch's side, with states and gradients that training can't use, are named as well."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.core.components import Component, Injected
from gebm_kit.core.errors import PluginError, UsageError
from gebm_kit.core.interfaces import (
    Base,
    Batch,
    Dataset,
    Energy,
    EvalContext,
    Loss,
    LossTerms,
    Metric,
    Potential,
    Split,
    SplitName,
)
from gebm_kit.core.model import GEBM
from gebm_kit.core.plugins import installed
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.engine.datasets.contract import check_dataset
from gebm_kit.engine.sampling.contract import check_sampler
from gebm_kit.samplers.rwm import Rwm

Shape = Annotated[tuple[int, ...], Injected]

RECIPE = """
schema: 1
data: {name: two-moons, num_train: 200, num_valid: 100, num_test: 100}
base: {name: mlp, latent_dim: 2, hidden: [8]}
energy: {name: mlp, hidden: [8]}
train: {steps: 1, energy_steps: 1, start_steps: 0, batch_size: 16, penalty: null}
sample: {num_chains: 8, num_samples: 16, warmup: 2, steps: 2}
eval: {metrics: [mmd], num_samples: 16, num_sets: 2}
"""


class _Base(Base):
    def __init__(self, *, data_shape: Shape) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = 2, tuple(data_shape)
        self.net = nn.Linear(2, 2)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


class BaseInDouble(_Base):
    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).double()


class BaseThatIsFrozen(_Base):
    def __init__(self, *, data_shape: Shape) -> None:
        super().__init__(data_shape=data_shape)
        self.requires_grad_(False)


class _Energy(Energy):
    def __init__(self, *, data_shape: Shape) -> None:
        super().__init__()
        self.net: nn.Module = nn.Linear(*data_shape, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)


class EnergyThatIsFrozen(_Energy):
    def __init__(self, *, data_shape: Shape) -> None:
        super().__init__(data_shape=data_shape)
        self.requires_grad_(False)


class EnergyThatIsLazy(_Energy):
    def __init__(self) -> None:
        super().__init__(data_shape=(2,))
        self.net = nn.LazyLinear(1)


class EnergyThatGrows(_Energy):
    def forward(self, x: Tensor) -> Tensor:
        self.scale = nn.Parameter(torch.ones(()))
        return self.scale * super().forward(x)


class _Loss(Loss):
    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        assert batch.x is not None
        return LossTerms((model.energy(batch.x) - model.energy(batch.x_base)).square().mean())

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        return LossTerms(model.energy(batch.x_base).mean())


class LossThatDifferentiates(_Loss):
    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        terms = super().energy_loss(model, batch)
        terms.loss.backward()  # type: ignore[no-untyped-call]
        return terms


class LossThatSwitchesGradientsOff(_Loss):
    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        terms = super().energy_loss(model, batch)
        torch.set_grad_enabled(False)
        return terms


class LossThatFreezesTheEnergy(_Loss):
    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        model.energy.requires_grad_(False)
        return super().energy_loss(model, batch)


class LossThatNamesTheStep(_Loss):
    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        return LossTerms(super().energy_loss(model, batch).loss, {"step": torch.zeros(())})


class LossWithOddNegatives(_Loss):
    negatives: Any = "many"


class MetricOfAHugeNumber(Metric):
    def __call__(self, context: EvalContext) -> dict[str, float]:
        return {"huge": 10**400}


class MetricWithAnOddProtocol(Metric):
    def __call__(self, context: EvalContext) -> dict[str, float]:
        return {"odd": 1.0}

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        return {"sizes": torch.ones(2)}


WRONG = {
    BaseInDouble: "returns torch.float64 for codes of torch.float32",
    BaseThatIsFrozen: "has no parameter that can be trained",
    EnergyThatIsFrozen: "has no parameter that can be trained",
    EnergyThatIsLazy: "has a lazy weight, 'net.weight'",
    EnergyThatGrows: "gains or loses 'scale' in its state_dict while it is trained",
    LossThatDifferentiates: "can't be used in energy_loss, whose gradient the kit takes itself",
    LossThatSwitchesGradientsOff: "changes torch's gradient mode or default type in energy_loss",
    LossThatFreezesTheEnergy: "returns a loss from energy_loss that carries no gradient at all",
    LossThatNamesTheStep: "names a metric of energy_loss 'step', which the log keeps for itself",
    LossWithOddNegatives: "was in use when gebm-kit failed at",
    MetricOfAHugeNumber: "returns a whole number as 'huge' that no float holds",
    MetricWithAnOddProtocol: "from protocol; it must be a mapping of plain JSON values",
}
"""Components that break their contract in one way, and the words that say how."""

KEYS = {Base: "base={}", Energy: "energy={}", Loss: "loss={}", Metric: "eval.metrics=[{}]"}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    registry = installed().registry
    kept = {key: list(records) for key, records in registry._records.items()}
    for cls in WRONG:
        kind = next(kind for kind in KEYS if issubclass(cls, kind))
        target = f"{__name__}:{cls.__name__}"
        registry.add(Component(kind.__name__.lower(), cls.__name__, target, "a test"), "oddware", "0.1")
    yield
    registry._records.clear()
    registry._records.update(kept)


@pytest.mark.parametrize("cls", WRONG, ids=lambda cls: cls.__name__)
def test_found_and_named_before_the_first_step(cls: type, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    override = next(key for kind, key in KEYS.items() if issubclass(cls, kind)).format(cls.__name__)
    with pytest.raises(PluginError) as caught:
        gk.train(path, [override], out=tmp_path / "run")
    said = caught.value.message
    assert WRONG[cls] in said, said
    assert f"'{cls.__name__}' (oddware 0.1, {__file__}, line {inspect.getsourcelines(cls)[1]})" in said
    assert "--resume" not in said + caught.value.hint
    assert not (tmp_path / "run").exists()
    assert torch.is_grad_enabled()


class Rows(Split):
    def __init__(self, rows: Tensor, *, ordered: bool = True) -> None:
        self.rows, self.ordered = rows, ordered

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> Tensor:
        return self.rows[indices] if self.ordered else self.rows[: len(indices)]


class Data(Dataset):
    """200 rows a part, of which the test part may be cut, or hold rows of the training part."""

    data_shape, value_range = (2,), None

    def __init__(self, shared: int = 0, *, ordered: bool = True) -> None:
        self.shared, self.ordered = shared, ordered

    def split(self, name: SplitName) -> Split:
        parts = torch.randn(3, 200, 2, generator=torch.Generator().manual_seed(0))
        rows = parts[("train", "valid", "test").index(name)]
        if name == "test" and self.shared:
            rows = torch.cat([parts[0, : self.shared], rows[self.shared :]])
        return Rows(rows, ordered=self.ordered)


def test_rows_that_ignore_the_indices_are_refused() -> None:
    with pytest.raises(PluginError, match="'Data' .* that don't follow the indices"):
        check_dataset(Data(ordered=False))


def test_a_warning_names_a_dataset_whose_parts_share_some_rows() -> None:
    check_dataset(Data())
    with pytest.warns(GebmKitWarning, match=r"'Data' .* has 40 of 128 rows .* part test"):
        check_dataset(Data(shared=40))


def test_too_few_rows_for_a_metric_are_found_before_the_first_step(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.replace("num_test: 100", "num_test: 1"))
    with pytest.raises(UsageError, match="metric mmd needs at least 2 rows in the test part, and there are 1"):
        gk.train(path, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_sampler_that_counts_its_own_steps_is_refused() -> None:
    class Counting(Rwm):
        count = 0

        def step(self, state: Any, potential: Potential, generator: torch.Generator) -> Any:
            self.count += 1
            state, info = super().step(state, potential, generator)
            return state._replace(position=state.position + self.count), info

    check_sampler(Rwm(), 2, torch.device("cpu"), torch.float32)
    with pytest.raises(PluginError, match="'Counting' .* nothing may be kept in the sampler"):
        check_sampler(Counting(), 2, torch.device("cpu"), torch.float32)


def test_a_sampler_that_seeds_its_generator_or_switches_gradients_is_refused() -> None:
    class Seeding(Rwm):
        def step(self, state: Any, potential: Potential, generator: torch.Generator) -> Any:
            return super().step(state, potential, generator.manual_seed(0))

    class Switching(Rwm):
        def step(self, state: Any, potential: Potential, generator: torch.Generator) -> Any:
            torch.set_grad_enabled(not torch.is_grad_enabled())
            return super().step(state, potential, generator)

    for sampler, words in (
        (Seeding(), "seeds the generator handed in anew"),
        (Switching(), "changes torch's gradient mode"),
    ):
        with pytest.raises(PluginError, match=f"'{type(sampler).__name__}' .*{words}"):
            check_sampler(sampler, 2, torch.device("cpu"), torch.float32)
        assert torch.is_grad_enabled()
