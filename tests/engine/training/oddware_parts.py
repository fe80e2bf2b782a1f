"""Components that break their contract, each in one way, as a careless plugin package "oddware" might hold them."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from gebm_kit.core.components import Injected
from gebm_kit.core.interfaces import (
    Base,
    Batch,
    Dataset,
    Energy,
    EvalContext,
    FeatureMap,
    Info,
    Loss,
    LossTerms,
    Metric,
    Penalty,
    Potential,
    Sampler,
    Split,
)
from gebm_kit.core.model import GEBM

Shape = Annotated[tuple[int, ...], Injected]


# --- bases -----------------------------------------------------------------------------------------------------------
class GoodBase(Base):
    def __init__(self, *, data_shape: Shape) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = 2, tuple(data_shape)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, z: Tensor) -> Any:
        return self.net(z)


class BaseWithBatchNorm(GoodBase):
    """A sound base, whose running statistics every evaluation in training mode changes."""

    def __init__(self, *, data_shape: Shape) -> None:
        super().__init__(data_shape=data_shape)
        self.net.insert(1, nn.BatchNorm1d(8))


class BaseWithoutLatentDim(Base):
    def __init__(self, *, data_shape: Shape) -> None:
        super().__init__()
        self.data_shape = tuple(data_shape)


class BaseWithoutDataShape(Base):
    def __init__(self) -> None:
        super().__init__()
        self.latent_dim = 2


class BaseThatStatesAnotherShape(GoodBase):
    def __init__(self, *, data_shape: Shape) -> None:
        super().__init__(data_shape=data_shape)
        self.data_shape = (3,)


class BaseOfAnotherShape(GoodBase):
    def forward(self, z: Tensor) -> Any:
        return self.net(z)[:, :1]


class BaseOfATuple(GoodBase):
    def forward(self, z: Tensor) -> Any:
        return self.net(z), z


class BaseOfNaN(GoodBase):
    def forward(self, z: Tensor) -> Any:
        return self.net(z).log()


class BaseThatMixesRows(GoodBase):
    def forward(self, z: Tensor) -> Any:
        x = self.net(z)
        return x - x.mean(0) if len(x) > 1 else x


class BaseWithNoise(GoodBase):
    def forward(self, z: Tensor) -> Any:
        return self.net(z) + torch.randn(len(z), 2)


class BaseThatChangesCodes(GoodBase):
    def forward(self, z: Tensor) -> Any:
        return self.net(z.mul_(2.0))


class BaseWithoutGradient(GoodBase):
    def forward(self, z: Tensor) -> Any:
        return self.net(z).detach()


class BaseWithHiddenWeights(GoodBase):
    def __init__(self, *, data_shape: Shape) -> None:
        super().__init__(data_shape=data_shape)
        self.turn = torch.randn(2, 2)

    def forward(self, z: Tensor) -> Any:
        return self.net(z) @ self.turn


class BaseWithExtraState(GoodBase):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}

    def set_extra_state(self, state: Any) -> None:
        return


class BaseThatFails(GoodBase):
    def forward(self, z: Tensor) -> Any:
        return self.net(z.flatten())


# --- energies --------------------------------------------------------------------------------------------------------
class GoodEnergy(Energy):
    def __init__(self, *, data_shape: Shape) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1, bias=False))

    def forward(self, x: Tensor) -> Any:
        return self.net(x).squeeze(1)


class EnergyOfAColumn(GoodEnergy):
    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class EnergyOfOneNumber(GoodEnergy):
    def forward(self, x: Tensor) -> Any:
        return self.net(x).sum()


class EnergyOfNumpy(GoodEnergy):
    def forward(self, x: Tensor) -> Any:
        return self.net(x).squeeze(1).detach().numpy()


class EnergyOfNaN(GoodEnergy):
    def forward(self, x: Tensor) -> Any:
        return self.net(x).squeeze(1) / 0.0 * 0.0


class EnergyThatChangesX(GoodEnergy):
    def forward(self, x: Tensor) -> Any:
        x += 1
        return self.net(x).squeeze(1)


class EnergyThatChangesXInTraining(GoodEnergy):
    def forward(self, x: Tensor) -> Any:
        return self.net(x.add_(0.1) if self.training else x).squeeze(1)


class EnergyThatMixesRows(GoodEnergy):
    def forward(self, x: Tensor) -> Any:
        return self.net(x).squeeze(1) - self.net(x).mean()


class EnergyWithNoise(GoodEnergy):
    def forward(self, x: Tensor) -> Any:
        return self.net(x + torch.rand_like(x)).squeeze(1)


class EnergyWithoutGradient(GoodEnergy):
    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            return self.net(x).squeeze(1)


class EnergyOfWholeNumbers(GoodEnergy):
    def forward(self, x: Tensor) -> Any:
        return (100 * self.net(x).squeeze(1)).round()


class EnergyOfTwoArguments(GoodEnergy):
    def forward(self, x: Tensor, time: Tensor) -> Any:
        return self.net(x + time).squeeze(1)


# --- losses and penalties --------------------------------------------------------------------------------------------
class GoodLoss(Loss):
    def energy_loss(self, model: GEBM, batch: Batch) -> Any:
        assert batch.x is not None
        gap = model.energy(batch.x).mean() - model.energy(batch.x_base).mean()
        return LossTerms(gap, {"gap": gap.detach()})

    def base_loss(self, model: GEBM, batch: Batch) -> Any:
        return LossTerms(model.energy(batch.x_base).mean(), {})


class LossOfATensor(GoodLoss):
    def energy_loss(self, model: GEBM, batch: Batch) -> Any:
        return super().energy_loss(model, batch).loss


class LossOfRows(GoodLoss):
    def energy_loss(self, model: GEBM, batch: Batch) -> Any:
        return LossTerms(model.energy(batch.x), {})


class LossOfNaN(GoodLoss):
    def energy_loss(self, model: GEBM, batch: Batch) -> Any:
        return LossTerms((-model.energy(batch.x).square().mean() - 1).log(), {})


class LossWithFloatMetrics(GoodLoss):
    def energy_loss(self, model: GEBM, batch: Batch) -> Any:
        return LossTerms(super().energy_loss(model, batch).loss, {"gap": 0.5})  # type: ignore[dict-item]


class LossWithAGraphInMetrics(GoodLoss):
    def energy_loss(self, model: GEBM, batch: Batch) -> Any:
        loss = super().energy_loss(model, batch).loss
        return LossTerms(loss, {"gap": loss})


class LossOnTheBase(GoodLoss):
    def energy_loss(self, model: GEBM, batch: Batch) -> Any:
        return LossTerms(model.energy(batch.x).mean() - model.energy(model.base(batch.z)).mean(), {})


class LossOffTheEnergy(GoodLoss):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def energy_loss(self, model: GEBM, batch: Batch) -> Any:
        return LossTerms(model.energy(batch.x).mean().detach() + torch.zeros((), requires_grad=True), {})


class LossThatChangesTheBatch(GoodLoss):
    def energy_loss(self, model: GEBM, batch: Batch) -> Any:
        batch.x_base.clamp_(-0.1, 0.1)
        return super().energy_loss(model, batch)


class LossOffTheBase(GoodLoss):
    def base_loss(self, model: GEBM, batch: Batch) -> Any:
        return LossTerms(model.energy(batch.x_base.detach()).mean(), {})


class GoodPenalty(Penalty):
    def forward(self, energy: Energy, batch: Batch, generator: torch.Generator) -> Any:
        return energy(batch.x).square().mean()


class PenaltyOfRows(GoodPenalty):
    def forward(self, energy: Energy, batch: Batch, generator: torch.Generator) -> Any:
        return energy(batch.x).square()


class PenaltyOfNaN(GoodPenalty):
    def forward(self, energy: Energy, batch: Batch, generator: torch.Generator) -> Any:
        return energy(batch.x).square().mean() * float("nan")


class PenaltyThatChangesTheBatch(GoodPenalty):
    def forward(self, energy: Energy, batch: Batch, generator: torch.Generator) -> Any:
        assert batch.x is not None
        return energy(batch.x.mul_(2.0)).square().mean()


# --- samplers --------------------------------------------------------------------------------------------------------
class Walk(NamedTuple):
    position: Tensor
    value: Tensor


class GoodSampler(Sampler):
    """A random walk."""

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> Any:
        return Walk(z, potential.value(z))

    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> Any:
        proposal = state.position + 0.5 * torch.empty_like(state.position).normal_(generator=generator)
        value = potential.value(proposal)
        error = value - state.value
        accepted = torch.empty_like(error).uniform_(generator=generator) < (-error).exp()
        moved = Walk(
            torch.where(accepted[:, None], proposal, state.position), torch.where(accepted, value, state.value)
        )
        return moved, Info((-error).exp().clamp(max=1), accepted, error > 1000, 0, forward_evals=1)


class SamplerOfColumns(GoodSampler):
    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> Any:
        moved, info = super().step(state, potential, generator)
        return moved, info._replace(accepted=info.accepted[:, None])


class SamplerOfProbabilitiesAboveOne(GoodSampler):
    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> Any:
        moved, info = super().step(state, potential, generator)
        return moved, info._replace(acceptance=info.acceptance + 1)


class SamplerWithItsOwnNoise(GoodSampler):
    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> Any:
        return super().init(z + 0.1 * torch.randn_like(z), potential, generator)


class SamplerThatChangesItsState(GoodSampler):
    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> Any:
        state.position.add_(0.1)
        return super().step(state, potential, generator)


class SamplerOfAPlainTuple(GoodSampler):
    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> Any:
        return (z, potential.value(z))


class SamplerOfInfinity(GoodSampler):
    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> Any:
        moved, info = super().step(state, potential, generator)
        return moved._replace(position=moved.position / 0.0), info


class SamplerWithoutInfo(GoodSampler):
    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> Any:
        return super().step(state, potential, generator)[0]


# --- datasets --------------------------------------------------------------------------------------------------------
class Rows(Split):
    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> Any:
        return self.rows[indices]


class GoodDataset(Dataset):
    data_shape = (2,)

    def rows(self, name: str) -> Any:
        generator = torch.Generator().manual_seed(("train", "valid", "test").index(name))
        return torch.randn(200, 2, generator=generator)

    def split(self, name: str) -> Any:
        return Rows(self.rows(name))


class DatasetOfNumpy(GoodDataset):
    def rows(self, name: str) -> Any:
        return super().rows(name).numpy()


class DatasetOutsideItsRange(GoodDataset):
    value_range = (-1.0, 1.0)


class DatasetWithNaN(GoodDataset):
    def rows(self, name: str) -> Any:
        return super().rows(name).index_fill(0, torch.tensor([7]), float("nan"))


class DatasetOfWholeNumbers(GoodDataset):
    def rows(self, name: str) -> Any:
        return super().rows(name).long()


class DatasetOfAnotherShape(GoodDataset):
    def rows(self, name: str) -> Any:
        return super().rows(name)[:, :1]


class DatasetOfOnePart(GoodDataset):
    def rows(self, name: str) -> Any:
        return super().rows("train")


class DatasetWithoutSplits(GoodDataset):
    def split(self, name: str) -> Any:
        return self.rows(name)


class DatasetWithBadLabels(GoodDataset):
    num_classes = 3

    def labels(self, name: str) -> Tensor:
        return torch.arange(200)


# --- metrics and features --------------------------------------------------------------------------------------------
class GoodMetric(Metric):
    def __call__(self, context: EvalContext) -> Any:
        return {"distance": float((context.samples.mean(0) - context.reference.mean(0)).norm())}


class MetricOfATensor(GoodMetric):
    def __call__(self, context: EvalContext) -> Any:
        return {"distance": context.samples.mean(0)}


class MetricThatSortsTheDraws(GoodMetric):
    def __call__(self, context: EvalContext) -> Any:
        context.samples.copy_(context.samples.sort(0).values)
        return super().__call__(context)


class MetricThatFails(GoodMetric):
    def __call__(self, context: EvalContext) -> Any:
        return {"distance": float(context.samples.reshape(-1, 17).mean())}


class MetricOfOddFeatures(GoodMetric):
    def __call__(self, context: EvalContext) -> Any:
        return {"distance": float(context.features("OddFeatures")(context.samples).mean())}


class OddFeatures(FeatureMap):
    checksum = "odd"
    cached = False

    def fit(self, dataset: Dataset, device: torch.device) -> None:
        return

    def __call__(self, x: Tensor) -> Any:
        return x.flatten()


class NotAPenalty:
    every = 1
