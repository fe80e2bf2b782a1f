"""train, sample and eval: JSON keys, files, words, progress, bad places to write to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

SAMPLE_KEYS = {
    "sampler", "num_samples", "num_chains", "warmup_steps", "steps", "acceptance", "divergences", "rhat_max", "ess_min",
    "ess_per_grad", "grad_evals", "forward_evals", "seconds", "inverse_temperature", "seed", "out",
}  # fmt: skip
EVAL_KEYS = {
    "metrics", "protocol", "kale_train", "kale_train_rows", "kale_test", "log_partition", "inverse_temperature",
}  # fmt: skip


# --- train -----------------------------------------------------------------------------------------------------------


def test_train_json(cli: Any, recipe: Path) -> None:
    result = cli("train", recipe, "--out", "out", "train.seed=3", "--json", "--quiet")
    assert result.code == 0
    found = result.json
    assert set(found) == {"schema", "run", "step", "seconds", "seed", "metrics", "figures", "checkpoint"}
    assert (found["run"], found["step"], found["seed"]) == ("out", 6, 3)
    assert set(found["metrics"]) == {"data", "base", "gebm", "ratio"}
    assert set(found["metrics"]["ratio"]["mmd"]) == {"value", "low", "high", "n"}
    assert found["figures"]
    assert all(Path(path).is_file() for path in found["figures"])
    assert Path(found["checkpoint"]).is_dir()


def test_train_in_plain_text(cli: Any, recipe: Path) -> None:
    result = cli("train", recipe, "--out", "out")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].startswith("tiny: 6 steps in ")
    assert any(line.startswith("mmd ") for line in lines)
    assert any(line.startswith("figure: out/figures/") for line in lines)
    assert lines[-1] == "run: out"
    progress = [line for line in result.err.splitlines() if line.startswith("train ")]
    assert progress[-1].startswith("train 6/6  loss ")
    assert all(word in progress[-1] for word in ("kale", "steps/s"))
    assert "\x1b" not in result.err + result.out


def test_quiet_leaves_the_result_alone(cli: Any, recipe: Path) -> None:
    result = cli("train", recipe, "--out", "out", "--quiet", "eval.num_sets=2")
    assert result.code == 0
    assert all(line.startswith("gebm-kit: warning:") for line in result.err.splitlines())
    assert result.out.splitlines()[-1] == "run: out"


def test_words_may_come_in_any_order(cli: Any, recipe: Path) -> None:
    result = cli("train", "train.steps=2", recipe, "--out", "out", "eval.metrics=[]", "--json")
    assert result.json["step"] == 2


def test_train_goes_under_runs_by_default(cli: Any, recipe: Path) -> None:
    found = cli("train", recipe, "train.steps=2", "--json").json
    assert Path(found["run"]).parent == Path("runs/tiny")


def test_dry_run_writes_nothing(cli: Any, recipe: Path) -> None:
    before = set(recipe.parent.rglob("*"))
    found = cli("train", recipe, "--dry-run", "--json").json
    assert {"parameters", "memory_bytes", "steps_per_second"} <= set(found)
    text = cli("train", recipe, "--dry-run", "--out", "out").out
    assert all(word in text for word in ("parameters", "memory", "steps/s"))
    assert set(recipe.parent.rglob("*")) == before


def test_resume_starts_goes_on_and_is_done(cli: Any, recipe: Path) -> None:
    words = ("train", recipe, "--out", "out", "--resume", "--json", "--quiet")
    assert cli(*words).json["step"] == 6
    before = (Path("out") / "status.json").read_text()
    assert cli(*words).json["step"] == 6
    assert (Path("out") / "status.json").read_text() == before
    assert cli(*words, "train.steps=8").json["step"] == 8
    result = cli(*words, "train.batch_size=16")
    assert result.code == 2
    assert "train.batch_size" in result.json["error"]["message"]


@pytest.mark.parametrize("word", ["train.stepz=3", "sampler=hcm", "train.steps=many", "optim.base.lr=-1", "nothing=1"])
def test_a_bad_override_starts_nothing(cli: Any, recipe: Path, word: str) -> None:
    result = cli("train", recipe, word, "--out", "out", "--json")
    assert result.code == 2
    assert result.json["error"]["code"] == "recipe"
    assert f"override '{word}'" in result.json["error"]["message"]
    assert not Path("out").exists()


def test_bad_places_for_a_run(cli: Any, recipe: Path) -> None:
    (recipe.parent / "full").mkdir()
    (recipe.parent / "full" / "file").touch()
    (recipe.parent / "file").touch()
    for out, message in [
        ("full", "full is not empty"),
        ("file", "can't be written"),
        ("/proc/nothing", "can't be written"),
    ]:
        result = cli("train", recipe, "--out", out)
        assert result.code == 2, out
        assert message in result.err
    assert cli("train", recipe, "--device", "gpu").code == 2
    assert cli("train", recipe, "--threads", "0").code == 2


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_printed_command_goes_on(recipe: Path, signum: int, code: int) -> None:
    words = ["train", str(recipe), "train.steps=100000", "train.checkpoint_every=100000", "--out", "out dir", "--json"]
    program = [sys.executable, "-m", "gebm_kit"]
    started = subprocess.Popen([*program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stderr is not None
    while not (line := started.stderr.readline()).startswith("train "):
        assert line, "it ended before it trained"
    started.send_signal(signum)
    out, _ = started.communicate(timeout=60)
    assert started.returncode == code
    error = json.loads(out)["error"]
    assert error["code"] == "interrupted"
    status = json.loads(Path("out dir/status.json").read_text())
    assert status["state"] == "interrupted"
    assert status["step"] > 0

    if signum == signal.SIGTERM:
        return
    command = error["hint"].partition("`")[2].partition("`")[0]
    assert command == f"gebm-kit train {recipe} {' '.join(words[2:4])} --out 'out dir' --resume --threads 1"
    resumed = (
        command.replace("gebm-kit", f"'{sys.executable}' -m gebm_kit", 1) + f" train.steps={status['step'] + 1} --json"
    )
    done = subprocess.run(["bash", "-c", resumed], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["step"] == status["step"] + 1


# --- sample ----------------------------------------------------------------------------------------------------------


def test_sample_json_and_safetensors(cli: Any, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "draws.safetensors"
    result = cli("sample", run, "--out", out, "--num-samples", 50, "--seed", 7, "--json")
    assert result.code == 0
    found = result.json
    assert set(found) >= SAMPLE_KEYS | {"schema"}
    assert (found["sampler"], found["num_samples"], found["num_chains"], found["seed"]) == ("mala", 50, 30, 7)
    assert (found["warmup_steps"], found["steps"], found["out"]) == (8, 10, str(out))
    with safe_open(out, "numpy") as file:
        assert file.get_tensor("x").shape == (50, 1, 8, 8)
        assert file.get_tensor("z").shape == (50, 2)
        kept = json.loads(file.metadata()["diagnostics"])
    assert all(found[key] == value for key, value in kept.items())


def test_sample_defaults_to_the_newest_run_and_to_its_samples(
    cli: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("sample").code == 2
    older, newer = tmp_path / "runs" / "tiny" / "b", tmp_path / "runs" / "tiny" / "a"
    shutil.copytree(run, older)
    shutil.copytree(run, newer)
    for ago, path in ((100, older), (0, newer)):
        os.utime(path / "status.json", (time.time() - ago,) * 2)
    result = cli("sample", "--json")
    assert "runs/tiny/a" in result.err
    assert "newest finished run" in result.err
    assert Path(result.json["out"]).parent == Path("runs/tiny/a/samples")
    assert cli("sample", "--json").json["out"] != result.json["out"]
    assert "newest" not in cli("sample", "--quiet", "--json").err


def test_sample_npz_and_images(cli: Any, run: Path, tmp_path: Path) -> None:
    result = cli("sample", run, "--out", tmp_path / "d.npz", "--images", tmp_path / "png", "sample.num_samples=20")
    assert result.code == 0
    assert f"draws: {tmp_path / 'd.npz'}" in result.out
    assert f"images: {tmp_path / 'png'}" in result.out
    with np.load(tmp_path / "d.npz") as archive:
        x = archive["x"]
    names = sorted(path.name for path in (tmp_path / "png").iterdir())
    assert names == [f"{index:05d}.png" for index in range(20)]
    picture = np.asarray(Image.open(tmp_path / "png" / "00003.png"))
    low, high = (0.0, 1.0) if x.min() >= 0 else (-1.0, 1.0)
    np.testing.assert_allclose(picture, (x[3, 0] - low) / (high - low) * 255, atol=0.51)


@pytest.mark.pictures
def test_sample_shows_limits_and_draws_the_chains(cli: Any, run: Path) -> None:
    result = cli("sample", run)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split() == ["diagnostic", "value", "good", "verdict"]
    (ess,) = [line for line in lines if line.startswith("ess_min ")]
    assert "at least 100" in ess
    assert ess.split()[-1] in ("ok", "BAD")
    assert any(line.startswith("converged: ") for line in lines)
    for name in ("sample-trace.png", "sample-ranks.png", "sample-energy.png"):
        assert f"figure: {run / 'figures' / name}" in lines
        assert (run / "figures" / name).stat().st_size > 5000


def test_require_converged(cli: Any, run: Path, tmp_path: Path) -> None:
    words = ("sample", run, "--require-converged", "--out", tmp_path / "d.npz")
    result = cli(*words, "sample.steps=3", "sample.num_samples=30")  # too few steps for an R-hat
    assert result.code == 1
    assert "too few for an R-hat" in result.err
    assert "converged: no" in result.out
    assert (tmp_path / "d.npz").is_file()
    (tmp_path / "d.npz").unlink()
    result = cli(*words, "sample.steps=3", "sample.num_samples=30", "--json")
    assert result.code == 1
    error = result.json["error"]
    assert error["code"] == "not-converged"
    assert "too few for an R-hat" in error["message"]
    assert str(tmp_path / "d.npz") in error["hint"]
    assert (tmp_path / "d.npz").is_file()

    good = ("sampler=hmc", "sample.inverse_temperature=0", "sample.num_chains=100", "sample.num_samples=100")
    result = cli(*words, *good, "sample.steps=30", "--json")
    assert result.code == 0
    assert result.json["converged"] is True
    assert result.json["problems"] == []


def test_pictures_that_can_not_be_written_take_nothing_from_the_draws(cli: Any, run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "figures", ignore_errors=True)
    (run / "figures").write_text("in the way")
    result = cli("sample", run, "--out", tmp_path / "d.npz", "--json")
    assert result.code == 0
    assert result.json["figures"] == []
    assert "no pictures of the chains" in result.err


def test_sampler_option_and_overrides(cli: Any, run: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "d.npz", "--json")
    assert cli("sample", run, "--sampler=hmc", *out).json["sampler"] == "hmc"
    assert cli("sample", run, "sampler=ula", *out).json["sampler"] == "ula"
    found = cli("sample", "sample.warmup=0", "sampler.step_size=0.003", run, *out).json
    assert (found["sampler"], found["warmup_steps"], found["step_size"]) == ("mala", 0, 0.003)
    found = cli("sample", run, "sampler.num_leapfrog=3", "--sampler", "hmc", "sample.inverse_temperature=0", *out).json
    assert found["inverse_temperature"] == 0
    assert found["acceptance"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sampler", "hcm"], "did you mean hmc?"),
        (["sampler.step_siz=1"], "did you mean step_size?"),
        (["sampler.step_size=0"], "> 0"),
        (["sample.thinn=2"], "did you mean thin?"),
        (["train.steps=9"], "can't override 'train'"),
        (["--out", "draws.txt"], ".safetensors or .npz"),
        (["--out", "/proc/nothing/draws.npz"], "can't be written"),
        (["--images", "full"], "full is not an empty directory"),
        (["--device", "gpu"], "device 'gpu'"),
        (["again"], "expected one RUN, got 2"),
    ],
)
def test_bad_words_for_sample(cli: Any, run: Path, recipe: Path, words: list[str], message: str) -> None:
    Path("full").mkdir()
    Path("full/file").touch()
    before = set(recipe.parent.rglob("*"))
    result = cli("sample", run, *words)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert set(recipe.parent.rglob("*")) == before


def test_a_directory_that_is_no_run(cli: Any, tmp_path: Path) -> None:
    for command in ("sample", "eval"):
        result = cli(command, tmp_path, "--json")
        assert result.code == 2
        assert result.json["error"]["code"] == "checkpoint"
        assert "is not a run directory" in result.json["error"]["message"]


def test_a_damaged_checkpoint(cli: Any, run: Path) -> None:
    file = max(run.glob("checkpoints/*/model.safetensors"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    result = cli("sample", run, "--json")
    assert result.code == 0
    assert f"{file} is damaged" in result.err
    older = min(run.glob("checkpoints/*"))
    assert result.json["checkpoint"] == str(older)
    assert cli("sample", run, "--checkpoint", file.parent.name).code == 2
    (older / "state.json").unlink()
    result = cli("sample", run, "--json")
    assert result.code == 2
    assert "no checkpoint of" in result.json["error"]["message"]


def test_images_of_points_are_refused(cli: Any, recipe: Path) -> None:
    assert cli("train", recipe, "data=two-moons", "--out", "points", "eval.metrics=[]", "--quiet").code == 0
    result = cli("sample", "points", "--images", "png")
    assert result.code == 2
    assert "this data has shape (2,)" in result.err


# --- eval ------------------------------------------------------------------------------------------------------------


def test_eval_json_and_report(cli: Any, run: Path) -> None:
    result = cli("eval", run, "--json", "eval.num_sets=3", "eval.seed=5")
    assert result.code == 0
    found = result.json
    assert set(found) >= EVAL_KEYS | {"schema"}
    assert set(found["metrics"]) == {"data", "base", "gebm", "ratio"}
    for column in ("base", "gebm", "ratio"):
        assert set(found["metrics"][column]["mmd"]) == {"value", "low", "high", "n"}
        assert found["metrics"][column]["mmd"]["n"] == 3
    assert set(found["log_partition"]) >= {"value", "se", "method"}
    assert "mmd" in found["protocol"]
    kept = json.loads((run / "evaluation.json").read_text())
    assert kept["metrics"] == found["metrics"]
    assert all(Path(path).is_file() for path in found["figures"])


def test_eval_in_plain_text(cli: Any, run: Path) -> None:
    result = cli("eval", run, "sampler=hmc", "sample.inverse_temperature=0.5", "eval.metrics=[sliced-wasserstein]")
    assert result.code == 0
    assert any(line.startswith("sliced-wasserstein ") for line in result.out.splitlines())
    assert "inverse_temperature 0.5" in result.out
    assert "log partition: " in result.out
    assert "figure: " in result.out
    assert "evaluate " in result.err


def test_bad_words_for_eval(cli: Any, run: Path) -> None:
    for word, message in [
        ("eval.metrics=[frechett]", "did you mean frechet?"),
        ("eval.num_sets=1", ">= 2"),
        ("base.latent_dim=3", "can't override 'base'"),
    ]:
        result = cli("eval", run, word)
        assert result.code == 2
        assert message in result.err
