"""Tests of every flow's bijection, density and gradients, as a base and as an energy."""

from __future__ import annotations

import copy

import pytest
import torch
import zuko

pytest.importorskip("gebm_kit_flows", reason="the plugin package gebm-kit-flows is not installed")

from gebm_kit.core.errors import RecipeError, UsageError
from gebm_kit.core.interfaces import HasDensity, HasEncoder, HasPretraining
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.testing import check_base, check_energy
from gebm_kit.testing.host_sync import forbid_host_sync
from gebm_kit_flows.bases import MAF, NSF, Gaussianization, RealNVP
from gebm_kit_flows.energy import FlowEnergy
from gebm_kit_flows.transforms import QuickSpline

BASES = {
    "realnvp": lambda shape: RealNVP(4, [16], data_shape=shape),
    "smooth realnvp": lambda shape: RealNVP(3, [16, 16], "silu", data_shape=shape),
    "maf": lambda shape: MAF(3, [16], data_shape=shape),
    "iaf": lambda shape: MAF(3, [16], fast="sampling", data_shape=shape),
    "nsf": lambda shape: NSF(2, [16], data_shape=shape),
    "autoregressive nsf": lambda shape: NSF(2, [16], scheme="autoregressive", data_shape=shape),
    "nsf, fast draws": lambda shape: NSF(2, [16], fast="sampling", data_shape=shape),
    "gaussianization": lambda shape: Gaussianization(3, 4, data_shape=shape),
}


@pytest.fixture(params=BASES)
def base(request):
    torch.manual_seed(0)
    base = BASES[request.param]((2,)).double()
    with torch.no_grad():  # move away from the initial weights, which are close to the identity
        for parameter in base.parameters():
            parameter.mul_(1.5)
    return base.eval()


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("shape", [(2,), (5,), (1, 2, 3)])
def test_conformance(name, shape):
    torch.manual_seed(0)
    base = BASES[name](shape)
    check_base(base)
    assert isinstance(base, HasDensity)
    assert isinstance(base, HasEncoder)
    assert isinstance(base, HasPretraining)
    assert base.log_prob(torch.randn(4, *shape)).shape == (4,)


def test_encoding_inverts_drawing(base):
    z = torch.randn(200, 2, dtype=torch.float64)
    x = base(z)
    torch.testing.assert_close(base.encode(x), z, rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(base(base.encode(x)), x, rtol=1e-9, atol=1e-8)


def test_the_density_is_that_of_the_draws(base):
    """log b(x) agrees with log N(z) - log |det dG/dz|, by automatic differentiation of the draw."""
    z = torch.randn(20, 2, dtype=torch.float64)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: base(v[None])[0], row) for row in z])
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) - jacobian.det().abs().log()
    torch.testing.assert_close(base.log_prob(base(z)), expected, rtol=1e-8, atol=1e-8)


def test_the_density_integrates_to_one(base):
    """The integral is by trapezoids over x = sinh(u), which reach far out with few points where the mass is small."""
    grid = torch.linspace(-6.0, 6.0, 481, dtype=torch.float64)
    x, width = torch.sinh(grid), torch.cosh(grid)
    points = torch.cartesian_prod(x, x)
    with torch.no_grad():
        density = torch.cat([base.log_prob(rows) for rows in points.split(20_000)]).exp()
    values = density.view(len(x), len(x)) * width[:, None] * width
    mass = torch.trapezoid(torch.trapezoid(values, grid), grid)
    assert abs(float(mass) - 1) < 1e-3


def test_gradients_reach_latents_and_weights(base):
    z = torch.randn(50, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        base.log_prob, torch.randn(3, 2, dtype=torch.float64, requires_grad=True), atol=1e-4
    )
    (grad,) = torch.autograd.grad(base(z).square().sum(), z)
    assert bool((grad != 0).any(1).all())
    for loss in (base(z.detach()).square().mean(), base.pretraining_loss(torch.randn(50, 2, dtype=torch.float64))):
        base.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in base.parameters())
        assert any(bool((p.grad != 0).any()) for p in base.parameters())


def test_the_gradient_of_a_draw_by_weights_is_right(base):
    """This includes the slow direction, in which bisection is differentiated implicitly."""
    z = torch.randn(4, 2, dtype=torch.float64)
    name, weight = next((n, p) for n, p in base.named_parameters() if p.dim() > 0)
    (grad,) = torch.autograd.grad(base(z).sum(), weight)
    direction = torch.randn_like(weight)
    step = 1e-5
    values = []
    for sign in (1, -1):
        other = copy.deepcopy(base)
        with torch.no_grad():
            dict(other.named_parameters())[name].add_(direction, alpha=sign * step)
            values.append(other(z).sum())
    torch.testing.assert_close((grad * direction).sum(), (values[0] - values[1]) / (2 * step), rtol=1e-5, atol=1e-5)


def test_the_quick_spline_is_zukos_spline():
    generator = torch.Generator().manual_seed(0)
    widths, heights, derivatives, x = (
        (3.0 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
        for shape in ((200, 4, 8), (200, 4, 8), (200, 4, 7), (200, 4))
    )
    results = []
    for spline in (QuickSpline, zuko.transforms.MonotonicRQSTransform):
        transform = spline(widths, heights, derivatives)
        y, log_det = transform.call_and_ladj(x)
        slopes = torch.autograd.grad(y.sum() + log_det.sum(), (widths, heights, derivatives, x))
        results.append((y, log_det, transform.inv(y.detach()), *slopes))
    assert (x.abs() > 5).any()
    assert (x.abs() < 5).any()
    for quick, plain in zip(*results, strict=True):
        torch.testing.assert_close(quick, plain, rtol=1e-10, atol=1e-12)


def test_every_spline_flow_has_quick_splines():
    for scheme in ("coupling", "autoregressive"):
        parts = NSF(2, [8], scheme=scheme, data_shape=(4,)).bijection.parts
        assert len(parts) == 2
        assert all(isinstance(part.meta(None, torch.zeros(3, 4)).base, QuickSpline) for part in parts)


def test_a_copy_computes_with_its_own_weights():
    base = RealNVP(2, [8], data_shape=(2,))
    x = torch.randn(5, 2)
    before = base.log_prob(x)
    twin = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.zero_()
    assert torch.equal(twin.log_prob(x), before)
    assert not torch.equal(base.log_prob(x), before)


@pytest.mark.parametrize("flow", ["maf", "nsf", "realnvp"])
def test_the_energy_is_minus_a_log_density(flow):
    torch.manual_seed(0)
    energy = FlowEnergy(flow, 2, [16], data_shape=(2,))
    check_energy(energy, (2,))
    grid = torch.sinh(torch.linspace(-6.0, 6.0, 401, dtype=torch.float64))
    width = (1 + grid.square()).sqrt()
    with torch.no_grad():
        values = (-energy.double()(torch.cartesian_prod(grid, grid))).exp().view(401, 401)
    spacing = 12 / 400
    assert abs(float((values * width[:, None] * width).sum()) * spacing**2 - 1) < 1e-3


@pytest.mark.parametrize("name", BASES)
def test_latent_potentials_have_gradients_and_wait_for_no_device(name):
    torch.manual_seed(0)
    model = GEBM(BASES[name]((3,)), FlowEnergy("realnvp", 2, [8], data_shape=(3,)))
    z = torch.randn(6, 3)
    with LatentPotential(model) as potential:
        potential.value_and_grad(z)
        with forbid_host_sync():
            grad = potential.value_and_grad(z).grad
    assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("make", [RealNVP, MAF, NSF, FlowEnergy])
def test_one_dimension_is_refused(make):
    with pytest.raises(RecipeError, match="at least 2 dimensions"):
        make(data_shape=(1,))


@pytest.mark.parametrize("arguments", [{"transforms": 0}, {"activation": "sine"}, {"fast": "both"}])
def test_arguments_out_of_range(arguments):
    with pytest.raises(UsageError):
        MAF(**arguments, data_shape=(2,))


def test_widths_are_counted():
    with pytest.raises(RecipeError, match="hidden"):
        RealNVP(hidden=[0], data_shape=(2,))
