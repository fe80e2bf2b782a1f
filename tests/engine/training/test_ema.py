"""The moving average: its recursion with and without warm-up, buffers, state."""

import pytest
import torch
from torch import nn

from gebm_kit.engine.training.ema import COUNT, EMA


def module(value: float = 0.0) -> nn.Module:
    made = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(value)
    return made


def set_to(target: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.fill_(value)


def weight(ema: EMA) -> float:
    tensor = ema.state_dict()["0.weight"]
    assert (tensor == tensor.flatten()[0]).all()
    return tensor.flatten()[0].item()


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_recursion(decay, warmup):
    now = module(1.0)
    ema, expected = EMA(now, decay, warmup), 1.0
    for n in range(200):
        value = float((n * 7) % 11)
        set_to(now, value)
        ema.update(now)
        d = min(decay, (1 + n) / (10 + n)) if warmup else decay
        expected = d * expected + (1 - d) * value
        assert weight(ema) == pytest.approx(expected, rel=1e-12)
    assert ema.num_updates == 200


def test_a_constant_is_its_own_average():
    now = module(0.7)
    ema = EMA(now, 0.99)
    for _ in range(50):
        ema.update(now)
    assert weight(ema) == pytest.approx(0.7, rel=1e-12)


def test_running_statistics_are_averaged_and_other_buffers_copied():
    now = module()
    now.register_buffer("direction", torch.zeros(3))
    ema, expected = EMA(now, 0.999), torch.zeros(3, dtype=torch.float64)
    for n in range(5):
        now(torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(n)))
        now.direction.fill_(float(n))
        ema.update(now)
        d = (1 + n) / (10 + n)
        expected = d * expected + (1 - d) * now[1].running_mean
    state = ema.state_dict()
    torch.testing.assert_close(state["1.running_mean"], expected)
    assert state["1.num_batches_tracked"] == 5
    assert (state["direction"] == 4.0).all()


def test_copy_to_writes_in_place_and_keeps_nothing_shared():
    now = module(1.0)
    ema = EMA(now, 0.5)
    parameters = list(now.parameters())
    set_to(now, 5.0)
    ema.copy_to(now)
    assert [id(p) for p in now.parameters()] == [id(p) for p in parameters]
    assert (now[0].weight == 1.0).all()
    assert now[0].weight.requires_grad
    set_to(now, 9.0)
    assert weight(ema) == 1.0


def test_state_round_trip_is_exact():
    now = module(1.0)
    first, second = EMA(now, 0.9), EMA(module(3.0), 0.9)
    for value in (2.0, 4.0):
        set_to(now, value)
        first.update(now)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    for ema in (first, second):
        set_to(now, -1.0)
        ema.update(now)
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_state_fits_the_module():
    now = module(1.0)
    state = EMA(now, 0.9).state_dict()
    assert state.pop(COUNT) == 0
    now.load_state_dict(state)


def test_refusals():
    ema = EMA(module(), 0.9)
    state = ema.state_dict()
    with pytest.raises(KeyError):
        ema.load_state_dict({name: tensor for name, tensor in state.items() if name != "0.bias"})
    with pytest.raises(RuntimeError, match=r"0.bias has shape \(7,\), not \(3,\)"):
        ema.load_state_dict({**state, "0.bias": torch.zeros(7)})
    with pytest.raises(ValueError, match="decay must lie in"):
        EMA(module(), 1.0)


def test_a_module_without_parameters():
    ema = EMA(nn.Tanh(), 0.9)
    ema.update(nn.Tanh())
    ema.copy_to(nn.Tanh())
    assert ema.num_updates == 1
