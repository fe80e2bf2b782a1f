"""Checks of what every loss and every penalty must do, which plugin authors run on their own components."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gebm_kit.core import contracts
from gebm_kit.core.frozen import fixed
from gebm_kit.core.interfaces import Base, Batch, Energy, Loss, NegativeSettings, Penalty
from gebm_kit.core.model import GEBM
from gebm_kit.testing.conformance import conformance

ROWS = 64
"""Rows of the batch that objectives are checked on."""

FIELDS = frozenset({"x", "z", "x_base", "negatives"})
"""Fields of `Batch`."""


class SmallBase(Base):
    """A base of two layers on points, for checks of objectives."""

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = 3, (dim,)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, dim))

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.net(z)
        return x


class SmallEnergy(Energy):
    """An energy of two layers on points, for checks of objectives."""

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, 8), nn.Tanh(), nn.Linear(8, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.net(x.flatten(1)).squeeze(1)
        return values


def small_model() -> GEBM:
    """Return a GEBM of two small networks on points, with fixed weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GEBM(SmallBase(), SmallEnergy()).double()


@conformance("loss")
def check_loss(loss: Loss, model: GEBM | None = None) -> None:
    """Check a loss: what it needs, its terms and metrics, where its gradients belong, its hooks and its state.

    The energy loss ``L(E)`` must be finite, reach the energy's parameters, leave none on the base, and lower the energy of
    data relative to that of base draws (or negatives): a small step along ``-dL`` must lower ``mean E(x) - mean E(x_base)``.
    The base loss must reach the base's parameters. The batch must stay as it is. All runs on copies.

    Args:
        loss: the loss.
        model: the model to compute it on; None: two small networks on points. Losses for bases with a density or an encoder
            need one.

    Raises:
        AssertionError: a check failed, or the signature is not valid; the message names loss, package, file and line.
        UsageError: the loss does not serve the model (``loss.check``): give one that it serves.

    Example:
        >>> from gebm_kit.losses.kale import Kale
        >>> check_loss(Kale())
    """
    loss, model = copy.deepcopy(loss).double(), copy.deepcopy(model or small_model()).double()
    _check_needs(loss)
    loss.check(model)
    assert isinstance(loss.log_ratio, bool), f"log_ratio must be a bool, but it is {loss.log_ratio!r}"
    contracts.check_state("loss", loss)
    batch = _batch(model)
    if "energy" in loss.parts:
        with torch.no_grad():
            loss.initialise(model.energy(batch.x_base))
        _check_energy_loss(loss, model, batch)
        estimate = loss.log_partition_estimate()
        assert estimate is None or (isinstance(estimate, Tensor) and estimate.shape == ()), (
            f"log_partition_estimate must return a scalar tensor or None, but it returns {contracts.said(estimate)}"
        )
        twin = copy.deepcopy(loss)
        twin.load_state_dict(loss.state_dict())
    if "base" in loss.parts:
        _check_base_loss(loss, model, batch)


def _check_needs(loss: Loss) -> None:
    for name in ("needs", "base_needs"):
        fields: Any = getattr(loss, name)
        assert isinstance(fields, frozenset | set), (
            f"{name} must be a frozenset of fields of Batch, but it is {fields!r}"
        )
        unknown = sorted(map(str, fields - FIELDS))
        assert not unknown, f"{name} has {', '.join(unknown)}; the fields of Batch are {', '.join(sorted(FIELDS))}"
    assert loss.parts and loss.parts <= {"energy", "base"}, (
        f"parts must be of energy and base, but are {set(loss.parts)}"
    )
    if "negatives" in loss.needs | loss.base_needs:
        assert isinstance(loss.negatives, NegativeSettings), (
            "it needs negatives, so the attribute negatives must be NegativeSettings, "
            f"but it is {contracts.said(loss.negatives)}"
        )


def _batch(model: GEBM) -> Batch:
    """Return a batch whose data lie apart from the base draws."""
    generator = torch.Generator().manual_seed(0)
    z = model.base.sample_prior(ROWS, generator, torch.float64)
    with torch.no_grad():
        x_base = model.base(z)
    x = x_base.flip(0) + 0.3 + 0.3 * torch.randn(x_base.shape, generator=generator, dtype=torch.float64)
    negatives = x_base + 0.1 * torch.randn(x_base.shape, generator=generator, dtype=torch.float64)
    return Batch(x, z, x_base, negatives)


def _without(batch: Batch, needs: frozenset[str] | set[str], x_base: Tensor | None = None) -> Batch:
    """Return the batch with those fields alone that a loss declares; the engine fills no others."""
    empty = batch.z.new_zeros(0)
    return Batch(
        x=batch.x if "x" in needs else None,
        z=batch.z if {"z", "x_base"} & needs else empty,
        x_base=(batch.x_base if x_base is None else x_base) if "x_base" in needs else empty,
        negatives=batch.negatives if "negatives" in needs else None,
    )


def _check_energy_loss(loss: Loss, model: GEBM, batch: Batch) -> None:
    assert batch.x is not None
    negatives = batch.negatives if "negatives" in loss.needs else None
    given = Batch(batch.x, batch.z, batch.x_base, negatives)
    kept = contracts.batch_copies(given)
    terms: Any = loss.energy_loss(model, given)
    contracts.check_loss_terms(loss, "energy_loss", terms)
    contracts.refuse_changed_batch("loss", loss, given, kept)
    assert terms.loss.requires_grad, "energy_loss returns a loss that carries no gradient at all"
    learned, base = list(model.energy.parameters()), list(model.base.parameters())
    grads = torch.autograd.grad(terms.loss, [*learned, *base], allow_unused=True)
    assert not any(grad is not None and bool(grad.any()) for grad in grads[len(learned) :]), (
        "energy_loss leaves a gradient on the base; use batch.x_base, or compute draws under torch.no_grad()"
    )
    steps = [grad for grad in grads[: len(learned)] if grad is not None]
    assert steps, "energy_loss has no gradient with respect to the energy's parameters"
    assert all(bool(grad.isfinite().all()) for grad in steps), "energy_loss has a gradient that is not finite"
    loss.after_energy_step(terms.metrics)
    others = batch.x_base if negatives is None else negatives

    def gap() -> float:
        with torch.no_grad():
            return float(model.energy(batch.x).mean() - model.energy(others).mean())

    before = gap()
    kept_weights = [parameter.detach().clone() for parameter in learned]
    size = 1e-4 / max(float(sum(grad.square().sum() for grad in steps)) ** 0.5, 1e-12)
    with torch.no_grad():
        for parameter, grad in zip(learned, grads, strict=False):
            if grad is not None:
                parameter.sub_(size * grad)
    after = gap()
    with torch.no_grad():
        for parameter, value in zip(learned, kept_weights, strict=True):
            parameter.copy_(value)
    what = "base draws" if negatives is None else "negatives"
    assert after <= before, (
        f"a step down energy_loss raises the energy of data relative to {what}; energies are low on data: is its sign wrong?"
    )


def _check_base_loss(loss: Loss, model: GEBM, batch: Batch) -> None:
    x_base = model.base(batch.z) if "x_base" in loss.base_needs else None
    given = _without(batch, loss.base_needs, x_base)
    kept = contracts.batch_copies(given)
    with fixed(model.energy, loss):
        terms: Any = loss.base_loss(model, given)
        contracts.check_loss_terms(loss, "base_loss", terms)
        contracts.refuse_changed_batch("loss", loss, given, kept)
        grads: tuple[Tensor | None, ...] = (None,)
        if terms.loss.requires_grad:
            grads = torch.autograd.grad(terms.loss, list(model.base.parameters()), allow_unused=True)
    reached = [grad for grad in grads if grad is not None]
    assert reached, "base_loss has no gradient with respect to the base's parameters"
    assert all(bool(grad.isfinite().all()) for grad in reached), "base_loss has a gradient that is not finite"


@conformance("penalty")
def check_penalty(penalty: Penalty, energy: Energy | None = None, data_shape: tuple[int, ...] = (2,)) -> None:
    """Check a penalty: a finite scalar with a gradient on the energy, the generator handed in, an unchanged batch.

    Args:
        penalty: the penalty.
        energy: the energy to regularise, on data of ``data_shape``; None: a small network.
        data_shape: shape of one data point.

    Raises:
        AssertionError: a check failed, or the signature is not valid; the message names penalty, package, file and line.

    Example:
        >>> from gebm_kit.penalties.zero_centred import R1
        >>> check_penalty(R1())
    """
    every = penalty.every
    assert isinstance(every, int) and not isinstance(every, bool) and every >= 1, (
        f"every must be a whole number >= 1, but it is {every!r}"
    )
    if energy is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            energy = SmallEnergy(int(torch.Size(data_shape).numel()))
    energy = copy.deepcopy(energy).double()
    generator = torch.Generator().manual_seed(0)
    x, x_base = (torch.randn(ROWS, *data_shape, generator=generator, dtype=torch.float64) for _ in range(2))
    batch = Batch(x, torch.randn(ROWS, 3, generator=generator, dtype=torch.float64), x_base + 1.0)
    kept, weights = contracts.batch_copies(batch), [p.detach().clone() for p in energy.parameters()]
    values = []
    for default_seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(default_seed)
            value: Any = penalty(energy, batch, torch.Generator().manual_seed(0))
        contracts.check_scalar("penalty", penalty, "the penalty", value)
        contracts.refuse_changed_batch("penalty", penalty, batch, kept)
        values.append(value)
    assert torch.equal(*values), (
        "the same seed gives two values; every random number must come from the generator given"
    )
    assert all(torch.equal(p, w) for p, w in zip(energy.parameters(), weights, strict=True)), "it changes the energy"
    grads = (
        torch.autograd.grad(values[0], list(energy.parameters()), allow_unused=True) if values[0].requires_grad else ()
    )
    reached = [grad for grad in grads if grad is not None]
    assert any(bool(grad.any()) for grad in reached), (
        "it has no gradient with respect to the energy's parameters; a gradient penalty needs create_graph=True"
    )
    assert all(bool(grad.isfinite().all()) for grad in reached), "its gradient is not finite"
