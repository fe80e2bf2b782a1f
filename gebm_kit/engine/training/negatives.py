"""Negatives of contrastive losses: short chains on the current energy, from fresh points or from a replay buffer.

The chains run a registered kernel on `LatentPotential` or `DataPotential`, in the precision of the data, with the model
frozen and in eval mode. Nothing here waits for the device.

References:
    Implicit Generation and Modeling with Energy-Based Models. Y. Du, I. Mordatch, NeurIPS 2019.
    https://arxiv.org/abs/1903.08689 (the replay buffer)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode, TrainSection
from gebm_kit.core import reduce
from gebm_kit.core.components import parameters
from gebm_kit.core.errors import RecipeError, UsageError
from gebm_kit.core.interfaces import HasDensity, HasEncoder, Loss, NegativeSettings, Sampler
from gebm_kit.core.model import GEBM, DataPotential, LatentPotential
from gebm_kit.core.plugins import installed
from gebm_kit.core.seeds import stream
from gebm_kit.engine.training.latent_codes import codes

FILLED_AT_ONCE = 1024
"""Number of buffer states drawn from the base in one batch."""


class NegativeChains:
    """Chains that draw `Batch.negatives` according to a loss's `NegativeSettings`.

    Latent chains run in normal coordinates (the base sees ``prior.from_normal(z)``). With bounded data, states of data-space
    chains are clamped to the data's range when a chain ends. A state that ends with a non-finite position or energy is
    replaced by a fresh starting point, in the negatives and in the buffer.

    All ranks share one buffer. Each rank advances its share of the states chosen in a step, and the new states are gathered
    on every rank. Each rank's chains have their own noise, so the noise depends on the number of ranks. All other random
    numbers here do not.

    Args:
        settings: the loss's settings for negatives.
        batch_size: largest number of rows, over all ranks, that one step requests.
        value_range: range of the data; None if unbounded.
        seed: seed of the choice of buffer states.
        device, dtype: device and dtype of the chains.

    Attributes:
        metrics: metrics of the last draw, over this rank's chains: mean acceptance, share of chains that diverged at least
            once, share of chains that were replaced.

    Raises:
        RecipeError: the sampler is not a kernel with a step size, or needs coupled chains; the buffer is smaller than a
            batch.
    """

    def __init__(
        self,
        settings: NegativeSettings,
        batch_size: int,
        value_range: tuple[float, float] | None,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.settings = settings
        self.value_range = value_range
        self.dtype = dtype
        self.metrics: dict[str, Tensor] = {}
        self._sampler = _kernel(settings)
        if settings.buffer_size and settings.buffer_size < batch_size:
            raise RecipeError(
                f"loss.buffer_size is {settings.buffer_size}, a batch has {batch_size} rows; allowed: >= {batch_size}"
            )
        self._seed = seed
        self._generator = torch.Generator(device).manual_seed(seed)
        self._buffer: Tensor | None = None

    def check(self, model: GEBM) -> None:
        """Raise if latent chains start at the codes of data but the model has no suitable codes.

        Raises:
            UsageError: latent chains start at data, and the base has no inverse or its prior is not the standard normal.
        """
        if self.settings.space == "data" or self.settings.restart_at == "base":
            return
        base = model.base
        if not (isinstance(base, HasEncoder) and isinstance(base, HasDensity) and base.prior.name == "normal"):
            raise UsageError(
                f"latent chains start at the codes of data, but {type(base).__name__} has no inverse to a standard "
                "normal prior",
                hint="Use a normalizing flow as the base, or loss.restart_at=base.",
            )

    @torch.no_grad()
    def fill(self, model: GEBM) -> None:
        """Fill or refill the buffer with base draws, as codes or as data; do nothing if there is no buffer."""
        if not self.settings.buffer_size:
            return
        size = self.settings.buffer_size
        z = torch.randn(
            size, model.latent_dim, generator=self._generator, device=self._generator.device, dtype=self.dtype
        )
        if self.settings.space == "data":
            with LatentPotential(model) as potential:
                z = torch.cat([potential.data(part).flatten(1) for part in z.split(FILLED_AT_ONCE)]).to(self.dtype)
        self._buffer = z

    @torch.no_grad()
    def draw(self, model: GEBM, x: Tensor, x_base: Tensor, generator: torch.Generator, update: int = 0) -> Tensor:
        """Draw one negative for each row of ``x``, (B, *D) -> (B, *D), and set `metrics`.

        Args:
            x: data as the energy sees them. Data-space chains start here if there is no buffer; fresh chains in either space
                do so with ``restart_at="data"``.
            x_base: base draws, where fresh data-space chains start if there is a buffer and ``restart_at="base"``.
            generator: generator of the noise, in the same state on every rank.
            update: number of the energy step.
        """
        fresh = self._fresh(model, x, x_base, generator)
        if reduce.world_size() > 1:
            seed = stream(self._seed, "negatives", reduce.rank(), update).initial_seed()
            generator = torch.Generator(generator.device).manual_seed(seed)
        start, chosen = self._start(fresh)
        with self._potential(model, x) as potential:
            state = self._sampler.init(start, potential, generator)
            acceptance, diverged = torch.zeros_like(start[:, 0]), torch.zeros_like(start[:, 0], dtype=torch.bool)
            for _ in range(self.settings.steps):
                state, info = self._sampler.step(state, potential, generator)
                acceptance += info.acceptance
                diverged |= info.diverged
            sound = torch.isfinite(state.position).all(1) & torch.isfinite(state.value)
            end = torch.where(sound.unsqueeze(1), state.position, fresh)
            if isinstance(potential, LatentPotential):
                negatives = potential.data(end)
            else:
                end = end if self.value_range is None else end.clamp(*self.value_range)
                negatives = end.unflatten(1, x.shape[1:])
        if self._buffer is not None and chosen is not None:
            self._buffer[chosen] = reduce.gather(end)
        self.metrics = {
            "negatives_acceptance": acceptance.mean() / self.settings.steps,
            "negatives_diverged": diverged.to(acceptance).mean(),
            "negatives_replaced": 1.0 - sound.to(acceptance).mean(),
        }
        return negatives.to(x.dtype)

    def memory(self) -> tuple[Tensor | None, Tensor, dict[str, Tensor]]:
        """Return copies of everything that `fill` and `draw` change, for `recall`."""
        buffer = None if self._buffer is None else self._buffer.clone()
        return buffer, self._generator.get_state(), dict(self.metrics)

    def recall(self, memory: tuple[Tensor | None, Tensor, dict[str, Tensor]]) -> None:
        """Go back to what `memory` returned."""
        self._buffer, state, self.metrics = memory
        self._generator.set_state(state)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint; empty if there is no buffer."""
        if self._buffer is None:
            return {}
        return {"buffer": self._buffer, "generator": self._generator.get_state()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state from `tensors`.

        Raises:
            ValueError: the stored buffer's size differs from the recipe's.
        """
        if not self.settings.buffer_size:
            return
        buffer = tensors["buffer"]
        if len(buffer) != self.settings.buffer_size:
            raise ValueError(f"the buffer holds {len(buffer)} states, the recipe's {self.settings.buffer_size}")
        self._buffer = buffer.to(self._generator.device, self.dtype, copy=True)
        self._generator.set_state(tensors["generator"])

    def _potential(self, model: GEBM, x: Tensor) -> LatentPotential | DataPotential:
        if self.settings.space == "latent":
            return LatentPotential(model)
        return DataPotential(model.energy, tuple(x.shape[1:]))

    def _fresh(self, model: GEBM, x: Tensor, x_base: Tensor, generator: torch.Generator) -> Tensor:
        """Return starting points that do not come from the buffer, (B, Z) or (B, prod D)."""
        if self.settings.restart_at == "data":
            return (codes(model, x) if self.settings.space == "latent" else x.flatten(1)).detach().to(self.dtype)
        if self.settings.space == "latent":
            shape = (x.shape[0] * reduce.world_size(), model.latent_dim)
            return reduce.share(torch.randn(shape, generator=generator, device=generator.device, dtype=self.dtype))
        return (x_base if self.settings.buffer_size else x).detach().flatten(1).to(self.dtype)

    def _start(self, fresh: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return this rank's starting points, and the indices of the buffer states chosen for all ranks' chains."""
        if self._buffer is None:
            return fresh, None
        rows, device = fresh.shape[0] * reduce.world_size(), self._generator.device
        chosen = torch.randperm(len(self._buffer), generator=self._generator, device=device)[:rows]
        restarts = reduce.share(torch.rand(rows, 1, generator=self._generator, device=device)) < self.settings.restart
        return torch.where(restarts, fresh, self._buffer[reduce.share(chosen)]), chosen


def negative_chains(
    loss: Loss,
    model: GEBM,
    settings: TrainSection,
    value_range: tuple[float, float] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> NegativeChains | None:
    """Make the chains that a loss asks for, None if it asks for none, and check that the model suits them.

    Raises:
        RecipeError, UsageError: as for `NegativeChains` and its method `check`.
    """
    if loss.negatives is None:
        return None
    largest = max(settings.batch_size, settings.final.batch_size or 0)
    made = NegativeChains(loss.negatives, largest, value_range, settings.seed, device, dtype)
    made.check(model)
    return made


def _kernel(settings: NegativeSettings) -> Sampler:
    """Build the registered kernel with the step size that the loss sets.

    Raises:
        RecipeError: the sampler is not a kernel, needs coupled chains or has no step size; the step size is not positive.
    """
    registry = installed().registry
    record = registry.get("sampler", settings.sampler)
    target: Any = record.load()
    if target.needs_one_block() or "step_size" not in parameters(target):
        fitting = []
        for other in registry.of_kind("sampler"):
            kind: Any = other.load()
            if not kind.needs_one_block() and "step_size" in parameters(kind):
                fitting.append(registry.short_name(other))
        raise RecipeError(
            f"loss.sampler {settings.sampler!r} is not a kernel with a step size; allowed: {', '.join(sorted(fitting))}"
        )
    if not (math.isfinite(settings.step_size) and settings.step_size > 0):
        raise RecipeError(f"loss.step_size must be positive, got {settings.step_size}")
    node = ComponentNode(settings.sampler, {"step_size": settings.step_size})
    sampler: Sampler = build("sampler", node)
    return sampler
