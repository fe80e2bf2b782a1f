"""The check of a run's components on one real batch, before its first step: nothing is found only after hours.

The dataset, the sampler and the model are checked by their own rooms (`gebm_kit.engine.datasets.contract`,
`gebm_kit.engine.sampling.contract`). Here are the losses, the penalties and the checkpoint. Training is the same with the
check as without it, to the last bit.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gebm_kit.config.model import build_model
from gebm_kit.config.supplied_parts import with_copies
from gebm_kit.core import contracts, reduce
from gebm_kit.core.attribution import is_foreign, is_out_of_memory, passes_through_component
from gebm_kit.core.classes import decoded, is_conditional, own_loss, scored
from gebm_kit.core.errors import GebmKitError
from gebm_kit.core.frozen import fixed
from gebm_kit.core.interfaces import (
    Dataset,
    HasPretraining,
    HasSource,
    Loss,
    LossTerms,
    OnCodes,
    Penalty,
    Sampler,
)
from gebm_kit.core.model import GEBM
from gebm_kit.core.preserved import preserved
from gebm_kit.engine.process.memory import enough_memory, require_device_memory
from gebm_kit.engine.run_directory.checkpoint import read_checkpoint, save_checkpoint
from gebm_kit.engine.run_directory.run import facts_for_checkpoint
from gebm_kit.engine.sampling.contract import check_contract
from gebm_kit.engine.sampling.settings import check_fits, resolve_sampler, settings_of
from gebm_kit.engine.training.checkpoint_state import counters_of, tensors_of
from gebm_kit.engine.training.final_phase import FinalParts
from gebm_kit.engine.training.latent_codes import energy_side
from gebm_kit.engine.training.trainer import Trainer

SMALLER = "Lower train.batch_size, or the width of base and energy."
"""Hint where one step needs more memory than there is."""

BATCH_ROWS = 8
"""Rows of each rank's batch in the check, at most: enough for batch statistics, few enough for a second."""

REBUILT_ROWS = 4
"""Rows on which the model read back from a checkpoint is compared with the one that was written."""


def check_training(trainer: Trainer, dataset: Dataset) -> None:
    """Check the components of a run that its trainer holds, and its sampler; the trainer stays as it was.

    Args:
        trainer: the run's trainer, at its first step or where it is resumed.
        dataset: the run's data, which `check_dataset` has checked.

    Raises:
        PluginError: a component does not do what its kind must; the message names it, its package, file and line.
        UsageError: the sampler does not serve the base's prior, or needs more chains.
        RunFailed: one batch needs more memory than there is.
    """
    recipe, model = trainer.recipe, trainer.model
    sampler = resolve_sampler(None, recipe.sampler, model)
    row = (math.prod(dataset.data_shape) + model.latent_dim) * torch.empty((), dtype=model.dtype).element_size()
    draws = recipe.eval.num_samples
    require_device_memory(draws * recipe.eval.num_sets * row, torch.device("cpu"), f"eval.num_samples={draws}")
    with enough_memory(trainer.device, "in the check before the first step", SMALLER):
        contracts.check_base_facts(model.base, tuple(dataset.data_shape))
        check_fits(model.given(0) if model.conditional else model, sampler, settings_of(recipe.sample))
        check_contract(model, sampler, trainer.device)
        penalties = [*trainer.penalties, *trainer.final_penalties]
        if trainer.negatives is None:  # those on negatives belong to the other phase
            penalties = [penalty for penalty in penalties if "negatives" not in penalty.needs]
        with _untouched(trainer, penalties):
            _check_steps(trainer, penalties)
        with _untouched(trainer, penalties):
            _check_checkpoint(trainer, dataset, final=trainer.step > trainer.settings.main_end)
        if trainer.final is not None and trainer.step <= trainer.settings.main_end:
            with _carrying_final_parts(trainer, trainer.final):
                _check_final_parts(trainer, dataset, sampler)


@contextlib.contextmanager
def _untouched(trainer: Trainer, penalties: Sequence[Penalty]) -> Iterator[None]:
    """Put back, after the block, everything about the trainer that a step may change."""
    reference = [] if trainer.likelihood is None else [trainer.likelihood.reference]
    generator, updates = trainer.generator.get_state(), trainer.energy_updates
    position, rows = trainer.feed.position, trainer.feed.batch_size
    seen, plain, ends = trainer._seen, trainer._plain, trainer._chain_ends
    chains = None if trainer.negatives is None else trainer.negatives.memory()
    trainer.feed.batch_size = min(rows, BATCH_ROWS * reduce.world_size())
    try:
        with preserved(trainer.model, trainer.loss, *penalties, *reference, device=trainer.device):
            yield
    finally:
        trainer.generator.set_state(generator)
        trainer.feed.position, trainer.feed.batch_size, trainer.energy_updates = position, rows, updates
        trainer._seen, trainer._plain, trainer._chain_ends = seen, plain, ends
        if trainer.negatives is not None and chains is not None:
            trainer.negatives.recall(chains)


@contextlib.contextmanager
def _carrying_final_parts(trainer: Trainer, parts: FinalParts) -> Iterator[None]:
    """Give the trainer, inside the block, the loss and the energy that it takes in the final phase."""
    model = trainer.model
    kept = trainer.loss, trainer.negatives, trainer.side, trainer.stepped, model.energy, model.log_ratio
    try:
        parts.join(model)
        trainer.loss, trainer.negatives = trainer.loss if parts.loss is None else parts.loss, parts.negatives
        trainer.side = energy_side(model, model.base if trainer.likelihood is None else trainer.likelihood.reference)
        trainer.stepped = trainer.side
        yield
    finally:
        trainer.loss, trainer.negatives, trainer.side, trainer.stepped, model.energy, model.log_ratio = kept


def _check_final_parts(trainer: Trainer, dataset: Dataset, sampler: Sampler) -> None:
    check_contract(trainer.model, sampler, trainer.device)
    with _untouched(trainer, trainer.final_penalties):
        if trainer.negatives is not None:
            trainer.negatives.fill(trainer.side)
        _check_energy_step(trainer, trainer.final_penalties)
    with _untouched(trainer, ()):
        _check_checkpoint(trainer, dataset, final=True)


# --- the steps -------------------------------------------------------------------------------------------------------


def _check_steps(trainer: Trainer, penalties: Sequence[Penalty]) -> None:
    """Check the losses and penalties of all phases on one batch."""
    settings, base = trainer.settings, trainer.model.base
    parts = {"base": base, "energy": trainer.model.energy, "loss": trainer.loss}
    keys = {kind: set(part.state_dict()) for kind, part in parts.items()}
    if settings.pretrain_steps and isinstance(base, HasPretraining):
        with fixed(trainer.model.energy), trainer._forward_context():
            x = trainer.data()
            if is_conditional(base):
                contracts.check_takes_labels("base", base, "pretraining_loss")
            value: Any = own_loss(base, x, trainer.classes.of_data())
        contracts.check_scalar("base", base, "its pretraining_loss", value)
        _check_gradient("base", base, "its pretraining_loss", value, list(base.parameters()), "its own parameters")
    if settings.part != "base":
        if trainer.negatives is not None:
            trainer.negatives.fill(trainer.side)
        _check_energy_step(trainer, penalties)
    if settings.main_part != "energy":
        _check_base_step(trainer)
    for kind, part in parts.items():
        if new := sorted(set(part.state_dict()) ^ keys[kind]):
            what = f"gains or loses {new[0]!r} in its state_dict while it is trained; __init__ must make all of its tensors"
            raise contracts.broken(kind, part, what)


@contextlib.contextmanager
def _blamed(kind: str, component: object, doing: str) -> Iterator[None]:
    """Name the component if torch refuses what was computed with it inside the block; components of the kit are not blamed.

    The block must also leave torch's gradient mode and default type as they were.
    """
    modes = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, GebmKitError) or not is_foreign(component) or passes_through_component(error):
            raise
        if is_out_of_memory(error):
            raise
        words = " ".join(str(error).split())[:200]
        raise contracts.broken(kind, component, f"can't be used in {doing}: {words}") from error
    finally:
        after = torch.is_grad_enabled(), torch.get_default_dtype()
        torch.set_grad_enabled(modes[0])
        torch.set_default_dtype(modes[1])
    if after != modes:
        what = f"changes torch's gradient mode or default type in {doing}; use torch.no_grad() as a context instead"
        raise contracts.broken(kind, component, what)


def _check_energy_step(trainer: Trainer, penalties: Sequence[Penalty]) -> None:
    loss, side = trainer.loss, trainer.side
    batch = trainer.energy_batch()
    assert batch.x is not None
    _check_trained_energy(trainer, batch.x, batch.labels)
    kept = contracts.batch_copies(batch)
    with _blamed("loss", loss, "energy_loss"), trainer._forward_context():
        terms: Any = loss.energy_loss(side, batch)
    _check_terms(loss, "energy_loss", terms)
    contracts.refuse_changed_batch("loss", loss, batch, kept)
    base = [parameter for parameter in trainer.model.base.parameters() if parameter.requires_grad]
    learned = [*trainer._energy_parameters()]
    with _blamed("loss", loss, "energy_loss, whose gradient the kit takes itself"):
        grads = _gradients(loss, "energy_loss", terms.loss, [*learned, *base])
    if any(grad is not None and bool((grad != 0).any()) for grad in grads[len(learned) :]):
        what = "leaves a gradient on the base in energy_loss; an energy loss has none there"
        raise contracts.broken("loss", loss, what, hint="Use batch.x_base, or compute draws under torch.no_grad().")
    if learned and all(grad is None for grad in grads[: len(learned)]):
        raise contracts.broken("loss", loss, "has no gradient with respect to the energy's parameters in energy_loss")
    loss.after_energy_step(terms.metrics)
    for penalty in penalties:
        with _blamed("penalty", penalty, "the penalty"):
            value: Any = penalty(side.energy, batch, trainer.generator)
        contracts.check_scalar("penalty", penalty, "the penalty", value)
        contracts.refuse_changed_batch("penalty", penalty, batch, kept)
        if not isinstance(penalty.every, int) or penalty.every < 1:
            raise contracts.broken("penalty", penalty, f"has every = {penalty.every!r}; it must be a whole number >= 1")
        if value.requires_grad:
            with _blamed("penalty", penalty, "the penalty, whose gradient the kit takes itself"):
                torch.autograd.grad(value, [p for p in learned if p.requires_grad], allow_unused=True)
    trainer._seen = batch


def _check_trained_energy(trainer: Trainer, x: Tensor, labels: Tensor | None) -> None:
    """Check the energy of a batch of data in training mode."""
    energy: Any = trainer.model.energy
    if trainer.side is not trainer.model:  # it may be on codes, as another module
        energy = trainer.side.energy
    given = x.clone()
    with trainer._forward_context():
        values: Any = scored(energy, given, labels)
    named = trainer.model.energy
    if list(named.parameters()) and not any(parameter.requires_grad for parameter in named.parameters()):
        raise contracts.broken(
            "energy", named, "has no parameter that can be trained: none of them requires a gradient"
        )
    if not contracts.same(given, x):
        contracts.refuse_changed("energy", named, "its input x")
    contracts.check_energy_output(named, values, len(x))
    if is_foreign(named):
        contracts.check_finite("energy", named, "the first batch of data", values.detach())
    learned = [parameter for parameter in named.parameters() if parameter.requires_grad]
    if learned and not values.requires_grad:
        what = "has no gradient with respect to its own parameters: it is cut off (no_grad, detach or numpy)"
        raise contracts.broken("energy", named, what)


def _check_base_step(trainer: Trainer) -> None:
    base, loss = trainer.model.base, trainer.loss
    learned = [parameter for parameter in base.parameters() if parameter.requires_grad]
    if not learned:
        raise contracts.broken("base", base, "has no parameter that can be trained: none of them requires a gradient")
    with fixed(trainer.model.energy, loss), trainer._forward_context():
        codes = trainer.latents()
        x: Any = decoded(base, codes, trainer.classes.drawn(trainer.generator))
        contracts.check_base_output(base, x, len(codes), tuple(base.data_shape))
        if learned and not x.requires_grad:
            what = "has no gradient with respect to its own parameters: it is cut off (no_grad, detach or numpy)"
            raise contracts.broken("base", base, what)
        with _blamed("loss", loss, "base_loss"):
            terms: Any = trainer._base_update.terms(base, trainer)
        _check_terms(loss, "base_loss", terms)
        _check_gradient("loss", loss, "base_loss", terms.loss, learned, "the base's parameters")


def _check_terms(loss: Loss, method: str, terms: Any) -> None:
    """Check what a loss returns; a loss of the kit may start where it is not finite, and its updates are then skipped."""
    if is_foreign(loss) or not isinstance(terms, LossTerms):
        contracts.check_loss_terms(loss, method, terms)


def _check_gradient(
    kind: str, component: object, what: str, value: Tensor, learned: Sequence[nn.Parameter], whose: str
) -> None:
    """Check that the gradient of a value to minimise reaches some of the parameters that are to learn from it."""
    if not learned:
        return
    grads = torch.autograd.grad(value, list(learned), allow_unused=True) if value.requires_grad else (None,)
    if all(grad is None for grad in grads):
        raise contracts.broken(kind, component, f"has no gradient with respect to {whose} in {what}")


def _gradients(loss: Loss, method: str, value: Tensor, parameters: Sequence[nn.Parameter]) -> tuple[Tensor | None, ...]:
    if not value.requires_grad:
        raise contracts.broken("loss", loss, f"returns a loss from {method} that carries no gradient at all")
    if not parameters:
        return ()
    return torch.autograd.grad(value, list(parameters), allow_unused=True, retain_graph=True)


# --- the checkpoint --------------------------------------------------------------------------------------------------


def _check_checkpoint(trainer: Trainer, dataset: Dataset, *, final: bool) -> None:
    """Write a checkpoint into a temporary directory, read it back into a model built anew, and compare the two."""
    model, recipe = trainer.model, trainer.recipe
    with tempfile.TemporaryDirectory(prefix="gebm-kit-check-") as folder:
        path = save_checkpoint(Path(folder) / "checkpoints", 0, tensors_of(trainer), counters_of(trainer), keep=1)
        found = read_checkpoint(path)
    if isinstance(model.base, HasSource):
        return  # reading its file again may take long, and its weights are not the recipe's
    facts = facts_for_checkpoint(recipe, dataset, model.log_ratio, final=final)
    rebuilt = with_copies(recipe)
    if rebuilt is None:  # the caller's own modules can't be made a second time
        return
    twin = build_model(rebuilt, {**facts, "directory": recipe.directory, "run_directory": None}).to(trainer.device)
    for kind, part, other in (("base", model.base, twin.base), ("energy", model.energy, twin.energy)):
        tensors = {
            name.removeprefix(f"{kind}."): value
            for name, value in found.tensors["model"].items()
            if name.startswith(f"{kind}.")
        }
        try:
            other.load_state_dict(tensors)
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, GebmKitError):
                raise
            what = f"can't load its own state_dict: {' '.join(str(error).split())[:200]}"
            raise contracts.broken(kind, part, what) from error
    _compare(model, twin, trainer)


def _compare(model: GEBM, twin: GEBM, trainer: Trainer) -> None:
    """Check that a model read back from a checkpoint gives what the one gave that was written."""
    model.eval()
    twin.eval()
    with torch.no_grad():
        z = model.base.sample_prior(REBUILT_ROWS, trainer.generator, model.dtype)
        labels = torch.zeros(len(z), dtype=torch.int64, device=z.device) if model.conditional else None
        x = model.decode(z.clone(), labels)
        if isinstance(model.energy, OnCodes) and isinstance(twin.energy, OnCodes):  # training binds it to other weights
            energies = model.energy.of_codes(z.clone()), twin.energy.of_codes(z.clone())
        else:
            energies = model.energy_at(x.clone(), labels), twin.energy_at(x.clone(), labels)
        pairs = (("base", x, twin.decode(z.clone(), labels)), ("energy", *energies))
    for kind, before, after in pairs:
        same = torch.allclose(before, after, rtol=1e-3, atol=1e-5, equal_nan=True)
        if not same:
            raise contracts.broken(
                kind,
                getattr(model, kind),
                "gives other values once its state_dict is read back into a new object",
                hint="Everything that its output depends on belongs in parameters and buffers (register_buffer).",
            )
