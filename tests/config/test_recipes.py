"""Recipes: all problems at once with their places, plain interpolation, overrides, and a resolved form that round-trips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from gebm_kit.config.build import resolved_yaml
from gebm_kit.config.check import check
from gebm_kit.config.conform import conform
from gebm_kit.config.load import load_recipe, shipped_recipes
from gebm_kit.config.schema import DEFAULT_COMPONENTS, Recipe
from gebm_kit.config.tree import parse
from gebm_kit.core.components import Range
from gebm_kit.core.errors import PluginError, RecipeError, UsageError

GOOD = """\
schema: 1
data: {name: eight-gaussians}
base: {name: mlp, latent_dim: 4}
energy: {name: mlp}
loss: kale
train:
  steps: 100
  seed: 3
  penalty: {name: gradient, every: 4}
eval: {metrics: [modes, {name: mmd}]}
"""


def checked(text: str = GOOD, overrides: Sequence[str] = ()) -> Recipe:
    return check(parse(text, name="recipe", path=Path("recipe.yaml"), overrides=overrides), directory=Path())


def problems(text: str, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        checked(text, overrides)
    return list(caught.value.problems) or [caught.value.message]


def test_a_good_recipe_becomes_a_recipe_with_every_default_filled_in() -> None:
    recipe = checked()
    assert recipe.base.parameters["latent_dim"] == 4
    assert recipe.base.parameters["hidden"]
    assert recipe.sampler.name == "auto"
    assert recipe.sample.num_chains == 500
    assert [m.name for m in recipe.eval.metrics] == ["modes", "mmd"]
    assert recipe.penalties[0].parameters["every"] == 4
    assert recipe.final_penalties == recipe.penalties


def test_overrides_set_values_and_replace_nodes() -> None:
    recipe = checked(
        overrides=["train.steps=7", "sampler=mala", "sampler.step_size=1e-3", "optim.base.lr=1", "eval.metrics=[mmd]"]
    )
    assert recipe.train.steps == 7
    assert (recipe.sampler.name, recipe.sampler.parameters["step_size"]) == ("mala", 1e-3)
    assert recipe.optim.base.lr == 1.0
    assert [m.name for m in recipe.eval.metrics] == ["mmd"]
    assert checked(overrides=["train.penalty=null"]).penalties == ()
    assert checked(overrides=["train.penalty=r1"]).penalties[0].name == "r1"
    assert checked(overrides=["train.final.penalty=[r1]"]).final_penalties[0].name == "r1"
    assert checked(overrides=["train.final.penalty=[]"]).final_penalties == ()
    assert "latent_dim" in checked(overrides=["base=mlp"]).base.parameters
    assert checked(overrides=["base=mlp"]).base.parameters["latent_dim"] != 4


def test_all_problems_are_reported_at_once_with_file_line_value_and_nearest_key() -> None:
    bad = """\
schema: 1
data: {name: eight-gaussian}
base: {name: mlp, latent_dim: 0, hiden: [3]}
energy: {name: mlp, hidden: a}
loss: kale
train:
  steps: many
  stpes: 3
  penalty: [{name: gradient, weight: -1}, {name: nope}]
  batch_size: 1e2
device: tpu
smaple: {}
"""
    found = problems(bad, ["train.seed=-1"])
    text = "\n".join(found)
    assert len(found) == 12
    for expected in (
        "recipe.yaml:2: data: dataset 'eight-gaussian' is unknown; did you mean eight-gaussians",
        "recipe.yaml:3: base.latent_dim: 0 is out of range; allowed: >= 1",
        "recipe.yaml:3: base.hiden: base 'mlp' has no such parameter; did you mean hidden?",
        "recipe.yaml:4: energy.hidden: 'a' is not a list",
        "recipe.yaml:7: train.steps: 'many' is not an integer",
        "recipe.yaml:8: train.stpes: unknown key; did you mean steps?",
        "recipe.yaml:9: train.penalty[0].weight: -1.0 is out of range; allowed: >= 0",
        "recipe.yaml:9: train.penalty[1]: penalty 'nope' is unknown",
        "recipe.yaml:10: train.batch_size: 100.0 is not an integer; write 100",
        "recipe.yaml:11: device: 'tpu' is not allowed; allowed: auto, cpu",
        "recipe.yaml:12: smaple: unknown section; did you mean sample",
    ):
        assert expected in text
    assert "override 'train.seed=-1': train.seed: -1 is out of range" in "\n".join(
        problems(GOOD, ["train.seed=-1", "train.steps=x"])
    )


@pytest.mark.parametrize(
    "value",
    ["${oc.env:HOME}", "a${oc.env:HOME}", "${oc.create:{a: 1}}", "${${x}}", "${now:%Y}", "${oc.env:A,${train.seed}}"],
)
def test_resolvers_are_refused_before_anything_is_resolved(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "leaked-value")
    quoted = json.dumps(value)
    for found in (
        problems(GOOD + f"precision: {quoted}\n"),
        problems(GOOD, [f"precision={quoted}"]),
        problems(GOOD.replace("{name: mlp}", "{name: mlp, hidden: [" + quoted + "]}")),
    ):
        assert "is refused" in found[0]
        assert "leaked-value" not in "\n".join(found)


def test_strings_that_build_a_resolver_out_of_parts_stay_text() -> None:
    text = GOOD + 'device: "${requires[0]}${requires[1]}"\nrequires: ["$", "{oc.env:HOME}"]\n'
    assert any("'${oc.env:HOME}' is not allowed" in line for line in problems(text))


def test_plain_interpolation_works_and_a_dangling_one_is_a_problem() -> None:
    assert checked(GOOD + "sample:\n  seed: ${train.seed}\n").sample.seed == 3
    assert checked(GOOD + "sample:\n  seed: ${train.seed}\n", ["train.seed=8"]).sample.seed == 8
    assert "sample.seed" in problems(GOOD + "sample:\n  seed: ${train.sead}\n")[0]


def test_numbers_follow_omegaconf() -> None:
    assert checked(GOOD + "optim:\n  base: {lr: 1e-4}\n").optim.base.lr == 1e-4
    assert any("'1e-4' is not a number" in p for p in problems(GOOD + "optim:\n  base: {lr: '1e-4'}\n"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a recipe is a mapping"),
        ("- a\n", "a recipe is a mapping"),
        ("a: [1,\n", "not valid YAML"),
        ("schema: 1\nschema: 1\n", "written twice"),
        (GOOD.replace("schema: 1", "schema: 2"), "2 is not known to this version"),
        ("schema: 1\n", "data: this section is required"),
        (GOOD + "1: 2\n", "can't be a key"),
        (GOOD + "precision: 2024-01-01\n", "put it in quotes"),
        (GOOD.replace("loss: kale", "loss: {name: [kale]}"), "needs a component"),
        (GOOD + "a: !!python/object/apply:os.system [echo]\n", "not valid YAML"),
        (GOOD.replace("steps: 100", "part: base\n  final: {steps: 200}"), "has no meaning with train.part=base"),
        (GOOD + "sample: 3\n", "is not a mapping"),
        (GOOD + "requires: gebm\n", "is not a list of requirements"),
        (GOOD.replace("steps: 100", "steps: true"), "True is not an integer"),
        (GOOD + "sample: {inverse_temperature: .nan}\n", "is not finite"),
    ],
)
def test_malformed_recipes(text: str, expected: str) -> None:
    assert expected in "\n".join(problems(text))


def test_a_recipe_without_loss_and_sampler_names_the_default_ones() -> None:
    recipe = checked(GOOD.replace("loss: kale\n", ""))
    assert (recipe.loss.name, recipe.sampler.name) == (DEFAULT_COMPONENTS["loss"], DEFAULT_COMPONENTS["sampler"])
    assert f"name: {DEFAULT_COMPONENTS['loss']}\n" in resolved_yaml(recipe)


@pytest.mark.parametrize("word", ["steps", "=3", "train.steps=[", "train..=", "eval.metrics[9].name=mmd"])
def test_malformed_overrides(word: str) -> None:
    assert "override" in problems(GOOD, [word])[0]


def test_a_required_plugin_that_is_missing_is_a_plugin_error() -> None:
    with pytest.raises(PluginError, match="'no-such-plugin' is not installed") as caught:
        checked(GOOD + "requires: [no-such-plugin]\n")
    assert "pip install" in caught.value.hint
    with pytest.raises(PluginError, match="needs the plugin 'no-such-plugin'"):
        checked(GOOD, ["sampler=no-such-plugin:mine"])
    assert checked(GOOD + "requires: ['torch>=2']\n").requires == ("torch>=2",)
    with pytest.raises(PluginError, match="is needed"):
        checked(GOOD + "requires: ['torch>=99']\n")


def test_the_resolved_recipe_round_trips() -> None:
    recipe = checked(overrides=["sampler=mala", "train.steps=9"])
    text = resolved_yaml(recipe)
    again = check(parse(text, name="recipe"), directory=Path())
    assert resolved_yaml(again) == text
    assert again.train == recipe.train
    assert again.base == recipe.base


@pytest.mark.parametrize("kind", ["lists", "texts"])
def test_interpolation_that_explodes_is_refused(kind: str) -> None:
    lines = ["k0: aaaaaaaaaa"]
    for level in range(1, 40):
        reference = f"${{k{level - 1}}}"
        lines.append(f"k{level}: {json.dumps([reference] * 9 if kind == 'lists' else reference * 9)}")
    assert any("grows too large" in line for line in problems(GOOD + "\n".join(lines)))
    assert any("is refused" in line for line in problems(GOOD + "sample:\n  seed: ${.x}\n"))


def test_overrides_are_a_list() -> None:
    with pytest.raises(UsageError, match=r"\['train.steps=3'\]"):
        load_recipe("quickstart", "train.steps=3")


def test_missing_files_and_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean quickstart"):
        load_recipe("quickstrat")
    with pytest.raises(UsageError, match="no recipe 'nowhere/x.yaml'"):
        load_recipe("nowhere/x.yaml")
    with pytest.raises(UsageError, match="is a directory"):
        load_recipe(tmp_path)
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not a text file"):
        load_recipe(binary)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_checks(name: str) -> None:
    try:
        assert load_recipe(name).name == name
    except PluginError as error:  # this project's own plugins are switched off here; their tests check such recipes
        wanted = yaml.safe_load(shipped_recipes()[name].read_text())["requires"]
        assert [Requirement(text).name for text in wanted] == ["gebm-kit-flows"]
        assert "gebm-kit-flows" in str(error)  # noqa: PT017


def test_conform_covers_the_types_that_signatures_use() -> None:
    assert conform(1, float) == 1.0
    assert conform(None, int | None) is None
    assert conform([1, 2], tuple[int, ...]) == (1, 2)
    assert conform("a", Path) == Path("a")
    for value, annotation, interval in [
        (True, int, None),
        (1, bool, None),
        (float("inf"), float, None),
        ("x", int | list[int], None),
        ([0], list[int], Range(1, None)),
    ]:
        with pytest.raises(ValueError, match="."):
            conform(value, annotation, interval)


@pytest.mark.parametrize(
    "lines",
    [
        "a: &a [1, 2]\nb: *a\n",
        "a: &a [*a]\n",
        "a: &a {x: 1}\nb: {<<: *a}\n",
        "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}' if i else '1'] * 9)}]\n" for i in range(9)),
    ],
)
def test_aliases_are_refused_with_their_place(lines: str) -> None:
    line = next(i for i, text in enumerate(lines.splitlines(), 1) if "*" in text)
    with pytest.raises(RecipeError) as caught:
        parse(lines, name="recipe", path=Path("recipe.yaml"))
    assert caught.value.message == (
        f"recipe.yaml:{line}: aliases are not allowed; write the value out, or use ${{...}}"
    )


def test_aliases_in_overrides_are_refused() -> None:
    assert problems(GOOD, ["energy.hidden=[&a [1], *a]"]) == [
        "override 'energy.hidden=[&a [1], *a]': aliases are not allowed; write the value out, or use ${...}"
    ]


def test_an_evaluation_has_two_draws_at_least() -> None:
    assert checked(overrides=["eval.num_samples=2"]).eval.num_samples == 2
    (problem,) = problems(GOOD, ["eval.num_samples=1"])
    assert "eval.num_samples" in problem


def test_a_path_for_data_that_read_no_file_names_the_datasets_that_do() -> None:
    (found,) = problems(
        "schema: 1\ndata: {name: redwine, path: mine.csv}\nbase: {name: mlp}\nenergy: {name: mlp}\n", []
    )
    assert "data.path: dataset 'redwine' has no such parameter, it reads no file of yours" in found
    assert "data=tabular data.path=FILE reads a table" in found
