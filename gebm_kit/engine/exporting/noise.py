"""Random numbers of a kernel taken from rows of noise, so that the same noise gives the same draws anywhere.

A row of noise holds standard-normal numbers: first the Z of the starting point, then those that the kernel's ``init`` asks
for, then those of each step in turn. A uniform number is ``u = Phi(n)`` of its normal number n.

Shapes: B rows, C chains, Z latent size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Potential, Sampler

NORMAL, UNIFORM = "randn", "rand"
"""Functions of torch whose numbers noise can stand for."""

TRIAL_CHAINS = (5, 7)
"""Numbers of chains with which a kernel is tried, to see which axis of its random numbers is that of the chains."""

OTHERS = frozenset(
    {
        "randint", "randperm", "multinomial", "bernoulli", "normal", "poisson", "normal_", "uniform_", "exponential_",
        "bernoulli_", "cauchy_", "geometric_", "log_normal_", "random_", "rand_like", "randn_like", "randint_like",
        "binomial",
    }
)  # fmt: skip
"""Functions of torch that draw numbers for which noise can't stand."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Random numbers that a kernel asks for at once.

    Attributes:
        kind: ``randn`` or ``rand``.
        shape: their shape for one chain.
        axis: axis of the chains.
    """

    kind: str
    shape: tuple[int, ...]
    axis: int

    @property
    def width(self) -> int:
        """How many numbers each chain gets."""
        return math.prod(self.shape)

    def served(self, noise: Tensor) -> Tensor:
        """Turn rows of noise, (B, width), into the numbers."""
        numbers = noise.unflatten(1, self.shape) if self.shape else noise.squeeze(1)
        numbers = numbers.movedim(0, self.axis).clone(memory_format=torch.contiguous_format)  # kernels write over them
        if self.kind == NORMAL:
            return numbers
        return torch.special.ndtr(numbers).clamp(max=1 - torch.finfo(numbers.dtype).eps)


@dataclass(frozen=True, slots=True)
class Plan:
    """Random numbers that a kernel needs for ``init`` and for each step."""

    latent_dim: int
    init: tuple[Numbers, ...]
    step: tuple[Numbers, ...]

    @property
    def of_init(self) -> int:
        """Numbers of ``init``."""
        return sum(numbers.width for numbers in self.init)

    @property
    def of_step(self) -> int:
        """Numbers of a step."""
        return sum(numbers.width for numbers in self.step)

    def width(self, steps: int) -> int:
        """Return how many numbers a row of noise holds for so many steps."""
        return self.latent_dim + self.of_init + steps * self.of_step

    def parts(self, noise: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Split rows of noise into starting points, (B, Z), numbers of ``init``, (B, I), and of the steps, (T, B, S)."""
        z, init, rest = noise.split([self.latent_dim, self.of_init, steps * self.of_step], dim=1)
        return z, init, rest.unflatten(1, (steps, self.of_step)).transpose(0, 1)


class Unservable(UsageError):
    """A kernel whose random numbers noise can't stand for."""


class Served(TorchFunctionMode):
    """Within the block, random numbers come from rows of noise, in the order of the plan.

    Raises:
        Unservable: others are asked for.
    """

    def __init__(self, plan: Sequence[Numbers], noise: Tensor) -> None:
        super().__init__()
        widths = [numbers.width for numbers in plan]
        parts = noise.split(widths, dim=1) if widths else ()
        self._left = list(zip(plan, parts, strict=True))

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in (NORMAL, UNIFORM) and function in (torch.randn, torch.rand):
            if not self._left or self._left[0][0].kind != name:
                raise Unservable(f"a step asks for other random numbers (torch.{name}) than the step before it")
            numbers, noise = self._left.pop(0)
            return numbers.served(noise)
        if name in OTHERS:
            raise Unservable(f"a step draws by torch.{name}, and noise stands only for torch.randn and torch.rand")
        return function(*args, **(kwargs or {}))


class _Recorded(TorchFunctionMode):
    """Within the block, `torch.randn` and `torch.rand` are noted with the shapes that they return."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in OTHERS:
            raise Unservable(f"a step draws by torch.{name}, and noise stands only for torch.randn and torch.rand")
        found = function(*args, **(kwargs or {}))
        if function in (torch.randn, torch.rand):
            self.calls.append((name, tuple(found.shape)))
        return found


def plan_noise(sampler: Sampler, potential_for: Callable[[int], Potential], like: Tensor) -> Plan:
    """Find the random numbers that a kernel asks for, by trying it with two numbers of chains.

    Args:
        potential_for: returns a potential for so many chains.
        like: a tensor of the chains' type and device.

    Raises:
        Unservable: it draws otherwise than by `torch.randn` and `torch.rand`, or draws numbers that chains share.
    """
    inits, steps = [], []
    latent_dim = like.shape[-1]
    for chains in TRIAL_CHAINS:
        generator = torch.Generator(like.device).manual_seed(0)
        z = torch.randn(chains, latent_dim, generator=generator, dtype=like.dtype, device=like.device)
        potential = potential_for(chains)
        with _Recorded() as of_init:
            state = sampler.init(z, potential, generator)
        with _Recorded() as of_step:
            sampler.step(state, potential, generator)
        inits.append(of_init.calls)
        steps.append(of_step.calls)
    return Plan(latent_dim, _numbers(*inits), _numbers(*steps))


def _numbers(
    first: list[tuple[str, tuple[int, ...]]], second: list[tuple[str, tuple[int, ...]]]
) -> tuple[Numbers, ...]:
    few, many = TRIAL_CHAINS
    found = []
    if [name for name, _ in first] != [name for name, _ in second]:
        raise Unservable("which random numbers a step asks for depends on the number of chains")
    for (kind, shape), (_, other) in zip(first, second, strict=True):
        axes = [axis for axis, (a, b) in enumerate(zip(shape, other, strict=True)) if (a, b) == (few, many)]
        if (
            len(shape) != len(other)
            or len(axes) != 1
            or any(a != b for axis, (a, b) in enumerate(zip(shape, other, strict=True)) if axis != axes[0])
        ):
            raise Unservable("a step draws random numbers that chains share, or several rows of them for a chain")
        found.append(Numbers(kind, tuple(n for axis, n in enumerate(shape) if axis != axes[0]), axes[0]))
    return tuple(found)


def run_on_noise(sampler: Sampler, potential: Potential, plan: Plan, noise: Tensor, steps: int) -> Tensor:
    """Run a kernel on rows of noise, (B, width), for ``steps`` steps from the prior; returns its positions, (B, Z).

    Raises:
        Unservable: a step asks for other random numbers than the plan says.
    """
    z, of_init, of_steps = plan.parts(noise, steps)
    generator = torch.Generator(noise.device)
    with Served(plan.init, of_init):
        state = sampler.init(z.clone(memory_format=torch.contiguous_format), potential, generator)
    for numbers in of_steps:
        with Served(plan.step, numbers):
            state, _ = sampler.step(state, potential, generator)
    position: Tensor = state.position
    return position
