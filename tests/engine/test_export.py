"""Exported folders: what they hold, what loads them, and the program that draws without gebm-kit."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

import gebm_kit as gk
from gebm_kit.core.errors import CheckpointError, DataError, PluginError, UsageError
from gebm_kit.core.interfaces import Base, Energy
from gebm_kit.core.model import GEBM
from gebm_kit.core.plugins import installed
from gebm_kit.engine.export import Exported
from gebm_kit.engine.exporting.escape import code, md
from gebm_kit.engine.exporting.program import NotExportable, make_program
from gebm_kit.samplers.hmc import Hmc
from gebm_kit.samplers.mala import Mala

RECIPE = """\
schema: 1
data: {name: digits}
base: {name: mlp, latent_dim: 4, hidden: [16]}
energy: {name: mlp, hidden: [16]}
train: {steps: 4, energy_steps: 1, start_steps: 0, batch_size: 32, checkpoint_every: 2, log_every: 2}
sample: {num_samples: 40, num_chains: 20, warmup: 8, steps: 6, thin: 2}
eval: {metrics: [{name: mmd}], num_samples: 40, num_sets: 2}
device: cpu
"""

ALONE = """\
import importlib.util, json, sys
assert importlib.util.find_spec("gebm_kit") is None, "gebm-kit is installed here"
import safetensors.torch, torch
folder = sys.argv[1]
given = safetensors.torch.load_file(folder + "/given.safetensors")
program = torch.export.load(folder + "/program.pt2").module()
safetensors.torch.save_file({"x": program(given["noise"])}, folder + "/drawn.safetensors")
assert "gebm_kit" not in sys.modules
"""
"""Draws by the program in a process in which gebm-kit is not installed."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[gk.engine.run_directory.run.Run, Exported]:  # type: ignore[name-defined]
    """Return a trained run, and what its export wrote."""
    place = tmp_path_factory.mktemp("exported")
    (place / "small <b>.yaml").write_text(RECIPE)
    run = gk.train(place / "small <b>.yaml", out=place / "run", progress=False)
    return run, gk.export(run, place / "out", license="mit", progress=False)


@pytest.fixture
def folder(made, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    """Return a copy of the exported folder."""
    return Path(shutil.copytree(made[1].path, tmp_path / "copy"))


def changed(folder: Path, **values: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    return folder


# --- the folder ------------------------------------------------------------------------------------------------------


def test_a_folder_holds_nothing_of_this_machine_and_nothing_pickled(made) -> None:  # type: ignore[no-untyped-def]
    run, exported = made
    names = {
        "model.safetensors",
        "recipe.yaml",
        "config.json",
        "evaluation.json",
        "README.md",
        "program.pt2",
        "program.json",
    }
    assert names <= set(exported.files) <= names | {"samples.png", "energies.png", "curves.png"}
    for name in exported.files:
        content = (exported.path / name).read_bytes()
        assert str(run.path.parent).encode() not in content, name
        assert str(Path(gk.__file__).parent).encode() not in content, name


def test_a_loaded_folder_draws_scores_and_tilts_as_the_run_does(made, folder: Path) -> None:  # type: ignore[no-untyped-def]
    run, _ = made
    loaded = gk.load(folder)
    options = {"sampler": "mala", "num_samples": 20, "warmup": 8, "steps": 6, "seed": 3, "progress": False}
    with pytest.warns(gk.core.progress.GebmKitWarning):
        ours, theirs = gk.sample(run, **options), gk.sample(loaded, **options)
    assert torch.equal(ours.x, theirs.x)
    assert torch.equal(loaded.model.log_partition, run.model.log_partition)
    assert loaded.value_range == run.value_range
    assert loaded.step == run.step
    assert loaded.recipe.name == "small <b>"
    assert loaded.evaluation is not None
    assert loaded.evaluation["metrics"] == run.evaluation["metrics"]
    rows = ours.x[:5]
    assert torch.equal(gk.score(loaded, rows).energy, gk.score(run, rows).energy)
    assert gk.load_run(folder).path == folder


def test_the_command_line_draws_from_a_folder_and_writes_nothing_into_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from gebm_kit.cli.app import main

    monkeypatch.chdir(tmp_path)
    before = sorted(folder.rglob("*"))
    assert main(["sample", str(folder), "--sampler", "mala", "--num-samples", "10", "--json"]) == 0
    out = Path(json.loads(capfd.readouterr().out)["out"])
    assert out.is_file()
    assert not out.resolve().is_relative_to(folder)
    assert sorted(folder.rglob("*")) == before
    assert main(["sample", str(folder), "--checkpoint", "best"]) == 2
    assert "holds one checkpoint" in capfd.readouterr().err


def test_a_folder_is_replaced_only_if_asked_and_only_if_it_is_an_export(made, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run, _ = made
    with pytest.raises(UsageError, match="holds an exported run"):
        gk.export(run, folder)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UsageError, match="is not an exported folder, so it is not replaced"):
            gk.export(run, other, force=force)
    with pytest.raises(UsageError, match="is not empty"):
        gk.export(run, run.path, force=True)
    assert (other / "thesis.tex").read_text() == "years of work"
    gk.export(run, folder, force=True, program=False, progress=False)
    assert not (folder / "program.pt2").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    with pytest.raises(UsageError, match="is an exported folder already"):
        gk.export(gk.load(folder), tmp_path / "again")


def test_a_failure_leaves_nothing_behind(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def full(folder: Path, files: object) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gebm_kit.engine.export.write_files", full)
    with pytest.raises(gk.core.errors.RunFailed, match="No space left"):
        gk.export(made[0], tmp_path / "out", program=False, progress=False)
    assert list(tmp_path.iterdir()) == []


# --- damaged and foreign folders -------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_folder_is_one_message(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        gk.load(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(CheckpointError, match="is not one that gebm-kit export wrote"):
        gk.load(tmp_path / "other")
    with pytest.raises(CheckpointError, match="format version 99; this version of gebm-kit reads up to 1"):
        gk.load(changed(folder, schema=99))
    with pytest.raises(CheckpointError, match="facts can't be a list"):
        gk.load(changed(folder, schema=1, facts=[]))
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        gk.load(folder)


def test_damaged_weights_and_recipes_are_refused(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: its sha256"):
        _ = gk.load(folder).model
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "recipe.yaml").write_text((folder / "recipe.yaml").read_text().replace("digits", "redwine"))
    with pytest.raises(CheckpointError, match=r"recipe\.yaml is damaged: its sha256"):
        gk.load(folder)


def test_a_missing_plugin_is_named(folder: Path) -> None:
    components = [{"kind": "base", "name": "flow-of-mine", "distribution": "gebm-mine", "version": "0.1.0"}]
    with pytest.raises(PluginError, match="needs the base 'flow-of-mine' of the plugin 'gebm-mine'") as raised:
        gk.load(changed(folder, components=components))
    assert raised.value.hint == "Install it with `pip install gebm-mine`."
    components[0]["distribution"] = "x; rm -rf /"
    with pytest.raises(PluginError) as raised:
        gk.load(changed(folder, components=components))
    assert raised.value.hint == ""


def test_a_program_in_the_folder_is_never_opened(folder: Path) -> None:
    (folder / "program.pt2").write_bytes(b"not a program")
    (folder / "evil.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert gk.load(folder).model.latent_dim == 4


# --- the program -----------------------------------------------------------------------------------------------------


def test_the_program_draws_what_gebm_kit_draws_where_gebm_kit_is_not_installed(folder: Path) -> None:
    facts = json.loads((folder / "program.json").read_text())
    (noise_input,) = facts["inputs"]
    noise = torch.randn(7, noise_input["shape"][1], generator=torch.Generator().manual_seed(0))
    safetensors.torch.save_file({"noise": noise}, folder / "given.safetensors")
    packages = folder / "packages"
    packages.mkdir()
    for name in _needed_by_torch():  # what is installed beside gebm-kit, without it and without .pth files
        (packages / name).symlink_to(_site() / name)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-S", "-c", ALONE, str(folder)]
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    drawn = safetensors.torch.load_file(folder / "drawn.safetensors")["x"]
    expected = gk.draws_from_noise(gk.load(folder), noise)
    assert drawn.shape == (7, 1, 8, 8)
    assert float((drawn - expected).abs().max()) <= 1e-4
    assert facts["largest_difference"] <= 1e-4


def _site() -> Path:
    return Path(torch.__file__).parent.parent


def _needed_by_torch() -> list[str]:
    return [name for name in os.listdir(_site()) if "gebm" not in name.lower() and not name.endswith(".pth")]


FEW = {
    "sample": {"num_samples": 20, "num_chains": 20, "warmup": 5, "steps": 4},
    "eval": {"num_samples": 20, "num_sets": 2, "metrics": [{"name": "mmd"}]},
}


class SquareEnergy(Energy):
    """``E(x) = |x|^2``, times a weight that can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.square().flatten(1).sum(1)


class LinearBase(Base):
    """``G(z) = 2 z``."""

    latent_dim = 3
    data_shape = (3,)

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * z


def test_a_program_leaves_the_model_invariant_and_takes_any_batch() -> None:
    model = GEBM(LinearBase(), SquareEnergy()).eval()
    made = make_program(model, Mala(0.1), 1.0, 40)
    assert made.rows is None
    assert made.difference <= 1e-4
    program = torch.export.load(io.BytesIO(made.content)).module()
    noise = torch.randn(4000, made.plan.width(40), generator=torch.Generator().manual_seed(1))
    x = program(noise)
    assert program(noise[:1]).shape == (1, 3)
    # U(z) = |z|^2/2 + 4 |z|^2: z has variance 1/9, and x has 4/9
    assert float(x.var()) == pytest.approx(4 / 9, rel=0.04)


class StubbornEnergy(Energy):
    """An energy whose code depends on its values."""

    def forward(self, x: Tensor) -> Tensor:
        factor = 2.0 if float(x.detach().sum()) > 0 else 1.0
        return factor * x.square().flatten(1).sum(1)


def test_a_part_that_cannot_be_traced_is_named() -> None:
    with pytest.raises(NotExportable, match="the energy StubbornEnergy, with its gradient, can't be written"):
        make_program(GEBM(LinearBase(), StubbornEnergy()).eval(), Hmc(), 1.0, 3)


def test_noise_of_another_shape_is_refused(made, folder: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=r"noise must have shape \(N, \d+\), got \(2, 3\)"):
        gk.draws_from_noise(gk.load(folder), torch.zeros(2, 3))
    with pytest.raises(UsageError, match=r"a run from gk\.load is needed"):
        gk.draws_from_noise(made[0], torch.zeros(2, 3))


# --- modules of the caller's own -------------------------------------------------------------------------------------


def test_a_run_on_modules_is_passed_on_as_a_program(tmp_path: Path) -> None:
    rows = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    run = gk.fit(LinearBase(), SquareEnergy(), rows, steps=2, out=tmp_path / "run", progress=False, **FEW)
    with pytest.warns(gk.core.progress.GebmKitWarning, match="can't rebuild the base, an object of"):
        exported = gk.export(run, tmp_path / "out", progress=False)
    assert exported.program is not None
    with pytest.raises(UsageError, match="was trained on Python objects"):
        gk.load(tmp_path / "out")
    again = gk.load(tmp_path / "out", base=LinearBase(), energy=SquareEnergy())
    assert torch.equal(again.model.base.scale, run.model.base.scale)
    assert "base" in (tmp_path / "out" / "README.md").read_text()


# --- the card --------------------------------------------------------------------------------------------------------


def test_the_card_says_what_a_reader_needs(made) -> None:  # type: ignore[no-untyped-def]
    text = (made[1].path / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["library_name"] == "gebm-kit"
    assert head["license"] == "mit"
    names = [metric["name"] for metric in head["model-index"][0]["results"][0]["metrics"]]
    assert "mmd of the GEBM" in names
    for heading in ("How good it is", "How to draw", "Intended use and limits", "Training", "Licence"):
        assert f"\n## {heading}\n" in text
    assert "CC BY 4.0" in text
    assert "# small &lt;b&gt;" in text
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
        assert (made[1].path / picture).is_file()


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "[x](javascript:alert(1))", "{{ 7 * 7 }}", "a|b", "`c`", "# d", "1. e", "x\n---\ny"],
)
def test_text_from_a_run_is_shown_as_text(text: str) -> None:
    shown = md(text)
    assert "<" not in shown
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)[\[\]|`]", shown)
    assert "\n" not in code(text)


def test_paths_of_this_machine_keep_their_last_name_alone() -> None:
    from gebm_kit.engine.exporting.paths import without_paths

    tree = {
        "data": {"path": "/home/someone/secret/train.csv", "files": ["~/a.npz", "C:\\x\\b.npz", "data/c.npz"], "n": 3}
    }
    found: dict[str, str] = {}
    assert without_paths(tree, found) == {
        "data": {"path": "train.csv", "files": ["a.npz", "b.npz", "data/c.npz"], "n": 3}
    }
    assert set(found) == {"data.path", "data.files[0]", "data.files[1]"}


@pytest.mark.parametrize("licence", ["", "two\nlines", 3, "x" * 200])
def test_a_licence_is_one_line(made, tmp_path: Path, licence: object) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match="license must be one line"):
        gk.export(made[0], tmp_path / "out", license=licence)


def test_pushing_without_the_plugin_says_which_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed().registry, "missing_notes", {})
    with pytest.raises(PluginError, match="hub:// needs the plugin 'gebm-kit-hf', which is not installed") as raised:
        gk.push(folder, "someone/something")
    assert "pip install gebm-kit-hf" in raised.value.hint
    note = "plugin 'gebm-kit-hf' failed to load (ImportError: no such thing)"
    monkeypatch.setattr(installed().registry, "missing_notes", {"gebm-kit-hf": note})
    with pytest.raises(PluginError, match="hub:// is not available: plugin 'gebm-kit-hf' failed to load"):
        gk.load("hub://someone/something")
    for wrong in ("../../etc", "hub://a/b/c", "a b", "hub://a/b@../x"):
        with pytest.raises(UsageError, match="is not a re"):
            gk.push(folder, wrong)
    with pytest.raises(UsageError, match="ftp:// is not a hub"):
        gk.load("ftp://a/b")


def test_a_folder_from_a_stranger_names_nothing_outside_itself(folder: Path) -> None:
    recipe = (folder / "recipe.yaml").read_text().replace("name: digits", "name: digits\n  path: /etc/passwd")
    (folder / "recipe.yaml").write_text(recipe)
    config = json.loads((folder / "config.json").read_text())
    files = config["files"] | {"recipe.yaml": hashlib.sha256(recipe.encode()).hexdigest()}
    with pytest.raises(CheckpointError, match="names '/etc/passwd', which is outside the folder"):
        gk.load(changed(folder, files=files))
    with pytest.raises(CheckpointError, match="files can't be an object"):
        gk.load(changed(folder, files={"../../secret.json": "0"}))


def test_an_exported_folder_is_not_trained_further(folder: Path) -> None:
    with pytest.raises(UsageError, match="is an exported folder, which can't be trained further"):
        gk.train("quickstart", out=folder, resume=True)
    with pytest.raises(UsageError, match="is not empty"):
        gk.train("quickstart", out=folder)
