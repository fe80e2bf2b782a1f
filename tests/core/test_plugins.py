"""Plugin loading against real distributions: built as wheels, installed by pip into folders of their own, seen through
PYTHONPATH by programs of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gebm_kit.core import plugins
from gebm_kit.core.components import BUILTIN
from gebm_kit.core.errors import PluginError
from gebm_kit.core.plugins import discover

HOOK = """
import gebm_kit

@gebm_kit.hookimpl
def gebm_components():
    return [{records}]
"""


def record(kind: str, name: str, target: str) -> str:
    return f"gebm_kit.Component({kind!r}, {name!r}, {target!r}, 'From a test')"


PARTS = '''
import math
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from gebm_kit.core.components import Injected, Range
from gebm_kit.core.interfaces import Base, Info, Sampler, Tunable


class WalkState(NamedTuple):
    position: Tensor
    value: Tensor


class Walk(Sampler):
    """Random-walk Metropolis."""

    def __init__(self, scale: Annotated[float, Range(0, None, low_open=True)] = 0.5) -> None:
        self.scale = scale

    @property
    def tunable(self) -> Tunable:
        return Tunable("scale", target=0.3, low=1e-4, high=10.0)

    def init(self, z, potential, generator):
        return WalkState(z, potential.value(z))

    def step(self, state, potential, generator):
        noise = torch.randn(state.position.shape, generator=generator, dtype=state.position.dtype)
        proposal = state.position + self.scale * noise
        value = potential.value(proposal)
        acceptance = (state.value - value).exp().clamp(max=1).nan_to_num(0)
        accepted = torch.rand(acceptance.shape, generator=generator) < acceptance
        new = WalkState(
            torch.where(accepted.unsqueeze(1), proposal, state.position), torch.where(accepted, value, state.value)
        )
        return new, Info(acceptance, accepted, torch.zeros_like(accepted), grad_evals=0, forward_evals=1)


class Affine(Base):
    """G(z) = W z + b."""

    def __init__(
        self,
        latent_dim: Annotated[int, Range(1, None)] = 2,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
    ) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = latent_dim, tuple(data_shape)
        self.linear = nn.Linear(latent_dim, math.prod(data_shape))

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z).unflatten(1, self.data_shape)
'''

DISTRIBUTIONS: dict[str, dict[str, str]] = {
    "Gebm_Good": {
        "gebm_good/__init__.py": "print('a plugin that talks on import')\napi_version = 1\n"
        + HOOK.format(
            records=record("sampler", "walk", "gebm_good.parts:Walk")
            + ", "
            + record("base", "affine", "gebm_good.parts:Affine")
        ),
        "gebm_good/parts.py": PARTS,
    },
    "gebm-import-error": {
        "gebm_import_error/__init__.py": "from gebm_import_error import half\nimport no_such_module_anywhere\n",
        "gebm_import_error/half.py": "loaded = True\n",
    },
    "gebm-exits": {"gebm_exits/__init__.py": "raise SystemExit(7)\n"},
    "gebm-hook-raises": {
        "gebm_hook_raises/__init__.py": "import gebm_kit\n\n@gebm_kit.hookimpl\ndef gebm_components():\n    yield 1 / 0\n"
    },
    "gebm-rubbish": {"gebm_rubbish/__init__.py": HOOK.format(records="'not a component'")},
    "gebm-returns-none": {
        "gebm_returns_none/__init__.py": "import gebm_kit\n\n@gebm_kit.hookimpl\ndef gebm_components():\n    pass\n"
    },
    "gebm-no-hook": {"gebm_no_hook/__init__.py": "nothing = 'here'\n"},
    "gebm-twice": {
        "gebm_twice/__init__.py": HOOK.format(
            records=record("metric", "m", "gebm_twice:A") + ", " + record("metric", "m", "gebm_twice:B")
        )
    },
    "gebm-clash-a": {"gebm_clash_a/__init__.py": HOOK.format(records=record("sampler", "twin", "gebm_clash_a:A"))},
    "gebm-clash-b": {"gebm_clash_b/__init__.py": HOOK.format(records=record("sampler", "twin", "gebm_clash_b:B"))},
    "gebm-shadow": {
        "gebm_shadow/__init__.py": HOOK.format(records=record("sampler", "hmc", "gebm_shadow:Hmc"))
        + "\nclass Hmc:\n    pass\n"
    },
    "gebm-future": {
        "gebm_future/__init__.py": "api_version = 99\n"
        + HOOK.format(records=record("sampler", "future", "gebm_future:F"))
    },
}

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.2"

[project.entry-points.gebm_kit]
main = "{module}"
"""


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each distribution, which pip installed it into, without network."""
    root = tmp_path_factory.mktemp("distributions")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    projects = []
    for name, files in DISTRIBUTIONS.items():
        project = root / "src" / name
        for path, content in files.items():
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            (project / path).write_text(content)
        module = next(iter(files)).partition("/")[0]
        (project / "pyproject.toml").write_text(PYPROJECT.format(name=name, module=module))
        projects.append(str(project))
    wheels = root / "wheels"
    offline = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", str(wheels), *projects], check=True)
    installed = {}
    for name in DISTRIBUTIONS:
        (wheel,) = wheels.glob(f"{name.replace('-', '_').lower()}-*.whl")
        installed[name] = root / "installed" / name
        subprocess.run([*pip, "install", *offline, "--target", str(installed[name]), str(wheel)], check=True)
    return installed


Kit = Callable[..., subprocess.CompletedProcess[str]]

HIDES_OUR_OWN = """
import importlib.metadata as metadata

found = metadata.MetadataPathFinder.find_distributions
metadata.MetadataPathFinder.find_distributions = lambda *arguments, **names: (
    each for each in found(*arguments, **names) if not (each.metadata["Name"] or "").startswith("gebm-kit-")
)
"""
"""A sitecustomize.py for which the plugins of this repository, if they are installed here, are not."""


@pytest.fixture
def kit(targets: dict[str, Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """Run gebm-kit (or, with ``python=``, a program) with some of the distributions installed, and no other plugin."""
    hidden = tmp_path_factory.mktemp("site")
    (hidden / "sitecustomize.py").write_text(HIDES_OUR_OWN)

    def run(
        *words: str, plugins: list[str], python: str | None = None, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("GEBM_KIT_") or k == "GEBM_KIT_CACHE"}
        env |= {"PYTHONPATH": os.pathsep.join(str(targets[name]) for name in plugins), **environ}
        env["PYTHONPATH"] = os.pathsep.join(word for word in (env["PYTHONPATH"], str(hidden)) if word)
        command = ["-c", textwrap.dedent(python)] if python is not None else ["-m", "gebm_kit", *words]
        return subprocess.run([sys.executable, *command], env=env, cwd=tmp_path, capture_output=True, text=True)

    return run


def listed(kit: Kit, *plugins: str, **environ: str) -> dict[str, dict[str, Any]]:
    done = kit("plugins", "list", "--json", plugins=list(plugins), **environ)
    assert done.returncode == 0, done.stderr
    return {p["distribution"]: p for p in json.loads(done.stdout)["plugins"]}


# --- a good plugin ---------------------------------------------------------------------------------------------------


def test_a_good_plugin_is_reported_with_where_it_is_and_what_it_provides(kit: Kit, targets: dict[str, Path]) -> None:
    (status,) = listed(kit, "Gebm_Good").values()
    assert status == {
        "name": "main",
        "distribution": "Gebm_Good",
        "version": "1.2",
        "target": "gebm_good",
        "path": str(targets["Gebm_Good"] / "gebm_good" / "__init__.py"),
        "state": "ok",
        "error": "",
        "components": ["sampler:walk", "base:affine"],
        "notes": [],
    }


def test_list_shows_a_plugins_components_without_importing_them(kit: Kit) -> None:
    done = kit("list", "sampler", "--json", plugins=["Gebm_Good"])
    walk = next(c for c in json.loads(done.stdout)["components"] if c["name"] == "walk")
    assert walk == {
        "kind": "sampler",
        "name": "walk",
        "summary": "From a test",
        "target": "gebm_good.parts:Walk",
        "distribution": "Gebm_Good",
        "version": "1.2",
    }
    program = """
        import sys
        from gebm_kit.core.plugins import installed
        assert installed().report.plugins[0].state == "ok"
        assert "gebm_good.parts" not in sys.modules and "torch" not in sys.modules
    """
    assert kit(plugins=["Gebm_Good"], python=program).returncode == 0


def test_what_a_plugin_prints_on_import_stays_out_of_the_result(kit: Kit) -> None:
    done = kit("list", "--json", plugins=["Gebm_Good"])
    assert done.stdout.startswith("{")
    assert "talks on import" in done.stderr


RECIPE = """
schema: 1
requires: [Gebm.Good>=1]
data: {name: eight-gaussians}
base: {name: affine, latent_dim: 2}
energy: {name: mlp, hidden: [16]}
loss: {name: kale}
train: {steps: 4, energy_steps: 1, start_steps: 0, batch_size: 32, log_every: 2}
sampler: {name: walk, scale: 0.7}
sample: {num_samples: 64, num_chains: 32, warmup: 10, steps: 10, thin: 2}
eval: {metrics: [{name: mmd}], num_samples: 64, num_sets: 2}
device: cpu
"""


def test_a_plugins_base_and_sampler_train_and_sample_from_a_recipe(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    done = kit("train", "mine.yaml", "--out", "run", "--json", plugins=["Gebm_Good"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 4
    assert json.loads((tmp_path / "run" / "env.json").read_text())["plugins"] == {"Gebm_Good": "1.2"}

    done = kit("sample", "run", "--out", "draws.npz", "--json", plugins=["Gebm_Good"])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["sampler"], found["num_samples"]) == ("walk", 64)
    assert (tmp_path / "draws.npz").exists()

    done = kit("sample", "run", "--json", plugins=[])
    assert done.returncode == 3
    assert "'Gebm.Good>=1' is not installed" in json.loads(done.stdout)["error"]["message"]

    done = kit("sample", "run", "--json", plugins=["Gebm_Good"], GEBM_KIT_BLOCK_PLUGINS="gebm-good")
    assert done.returncode == 3
    assert "is blocked" in json.loads(done.stdout)["error"]["message"]


def test_a_base_of_an_uninstalled_plugin_of_ours_says_what_to_install(kit: Kit, tmp_path: Path) -> None:
    text = "schema: 1\ndata: {name: rings}\nbase: {name: realnvp}\nenergy: {name: mlp}\nloss: {name: kale}\n"
    (tmp_path / "mine.yaml").write_text(text)
    done = kit("train", "mine.yaml", plugins=[])
    assert done.returncode == 3
    assert "base 'realnvp' needs the plugin 'gebm-kit-flows', which is not installed" in done.stderr
    assert "pip install gebm-kit-flows" in done.stderr
    done = kit("train", "redwine", plugins=[])
    assert done.returncode == 3
    assert "pip install" in done.stderr


def test_a_recipe_may_require_a_version(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("Gebm.Good>=1", "gebm-good>=2"))
    done = kit("recipes", "check", "mine.yaml", plugins=["Gebm_Good"])
    assert done.returncode == 3
    assert "'gebm-good>=2' is needed, 1.2 is installed" in done.stderr


# --- broken plugins --------------------------------------------------------------------------------------------------


BROKEN = {
    "gebm-import-error": "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    "gebm-exits": "SystemExit: 7",
    "gebm-hook-raises": "ZeroDivisionError: division by zero",
    "gebm-rubbish": "gebm_components returned 'not a component' where a Component record belongs",
    "gebm-returns-none": "gebm_components returned None, not a list of Component records",
    "gebm-no-hook": "it implements no gebm_components hook",
    "gebm-twice": "ValueError: metric 'm' is registered twice by gebm-twice",
    "gebm-future": "it was written for plugin API 99; this kit speaks 1",
}


def test_broken_plugins_are_reported_and_break_nothing(kit: Kit) -> None:
    found = listed(kit, *BROKEN, "Gebm_Good")
    assert {name: found[name]["error"] for name in BROKEN} == BROKEN
    assert {(found[name]["state"], *found[name]["components"]) for name in BROKEN} == {("failed",)}
    assert found["Gebm_Good"]["state"] == "ok"

    done = kit("list", plugins=[*BROKEN])
    assert done.returncode == 0
    for name in BROKEN:
        assert f"plugin {name} failed to load" in done.stderr


@pytest.mark.parametrize("name", ["gebm-import-error", "gebm-rubbish"])
def test_strict_mode_makes_a_failure_fatal(kit: Kit, name: str) -> None:
    done = kit("list", "--json", plugins=[name, "Gebm_Good"], GEBM_KIT_STRICT_PLUGINS="1")
    assert done.returncode == 3
    error = json.loads(done.stdout)["error"]
    assert f"plugin {name} (entry point main) failed: {BROKEN[name]}" in error["message"]
    assert "GEBM_KIT_STRICT_PLUGINS" in error["hint"]


def test_a_failed_import_leaves_no_modules_behind(kit: Kit) -> None:
    program = """
        import sys
        from gebm_kit.core.plugins import installed
        assert [p.state for p in installed().report] == ["failed"]
        assert not [name for name in sys.modules if name.startswith("gebm_import_error")]
    """
    done = kit(plugins=["gebm-import-error"], python=program)
    assert done.returncode == 0, done.stderr


def test_a_recipe_that_needs_a_failed_plugin_says_so(kit: Kit, tmp_path: Path) -> None:
    for word in ("sampler=gebm-import-error:fancy", "sampler=fancy"):
        done = kit("recipes", "check", "quickstart", word, "--json", plugins=["gebm-import-error"])
        assert done.returncode == 3
        error = json.loads(done.stdout)["error"]
        assert error["code"] == "plugin"
        assert "plugin 'gebm-import-error' failed to load (ModuleNotFoundError" in error["message"]


def test_plugins_info_and_doctor_name_the_failure(kit: Kit) -> None:
    done = kit("plugins", "info", "gebm-rubbish", plugins=["gebm-rubbish"])
    assert done.returncode == 0
    assert "failed" in done.stdout
    assert "where a Component record belongs" in done.stdout
    done = kit("plugins", "info", "gebm-rubish", plugins=["gebm-rubbish"])
    assert done.returncode == 2
    assert "did you mean gebm-rubbish?" in done.stderr
    done = kit("doctor", "--json", plugins=["gebm-rubbish"])
    assert any("gebm-rubbish failed" in problem for problem in json.loads(done.stdout)["problems"])


def test_an_unreadable_entry_point_file_hides_no_other_plugin(
    kit: Kit, targets: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "damaged"
    shutil.copytree(targets["gebm-rubbish"], copy)
    (entry_points,) = copy.glob("*.dist-info/entry_points.txt")
    entry_points.write_text("[gebm_kit]\nthis line has no equals sign\n")
    path = os.pathsep.join([str(copy), str(targets["Gebm_Good"])])
    done = kit("plugins", "list", "--json", plugins=[], PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    states = {p["distribution"]: p["state"] for p in json.loads(done.stdout)["plugins"]}
    assert states == {"Gebm_Good": "ok", "gebm-rubbish": "failed"}


# --- names -----------------------------------------------------------------------------------------------------------


def test_two_plugins_with_one_name_must_be_addressed(kit: Kit) -> None:
    clash = ["gebm-clash-a", "gebm-clash-b"]
    assert {p["state"] for p in listed(kit, *clash).values()} == {"ok"}
    done = kit("list", "sampler", plugins=clash)
    assert "gebm-clash-a:twin" in done.stdout
    done = kit("recipes", "check", "quickstart", "sampler=twin", plugins=clash)
    assert done.returncode == 2
    assert "write one of gebm-clash-a:twin, gebm-clash-b:twin" in done.stderr
    program = """
        from gebm_kit.core.plugins import installed
        assert installed().registry.get("sampler", "gebm-clash-b:twin").component.target == "gebm_clash_b:B"
    """
    assert kit(plugins=clash, python=program).returncode == 0


def test_a_builtin_can_not_be_shadowed(kit: Kit) -> None:
    (status,) = listed(kit, "gebm-shadow").values()
    assert status["state"] == "ok"
    assert status["notes"] == ["sampler 'hmc' is a built-in and keeps its name; this plugin's is gebm-shadow:hmc"]
    program = """
        from gebm_kit.core.plugins import installed
        registry = installed().registry
        assert registry.get("sampler", "hmc").load().__module__ == "gebm_kit.samplers.hmc"
        assert registry.get("sampler", "gebm-shadow:hmc").load().__module__ == "gebm_shadow"
    """
    done = kit(plugins=["gebm-shadow"], python=program)
    assert done.returncode == 0, done.stderr


def test_a_distribution_can_not_take_the_kits_name() -> None:
    class Dist:
        metadata = {"Name": "Gebm.Kit"}  # noqa: RUF012
        version = "9"

    entry = EntryPoint("main", "json", "gebm_kit")
    vars(entry).update(dist=Dist())
    (status,) = discover({}, [entry]).report
    assert (status.state, status.error) == ("failed", f"the name {BUILTIN} belongs to the kit itself")


def test_an_entry_point_that_repeats_a_name_of_its_distribution_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dist:
        metadata: ClassVar = {"Name": "gebm-twice"}
        version = "1"

    entries = []
    for name, components in (("gebm_first", ["shared"]), ("gebm_second", ["own", "shared"])):
        records = ", ".join(record("sampler", word, "math:sqrt") for word in components)
        (tmp_path / f"{name}.py").write_text(HOOK.format(records=records))
        entry = EntryPoint(name, name, "gebm_kit")
        vars(entry).update(dist=Dist())
        entries.append(entry)
    monkeypatch.syspath_prepend(tmp_path)
    managers = []
    load = plugins._load
    monkeypatch.setattr(plugins, "_load", lambda manager, *rest: managers.append(manager) or load(manager, *rest))
    try:
        found = discover({}, entries)
    finally:
        sys.modules.pop("gebm_first", None)
    first, second = found.report
    assert (first.state, second.state) == ("ok", "failed")
    assert "'shared' is registered twice by gebm-twice" in second.error
    assert [r.component.name for r in found.registry if r.distribution == "gebm-twice"] == ["shared"]
    assert managers[0].has_plugin("gebm-twice/gebm_first")
    assert not managers[0].has_plugin("gebm-twice/gebm_second")
    assert "gebm_second" not in sys.modules


# --- allow and block lists -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "states"),
    [
        ({}, {"Gebm_Good": "ok", "gebm-shadow": "ok"}),
        ({"GEBM_KIT_LOAD_PLUGINS": ""}, {"Gebm_Good": "blocked", "gebm-shadow": "blocked"}),
        ({"GEBM_KIT_LOAD_PLUGINS": " gebm-good , nothing"}, {"Gebm_Good": "ok", "gebm-shadow": "blocked"}),
        ({"GEBM_KIT_LOAD_PLUGINS": "main"}, {"Gebm_Good": "ok", "gebm-shadow": "ok"}),
        ({"GEBM_KIT_BLOCK_PLUGINS": "gebm.shadow"}, {"Gebm_Good": "ok", "gebm-shadow": "blocked"}),
        (
            {"GEBM_KIT_LOAD_PLUGINS": "gebm-good,gebm-shadow", "GEBM_KIT_BLOCK_PLUGINS": "Gebm_Good"},
            {"Gebm_Good": "blocked", "gebm-shadow": "ok"},
        ),
    ],
)
def test_allow_and_block_lists(kit: Kit, environ: dict[str, str], states: dict[str, str]) -> None:
    found = listed(kit, "Gebm_Good", "gebm-shadow", **environ)
    assert {name: p["state"] for name, p in found.items()} == states
    for status in found.values():
        assert status["state"] == "ok" or "GEBM_KIT_" in status["error"]


def test_a_blocked_plugin_is_never_imported(kit: Kit) -> None:
    done = kit("list", plugins=["gebm-exits", "Gebm_Good"], GEBM_KIT_LOAD_PLUGINS="", GEBM_KIT_STRICT_PLUGINS="1")
    assert done.returncode == 0
    assert "talks on import" not in done.stderr


def test_strict_mode_is_an_error_in_python_too() -> None:
    entry = EntryPoint("main", "no_such_module_anywhere", "gebm_kit")
    with pytest.raises(PluginError, match="no_such_module_anywhere"):
        discover({"GEBM_KIT_STRICT_PLUGINS": "1"}, [entry])
    (status,) = discover({}, [entry]).report.failed
    assert status.distribution == "main"
