"""New plugin packages: of every kind, installed and tested as a user would, and told apart from broken ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gebm_kit.cli.app import main
from gebm_kit.config.schema import COMPONENT_SECTIONS
from gebm_kit.core.components import KINDS
from gebm_kit.core.errors import PluginError, UsageError
from gebm_kit.core.plugins import installed
from gebm_kit.scaffold.names import check_free, names_of
from gebm_kit.scaffold.package import component_module, package_files, summary_of, write_package

BREAKAGES = {
    "sampler": (".normal_(generator=generator)", ".normal_()"),
    "base": ("            return x\n", "            return x + x.mean(0)\n"),
    "energy": (".squeeze(1)", ""),
    "loss": ("softplus(on_data)) + reduce.mean(softplus(-on_base))", "softplus(-on_data)) + reduce.mean(softplus(on_base))"),
    "penalty": ("energy(batch.x), energy(batch.x_base)", "energy(batch.x).detach(), energy(batch.x_base).detach()"),
    "dataset": ("return self.parts[name]", 'return self.parts["train"]'),
    "features": ("    @torch.no_grad()\n", ""),
    "metric": ("lower_is_better = True", "lower_is_better = False"),
    "logger": ("[step, name, value] for name, value in scalars.items()", '[step, "loss", scalars["energy_loss"]]'),
}  # fmt: skip
"""One fault of a component of each kind: what is replaced, and by what."""


QUICK = [
    "train.steps=4", "train.start_steps=0", "train.final.steps=2", "train.log_every=2", "device=cpu",
    "eval.num_samples=60", "eval.num_sets=2",
    "sample.num_samples=60", "sample.num_chains=30", "sample.warmup=4", "sample.steps=6", "sample.thin=1",
]  # fmt: skip
"""Overrides that make a run short."""


def site_of(root: Path, *, broken: bool) -> Path:
    """Write a package of each kind and lay all of them out as pip installs them; return that folder."""
    site = root / "site"
    for kind in KINDS:
        names = names_of(f"my-{kind}", kind)
        write_package(names, root / names.distribution)
        (site / names.package).mkdir(parents=True)
        for path in (root / names.distribution / "src" / names.package).iterdir():
            text = path.read_text()
            if broken and path.stem == kind:
                right, wrong = BREAKAGES[kind]
                assert text.count(right) == 1, kind
                text = text.replace(right, wrong)
            (site / names.package / path.name).write_text(text)
        info = site / f"{names.package}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {names.distribution}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[gebm_kit]\n{names.component} = {names.package}\n")
    return site


def program(site: Path, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages in ``site`` installed, and no other plugins."""
    env = {**os.environ, "GEBM_KIT_LOAD_PLUGINS": ",".join(f"my-{kind}" for kind in KINDS)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return subprocess.run([sys.executable, *words], env=env, cwd=cwd or site, capture_output=True, text=True)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a package of each kind, and with ``site``, where they are installed."""
    root = tmp_path_factory.mktemp("packages")
    site_of(root, broken=False)
    return root


@pytest.mark.slow
def test_the_tests_of_every_new_package_pass(packages: Path) -> None:
    folders = [str(packages / f"my-{kind}") for kind in KINDS]
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error"]
    done = program(packages / "site", "-m", "pytest", *options, *folders)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "27 passed" in done.stdout


@pytest.mark.slow
def test_the_new_components_train_and_sample_together(packages: Path, tmp_path: Path) -> None:
    parts = [
        f"{key}=my-{kind}"
        for key, kind in {**COMPONENT_SECTIONS, "train.penalty": "penalty", "loggers": "logger"}.items()
    ]
    metrics = "eval.metrics=[my-metric, {name: mmd, features: my-features}]"
    words = ["train", "quickstart", *parts, metrics, *QUICK, "--out", "run", "--quiet", "--json"]
    done = program(packages / "site", "-m", "gebm_kit", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["metrics"]["gebm"]) == {"my-metric", "mmd"}
    assert "energy_loss" in (tmp_path / "run" / "my-logger.csv").read_text()


def test_plugins_check_is_green_for_every_new_package(packages: Path) -> None:
    done = program(packages / "site", "-m", "gebm_kit", "plugins", "check", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {p["distribution"]: p["components"] for p in json.loads(done.stdout)["plugins"]}
    for kind in KINDS:
        (component,) = found[f"my-{kind}"]
        assert component == {
            "kind": kind, "name": f"my-{kind}", "state": "ok", "detail": "", "checks": ["check_signature", f"check_{kind}"],
        }  # fmt: skip


def test_plugins_check_names_a_broken_component_of_every_kind(tmp_path: Path) -> None:
    site = site_of(tmp_path, broken=True)
    done = program(site, "-m", "gebm_kit", "plugins", "check", "--quiet")
    assert done.returncode == PluginError.exit_code, done.stdout + done.stderr
    heads, *rows, last = done.stdout.splitlines()
    assert heads.split() == ["plugin", "kind", "name", "checks", "result", "what", "was", "found"]
    assert last == f"failed: {len(KINDS)}"
    found = {row.split()[0]: row for row in rows}
    for kind in KINDS:
        row = found[f"my-{kind}"]
        assert f"  {kind} " in row
        assert f" check_signature, check_{kind} failed " in " ".join(row.split())
        assert f"my_{kind}/{kind}.py" in row, "the sentence names the file"


def test_new_packages_pass_ruff(packages: Path) -> None:  # mypy reads the examples with the kit, in `make lint`
    for tool in (["ruff", "check", "--no-cache", "."], ["ruff", "format", "--no-cache", "--check", "."]):
        for kind in KINDS:
            done = program(packages / "site", "-m", *tool, cwd=packages / f"my-{kind}")
            assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_package_installs_from_its_folder_without_network(packages: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps", "--no-index"]
    words = ["--no-build-isolation", "--prefix", str(tmp_path / "env"), "-e", str(packages / "my-energy")]
    subprocess.run([*pip, *words], check=True, capture_output=True)
    (link,) = (tmp_path / "env").rglob("*my_energy*.pth")
    assert link.read_text().strip() == str(packages / "my-energy" / "src")
    code = (
        f"import site, sys; site.addsitedir({str(link.parent)!r}); from gebm_kit.cli.app import main; sys.exit(main())"
    )
    env = {**os.environ, "GEBM_KIT_LOAD_PLUGINS": "my-energy"}
    words = ["-c", code, "describe", "energy", "my-energy"]
    done = subprocess.run([sys.executable, *words], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "my_energy.energy:MyEnergy, from my-energy 0.1.0" in done.stdout


def test_listing_the_component_does_not_import_torch(packages: Path) -> None:
    code = "import sys; from gebm_kit.cli.app import main; main(['list', 'loss']); assert 'torch' not in sys.modules"
    done = program(packages / "site", "-c", code)
    assert done.returncode == 0, done.stderr
    assert "my-loss" in done.stdout


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_new_writes_the_files_that_it_names(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", f"An_own.{kind}", "--kind", kind, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    name = f"an-own-{kind}"
    assert found == {
        "schema": 1, "name": name, "kind": kind, "component": name, "package": f"an_own_{kind}", "path": name,
        "files": list(package_files(names_of(name, kind))),
    }  # fmt: skip
    written = sorted(str(path.relative_to(name)) for path in Path(name).rglob("*") if path.is_file())
    assert written == sorted(found["files"])
    assert [path.name for path in tmp_path.iterdir()] == [name], "nothing else was left"
    assert f"class AnOwn{kind.capitalize()}(" in (Path(name) / "src" / found["package"] / f"{kind}.py").read_text()
    for text in package_files(names_of(name, kind)).values():
        assert "$" not in text
        assert "scaffold" not in text
        assert "Example" not in text
        assert f" a {kind}" not in text or kind[0] not in "aeiou"


def test_new_prints_what_to_do_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", "own-walk", "--kind", "sampler", "--out", "a folder/walk"]) == 0
    assert capfd.readouterr().out.splitlines() == [
        "a folder/walk: the sampler 'own-walk', in 8 files",
        "  pip install -e './a folder/walk'",
        "  pytest './a folder/walk'",
        "  gebm-kit plugins check own-walk",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("class", "'class' is a keyword of Python"),
        ("3d-walk", "'3d_walk' is not an identifier of Python"),
        ("my walk", "it is not a name in the sense of PEP 503"),
        ("../walk", "it is not a name in the sense of PEP 503"),
        ("walk-", "it is not a name in the sense of PEP 503"),
        ("läufer", "it is not a name in the sense of PEP 503"),
        ("", "it is not a name in the sense of PEP 503"),
        ("w" * 51, "it has 51 characters, and at most 50 are allowed"),
        ("null", "a recipe's YAML reads 'null' as a value, not as a name"),
        ("mala", "the kit has a sampler 'mala'"),
        ("json", "Python has a module 'json'"),
        ("Torch", "a distribution 'torch' is installed; a module 'torch' can be imported here"),
        ("gebm_kit", "a distribution 'gebm-kit' is installed; a module 'gebm_kit' can be imported here"),
    ],
)
def test_a_name_that_can_not_be_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", "--kind", "sampler", "--", name]) == 2
    assert message in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_all_clashes_of_a_name_come_in_one_message() -> None:
    from gebm_kit.core.components import Component, Registry

    registry = Registry()
    registry.add(Component("metric", "numpy", "elsewhere:Metric", "A metric"), "some-plugin")
    registry.add(Component("loss", "numpy", "elsewhere:Loss", "A loss"), "some-plugin")
    with pytest.raises(UsageError) as caught:
        check_free(names_of("numpy", "metric"), registry)
    assert caught.value.message == (
        "the name 'numpy' is taken: the plugin some-plugin has a metric 'numpy'; a distribution 'numpy' is installed; "
        "a module 'numpy' can be imported here"
    )


def test_a_plugin_of_this_project_that_is_not_installed_keeps_its_names() -> None:
    with pytest.raises(UsageError, match="the plugin gebm-kit-flows has a base 'nsf'"):
        check_free(names_of("nsf", "base"), installed().registry)
    with pytest.raises(UsageError, match="'gebm-kit-inception' "):
        check_free(names_of("gebm-kit-inception", "base"), installed().registry)


@pytest.mark.parametrize("existing", ["folder", "file", "link"])
def test_what_exists_is_left_alone(existing: str, tmp_path: Path, capfd: Any) -> None:
    target = tmp_path / "taken"
    if existing == "folder":
        target.mkdir()
    elif existing == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    assert main(["plugins", "new", "own-walk", "--kind", "sampler", "--out", str(target)]) == 2
    assert f"{target} exists already" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert existing != "folder" or not list(target.iterdir())


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Path.write_text

    def write_text(self: Path, *args: object, **kwargs: object) -> int:
        if self.name == "py.typed":
            raise OSError(28, "No space left on device")
        return wanted(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", write_text)
    assert main(["plugins", "new", "own-walk", "--kind", "sampler", "--out", str(tmp_path / "walk")]) == 1
    assert not list(tmp_path.iterdir())


def test_a_class_never_hides_a_name_of_its_module() -> None:
    for kind, name in (("sampler", "sampler"), ("base", "tensor"), ("energy", "none"), ("dataset", "split")):
        text = component_module(names_of(name, kind))
        expected = f"class {name.capitalize()}{kind.capitalize()}("
        assert expected in text
        compile(text, "module", "exec")


def test_an_unknown_kind_gets_the_nearest_one(capfd: Any) -> None:
    assert main(["plugins", "new", "own-walk", "--kind", "smapler"]) == 2
    assert "component kind 'smapler' is unknown; did you mean sampler?" in capfd.readouterr().err


def test_examples_are_no_built_ins() -> None:
    summaries = [record.component.summary for record in installed().registry]
    for kind in KINDS:
        assert summary_of(kind) not in summaries
