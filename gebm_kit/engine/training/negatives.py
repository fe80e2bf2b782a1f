"""Negatives: short chains on the current energy, from fresh points or from a replay buffer.

Contrastive losses ask for them, and so does ``train.negatives`` (`gebm_kit.engine.training.model_negatives`).

The chains run a registered kernel on `LatentPotential` or `DataPotential`, in the precision of the data, with the model
frozen and in eval mode. Nothing here waits for the device.

References:
    Implicit Generation and Modeling with Energy-Based Models. Y. Du, I. Mordatch, NeurIPS 2019.
    https://arxiv.org/abs/1903.08689 (the replay buffer)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core import reduce
from gebm_kit.core.components import Registered, parameters
from gebm_kit.core.errors import RecipeError, UsageError
from gebm_kit.core.interfaces import HasDensity, HasEncoder, NegativeSettings, Sampler
from gebm_kit.core.model import GEBM, DataPotential, LatentPotential
from gebm_kit.core.plugins import installed
from gebm_kit.core.seeds import stream
from gebm_kit.engine.training.latent_codes import codes

FILLED_AT_ONCE = 1024
"""Number of buffer states drawn from the base in one batch."""

ADAPTATION_RATE = 0.1
"""Gain of the step's adaptation: a step whose proposals are all rejected shrinks by 6 % in each update. The energy keeps
changing, so the gain does not fall."""

SMALLEST_SCALE = 1e-4
"""Smallest factor on the squared scale of a kernel's step; the largest is where the kernel's own bound on the step is."""


class ChainKeys(NamedTuple):
    """The recipe keys that a phase's chains are set by, as messages name them."""

    section: str
    buffer_size: str


LOSS_KEYS = ChainKeys("loss", "loss.buffer_size")
"""Keys of the chains that a loss asks for."""


class ChainMemory(NamedTuple):
    """What drawing negatives changes: `NegativeChains.memory`."""

    buffer: Tensor | None
    generator: Tensor
    metrics: dict[str, Tensor]
    log_scale: Tensor | None


class NegativeChains:
    """Chains that draw `Batch.negatives` according to a loss's `NegativeSettings`.

    Latent chains run in normal coordinates (the base sees ``prior.from_normal(z)``). With bounded data, states of data-space
    chains are clamped to the data's range when a chain ends. A state that ends with a non-finite position or energy is
    replaced by a fresh starting point, in the negatives and in the buffer.

    All ranks share one buffer. Each rank advances its share of the states chosen in a step, and the new states are gathered
    on every rank. Each rank's chains have their own noise, so the noise depends on the number of ranks. All other random
    numbers here do not. With a ``share``, steps take no random numbers from the caller's generator on any number of ranks.

    With ``adapt`` the kernel's preconditioner is ``s² = c I``, which scales the step of each kernel by a power of c. After
    every update ``log c <- log c + 0.1 (a - goal)``, a the mean acceptance of all ranks' chains (or what warm-up averages
    in its place) and the goal the kernel's own. c lives on the device, in checkpoints too.

    Args:
        settings: settings of the chains.
        batch_size: largest number of rows, over all ranks, that one step requests.
        value_range: range of the data; None if unbounded.
        seed: seed of the choice of buffer states.
        device, dtype: device and dtype of the chains.
        keys: recipe keys of the settings, for messages.
        share: weight of the negatives in the energy's objective, where the loss does not read them itself; else 0.

    Attributes:
        metrics: metrics of the last draw, over this rank's chains: mean acceptance, share of chains that diverged at least
            once, share of chains that were replaced. With ``adapt`` also ``negatives_step``, the factor on the step.

    Raises:
        RecipeError: the sampler is not a kernel, needs coupled chains, or has no step size in data space; the buffer is
            smaller than a batch.
    """

    def __init__(
        self,
        settings: NegativeSettings,
        batch_size: int,
        value_range: tuple[float, float] | None,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        keys: ChainKeys = LOSS_KEYS,
        share: float = 0.0,
    ) -> None:
        self.settings = settings
        self.share = share
        self.value_range = value_range
        self.dtype = dtype
        self.metrics: dict[str, Tensor] = {}
        self._sampler = _kernel(settings, keys)
        if settings.buffer_size and settings.buffer_size < batch_size:
            raise RecipeError(
                f"{keys.buffer_size} is {settings.buffer_size}, a batch has {batch_size} rows; allowed: >= {batch_size}"
            )
        self._log_scale: Tensor | None = None
        if settings.adapt and self._sampler.tunable is not None and hasattr(self._sampler, "inverse_mass"):
            self._log_scale = torch.zeros((), device=device, dtype=dtype)
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
        if reduce.world_size() > 1 or self.share:
            seed = stream(self._seed, "negatives", reduce.rank(), update).initial_seed()
            generator = torch.Generator(generator.device).manual_seed(seed)
        start, chosen = self._start(fresh)
        self._set_scale(start.shape[1])
        with self._potential(model, x) as potential:
            state = self._sampler.init(start, potential, generator)
            acceptance, diverged = torch.zeros_like(start[:, 0]), torch.zeros_like(start[:, 0], dtype=torch.bool)
            tuning = torch.zeros_like(acceptance)
            for _ in range(self.settings.steps):
                state, info = self._sampler.step(state, potential, generator)
                acceptance += info.acceptance
                tuning += info.acceptance if info.tuning is None else info.tuning
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
        self._adapt(tuning / self.settings.steps)
        return negatives.to(x.dtype)

    def _set_scale(self, size: int) -> None:
        """Give the kernel the present preconditioner, (Z,)."""
        if self._log_scale is not None:
            self._sampler.inverse_mass = self._log_scale.exp().expand(size)  # type: ignore[attr-defined]

    def _adapt(self, tuning: Tensor) -> None:
        """Move the scale towards the kernel's goal for ``tuning``, (C,): what it is tuned by, in [0, 1]."""
        tunable = self._sampler.tunable
        if self._log_scale is None or tunable is None:
            return
        gap = reduce.mean(tuning.nan_to_num(nan=0.0)) - tunable.target
        high = max(tunable.high / self.settings.step_size, 1.0)
        moved = self._log_scale + ADAPTATION_RATE * gap
        self._log_scale = moved.clamp(math.log(SMALLEST_SCALE), math.log(high))
        self.metrics["negatives_step"] = self._log_scale.exp()

    def memory(self) -> ChainMemory:
        """Return copies of everything that `fill` and `draw` change, for `recall`."""
        buffer = None if self._buffer is None else self._buffer.clone()
        return ChainMemory(buffer, self._generator.get_state(), dict(self.metrics), self._log_scale)

    def recall(self, memory: ChainMemory) -> None:
        """Go back to what `memory` returned."""
        self._buffer, self.metrics, self._log_scale = memory.buffer, memory.metrics, memory.log_scale
        self._generator.set_state(memory.generator)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint; empty if there is no buffer."""
        if self._buffer is None:
            return {}
        scale = {} if self._log_scale is None else {"log_scale": self._log_scale}
        return {"buffer": self._buffer, "generator": self._generator.get_state(), **scale}

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
        if self._log_scale is not None:
            self._log_scale = tensors["log_scale"].to(self._log_scale, copy=True)

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


def _kernel(settings: NegativeSettings, keys: ChainKeys) -> Sampler:
    """Build the registered kernel, with the step size of the settings where it has one.

    Latent chains may have none: proposals from the prior find a dip wherever base draws reach it.

    Raises:
        RecipeError: the sampler is not a kernel, needs coupled chains, or has no step size in data space; the step size is
            not positive.
    """
    registry = installed().registry
    record = registry.get("sampler", settings.sampler)
    if not _fits(record, settings):
        fitting = [registry.short_name(other) for other in registry.of_kind("sampler") if _fits(other, settings)]
        what = "whose chains move alone" if settings.space == "latent" else "with a step size"
        raise RecipeError(
            f"{keys.section}.sampler {settings.sampler!r} is not a kernel {what}; allowed: {', '.join(sorted(fitting))}"
        )
    if not (math.isfinite(settings.step_size) and settings.step_size > 0):
        raise RecipeError(f"{keys.section}.step_size must be positive, got {settings.step_size}")
    arguments = {"step_size": settings.step_size} if "step_size" in parameters(record.load()) else {}
    sampler: Sampler = build("sampler", ComponentNode(settings.sampler, arguments))
    return sampler


def _fits(record: Registered, settings: NegativeSettings) -> bool:
    """Return whether a registered sampler can move chains one by one in the space of the settings."""
    kind: Any = record.load()
    if kind.needs_one_block() or kind.family != "kernel":
        return False
    return "step_size" in parameters(kind) or settings.space == "latent"
