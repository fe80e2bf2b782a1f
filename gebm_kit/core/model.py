"""The model (a base and an energy that stay together) and the potentials that samplers walk on.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033
    Your GAN is Secretly an Energy-based Model. T. Che et al., NeurIPS 2020. https://arxiv.org/abs/2003.06060
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gebm_kit.core.errors import UsageError
from gebm_kit.core.frozen import Frozen
from gebm_kit.core.model_contracts import check_energy_output, refuse_changed
from gebm_kit.core.networks import Base, Energy, HasEncoder, OnCodes
from gebm_kit.core.sampling import ValueAndGrad
from gebm_kit.core.threads import PieceThreads


class GEBM(nn.Module):
    """``q(dx) = exp(-E(x) - A) B(dx)``: a base B = law of G(z), re-weighted by an energy E.

    Attributes:
        base, energy: the two parts.
        log_partition: buffer with the current estimate of ``A = log E_z[exp(-E(G(z)))]``, (); NaN while unknown.
        log_ratio: False when the critic of the loss is not a log density ratio; sampling then warns.
    """

    log_partition: Tensor

    def __init__(self, base: Base, energy: Energy, *, log_ratio: bool = True) -> None:
        super().__init__()
        for name, part in (("base", base), ("energy", energy)):
            if not isinstance(part, nn.Module):
                raise UsageError(f"the {name} must be a torch.nn.Module, got {type(part).__name__}")
        self.base = base
        self.energy = energy
        self.log_ratio = log_ratio
        if isinstance(energy, OnCodes):
            energy.bind(base)
        self.register_buffer("log_partition", torch.tensor(math.nan))

    @property
    def latent_dim(self) -> int:
        """Z."""
        return self.base.latent_dim

    @property
    def data_shape(self) -> tuple[int, ...]:
        """``*D``."""
        return self.base.data_shape

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of base and energy; torch's default type when they hold no floating-point tensor."""
        example = self._floating_tensor()
        return torch.get_default_dtype() if example is None else example.dtype

    @property
    def device(self) -> torch.device:
        """Device of base and energy; the CPU when they hold no floating-point tensor."""
        example = self._floating_tensor()
        return torch.device("cpu") if example is None else example.device

    def _floating_tensor(self) -> Tensor | None:
        """Return the first floating-point parameter or buffer of the base, else of the energy; None without any."""
        parts = itertools.chain(
            self.base.parameters(), self.base.buffers(), self.energy.parameters(), self.energy.buffers()
        )
        return next((tensor for tensor in parts if tensor.is_floating_point()), None)

    def forward(self, z: Tensor) -> Tensor:
        """Compute the latent energy ``E(G(z))``; (B, Z) -> (B,)."""
        energy: Tensor = self.energy.of_codes(z) if isinstance(self.energy, OnCodes) else self.energy(self.base(z))
        return energy

    def reconstruct(self, x: Tensor) -> Tensor:
        """Compute ``G(encode(x))`` for a base with an encoder; (B, *D) -> (B, *D).

        Raises:
            UsageError: the base has no encoder.
        """
        if not isinstance(self.base, HasEncoder):
            raise UsageError(f"the base {type(self.base).__name__} has no encoder, so nothing can be reconstructed")
        rebuilt: Tensor = self.base(self.base.encode(x))
        return rebuilt


class _Function(NamedTuple):
    """The function that a potential evaluates, and the components behind it, which errors name.

    Attributes:
        evaluate: (C, Z) -> (C,).
        energy: the energy, which returns the values.
        reader_kind, reader: the component that is handed the points, with its kind.
    """

    evaluate: Callable[[Tensor], Tensor]
    energy: Energy
    reader_kind: str
    reader: nn.Module


class _BlockPotential:
    """What the potentials share: freezing the model, evaluating it in fixed blocks, and counting evaluations.

    Attributes:
        forward_evals, grad_evals: rows evaluated so far without and with gradient (padding not counted).
    """

    def __init__(self, module: nn.Module, block_size: int | None) -> None:
        if block_size is not None and block_size < 1:
            raise UsageError(f"block_size must be at least 1, got {block_size}")
        self.block_size = block_size
        self.forward_evals = 0
        self.grad_evals = 0
        self._frozen = Frozen(module)
        self._threads = PieceThreads()

    def close(self) -> None:
        """Restore the model's training mode and which of its parameters require gradients."""
        self._threads.close()
        self._frozen.restore()

    def __enter__(self):  # type: ignore[no-untyped-def]  # Self, for subclasses
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _evaluate(self, function: _Function, points: Tensor, on_rows: Callable[[int], None] | None = None) -> Tensor:
        self.forward_evals += points.shape[0]
        evaluate = _reporting(functools.partial(_value, function), on_rows)
        if self._one_block(points):
            return evaluate(points)
        return torch.cat(self._threads.map(evaluate, self._blocks(points)))[: points.shape[0]]

    def _differentiate(self, function: _Function, points: Tensor) -> ValueAndGrad:
        self.grad_evals += points.shape[0]
        if self._one_block(points):
            return _value_and_grad(function, points)
        parts = self._threads.map(functools.partial(_value_and_grad, function), self._blocks(points))
        num = points.shape[0]
        return ValueAndGrad(torch.cat([p.value for p in parts])[:num], torch.cat([p.grad for p in parts])[:num])

    def _one_block(self, points: Tensor) -> bool:
        return self.block_size is None or points.shape[0] == self.block_size

    def _blocks(self, points: Tensor) -> tuple[Tensor, ...]:
        """Split into equal blocks.

        The last is filled up with copies of the last row, so that every evaluation has one shape.
        """
        assert self.block_size is not None
        short = -points.shape[0] % self.block_size
        if short:
            points = torch.cat([points, points[-1:].expand(short, *points.shape[1:])])
        return points.split(self.block_size)


def _reporting(
    function: Callable[[Tensor], Tensor], on_rows: Callable[[int], None] | None
) -> Callable[[Tensor], Tensor]:
    """Return ``function``, which then reports the number of rows that it has been called with; threads may call it."""
    if on_rows is None:
        return function
    lock, done = threading.Lock(), 0

    def reporting(points: Tensor) -> Tensor:
        nonlocal done
        value = function(points)
        with lock:
            done += len(points)
            on_rows(done)
        return value

    return reporting


def _checked_beta(inverse_temperature: float) -> float:
    if not (math.isfinite(inverse_temperature) and inverse_temperature >= 0):
        raise UsageError(f"inverse_temperature (beta) must be finite and >= 0, got {inverse_temperature}")
    return float(inverse_temperature)


def _checked(function: _Function, points: Tensor) -> Tensor:
    """Evaluate and check what comes back; nothing here waits for the device."""
    version = points._version
    energy = function.evaluate(points)
    check_energy_output(function.energy, energy, points.shape[0])
    if points._version != version:
        refuse_changed(function.reader_kind, function.reader, "its input")
    return energy


def _value(function: _Function, points: Tensor) -> Tensor:
    with torch.no_grad():
        return _checked(function, points)


def _value_and_grad(function: _Function, points: Tensor) -> ValueAndGrad:
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        value = _checked(function, points)
        if not value.requires_grad:  # a constant energy
            return ValueAndGrad(value, torch.zeros_like(points).detach())
        (grad,) = torch.autograd.grad(value.sum(), points, materialize_grads=True)
    return ValueAndGrad(value.detach(), grad)


class LatentPotential(_BlockPotential):
    """``U(z) = |z|^2 / 2 + beta E(G(z))``, split as **prior + tilt** with ``tilt = beta E(G(z))``.

    z is in normal coordinates: a base with another prior is evaluated at ``prior.from_normal(z)``. The prior part is
    therefore that of a standard normal for every base, and kernels that use it (kick-rotate HMC, pCN) serve all bases.
    The additive constant of ``-log eta`` is left out.

    For its lifetime the model's parameters are frozen and the model is in eval mode (batch norm must not couple
    chains); use it as a context manager, or call `close`. Differentiation is with respect to z alone.

    Args:
        model: base and energy.
        inverse_temperature: beta >= 0.
        block_size: chains in each block of an evaluation, all of one shape. On a CPU the blocks run side by side on
            torch's threads. None: all chains at once.

    Raises:
        UsageError: beta is negative or not finite.
        PluginError: the energy returns a shape other than (C,), or the points are changed in place.
    """

    def __init__(self, model: GEBM, inverse_temperature: float = 1.0, *, block_size: int | None = None) -> None:
        beta = _checked_beta(inverse_temperature)
        super().__init__(model, block_size)
        self.model = model
        self.prior = model.base.prior
        self.inverse_temperature = beta
        reader = ("energy", model.energy) if isinstance(model.energy, OnCodes) else ("base", model.base)
        self._function = _Function(self._energy, model.energy, *reader)

    def at(self, inverse_temperature: float) -> LatentPotential:
        """Return a potential of the same model at another beta. It shares the freeze, so close the original last."""
        return LatentPotential(self.model, inverse_temperature, block_size=self.block_size)

    def data(self, z: Tensor, on_rows: Callable[[int], None] | None = None) -> Tensor:
        """Compute ``x = G(z)`` without gradient; (C, Z) -> (C, *D).

        Args:
            on_rows: called after every block with the number of rows done.
        """
        decode = _reporting(self._decode, on_rows)
        with torch.no_grad():
            if self._one_block(z):
                return decode(z)
            return torch.cat([decode(part) for part in self._blocks(z)])[: z.shape[0]]

    def energy(self, z: Tensor, on_rows: Callable[[int], None] | None = None) -> Tensor:
        """Compute ``E(G(z))``, without beta; (C, Z) -> (C,). ``on_rows`` as in `data`."""
        return self._evaluate(self._function, z, on_rows)

    def tilt(self, z: Tensor, on_rows: Callable[[int], None] | None = None) -> Tensor:
        """Compute ``beta E(G(z))``; (C, Z) -> (C,). ``on_rows`` as in `data`."""
        return self.inverse_temperature * self.energy(z, on_rows)

    def tilt_and_grad(self, z: Tensor) -> ValueAndGrad:
        """Compute the tilt, (C,), and its gradient with respect to z, (C, Z)."""
        value, grad = self._differentiate(self._function, z)
        if self.inverse_temperature == 1.0:
            return ValueAndGrad(value, grad)
        return ValueAndGrad(self.inverse_temperature * value, self.inverse_temperature * grad)

    def value(self, z: Tensor) -> Tensor:
        """Compute ``U(z)``; (C, Z) -> (C,)."""
        return self.tilt(z) + 0.5 * z.square().sum(1)

    def value_and_grad(self, z: Tensor) -> ValueAndGrad:
        """Compute ``U(z)``, (C,), and ``grad U(z) = z + beta grad E(G(z))``, (C, Z)."""
        value, grad = self.tilt_and_grad(z)
        return ValueAndGrad(value + 0.5 * z.square().sum(1), grad + z)

    def _decode(self, z: Tensor) -> Tensor:
        decoded: Tensor = self.model.base(self.prior.from_normal(z))
        return decoded

    def _energy(self, z: Tensor) -> Tensor:
        energy: Tensor = self.model(self.prior.from_normal(z))
        return energy


class DataPotential(_BlockPotential):
    """``U(x) = beta E(x)`` on data space, for contrastive-divergence negatives; rows are flattened points (C, prod D).

    Args:
        energy: the energy.
        data_shape: ``*D``, to which rows are folded before the energy sees them.
        inverse_temperature: beta >= 0.
        block_size: as in `LatentPotential`.

    Raises:
        UsageError: beta is negative or not finite.
        PluginError: the energy returns a shape other than (C,), or the points are changed in place.
    """

    def __init__(
        self,
        energy: Energy,
        data_shape: tuple[int, ...],
        inverse_temperature: float = 1.0,
        *,
        block_size: int | None = None,
    ) -> None:
        beta = _checked_beta(inverse_temperature)
        super().__init__(energy, block_size)
        self._energy_module = energy
        self.data_shape = data_shape
        self.inverse_temperature = beta
        self._function = _Function(self._energy, energy, "energy", energy)

    def value(self, z: Tensor) -> Tensor:
        """Compute ``U(x)``; (C, prod D) -> (C,)."""
        return self._evaluate(self._function, z)

    def value_and_grad(self, z: Tensor) -> ValueAndGrad:
        """Compute ``U(x)`` and its gradient; (C, prod D) -> (C,), (C, prod D)."""
        return self._differentiate(self._function, z)

    def _energy(self, rows: Tensor) -> Tensor:
        energy: Tensor = self._energy_module(rows.unflatten(1, self.data_shape))
        return self.inverse_temperature * energy
