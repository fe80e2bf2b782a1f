"""`train.compile` changes results by rounding alone and falls back with a warning; autocast keeps energies in float32.

Penalties stay in float32 too. PyTorch's own `aot_eager` backend traces and runs the graphs: testing the generation of
machine code is torch's job.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gebm_kit.config.build import build_dataset
from gebm_kit.config.check import check
from gebm_kit.config.tree import parse
from gebm_kit.core.interfaces import Batch
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.engine.training.checkpoint_state import tensors_of
from gebm_kit.engine.training.trainer import Trainer

TOY = """\
schema: 1
data: {name: eight-gaussians, num_train: 300, num_valid: 100, num_test: 100}
base: {name: mlp, latent_dim: 3, hidden: [16], norm: batch}
energy: {name: mlp, hidden: [16], spectral_norm: true}
loss: {name: kale}
train:
  steps: 3
  energy_steps: 2
  start_steps: 0
  batch_size: 32
  penalty: {name: gradient, every: 2}
  final: {steps: 2}
"""


@pytest.fixture
def no_code_generation(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    yield
    torch._dynamo.reset()


def made(overrides: Sequence[str] = ()) -> Trainer:
    recipe = check(parse(TOY, name="toy", overrides=overrides), directory=Path())
    torch.manual_seed(0)
    trainer = Trainer(recipe, build_dataset(recipe), torch.device("cpu"))
    trainer.initialise()
    return trainer


def after(trainer: Trainer, cycles: int) -> dict[str, Tensor]:
    for _ in range(cycles):
        trainer.cycle()
    return {f"{part}/{k}": v for part, named in tensors_of(trainer).items() for k, v in named.items()}


def test_compiled_steps_do_what_the_plain_ones_do(no_code_generation: None) -> None:
    compiled, plain = made(["train.compile=true"]), made()
    assert compiled.stepped is not compiled.model
    first, second = after(compiled, 5), after(plain, 5)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(
            tensor, second[name], rtol=1e-4, atol=1e-6, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def broken_backend(*_: Any) -> Any:
    raise OSError("g++: not found")


@pytest.mark.parametrize("when", ["at once", "at the first call"])
def test_without_a_compiler_training_goes_on_and_says_so(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = broken_backend if when == "at once" else functools.partial(torch.compile, backend=broken_backend)
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(GebmKitWarning, match="can't be compiled here .*continuing uncompiled"):
        trainer = made(["train.compile=true"])
    assert trainer.stepped is trainer.model
    plain = after(made(), 3)
    for name, tensor in after(trainer, 3).items():
        torch.testing.assert_close(tensor, plain[name], rtol=0, atol=0, equal_nan=True)


def test_under_autocast_energies_and_penalties_are_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast runs are meant for CUDA devices, but a CPU's autocast shows the same dtypes."""
    trainer = made(["train.penalty={name: r2, every: 1}"])
    trainer.autocast = True
    seen: dict[str, set[torch.dtype]] = {"energy": set(), "hidden": set(), "penalty": set(), "penalised": set()}
    in_penalty = False
    penalty = trainer.penalties[0]
    hidden = next(m for m in trainer.model.energy.modules() if isinstance(m, torch.nn.Linear))
    hidden.register_forward_hook(lambda m, i, out: seen["penalised" if in_penalty else "hidden"].add(out.dtype))
    trainer.model.energy.register_forward_hook(lambda m, i, out: seen["energy"].add(out.dtype))
    healthy = type(penalty).forward

    def forward(self: Any, energy: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        nonlocal in_penalty
        in_penalty = True
        value = healthy(self, energy, batch, generator)
        in_penalty = False
        seen["penalty"].add(value.dtype)
        return value

    monkeypatch.setattr(type(penalty), "forward", forward)
    terms = trainer.energy_step()
    trainer.base_step()
    assert seen["hidden"] == {torch.bfloat16}  # otherwise this test would show nothing
    assert seen["penalised"] == seen["penalty"] == seen["energy"] == {torch.float32}
    assert {value.dtype for value in (terms.loss, *terms.metrics.values())} == {torch.float32}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after(trainer, 3)
