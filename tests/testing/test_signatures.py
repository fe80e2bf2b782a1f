"""The signature of a component's constructor: every check sees what recipes and `describe` would refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch

from gebm_kit import testing
from gebm_kit.core.components import KINDS, Injected, OfKind, Range
from gebm_kit.core.interfaces import Base, Dataset, Energy, FeatureMap, Logger, Loss, Metric, Penalty, Sampler
from gebm_kit.core.plugins import installed
from gebm_kit.testing.registered import CHECKS


class Right:
    def __init__(
        self,
        size: Annotated[int, Range(1, None)] = 3,
        rate: Annotated[float | None, Range(0, 1)] = None,
        widths: list[int] | None = None,
        corners: tuple[float, ...] = (0.0, 1.0),
        mode: Literal["a", "b"] = "a",
        path: Path | str = "x",
        inner: Annotated[Base | None, OfKind("base")] = None,
        *,
        needed: float,
        data_shape: Annotated[tuple[int, ...], Injected],
        value_range: Annotated[tuple[float, float] | None, Injected] = None,
    ) -> None:
        pass


class Keywords:
    def __init__(self, size: int = 3, **kwargs: int) -> None:
        pass


class Positions:
    def __init__(self, *sizes: int) -> None:
        pass


class PositionalOnly:
    def __init__(self, size: int, /) -> None:
        pass


class Unannotated:
    def __init__(self, size=3) -> None:  # type: ignore[no-untyped-def]
        pass


class Unknown:
    def __init__(self, size: NoSuchType = 3) -> None:  # type: ignore[name-defined]  # noqa: F821
        pass


class Unwritable:
    def __init__(self, activation: Callable[[int], int] = abs, table: dict[str, int] | None = None) -> None:  # type: ignore[assignment]
        pass


class OutOfRange:
    def __init__(self, rate: Annotated[float, Range(0, 1)] = 1.5) -> None:
        pass


class OnTheOpenEnd:
    def __init__(self, rate: Annotated[float, Range(0, None, low_open=True)] = 0.0) -> None:
        pass


class OfAnotherType:
    def __init__(self, size: int = None, rate: float = "fast") -> None:  # type: ignore[assignment]  # noqa: RUF013
        pass


class NotAChoice:
    def __init__(self, mode: Literal["a", "b"] = "c") -> None:  # type: ignore[assignment]
        pass


class UnknownInjection:
    def __init__(self, *, batch_size: Annotated[int, Injected]) -> None:
        pass


class UnknownKind:
    def __init__(self, inner: Annotated[Any, OfKind("sampelr")] = None) -> None:
        pass


class ClassAsRange:
    def __init__(self, rate: Annotated[float, Range] = 0.5) -> None:
        pass


class EmptyRange:
    def __init__(self, rate: Annotated[float, Range(1, 0)]) -> None:
        pass


class RangeOfText:
    def __init__(self, word: Annotated[str, Range(0, 1)] = "a") -> None:
        pass


class ComponentAsDefault:
    def __init__(self, inner: Annotated[Any, OfKind("base")] = "mlp") -> None:
        pass


class Called:
    def __init__(self, name: str = "x") -> None:
        pass


WRONG: dict[type, str] = {
    Keywords: r"named parameters only, not \*\*kwargs",
    Positions: r"named parameters only, not \*sizes",
    PositionalOnly: r"named parameters only, not positional-only size",
    Unannotated: r"constructor parameter 'size' has no annotation",
    Unknown: r"annotations can't be read: name 'NoSuchType' is not defined",
    Unwritable: r"activation is annotated .*Callable.*, which a recipe can't write; table is annotated",
    OutOfRange: r"the default of rate is not allowed: .*1.5",
    OnTheOpenEnd: r"the default of rate is not allowed: .*> 0",
    OfAnotherType: r"the default of size is not allowed: .*; the default of rate is not allowed: 'fast'",
    NotAChoice: r"the default of mode is not allowed: .*'c'",
    UnknownInjection: r"nothing is injected as 'batch_size'",
    UnknownKind: r"inner is marked OfKind\('sampelr'\)",
    ClassAsRange: r"rate is marked with the class Range; write Range\(...\)",
    EmptyRange: r"rate has the range in \[1, 0\], which is empty",
    RangeOfText: r"word has a range but is annotated str, which has no order",
    ComponentAsDefault: r"inner is a component, so its default can only be None",
    Called: r"a parameter can't be called 'name'",
}

FACES = {
    "base": Base,
    "energy": Energy,
    "loss": Loss,
    "penalty": Penalty,
    "sampler": Sampler,
    "dataset": Dataset,
    "features": FeatureMap,
    "metric": Metric,
    "logger": Logger,
}


def test_a_right_signature_passes() -> None:
    testing.check_signature(Right)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda cls: cls.__name__)
def test_a_wrong_signature_is_named(wrong: type) -> None:
    with pytest.raises(AssertionError, match=WRONG[wrong]) as caught:
        testing.check_signature(wrong)
    assert "test_signatures.py, line" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [Keywords, Unannotated, OutOfRange])
def test_the_check_of_every_kind_sees_the_signature(kind: str, wrong: type) -> None:
    face = FACES[kind]
    abstract = {name: (lambda *_: None) for name in getattr(face, "__abstractmethods__", ())}
    made = type("Odd", (face,), {**abstract, "__init__": vars(wrong)["__init__"], "__module__": wrong.__module__})
    component = made.__new__(made)
    if isinstance(component, torch.nn.Module):
        torch.nn.Module.__init__(component)
    arguments = [component, (2,)] if kind == "energy" else [component]
    with pytest.raises(AssertionError, match="has a signature that recipes can't use") as caught:
        CHECKS[kind](*arguments)
    assert str(caught.value).startswith(f"the {kind} 'Odd' (")
    with pytest.raises(AssertionError, match=f"must derive from gebm_kit.core.interfaces.{face.__name__}"):
        CHECKS[kind](*[object(), *arguments[1:]])


def test_every_registered_component_has_a_right_signature() -> None:
    for record in installed().registry:
        testing.check_signature(record.load(), record.component.kind)
