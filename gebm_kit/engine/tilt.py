"""Tilting any generator by any scorer, without training: draws from ``prior(z) exp(beta r(G(z)))``.

References:
    Your GAN is Secretly an Energy-based Model. T. Che et al., NeurIPS 2020. https://arxiv.org/abs/2003.06060
    Theoretical guarantees on the best-of-n alignment policy. A. Beirami et al., 2024. https://arxiv.org/abs/2401.01879
    ReNO: Enhancing One-step Text-to-Image Models through Reward-based Noise Optimization. L. Eyring et al., NeurIPS 2024.
    https://arxiv.org/abs/2406.04312
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch

from gebm_kit.config.schema import ComponentNode
from gebm_kit.core.arguments import check_choice, check_path
from gebm_kit.core.errors import UsageError, shown
from gebm_kit.core.files import make_directory, write_json
from gebm_kit.core.interfaces import Dataset, Sampler, SamplerDirective
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.model_contracts import GRADIENT_FREE
from gebm_kit.core.paths import user_path
from gebm_kit.core.plugins import component_name
from gebm_kit.core.progress import OnProgress, ignore
from gebm_kit.engine.figures.run_figures import GRID_SIDE, image_grid
from gebm_kit.engine.figures.tilt_figures import Point, frontier
from gebm_kit.engine.likelihood.estimate_log_partition import Method
from gebm_kit.engine.likelihood.row_sources import Rows
from gebm_kit.engine.process.devices import placed
from gebm_kit.engine.process.distributed import joined_ranks
from gebm_kit.engine.process.memory import enough_memory
from gebm_kit.engine.process.progress_bar import check_progress, progress_shown
from gebm_kit.engine.process.torchrun import local_device
from gebm_kit.engine.sampling.contract import check_model, check_sampler
from gebm_kit.engine.sampling.draw import FEWER_CHAINS
from gebm_kit.engine.sampling.forecasts import GRADIENT_COST
from gebm_kit.engine.sampling.gradient_cost import gradient_cost
from gebm_kit.engine.sampling.settings import SampleSettings, require_whole, resolve_sampler
from gebm_kit.engine.tilting.ascent import CLIMBERS, climb
from gebm_kit.engine.tilting.base_pool import BEST_OF, BLOCKS, as_best_of, base_codes, best_of_codes, take_pool
from gebm_kit.engine.tilting.data import opened_data
from gebm_kit.engine.tilting.diversity import Looks
from gebm_kit.engine.tilting.levels import Plan, WithScorer, level_at
from gebm_kit.engine.tilting.own_energy import own_codes, own_energy
from gebm_kit.engine.tilting.result import Ascent, BestOf, Estimate, Level, Tilt
from gebm_kit.engine.tilting.subjects import Facts, Generator, Scorer, Subject, label, opened, subject_of

BETAS = (0.5, 1.0, 2.0, 4.0)
"""Default inverse temperatures."""

NUM_BASE = 8192
"""Default number of base draws: half for log Z, half to choose its method, all for best-of-N."""

FILE = "tilt.json"
"""File of the directory that holds the result."""


class TiltOptions(TypedDict, total=False):
    """Keyword arguments of `tilt`. One that is absent or None means the default.

    Keys:
        data: a dataset, the name or node of one, or rows, for PRDC, for energies that learn from data, and for the shape and
            range of the generator's data. Rows are a tensor or an array (N, *D) as the generator makes them, a data frame,
            or the path of a file. Frames and files hold measurements if the generator is a run whose data are standardised.
            None: a run's own data where needed, or none.
        data_shape: shape of a data point; None: the dataset's, or that of the program's output.
        value_range: (low, high) of the generator's values, for pictures and for a scorer's ``input_range``; None: the
            dataset's.
        latent_shape: shape of one latent code of a program that does not state it.
        label: class at which a conditional generator and a conditional scorer are held; None: neither has classes.
        num_samples: draws at each beta; 1,000.
        num_chains, warmup, steps, thin: as in `gebm_kit.sample`.
        sampler: a sampler's name; ``auto``.
        num_base: base draws that are scored, for log Z and best-of-N; 8,192.
        log_partition: how log Z is estimated: ``auto``, ``importance-sampling`` or ``smc``.
        features: feature map on which diversity is measured; ``auto``.
        seed: seed of everything random; 0.
        keep_energy: whether the energy of a run or model that is the generator acts too, at its own weight, whatever beta
            is. KL, log Z and best-of-N are then relative to the run's model, and its draws take the place of base draws.
        device: a torch device or ``auto``; None: where the generator is.
        directory: start of relative paths; None: the current directory.
        progress: True: show progress; False: do not; None: on a terminal or in a notebook.
        on_progress: called with each `gebm_kit.core.progress.Progress`; nothing is shown then.
    """

    data: Dataset | ComponentNode | Rows | None
    data_shape: Sequence[int] | None
    value_range: tuple[float, float] | None
    latent_shape: Sequence[int] | None
    label: int | None
    num_samples: int | None
    num_chains: int | None
    warmup: int | None
    steps: int | None
    thin: int | None
    sampler: str | ComponentNode | None
    num_base: int | None
    log_partition: Method | None
    features: str | None
    seed: int | None
    keep_energy: bool
    device: torch.device | str | None
    directory: Path | None
    progress: bool | None
    on_progress: OnProgress | None


def tilt(
    generator: Generator,
    scorer: Scorer,
    *,
    betas: Sequence[float] = BETAS,
    out: str | Path | None = None,
    **options: Unpack[TiltOptions],
) -> Tilt:
    """Draw from a generator tilted by a scorer, at each beta, and compare with best-of-N and gradient ascent.

    Under torchrun the ranks share the draws and the scoring: call it on all of them. Rank 0 writes.

    The law at beta is ``q(z) ∝ prior(z) exp(beta r(G(z)))``, which maximises ``beta E_q[r] - KL(q || base)``. Nothing is
    trained. Each level has R-hat, effective sizes, log Z, the mean score, ``KL(q || base) = -A - beta E_q[E]`` with
    ``E = -r``, and the draws' diversity, with their errors.

    Example:
        >>> import torch, gebm_kit as gk
        >>> from gebm_kit.testing.targets import IdentityBase
        >>> found = gk.tilt(IdentityBase(2), lambda x: x[:, 0], betas=[1], num_samples=200, num_base=2048)
        >>> bool(abs(found.levels[0].score.value - 1) < 0.5)  # the mean moves from 0 to beta
        True

    Args:
        generator: a base, a file of a generator, a run or model whose base is meant, or a node {name: ...} of a base.
        scorer: a function of data (B, *D) that returns scores (B,), high is good; an energy, low is good; a file of a
            program that returns scores; a run whose energy is meant; or the name or node of an energy.
        betas: inverse temperatures, each above 0.
        out: a new directory for tilt.json, frontier.png, grid.png (images) and the draws; None: nothing is written.
        options: see `TiltOptions`.

    Raises:
        TypeError: an option that `TiltOptions` does not have.
        UsageError: a value is outside its range; the scorer returns another shape, or is finite nowhere; the sampler needs a
            gradient that the scorer lacks; data are needed; ``out`` is not free.
        DataError: a file is missing or damaged.
        RunFailed: out of memory, a full disk.
    """
    for name in options:
        if name not in TiltOptions.__annotations__:
            raise TypeError(f"tilt() got an unexpected keyword argument {name!r}")
    chosen: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    levels = _checked_betas(betas)
    progress, on_progress = chosen.get("progress"), chosen.get("on_progress")
    check_progress(progress, on_progress)
    method: Method = chosen.get("log_partition", "auto")
    check_choice("log_partition", method, ("auto", "importance-sampling", "smc"))
    num_base = require_whole("num_base", chosen.get("num_base", NUM_BASE), 2 * BLOCKS, 10**9)
    settings = _settings(chosen)
    folder = None if out is None else _free(out)
    with progress_shown(progress, on_progress) as report:
        subject = _subject(generator, scorer, chosen, report)
        return _tilted(subject, levels, settings, method, num_base, chosen, folder, report)


def _tilted(
    subject: Subject,
    levels: Sequence[float],
    settings: SampleSettings,
    method: Method,
    num_base: int,
    chosen: dict[str, Any],
    folder: Path | None,
    report: OnProgress,
) -> Tilt:
    """Draw at each beta, compare, and write into ``folder`` if there is one."""
    model = subject.model
    own = own_energy(subject, chosen.get("keep_energy", False))
    with (
        joined_ranks(work="a tilt") as ranks,
        ranks.together(),
        placed(model, local_device(chosen.get("device"))) as (where, _),
        placed(GEBM(model.base, own or model.energy), where),
        enough_memory(where, "with the tilt", FEWER_CHAINS),
    ):
        check_model(model, where)
        name, what = label(subject.scorer), "base"
        if own is None:
            z = base_codes(model, num_base, settings.seed)
        else:
            z, what = own_codes(GEBM(model.base, own), _own_settings(chosen, num_base), ranks), "model"
        pool = take_pool(model, name, z, report, ranks, what)
        looks = Looks.of(chosen.get("features", "auto"), subject.dataset, where, settings.num_samples, report)
        sampler = chosen.get("sampler")

        def make_sampler() -> Sampler:
            node = sampler if isinstance(sampler, ComponentNode) else None
            return resolve_sampler(None if node is not None else sampler, node, model)

        if not pool.has_gradient and not pool.is_flat:
            _require_gradient_free(make_sampler(), model, where, name)
        plan = Plan(model, make_sampler, settings, method, pool, looks, report, ranks, own)
        found = [level_at(plan, beta) for beta in levels]
        best = tuple(_best_of(plan, n) for n in BEST_OF)
        climbed = () if own is not None else _climbed(plan, found)  # its KL is known from the prior alone
        with LatentPotential(model) as potential:
            base_draws = potential.data(pool.z[: GRID_SIDE**2]).cpu()
        result = Tilt(
            subject.generator,
            subject.scorer,
            tuple(found),
            best,
            climbed,
            looks.name,
            num_base,
            pool.not_finite,
            settings.seed,
            subject.value_range,
            base_draws,
        )
        if folder is not None:
            written = _written(result, folder) if ranks.rank == 0 else result
            names = ranks.from_first("\n".join(str(path) for path in written.figures)).splitlines()
            result = replace(result, figures=tuple(map(Path, names)), out=folder)
    return result


def plan_tilt(generator: Generator, scorer: Scorer, **options: Unpack[TiltOptions]) -> dict[str, Any]:
    """Return what the gradients of a tilt cost, without drawing anything.

    Args:
        generator, scorer, options: as in `tilt`.

    Returns:
        ``generator``, ``scorer``, ``device``, ``latent_dim``, ``data_shape``, ``num_samples``, ``num_base``, and
        ``gradient``, as `gradient_cost` returns it.

    Raises:
        UsageError, DataError, PluginError: as in `tilt`.
    """
    chosen: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    settings, subject = _settings(chosen), _subject(generator, scorer, chosen)
    model, own = subject.model, own_energy(subject, chosen.get("keep_energy", False))
    if own is not None:
        model = GEBM(model.base, WithScorer(own, model.energy, 1.0))
    with placed(model, local_device(chosen.get("device"))) as (where, _):
        check_model(model, where)
        with enough_memory(where, "with one gradient", "A base may have a block_size, or recompute activations."):
            cost = gradient_cost(model)
    return {
        "generator": dict(subject.generator),
        "scorer": dict(subject.scorer),
        "device": str(where),
        "latent_dim": model.latent_dim,
        "data_shape": list(model.data_shape),
        "num_samples": settings.num_samples,
        "num_base": chosen.get("num_base", NUM_BASE),
        "gradient": cost,
    }


def _own_settings(chosen: dict[str, Any], num: int) -> SampleSettings:
    """Return the settings of draws of the run's own model: many chains, unless their number is given."""
    settings = replace(_settings(chosen), num_samples=num)
    return settings if "num_chains" in chosen else replace(settings, num_chains=min(max(num // 16, 64), 1024))


def _require_gradient_free(sampler: Sampler, model: GEBM, where: torch.device, name: str) -> None:
    """Refuse a sampler that follows the gradient of a scorer that has none.

    Raises:
        UsageError: it does.
    """
    if isinstance(sampler, SamplerDirective) or not check_sampler(sampler, model.latent_dim, where, model.dtype):
        return
    raise UsageError(
        f"the scorer {name} has no gradient with respect to x, and sampler {component_name('sampler', sampler)!r} "
        "follows it",
        hint=f"Use a sampler without gradients ({GRADIENT_FREE}), or auto, which chooses one.",
    )


def _checked_betas(betas: Any) -> list[float]:
    """Return the betas in ascending order.

    Raises:
        UsageError: there are none, or one is not a number above 0.
    """
    values = [betas] if isinstance(betas, int | float) else list(betas)
    for beta in values:
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not math.isfinite(beta) or beta <= 0:
            raise UsageError(f"beta must be a finite number > 0, got {shown(beta)}", hint="The base itself is beta 0.")
    if not values:
        raise UsageError("no beta given")
    return sorted({float(beta) for beta in values})


def _settings(chosen: dict[str, Any]) -> SampleSettings:
    names = ("num_samples", "num_chains", "warmup", "steps", "thin", "seed")
    given = {name: chosen[name] for name in names if name in chosen}
    return replace(SampleSettings(num_samples=1000), **given)


def _subject(generator: Generator, scorer: Scorer, chosen: dict[str, Any], on_progress: OnProgress = ignore) -> Subject:
    directory, data = chosen.get("directory", Path.cwd()), chosen.get("data")
    span, shape = chosen.get("value_range"), chosen.get("data_shape")
    if span is not None and not (len(span) == 2 and all(math.isfinite(v) for v in span) and span[0] < span[1]):
        raise UsageError(f"value_range must be (low, high) with low < high, got {shown(span)}")
    generator = opened(generator)
    dataset = opened_data(data, directory, generator)
    facts = Facts(
        dataset,
        None if span is None else (float(span[0]), float(span[1])),
        None if shape is None else tuple(int(size) for size in shape),
        directory,
    )
    label = chosen.get("label")
    if label is not None:
        label = require_whole("label", label, 0, 10**6)
    return subject_of(generator, scorer, facts, chosen.get("latent_shape"), label, False, on_progress)


def _best_of(plan: Plan, n: int) -> BestOf:
    if len(plan.pool.kept) < 3 * n:
        return as_best_of(plan.pool, n, Estimate(math.nan, math.nan))
    with LatentPotential(plan.model, block_size=256) as potential:
        return as_best_of(plan.pool, n, plan.looks.diversity(potential.data(best_of_codes(plan.pool, n))))


def _climbed(plan: Plan, levels: Sequence[Level]) -> tuple[Ascent, ...]:
    """Return gradient ascent, up to the evaluations that a draw of the costliest level took."""
    pool = plan.pool
    if not pool.has_gradient:
        return ()
    steps = max(round(max(level.evaluations for level in levels) / GRADIENT_COST), 1)
    starts = pool.z[pool.kept[:CLIMBERS].to(pool.z.device)]
    found = []
    with LatentPotential(plan.model, block_size=256) as potential:
        for stop in climb(plan.model, starts, steps, plan.on_progress):
            score = stop.score[torch.isfinite(stop.score)]
            mean = Estimate(float(score.mean()), float(score.std()) / math.sqrt(max(len(score), 1)))
            diversity = plan.looks.diversity(potential.data(stop.z))
            found.append(Ascent(stop.steps, stop.kl, mean, diversity, GRADIENT_COST * stop.steps))
    return tuple(found)


# --- files -----------------------------------------------------------------------------------------------------------


def _free(out: str | Path) -> Path:
    """Return the directory to write into, which must not hold anything yet.

    Raises:
        UsageError: it does, or it is a file.
    """
    check_path("out", out)
    path = user_path(out)
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} is not an empty directory", hint="Choose another one.")
    return path


def _written(found: Tilt, folder: Path) -> Tilt:
    """Write pictures, draws and, last, tilt.json."""
    make_directory(folder)
    figures = [draw_frontier(found, folder / "frontier.png")]
    assert found.base_draws is not None
    if found.base_draws.ndim == 4:
        panels = {"generator": found.base_draws}
        panels |= {f"beta = {level.beta:g}": level.draws.x for level in found.levels}
        figures.append(image_grid(folder / "grid.png", panels, found.value_range))
    for level in found.levels:
        level.draws.save(folder / f"draws-beta-{level.beta:g}.safetensors", found.value_range)
    found = replace(found, figures=tuple(figures), out=folder)
    write_json(folder / FILE, {"schema": 1, **found.as_dict()})
    return found


def draw_frontier(found: Tilt, path: Path) -> Path:
    """Draw the reward-KL frontier."""
    ways = {
        "posterior": [Point(v.kl.value, v.kl.se, v.score.value, v.score.se, f"beta {v.beta:g}") for v in found.levels],
        "best of N": [Point(b.kl, 0.0, b.score.value, b.score.se, f"N = {b.n}") for b in found.best_of],
        "gradient ascent": [
            Point(a.kl_at_least, 0.0, a.score.value, a.score.se, f"{a.steps} step{'' if a.steps == 1 else 's'}")
            for a in found.ascent
        ],
    }
    return frontier(path, ways, label(found.scorer))
