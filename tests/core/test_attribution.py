"""Whose an error is: the component that an exception passes through, by name, package, file and line."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gebm_kit.bases.mlp import MlpBase
from gebm_kit.core.attribution import attributed, describe, is_foreign, is_out_of_memory, plugin_error, raised_by
from gebm_kit.core.contracts import check_metric_values
from gebm_kit.core.errors import Interrupted, PluginError, UsageError
from gebm_kit.core.interfaces import Energy, EvalContext, Metric
from gebm_kit.core.model import GEBM
from gebm_kit.core.sampling import Sampler
from gebm_kit.energies.mlp import MlpEnergy


class Failing(Energy):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no\n  such luck")


class Odd(Metric):
    def __call__(self, context: EvalContext) -> Any:
        return {}


def raised(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def test_an_exception_that_passes_through_a_component_is_its_fault() -> None:
    error = raised(lambda: Failing()(torch.zeros(2, 2)))
    found = plugin_error(error)
    assert isinstance(found, PluginError)
    line = inspect.getsourcelines(Failing)[1]
    assert found.message.startswith(
        f"the energy 'Failing' (module {__name__}, {__file__}, line {line}) failed at {__file__}"
    )
    assert found.message.endswith("RuntimeError: no such luck")
    assert "--resume" not in found.hint
    with pytest.raises(PluginError, match="Failing") as caught, attributed():
        Failing()(torch.zeros(2, 2))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_method_of_a_base_class_belongs_to_the_component_too() -> None:
    class Walk(Sampler):
        def init(self, z: Tensor, potential: Any, generator: torch.Generator) -> Any: ...
        def step(self, state: Any, potential: Any, generator: torch.Generator) -> Any: ...

    found = plugin_error(raised(lambda: Walk().tuned(pace=1.0)))
    assert found is not None
    assert "the sampler 'Walk'" in found.message
    assert "has no parameter 'pace'" in found.message


def test_what_the_kit_can_not_use_is_the_fault_of_the_one_who_gave_it() -> None:
    def score(metric: Metric) -> float:
        return float("".join(metric(None)))  # type: ignore[arg-type]

    vars(sys.modules["gebm_kit"])  # the caller below is made the kit's own
    code = {"__name__": "gebm_kit.engine.some"}
    exec(
        inspect.getsource(score).replace("    def", "def").replace("        return", "    return"),
        {**globals(), **code},
        code,
    )
    found = plugin_error(raised(lambda: code["score"](Odd())))  # type: ignore[operator]
    assert found is not None
    assert "the metric 'Odd'" in found.message
    assert "gave gebm-kit what it can't use" in found.message


def test_faults_of_the_kit_are_its_own() -> None:
    assert plugin_error(raised(lambda: MlpEnergy(data_shape=(2,))(torch.zeros(2, 3)))) is None
    assert plugin_error(raised(lambda: [][1])) is None
    assert plugin_error(UsageError("in words")) is None
    assert not is_foreign(MlpEnergy)
    assert describe(MlpEnergy).startswith("the energy 'mlp' (gebm-kit ")


def test_memory_is_nobodys_fault() -> None:
    class Large(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return torch.empty(2**60)

    error = raised(lambda: Large()(torch.zeros(1)))
    assert is_out_of_memory(error)
    assert plugin_error(error) is None


def test_metric_values() -> None:
    check_metric_values(Odd(), {"a": 1.0, "b": 2})
    for wrong in ({"a": torch.zeros(())}, {"a": True}, {1: 0.0}, [1.0]):
        with pytest.raises(PluginError, match="the metric 'Odd' .* must return floats by name"):
            check_metric_values(Odd(), wrong)


class Leaving(Energy):
    def forward(self, x: Tensor) -> Tensor:
        raise GeneratorExit


def test_an_exception_that_is_no_exception_is_a_fault_too() -> None:
    with pytest.raises(PluginError, match="the energy 'Leaving' .* GeneratorExit"), attributed():
        Leaving()(torch.zeros(1))


def test_a_key_pressed_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopping(Energy):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    error = raised(lambda: Stopping()(torch.zeros(1)))
    assert plugin_error(error) is None
    monkeypatch.setattr("signal.getsignal", lambda signum: lambda *args: None)  # the kit handles SIGINT: code raised it
    assert "the energy 'Stopping'" in str(plugin_error(error))
    assert plugin_error(Interrupted("stopped", signum=2)) is None


def test_a_component_in_use_is_named_if_nothing_else_can_be() -> None:
    """An error of torch deep inside the kit's own code, with a component of a plugin inside an object of the kit."""
    model = GEBM(MlpBase(latent_dim=2, data_shape=(2,)), Failing())
    code: dict[str, Any] = {"__name__": "gebm_kit.engine.some"}
    exec(
        "def step(model):\n    outer(model)\ndef outer(model):\n    inner(len)\ndef inner(n): deep(n)\ndef deep(n): n()",
        code,
    )
    found = plugin_error(raised(lambda: code["step"](model)))
    assert found is not None
    assert "the energy 'Failing'" in found.message
    assert "was in use when gebm-kit failed" in found.message


def test_an_error_of_the_kit_that_a_component_raises_is_said_to_be_its() -> None:
    class Refusing(Energy):
        def forward(self, x: Tensor) -> Tensor:
            raise UsageError("in words")

    error = raised(lambda: Refusing()(torch.zeros(1)))
    assert isinstance(error, UsageError)
    assert raised_by(error).startswith("Raised by the energy 'Refusing'")
    assert raised_by(UsageError("in words")) == ""
