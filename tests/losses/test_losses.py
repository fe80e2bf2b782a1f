"""Tests of the losses against closed forms, in float64, and of the properties of every registered loss."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core import estimators
from gebm_kit.core.errors import PluginError, UsageError
from gebm_kit.core.interfaces import Base, Batch, Energy, Loss
from gebm_kit.core.model import GEBM
from gebm_kit.core.plugins import installed
from gebm_kit.losses.density_ratio import EXPONENT_LIMIT, exp_linear
from gebm_kit.losses.kale import Kale
from gebm_kit.losses.kale_dv import KaleDV
from gebm_kit.losses.logistic import Logistic
from gebm_kit.losses.relativistic import Relativistic
from gebm_kit.losses.smile import Smile

VARIANTS = {
    "kale": lambda: Kale(),
    "kale-adam": lambda: Kale("adam"),
    "kale-dv": lambda: KaleDV(),
    "kale-dv-average": lambda: KaleDV(0.9),
    "logistic": lambda: Logistic(),
    "relativistic": lambda: Relativistic(),
    "smile-clipped": lambda: Smile(gradient="clipped"),
}
RECORDS = [record for record in installed().registry.of_kind("loss") if "energy" in record.load().parts]


class Affine(Base):
    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = dim, (dim,)
        self.layer = nn.Linear(dim, dim)

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z)


class Bent(Energy):
    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, 8), nn.Tanh(), nn.Linear(8, 1, bias=False))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return 2.0 * self.layers(x).squeeze(1)


class Given(Energy):
    """An energy that is the data themselves, (B, 1) -> (B,), so that gradients in E are gradients in x."""

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(1)


def make(num: int = 9) -> tuple[GEBM, Batch]:
    torch.manual_seed(0)
    model = GEBM(Affine(), Bent()).double()
    generator = torch.Generator().manual_seed(1)
    x, z = (torch.randn(num, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    return model, Batch(x + 1.0, z, model.base(z), negatives=x.flip(0) - 0.5)


def made(record) -> Loss:
    """Build the registered loss with its defaults, for points in the plane."""
    loss: Loss = build("loss", ComponentNode(record.component.name), {"data_shape": (2,)})
    return loss.double()


def gradients_in_energies(loss: Loss, data: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """Return dL/dE at every data point and base draw; the energies are parameters of the energy module."""

    class Table(Energy):
        def __init__(self) -> None:
            super().__init__()
            self.data, self.base = nn.Parameter(data.clone()), nn.Parameter(base.clone())

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.data, self.base]) + 0.0 * x.squeeze(1)

    energy = Table()
    batch = Batch(data.unsqueeze(1), torch.zeros(len(base), 1), base.unsqueeze(1))
    terms = loss.energy_loss(GEBM(Affine(1), energy), batch)
    first, second = torch.autograd.grad(terms.loss, [energy.data, energy.base])
    return first, second


def energies(num: int, seed: int) -> Tensor:
    return torch.randn(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.component.name)
class TestEveryLoss:
    def test_terms_are_finite_scalars_and_metrics_detached(self, record):
        loss = made(record)
        model, batch = make()
        assert loss.needs <= {"x", "x_base", "negatives"}
        loss.initialise(model.energy(batch.x_base).detach())
        terms = loss.energy_loss(model, batch)
        loss.after_energy_step(terms.metrics)
        for value in (terms.loss, loss.base_loss(model, batch).loss, *terms.metrics.values()):
            assert value.shape == ()
            assert value.isfinite()
        assert terms.loss.requires_grad
        assert not any(value.requires_grad for value in terms.metrics.values())
        if loss.log_ratio:
            assert {"kale", "log_partition"} <= terms.metrics.keys()
            assert loss.log_partition_estimate().isfinite()
            assert not loss.log_partition_estimate().requires_grad

    def test_an_energy_loss_leaves_no_gradient_on_the_base(self, record):
        loss = made(record)
        model, batch = make()
        assert batch.x_base.requires_grad  # the loss must detach it even if the engine forgets to
        loss.energy_loss(model, batch).loss.backward()
        assert all(p.grad is None for p in model.base.parameters())
        assert all(p.grad is not None for p in model.energy.parameters())

    def test_a_base_loss_leaves_no_gradient_on_energy_and_loss(self, record):
        """The loss is differentiated as in the engine, with the parameters of the energy and the loss fixed."""
        loss = made(record)
        model, batch = make()
        for parameter in (*model.energy.parameters(), *loss.parameters()):
            parameter.requires_grad_(False)
        x = batch.x if "x" in loss.base_needs else None
        loss.base_loss(model, Batch(x, batch.z, batch.x_base)).loss.backward()
        assert all(p.grad is None for p in (*model.energy.parameters(), *loss.parameters()))
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.base.parameters())

    def test_state_round_trip(self, record):
        loss, twin = made(record), made(record)
        model, batch = make()
        loss.initialise(model.energy(batch.x_base).detach())
        loss.after_energy_step(loss.energy_loss(model, batch).metrics)
        twin.load_state_dict(loss.state_dict())
        assert torch.equal(twin.energy_loss(model, batch).loss, loss.energy_loss(model, batch).loss)

    def test_refusals_in_words(self, record):
        loss = made(record)
        model, batch = make()
        with pytest.raises(UsageError, match="needs data"):
            loss.energy_loss(model, replace(batch, x=None))
        model.energy.forward = lambda x: x.sum(1, keepdim=True)
        with pytest.raises(PluginError, match="the energy .*one number per row"):
            loss.energy_loss(model, batch)


@pytest.mark.parametrize("name", VARIANTS)
def test_one_energy_forward_per_step(name):
    model, batch = make()
    VARIANTS[name]().double().energy_loss(model, batch)
    assert model.energy.calls == 1


@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - {"kale-dv-average"}))
def test_parameters_follow_finite_differences(name):
    """Gradients of parameters agree with finite differences of the loss, except where a loss corrects them on purpose."""
    model, batch = make()
    loss = VARIANTS[name]().double()
    loss.initialise(0.5 * model.energy(batch.x_base).detach())
    weight = model.energy.layers[0].weight
    (grad,) = torch.autograd.grad(loss.energy_loss(model, batch).loss, weight)
    with torch.no_grad():
        for i, j in ((0, 0), (3, 1), (7, 0)):
            values = []
            for step in (1e-5, -2e-5):
                weight[i, j] += step
                values.append(loss.energy_loss(model, batch).loss.item())
            weight[i, j] += 1e-5
            assert grad[i, j].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-9)


class TestClosedForms:
    data, base = energies(5, 0), 2.0 * energies(7, 1)
    A = 0.3

    def test_kale(self):
        for update in ("log-ratio", "adam"):
            loss = Kale(update).double()
            with torch.no_grad():
                loss.log_partition.fill_(self.A)
            on_data, on_base = gradients_in_energies(loss, self.data, self.base)
            torch.testing.assert_close(on_data, torch.full((5,), 1 / 5, dtype=torch.float64))
            torch.testing.assert_close(on_base, -torch.exp(-(self.base + self.A)) / 7)
        terms = self.terms(loss)
        r = torch.exp(-(self.base + self.A)).mean()
        torch.testing.assert_close(terms.loss, self.data.mean() + self.A + r - 1)
        (grad,) = torch.autograd.grad(terms.loss, loss.log_partition)
        torch.testing.assert_close(grad, 1 - r)
        torch.testing.assert_close(
            terms.metrics["kale"], estimators.kale(self.data, self.base, torch.tensor(self.A, dtype=torch.float64))
        )

    def test_kale_dv(self):
        on_data, on_base = gradients_in_energies(KaleDV(), self.data, self.base)
        torch.testing.assert_close(on_data, torch.full((5,), 1 / 5, dtype=torch.float64))
        torch.testing.assert_close(on_base, -torch.softmax(-self.base, 0))
        torch.testing.assert_close(self.terms(KaleDV()).loss, self.data.mean() + torch.exp(-self.base).mean().log())

    def test_kale_dv_with_a_moving_average(self):
        loss = KaleDV(0.75).double()
        before = 1.7
        loss.log_partition.fill_(math.log(before))
        average = 0.75 * before + 0.25 * torch.exp(-self.base).mean()
        _, on_base = gradients_in_energies(loss, self.data, self.base)
        torch.testing.assert_close(on_base, -torch.exp(-self.base) / (7 * average))
        terms = self.terms(loss)
        torch.testing.assert_close(terms.loss, self.data.mean() + torch.exp(-self.base).mean().log())
        assert loss.log_partition.item() == pytest.approx(math.log(before))  # A changes after the step, not before
        loss.after_energy_step(terms.metrics)
        torch.testing.assert_close(loss.log_partition, average.log())

    def test_logistic(self):
        loss = Logistic().double()
        with torch.no_grad():
            loss.log_partition.fill_(self.A)
        on_data, on_base = gradients_in_energies(loss, self.data, self.base)
        torch.testing.assert_close(on_data, torch.sigmoid(self.data + self.A) / 5)
        torch.testing.assert_close(on_base, -torch.sigmoid(-(self.base + self.A)) / 7)
        (grad,) = torch.autograd.grad(self.terms(loss).loss, loss.log_partition)
        torch.testing.assert_close(grad, on_data.sum() + on_base.sum())
        expected = torch.log1p(torch.exp(self.base + self.A)).mean()
        batch = Batch(None, torch.zeros(7, 1), self.base.unsqueeze(1))
        torch.testing.assert_close(loss.base_loss(GEBM(Affine(1), Given()), batch).loss, expected)
        torch.testing.assert_close(
            self.terms(loss).metrics["kale"],
            estimators.kale(self.data, self.base, torch.tensor(self.A, dtype=torch.float64)),
        )

    @pytest.mark.parametrize("name", VARIANTS)
    def test_metrics(self, name):
        loss = VARIANTS[name]().double()
        metrics = self.terms(loss).metrics
        weights = torch.exp(-self.base)
        share = weights.sum() ** 2 / weights.square().sum() / 7
        torch.testing.assert_close(metrics["weight_ess"], share)
        torch.testing.assert_close(metrics["energy_data"], self.data.mean())
        torch.testing.assert_close(metrics["energy_base"], self.base.mean())

    def terms(self, loss: Loss):
        batch = Batch(self.data.unsqueeze(1), torch.zeros(7, 1), self.base.unsqueeze(1))
        return loss.energy_loss(GEBM(Affine(1), Given()), batch)


class TestLogPartition:
    @pytest.mark.parametrize("name", VARIANTS)
    def test_initialised_at_its_optimum(self, name):
        loss = VARIANTS[name]().double()
        base = energies(50, 0)
        loss.initialise(base)
        torch.testing.assert_close(loss.log_partition_estimate(), estimators.log_partition(base))

    @pytest.mark.parametrize("name", VARIANTS)
    def test_a_first_batch_counts_no_sample_that_never_existed(self, name):
        """An accumulator that starts at exp(0) would give A near log(1/2) here instead of -50."""
        loss = VARIANTS[name]().double()
        loss.initialise(torch.full((1,), 50.0, dtype=torch.float64))
        assert loss.log_partition_estimate().item() == pytest.approx(-50.0)
        average = KaleDV(0.9).double()  # never initialised: starts from its first batch
        _, on_base = gradients_in_energies(average, energies(3, 0), torch.full((4,), 50.0, dtype=torch.float64))
        torch.testing.assert_close(on_base, torch.full((4,), -0.25, dtype=torch.float64))

    def test_fenchel_is_donsker_varadhan_at_the_optimum(self):
        model, batch = make()
        fenchel, dv = Kale().double(), KaleDV().double()
        fenchel.initialise(model.energy(batch.x_base).detach())
        parameters = list(model.energy.parameters())
        first, second = fenchel.energy_loss(model, batch).loss, dv.energy_loss(model, batch).loss
        torch.testing.assert_close(first, second)
        for a, b in zip(
            torch.autograd.grad(first, parameters, retain_graph=True),
            torch.autograd.grad(second, parameters),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
        with torch.no_grad():
            fenchel.log_partition += 0.5
        assert fenchel.energy_loss(model, batch).loss > second  # any other A is worse

    @pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
    def test_log_ratio_steps_reach_the_optimum(self, rate):
        loss = Kale(rate=rate).double()
        model, batch = make()
        best = estimators.log_partition(model.energy(batch.x_base).detach())
        error = (loss.log_partition - best).item()
        for step in range(1, 4):
            terms = loss.energy_loss(model, batch)
            seen = terms.metrics["log_partition"].clone()
            loss.after_energy_step(terms.metrics)
            assert torch.equal(terms.metrics["log_partition"], seen)  # still A before the step
            assert (loss.log_partition - best).item() == pytest.approx(error * (1 - rate) ** step, abs=1e-12)

    def test_an_a_that_adam_steps_is_not_stepped_twice(self):
        loss = Kale("adam").double()
        model, batch = make()
        before = loss.log_partition.detach().clone()
        loss.after_energy_step(loss.energy_loss(model, batch).metrics)
        assert torch.equal(loss.log_partition, before)

    def test_bias_of_the_log_ratio_rule_is_what_the_docstring_says(self):
        """The fixed point of A on fresh batches of N(0, 1) with E = a z is E[log mean] = A - (1/ess - 1) / (2 B)."""
        a, size = 0.8, 64
        z = torch.randn(20_000, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        estimate = (torch.logsumexp(-a * z, 1) - math.log(size)).mean().item()
        inverse_share = math.exp(a * a)
        predicted = a * a / 2 - (inverse_share - 1) / (2 * size)
        assert estimate == pytest.approx(predicted, abs=1e-3)
        assert abs(estimate - a * a / 2) > 4e-3


class TestBias:
    """Tests with exact expectations over all batches of two from a small population of base draws."""

    data, population = energies(2, 0), 1.5 * energies(4, 1)

    def mean_gradient(self, loss: Loss) -> Tensor:
        total = torch.zeros(4, dtype=torch.float64)
        for pair in itertools.product(range(4), repeat=2):
            _, grad = gradients_in_energies(loss, self.data, self.population[list(pair)])
            total.index_add_(0, torch.tensor(pair), grad / 16)
        return total

    def test_kale_is_unbiased(self):
        loss = Kale().double()
        loss.log_partition.fill_(0.2)
        _, expected = gradients_in_energies(loss, self.data, self.population)
        torch.testing.assert_close(self.mean_gradient(loss), expected)

    def test_kale_dv_is_biased_and_a_long_average_mends_it(self):
        _, expected = gradients_in_energies(KaleDV(), self.data, self.population)
        plain = (self.mean_gradient(KaleDV()) - expected).abs().max()
        errors = []
        for decay in (0.9, 0.99, 0.999):
            loss = KaleDV(decay).double()
            loss.initialise(self.population)  # the average has converged
            errors.append((self.mean_gradient(loss) - expected).abs().max())
        assert plain > 0.02
        assert plain > 3 * errors[0]
        assert errors[0] > 5 * errors[1] > 25 * errors[2]


@pytest.mark.parametrize("name", ["kale", "kale-dv"])
def test_base_gradient_is_the_softmax_weighted_sum(name):
    model, batch = make()
    loss = VARIANTS[name]().double().base_loss(model, batch).loss
    weights = torch.softmax(-model.energy(batch.x_base), 0).detach()
    for parameter in model.base.parameters():
        (grad,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        expected = torch.zeros_like(parameter)
        for weight, z in zip(weights, batch.z, strict=True):
            (row,) = torch.autograd.grad(model(z.unsqueeze(0)).sum(), parameter)
            expected += weight * row
        torch.testing.assert_close(grad, expected)


class TestExtremeEnergies:
    @pytest.mark.parametrize("name", VARIANTS)
    @pytest.mark.parametrize("pattern", ["low", "high", "both"])
    def test_nothing_overflows(self, name, pattern):
        """Energies of base draws are -1e4 and 1e4 in float32, and A is far off."""
        base = {"low": [-1e4, -1e4, 0.0], "high": [1e4, 1e4, 1e4], "both": [-1e4, 1e4, 0.0]}[pattern]
        energy = nn.Parameter(torch.tensor(base))
        loss = VARIANTS[name]()

        class Table(Energy):
            def forward(self, x: Tensor) -> Tensor:
                return torch.cat([torch.zeros(3), energy])

        model = GEBM(Affine(1), Table())
        batch = Batch(torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(3, 1))
        learned = [energy, *loss.parameters()]
        for _ in range(5):
            terms = loss.energy_loss(model, batch)
            grads = torch.autograd.grad(terms.loss, learned)
            assert terms.loss.isfinite()
            assert all(g.isfinite().all() for g in grads)
            assert grads[0].abs().sum() > 0 or (pattern == "high" and name != "kale-dv")  # no dead gradient
            loss.after_energy_step(terms.metrics)
            assert loss.log_partition_estimate().isfinite()

    def test_log_ratio_steps_come_home_where_newton_overflows(self):
        loss = Kale(rate=0.5)
        energy = torch.tensor([-1e4, 1e4, 0.0])
        best = estimators.log_partition(energy).item()
        with torch.no_grad():
            loss.log_partition.fill_(2e4)  # much too high: r underflows to 0 and 1/r is infinite
        assert 1 - 1 / torch.exp(-(energy + loss.log_partition)).mean() == -math.inf
        for _ in range(40):
            loss.after_energy_step({"log_mean_weight": estimators.log_mean_exp(-(energy + loss.log_partition))})
        assert loss.log_partition.item() == pytest.approx(best, abs=0.01)


def test_exp_linear_is_exp_with_a_tangent():
    t = torch.tensor([-50.0, 0.0, EXPONENT_LIMIT - 1e-6, EXPONENT_LIMIT + 2.0, 1e4], dtype=torch.float64)
    value, grad = exp_linear(t)
    top = math.exp(EXPONENT_LIMIT)
    torch.testing.assert_close(value[:3], t[:3].exp())
    torch.testing.assert_close(grad[:3], t[:3].exp())
    torch.testing.assert_close(value[3:], top * (1 + t[3:] - EXPONENT_LIMIT))
    torch.testing.assert_close(grad[3:], torch.full((2,), top, dtype=torch.float64))


def test_base_draws_of_another_precision():
    """Under autocast base draws are bfloat16 while data are float32."""
    torch.manual_seed(0)
    model = GEBM(Affine(), Bent())
    x = torch.randn(4, 2)
    terms = Kale().energy_loss(model, Batch(x, x, model.base(x).bfloat16()))
    assert terms.loss.dtype == torch.float32


def test_arguments_are_checked():
    with pytest.raises(UsageError, match="rate must be a number in"):
        Kale(rate=0.0)
    with pytest.raises(UsageError, match="update 'newton' is unknown; allowed: adam, log-ratio"):
        Kale("newton")
    with pytest.raises(UsageError, match="moving_average must be a number in"):
        KaleDV(1.0)
