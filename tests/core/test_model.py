"""GEBM and the potentials: values, gradients, freezing, blocks, counts, refusals."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gebm_kit.core.errors import PluginError, UsageError
from gebm_kit.core.interfaces import Base, Energy, Potential, TiltedPotential
from gebm_kit.core.model import GEBM, DataPotential, LatentPotential
from gebm_kit.core.priors import PRIORS, Prior


class CurvedBase(Base):
    """A base with batch norm and dropout: everything that eval mode must switch off."""

    def __init__(self, prior: str = "normal", data_shape: tuple[int, ...] = (2, 3)) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = 4, data_shape
        self._prior = PRIORS[prior](4)
        num = math.prod(data_shape)
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, num)
        )  # fmt: skip

    @property
    def prior(self) -> Prior:
        return self._prior

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z).unflatten(1, self.data_shape)


class CurvedEnergy(Energy):
    def __init__(self, size: int = 6) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            spectral_norm(nn.Linear(size, 8)), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return 3.0 * self.layers(x.flatten(1)).squeeze(1)


class Quadratic(Energy):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x.flatten(1).square().sum(1)


def make(prior: str = "normal") -> GEBM:
    torch.manual_seed(0)
    model = GEBM(CurvedBase(prior), CurvedEnergy()).double()
    for _ in range(5):  # running statistics and singular vectors that are not the initial ones
        model(2.0 * torch.randn(32, 4, dtype=torch.float64) + 1.0)
    return model


def latents(num: int = 7) -> Tensor:
    return torch.randn(num, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_gebm_is_its_parts():
    model = make().eval()
    z = latents()
    assert (model.latent_dim, model.data_shape) == (4, (2, 3))
    assert torch.equal(model(z), model.energy(model.base(z)))
    assert model.log_ratio
    assert model.log_partition.isnan()
    assert "log_partition" in model.state_dict()


class TestDtypeAndDevice:
    def test_they_are_the_parameters(self):
        assert (make().dtype, make().float().dtype) == (torch.float64, torch.float32)
        assert make().to("meta").device == torch.device("meta")

    def test_a_buffer_does_where_there_is_no_parameter(self):
        energy = Quadratic()
        energy.register_buffer("count", torch.zeros((), dtype=torch.int64))
        energy.register_buffer("scale", torch.ones((), dtype=torch.float16))
        base = CurvedBase()
        base.layers = nn.Identity()
        assert GEBM(base, energy).dtype == torch.float16

    def test_torch_decides_where_there_is_neither(self, monkeypatch):
        base = CurvedBase()
        base.layers = nn.Identity()
        model = GEBM(base, Quadratic())
        assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
        monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.float64)
        assert model.dtype == torch.float64


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("block_size", [None, 7, 3, 10])
class TestLatentPotential:
    def test_value_is_prior_plus_tilt(self, prior, beta, block_size):
        model, z = make(prior), latents()
        expected = beta * model.eval()(model.base.prior.from_normal(z))
        with LatentPotential(model.train(), beta, block_size=block_size) as potential:
            assert isinstance(potential, Potential)
            assert isinstance(potential, TiltedPotential)
            torch.testing.assert_close(potential.tilt(z), expected)
            torch.testing.assert_close(potential.tilt_and_grad(z).value, expected)
            torch.testing.assert_close(potential.value(z), expected + 0.5 * z.square().sum(1))
            torch.testing.assert_close(potential.value_and_grad(z).value, potential.value(z))
            torch.testing.assert_close(beta * potential.energy(z), expected)

    def test_gradient_is_autograd_and_finite_differences(self, prior, beta, block_size):
        model, z = make(prior), latents()
        with LatentPotential(model, beta, block_size=block_size) as potential:
            _, grad = potential.value_and_grad(z)
            _, tilt_grad = potential.tilt_and_grad(z)
            torch.testing.assert_close(grad, tilt_grad + z)
            leaf = z.clone().requires_grad_()
            value = beta * model(model.base.prior.from_normal(leaf)) + 0.5 * leaf.square().sum(1)
            torch.testing.assert_close(grad, torch.autograd.grad(value.sum(), leaf)[0])
            step = 1e-5
            for i in range(4):
                shift = step * torch.eye(4, dtype=torch.float64)[i]
                slope = (potential.value(z + shift) - potential.value(z - shift)) / (2 * step)
                torch.testing.assert_close(grad[:, i], slope, rtol=1e-6, atol=1e-8)
            for tensor in (grad, tilt_grad, potential.value(z), potential.data(z)):
                assert not tensor.requires_grad


@pytest.mark.parametrize("block_size", [1, 3, 7, 8])
def test_blocks_equal_no_blocks_to_the_last_row(block_size):
    model, z = make(), latents()
    with LatentPotential(model) as whole, LatentPotential(model, block_size=block_size) as blocks:
        torch.testing.assert_close(blocks.energy(z), whole.energy(z), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(blocks.data(z), whole.data(z), rtol=1e-12, atol=1e-12)
        for mine, theirs in zip(blocks.value_and_grad(z), whole.value_and_grad(z), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_every_block_has_one_shape():
    seen = []
    model = make()
    model.base.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    with LatentPotential(model, block_size=4) as potential:
        for num in (1, 4, 7, 9):
            assert potential.value_and_grad(latents(num)).value.shape == (num,)
            assert potential.data(latents(num)).shape == (num, 2, 3)
            assert potential.energy(latents(num)).shape == (num,)
    assert set(seen) == {4}


@pytest.mark.parametrize("block_size", [None, 3])
def test_counts(block_size):
    with LatentPotential(make(), block_size=block_size) as potential:
        z = latents(7)
        potential.value_and_grad(z)
        potential.tilt_and_grad(z)
        potential.value(z)
        potential.energy(z)
        potential.tilt(z)
        assert (potential.grad_evals, potential.forward_evals) == (14, 21)


class TestFreezing:
    def test_model_comes_back_as_it_was(self):
        model = make().train()
        model.log_partition.fill_(0.5)
        model.base.layers[1].eval()
        model.energy.layers[3].weight.requires_grad_(False)
        modes = {name: module.training for name, module in model.named_modules()}
        needs = {name: p.requires_grad for name, p in model.named_parameters()}
        state = {name: t.clone() for name, t in model.state_dict().items()}
        with LatentPotential(model) as potential:
            assert not any(module.training for module in model.modules())
            assert not any(p.requires_grad for p in model.parameters())
            potential.value_and_grad(latents())
            potential.value(latents())
            with LatentPotential(model, 0.5) as nested:
                nested.value_and_grad(latents())
            assert not any(p.requires_grad for p in model.parameters())  # the inner one gives nothing back
        assert {name: module.training for name, module in model.named_modules()} == modes
        assert {name: p.requires_grad for name, p in model.named_parameters()} == needs
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())

    def test_it_comes_back_after_an_error(self):
        model = make().train()
        with pytest.raises(RuntimeError), LatentPotential(model) as potential:
            potential.value(latents()[:, :2])
        assert all(module.training for module in model.modules())
        assert all(p.requires_grad for p in model.parameters())

    def test_spectral_norm_is_computed_once_and_not_kept(self):
        model, z = make(), latents()
        (norm,) = [m for m in model.energy.modules() if type(m).__name__ == "_SpectralNorm"]
        calls = []
        handle = norm.register_forward_hook(lambda *args: calls.append(1))
        with LatentPotential(model) as potential, potential.at(0.5) as half:
            before = potential.energy(z)
            for _ in range(3):
                potential.value_and_grad(z)
                half.value_and_grad(z)
            assert len(calls) == 1
        handle.remove()
        with torch.no_grad():  # the weight is read anew once the potential is closed
            model.energy.layers[0].parametrizations.weight.original.copy_(
                torch.eye(8, 6, dtype=torch.float64)  # a singular value of one in every direction
            )
        with LatentPotential(model) as potential:
            assert not torch.allclose(potential.energy(z), before)
        model.energy(model.base(z)).sum().backward()
        assert model.energy.layers[0].parametrizations.weight.original.grad is not None

    def test_chains_do_not_meet(self):
        """Batch norm in training mode would make a chain's energy depend on the others."""
        model, z = make().train(), latents()
        with LatentPotential(model) as potential:
            together = potential.value_and_grad(z)
            alone = potential.value_and_grad(z[2:3])
        torch.testing.assert_close(together.value[2:3], alone.value)
        torch.testing.assert_close(together.grad[2:3], alone.grad)
        coupled = model(z)[2:3] + 0.5 * z[2:3].square().sum(1)
        assert not torch.allclose(coupled, alone.value)  # negative control


def test_at_another_temperature():
    model, z = make(), latents()
    with LatentPotential(model, 0.5, block_size=3) as potential, potential.at(2.0) as colder:
        assert colder.block_size == 3
        torch.testing.assert_close(4.0 * potential.tilt(z), colder.tilt(z))
        assert potential.forward_evals == 7  # counts are each potential's own
        torch.testing.assert_close(potential.energy(z), colder.energy(z))


def test_constant_energies_have_no_gradient():
    class Flat(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), dtype=x.dtype)

    for block_size in (None, 3):
        with LatentPotential(GEBM(CurvedBase().double(), Flat()), block_size=block_size) as potential:
            value, grad = potential.value_and_grad(latents())
        torch.testing.assert_close(grad, latents())
        torch.testing.assert_close(value, 0.5 * latents().square().sum(1))
        assert not grad.requires_grad


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_impossible_temperatures(beta):
    model = make().train()
    with pytest.raises(UsageError, match=r"inverse_temperature \(beta\) must be finite and >= 0"):
        LatentPotential(model, beta)
    with pytest.raises(UsageError, match=r"inverse_temperature \(beta\) must be finite and >= 0"):
        DataPotential(model.energy, (2, 3), beta)
    assert all(module.training for module in model.modules())  # the refusal froze nothing


def test_impossible_blocks():
    with pytest.raises(UsageError, match="block_size must be at least 1, got 0"):
        LatentPotential(make(), block_size=0)


@pytest.mark.parametrize(("keep", "seen"), [((7, 1), r"\(7, 1\)"), ((), r"\(\)")])
def test_energies_of_the_wrong_shape(keep, seen):
    """(C, 1) added to a log-prior (C,) would broadcast to a C x C potential."""

    class Wrong(Energy):
        def forward(self, x: Tensor) -> Tensor:
            values = x.flatten(1).sum(1)
            return values.unsqueeze(1) if keep else values.sum()

    with LatentPotential(GEBM(CurvedBase().double(), Wrong())) as potential:
        for call in (potential.value, potential.value_and_grad, potential.energy):
            said = rf"the energy 'Wrong' .*test_model.py, line \d+\) .*one number per row, shape \(7,\), but returned {seen}"
            with pytest.raises(PluginError, match=said) as caught:
                call(latents())
            assert "squeeze" in caught.value.hint


@pytest.mark.parametrize("block_size", [None, 3])
def test_data_potential(block_size):
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with DataPotential(Quadratic(), (2, 3), 0.5, block_size=block_size) as potential:
        assert isinstance(potential, Potential)
        value, grad = potential.value_and_grad(x)
        torch.testing.assert_close(value, 0.25 * x.square().sum(1))
        torch.testing.assert_close(grad, 0.5 * x)
        torch.testing.assert_close(potential.value(x), value)
        assert (potential.grad_evals, potential.forward_evals) == (7, 7)
