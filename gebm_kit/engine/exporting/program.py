"""A run's chain as a torch.export program: it maps rows of noise to refined draws, and needs nothing but torch.

The program is made from the kernel's own ``init`` and ``step``, traced on the frozen model with its gradient, so it computes
what the kit's sampler computes. The step is traced once and repeated by a loop inside the program. Accepting and rejecting
are part of it: an exact kernel leaves the model invariant in the program too.

Shapes: B rows, Z latent size, S noise of a step, T steps, ``*D`` data shape.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gebm_kit.core.errors import GebmKitError
from gebm_kit.core.frozen import Frozen
from gebm_kit.core.interfaces import Potential, Sampler, ValueAndGrad
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.programs import quiet, reason
from gebm_kit.engine.exporting.noise import Plan, Served, plan_noise, run_on_noise

TRACED_ROWS = (11, 13, 17, 19, 23, 29)
"""Numbers of rows with which the parts may be traced. The number is not a size of anything else, as sizes that are equal in
a trace are taken for one."""

FIXED_ROWS = 16
"""Rows of a program whose parts can't be traced with a free batch size."""

CHECKED_ROWS = 8
"""Rows on which a program is compared with the kit's own sampler."""

LARGEST_DIFFERENCE = 1e-4
"""Largest difference of a number between the program's draws and the sampler's."""


class NotExportable(GebmKitError):
    """A part of the model, or the kernel, that can't be written as a program; the message names it."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class MadeProgram:
    """A program and what its user must know.

    Attributes:
        content: the file's bytes.
        plan: random numbers of the kernel.
        steps: steps of the chain.
        rows: number of rows that it takes; None: any.
        difference: largest difference from the kit's own draws, on rows of fresh noise.
    """

    content: bytes
    plan: Plan
    steps: int
    rows: int | None
    difference: float


class TracedPotential:
    """The potential of `LatentPotential` without its checks, blocks and counts, which a trace can't hold.

    The model must be frozen by the caller.
    """

    def __init__(self, model: GEBM, inverse_temperature: float, labels: Tensor | None) -> None:
        self.model, self.inverse_temperature, self.labels = model, inverse_temperature, labels

    def tilt(self, z: Tensor) -> Tensor:
        """Compute ``beta E(G(z))``; (B, Z) -> (B,)."""
        energy: Tensor = self.model(self.model.base.prior.from_normal(z), self.labels)
        return energy if self.inverse_temperature == 1.0 else self.inverse_temperature * energy

    def tilt_and_grad(self, z: Tensor) -> ValueAndGrad:
        """Compute the tilt, (B,), and its gradient with respect to z, (B, Z)."""
        points = z.detach().requires_grad_()
        with torch.enable_grad():
            energy: Tensor = self.model(self.model.base.prior.from_normal(points), self.labels)
            if not energy.requires_grad:  # a constant energy
                return ValueAndGrad(self.inverse_temperature * energy, torch.zeros_like(points).detach())
            (grad,) = torch.autograd.grad(energy.sum(), points, materialize_grads=True)
        value = energy.detach()
        if self.inverse_temperature == 1.0:
            return ValueAndGrad(value, grad)
        return ValueAndGrad(self.inverse_temperature * value, self.inverse_temperature * grad)

    def value(self, z: Tensor) -> Tensor:
        """Compute ``U(z)``; (B, Z) -> (B,)."""
        return self.tilt(z) + 0.5 * z.square().sum(1)

    def value_and_grad(self, z: Tensor) -> ValueAndGrad:
        """Compute ``U(z)``, (B,), and its gradient, (B, Z)."""
        value, grad = self.tilt_and_grad(z)
        return ValueAndGrad(value + 0.5 * z.square().sum(1), grad + z)

    def data(self, z: Tensor) -> Tensor:
        """Compute ``x = G(z)``; (B, Z) -> (B, *D)."""
        return self.model.decode(self.model.base.prior.from_normal(z), self.labels)


class Chain(nn.Module):
    """The program's network: traced ``init``, ``step`` and ``decode``, and the loop over the steps."""

    def __init__(self, init: nn.Module, step: nn.Module, decode: nn.Module, plan: Plan, steps: int) -> None:
        super().__init__()
        self.init, self.step, self.decode = init, step, decode
        self._plan, self._steps = plan, steps

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        from torch._higher_order_ops.scan import scan

        z, of_init, of_steps = self._plan.parts(noise, self._steps)
        given = [] if labels is None else [labels]
        state = _whole(self.init(_whole([z])[0], _whole([of_init])[0], *given))

        def one(carried: list[Tensor], numbers: Tensor) -> tuple[list[Tensor], Tensor]:
            *before, rest = carried
            after = _whole(self.step(*before, numbers, *([] if labels is None else [rest])))
            return [*after, _whole([rest])[0]], numbers.sum()

        held = _whole([noise[:, :1] if labels is None else labels])
        (*state, _), _ = scan(one, [*state, *held], _whole([of_steps])[0])
        x: Tensor = self.decode(state[0], *given)
        return x


def _whole(tensors: Any) -> list[Tensor]:
    """Return copies that share no memory with their sources, as a loop needs what it carries."""
    return [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]


def make_program(
    model: GEBM, sampler: Sampler, inverse_temperature: float, steps: int, *, seed: int = 0
) -> MadeProgram:
    """Write the chain of a tuned kernel as a program, and compare its draws with the kernel's own.

    Args:
        model: a model on the CPU, in eval mode.
        sampler: a kernel, tuned.
        inverse_temperature: beta.
        steps: steps of the chain.

    Raises:
        NotExportable: a part can't be traced, or the program's draws are not the kernel's.
        Unservable: the kernel draws random numbers for which noise can't stand.
    """
    like = torch.empty(1, model.latent_dim, dtype=model.dtype)
    with quiet():
        frozen = Frozen(model)
        try:
            plan = plan_noise(sampler, lambda chains: _potential(model, inverse_temperature, chains), like)
            content, rows = _written(model, sampler, inverse_temperature, plan, steps)
        finally:
            frozen.restore()
    difference = _difference(content, model, sampler, inverse_temperature, (plan, steps), rows, seed)
    return MadeProgram(content, plan, steps, rows, difference)


def _potential(model: GEBM, beta: float, chains: int) -> Potential:
    return TracedPotential(model, beta, None if model.num_classes is None else torch.zeros(chains, dtype=torch.int64))


def _written(model: GEBM, sampler: Sampler, beta: float, plan: Plan, steps: int) -> tuple[bytes, int | None]:
    """Write the program for any number of rows; if a part does not allow that, for a fixed number, which is returned.

    Raises:
        NotExportable: a part can't be traced at all.
    """
    problem: Exception | None = None
    for rows in (None, FIXED_ROWS):
        num = rows or next(n for n in TRACED_ROWS if n not in (plan.latent_dim, plan.of_init, plan.of_step))
        args = [torch.randn(num, plan.width(steps), dtype=model.dtype)]
        if model.num_classes is not None:
            args.append(torch.arange(num) % model.num_classes)
        chain = Chain(*_traced(model, sampler, beta, plan, num), plan, steps)
        free = None if rows else tuple({0: torch.export.Dim("batch", min=1)} for _ in args)
        buffer = io.BytesIO()
        try:
            program = torch.export.export(chain, tuple(args), dynamic_shapes=free, strict=False)
            torch.export.save(_bare(program), buffer)
            return buffer.getvalue(), rows
        except Exception as error:  # the type depends on what a part does
            problem = error
    assert problem is not None
    raise NotExportable(
        f"the model can't be written as a torch.export program: {type(problem).__name__}: {reason(problem)}"
    ) from problem


def _bare(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program without example inputs and without the paths of source files, which are this machine's."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
                node.meta.pop(key, None)
    program.example_inputs = None
    return program


def _traced(
    model: GEBM, sampler: Sampler, beta: float, plan: Plan, rows: int
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Trace ``init``, ``step`` and ``decode`` for ``rows`` rows."""
    labels = [] if model.num_classes is None else [torch.arange(rows) % model.num_classes]
    generator = torch.Generator()
    kind: list[Any] = []

    def potential(given: tuple[Tensor, ...]) -> TracedPotential:
        return TracedPotential(model, beta, given[0] if given else None)

    def init(z: Tensor, noise: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        with Served(plan.init, noise):
            state = sampler.init(z, potential(given), generator)
        kind.append(type(state))
        return tuple(state)

    def step(*tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(tensors) - 1 - len(labels)
        with Served(plan.step, tensors[count]):
            state, _ = sampler.step(kind[0](*tensors[:count]), potential(tensors[count + 1 :]), generator)
        return tuple(state)

    def decode(z: Tensor, *given: Tensor) -> Tensor:
        return potential(given).data(z)

    z = torch.randn(rows, model.latent_dim, dtype=model.dtype)
    of_init, of_step = (torch.randn(rows, n, dtype=model.dtype) for n in (plan.of_init, plan.of_step))
    made = _trace(f"the base {type(model.base).__name__}", decode, z, *labels)
    first = _trace(f"the energy {type(model.energy).__name__}, with its gradient,", init, z, of_init, *labels)
    return (
        first,
        _trace(f"a step of {type(sampler).__name__}", step, *init(z, of_init, *labels), of_step, *labels),
        made,
    )


def _trace(what: str, function: Callable[..., Any], *args: Tensor) -> nn.Module:
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        traced: nn.Module = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*args)
        return traced
    except GebmKitError:
        raise
    except Exception as error:  # whatever the parts of a model do
        said = f"{type(error).__name__}: {reason(error)}"
        raise NotExportable(f"{what} can't be written as a torch.export program: {said}") from error


def _difference(
    content: bytes,
    model: GEBM,
    sampler: Sampler,
    beta: float,
    chain: tuple[Plan, int],
    rows: int | None,
    seed: int,
) -> float:
    """Return the largest difference between the program's draws and the sampler's for the same noise.

    Raises:
        NotExportable: it is above `LARGEST_DIFFERENCE` relative to the draws' size.
    """
    plan, steps = chain
    worst = 0.0
    for attempt in range(2):  # rounding can turn one acceptance in a million
        generator = torch.Generator().manual_seed(seed + attempt)
        noise = torch.randn(rows or CHECKED_ROWS, plan.width(steps), generator=generator, dtype=model.dtype)
        labels = None if model.num_classes is None else torch.arange(len(noise)) % model.num_classes
        expected = draws_on_noise(model, sampler, beta, plan, noise, steps, labels)
        with quiet():
            program = torch.export.load(io.BytesIO(content)).module()
            found = program(*([noise] if labels is None else [noise, labels]))
        worst = float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))
        if worst <= LARGEST_DIFFERENCE:
            return worst
    raise NotExportable(
        f"the program's draws differ from those of {type(sampler).__name__} for the same noise by {worst:.2g}, "
        f"more than {LARGEST_DIFFERENCE:g}"
    )


def draws_on_noise(
    model: GEBM,
    sampler: Sampler,
    inverse_temperature: float,
    plan: Plan,
    noise: Tensor,
    steps: int,
    labels: Tensor | None = None,
) -> Tensor:
    """Compute what the program computes, by the kit's own sampler; (B, width), (B,) -> (B, *D)."""
    with LatentPotential(model, inverse_temperature, labels=labels) as potential:
        return potential.data(run_on_noise(sampler, potential, plan, noise, steps))
