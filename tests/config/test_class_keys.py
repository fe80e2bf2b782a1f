"""The keys of ``data`` about classes: their form, what they resolve to, and how weights become shares."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gebm_kit.config.build import build_dataset, resolved_yaml
from gebm_kit.config.class_keys import shares
from gebm_kit.config.load import load_recipe
from gebm_kit.core.errors import RecipeError

RECIPE = "schema: 1\ndata: {name: digits}\nbase: {name: mlp, latent_dim: 2}\nenergy: {name: mlp}\n"
TEN = [f"n{index}" for index in range(10)]


def recipe(folder: Path, *words: str):
    (folder / "tiny.yaml").write_text(RECIPE)
    return load_recipe(folder / "tiny.yaml", words)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("null", None),
        ("uniform", "uniform"),
        ("[1, 2.5, 0]", (1.0, 2.5, 0.0)),
        ("{cat: 1, 'dark red': 2}", {"cat": 1.0, "dark red": 2.0}),
        ("{'0': 1, '1': 3}", {"0": 1.0, "1": 3.0}),
    ],
)
def test_weights_are_kept_as_they_are_written(tmp_path: Path, word: str, expected: object) -> None:
    found = recipe(tmp_path, f"data.class_weights={word}")
    assert found.class_weights == expected
    assert found.data.parameters == {}
    text = resolved_yaml(found)
    (tmp_path / "resolved.yaml").write_text(text)
    assert load_recipe(tmp_path / "resolved.yaml").class_weights == expected
    assert resolved_yaml(load_recipe(tmp_path / "resolved.yaml")) == text


def test_a_resolved_recipe_without_them_has_no_such_keys(tmp_path: Path) -> None:
    assert yaml.safe_load(resolved_yaml(recipe(tmp_path)))["data"] == {"name": "digits"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("class_weights=[1,-1]", "weight 1 is -1; weights are finite numbers >= 0"),
        ("class_weights={a: -0.5}", "the weight of 'a' is -0.5"),
        ("class_weights=[.nan,1]", "weight 0 is nan"),
        ("class_weights=[.inf,1]", "weight 0 is inf"),
        ("class_weights=[0,0.0]", "all weights are zero"),
        ("class_weights=[]", "there are no weights"),
        ("class_weights={}", "there are no weights"),
        ("class_weights=[true,1]", "weight 0 is True, which is not a number"),
        ("class_weights=[a,1]", "weight 0 is 'a', which is not a number"),
        ("class_weights=[[1],1]", "which is not a number"),
        ("class_weights=even", "'even' is not allowed; allowed: [2, 1, 1], {name: 2, other: 1} or uniform"),
        ("class_weights=3", "3 is not allowed"),
        ("class_weights=[1e308,1e308]", "too large to be added up"),
        ("class_names=cat", "'cat' is not a list of names"),
        ("class_names=[]", "is not a list of names"),
        ("class_names=[1,2]", "name 0 is 1, which is not text"),
        ("class_names=[a,b,a]", "'a' is there twice"),
        ("class_names=[a,' b']", "name 1 is ' b': names have letters, and no spaces around them"),
        ("class_names=[a,'']", "name 1 is ''"),
        ("class_weigths=uniform", "did you mean class_weights"),
    ],
)
def test_other_forms_are_one_problem_of_the_recipe(tmp_path: Path, word: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, f"data.{word}")
    assert "has a problem" in str(caught.value)
    (problem,) = caught.value.problems
    assert f"data.{word.partition('=')[0]}" in problem
    assert message in problem


def test_weights_of_a_component_inside_another_section_are_no_key(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such parameter|has a problem"):
        recipe(tmp_path, "base.class_weights=uniform")


@pytest.mark.parametrize(
    ("weights", "names", "expected"),
    [
        ("uniform", None, (0.25, 0.25, 0.25, 0.25)),
        ((1.0, 0.0, 2.0, 1.0), None, (0.25, 0.0, 0.5, 0.25)),
        ({"d": 2.0, "c": 1.0, "b": 1.0, "a": 0.0}, ("a", "b", "c", "d"), (0.0, 0.25, 0.25, 0.5)),
        ({"3": 1.0, "0": 1.0, "1": 0.0, "2": 0.0}, None, (0.5, 0.0, 0.0, 0.5)),
        ((5e-324, 0.0, 0.0, 5e-324), None, (0.5, 0.0, 0.0, 0.5)),
    ],
)
def test_shares(weights: object, names: tuple[str, ...] | None, expected: tuple[float, ...]) -> None:
    assert shares(weights, 4, names) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0, 2.0), "has 2 weights, and the data have 4 classes"),
        ({"a": 1.0, "e": 1.0}, "there is no class 'e'; allowed: a, b, c, d"),
        ({"a": 1.0, "b": 1.0}, "has no weight for 'c', 'd'"),
        ({"0": 1.0}, "there is no class '0'"),
    ],
)
def test_weights_that_do_not_fit_the_classes(weights: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        shares(weights, 4, ("a", "b", "c", "d"))  # type: ignore[arg-type]


def test_names_are_given_to_the_data(tmp_path: Path) -> None:
    data = build_dataset(recipe(tmp_path, f"data.class_names={TEN}"))
    assert data.class_names == tuple(TEN)
    with pytest.raises(RecipeError, match="names 9 classes, and the data have 10"):
        build_dataset(recipe(tmp_path, f"data.class_names={TEN[:9]}"))
    with pytest.raises(RecipeError, match="names 10 classes, and the data have no labels") as caught:
        build_dataset(recipe(tmp_path, f"data={{name: rings, num_train: 9, class_names: {TEN}}}"))
    assert "data.labels=true" in caught.value.hint
