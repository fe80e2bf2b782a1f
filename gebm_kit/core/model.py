"""The model (a base and an energy that stay together) and the potentials that samplers walk on.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033
    Your GAN is Secretly an Energy-based Model. T. Che et al., NeurIPS 2020. https://arxiv.org/abs/2003.06060
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gebm_kit.core.blocks import BlockPotential, Function, Rows, checked_beta, reporting_rows
from gebm_kit.core.classes import (
    checked_labels,
    classes_of,
    decoded,
    encoded,
    held_base,
    held_energy,
    is_conditional,
    needed,
    scored,
)
from gebm_kit.core.errors import UsageError
from gebm_kit.core.networks import Base, Energy, HasEncoder, OnCodes
from gebm_kit.core.sampling import ValueAndGrad


class GEBM(nn.Module):
    """``q(dx) = exp(-E(x) - A) B(dx)``: a base B = law of G(z), re-weighted by an energy E.

    If a part is conditional, the model has classes, ``q(dx | y) = exp(-E(x, y) - A_y) B(dx | y)``.

    Attributes:
        base, energy: the two parts.
        num_classes: number of classes; None where no part is conditional.
        class_names: what the classes are called, (K,); None where they have no names. A run's model has those of its data.
        class_weights: buffer with the share of each class, (K,); only a model with classes has it. Uniform until training
            sets it to the data's frequencies, or to ``data.class_weights``.
        class_log_partition: buffer with the estimate of each A_y, (K,), NaN while unknown; only a model with classes has it.
        log_partition: buffer with the current estimate of ``A = log E_z[exp(-E(G(z)))]``, (); NaN while unknown.
        log_ratio: False when the critic of the loss is not a log density ratio; sampling then warns.
    """

    log_partition: Tensor
    class_weights: Tensor
    class_log_partition: Tensor

    def __init__(self, base: Base, energy: Energy, *, log_ratio: bool = True) -> None:
        super().__init__()
        for name, part in (("base", base), ("energy", energy)):
            if not isinstance(part, nn.Module):
                raise UsageError(f"the {name} must be a torch.nn.Module, got {type(part).__name__}")
        self.base = base
        self.energy = energy
        self.log_ratio = log_ratio
        if isinstance(energy, OnCodes):
            if is_conditional(base) or is_conditional(energy):
                raise UsageError(
                    f"{type(energy).__name__} is on the base's codes, and such an energy serves no classes",
                    hint="Use an energy on data, or a base that is not conditional.",
                )
            energy.bind(base)
        self.register_buffer("log_partition", torch.tensor(math.nan))
        self.num_classes = classes_of(base, energy)
        self.class_names: tuple[str, ...] | None = None
        if self.num_classes is not None:
            self.register_buffer("class_weights", torch.full((self.num_classes,), 1.0 / self.num_classes))
            self.register_buffer("class_log_partition", torch.full((self.num_classes,), math.nan))

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

    @property
    def conditional(self) -> bool:
        """Whether the model has classes, so that its rows need labels."""
        return self.num_classes is not None

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute ``G(z)``, or ``G(z, y)`` where the base is conditional; (B, Z), (B,) -> (B, *D).

        Raises:
            UsageError: the base is conditional, and there are no labels.
        """
        return decoded(self.base, z, labels)

    def energy_at(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute ``E(x)``, or ``E(x, y)`` where the energy is conditional; (B, *D), (B,) -> (B,).

        Raises:
            UsageError: the energy is conditional, and there are no labels.
        """
        return scored(self.energy, x, labels)

    def given(self, label: int) -> GEBM:
        """Return the model of one class, ``q(dx | y)``: a GEBM without classes, which shares this one's weights.

        Raises:
            UsageError: the model has no classes, or not this one.
        """
        if self.num_classes is None:
            raise UsageError("the model has no classes: neither its base nor its energy is conditional")
        number = int(checked_labels(torch.as_tensor([label]), self.num_classes)[0])
        found = GEBM(held_base(self.base, number), held_energy(self.energy, number), log_ratio=self.log_ratio)
        found.log_partition.copy_(self.class_log_partition[number])
        return found

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute the latent energy ``E(G(z))``, or ``E(G(z, y), y)``; (B, Z), (B,) -> (B,)."""
        if isinstance(self.energy, OnCodes):
            energy: Tensor = self.energy.of_codes(z)
            return energy
        return self.energy_at(self.decode(z, labels), labels)

    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute ``G(encode(x))`` for a base with an encoder; (B, *D), (B,) -> (B, *D).

        Raises:
            UsageError: the base has no encoder; it is conditional, and there are no labels.
        """
        if not isinstance(self.base, HasEncoder):
            raise UsageError(f"the base {type(self.base).__name__} has no encoder, so nothing can be reconstructed")
        return decoded(self.base, encoded(self.base, x, labels), labels)


class LatentPotential(BlockPotential):
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
        labels: classes of the chains, (C,) int64, for a model with classes; then all calls are about these C chains.

    Raises:
        UsageError: beta is negative or not finite; the model has classes and there are no labels, or classes that it does
            not have; a call is about other rows than the chains.
        PluginError: the energy returns a shape other than (C,), or the points are changed in place.
    """

    def __init__(
        self,
        model: GEBM,
        inverse_temperature: float = 1.0,
        *,
        block_size: int | None = None,
        labels: Tensor | None = None,
    ) -> None:
        beta = checked_beta(inverse_temperature)
        super().__init__(model, block_size, _labels_for(model, labels))
        self.model = model
        self.prior = model.base.prior
        self.inverse_temperature = beta
        reader = ("energy", model.energy) if isinstance(model.energy, OnCodes) else ("base", model.base)
        self._function = Function(self._energy, model.energy, *reader)

    def at(self, inverse_temperature: float) -> LatentPotential:
        """Return a potential of the same model at another beta. It shares the freeze, so close the original last."""
        return LatentPotential(self.model, inverse_temperature, block_size=self.block_size, labels=self.labels)

    def data(self, z: Tensor, on_rows: Callable[[int], None] | None = None) -> Tensor:
        """Compute ``x = G(z)`` without gradient; (C, Z) -> (C, *D).

        Args:
            on_rows: called after every block with the number of rows done.
        """
        decode = reporting_rows(self._decode, on_rows)
        with torch.no_grad():
            if self._one_block(z):
                return decode(self._labelled(z))
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

    def _decode(self, rows: Rows) -> Tensor:
        return self.model.decode(self.prior.from_normal(rows.points), rows.labels)

    def _energy(self, z: Tensor, labels: Tensor | None) -> Tensor:
        energy: Tensor = self.model(self.prior.from_normal(z), labels)
        return energy


def _labels_for(model: GEBM, labels: Tensor | None) -> Tensor | None:
    """Return the chains' labels, once they are known to fit the model; None for a model without classes."""
    if model.num_classes is None:
        if labels is not None:
            raise UsageError("labels were given, and the model has no classes: no part of it is conditional")
        return None
    kind, part = ("energy", model.energy) if is_conditional(model.energy) else ("base", model.base)
    return checked_labels(needed(labels, kind, part), model.num_classes)


class DataPotential(BlockPotential):
    """``U(x) = beta E(x)`` on data space, for contrastive-divergence negatives; rows are flattened points (C, prod D).

    Args:
        energy: the energy.
        data_shape: ``*D``, to which rows are folded before the energy sees them.
        inverse_temperature: beta >= 0.
        block_size, labels: as in `LatentPotential`.

    Raises:
        UsageError: as in `LatentPotential`.
        PluginError: the energy returns a shape other than (C,), or the points are changed in place.
    """

    def __init__(
        self,
        energy: Energy,
        data_shape: tuple[int, ...],
        inverse_temperature: float = 1.0,
        *,
        block_size: int | None = None,
        labels: Tensor | None = None,
    ) -> None:
        beta = checked_beta(inverse_temperature)
        if is_conditional(energy):
            count = classes_of(energy, energy)
            assert count is not None
            labels = checked_labels(needed(labels, "energy", energy), count)
        super().__init__(energy, block_size, labels)
        self._energy_module = energy
        self.data_shape = data_shape
        self.inverse_temperature = beta
        self._function = Function(self._energy, energy, "energy", energy)

    def value(self, z: Tensor) -> Tensor:
        """Compute ``U(x)``; (C, prod D) -> (C,)."""
        return self._evaluate(self._function, z)

    def value_and_grad(self, z: Tensor) -> ValueAndGrad:
        """Compute ``U(x)`` and its gradient; (C, prod D) -> (C,), (C, prod D)."""
        return self._differentiate(self._function, z)

    def _energy(self, rows: Tensor, labels: Tensor | None) -> Tensor:
        return self.inverse_temperature * scored(self._energy_module, rows.unflatten(1, self.data_shape), labels)
