"""The state of a training run and its steps: one energy update, one base update, one cycle of both.

Randomness comes from one generator on the device (latent codes, penalties) and from the feed's seed (data order);
weights and dropout use torch's default generator, which `train` forks and seeds. All of it is saved in a checkpoint, so that
a resumed run is bit for bit the run that was never stopped (on the CPU).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gebm_kit.config.build import build
from gebm_kit.config.model import DTYPES, build_model
from gebm_kit.config.schema import Recipe
from gebm_kit.core import reduce
from gebm_kit.core.contracts import check_state, untouched
from gebm_kit.core.frozen import fixed
from gebm_kit.core.interfaces import Batch, Dataset, Loss, LossTerms
from gebm_kit.core.seeds import stream
from gebm_kit.engine.datasets.batches import Feed, check_flips, flipped
from gebm_kit.engine.process import data_parallel
from gebm_kit.engine.process.memory import COPIES, bounded_tensors, require_device_memory
from gebm_kit.engine.training.acceleration import channels_last, check_precision, compiled
from gebm_kit.engine.training.augmentation import augmentations
from gebm_kit.engine.training.base_update import (
    BaseUpdate,
    OwnLoss,
    base_likelihood,
    base_update,
    check_needs,
    check_trainable,
)
from gebm_kit.engine.training.class_labels import ClassLabels, check_classes, facts_of
from gebm_kit.engine.training.early_stopping import best_base
from gebm_kit.engine.training.ema import EMA, carrying
from gebm_kit.engine.training.final_phase import FinalParts, build_final_parts, energies_of, losses_of
from gebm_kit.engine.training.latent_codes import energy_side, points
from gebm_kit.engine.training.model_negatives import chains_of, check_penalties, mixed
from gebm_kit.engine.training.non_finite import Guard
from gebm_kit.engine.training.optimisers import differentiated, make_optimizer, set_rate
from gebm_kit.engine.training.penalties import PenalisedLoss, build_penalties
from gebm_kit.engine.training.phases import (
    Phase,
    initial_draws,
    learning_rates,
    num_energy_updates,
    phase_of,
    updates_base,
)
from gebm_kit.engine.training.vital_signs import vital_signs


class Trainer:
    """The state of a training run: everything that changes while training.

    Args:
        recipe: the recipe to train.
        dataset: its data.
        device: the device to train on.
        run_directory: directory of the run that is resumed; it keeps a copy of the file that the base was read from.

    Attributes:
        model, loss: the parts; the final phase may replace energy and loss.
        final: the loss and energy that the final phase has of its own, or None.
        ema, energy_ema: moving averages of the base (in the main phase) and of the energy (in the final one), or None.
        step: cycles done, of all phases.
        energy_updates: energy updates done, which decides when a lazy penalty is due.
        guard: skips and counts updates that are not finite.
        likelihood: the base's update by maximum likelihood on draws of the model, or None.
        side: the model as the energy's updates see it.
        stepped: ``side``, compiled if the recipe asks for it; the steps evaluate this one.
        autocast: whether forward passes are in bfloat16.
        restores, went_back: how often training went back, updates not being finite; whether no cycle has followed yet.
    """

    def __init__(
        self, recipe: Recipe, dataset: Dataset, device: torch.device, run_directory: Path | None = None
    ) -> None:
        self.recipe = recipe
        self.device = device
        self.settings = recipe.train
        dtype = DTYPES[recipe.precision]
        facts = {**facts_of(recipe, dataset), "run_directory": run_directory}
        if self.settings.flip:
            check_flips(dataset.data_shape)
        row = math.prod(dataset.data_shape) * torch.empty((), dtype=dtype).element_size()
        require_device_memory(COPIES * (size := self.settings.batch_size) * row, device, f"train.batch_size={size}")
        with bounded_tensors(device, "the model"):
            self.model = build_model(recipe, facts).to(device)
        check_trainable(self.model, recipe)
        rows = self.settings.batch_size // reduce.world_size()
        data_parallel.synchronise_batch_norm(self.model, device, rows)
        channels_last(self.model)
        facts["latent_dim"] = self.model.latent_dim
        self.loss: Loss = build("loss", recipe.loss, facts).to(device, dtype)
        for kind, part in (("base", self.model.base), ("energy", self.model.energy), ("loss", self.loss)):
            check_state(kind, part)
        check_needs(self.loss, self.settings)
        self.loss.check(self.model)
        self.penalties = build_penalties(recipe.penalties, facts, device)
        self.final_penalties = build_penalties(recipe.final_penalties, facts, device)
        self._penalised_loss = PenalisedLoss()
        self.feed = Feed(dataset.split("train"), self.settings.batch_size, self.settings.seed, device, dtype)
        self.generator = torch.Generator(device).manual_seed(self.settings.seed)
        self.classes = ClassLabels(self.model, dataset, self.feed, recipe.class_weights)
        self.final = build_final_parts(recipe, self.model, self.loss, facts, device, rows)
        self.negatives = chains_of(self.loss, self.settings, self.model, dataset.value_range, device, dtype)
        check_penalties("train.penalty", self.penalties, self.negatives)
        if self.settings.final.steps:
            last = self.negatives if self.final is None else self.final.negatives
            check_penalties("train.final.penalty", self.final_penalties, last)
        every = losses_of(self.loss, self.final), [*self.penalties, *self.final_penalties]
        check_classes(self.model, recipe, *every, energies_of(self.model, self.final))
        self.ema = self.new_average() if recipe.ema.decay > 0 else None
        self.energy_ema: EMA | None = None
        self.likelihood = base_likelihood(self.settings, self.model, self.loss, self.ema)
        self.side = self.likelihood.side if self.likelihood else energy_side(self.model, self.model.base)
        self.energy_optimizer = make_optimizer(recipe.optim.energy, self._energy_parameters())
        section = self.settings.pretrain.optimizer if self.settings.pretrain_steps else recipe.optim.base
        self.base_optimizer = make_optimizer(section, list(self.model.base.parameters()))
        self.guard = Guard([self.model.base, self.model.energy, self.loss], device)
        self.step = self.energy_updates = self.restores = 0
        self.went_back = False
        self.augmentations = augmentations(recipe, self.model, self.final, dataset)
        self._seen: Batch | None = None
        self._plain: Batch | None = None
        self._seen_noise = 0.0
        self._chain_ends: Tensor | None = None
        self.autocast = recipe.precision == "bfloat16"
        check_precision(recipe.precision, device)
        self.best_base = best_base(self.settings, self.model, dataset, device, dtype)
        self.model.train()
        if self.settings.main_part == "energy" and not self.settings.pretrain_steps:
            self.model.base.eval()
        self.stepped = compiled(self.side, device, rows) if self.settings.compile else self.side
        self._pretraining_update: BaseUpdate = OwnLoss()
        self._base_update = base_update(self.settings, self.model.base, self.loss, self.stepped, self.likelihood)

    # --- the steps ---------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """The phase of the coming cycle."""
        return phase_of(self.settings, self.step)

    @property
    def noise(self) -> float:
        """The instance noise of the coming cycle's phase."""
        final = self.settings.final.noise if self.phase is Phase.FINAL else None
        return self.settings.noise if final is None else final

    @property
    def looks(self) -> bool:
        """Whether the base was scored on the validation part after the last cycle of pretraining."""
        return self.best_base is not None and self.best_base.due(self.step)

    def cycle(self) -> dict[str, Tensor]:
        """Run one training step: energy updates, then a base update, as the phase and the recipe's ``part`` have them."""
        if self.step == self.settings.pretrain_steps > 0:
            self._enter_main_phase()
        if self.step == self.settings.main_end and self.settings.final.steps:
            self._enter_final_phase()
        self._set_learning_rates()
        data_parallel.seed_rank(self.data_seed(), self.step)
        metrics: dict[str, Tensor] = {}
        for _ in range(num_energy_updates(self.settings, self.step)):
            metrics |= self.energy_step().metrics
        if updates_base(self.settings, self.step):
            metrics |= self.base_step().metrics
        data_parallel.average_statistics(self.model.energy)
        self.step, self.went_back = self.step + 1, False
        if self.looks:
            assert self.best_base is not None
            with self.averaged():
                metrics |= self.best_base.look(self.model.base, self.step)
        return metrics

    def energy_step(self) -> LossTerms:
        """Update the energy (and A) once; the base is not differentiated."""
        kept = self.guard.keep()
        batch = self.energy_batch()
        penalties = self.final_penalties if self.phase is Phase.FINAL else self.penalties
        due = [penalty for penalty in penalties if self.energy_updates % penalty.every == 0]
        rows = (batch.x, batch.z, batch.x_base, batch.negatives)
        with untouched("loss", self.loss, "the batch (or the energy that it calls does)", *rows):
            faster = (self.stepped, self._forward_context()) if self.autocast or self.stepped is not self.side else None
            terms, total = self._penalised_loss(self.loss, self.side, batch, due, self.generator, faster)
            with self._forward_context():
                mixture = mixed(terms, self.stepped, batch, self.negatives)
            terms, total = mixture, total + (mixture.loss - terms.loss) if mixture is not terms else total
        self._seen, self._seen_noise = batch, self.noise
        bad = self._update("energy", self.energy_optimizer, total)
        self.loss.after_energy_step(terms.metrics)
        self.guard.undo(kept, bad)
        self.energy_updates += 1
        if self.energy_ema is not None:
            self.energy_ema.update(self.model.energy, bad)
        chains = {} if self.negatives is None else self.negatives.metrics
        return LossTerms(terms.loss, {**terms.metrics, **chains, "energy_loss": total.detach()})

    def base_step(self) -> LossTerms:
        """Update the base once with the energy fixed, then its moving average."""
        kept = self.guard.keep()
        update = self._pretraining_update if self.phase is Phase.PRETRAINING else self._base_update
        with fixed(self.model.energy, self.loss), self._forward_context():
            terms = update.terms(self.model.base, self)
        bad = self._update("base", self.base_optimizer, terms.loss)
        self.guard.undo(kept, bad)
        data_parallel.average_statistics(self.model.base)
        if self.ema is not None:
            self.ema.update(self.model.base, bad)
            self.follow_average()
        return LossTerms(terms.loss, {**terms.metrics, "base_loss": terms.loss.detach()})

    def vital_signs(self) -> dict[str, Tensor]:
        """Compute the vital signs of the last energy step."""
        seen, plain = self._seen, self._plain
        return vital_signs(self.side, self.loss, seen, plain, self._seen_noise) if seen and plain else {}

    def initialise(self) -> None:
        """Set a learned A to its optimum before a phase: log mean exp(-E) over base draws. Pretraining needs no A."""
        if self.phase is Phase.PRETRAINING:
            return
        with torch.no_grad(), self._forward_context():
            batch = self.settings.batch_size
            z = self.model.base.sample_prior(initial_draws(self.settings), self.generator, self.feed.dtype)
            parts = [(reduce.share(part), self.classes.drawn(self.generator, batch)) for part in z.split(batch)]
            draws = [(self._augmented(self._noisy(self.side.decode(*part))), part[1]) for part in parts]
            self.loss.initialise(torch.cat([self.side.energy_at(*rows).double() for rows in draws]))
        if self.negatives is not None:
            self.negatives.fill(self.side)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model, inside the block, the weights that sampling uses (the averages), in eval mode."""
        with carrying(self.model, self.averages()):
            yield

    def refresh_randomness(self) -> None:
        """Change latent codes, noise and data order from here on, so that what went wrong does not repeat itself."""
        seed = stream(self.settings.seed, "restore", self.restores).initial_seed()
        self.generator.manual_seed(seed)
        torch.manual_seed(seed)
        self.feed.seed = self.data_seed()

    def _energy_parameters(self) -> list[nn.Parameter]:
        return [*(p for p in self.model.energy.parameters() if p.requires_grad), *self.loss.parameters()]

    def averages(self) -> tuple[tuple[nn.Module, EMA | None], tuple[nn.Module, EMA | None]]:
        """Return the two parts, each with its present moving average, or None."""
        return (self.model.base, self.ema), (self.model.energy, self.energy_ema)

    def new_average(self) -> EMA:
        """Start a moving average of the base. It warms up only if the energy does not have to keep up with it."""
        return EMA(self.model.base, self.recipe.ema.decay, warmup=self.settings.base_update == "pathwise")

    def follow_average(self) -> None:
        """Copy the base's average into the reference base of a likelihood update, after the average has changed."""
        if self.likelihood is not None and self.ema is not None:
            self.likelihood.follow(self.ema)

    def data_seed(self) -> int:
        """Return the seed of the data's order. It changes whenever training goes back."""
        seed = self.settings.seed
        return stream(seed, "data order", self.restores).initial_seed() if self.restores else seed

    def data(self) -> Tensor:
        """Return this rank's part of the next batch of data, (B, *D)."""
        x = self.feed.next()
        return flipped(x, self.generator) if self.settings.flip else x

    def latents(self) -> Tensor:
        """Draw the latent codes of this rank's part of a batch, (B, Z)."""
        return reduce.share(self.model.base.sample_prior(self.feed.batch_size, self.generator, self.feed.dtype))

    def energy_batch(self) -> Batch:
        """Draw the batch of an energy update: data, codes, base draws without gradient, and any negatives of the loss."""
        x, z = self.data(), self.latents()
        labels, base_labels = self.classes.of_data(), self.classes.drawn(self.generator)
        with torch.no_grad(), self._forward_context():
            seen = points(self.side, x)
            x, x_base = self._noisy(seen), self._noisy(self.stepped.decode(z, base_labels).to(x.dtype))
        if self.negatives is None:
            return self._as_seen(Batch(x, z, x_base, None, labels, base_labels))
        # G(z) carries no noise, while chains in data space walk on an energy that has learned it
        latent = self.negatives.settings.space == "latent"
        negatives = self.negatives.draw(self.side, seen if latent else x, x_base, self.generator, self.energy_updates)
        self._chain_ends = negatives
        return self._as_seen(Batch(x, z, x_base, self._noisy(negatives) if latent else negatives))

    def chain_ends(self) -> Tensor:
        """Return the last states of the loss's chains, (B, *D) or codes (B, Z). Instance noise is not included."""
        if self._chain_ends is None:
            raise RuntimeError("no energy update has drawn negatives yet")
        return self._chain_ends

    def base_batch(self, needs: frozenset[str]) -> Batch:
        """Fill the fields of a `Batch` that ``needs`` names, x_base with its gradient in the base; the others stay empty.

        Negatives are those of the last energy update.
        """
        x = self._noisy(self.data()) if "x" in needs else None
        negatives = self._seen.negatives if "negatives" in needs and self._seen is not None else None
        z = x_base = torch.empty(0, dtype=self.feed.dtype, device=self.device)
        base_labels = None
        if needs & {"z", "x_base"}:
            z, base_labels = self.latents(), self.classes.drawn(self.generator)
        if "x_base" in needs:
            x_base = self.stepped.decode(z, base_labels)
            x_base = self._noisy(x_base if x is None else x_base.to(x.dtype))
        seen, labels = (None, None) if x is None else (self._augmented(x), self.classes.of_data())
        return Batch(seen, z, self._augmented(x_base), negatives, labels, base_labels)

    def _as_seen(self, plain: Batch) -> Batch:
        """Return the batch with its images augmented, as the energy is trained on them, and keep both for the log."""
        self._plain = plain
        x, negatives = (None if rows is None else self._augmented(rows) for rows in (plain.x, plain.negatives))
        return replace(plain, x=x, x_base=self._augmented(plain.x_base), negatives=negatives)

    def _augmented(self, rows: Tensor) -> Tensor:
        return self.augmentations[self.phase is Phase.FINAL](rows, self.generator)

    def _noisy(self, x: Tensor) -> Tensor:
        if not self.noise:
            return x
        return x.add(reduce.randn_like(x, self.generator), alpha=self.noise)

    def _forward_context(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.autocast else contextlib.nullcontext()

    def _update(self, part: str, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
        """Take an optimiser step, unless loss or gradient is not finite; return 1 if it was skipped, else 0, ()."""
        norm = differentiated(optimizer, loss, self.settings.clip_grad_norm)
        bad = self.guard.judge(part, self.step + 1, loss.detach(), norm)
        optimizer.found_inf = bad  # type: ignore[attr-defined]  # the fused kernels read it, as under a GradScaler
        optimizer.step()
        return bad

    def _set_learning_rates(self) -> None:
        """Set the learning rates of the coming cycle."""
        rates = learning_rates(self.recipe, self.step)
        for optimizer, chosen in ((self.energy_optimizer, rates.energy), (self.base_optimizer, rates.base)):
            if chosen is not None:
                set_rate(optimizer, chosen)

    def _enter_main_phase(self) -> None:
        """Enter the main phase with the pretrained base: its best weights, or those that sampling would use."""
        if self.best_base is not None and self.best_base.tensors:
            self.model.base.load_state_dict(self.best_base.tensors)
        elif self.ema is not None:
            self.ema.copy_to(self.model.base)
        self.start_main_phase()
        self.initialise()

    def start_main_phase(self) -> None:
        """Make the optimisers and averages that the main phase begins with."""
        self.base_optimizer = make_optimizer(self.recipe.optim.base, list(self.model.base.parameters()))
        if self.ema is not None:
            self.ema = self.new_average()
            self.follow_average()
        if self.settings.main_part == "energy":
            self.model.base.eval()

    def _enter_final_phase(self) -> None:
        """Enter the final phase: the base takes the weights that sampling uses, and only the energy learns."""
        if self.ema is not None:
            self.ema.copy_to(self.model.base)
        self.start_final_phase()
        self.initialise()

    def start_final_phase(self) -> None:
        """Make the optimisers, averages and batches that the final phase begins with, and take its own loss and energy."""
        final = self.settings.final
        self.model.base.eval()
        self.feed.batch_size = final.batch_size or self.settings.batch_size
        if self.final is not None:
            self._take(self.final)
        self.energy_optimizer = make_optimizer(final.optimizer, self._energy_parameters())
        if final.ema > 0:
            self.energy_ema = EMA(self.model.energy, final.ema)

    def _take(self, parts: FinalParts) -> None:
        """Continue with the final phase's own loss and energy."""
        parts.join(self.model)
        self.negatives = parts.negatives
        if parts.loss is not None:
            self.loss = parts.loss
        if parts.energy is not None:
            self.side = energy_side(self.model, self.likelihood.reference if self.likelihood else self.model.base)
            rows = self.feed.batch_size // reduce.world_size()
            self.stepped = compiled(self.side, self.device, rows) if self.settings.compile else self.side
        self.guard.watch([self.model.base, self.model.energy, self.loss])
