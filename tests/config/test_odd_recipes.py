"""Recipes and overrides that nobody means to write are read as written or refused with their line, and soon."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from gebm_kit.config.build import resolved_yaml
from gebm_kit.config.check import MAX_PROBLEMS, check
from gebm_kit.config.load import load_recipe, shipped_recipes
from gebm_kit.config.schema import Recipe
from gebm_kit.config.tree import parse
from gebm_kit.config.yaml_values import YamlError, plain_value, read_yaml
from gebm_kit.core.errors import PluginError, RecipeError, UsageError

GOOD = """\
schema: 1
data: {name: eight-gaussians}
base: {name: mlp, latent_dim: 4}
energy: {name: mlp}
train:
  steps: 100
"""


def checked(text: str = GOOD, overrides: Sequence[str] = ()) -> Recipe:
    return check(parse(text, name="recipe", path=Path("recipe.yaml"), overrides=overrides), directory=Path())


def refusal(text: str, overrides: Sequence[str] = ()) -> str:
    with pytest.raises(RecipeError) as caught:
        checked(text, overrides)
    return caught.value.message


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("5", 5), ("-5", -5), ("+5", 5), ("0", 0), ("1_000", 1000), ("12_345_678", 12_345_678), ("0x10", 16), ("0b11", 3),
        ("1.5", 1.5), (".5", 0.5), ("5.", 5.0), ("1e-4", 1e-4), ("1_000.5", 1000.5), ("010.5", 10.5), (".inf", float("inf")),
        ("true", True), ("no", False), ("On", True), ("y", "y"), ("~", None), ("null", None), ("", None),
        (".5.", ".5."), ("1.2.3", "1.2.3"), ("-", "-"), ("0o17", "0o17"), ("run-0100", "run-0100"), ("3_bad", "3_bad"),
        ("=", "="), ("a:b", "a:b"), ("１２", "１２"),
    ],
)  # fmt: skip
def test_scalars_are_read_as_they_are_meant(written: str, value: object) -> None:
    found = plain_value(written)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("0100", "octal; write 100"),
        ("-0100", "octal; write -100"),
        ("00", "octal; write 0,"),
        ("089", "octal; write 89"),
        ("1:30", "base 60"),
        ("12:59:59.5", "base 60"),
        ("2024_07", "underscores"),
        ("1_0", "underscores"),
        ("0x_f", "underscores"),
        ("2024-01-01", "put it in quotes"),
        ("2001-12-14t21:59:43.10-05:00", "put it in quotes"),
        ("9" * 5000, "5,000 digits"),
        ("0x" + "f" * 5000, "5,002 digits"),
    ],
)
def test_numbers_that_yaml_reads_as_something_else_are_refused_with_their_line(written: str, said: str) -> None:
    for found in (
        refusal(GOOD.replace("steps: 100", f"steps: {written}")),
        refusal(GOOD, [f"train.steps={written}"]),
    ):
        assert said in found
        assert "train.steps" in found
        assert found.count("\n") == 1  # one problem, told once
    assert "recipe.yaml:6: " in refusal(GOOD.replace("steps: 100", f"steps: {written}"))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("x: !!binary aGk=", "the tag !!binary is not allowed"),
        ("x: !!set {a}", "the tag !!set is not allowed"),
        ("x: !!python/name:os.system", "the tag !!python/name:os.system is not allowed"),
        ("x: !mine 3", "the tag !mine is not allowed"),
        ("x: !!bool foo", "'foo' is not a !!bool"),
        ("x: !!int 1.5", "'1.5' is not a !!int"),
        ("x: !!map 3", "not allowed"),
        ("x: {<<: {a: 1}}", "merge keys are not allowed"),
        ("train: {}", "written twice, first on line 5"),
        ("on: 3", "on can't be a key"),
        ("1.5: 3", "1.5 can't be a key"),
        ("a.b: 3", "'a.b' can't be a key"),
        ("? [a]\n: 3", "a list or a mapping can't be a key"),
        ("---\nx: 1", "a second YAML document begins here"),
        ("\tx: 1", "not valid YAML"),
        ("# \0", "a null character"),
        ("x: \x1b", "control characters are not allowed"),
        ("x: \ud800", "not UTF-8"),
        ('x: "a\\0b"', "holds a character that no name"),
        ("x: " + "[" * 100 + "]" * 100, "nested more than 64 deep"),
        ("x: " + "{a: " * 5000, "nested more than 64 deep"),
    ],
)  # fmt: skip
def test_odd_yaml_is_refused_with_its_line_in_few_words(lines: str, said: str) -> None:
    found = refusal(GOOD + lines)
    assert said in found
    assert re.search(r"recipe\.yaml:(7|8): ", found)
    assert len(found) < 1000


@pytest.mark.parametrize("text", ["", "# nothing", "---\n...\n", "5", "- a"])
def test_a_recipe_that_is_no_mapping_is_said_to_be_none(text: str) -> None:
    assert "a recipe is a mapping" in refusal(text)


def test_a_byte_order_mark_and_a_yaml_directive_are_read() -> None:
    assert checked("\ufeff" + GOOD).train.steps == 100
    assert checked("%YAML 1.1\n---\n" + GOOD).train.steps == 100


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("train.²=1", "has the form key=value"),
        ("=1", "has the form key=value"),
        ("a..b=1", "has the form key=value"),
        ("train.=1", "has the form key=value"),
        ("train\0.steps=1", "has the form key=value"),
        ("train[9999999999999999999]=3", "unknown key"),
        ("eval.metrics[999999999]=mmd", "eval.metrics"),
        ("train.steps=!!bool foo", "'foo' is not a !!bool"),
        ("train={steps: 0100}", "octal"),
        ("train={steps: 1, steps: 2}", "written twice"),
        ("train.steps={", "not valid YAML"),
        ("train.steps=" + "[" * 99, "nested more than 64 deep"),
        ("x." * 200 + "x=1", "nested more than 64 deep"),
        ("train.steps=\udcff", "not UTF-8"),
        ("train.seed=${train.seed}", "refers to itself"),
        ("train.seed=9" * 2000, "override"),
        ('data={name: idx, path: "a\\0b"}', "holds a character"),
        ("train.steps=1" + "0" * 25, "too large for an integer"),
        ("optim.base.lr=1" + "0" * 299, "too large for an integer"),
    ],
)  # fmt: skip
def test_odd_overrides_are_refused_in_few_words(word: str, said: str) -> None:
    found = refusal(GOOD, [word])
    assert said in found
    assert len(found) < 1500


def test_an_override_inside_an_interpolation_is_refused() -> None:
    assert "has no keys of its own" in refusal(GOOD + "ema: ${optim}\n", ["ema.decay=0.5"])


def test_a_refused_value_and_its_override_are_both_problems() -> None:
    octal = GOOD.replace("steps: 100", "steps: 0100")
    assert "octal" in refusal(octal, ["train.steps=5"])  # the file is still wrong
    assert "train.steps: 'x' is not an integer" in refusal(octal, ["train.steps=x"])  # and so is the override


@pytest.mark.parametrize("kind", ["loop", "chain", "part"])
def test_interpolation_that_leads_nowhere_is_refused(kind: str) -> None:
    lines = {
        "loop": "a: ${b}\nb: ${c}\nc: ${a}",
        "chain": "".join(f"k{i}: ${{k{i + 1}}}\n" for i in range(3000)),
        "part": "device: a${train}",
    }[kind]
    said = {"loop": "refers to itself", "chain": "more than 64 times", "part": "can't be a part of text"}[kind]
    assert said in refusal(GOOD + lines)


def test_interpolation_takes_values_of_any_type() -> None:
    recipe = checked(
        GOOD + "ema: {decay: 0.5}\noptim: {base: {beta1: '${ema.decay}'}}\nsample: {seed: '${train.steps}'}"
    )
    assert recipe.optim.base.beta1 == 0.5
    assert recipe.sample.seed == 100


@pytest.mark.parametrize(
    "line",
    [
        "x: [" + "1," * 450_000 + "]",
        "".join(f"k{i}: 1\n" for i in range(40_000)),
        "device: " + "k" * 900_000,
        '"' + "k" * 900_000 + '": 1',
        "loss: " + "k" * 900_000,
        "eval: {metrics: [" + "mmd," * 40_000 + "]}",
        "requires: [" + "no-such," * 40_000 + "]",
        "loggers: [" + "jsonl," * 40_000 + "]",
        "device: 1" + "_" * 900_000 + "x",
        "requires: ['torch>=" + "9" * 5000 + "']",
    ],
    ids=lambda line: line[:12],
)
def test_long_recipes_are_refused_in_a_message_of_bounded_length(line: str) -> None:
    with pytest.raises((RecipeError, PluginError)) as caught:
        checked(GOOD + line)
    assert len(caught.value.message) < 40_000
    assert caught.value.message.count("\n") <= MAX_PROBLEMS + 1


def test_requirements_name_packages_and_no_addresses() -> None:
    assert "names an address" in refusal(GOOD + "requires: ['torch @ https://example.org/torch.whl']\n")
    with pytest.raises(PluginError) as caught:
        checked(GOOD + "requires: [\"no-such; python_version > '3'\"]\n")
    assert "pip install 'no-such; python_version > '" in caught.value.hint  # quoted for a shell as one word
    assert "is unknown" in refusal(GOOD, ["sampler=a; touch b:mine"])  # no hint that a shell would obey


def test_files_that_are_no_recipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "utf16.yaml").write_bytes(GOOD.encode("utf-16"))
    (tmp_path / "long.yaml").write_bytes(GOOD.encode() + b"#" * 1_000_000)
    for name, said in {
        "pipe.yaml": "is a named pipe",
        "loop.yaml": "can't be read",
        "long.yaml": "at most",
        "a" * 300: "a name of 300 bytes",
        "a\0b": "null character",
        "a\udcff": "not UTF-8",
    }.items():
        with pytest.raises(UsageError, match=said):
            load_recipe(str(tmp_path / name))
    for name, said in {"/dev/zero": "is a device", "": "is empty", "~no-such-user/x": "home directory"}.items():
        with pytest.raises(UsageError, match=said):
            load_recipe(name)
    with pytest.raises(RecipeError, match=r"utf16.yaml:1: not a text file in UTF-8"):
        load_recipe(tmp_path / "utf16.yaml")


def test_documents_have_lines_and_a_bound() -> None:
    found = read_yaml("a:\n  b: 1\n  c: [1,\n   2]\n")
    assert found.lines[("a", "c", 1)] == 4
    with pytest.raises(YamlError, match="more than 50,000 values"):
        read_yaml("[" + "1," * 60_000 + "]")


ODD = [
    *("0100", "1:30", "1_000", ".5.", "yes", "2024-01-01", "!!binary", "!!set", "!!python/x", "<<", "~", ".inf", "1e999"),
    *('"\\0"', "${train.seed}", "${a}", "${oc.env:A}", "${", "}", "[", "{", "*a", "&a", "[1,[2]]", "{a:1}", "[mlp,mlp]"),
    *("|", ">", '"', "'", "@", "%", "\t", "\x00", "\x85", "\u2028", "\ud800", "²", "=", "!", "?", "-", "---", "...", "#"),
]  # fmt: skip


def _mutated(text: str, rng: random.Random) -> str:
    for _ in range(rng.choice([1, 1, 2, 4])):
        here = rng.randrange(len(text) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:here] + rng.choice(ODD) + text[here:]
        elif kind == 1:
            text = text[:here] + text[here + rng.randrange(20) :]
        elif kind == 2:
            spots = list(re.finditer(r"(?<=: )[^,}\]\n]+", text))
            if spots:
                spot = rng.choice(spots)
                text = text[: spot.start()] + rng.choice(ODD) + text[spot.end() :]
        else:
            lines = text.split("\n")
            line = rng.randrange(len(lines))
            lines[line] = " " * rng.randrange(5) + lines[line].strip()
            text = "\n".join(lines)
    return text


def test_mutated_recipes_and_overrides_are_read_or_refused() -> None:
    rng = random.Random(7)
    texts = [path.read_text() for path in shipped_recipes().values()]
    keys = [
        "train",
        "train.steps",
        "eval.metrics",
        "eval.metrics[0].name",
        "base.hidden.0",
        "data.path",
        "a",
        ".",
        "[0]",
        "é",
    ]
    outcomes = set()
    for _ in range(400):
        words = [f"{rng.choice(keys)}={rng.choice(ODD)}" for _ in range(rng.randrange(3))]
        try:
            recipe = checked(_mutated(rng.choice(texts), rng), words)
            text = resolved_yaml(recipe)
            assert resolved_yaml(check(parse(text, name="again"), directory=Path())) == text
            outcomes.add("read")
        except (RecipeError, PluginError):
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
