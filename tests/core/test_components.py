"""Component records, parameter schemas and the registry."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pytest
from torch import nn

from gebm_kit.core.components import (
    BUILTIN,
    INJECTED,
    KINDS,
    Component,
    Injected,
    Range,
    Registry,
    canonical,
    check_arguments,
    describe_type,
    parameters,
)
from gebm_kit.core.errors import PluginError, RecipeError, UsageError
from gebm_kit.core.plugins import discover


def component(name: str = "mine", kind: str = "sampler", target: str = "pathlib:Path") -> Component:
    return Component(kind, name, target, "one line")


class Example:
    def __init__(
        self,
        step_size: Annotated[float, Range(0, None, low_open=True)] = 0.1,
        size: Annotated[int, Range(1, 8)] = 2,
        mode: Literal["fast", "slow"] = "fast",
        hidden: list[int] = [1],  # noqa: B006
        name: str | None = None,
        *,
        count: int,
        data_shape: Annotated[tuple[int, ...], Injected],
    ) -> None: ...


# --- records ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "samplr"}, "did you mean sampler"),
        ({"name": ""}, "must be a word"),
        ({"name": "a b"}, "must be a word"),
        ({"name": "dist:name"}, "must be a word"),
        ({"name": "a=b"}, "must be a word"),
        ({"name": 3}, "must be a word"),
        ({"target": "no_colon"}, "package.module:ClassName"),
        ({"target": "a..b:C"}, "package.module:ClassName"),
        ({"target": "a:b.c"}, "package.module:ClassName"),
        ({"target": "os;x:C"}, "package.module:ClassName"),
        ({"summary": " "}, "summary of one line"),
        ({"summary": "two\nlines"}, "summary of one line"),
    ],
)
def test_a_malformed_record_is_refused(changes: dict[str, Any], match: str) -> None:
    fields = {"kind": "sampler", "name": "mine", "target": "a.b:C", "summary": "one line"} | changes
    with pytest.raises(ValueError, match=match):
        Component(**fields)


def test_range_includes_its_ends_unless_open_and_never_what_is_not_finite() -> None:
    assert 0 in Range(0, 1)
    assert 1 in Range(0, 1)
    assert 0 not in Range(0, 1, low_open=True)
    assert 1 not in Range(0, 1, high_open=True)
    assert -1e300 in Range(None, 0)
    assert math.nan not in Range()
    assert math.inf not in Range(0, None)


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Range(0, None), ">= 0"),
        (Range(0, None, low_open=True), "> 0"),
        (Range(None, 2), "<= 2"),
        (Range(None, 2, high_open=True), "< 2"),
        (Range(0, 1, high_open=True), "in [0, 1)"),
        (Range(0, 1, low_open=True), "in (0, 1]"),
        (Range(), "any finite number"),
    ],
)
def test_range_in_words(interval: Range, text: str) -> None:
    assert str(interval) == text


# --- parameters ------------------------------------------------------------------------------------------------------


def test_parameters_are_read_off_the_constructor() -> None:
    schema = parameters(Example)
    assert list(schema) == ["step_size", "size", "mode", "hidden", "name", "count", "data_shape"]
    assert schema["step_size"].range == Range(0, None, low_open=True)
    assert schema["step_size"].default == 0.1
    assert [name for name, p in schema.items() if p.required] == ["count"]
    assert [name for name, p in schema.items() if p.injected] == ["data_shape"]
    assert [p.type_name for p in schema.values()] == [
        "float",
        "int",
        "'fast' or 'slow'",
        "list of int",
        "str or null",
        "int",
        "list of int",
    ]


def test_describe_type_of_classes_and_annotations() -> None:
    assert describe_type(Example) == "Example"
    assert describe_type(Annotated[int, Range(1)] | None) == "int or null"


def test_a_class_without_constructor_has_no_parameters() -> None:
    class Plain: ...

    class Energy(nn.Module): ...

    assert parameters(Plain) == {}
    assert parameters(Energy) == {}


def test_a_constructor_that_hides_its_parameters_is_refused() -> None:
    class Kwargs:
        def __init__(self, **rest: int) -> None: ...

    class Args:
        def __init__(self, *rest: int) -> None: ...

    class Positional:
        def __init__(self, size: int, /) -> None: ...

    class Bare:
        def __init__(self, size=1) -> None: ...  # type: ignore[no-untyped-def]

    class Unknown:
        def __init__(self, data_shapes: Annotated[int, Injected]) -> None: ...

    class Broken:
        def __init__(self, size: "NoSuchType") -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037

    for target, match in [
        (Kwargs, r"not \*\*rest"),
        (Args, r"not \*rest"),
        (Positional, "positional-only size"),
        (Bare, "'size' has no annotation"),
        (Unknown, "did you mean data_shape"),
        (Broken, "can't be read"),
    ]:
        with pytest.raises(PluginError, match=match):
            parameters(target)


def test_check_arguments_holds_values_against_the_annotations() -> None:
    example = Example(count=1, data_shape=(2,))
    check_arguments(example, step_size=0.5, size=8, mode="slow")
    for values, match in [
        ({"step_size": 0.0}, "must be a number > 0"),
        ({"step_size": math.nan}, "must be a number > 0"),
        ({"step_size": "0.1"}, "must be a number > 0"),
        ({"size": 2.5}, "whole number"),
        ({"size": True}, "whole number"),
        ({"mode": "fats"}, "did you mean fast"),
    ]:
        with pytest.raises(UsageError, match=match):
            check_arguments(example, **values)


# --- registry --------------------------------------------------------------------------------------------------------


def test_a_short_name_works_while_it_is_unique() -> None:
    registry = Registry()
    registry.add(component(), "one")
    assert registry.get("sampler", "mine").distribution == "one"
    registry.add(component(), "two")
    with pytest.raises(RecipeError, match="one:mine, two:mine"):
        registry.get("sampler", "mine")
    assert registry.get("sampler", "two:mine").distribution == "two"
    assert [registry.short_name(r) for r in registry] == ["one:mine", "two:mine"]


def test_kinds_have_separate_names() -> None:
    registry = Registry()
    registry.add(component(kind="base"), "one")
    registry.add(component(kind="energy"), "two")
    assert registry.get("base", "mine").distribution == "one"
    assert len(registry) == 2


def test_a_builtin_keeps_its_short_name() -> None:
    registry = Registry()
    registry.add(component(), "aaa")
    registry.add(component(), BUILTIN)
    registry.add(component(), "zzz")
    assert registry.get("sampler", "mine").distribution == BUILTIN
    assert registry.get("sampler", "zzz:mine").distribution == "zzz"
    assert {registry.short_name(r) for r in registry} == {"mine", "aaa:mine", "zzz:mine"}


def test_a_distribution_can_not_register_a_name_twice() -> None:
    registry = Registry()
    registry.add(component(), "My_Plugin")
    with pytest.raises(ValueError, match="registered twice"):
        registry.add(component(), "my-plugin")


def test_a_distribution_is_found_however_its_name_is_written() -> None:
    registry = Registry()
    registry.add(component(), "My.Plugin")
    assert canonical("My.Plugin") == canonical("my_plugin") == "my-plugin"
    assert registry.get("sampler", "my-plugin:mine").distribution == "My.Plugin"


def test_a_misspelt_name_gets_the_nearest_ones() -> None:
    registry = Registry()
    for name in ("mala", "hmc"):
        registry.add(component(name), BUILTIN)
    with pytest.raises(RecipeError, match="did you mean mala") as caught:
        registry.get("sampler", "malla")
    assert caught.value.exit_code == 2
    with pytest.raises(RecipeError, match="allowed: hmc, mala"):
        registry.get("sampler", "zzzzz")


def test_a_name_of_a_plugin_that_is_not_there_is_an_error_about_the_plugin() -> None:
    registry = Registry()
    registry.add(component(), "present")
    with pytest.raises(PluginError, match="'absent', which is not installed") as caught:
        registry.get("sampler", "absent:mine")
    assert caught.value.exit_code == 3
    assert "pip install absent" in caught.value.hint
    with pytest.raises(RecipeError, match="unknown"):
        registry.get("sampler", "present:other")


def test_a_name_of_a_known_plugin_says_which_package_to_install() -> None:
    registry = Registry()
    registry.add(component("mala", kind="base"), BUILTIN)
    registry.packages = {("base", "nsf"): "gebm-kit-flows"}
    with pytest.raises(
        PluginError, match="base 'nsf' needs the plugin 'gebm-kit-flows', which is not installed"
    ) as caught:
        registry.get("base", "nsf")
    assert caught.value.hint == "Install it with `pip install gebm-kit-flows`."
    with pytest.raises(RecipeError, match="did you mean nsf"):
        registry.get("base", "nsff")
    with pytest.raises(RecipeError, match="unknown"):
        registry.get("energy", "nsf")
    registry.missing_notes["gebm-kit-flows"] = "plugin 'gebm-kit-flows' is blocked (named in GEBM_KIT_BLOCK_PLUGINS)"
    with pytest.raises(PluginError, match="base 'nsf' is not available: .* is blocked"):
        registry.get("base", "nsf")
    with pytest.raises(RecipeError, match="did you mean nsf"):  # its components are known, and this is not one of them
        registry.get("base", "nsff")
    registry.add(component("nsf", kind="base"), "another")
    assert registry.get("base", "nsf").distribution == "another"


def test_a_name_that_a_failed_plugin_may_provide_names_the_plugin() -> None:
    registry = Registry()
    registry.missing_notes["broken-one"] = "plugin 'Broken_One' failed to load (ImportError: no)"
    for name in ("thing", "Broken_One:thing"):
        with pytest.raises(PluginError, match=r"'Broken_One' failed to load \(ImportError: no\)"):
            registry.get("sampler", name)


def test_loading_what_can_not_be_imported_is_an_error_about_the_plugin() -> None:
    registry = Registry()
    for name, target in [("module", "no_such_module:C"), ("attribute", "pathlib:Nothing"), ("function", "math:sin")]:
        registry.add(component(name, target=target), "plug")
        with pytest.raises(PluginError, match=f"sampler 'plug:{name}'"):
            registry.get("sampler", name).load()


# --- the built-ins ---------------------------------------------------------------------------------------------------

BUILTINS = list(discover({}, []).registry)


def test_every_kind_has_a_builtin_and_builtins_carry_the_version() -> None:
    import gebm_kit

    assert {r.component.kind for r in BUILTINS} == set(KINDS)
    assert {(r.distribution, r.version) for r in BUILTINS} == {(BUILTIN, gebm_kit.__version__)}


@pytest.mark.parametrize("record", BUILTINS, ids=lambda r: f"{r.component.kind}:{r.component.name}")
def test_every_builtin_loads_has_a_schema_and_says_what_it_is(record: Any) -> None:
    target = record.load()
    for parameter in parameters(target).values():
        if parameter.range is not None and isinstance(parameter.default, int | float):
            assert parameter.default in parameter.range, parameter.name
    assert (target.__doc__ or "").strip()


def test_injected_names_are_described() -> None:
    assert all(meaning.strip() for meaning in INJECTED.values())


def test_a_module_without_constructor_has_no_parameters_even_where_torch_has_wrapped_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch.compile puts a function of its own in the place of ``nn.Module.__init__``."""

    class Plain(nn.Module):
        pass

    assert parameters(Plain) == {}
    original = nn.Module.__init__

    def wrapped(self: nn.Module, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__init__", wrapped)
    assert parameters(Plain) == {}
