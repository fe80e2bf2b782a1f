"""The state of a `Trainer` in a checkpoint, and how training resumes from it: bit for bit on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.errors import CheckpointError
from gebm_kit.core.files import plain
from gebm_kit.core.packing import packed, unpacked
from gebm_kit.engine.process.distributed import Ranks
from gebm_kit.engine.run_directory.checkpoint import Checkpoint
from gebm_kit.engine.training.acceleration import lay_out_states
from gebm_kit.engine.training.ema import averages_of
from gebm_kit.engine.training.optimisers import flatten_optimizer, restore_optimizer
from gebm_kit.engine.training.trainer import Trainer


def tensors_of(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    """Return every tensor of the state, by checkpoint part (`gebm_kit.engine.run_directory.checkpoint.TENSOR_PARTS`)."""
    rng = {"generator": trainer.generator.get_state(), "torch": torch.get_rng_state()}
    if trainer.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(trainer.device)
    parts: dict[str, dict[str, Tensor]] = {
        "model": dict(trainer.model.state_dict()),
        "loss": dict(trainer.loss.state_dict()),
        "optim": {
            **flatten_optimizer(trainer.energy_optimizer, "energy"),
            **flatten_optimizer(trainer.base_optimizer, "base"),
        },
        "rng": rng,
    }
    if trainer.negatives is not None and (states := trainer.negatives.tensors()):
        parts["negatives"] = states
    if trainer.best_base is not None and trainer.step <= trainer.settings.pretrain_steps:
        parts["best-base"] = trainer.best_base.tensors
    if trainer.final is not None and trainer.step <= trainer.settings.main_end:  # afterwards the model and the loss
        parts["final"] = trainer.final.tensors()
    names = ("base", "energy")
    parts["ema"] = {
        f"{name}.{key}": value
        for name, (_, ema) in zip(names, trainer.averages(), strict=True)
        if ema is not None
        for key, value in ema.state_dict().items()
    }
    return parts


def counters_of(trainer: Trainer) -> dict[str, Any]:
    """Return the part of the state that is not tensors, as plain values."""
    return {
        "energy_updates": trainer.energy_updates,
        "feed_position": trainer.feed.position,
        "non_finite": trainer.guard.state(),
        "restores": trainer.restores,
        "went_back": trainer.went_back,
        "best_base": trainer.best_base.state() if trainer.best_base is not None else {},
    }


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Set the trainer to the state in a checkpoint.

    Raises:
        CheckpointError: the checkpoint does not fit the recipe.
    """
    parts = checkpoint.tensors
    entered_main = checkpoint.step > trainer.settings.pretrain_steps or not trainer.settings.pretrain_steps
    if entered_main and trainer.settings.pretrain_steps:
        trainer.start_main_phase()
    if checkpoint.step > trainer.settings.main_end:
        trainer.start_final_phase()
    try:
        if trainer.final is not None and checkpoint.step <= trainer.settings.main_end:
            trainer.final.restore(parts["final"])
        trainer.model.load_state_dict(parts["model"])
        trainer.loss.load_state_dict(parts["loss"])
        filled = checkpoint.step > trainer.settings.pretrain_steps  # `initialise` fills them as the main phase begins
        if trainer.negatives is not None and filled:
            trainer.negatives.restore(parts.get("negatives", {}))
        restore_optimizer(trainer.energy_optimizer, "energy", parts["optim"])
        restore_optimizer(trainer.base_optimizer, "base", parts["optim"])
        lay_out_states(trainer.energy_optimizer)
        lay_out_states(trainer.base_optimizer)
        for name, (_, ema) in zip(("base", "energy"), trainer.averages(), strict=True):
            if ema is not None:
                ema.load_state_dict(averages_of(parts["ema"], name))
        trainer.follow_average()
        trainer.generator.set_state(parts["rng"]["generator"])
        torch.set_rng_state(parts["rng"]["torch"])
        if trainer.device.type == "cuda" and "cuda" in parts["rng"]:
            torch.cuda.set_rng_state(parts["rng"]["cuda"], trainer.device)
        trainer.energy_updates = int(checkpoint.state["energy_updates"])
        trainer.feed.position = int(checkpoint.state["feed_position"])
        trainer.guard.restore(checkpoint.state.get("non_finite", {}))
        trainer.restores = int(checkpoint.state.get("restores", 0))
        trainer.feed.seed = trainer.data_seed()
        if trainer.best_base is not None and not entered_main:
            trainer.best_base.restore(checkpoint.state["best_base"], parts["best-base"])
    except (RuntimeError, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint.path} does not fit the recipe: {error}") from error
    trainer.step = checkpoint.step


# --- the state of all ranks ------------------------------------------------------------------------------------------
def share_state(trainer: Trainer, ranks: Ranks) -> None:
    """Give every rank the first rank's state: weights, averages, optimisers, random numbers, position in the data."""
    if ranks.size == 1:
        return
    content = b""
    if ranks.rank == 0:
        parts = tensors_of(trainer)
        tensors = {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        record = {"step": trainer.step, "state": counters_of(trainer), "parts": list(parts)}
        content = packed(tensors, plain(record))
    content = ranks.broadcast(content)
    if ranks.rank > 0:
        where = Path("the state of the first process")
        flat, found = unpacked(content, where)
        named: dict[str, dict[str, Tensor]] = {part: {} for part in found["parts"]}
        for key, tensor in flat.items():
            part, _, name = key.partition("/")
            named[part][name] = tensor
        restore(trainer, Checkpoint(where, int(found["step"]), named, found["state"]))
