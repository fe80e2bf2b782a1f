"""Tests of ``gebm-kit tilt`` as it is typed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gebm_kit.cli.app import main

QUICK = [
    "--trust-program",
    "--quiet",
    "--beta",
    "1",
    "sample.num_samples=200",
    "eval.log_partition=importance-sampling",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, with a generator of 8x8 images and a scorer."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
    scorer = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(generator.eval(), torch.randn(2, 4)), "generator.pt")
        torch.jit.save(torch.jit.trace(scorer.eval(), torch.randn(2, 1, 8, 8)), "scorer.pt")
    return tmp_path


def run(*words: str) -> int:
    return main(["tilt", *words])


def said(capfd: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


@pytest.mark.pictures
def test_a_tilt_is_drawn_shown_and_written(folder, capfd):
    assert run("generator.pt", "scorer.pt", "--latent", "4", "--range=-1,1", "--out", "here", "--json", *QUICK) == 0
    found = said(capfd)
    assert found["schema"] == 1
    assert [level["beta"] for level in found["levels"]] == [1.0]
    assert found["levels"][0]["score"]["value"] > found["base"]["score"]["value"]
    assert found["out"] == "here"
    assert {path.name for path in (folder / "here").iterdir()} >= {"tilt.json", "frontier.png", "grid.png"}
    assert run("generator.pt", "scorer.pt", "--latent", "4", "energy.scale=2", *QUICK) == 0
    text = capfd.readouterr().out
    for word in ("beta 1", "best of 64", "ascent", "log Z", "R-hat", "diversity", "tilts/generator-scorer-"):
        assert word in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generator.pt", "scorer.pt"], "does not state the shape of its input"),
        (["generator.pt", "scorer.pt", "--latent", "5"], "fails on codes of shape"),
        (["generator.pt", "scorer.pt", "--latent", "4x"], "--latent is a shape"),
        (["generator.pt", "scorer.pt", "--latent", "4", "--range=1,-1"], "--range is LOW,HIGH"),
        (["generator.pt", "scorer.pt", "--latent", "4", "--beta", "1,0"], "beta must be a finite number > 0"),
        (["generator.pt", "scorer.pt", "--latent", "4", "--beta", "one"], "--beta is a list of numbers"),
        (["generator.pt", "scorer.pt", "--latent", "4", "train.steps=3"], "can't set 'train'"),
        (["generator.pt", "scorer.pt", "--latent", "4", "energy.skale=3"], "did you mean scale"),
        (["generator.pt", "scorer.pt", "--latent", "4", "energy.target=1"], "needs logits"),
        (["generator.pt", "scorer.pt", "digits", "toys", "--latent", "4"], "expected one DATA"),
        (["generator.pt", "none.pt", "--latent", "4"], "none.pt"),
        (["generator.pt", "clasifier", "--latent", "4"], "did you mean classifier"),
        (["generator.pt", "classifier", "--latent", "4", "energy.target=1"], "needs data with labels"),
        (["generator.pt", "classifier", "digits", "--latent", "4", "energy.target=10"], "target=10 does not exist"),
        (["generator.pt", "classifier", "digits", "--latent", "4"], "ClassifierEnergy is conditional"),
        (["generator.pt", "scorer.pt", "--latent", "4", "--class", "3"], "neither the generator nor the scorer"),
        (["generator.pt", "classifier", "digits", "--latent", "4", "--class", "all"], "allowed: one class"),
        (["-", "scorer.pt", "digits", "base=mlpp"], "did you mean mlp"),
    ],
)
def test_mistakes_are_one_message(folder, capfd, words, message):
    assert run(*words, "--json", *[word for word in QUICK if "--beta" not in words or word not in ("--beta", "1")]) == 2
    error = said(capfd)["error"]
    assert message in error["message"]
    assert not (folder / "tilts").exists()


def test_a_program_needs_trust(folder, capfd):
    assert run("generator.pt", "scorer.pt", "--latent", "4", "--quiet", "--json") == 2
    assert "--trust-program" in said(capfd)["error"]["hint"]


def test_a_dry_run_says_what_a_gradient_costs_and_writes_nothing(folder, capfd):
    words = ["generator.pt", "scorer.pt", "--latent", "4", "--dry-run", "--trust-program"]
    before = set(folder.iterdir())
    assert run(*words, "--json", "--quiet") == 0
    found = said(capfd)
    assert found["latent_dim"] == 4
    assert found["data_shape"] == [1, 8, 8]
    assert set(found["gradient"]) == {"rows", "seconds", "forward_seconds", "memory_bytes", "weights_bytes"}
    assert found["gradient"]["weights_bytes"] >= 4 * (5 * 64 + 65)
    assert run(*words) == 0
    text = capfd.readouterr().out
    assert "for one latent code" in text
    assert "MiB of weights" in text
    assert set(folder.iterdir()) == before
    assert run(*words, "--keep-energy") == 2
    assert "keep_energy needs a generator with an energy of its own" in capfd.readouterr().err


def test_a_program_that_fails_on_some_draws_is_named(folder, capfd):
    class Refuses(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if bool((x.flatten(1).sum(1) > 15).any()):
                raise RuntimeError("these are too bright")
            return x.flatten(1).sum(1)

    torch.jit.save(torch.jit.script(Refuses()), "refuses.pt")
    words = ["--latent", "4", "--trust-program", "--quiet", "--beta", "1", "sample.num_samples=20"]
    assert run("generator.pt", "refuses.pt", *words) == 2
    text = capfd.readouterr().err
    assert "refuses.pt fails on" in " ".join(text.split())
    assert "too bright" in text
    assert "Traceback" not in text
