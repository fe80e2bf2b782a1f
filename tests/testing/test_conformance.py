"""The check of every kind passes right components, all of the kit's own among them, and fails twins with one fault each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core.errors import PluginError, UsageError
from gebm_kit.core.interfaces import (
    Base,
    Batch,
    Dataset,
    Energy,
    EvalContext,
    FeatureMap,
    Info,
    Logger,
    Loss,
    LossTerms,
    Metric,
    Penalty,
    Sampler,
    Split,
)
from gebm_kit.core.plugins import installed
from gebm_kit.testing import HostSyncError, check_loss, check_metric
from gebm_kit.testing.registered import CHECKS, check_registered

# --- right components ------------------------------------------------------------------------------------------------


class RightBase(Base):
    def __init__(self) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = 3, (2,)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, z: Tensor) -> Any:
        return self.net(z)


class RightEnergy(Energy):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 1, bias=False))

    def forward(self, x: Tensor) -> Any:
        return self.net(x).squeeze(1)


class RightLoss(Loss):
    def energy_loss(self, model: Any, batch: Batch) -> Any:
        gap = model.energy(batch.x).mean() - model.energy(batch.x_base).mean()
        return LossTerms(gap, {"gap": gap.detach()})

    def base_loss(self, model: Any, batch: Batch) -> Any:
        return LossTerms(model.energy(batch.x_base).mean())


class RightPenalty(Penalty):
    def forward(self, energy: Energy, batch: Batch, generator: torch.Generator) -> Any:
        assert batch.x is not None
        mix = torch.rand(len(batch.x), 1, generator=generator, dtype=batch.x.dtype)
        x = (mix * batch.x + (1 - mix) * batch.x_base).requires_grad_()
        (grad,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
        return grad.square().sum(1).mean()


class Walk(NamedTuple):
    position: Tensor
    value: Tensor


class RightSampler(Sampler):
    def init(self, z: Tensor, potential: Any, generator: torch.Generator) -> Any:
        return Walk(z, potential.value(z))

    def step(self, state: Any, potential: Any, generator: torch.Generator) -> Any:
        proposal = state.position + 0.7 * torch.empty_like(state.position).normal_(generator=generator)
        value = potential.value(proposal)
        error = (value - state.value).nan_to_num(nan=torch.inf, neginf=torch.inf)
        accepted = torch.empty_like(error).uniform_(generator=generator) < (-error).exp()
        moved = Walk(
            torch.where(accepted[:, None], proposal, state.position), torch.where(accepted, value, state.value)
        )
        return moved, Info((-error).exp().clamp(max=1), accepted, error > 1000, 0, forward_evals=1)


class Rows(Split):
    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> Any:
        return self.rows[indices]


class RightDataset(Dataset):
    data_shape = (2,)
    value_range = (-9.0, 9.0)
    num_classes = 2

    def rows(self, name: str) -> Tensor:
        generator = torch.Generator().manual_seed(("train", "valid", "test").index(name))
        return torch.randn(300, 2, generator=generator)

    def split(self, name: str) -> Any:
        return Rows(self.rows(name))

    def labels(self, name: str) -> Any:
        return (self.rows(name)[:, 0] > 0).long()


class RightFeatures(FeatureMap):
    checksum = "mean and largest value"

    def fit(self, dataset: Dataset, device: torch.device) -> None:
        self.scale = dataset.split("train").first(50).std()

    def __call__(self, x: Tensor) -> Any:
        flat = x.detach().flatten(1) / self.scale
        return torch.stack([flat.mean(1), flat.amax(1)], 1)


class RightMetric(Metric):
    def __call__(self, context: EvalContext) -> Any:
        chosen = torch.randperm(len(context.samples), generator=context.generator)[:100]
        gap = context.samples[chosen].mean(0) - context.reference.mean(0)
        return {"distance": float(gap.norm())}


class RightLogger(Logger):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, step: int, scalars: Any) -> None:
        self.steps.append(step)


RIGHT: dict[str, type] = {
    "base": RightBase,
    "energy": RightEnergy,
    "loss": RightLoss,
    "penalty": RightPenalty,
    "sampler": RightSampler,
    "dataset": RightDataset,
    "features": RightFeatures,
    "metric": RightMetric,
    "logger": RightLogger,
}


def run(kind: str, component: Any) -> None:
    options: dict[str, Any] = {}
    if kind == "energy":
        options = {"data_shape": (2,)}
    elif kind == "sampler":
        options = {"targets": ()}
    elif kind in ("features", "metric"):
        options = {"dataset": RightDataset()}
    CHECKS[kind](component, **options)


@pytest.mark.parametrize("kind", RIGHT)
def test_a_right_component_passes_and_is_unchanged(kind: str) -> None:
    torch.manual_seed(0)
    component = RIGHT[kind]()
    state = {k: v.clone() for k, v in component.state_dict().items()} if isinstance(component, nn.Module) else {}
    run(kind, component)
    assert all(torch.equal(value, component.state_dict()[name]) for name, value in state.items())


SLOW = {"classifier", "fid", "inception-score", "sngan", "resnet"}
"""Names of components whose check trains a classifier or runs large networks; they have tests of their own."""


@pytest.mark.parametrize(
    "record",
    [r for r in installed().registry if r.component.name not in SLOW and r.component.kind != "sampler"],
    ids=lambda r: f"{r.component.kind}-{r.component.name}",
)
def test_the_kits_own_components_pass(record: Any) -> None:
    found = check_registered(record)
    assert found.state != "failed", found.detail
    assert (found.detail == "") == (found.state == "ok")


def test_a_metric_on_features_of_a_plugin_that_is_not_installed_is_not_run() -> None:
    record = next(r for r in installed().registry if (r.component.kind, r.component.name) == ("metric", "cmmd"))
    found = check_registered(record)
    assert found.state == "not run"
    assert "features 'clip' needs the plugin 'gebm-kit-inception', which is not installed" in found.detail


# --- wrong twins -----------------------------------------------------------------------------------------------------


def twin(kind: str, **changes: Any) -> Any:
    """Make a right component of ``kind``, of a class that differs by ``changes``."""
    torch.manual_seed(0)
    place = {"_place": lambda self: None}  # what has a line, for the message
    return type("Odd", (RIGHT[kind],), {"__module__": __name__, **place, **changes})()


class FloatInFloat64(RightBase):
    def forward(self, z: Tensor) -> Any:
        return super().forward(z).float()


class HiddenWeights(RightEnergy):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x + self.calls) if hasattr(self, "calls") else super().forward(x)

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        self.calls = 1.0
        return super().load_state_dict(*arguments, **options)


def noisy(self: Any, x: Tensor) -> Any:
    return self.net(x).sum(1) + torch.rand(len(x), dtype=x.dtype)


def without_gradient(self: Any, x: Tensor) -> Any:
    with torch.no_grad():
        return RightEnergy.forward(self, x)


def in_place(self: Any, x: Tensor) -> Any:
    x += 1
    return self.net(x).sum(1)


def walk(**changes: Any) -> Any:
    """Make ``step`` of a sampler whose Info differs by ``changes``, functions of the right Info."""

    def step(self: Any, state: Any, potential: Any, generator: torch.Generator) -> Any:
        moved, info = RightSampler.step(self, state, potential, generator)
        return moved, info._replace(**{name: change(info) for name, change in changes.items()})

    return step


def greedy(self: Any, state: Any, potential: Any, generator: torch.Generator) -> Any:
    moved, info = RightSampler.step(self, state, potential, generator)
    return (moved, info) if bool(info.accepted.any()) else (state, info)


def terms(value: Any, **metrics: Any) -> Any:
    return lambda self, model, batch: LossTerms(value(model, batch), metrics)


def gap(model: Any, batch: Any) -> Any:
    return model.energy(batch.x).mean() - model.energy(batch.x_base).mean()


def shuffled(self: Any, name: str) -> Tensor:
    return torch.randn(300, 2)


def measured(function: Any) -> dict[str, Any]:
    """Return what turns `RightDataset` into a table whose measurements are three times what a model sees."""
    return {"columns": ("a", "b"), "log_det": -2.0, "standardised": lambda s, x: (x / 3).float(), "measured": function}


WRONG: dict[str, tuple[Any, str]] = {
    "base: no latent_dim": ({"latent_dim": property(lambda s: None, lambda s, v: None)}, "latent_dim"),
    "base: shape": ({"forward": lambda s, z: s.net(z)[:, :1]}, r"returns shape \(5, 1\)"),
    "base: tuple": ({"forward": lambda s, z: (s.net(z), z)}, "returns tuple"),
    "base: NaN": ({"forward": lambda s, z: s.net(z).log()}, "not finite"),
    "base: rows": ({"forward": lambda s, z: s.net(z - z.mean(0))}, "on the row alone"),
    "base: detach": ({"forward": lambda s, z: s.net(z).detach()}, "no gradient"),
    "base: rounded": ({"forward": lambda s, z: (9 * s.net(z)).round()}, "is zero for"),
    "base: float": (FloatInFloat64, "float64 input must give"),
    "base: raises": ({"forward": lambda s, z: s.net(z.flatten())}, "failed at .*RuntimeError"),
    "base: frozen": ({"forward": lambda s, z: z[:, :2] * s.net[0].bias.detach()[0]}, "parameters"),
    "energy: column": ({"forward": lambda s, x: s.net(x)}, r"shape \(5,\)"),
    "energy: mean": ({"forward": lambda s, x: s.net(x).mean()}, "one number per row"),
    "energy: noise": ({"forward": noisy}, "called again in eval mode"),
    "energy: in place": ({"forward": in_place}, "changes its input in place"),
    "energy: clamped": ({"forward": lambda s, x: s.net(x.clamp(-4, 4)).squeeze(1)}, "zero far out"),
    "energy: state": (HiddenWeights, "state_dict does not hold everything"),
    "energy: no_grad": ({"forward": without_gradient}, "cut off"),
    "loss: tensor": ({"energy_loss": lambda s, m, b: gap(m, b)}, "must return LossTerms"),
    "loss: sign": ({"energy_loss": terms(lambda m, b: -gap(m, b))}, "is its sign wrong"),
    "loss: NaN": ({"energy_loss": terms(lambda m, b: gap(m, b) * torch.nan)}, "must be finite"),
    "loss: float metric": ({"energy_loss": terms(gap, gap=0.5)}, "must be a scalar tensor"),
    "loss: on the base": ({"energy_loss": terms(lambda m, b: gap(m, b) - m.energy(m.base(b.z)).mean())}, "on the base"),
    "loss: cut": ({"energy_loss": terms(lambda m, b: gap(m, b).detach())}, "carries no gradient"),
    "loss: changes x": ({"energy_loss": terms(lambda m, b: gap(m, b) + b.x.mul_(2).sum() * 0)}, "changes batch.x"),
    "loss: unknown field": ({"needs": frozenset({"x", "y"})}, "needs has y"),
    "loss: negatives": ({"needs": frozenset({"x", "negatives"})}, "must be NegativeSettings"),
    "loss: base cut": ({"base_loss": terms(lambda m, b: m.energy(b.x_base.detach()).mean())}, "base_loss"),
    "loss: undeclared": ({"base_loss": terms(lambda m, b: m.energy(b.x_base - b.x).mean())}, "failed at"),
    "loss: hook": ({"after_energy_step": lambda s, m: m["nothing"]}, "KeyError"),
    "loss: estimate": ({"log_partition_estimate": lambda s: 0.5}, "log_partition_estimate"),
    "penalty: rows": ({"forward": lambda s, e, b, g: e(b.x)}, "floating-point scalar"),
    "penalty: cut": ({"forward": lambda s, e, b, g: e(b.x).mean().detach()}, "create_graph"),
    "penalty: own noise": ({"forward": lambda s, e, b, g: e(b.x + torch.randn_like(b.x)).mean()}, "two values"),
    "penalty: every": ({"every": 0}, "every must be a whole number"),
    "penalty: in place": ({"forward": lambda s, e, b, g: e(b.x.add_(1)).mean()}, "changes batch.x"),
    "sampler: tuple": ({"init": lambda s, z, p, g: (z, p.value(z))}, "NamedTuple"),
    "sampler: column": ({"step": walk(accepted=lambda i: i.accepted[:, None])}, "shape must be"),
    "sampler: above one": ({"step": walk(acceptance=lambda i: i.acceptance + 1)}, "outside"),
    "sampler: counts": ({"step": walk(forward_evals=lambda i: 7)}, "Info reports"),
    "sampler: own noise": ({"init": lambda s, z, p, g: Walk(w := z + torch.randn_like(z), p.value(w))}, "same seed"),
    "sampler: waits": ({"step": greedy}, "waits for the device"),
    "dataset: numpy": ({"rows": lambda s, n: RightDataset.rows(s, n).numpy()}, "ndarray"),
    "dataset: range": ({"value_range": (-1.0, 1.0)}, "states the value_range"),
    "dataset: leak": ({"rows": lambda s, n: RightDataset.rows(s, "train")}, "share no row"),
    "dataset: labels": ({"num_classes": 1}, "they must lie in 0 to 0"),
    "dataset: random": ({"rows": shuffled, "labels": lambda s, n: torch.zeros(300).long()}, "second call"),
    "dataset: shape": ({"data_shape": (3,)}, r"it must be \(128, 3\)"),
    "dataset: whole": ({"rows": lambda s, n: RightDataset.rows(s, n).long()}, "floating-point"),
    "dataset: measured, shape": (measured(lambda s, y: y[:, 0]), r"numbers of shape \(8, 2\)"),
    "dataset: measured, names": ({**measured(lambda s, y: y), "columns": ("a", 2)}, "tuple of 2 names"),
    "dataset: measured, in place": (measured(lambda s, y: y.mul_(2)), "measured changes the rows"),
    "dataset: measured, together": (measured(lambda s, y: y - y.mean(0)), "other values if others come with it"),
    "dataset: measured, inverse": (measured(lambda s, y: 2 * y), "not the inverse of standardised: in column 'a'"),
    "features: flat": ({"__call__": lambda s, x: x.flatten()}, r"rows \(16, F\)"),
    "features: graph": ({"__call__": lambda s, x: x.flatten(1) * 2}, "autograd graph"),
    "features: batch": ({"__call__": lambda s, x: x.detach() - x.detach().mean(0)}, "on the row alone"),
    "features: checksum": ({"checksum": ""}, "checksum must be a text"),
    "features: in place": ({"__call__": lambda s, x: x.detach().mul_(2)}, "changes its input x"),
    "metric: tensor": ({"__call__": lambda s, c: {"d": c.samples.mean(0)}}, "floats by name"),
    "metric: number": ({"__call__": lambda s, c: 0.5}, "floats by name"),
    "metric: nothing": ({"__call__": lambda s, c: {}}, "returns no value"),
    "metric: direction": ({"lower_is_better": False}, "lower_is_better is False"),
    "metric: own noise": ({"__call__": lambda s, c: {"d": float(torch.rand(()))}}, "context.generator"),
    "metric: sorts": ({"__call__": lambda s, c: {"d": float(c.samples.sub_(1)[0, 0])}}, "changes the draws"),
    "metric: protocol": ({"protocol": lambda s, c: {"n": torch.ones(2)}}, "written as JSON"),
    "metric: least_rows": ({"least_rows": "many"}, "least_rows"),
    "logger: needs loss": ({"log": lambda s, n, v: v["energy_loss"]}, "KeyError"),
    "logger: not finite": ({"log": lambda s, n, v: [int(x) for x in v.values()]}, "ValueError|OverflowError"),
    "logger: pops": ({"log": lambda s, n, v: v.pop("kale", None)}, "log changes what it is given"),
    "logger: config": ({"log_config": lambda s, c: c["base"].pop("name")}, "log_config changes"),
    "logger: picture": ({"log_image": lambda s, n, w, p: p.unlink()}, "removes the picture"),
    "logger: check": ({"check": lambda self: None}, "must be a class method"),
    "logger: close": ({"close": lambda s: 1 / 0}, "ZeroDivisionError"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_twin_fails_and_is_named(name: str) -> None:
    kind, (changes, message) = name.partition(":")[0], WRONG[name]
    component = changes() if isinstance(changes, type) else twin(kind, **changes)
    with pytest.raises(AssertionError, match=message) as caught:
        run(kind, component)
    text = str(caught.value)
    assert f"the {kind} '{type(component).__name__}' (module " in text
    assert "test_conformance.py, line" in text
    assert "\n" not in text


def test_a_table_that_goes_there_and_back_passes() -> None:
    run("dataset", twin("dataset", **measured(lambda s, y: 3 * y.double())))


def test_a_failure_keeps_its_kind() -> None:
    with pytest.raises(HostSyncError):
        run("sampler", twin("sampler", step=greedy))


def test_what_a_check_needs_is_said() -> None:
    with pytest.raises(UsageError, match="needs a base with a density"):
        check_loss(build("loss", ComponentNode("ml")))
    with pytest.raises(UsageError, match="a metric of the model itself"):
        check_metric(build("metric", ComponentNode("kale")))


# --- plugins check ---------------------------------------------------------------------------------------------------

PLUGIN = """
import torch
from gebm_kit.core.interfaces import Energy, Metric, Logger

class Right(Metric):
    def __call__(self, context):
        print("a metric that talks")
        return {"d": float((context.samples.mean(0) - context.reference.mean(0)).norm())}

class Wrong(Energy):
    def forward(self, x):
        return x

class Leaves(Metric):
    def __call__(self, context):
        raise SystemExit(5)

class Needs(Logger):
    def __init__(self, where: str) -> None: pass
    def log(self, step, scalars): pass

class Keywords(Metric):
    def __init__(self, **kwargs): pass
    def __call__(self, context): return {"d": 0.0}
"""

HOOK = """
import gebm_kit
@gebm_kit.hookimpl
def gebm_components():
    kinds = dict(Right="metric", Wrong="energy", Leaves="metric", Needs="logger", Keywords="metric", Missing="loss")
    return [gebm_kit.Component(kind, name.lower(), f"checked_parts:{name}", "s") for name, kind in kinds.items()]
"""


class Finder:
    version: ClassVar = "1.0"
    metadata: ClassVar = {"Name": "checked"}


def test_plugins_check_runs_every_check_that_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    import json
    from importlib.metadata import EntryPoint

    from gebm_kit.cli.app import main
    from gebm_kit.core import plugins

    (tmp_path / "checked_parts.py").write_text(PLUGIN)
    (tmp_path / "checked_plugin.py").write_text(HOOK)
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("main", "checked_plugin", "gebm_kit")
    vars(entry).update(dist=Finder())
    found = plugins.discover({}, [entry])
    for module in (
        "gebm_kit.core.plugins",
        "gebm_kit.cli.plugin_check",
        "gebm_kit.core.attribution",
        "gebm_kit.config.build",
    ):
        monkeypatch.setattr(f"{module}.installed", lambda: found)
    assert main(["plugins", "check", "--json"]) == PluginError.exit_code
    (plugin,) = json.loads(capfd.readouterr().out)["plugins"]
    states = {component["name"]: (component["state"], component["detail"]) for component in plugin["components"]}
    assert {name: state for name, (state, _) in states.items()} == {
        "right": "ok", "wrong": "failed", "leaves": "failed", "needs": "not run", "keywords": "failed", "missing": "failed",
    }  # fmt: skip
    assert "must return one number per row" in states["wrong"][1]
    assert "SystemExit: 5" in states["leaves"][1]
    assert states["needs"][1].startswith("needs where")
    assert "not **kwargs" in states["keywords"][1]
    assert "can't be imported from checked_parts:Missing" in states["missing"][1]
    assert main(["plugins", "check", "checked", "--quiet"]) == PluginError.exit_code
    shown = capfd.readouterr().out
    assert "energy  wrong" in shown
    assert main(["plugins", "check", "chekced"]) == 2
    assert "did you mean checked?" in capfd.readouterr().err
