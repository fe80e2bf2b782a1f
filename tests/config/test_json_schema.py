"""The JSON Schema of recipes accepts what `recipes check` accepts, and refuses what it refuses as far as a schema can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest

from gebm_kit.config.check import check
from gebm_kit.config.conform import conform
from gebm_kit.config.docstrings import described, summary_of
from gebm_kit.config.json_schema import _value, json_schema
from gebm_kit.config.load import load_recipe, shipped_recipes
from gebm_kit.config.tree import parse
from gebm_kit.config.yaml_values import read_yaml
from gebm_kit.core.components import Component, Range, Registry, parameters
from gebm_kit.core.errors import PluginError, RecipeError
from gebm_kit.core.plugins import installed

SCHEMA = json_schema(installed().registry)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

RIGHT = """\
# A recipe that every section is written in.
schema: 1
requires: []
data: {name: eight-gaussians, std: 1.2e-1, class_weights: null}
base: {name: mlp, latent_dim: 2, hidden: [16, 16], prior: normal}
energy: {name: sum, parts: [{name: mlp, hidden: [8]}, mlp], weights: [1, 0.5]}
loss: kale
train:
  steps: 6
  seed: 3
  penalty: {name: gradient, every: 4}
  augment: []
  final: {steps: 2, energy: mlp, penalty: []}
optim: {energy: {name: adam, lr: 1e-4, milestones: [0.5, 100]}, base: {name: sgd, lr: "${optim.energy.lr}"}}
ema: {decay: 0.9}
sampler: {name: mala, step_size: 0.05}
sample: {num_samples: 60, inverse_temperature: calibrated, seed: "${train.seed}"}
eval: {metrics: [mmd, {name: sliced-wasserstein, num_directions: 8}], num_samples: 60, budget: null}
nll:
loggers: [jsonl]
device: cuda:1
precision: float64
"""

WRONG = {
    "unknown section": ("\nema:", "\nemma:"),
    "missing section": ("base: {name: mlp, latent_dim: 2, hidden: [16, 16], prior: normal}\n", ""),
    "missing version": ("schema: 1\n", ""),
    "another version": ("schema: 1", "schema: 2"),
    "version as text": ("schema: 1", 'schema: "1"'),
    "requirement that is no list": ("requires: []", "requires: gebm-kit-flows"),
    "requirement that is an address": ("requires: []", 'requires: ["gebm-kit @ https://example.org/a.whl"]'),
    "requirement that is none": ("requires: []", "requires: [gebm kit]"),
    "logger twice": ("[jsonl]", "[jsonl, jsonl]"),
    "unknown dataset": ("eight-gaussians", "nine-gaussians"),
    "unknown short name": ("loss: kale", "loss: kail"),
    "component of another kind": ("loss: kale", "loss: mala"),
    "component without a name": ("{name: mala, step_size: 0.05}", "{step_size: 0.05}"),
    "number for a component": ("loss: kale", "loss: 3"),
    "unknown parameter": ("step_size: 0.05", "stepsize: 0.05"),
    "injected parameter": ("latent_dim: 2", "data_shape: [2], latent_dim: 2"),
    "missing parameter": ("{name: sum, parts: [{name: mlp, hidden: [8]}, mlp], weights: [1, 0.5]}", "sum"),
    "number at an open end": ("step_size: 0.05", "step_size: 0"),
    "number out of range": ("latent_dim: 2", "latent_dim: 0"),
    "text for a number": ("step_size: 0.05", "step_size: small"),
    "a fraction for a count": ("latent_dim: 2", "latent_dim: 2.5"),
    "yes for a number": ("latent_dim: 2", "latent_dim: true"),
    "null for a number": ("latent_dim: 2", "latent_dim: null"),
    "word that is not allowed": ("prior: normal", "prior: gauss"),
    "number for a list": ("hidden: [16, 16]", "hidden: 16"),
    "text in a list of numbers": ("hidden: [16, 16]", "hidden: [16, wide]"),
    "fault in a nested component": ("{name: mlp, hidden: [8]}", "{name: mlp, hiden: [8]}"),
    "unknown nested component": ("hidden: [8]}, mlp]", "hidden: [8]}, mpl]"),
    "unknown key of a section": ("steps: 6", "stepz: 6"),
    "unknown key of a nested section": ("final: {steps: 2", "final: {step: 2"),
    "key of a section out of range": ("decay: 0.9", "decay: 1.0"),
    "list for a section": ("ema: {decay: 0.9}", "ema: [0.9]"),
    "optimiser that is not there": ("name: sgd", "name: lion"),
    "fault in a list of numbers": ("milestones: [0.5, 100]", "milestones: [0.5, -1]"),
    "unknown metric in a list": ("[mmd,", "[mdm,"),
    "fault in a penalty": ("every: 4", "every: 0"),
    "unknown augmentation": ("augment: []", "augment: [flop]"),
    "augmentation out of range": ("augment: []", "augment: [{name: flip, probability: 2}]"),
    "word for beta that is not there": ("inverse_temperature: calibrated", "inverse_temperature: warm"),
    "negative beta": ("inverse_temperature: calibrated", "inverse_temperature: -1"),
    "resolver": ('"${train.seed}"', '"${oc.env:HOME}"'),
    "resolver in text": ("loss: kale", 'loss: {name: "${oc.env:LOSS}"}'),
    "unknown device": ("cuda:1", "tpu"),
    "unknown precision": ("float64", "float16"),
    "negative class weight": ("class_weights: null", "class_weights: [1, -1]"),
    "class names that are no list": ("class_weights: null", "class_names: shirt"),
    "unknown logger": ("[jsonl]", "[jsonl, wand]"),
}
"""What is wrong, what it replaces in the right recipe, and by what."""


def problems(text: str) -> list[str]:
    document = read_yaml(text)  # the kit's own reading, where 1e-4 is a number
    return [error.message for error in VALIDATOR.iter_errors(document.value)]


def test_the_schema_is_one() -> None:
    VALIDATOR.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(SCHEMA, allow_nan=False)) == SCHEMA


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_valid(name: str) -> None:
    assert problems(shipped_recipes()[name].read_text()) == []


def test_the_right_recipe_is_right(tmp_path: Path) -> None:
    assert problems(RIGHT) == []
    check(parse(RIGHT, name="right"), directory=tmp_path)


@pytest.mark.parametrize("what", WRONG)
def test_wrong_recipes_are_refused_by_both(what: str, tmp_path: Path) -> None:
    right, wrong = WRONG[what]
    assert RIGHT.count(right) == 1
    text = RIGHT.replace(right, wrong)
    assert problems(text)
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "wrong.yaml")


def test_requirements_have_the_form_that_packaging_reads() -> None:
    from packaging.requirements import InvalidRequirement, Requirement

    texts = [
        "a",
        "gebm-kit-flows>=0.1",
        "a_b.c ~=1.0, !=1.2",
        "a[x, y]",
        "a[x]==1; python_version > '3'",
        "a (>=1)",
        " a ",
    ]
    texts += ["", "-a", "a-", "a b", "a@", "a[x", "a[x] b", "a @ https://example.org", "ä", "/a"]
    validator = jsonschema.Draft202012Validator(SCHEMA["properties"]["requires"])
    for text in texts:
        try:
            right = Requirement(text).url is None
        except InvalidRequirement:
            right = False
        assert validator.is_valid([text]) is right, text


def test_enough_wrong_recipes() -> None:
    assert len(WRONG) >= 30


RECORDS = list(installed().registry)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r.component.kind}:{r.component.name}")
def test_defaults_written_out_are_valid(record: Any) -> None:
    schema = {"$ref": f"#/$defs/{record.component.kind}", "$defs": SCHEMA["$defs"]}
    validator = jsonschema.Draft202012Validator(schema)
    given = {n: p for n, p in parameters(record.load()).items() if not p.injected}
    required = [p for p in given.values() if p.required]
    node = {
        n: list(p.default) if isinstance(p.default, tuple) else p.default for n, p in given.items() if not p.required
    }
    for name in (record.component.name, record.address):
        assert validator.is_valid(name) == (not required)
        assert validator.is_valid({"name": name, **node}) == (not required)
        assert not validator.is_valid({"name": name, **node, "no_such_parameter": 1})


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 1.5, -0.5, 2**63, "", "a", "1", [], [1], [1.5, "a"], [[1]], {}, {"a": 1}, [None],
]  # fmt: skip
ANNOTATIONS: list[Any] = [
    int, float, bool, str, Path, Any, list, tuple, list[int], tuple[float, ...], list[list[int]], list[str] | str | None,
    int | None, Literal["a", "b"], Literal[1, 3], Literal["a"] | None, Literal[-1, 1] | None, bool | None,
    Annotated[int, Range(1, 2)], Annotated[float, Range(0, None, low_open=True)], Annotated[float, Range(None, 1)] | None,
    Annotated[list[float], Range(0, 1, high_open=True)], list[Annotated[int, Range(1, None)]],
    Annotated[float, Range(0, None)] | Literal["a"],
]  # fmt: skip


@pytest.mark.parametrize("annotation", ANNOTATIONS, ids=str)
def test_a_value_is_valid_where_conform_takes_it(annotation: Any) -> None:
    validator = jsonschema.Draft202012Validator(_value(annotation))
    for value in VALUES:
        if value == 2**63 and "float" in str(annotation):
            continue  # refused as an integer, allowed as a float, and JSON has one kind of number
        try:
            conform(value, annotation)
            expected = True
        except ValueError:
            expected = False
        assert validator.is_valid(value) is expected, value
    assert validator.is_valid("${train.seed}")
    assert annotation is Any or not validator.is_valid("${oc.env:HOME}")


def test_components_that_are_not_here_are_accepted_with_any_parameters() -> None:
    registry = Registry()
    registry.add(Component("base", "broken", "no_such_module:Base", "A base"), "some-plugin")
    registry.packages["base", "elsewhere"] = "another-plugin"
    schema = json_schema(registry)["$defs"]["base"]
    validator = jsonschema.Draft202012Validator(schema)
    for name in ("broken", "some-plugin:broken", "elsewhere"):
        assert validator.is_valid(name)
        assert validator.is_valid({"name": name, "anything": 1})
    assert not validator.is_valid("nowhere")
    with pytest.raises(PluginError):
        registry.get("base", "elsewhere")


def test_descriptions_come_from_docstrings() -> None:
    from gebm_kit.config.schema import SampleSection, TrainSection
    from gebm_kit.samplers.mala import Mala

    assert summary_of(Mala) == "The Metropolis-adjusted Langevin algorithm (MALA)."
    assert described(Mala)["step_size"].startswith("h, a squared length in units of the prior's variance; tuned by")
    assert described(TrainSection)["eval_every"] == described(TrainSection)["log_every"]
    assert described(SampleSection) == {}
    (rule,) = [
        r for r in SCHEMA["$defs"]["sampler"]["else"]["allOf"] if "mala" in r["if"]["properties"]["name"]["enum"]
    ]
    assert rule["then"]["description"] == summary_of(Mala)
    assert rule["then"]["properties"]["step_size"]["default"] == 0.1
    assert rule["then"]["properties"]["step_size"]["exclusiveMinimum"] == 0


def test_no_injected_parameter_is_in_the_schema() -> None:
    for record in RECORDS:
        found = [
            rule["then"]["properties"]
            for rule in SCHEMA["$defs"][record.component.kind]["else"]["allOf"]
            if record.address in rule["if"]["properties"]["name"]["enum"]
        ]
        (properties,) = found
        assert not [p.name for p in parameters(record.load()).values() if p.injected and p.name in properties]


def test_what_the_command_prints_is_the_schema(capfd: Any, tmp_path: Path) -> None:
    from gebm_kit.cli.app import main

    assert main(["recipes", "schema"]) == 0
    assert json.loads(capfd.readouterr().out) == SCHEMA
    assert main(["recipes", "schema", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"schema": 1, **SCHEMA}
    target = tmp_path / "recipe.json"
    target.write_text("an older one")
    assert main(["recipes", "schema", "--out", str(target), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"schema": 1, "path": str(target)}
    assert json.loads(target.read_text()) == SCHEMA
    assert main(["recipes", "schema", "--out", str(tmp_path / "nowhere" / "recipe.json")]) == 2
    assert "can't be written" in capfd.readouterr().err
