"""Exported folders pushed to a hub of the tests' own, and loaded from it by processes with caches of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch

pytest.importorskip("gebm_kit_hf", reason="the plugin package gebm-kit-hf is not installed")

sys.path.insert(0, str(Path(__file__).parent))
import hub_server

from gebm_kit.core.hubs import hub_of
from gebm_kit.core.plugins import installed

RECIPE = """\
schema: 1
data: {name: digits}
base: {name: mlp, latent_dim: 4, hidden: [16]}
energy: {name: mlp, hidden: [16]}
train: {steps: 2, energy_steps: 1, start_steps: 0, batch_size: 32}
sampler: {name: mala}
sample: {num_samples: 20, num_chains: 20, warmup: 4, steps: 4}
eval: {metrics: [{name: mmd}], num_samples: 20, num_sets: 2}
ema: {decay: 0}
device: cpu
"""

MAKE = """\
import json, warnings
import gebm_kit as gk
warnings.simplefilter("ignore")
run = gk.train("tiny.yaml", out="run", progress=False)
gk.export(run, "model", progress=False, program=False)
gk.sample(run, num_samples=10, seed=5, progress=False, out="ours.safetensors")
open("model/notes.txt", "w").write("private")
print(json.dumps(gk.push("model", "me/digits", private=True)))
"""

DRAW = """\
import json, sys, warnings
import gebm_kit as gk
warnings.simplefilter("ignore")
gk.sample(gk.load(sys.argv[1]), num_samples=10, seed=5, progress=False, out=sys.argv[2])
for words in json.loads(sys.argv[3]):
    try:
        gk.load(words[0]) if len(words) == 1 else gk.push(*words)
    except gk.core.errors.GebmKitError as error:
        print(type(error).__name__, error.message)
"""
"""Draws from a place, then tries calls of load and push that go wrong."""


class Worker:
    """Runs Python in processes of their own, against the hub, in one folder.

    Attributes:
        hub: the hub.
        address: its address.
        folder: working directory; folders of caches lie in it.
    """

    def __init__(self, hub: hub_server.Hub, address: str, folder: Path) -> None:
        self.hub, self.address, self.folder = hub, address, folder

    def run(self, script: str, *words: str, home: str, token: bool = False, **more: str) -> str:
        """Run a script whose cache is ``home``, which stands for another machine, and return what it prints."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GEBM_"))},
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(self.folder / home),
            "GEBM_KIT_LOAD_PLUGINS": "gebm-kit-hf",
            "OMP_NUM_THREADS": "1",
            **({"HF_TOKEN": hub_server.TOKEN} if token else {}),
            **more,
        }
        given = [sys.executable, "-c", script, *words]
        done = subprocess.run(given, env=environment, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """Return a worker whose folder holds an exported run, ``model``, pushed as me/digits."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "tiny.yaml").write_text(RECIPE)
    with hub_server.serving() as (hub, address):
        made = Worker(hub, address, folder)
        pushed = json.loads(made.run(MAKE, home="here", token=True))
        assert pushed["url"] == f"{address}/me/digits"
        yield made


def test_a_pushed_folder_gives_the_same_draws_in_another_place_and_errors_are_one_message(worker: Worker) -> None:
    (files,) = worker.hub.repositories["me/digits"]
    assert "notes.txt" not in files
    assert {"model.safetensors", "config.json", "recipe.yaml", "README.md"} <= set(files)
    worker.hub.extra = ["evil.pkl", "evil.py"]
    worker.hub.repositories["me/escape"] = [{**files, "../../escaped.json": b"{}"}]
    calls = [["hub://me/nothing"], ["hub://me/digits@v9"], ["model", "me/digits"], ["hub://me/escape"]]
    lines = worker.run(DRAW, "hub://me/digits", "theirs.safetensors", json.dumps(calls), home="elsewhere").splitlines()
    assert not [request for request in worker.hub.asked if "evil" in request]
    assert lines[:3] == [
        "DataError hub://me/nothing does not exist, or is private",
        "DataError hub://me/digits has no revision 'v9'",
        "UsageError hub://me/digits can't be written: nobody is logged in",
    ]
    assert lines[3].startswith("DataError hub://me/escape can't be fetched: ")
    assert not list(worker.folder.rglob("escaped.json"))

    # what is in the cache needs no network, and nothing else can be had without it
    address = f"hub://me/digits@{worker.hub.commit_of('me/digits', 0)}"
    offline = {"home": "elsewhere", "HF_HUB_OFFLINE": "1"}
    calls = [["hub://me/other"], ["model", "me/digits"]]
    lines = worker.run(DRAW, address, "again.safetensors", json.dumps(calls), **offline).splitlines()
    assert lines == [
        "DataError hub://me/other is not in the cache, and the hub can't be reached",
        "RunFailed hub://me/digits can't be written: HF_HUB_OFFLINE forbids connections",
    ]
    names = ("ours", "theirs", "again")
    ours, *others = (safetensors.torch.load_file(worker.folder / f"{name}.safetensors")["x"] for name in names)
    assert all(draws.equal(ours) for draws in others)


def test_the_plugin_offers_the_hub() -> None:
    assert installed().registry.hubs["hub"].scheme == "hub"
    assert type(hub_of("hub")).__name__ == "HuggingFaceHub"
