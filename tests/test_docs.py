"""Documentation that can't drift: what is registered, accepted, printed or read is in docs/, and what is in docs/ works."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shlex
import shutil
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import gebm_kit
from gebm_kit.cli.app import app, main
from gebm_kit.config import schema
from gebm_kit.config.load import load_recipe, shipped_recipes
from gebm_kit.core import errors, hookspecs, interfaces
from gebm_kit.core.components import INJECTED, KINDS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
BENCHMARKS = DOCS / "benchmarks"
STUDIES = sorted(page for page in BENCHMARKS.glob("*.md") if page.name != "index.md")
PROGRAM: Any = typer.main.get_command(app)


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def words_in_code(text: str) -> set[str]:
    """Every word inside backticks, options and dotted keys whole."""
    spans = re.findall(r"`([^`\n]+)`", text)
    return {word for span in spans for word in re.findall(r"[\w.$=/-]+", span)}


def section(text: str, title: str) -> str:
    """The part of a page under ``## title``."""
    return re.split(r"^## ", text.partition(f"\n## {title}\n")[2], flags=re.MULTILINE)[0]


# --- components, hooks, injected names, environment ------------------------------------------------------------------


def generator(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_components_page_is_what_the_code_says() -> None:
    assert read("components.md") == generator("generate").page(), "run `make docs`"


def test_the_interfaces_page_is_what_the_code_says() -> None:
    assert read("interfaces.md") == generator("generate_interfaces").page(), "run `make docs`"


def test_the_interfaces_page_has_every_interface_with_every_field_and_method() -> None:
    text = read("interfaces.md")
    parts = {part.partition("`")[0]: part for part in text.split("\n### `")[1:]}
    for name in interfaces.__all__:
        member = getattr(interfaces, name)
        if not isinstance(member, type):
            assert f"`{name}" in text, name
            continue
        own = parts[name]
        for field in vars(member).get("__annotations__", {}):
            (row,) = [line for line in own.splitlines() if line.startswith(f"| `{field}` |")]
            assert not row.endswith("|  |"), f"{name}.{field} has no meaning"
        for method, function in vars(member).items():
            if callable(function) and not method.startswith("_"):
                assert f"**`{method}(" in own, f"{name}.{method}"
    for kind in KINDS:
        assert f"### Example: {kind}\n" in text
        assert f"class My{kind.capitalize()}(" in text
    assert "value_and_grad(z: Tensor) -> ValueAndGrad" in text


def test_every_hook_kind_and_injected_name_is_documented() -> None:
    text = read("plugins.md")
    hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec")]
    assert hooks == ["gebm_components"]
    for name in [*hooks, *INJECTED]:
        assert any(word.startswith(name) for word in words_in_code(text)), name
    for kind in KINDS:
        assert kind in text


def test_every_environment_variable_is_documented() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "gebm_kit").rglob("*.py"))
    names = set(re.findall(r"\b(?:GEBM_KIT|XDG)_[A-Z_]+\b", source)) | {"NO_COLOR"}
    missing = {name for name in names if name not in read("cli.md")}
    assert not missing


def test_every_sampler_has_a_row() -> None:
    from gebm_kit.core.plugins import discover

    for record in discover({}, []).registry.of_kind("sampler"):
        assert f"| `{record.component.name}` |" in read("samplers.md")


def test_every_public_name_is_documented() -> None:
    words = words_in_code(read("python-api.md"))
    for name in gebm_kit.__all__:
        assert f"gk.{name}" in words, name


# --- recipes ---------------------------------------------------------------------------------------------------------


def fields(kind: type, prefix: str) -> Iterator[tuple[str, str, str]]:
    """(heading, key, default) for every key of a section, nested ones under their own heading."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        nested = hints[field.name]
        if dataclasses.is_dataclass(nested):
            inner = f"{prefix}.{field.name}"
            yield from fields(typing.cast(type, nested), inner)
        elif prefix:
            default = field.default
            text = "null" if default is None else "[]" if default == () else str(default)
            yield prefix, field.name, text


def test_every_recipe_key_is_documented_with_its_default() -> None:
    text = read("recipes.md")
    tables = {
        heading: part
        for part in text.split("\n### ")[1:]
        for heading in re.findall(r"`([\w.]+)`", part.splitlines()[0])
    }
    for name in schema.TOP_LEVEL:
        assert f"`{name}" in text, name
    for name, kind in schema.SECTIONS.items():
        for heading, key, default in fields(kind, name):
            rows = [line for line in tables[heading].splitlines() if line.startswith(f"| `{key}` |")]
            assert rows, f"{heading}.{key} is not documented"
            if not heading.endswith(".optimizer"):  # share the optimisers' table, with defaults of their own
                assert f"| {default} |" in rows[0], f"{heading}.{key} has default {default}"


# --- commands --------------------------------------------------------------------------------------------------------


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(
    ("path", "command"), list(commands(PROGRAM)), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_and_option_is_documented(path: tuple[str, ...], command: Any) -> None:
    text = read("cli.md")
    own = section(text, path[0])
    assert own, f"no section about {path[0]}"
    assert len(path) == 1 or f"gebm-kit {' '.join(path)}" in own
    known = words_in_code(own) | words_in_code(section(text, "Every command"))
    for parameter in command.params:
        for option in parameter.opts:
            assert not option.startswith("-") or option in known, f"{' '.join(path)} {option}"


def test_every_error_code_is_documented() -> None:
    text = section(read("cli.md"), "Exit codes")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GebmKitError)]
    assert len(kinds) > 5
    for kind in kinds:
        assert f"`{kind.code}`" in text
        if kind is not errors.Interrupted:
            assert f"| {kind.exit_code} |" in text


TINY = [
    "train.steps=2", "train.start_steps=0", "train.final.steps=0", "eval.num_samples=100", "eval.num_sets=2",
    "sample.num_samples=100", "sample.num_chains=50", "sample.warmup=5", "sample.steps=6", "sample.thin=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "run"
    assert main(["train", "quickstart", *TINY, "eval.metrics=[mmd]", "--out", str(out), "--quiet", "--json"]) == 0
    return out


def test_every_json_key_is_documented(tiny_run: Path, formats: Any, capfd: pytest.CaptureFixture[str]) -> None:
    other = shutil.copytree(tiny_run, tiny_run.parent / "other")
    calls = [
        ["train", "quickstart", *TINY, "eval.metrics=[mmd]", "--out", str(tiny_run), "--resume"],
        ["train", "quickstart", "--dry-run"],
        ["sample", str(tiny_run)],
        ["sample", str(tiny_run), "--trace", "mmd"],
        ["eval", str(tiny_run)],
        ["list"],
        ["describe", "sampler", "hmc"],
        ["runs", str(tiny_run.parent)],
        ["compare", str(tiny_run), str(other), "--out", str(tiny_run.parent / "compare.png")],
        ["data", "prepare", "celeba", f"data.path={formats.celeba(tiny_run.parent / 'celeba', (2, 1, 1))}"],
        ["recipes", "ls"],
        ["recipes", "show", "quickstart"],
        ["recipes", "check", "quickstart"],
        ["recipes", "schema", "--out", str(tiny_run.parent / "recipe.json")],
        ["plugins", "new", "own-walk", "--kind", "sampler", "--out", str(tiny_run.parent / "walk")],
        ["doctor"],
        ["plugins", "list"],
    ]
    for words in calls:
        capfd.readouterr()
        assert main([*words, "--json", "--quiet"]) == 0
        found = json.loads(capfd.readouterr().out)
        known = words_in_code(section(read("cli.md"), words[0])) | {"schema"}
        missing = set(found) - known
        assert not missing, f"{' '.join(words)}: {missing}"
        inner = found.get("trace", {})
        run_keys = set().union(
            *found.get("runs", []), *(m for m in found.get("metrics", {}).values() if "reasons" in m)
        )
        assert run_keys <= known, f"{' '.join(words)}: {run_keys - known}"
        trace_keys = set(inner).union(*inner.get("points", []), *inner.get("curves", []))
        assert trace_keys <= known, f"{' '.join(words)}: {trace_keys - known}"
        for key in ("log_partition", "metrics", "equilibrium", "budget"):
            if isinstance(found.get(key), dict) and words[0] != "compare":  # whose metrics go by their own names
                allowed = known | words_in_code(section(read("cli.md"), "eval"))
                assert set(found[key]) <= allowed, f"{words[0]}: {key}"
    assert main(["list", "nothing", "--json"]) == 2
    error = json.loads(capfd.readouterr().out)
    assert {"error", *error["error"]} <= words_in_code(section(read("cli.md"), "Exit codes"))


# --- examples --------------------------------------------------------------------------------------------------------


def shell_lines() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:bash|console|sh)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            found += [(page.name, line) for line in block.splitlines() if line.startswith("gebm-kit ")]
    return found


@pytest.mark.parametrize(("page", "line"), shell_lines())
def test_printed_commands_are_understood(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line, comments=True)[1:]
    context = PROGRAM.make_context("gebm-kit", words, resilient_parsing=False)
    command, rest = PROGRAM, [*context._protected_args, *context.args]
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
        rest = [*getattr(context, "_protected_args", []), *context.args]
    monkeypatch.chdir(tmp_path)
    recipe, overrides = context.params.get("recipe_word"), context.params.get("override_words") or []
    if recipe == "mine.yaml":
        recipe = "quickstart"
        overrides = [word for word in overrides if not word.startswith("data.path")]
    if recipe is not None and page != "CONTRIBUTING.md":
        assert recipe in shipped_recipes()
        try:
            load_recipe(recipe, overrides)
        except (
            errors.PluginError
        ):  # of this project's own plugins, which are switched off here; their tests check such recipes
            assert "gebm-kit-flows" in shipped_recipes()[recipe].read_text()


def test_the_yaml_of_the_recipe_page_is_a_recipe(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", read("recipes.md"), flags=re.DOTALL)
    (tmp_path / "printed.yaml").write_text(block)
    assert load_recipe(tmp_path / "printed.yaml").train.steps == 3000


def python_blocks() -> list[Any]:
    found = []
    for page in PAGES:
        blocks = re.findall(r"<!-- run -->\n```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        found += [pytest.param(block, id=f"{page.name}-{index}") for index, block in enumerate(blocks)]
    return found


@pytest.mark.parametrize("block", python_blocks())
def test_printed_python_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, in an empty directory; only training is made short."""
    train = gebm_kit.train
    assert len(block.strip().splitlines()) <= 30

    def short(recipe: str, overrides: list[str]) -> Any:
        return train(recipe, [*TINY, "eval.metrics=[mmd]", *overrides])

    monkeypatch.setattr(gebm_kit, "train", short, raising=False)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "example", "exec"), {})


# --- links -----------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ +(.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if target.startswith("http"):
                continue
            name, _, anchor = target.partition("#")
            file = page.parent / name if name else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page.name}: {target}"


# --- benchmarks ------------------------------------------------------------------------------------------------------

CLAIM = ["claim", "figure", "goal", "met", "command"]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


def tables(page: Path) -> list[list[list[str]]]:
    """Return the tables of a page, each as its rows of cells, headings first."""
    blocks = re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [block.splitlines() for block in blocks]
    return [[cells(line) for line in (block[0], *block[2:])] for block in lines]


def test_the_index_of_the_benchmarks_has_every_claim_of_every_study() -> None:
    """One table, whose rows are those at the head of the studies: a figure has one value in both places."""
    (index,) = tables(BENCHMARKS / "index.md")
    assert index[0] == [*CLAIM, "study"]
    claims = {study: tables(study)[0] for study in STUDIES}
    assert all(head == CLAIM and rows for head, *rows in claims.values())
    expected = [[*row, f"[{study.stem}]({study.name})"] for study, (_, *rows) in claims.items() for row in rows]
    assert sorted(index[1:]) == sorted(expected)


def test_every_missed_goal_has_its_cause() -> None:
    for claim, figure, goal, met, command, _ in tables(BENCHMARKS / "index.md")[0][1:]:
        assert claim
        assert figure
        assert command
        assert re.match(r"yes\b|(no|borderline): \w|–$", met), claim
        assert (goal == "none set") == (met == "–"), claim


@pytest.mark.parametrize("study", STUDIES, ids=lambda page: page.stem)
def test_a_study_is_short(study: Path) -> None:
    text = study.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len([line for line in section(text, "Reading the figures").splitlines() if line.strip()]) <= 5


@pytest.mark.parametrize("study", STUDIES, ids=lambda page: page.stem)
def test_the_commands_of_a_study_are_programs_with_such_options(study: Path) -> None:
    text = study.read_text(encoding="utf-8")
    for module, file, rest in re.findall(r"python (?:-m (benchmarks[\w.]*)|(benchmarks/\w+\.py))([^`\n]*)", text):
        path = ROOT / (file or f"{module.replace('.', '/')}.py")
        program = path if path.exists() else path.with_suffix("") / "__main__.py"
        assert program.exists(), f"{module or file}"
        for option in set(re.findall(r"(--[a-z-]+)", rest)) - {"--help"}:
            assert f'"{option}"' in program.read_text(encoding="utf-8"), f"{program.name}: {option}"
