"""list, describe, plugins, doctor and recipes."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gebm_kit
from gebm_kit.cli.app import main
from gebm_kit.cli.recipes import summary
from gebm_kit.config.load import shipped_recipes
from gebm_kit.core.components import KINDS
from gebm_kit.core.plugins import installed

RECORDS = list(installed().registry)


def test_list_json(cli: Any) -> None:
    found = cli("list", "--json").json
    assert set(found) == {"schema", "components"}
    keys = {"kind", "name", "summary", "target", "distribution", "version"}
    assert all(set(component) == keys for component in found["components"])
    assert len(found["components"]) == len(RECORDS)
    only = cli("list", "loss", "--json").json["components"]
    assert {c["kind"] for c in only} == {"loss"}


@pytest.mark.parametrize("kind", KINDS)
def test_list_of_a_kind(cli: Any, kind: str) -> None:
    lines = cli("list", kind).out.splitlines()[1:]
    assert lines
    assert all(line.startswith(kind) for line in lines)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r.component.kind}:{r.component.name}")
def test_every_component_can_be_described(cli: Any, record: Any) -> None:
    kind, name = record.component.kind, record.component.name
    found = cli("describe", kind, name, "--json").json
    assert set(found) == {
        "schema", "kind", "name", "summary", "target", "distribution", "version", "parameters", "doc",
    }  # fmt: skip
    keys = {"name", "type", "default", "required", "range", "injected", "meaning"}
    assert all(set(p) == keys for p in found["parameters"])
    text = cli("describe", kind, name)
    assert text.code == 0
    assert all(p["name"] in text.out for p in found["parameters"])
    assert found["doc"] in text.out


def test_describe_shows_type_default_and_range(cli: Any) -> None:
    lines = cli("describe", "sampler", "mala").out.splitlines()
    (line,) = [line for line in lines if line.startswith("step_size ")]
    assert line.split() == ["step_size", "float", "0.1", ">", "0"] or ("float" in line and ">" in line)
    lines = cli("describe", "base", "mlp").out.splitlines()
    (line,) = [line for line in lines if line.startswith("data_shape ")]
    assert "(filled in by the kit)" in line


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the plugins installed on this machine, even blocked ones."""
    monkeypatch.setattr("gebm_kit.core.plugins._entry_points", lambda: ([], []))
    installed.cache_clear()
    yield
    monkeypatch.undo()
    installed.cache_clear()


@pytest.mark.usefixtures("no_plugins")
def test_plugins_without_plugins(cli: Any) -> None:
    assert cli("plugins", "list").out == "no plugins are installed\n"
    assert cli("plugins", "list", "--json").json == {"schema": 1, "plugins": []}
    result = cli("plugins", "info", "gebm-kit-flows")
    assert result.code == 2
    assert "no plugin 'gebm-kit-flows' is installed" in result.err


def test_doctor(cli: Any) -> None:
    found = cli("doctor", "--json").json
    assert set(found) == {
        "schema", "gebm_kit", "python", "executable", "platform", "torch", "devices", "threads", "cpus", "cache",
        "plugins", "versions", "problems",
    }  # fmt: skip
    assert found["gebm_kit"] == gebm_kit.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["devices"][0]["name"] == "cpu"
    assert found["cache"] == os.environ["GEBM_KIT_CACHE"]
    assert found["problems"] == []
    text = cli("doctor").out
    for word in ("python", "torch", "devices", "threads", "plugins", "cache", "versions"):
        assert word in text


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_recipes_ls(cli: Any) -> None:
    found = cli("recipes", "ls", "--json").json["recipes"]
    assert {r["name"] for r in found} == set(shipped_recipes())
    assert "quickstart" in {r["name"] for r in found}
    for one in found:
        assert set(one) == {"name", "summary", "path"}
        assert one["summary"].endswith("."), f"{one['name']} starts with no comment line that says what it is, whole"
        assert one["name"] in cli("recipes", "ls").out


def test_recipes_show_prints_the_file(cli: Any) -> None:
    text = shipped_recipes()["quickstart"].read_text()
    assert cli("recipes", "show", "quickstart").out.strip() == text.strip()
    found = cli("recipes", "show", "quickstart", "--json").json
    assert set(found) == {"schema", "name", "path", "text"}
    assert found["text"] == text


def test_recipes_cp_never_overwrites(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("recipes", "cp", "quickstart", "--json").json == {
        "schema": 1, "name": "quickstart", "path": "quickstart.yaml",
    }  # fmt: skip
    text = (tmp_path / "quickstart.yaml").read_text()
    header, _, rest = text.partition("\n")
    cached = Path(os.environ["GEBM_KIT_CACHE"]) / "recipe.schema.json"
    assert header == f"# yaml-language-server: $schema={cached.resolve().as_uri()}"
    assert rest == shipped_recipes()["quickstart"].read_text()
    (tmp_path / "quickstart.yaml").write_text("mine")
    result = cli("recipes", "cp", shipped_recipes()["quickstart"])
    assert result.code == 2
    assert "quickstart.yaml exists already" in result.err
    assert (tmp_path / "quickstart.yaml").read_text() == "mine"
    assert cli("recipes", "cp", "quickstart", "mine.yaml").code == 0
    assert (tmp_path / "mine.yaml").read_text() == text
    assert cli("recipes", "cp", "quickstart", "nowhere/mine.yaml").code == 2
    assert not Path("nowhere").exists()


def test_recipes_cp_writes_the_schema_that_its_header_names(cli: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEBM_KIT_CACHE", str(tmp_path / "the cache"))
    result = cli("recipes", "cp", "quickstart", "mine.yaml")
    assert (result.code, result.out, result.err) == (0, "mine.yaml\n", "")
    assert Path("mine.yaml").read_text().splitlines()[0].endswith("/the%20cache/recipe.schema.json")
    schema = json.loads(Path("the cache/recipe.schema.json").read_text())
    assert schema == json.loads(cli("recipes", "schema").out)
    assert cli("recipes", "check", "mine.yaml").code == 0
    assert cli("recipes", "cp", "mine.yaml", "again.yaml").code == 0
    assert Path("again.yaml").read_text() == Path("mine.yaml").read_text(), "the header is there once"
    assert cli("recipes", "cp", "quickstart", "plain.yaml", "--no-schema").code == 0
    assert Path("plain.yaml").read_text() == shipped_recipes()["quickstart"].read_text()


def test_recipes_cp_names_a_schema_in_a_place_of_your_own(cli: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    assert cli("recipes", "cp", "quickstart", "sub/mine.yaml", "--schema", "editor/recipe.json").code == 0
    assert Path("sub/mine.yaml").read_text().startswith("# yaml-language-server: $schema=../editor/recipe.json\n# ")
    assert json.loads(Path("editor/recipe.json").read_text()) == json.loads(cli("recipes", "schema").out)
    Path("file").write_text("mine")
    result = cli("recipes", "cp", "quickstart", "other.yaml", "--schema", "file/recipe.json")
    assert result.code == 2
    assert "file can't be written" in result.err
    assert not Path("other.yaml").exists()
    assert cli("recipes", "cp", "quickstart", "other.yaml", "--schema", "a.json", "--no-schema").code == 2


def test_recipes_cp_without_a_cache_leaves_the_header_out(cli: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("GEBM_KIT_CACHE", str(tmp_path / "cache"))
    result = cli("recipes", "cp", "quickstart", tmp_path / "mine.yaml")
    assert result.code == 0
    assert "the copy has no line for your editor" in result.err
    assert (tmp_path / "mine.yaml").read_text() == shipped_recipes()["quickstart"].read_text()


def test_a_header_for_editors_is_no_summary() -> None:
    text = "# yaml-language-server: $schema=a.json\n# Digits.\nschema: 1\n"
    assert summary(text) == "Digits."


def test_recipes_cp_on_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
        code = main(["recipes", "cp", "quickstart", str(tmp_path / "q.yaml"), "--quiet"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert code == 1
    assert not list(tmp_path.iterdir())


def test_recipes_check(cli: Any, recipe: Path) -> None:
    result = cli("recipes", "check", recipe)
    assert (result.code, result.out) == (0, f"{recipe}: no problems\n")
    assert cli("recipes", "check", recipe, "--json").json == {
        "schema": 1, "name": "tiny", "path": str(recipe), "ok": True,
    }  # fmt: skip
    result = cli("recipes", "check", recipe, "train.stepz=5", "sampler.step_size=-1", "--json")
    assert result.code == 2
    message = result.json["error"]["message"]
    assert "did you mean steps" in message
    assert "'sampler.step_size=-1'" in message
    assert "> 0" in message


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_passes_the_check(cli: Any, name: str) -> None:
    result = cli("recipes", "check", name)
    if "gebm-kit-flows" in shipped_recipes()[name].read_text():  # switched off here
        assert (result.code, "gebm-kit-flows" in result.err) == (3, True)
    else:
        assert result.code == 0
