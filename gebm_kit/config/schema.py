"""Sections of a recipe as dataclasses: keys, types, ranges and defaults. This file does not import torch.

`Annotated` holds the range of a number; `check.py` reads it both here and in component constructors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from gebm_kit.config.class_keys import ClassWeights
from gebm_kit.config.negatives import NO_NEGATIVES, NegativesSection
from gebm_kit.config.optimizer import DEFAULT_OPTIMIZER, FINAL_OPTIMIZER, PRETRAIN_OPTIMIZER, OptimizerSection
from gebm_kit.config.recipe_html import recipe_sections, recipe_summary
from gebm_kit.core.components import Range
from gebm_kit.core.html import Shown

SCHEMA_VERSION = 1
"""Value of a recipe's key ``schema``."""

Count = Annotated[int, Range(0, None)]
Positive = Annotated[int, Range(1, None)]
Rate = Annotated[float, Range(0, None)]
Fraction = Annotated[float, Range(0, 1, high_open=True)]
Seed = Annotated[int, Range(0, 2**63 - 1)]

CALIBRATED = "calibrated"
"""Value of ``sample.inverse_temperature`` for the beta that fits held-out data best."""

Parts = Mapping[tuple[str | int, ...], Any]
"""Objects that a caller in Python supplies for nodes of a recipe, by key; see `gebm_kit.config.supplied`."""

PRETRAINED = "base-then-"
"""Prefix of the values of ``train.part`` that first train the base alone."""


@dataclass(frozen=True, slots=True)
class ComponentNode:
    """A component chosen by name, with its own parameters."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, **self.parameters}

    @property
    def title(self) -> str:
        """What messages call the component."""
        return self.name


@dataclass(frozen=True, slots=True)
class FinalSection:
    """The final phase, which trains the energy alone against the base that sampling uses (the EMA base, in eval mode).

    It starts from the energy of the main phase, or from a new one, with a fresh optimiser. A is initialised again. The
    learning rate falls to zero and the energy's weights are averaged, so that the energy settles: its drift from batch to
    batch would show in the samples. The run samples and evaluates with the energy and the A of this phase.

    Attributes:
        steps: cycles of this phase, after those of the main phase.
        loss: loss of this phase, with fresh state of its own (A, networks); null: that of the main phase.
        energy: a new energy, which starts from fresh weights; null: the energy of the main phase continues.
        energy_steps: energy updates in a cycle.
        batch_size: batch size of this phase; null: that of the main phase.
        penalty: one penalty, a list of them, [] for none, or null for those of the main phase.
        negatives: negatives of this phase; null: as in the main phase, by new chains.
        augment: augmentations of this phase, [] for none, or null for those of the main phase.
        noise: instance noise of this phase, as ``train.noise``; null: that of the main phase. With 0 the energy ends on
            points as samplers show them.
        optimizer: optimiser of the energy.
        ema: decay of the moving average of the energy's weights, which becomes the energy; 0 switches it off.
    """

    steps: Count = 0
    loss: ComponentNode | None = None
    energy: ComponentNode | None = None
    energy_steps: Positive = 1
    batch_size: Annotated[int, Range(2, None)] | None = None
    penalty: Any = None
    negatives: NegativesSection | None = None
    augment: tuple[ComponentNode, ...] | None = None
    noise: Rate | None = None
    optimizer: OptimizerSection = FINAL_OPTIMIZER
    ema: Fraction = 0.998


@dataclass(frozen=True, slots=True)
class PretrainSection:
    """The first phase of ``part: base-then-energy`` and ``base-then-both``, which trains the base alone by its own loss.

    That loss is the negative log-likelihood for a flow and the negative ELBO for a VAE. Other values of ``part`` have no
    such phase. The main phase begins with the base's averaged weights, if there are any, and a fresh optimiser.

    Attributes:
        steps: cycles of this phase, each one base update, before those of the main phase.
        eval_every: cycles between evaluations of the base's loss on the validation part (early stopping). The main phase
            starts from the averaged weights with the lowest loss; 0: from the last ones.
        optimizer: optimiser of the base.
    """

    steps: Positive = 3000
    eval_every: Count = 0
    optimizer: OptimizerSection = PRETRAIN_OPTIMIZER


@dataclass(frozen=True, slots=True)
class NonFiniteSection:
    """Reaction to a loss or a gradient that is not finite. Such an update is skipped and leaves the state unchanged.

    Attributes:
        limit: number of skipped updates of a part in a row after which training returns to the last good checkpoint (the
            start if there is none), with fresh random numbers.
        restores: how many times training may return in a run; after that the run fails.
    """

    limit: Positive = 20
    restores: Count = 2


@dataclass(frozen=True, slots=True)
class KeepBestSection:
    """Choice of a checkpoint that is kept besides the last ones.

    Attributes:
        metric: one of ``eval.metrics``, or one of its values (``modes.covered``), or ``nll`` where the base has a density.
            Evaluations every ``eval_every`` cycles and at the end compute it for the GEBM on the validation part; the
            checkpoint with the best value is kept. null: none is.
    """

    metric: str | None = None


@dataclass(frozen=True, slots=True)
class TrainSection:
    """Training of base and energy. One step is one cycle: ``energy_steps`` energy updates, then one base update.

    Attributes:
        steps: cycles of the main phase.
        part: what is trained. ``both``; ``energy`` alone, with a frozen base; ``base`` alone, by its own pretraining loss
            if it has one, otherwise by the loss's base objective against the frozen energy; or first the base by its own
            loss and then the energy on top of it (``base-then-energy``) or both (``base-then-both``).
        pretrain: the first phase of ``base-then-energy`` and ``base-then-both``.
        base_update: how the base learns from the energy. *pathwise*: by the loss's base objective, differentiated through
            base draws. The other two are for bases with a density: they maximise the likelihood of draws of the model with
            the averaged base, against which the energy then learns too. *weighted-likelihood* takes draws of the averaged
            base weighted by exp(-E), *mcmc-teaching* the chains of the losses ``pcd`` and ``cd``.
        base_update_ess: smallest effective share of a batch with *weighted-likelihood*; where the weights leave less, they
            are raised to a power below 1.
        init_from: a run whose weights training starts from; null: fresh weights.
        energy_steps: energy updates in a cycle.
        start_steps, start_energy_steps: the first ``start_steps`` cycles have ``start_energy_steps`` energy updates, so
            that the base's first gradients come from an energy that has learned something. The energy of
            kale-dv runs away from a fresh base in them.
        start_every: every ``start_every``-th cycle has ``start_energy_steps`` energy updates again, as in the published
            GEBM; 0: none has.
        final: the energy-only phase at the end.
        batch_size: data points and base draws in an update, over all processes.
        noise: standard deviation of Gaussian noise on data and base draws in training (instance noise), in data units. It
            makes their supports overlap, and the energy the log-ratio of the two distributions smoothed by that noise.
            Sampling and evaluation add none, so they show the energy points that it was not trained on; on images that made
            draws worse. ``final.noise: 0`` ends training without it.
        flip: mirror each training image left to right with probability 1/2, on the device.
        augment: random changes of the images that the energy sees in training: of data, base draws and negatives alike.
            A list of flip, translation, cutout and colour, by name or with parameters; see `AUGMENTATIONS`.
        seed: seed of weights, data order, latent codes and noise.
        penalty: one penalty, a list of them, or null.
        negatives: negatives that the energy's updates of the main phase draw from the model itself.
        compile: compile base and energy with `torch.compile`, which takes a while at the start. Without a compiler,
            training warns and runs uncompiled.
        clip_grad_norm: largest gradient norm of an update; null: no clipping.
        on_non_finite: what happens when a loss or a gradient is not finite.
        log_every, eval_every, checkpoint_every: cycles between log lines, evaluations with pictures (0: only at the end)
            and checkpoints.
        keep_checkpoints: how many of the last checkpoints are kept.
        keep_best: which checkpoint is kept besides them.
    """

    steps: Positive = 3000
    part: Literal["both", "energy", "base", "base-then-energy", "base-then-both"] = "both"
    pretrain: PretrainSection = PretrainSection()
    base_update: Literal["pathwise", "weighted-likelihood", "mcmc-teaching"] = "pathwise"
    base_update_ess: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.5
    init_from: str | None = None
    energy_steps: Positive = 5
    start_steps: Count = 0
    start_energy_steps: Positive = 25
    start_every: Count = 0
    final: FinalSection = FinalSection()
    batch_size: Annotated[int, Range(2, None)] = 128
    noise: Rate = 0.0
    flip: bool = False
    augment: tuple[ComponentNode, ...] = ()
    seed: Seed = 0
    penalty: Any = None
    negatives: NegativesSection = NO_NEGATIVES
    compile: bool = False
    clip_grad_norm: Annotated[float, Range(0, None, low_open=True)] | None = None
    on_non_finite: NonFiniteSection = NonFiniteSection()
    log_every: Positive = 50
    eval_every: Count = 0
    checkpoint_every: Positive = 500
    keep_checkpoints: Positive = 2
    keep_best: KeepBestSection = KeepBestSection()

    @property
    def total_steps(self) -> int:
        """Cycles of all phases."""
        return self.main_end + self.final.steps

    @property
    def main_end(self) -> int:
        """Cycles of the pretraining and the main phase."""
        return self.pretrain_steps + self.steps

    @property
    def pretrain_steps(self) -> int:
        """Cycles of the first phase, of the base alone; 0 if there is none."""
        return self.pretrain.steps if self.part.startswith(PRETRAINED) else 0

    @property
    def final_negatives(self) -> NegativesSection:
        """Settings of the negatives of the final phase."""
        return self.negatives if self.final.negatives is None else self.final.negatives

    @property
    def main_part(self) -> Literal["both", "energy", "base"]:
        """Part that the main phase trains."""
        return cast(Literal["both", "energy", "base"], self.part.removeprefix(PRETRAINED))


@dataclass(frozen=True, slots=True)
class OptimSection:
    """Optimisers of energy and base. A learned log-partition uses the energy's."""

    energy: OptimizerSection = DEFAULT_OPTIMIZER
    base: OptimizerSection = DEFAULT_OPTIMIZER


@dataclass(frozen=True, slots=True)
class EmaSection:
    """Exponential moving average of the base, which sampling uses; ``decay: 0`` switches it off."""

    decay: Fraction = 0.999


@dataclass(frozen=True, slots=True)
class SampleSection:
    """Defaults of ``gebm-kit sample``; see `gebm_kit.engine.sampling.settings.SampleSettings`."""

    num_samples: Positive = 2000
    num_chains: Positive = 500
    warmup: Count = 200
    steps: Positive = 100
    thin: Positive = 10
    inverse_temperature: Annotated[float, Range(0, None)] | Literal["calibrated"] = 1.0
    seed: Seed = 0
    block_size: Positive | None = None


@dataclass(frozen=True, slots=True)
class EvalSection:
    """Defaults of ``gebm-kit eval``.

    Attributes:
        metrics: component nodes.
        num_samples: draws in each set.
        num_sets: number of independent draw sets, from which the intervals are computed.
        features: feature maps with parameters, for metrics that name them.
        num_reference: rows of held-out data, and of training data, to score against; a larger part is thinned evenly.
        seed: seed of the draws.
        log_partition: how A is estimated. auto: where the base has a density, by importance sampling if Pareto k of the
            weights is below 0.5, otherwise by annealed populations (smc), which an energy on codes always gets; without a
            density always by importance sampling, marked where it is not reliable.
        budget: seconds that an evaluation may take; null: a third of the time that the run was trained for, at least 30.
            A warning says what is cut.
    """

    metrics: tuple[ComponentNode, ...] = ()
    num_samples: Annotated[int, Range(2, None)] = 2000
    num_sets: Annotated[int, Range(2, None)] = 10
    features: tuple[ComponentNode, ...] = ()
    num_reference: Annotated[int, Range(2, None)] = 10_000
    seed: Seed = 0
    log_partition: Literal["auto", "importance-sampling", "smc"] = "auto"
    budget: Annotated[float, Range(0, None, low_open=True)] | None = None


@dataclass(frozen=True, slots=True)
class NllSection:
    """Negative log-likelihoods, for models whose base has a density.

    Attributes:
        space: whose density is computed. standardised: that of the data as the model sees them; raw: that of the
            measurements in the file, with the Jacobian of every preprocessing step, for datasets that state it (tabular).
    """

    space: Literal["standardised", "raw"] = "standardised"


@dataclass(frozen=True, slots=True, repr=False)
class Recipe(Shown):
    """A checked recipe: everything needed to train, sample and evaluate, and where it came from.

    Attributes:
        name: stem of the file; runs lie in a folder of that name.
        path: the file; None for a recipe built in memory.
        directory: start of the recipe's relative paths.
        text: the file's text.
        overrides: ``key=value`` words that were applied to it.
        class_weights, class_names: the keys of ``data`` that say how often each class is drawn, and what the classes are
            called; None where the recipe does not say.
        parts: objects of the caller's that stand in place of components; only recipes made in Python have them.
    """

    name: str
    path: Path | None
    directory: Path
    text: str
    overrides: tuple[str, ...]
    requires: tuple[str, ...]
    data: ComponentNode
    base: ComponentNode
    energy: ComponentNode
    loss: ComponentNode
    train: TrainSection
    optim: OptimSection
    ema: EmaSection
    sampler: ComponentNode
    sample: SampleSection
    eval: EvalSection
    nll: NllSection
    loggers: tuple[ComponentNode, ...]
    device: str
    precision: str
    class_weights: ClassWeights | None = None
    class_names: tuple[str, ...] | None = None
    parts: Parts = field(default_factory=dict, compare=False, repr=False)

    def _summary(self) -> str:
        return recipe_summary(self)

    def _sections(self) -> Iterator[str]:
        return recipe_sections(self)

    @property
    def penalties(self) -> tuple[ComponentNode, ...]:
        """The penalties of the main phase."""
        return self.train.penalty or ()

    @property
    def final_penalties(self) -> tuple[ComponentNode, ...]:
        """The penalties of the final, energy-only phase."""
        return self.penalties if self.train.final.penalty is None else self.train.final.penalty

    @property
    def final_augment(self) -> tuple[ComponentNode, ...]:
        """The augmentations of the final, energy-only phase."""
        own = self.train.final.augment
        return self.train.augment if own is None else own

    @property
    def final_loss(self) -> ComponentNode | None:
        """The loss that the final phase has of its own, or None."""
        return self.train.final.loss if self.train.final.steps else None

    @property
    def final_energy(self) -> ComponentNode | None:
        """The energy that the final phase has of its own, or None."""
        return self.train.final.energy if self.train.final.steps else None


COMPONENT_SECTIONS = {"data": "dataset", "base": "base", "energy": "energy", "loss": "loss", "sampler": "sampler"}
"""Recipe keys that hold one component node, and the kind of that component."""

DEFAULT_COMPONENTS = {"loss": "kale", "sampler": "auto"}
"""Components of sections that may be left out, used with default parameters."""

REQUIRED_SECTIONS = ("schema", "data", "base", "energy")
"""Keys that every recipe must have."""

SECTIONS: dict[str, type] = {
    "train": TrainSection,
    "optim": OptimSection,
    "ema": EmaSection,
    "sample": SampleSection,
    "eval": EvalSection,
    "nll": NllSection,
}
"""Fixed sections, all optional, and the dataclass of each."""

TOP_LEVEL = ("schema", "requires", *COMPONENT_SECTIONS, *SECTIONS, "loggers", "device", "precision")
"""All keys of a recipe."""
