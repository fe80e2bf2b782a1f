"""What all checks share: the constructor's signature, and failures that name the component, its package, file and line."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

from gebm_kit.config.conform import conform
from gebm_kit.core.attribution import describe, plugin_error
from gebm_kit.core.components import KINDS, Injected, OfKind, Parameter, Range, describe_type, parameters
from gebm_kit.core.contracts import check_kind
from gebm_kit.core.errors import GebmKitError, UsageError

WRITABLE = (int, float, bool, str, Path, type(None), Any)
"""Types of values that a recipe can write."""

P = ParamSpec("P")
R = TypeVar("R")


def check_signature(component: object, kind: str = "") -> None:
    """Check a component's constructor, whose signature is the schema of its parameters in recipes.

    Every parameter must be named and annotated with a type that a recipe can write, with valid marks (`Range`, `Injected`,
    `OfKind`), and every default must be a value that a recipe may give. All problems come in one message.

    Args:
        component: the component, or its class.
        kind: its kind, for a component that does not derive from the class of its kind.

    Raises:
        AssertionError: there are problems.

    Example:
        >>> from gebm_kit.samplers.mala import Mala
        >>> check_signature(Mala)
    """
    cls = component if isinstance(component, type) else type(component)
    try:
        schema = parameters(cls)
    except GebmKitError as error:
        raise AssertionError(
            f"{describe(cls, kind)} has a signature that recipes can't use: {error.message}"
        ) from error
    problems = [problem for parameter in schema.values() for problem in _problems(parameter)]
    problems += [problem for name, hint in _hints(cls).items() if name in schema for problem in _marks(name, hint)]
    assert not problems, f"{describe(cls, kind)} has a signature that recipes can't use: {'; '.join(problems)}"


def _problems(parameter: Parameter) -> list[str]:
    """Return what is wrong with the type and the default of a parameter."""
    name, default = parameter.name, parameter.default
    if name == "name":
        return ["a parameter can't be called 'name', which is the component's own in a recipe"]
    if parameter.injected:
        return []
    if parameter.kind is not None:
        required = default in (None, inspect.Parameter.empty)
        return [] if required else [f"{name} is a component, so its default can only be None, and it is {default!r}"]
    found = []
    if not _writable(parameter.annotation):
        found.append(f"{name} is annotated {describe_type(parameter.annotation)}, which a recipe can't write")
    elif default is not inspect.Parameter.empty:
        try:
            conform(list(default) if isinstance(default, tuple) else default, parameter.annotation, parameter.range)
        except ValueError as error:
            found.append(f"the default of {name} is not allowed: {error}")
    return found


def _writable(annotation: Any) -> bool:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _writable(args[0])
    if origin is Literal:
        return all(value is None or isinstance(value, str | int | bool) for value in args)
    if origin in (list, tuple, typing.Union, types.UnionType):
        return all(_writable(arg) for arg in args if arg is not Ellipsis)
    return annotation in WRITABLE or annotation in (list, tuple)


def _hints(cls: type) -> dict[str, Any]:
    """Return the annotations of the constructor that `parameters` reads."""
    owner = next(base for base in cls.__mro__ if "__init__" in vars(base))
    constructor: Any = vars(owner)["__init__"]
    return typing.get_type_hints(constructor, include_extras=True) if inspect.isfunction(constructor) else {}


def _marks(name: str, annotation: Any) -> list[str]:
    """Return what is wrong with the marks of an annotation, wherever they are in it."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is not Annotated:
        return [problem for arg in args if origin is not Literal for problem in _marks(name, arg)]
    found = []
    for mark in args[1:]:
        if mark is Range or mark is OfKind:
            found.append(f"{name} is marked with the class {mark.__name__}; write {mark.__name__}(...)")
        elif isinstance(mark, OfKind) and mark.kind not in KINDS:
            found.append(f"{name} is marked OfKind({mark.kind!r}); kinds are {', '.join(KINDS)}")
        elif isinstance(mark, Range):
            found += _range_problems(name, mark, args[0])
        elif isinstance(mark, type) and issubclass(mark, Injected) and mark is not Injected:
            found.append(f"{name} is marked {mark.__name__}; write Injected")
    return [*found, *_marks(name, args[0])]


def _range_problems(name: str, mark: Range, annotation: Any) -> list[str]:
    options = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    if not {int, float} & {annotation, *options} and typing.get_origin(annotation) not in (list, tuple):
        return [f"{name} has a range but is annotated {describe_type(annotation)}, which has no order"]
    try:
        empty = mark.low is not None and mark.high is not None
        empty = empty and (mark.low > mark.high or (mark.low == mark.high and (mark.low_open or mark.high_open)))  # type: ignore[operator]
        return [f"{name} has the range {mark}, which is empty"] if empty else []
    except TypeError:
        return [f"{name} has the range ({mark.low!r}, {mark.high!r}), whose ends are not numbers"]


def _failure(component: object, kind: str, error: Exception) -> AssertionError:
    """Return the failure to report for an exception in a check, with the component's name at its front."""
    cls, words = AssertionError, str(error)
    if isinstance(error, AssertionError):
        cls = type(error)
    elif isinstance(error, GebmKitError):
        words = f"{error.message.rstrip('.')}. {error.hint}" if error.hint else error.message
    else:
        blamed = plugin_error(error)
        words = f"failed: {type(error).__name__}: {error}" if blamed is None else blamed.message
    name, words = describe(component, kind), " ".join(words.split())
    return cls(words if name in words else f"{name}: {words[:1000]}")


def conformance(kind: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a check of components of ``kind``: class and signature come first, and failures name the component.

    Every failure is an AssertionError (a subclass stays what it is). That includes errors of the kit about the component,
    and exceptions that pass through the component's code.
    """

    def decorate(check: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(check)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            component: object = args[0] if args else next(iter(kwargs.values()))
            try:
                check_kind(kind, component)
                check_signature(component, kind)
                return check(*args, **kwargs)
            except UsageError:
                raise  # it can't be checked with these arguments
            except Exception as error:
                raise _failure(component, kind, error) from error

        return checked

    return decorate
