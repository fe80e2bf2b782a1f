"""Tests of contrastive divergence: its formula, its chains, and a buffer that nothing non-finite enters."""

import math

import pytest
import torch
from torch import Tensor, nn

from gebm_kit.core.errors import RecipeError, UsageError
from gebm_kit.core.interfaces import Base, Batch, Energy, NegativeSettings
from gebm_kit.core.model import GEBM
from gebm_kit.engine.training.negatives import NegativeChains
from gebm_kit.losses.contrastive import ContrastiveDivergence, PersistentContrastiveDivergence
from gebm_kit.losses.kale_dv import KaleDV

CPU = torch.device("cpu")


class Doubled(Base):
    """The base G(z) = 2 z. An unused batch norm shows whether a chain ran in training mode."""

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = dim, (dim,)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(2.0 * z) if self.training else 2.0 * z


class Invertible(Doubled):
    """The same base with its inverse and density."""

    def encode(self, x: Tensor) -> Tensor:
        return 0.5 * x

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.125 * x.square().sum(1) - x.shape[1] * math.log(2 * math.sqrt(2 * math.pi))


class Bowl(Energy):
    """The energy ``stiffness |x|^2 / 2``, which is NaN where the first coordinate exceeds ``wall``."""

    def __init__(self, stiffness: float = 1.0, wall: float = math.inf) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(stiffness))
        self.wall = wall

    def forward(self, x: Tensor) -> Tensor:
        energy = 0.5 * self.stiffness * x.square().sum(1)
        return torch.where(x[:, 0] > self.wall, math.nan, energy)


def chains(space: str = "latent", *, sampler: str = "mala", **settings) -> NegativeChains:
    chosen = {"step_size": 0.3, "steps": 30} | settings
    value_range = chosen.pop("value_range", None)
    return NegativeChains(
        NegativeSettings(space, sampler, **chosen), 100, value_range, seed=0, device=CPU, dtype=torch.float32
    )


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


class TestLoss:
    def terms(self, loss: ContrastiveDivergence):
        torch.manual_seed(0)
        model = GEBM(Doubled(), Bowl()).double().eval()
        x, z, negatives = (scale * torch.randn(6, 2, dtype=torch.float64) for scale in (1.0, 1.0, 3.0))
        batch = Batch(x, z, model.base(z), negatives)
        terms = loss.energy_loss(model, batch)
        return terms, model, batch

    @pytest.mark.parametrize("space", ["latent", "data"])
    def test_the_formula(self, space: str) -> None:
        loss = ContrastiveDivergence(space).double()
        terms, model, batch = self.terms(loss)
        expected = model.energy(batch.x).mean() - model.energy(batch.negatives).mean()
        torch.testing.assert_close(terms.loss, expected)
        stiffness = model.energy.stiffness
        torch.testing.assert_close(torch.autograd.grad(terms.loss, stiffness), torch.autograd.grad(expected, stiffness))

    def test_in_latent_space_the_energy_is_a_log_ratio_and_kale_is_known(self) -> None:
        loss = ContrastiveDivergence("latent").double()
        terms, model, batch = self.terms(loss)
        assert loss.log_ratio
        assert "x_base" in loss.needs
        expected = KaleDV().double().energy_loss(model, batch).metrics
        for name in ("kale", "log_partition", "weight_ess", "energy_base", "energy_data"):
            torch.testing.assert_close(terms.metrics[name], expected[name])
        loss.after_energy_step(terms.metrics)
        torch.testing.assert_close(loss.log_partition_estimate(), expected["log_partition"])

    def test_in_data_space_it_is_none(self) -> None:
        loss = PersistentContrastiveDivergence("data")
        assert not loss.log_ratio
        assert loss.needs == {"x", "negatives"}
        assert loss.log_partition_estimate() is None
        assert "kale" not in self.terms(loss)[0].metrics

    def test_a_batch_without_negatives(self) -> None:
        x = torch.zeros(3, 2)
        with pytest.raises(UsageError, match="needs negatives"):
            ContrastiveDivergence().energy_loss(GEBM(Doubled(), Bowl()), Batch(x, x, x))

    def test_arguments_are_checked(self) -> None:
        with pytest.raises(UsageError, match="space 'pixel' is unknown"):
            ContrastiveDivergence("pixel")
        with pytest.raises(UsageError, match="restart must be a number in"):
            PersistentContrastiveDivergence(restart=1.5)
        with pytest.raises(UsageError, match="restart_at 'nowhere' is unknown"):
            PersistentContrastiveDivergence(restart_at="nowhere")


class TestChains:
    @pytest.mark.parametrize("buffer_size", [0, 4000])
    def test_latent_chains_reach_the_latent_posterior(self, buffer_size: int) -> None:
        """With x = 2 z and E = |x|^2 / 2 the posterior is z ~ N(0, 1/5), and x ~ N(0, 4/5)."""
        model = GEBM(Doubled(), Bowl())
        source = chains(buffer_size=buffer_size)
        source.fill(model)
        z, noise = torch.zeros(4000, 2), generator()
        for _ in range(4 if buffer_size else 1):
            negatives = source.draw(model, z, z, noise)
        assert negatives.shape == (4000, 2)
        assert negatives.var().item() == pytest.approx(0.8, rel=0.1)
        assert 0.4 < source.metrics["negatives_acceptance"] < 1
        assert source.metrics["negatives_replaced"] == 0
        assert model.training  # the model is back in its mode, and no chain changed the batch norm
        assert model.energy.stiffness.requires_grad
        assert torch.equal(model.base.norm.running_mean, torch.zeros(2))

    def test_data_chains_start_at_the_data_and_those_of_a_buffer_at_the_base(self) -> None:
        model = GEBM(Doubled(), Bowl())
        x, x_base = torch.full((100, 2), 5.0), torch.full((100, 2), -5.0)
        for buffer_size, start in ((0, x), (100, x_base)):
            source = chains("data", step_size=1e-8, steps=1, buffer_size=buffer_size, restart=1.0)
            source.fill(model)
            torch.testing.assert_close(source.draw(model, x, x_base, generator()), start, atol=1e-2, rtol=0)

    def test_data_chains_walk_on_the_energy_alone(self) -> None:
        model = GEBM(Doubled(), Bowl(4.0))
        x = torch.zeros(4000, 2)
        assert chains("data").draw(model, x, x, generator()).var().item() == pytest.approx(0.25, rel=0.1)

    def test_images_and_bounded_data(self) -> None:
        class Hill(Energy):  # chains diverge
            def forward(self, x: Tensor) -> Tensor:
                return -2.0 * x.square().sum((1, 2, 3))

        x = torch.zeros(50, 1, 2, 1)
        source = chains("data", sampler="ula", step_size=0.05, value_range=(-1.0, 1.0))
        negatives = source.draw(GEBM(Doubled(), Hill()), x, x, generator())
        assert negatives.shape == x.shape
        assert negatives.abs().max() == 1.0

    def test_a_buffer_keeps_its_states(self) -> None:
        """With steps too small to move, the states drawn are those put back, except for the restarted share."""
        model = GEBM(Doubled(), Bowl())
        x = torch.zeros(100, 2)
        source = chains("latent", step_size=1e-10, steps=1, buffer_size=100, restart=0.2)
        source.fill(model)
        before = source.tensors()["buffer"].clone()
        source.draw(model, x, x, generator())
        moved = (source.tensors()["buffer"] - before).abs().amax(1) > 1e-3
        assert 5 <= int(moved.sum()) <= 40

    def test_fresh_chains_start_at_the_data_where_the_settings_say_so(self) -> None:
        model = GEBM(Invertible(), Bowl())
        x, x_base = torch.full((100, 2), 5.0), torch.full((100, 2), -5.0)
        for space in ("latent", "data"):
            source = chains(space, step_size=1e-8, steps=1, buffer_size=100, restart=1.0, restart_at="data")
            source.check(model)
            source.fill(model)
            torch.testing.assert_close(source.draw(model, x, x_base, generator()), x, atol=1e-2, rtol=0)
            expected = x / 2 if space == "latent" else x  # x = 2 z
            torch.testing.assert_close(source.tensors()["buffer"], expected, atol=1e-2, rtol=0)

    def test_starts_at_data_leave_the_law_of_a_model_that_has_arrived(self) -> None:
        """The data are draws of q, x ~ N(0, 4/5). Half of the chains restart each time, and the variance stays."""
        model, noise = GEBM(Invertible(), Bowl()), generator()
        variances = {}
        for place in ("data", "base"):
            source = chains(step_size=0.05, steps=1, buffer_size=4000, restart=0.5, restart_at=place)
            source.fill(model)
            for _ in range(20):
                x = math.sqrt(0.8) * torch.randn(4000, 2, generator=noise)
                negatives = source.draw(model, x, x, noise)
            variances[place] = negatives.var().item()
        assert variances["data"] == pytest.approx(0.8, rel=0.1)
        assert variances["base"] > 1.5

    def test_latent_chains_cannot_start_at_data_that_have_no_code(self) -> None:
        settings = {"buffer_size": 100, "restart_at": "data"}
        with pytest.raises(UsageError, match="Doubled has no inverse"):
            chains(**settings).check(GEBM(Doubled(), Bowl()))
        chains("data", **settings).check(GEBM(Doubled(), Bowl()))
        chains(buffer_size=100).check(GEBM(Doubled(), Bowl()))

    @pytest.mark.parametrize("sampler", ["mala", "ula"])
    @pytest.mark.parametrize("space", ["latent", "data"])
    def test_states_without_an_energy_do_not_stay(self, space: str, sampler: str) -> None:
        """Half of the buffer's states lie where the energy is NaN, and some states are NaN themselves."""
        model = GEBM(Doubled(), Bowl(wall=0.0))
        source = chains(space, sampler=sampler, buffer_size=100, restart=0.0, steps=5)
        source.fill(model)
        buffer = source.tensors()["buffer"]
        buffer[:10], buffer[10:20] = math.nan, math.inf
        x, noise = torch.zeros(100, 2), generator()
        x_base = -torch.ones(100, 2)
        negatives = source.draw(model, x, x_base, noise)
        assert negatives.isfinite().all()
        assert source.metrics["negatives_replaced"] > 0.3
        shares = [source.metrics["negatives_replaced"]]
        for _ in range(8):
            source.draw(model, x, x_base, noise)
            shares.append(source.metrics["negatives_replaced"])
            assert source.tensors()["buffer"].isfinite().all()
        assert shares[-1] < 0.1

    def test_the_state_comes_back(self) -> None:
        model = GEBM(Doubled(), Bowl())
        x = torch.zeros(100, 2)
        first, second = chains(buffer_size=150), chains(buffer_size=150)
        first.fill(model)
        first.draw(model, x, x, generator())
        second.restore({name: value.clone() for name, value in first.tensors().items()})
        for one, other in zip(first.draw(model, x, x, generator()), second.draw(model, x, x, generator()), strict=True):
            assert torch.equal(one, other)
        with pytest.raises(ValueError, match="the buffer holds 150 states"):
            chains(buffer_size=200).restore(first.tensors())
        assert chains().tensors() == {}

    def test_refusals(self) -> None:
        with pytest.raises(RecipeError, match=r"loss.buffer_size is 99, a batch has 100 rows; allowed: >= 100"):
            chains(buffer_size=99)
        with pytest.raises(RecipeError, match=r"'smc' is not a kernel whose chains move alone; allowed: .*imh.*mala"):
            chains(sampler="smc")
        with pytest.raises(RecipeError, match=r"'imh' is not a kernel with a step size; allowed: .*mala"):
            chains(space="data", sampler="imh")
        with pytest.raises(RecipeError, match="'mal' is unknown"):
            chains(sampler="mal")
