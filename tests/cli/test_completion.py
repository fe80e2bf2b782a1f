"""Completion in bash and zsh, as their scripts ask for it: names, overrides, runs, classes; and nothing slow imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gebm_kit.cli.completion import complete_override
from gebm_kit.cli.written_parameters import written_parameters
from gebm_kit.config.override_keys import override_keys, values_of_key
from gebm_kit.core.components import parameters
from gebm_kit.core.plugins import installed

PROGRAM = """
import sys
from gebm_kit.cli.app import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""

HEAVY = {"torch", "numpy", "matplotlib", "scipy", "PIL"}

Offered = Callable[[str], list[str]]


def asked(variables: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert not set(done.stderr.split()) & HEAVY
    assert "Traceback" not in done.stderr
    return done.stdout


def bash(line: str) -> list[str]:
    """Return what bash offers for the last word of a line; bash splits words at ``=``."""
    words = line.replace("=", " = ").split(" ") if "=" in line else line.split(" ")
    words = [word for word in words[:-1] if word] + [words[-1]]
    shell = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1), "_GEBM_KIT_COMPLETE": "complete_bash"}
    return asked(shell).split()


def zsh(line: str) -> list[str]:
    """Return what zsh offers for the last word of a line."""
    out = asked({"_TYPER_COMPLETE_ARGS": line, "_GEBM_KIT_COMPLETE": "complete_zsh"})
    return [word.replace("\\\\:", ":") for word in re.findall(r'^(?:_arg.*\(\()?"([^"]+)"', out, re.MULTILINE)]


@pytest.fixture(params=[bash, zsh])
def offered(request: pytest.FixtureRequest) -> Offered:
    found: Offered = request.param
    return found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a finished run of three named classes, under runs/ of the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "runs" / "shapes" / "first"
    state = path / "checkpoints" / "step-0000009"
    state.mkdir(parents=True)
    base = "{name: mlp, conditional: true}"
    (path / "resolved.yaml").write_text(f"{{schema: 1, train: {{steps: 9}}, base: {base}, sampler: {{name: pcn}}}}")
    (path / "status.json").write_text('{"recipe": "shapes", "state": "finished", "step": 9, "seconds": 1.0}')
    facts = {"num_classes": 3, "class_names": ["circle", "cross", "square"]}
    (state / "state.json").write_text(json.dumps({"state": {"facts": facts}}))
    return path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gebm-kit plugins n", {"new"}),
        ("gebm-kit plugins new x --kind lo", {"loss", "logger"}),
        ("gebm-kit recipes s", {"show", "schema"}),
        ("gebm-kit train quicks", {"quickstart"}),
        ("gebm-kit sample --sampler ma", {"mala", "mams"}),
        ("gebm-kit describe sampler ma", {"mala", "mams"}),
        ("gebm-kit train quickstart train.par", {"train.part="}),
        ("gebm-kit train quickstart base.lat", {"base.latent_dim="}),
    ],
)
def test_words_without_a_value(
    line: str, expected: set[str], offered: Offered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(offered(line)) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sampler=ma", {"mala", "mams"}),
        ("sampler.name=ma", {"mala", "mams"}),
        ("loggers=js", {"jsonl"}),
        ("train.final.energy=ml", {"mlp"}),
        ("train.part=base", {"base", "base-then-energy", "base-then-both"}),
        ("train.compile=t", {"true"}),
        ("optim.energy.schedule=c", {"constant", "cosine"}),
        ("sample.inverse_temperature=", {"calibrated"}),
        ("precision=float6", {"float64"}),
        ("base.norm=b", {"batch"}),
        ("base.prior=", {"normal", "uniform", "sphere"}),
        ("train.steps=", set()),
        ("nothing=", set()),
    ],
)  # fmt: skip
def test_values_of_overrides(line: str, expected: set[str], offered: Offered) -> None:
    key = line.partition("=")[0]
    before = "" if offered is bash else f"{key}="
    assert set(offered(f"gebm-kit train quickstart {line}")) == {before + word for word in expected}


def test_parameters_are_those_of_the_component_that_is_chosen(offered: Offered, run: Path) -> None:
    assert set(offered("gebm-kit train quickstart sampler=mala sampler.")) == {"sampler.step_size="}
    assert "sampler.step_size=" not in offered("gebm-kit train quickstart sampler=sir sampler.")
    assert "sampler.rho=" in offered(f"gebm-kit sample {run} sampler."), "of the run"
    assert "sampler.rho=" in offered("gebm-kit sample sampler."), "of the newest run"
    assert "sampler.step_size=" in offered("gebm-kit sample --sampler mala sampler.s")
    assert offered("gebm-kit train no-such-recipe base.") == []


def test_commands_on_a_run_offer_what_they_can_override(offered: Offered, run: Path) -> None:
    words = offered("gebm-kit sample ")
    assert "runs/" in words
    assert "sample.seed=" in words
    assert not [word for word in words if word.startswith(("train", "base", "eval"))]


def test_run_directories_classes_and_checkpoints(offered: Offered, run: Path) -> None:
    assert offered("gebm-kit sample runs/shapes/") == ["runs/shapes/first"]
    assert offered("gebm-kit compare runs/shapes/f") == ["runs/shapes/first"]
    assert set(offered("gebm-kit sample runs/shapes/first --class c")) == {"circle", "cross"}
    assert set(offered("gebm-kit sample --class ")) == {"all", "circle", "cross", "square"}
    assert offered("gebm-kit sample --class circle,s") == ["circle,square"]
    assert set(offered("gebm-kit eval runs/shapes/first --checkpoint ")) == {"last", "best", "step-9"}


def test_without_a_run_nothing_breaks(offered: Offered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert offered("gebm-kit sample --class c") == []
    assert "sampler=" in offered("gebm-kit sample samp")
    (tmp_path / "resolved.yaml").write_text("no: [mapping")
    assert offered("gebm-kit sample . sampler.x") == []


RECORDS = list(installed().registry)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r.component.kind}:{r.component.name}")
def test_the_source_says_what_the_signature_says(record: object) -> None:
    from gebm_kit.core.components import Registered

    assert isinstance(record, Registered)
    found = written_parameters(record.component.target)
    real = {name: parameter for name, parameter in parameters(record.load()).items() if not parameter.injected}
    assert list(found) == list(real)
    for name, parameter in real.items():
        assert (found[name].kind or None) == parameter.kind
        assert bool(found[name].values) >= ("Literal" in str(parameter.annotation))


def test_a_class_that_can_not_be_read_has_no_parameters() -> None:
    for target in ("no_such_module:Class", "json:NoSuchClass", "math:sin"):
        assert written_parameters(target) == {}


def test_keys_and_values() -> None:
    for key in override_keys():
        assert all(isinstance(word, str) for word in values_of_key(key))
    assert values_of_key("train.nothing") == values_of_key("train") == values_of_key("base") == []
    assert complete_override("train.final.loss=kale-d") == ["train.final.loss=kale-dv"]
