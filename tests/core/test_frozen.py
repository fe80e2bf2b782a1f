"""Frozen models: they compute the same, faster, and are restored as they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gebm_kit.core.frozen import Frozen


def settled(module: nn.Module, *shape: int) -> tuple[nn.Module, Tensor]:
    """Return the module in float64, with non-trivial running statistics and scales, and an input."""
    torch.manual_seed(0)
    module = module.double().train()
    x = torch.randn(shape, dtype=torch.float64)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and part.affine:
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    for _ in range(3):
        module(2 * x + 1)
    return module.eval(), x


def gradient(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]


MODULES = {
    "linear": (lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)), (7, 3)),
    "linear without bias": (lambda: nn.Sequential(nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5)), (7, 3)),
    "norm without scale": (lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5, affine=False)), (7, 3)),
    "norm over an axis that is not the layer's": (lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), (7, 5, 3)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Tanh()), (2, 3, 8, 8)),
    "reflecting convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)),
        (2, 3, 8, 8),
    ),
    "grouped convolution": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)), (2, 4, 8, 8)),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1, bias=False), nn.BatchNorm2d(4)),
        (2, 3, 4, 4),
    ),
    "grouped transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 3)),
        (2, 4, 4, 4),
    ),
    "spectral": (lambda: nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)), (2, 3, 8, 8)),
    "batch statistics": (
        lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5, track_running_stats=False)),
        (7, 3),
    ),
    "norm first": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3)), (2, 3, 8, 8)),
    "two norms": (lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.BatchNorm1d(5)), (7, 3)),
}


@pytest.mark.parametrize("name", MODULES)
def test_it_computes_the_same(name):
    make, shape = MODULES[name]
    module, x = settled(make(), *shape)
    expected, slope = gradient(module, x)
    frozen = Frozen(module)
    value, grad = gradient(module, x)
    frozen.restore()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, slope, rtol=1e-12, atol=1e-12)
    again, _ = gradient(module, x)
    assert torch.equal(again, expected)


@pytest.mark.parametrize("name", ["linear", "convolution", "transposed", "spectral"])
def test_norms_behind_layers_are_computed_no_more(name):
    make, shape = MODULES[name]
    module, x = settled(make(), *shape)
    norm = module[1]
    seen = []
    norm.forward = lambda x: seen.append(1) or type(norm).forward(norm, x)
    module(x)
    frozen = Frozen(module)
    module(x)
    frozen.restore()
    module(x)
    assert len(seen) == 2


def test_a_layer_that_is_watched_is_left_alone():
    module, x = settled(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), 7, 3)
    seen = []
    handle = module[0].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    frozen = Frozen(module)
    expected = module[1](nn.functional.linear(x, module[0].weight, module[0].bias))
    assert torch.equal(module(x), expected)
    assert len(seen) == 1
    frozen.restore()
    handle.remove()


def test_a_layer_used_on_its_own_keeps_its_weights():
    """The norm is folded into the layer only when the whole sequence is called."""
    module, x = settled(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), 7, 3)
    expected = module[0](x)
    frozen = Frozen(module)
    assert torch.equal(module[0](x), expected)
    frozen.restore()


def test_subclasses_with_a_forward_of_their_own_are_left_alone():
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    module, x = settled(nn.Sequential(Doubled(3, 5), nn.BatchNorm1d(5)), 7, 3)
    expected = module(x)
    frozen = Frozen(module)
    assert torch.equal(module(x), expected)
    frozen.restore()


def test_an_output_size_is_heard():
    module, x = settled(nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1), 2, 3, 4, 4)
    frozen = Frozen(module)
    assert module(x, output_size=[8, 8]).shape == (2, 4, 8, 8)
    assert module(x).shape == (2, 4, 7, 7)
    frozen.restore()


def test_nothing_is_left_behind():
    module, _ = settled(
        nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)), 2, 3, 8, 8
    )
    before = {name: (p.clone(), p.stride()) for name, p in module.state_dict().items()}
    frozen = Frozen(module)
    nested = Frozen(module)
    nested.restore()
    assert any("forward" in part.__dict__ for part in module.modules())  # the inner one restores nothing
    frozen.restore()
    assert not any("forward" in part.__dict__ for part in module.modules())
    after = module.state_dict()
    assert all(torch.equal(after[name], p) and after[name].stride() == strides for name, (p, strides) in before.items())
