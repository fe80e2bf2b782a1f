"""The base of diffusers' autoencoders: it equals the library's own map, runs need neither folder nor hub, errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gebm_kit_hf", reason="the plugin package gebm-kit-hf is not installed")
pytest.importorskip("diffusers", reason="the package diffusers is not installed")

import diffusers

from gebm_kit.core.errors import CheckpointError, DataError, PluginError, UsageError
from gebm_kit.core.interfaces import HasEncoder, HasSource
from gebm_kit.engine.run_directory.run import load_run
from gebm_kit.engine.sample import sample
from gebm_kit.engine.train import train
from gebm_kit.testing import check_base
from gebm_kit_hf.vae import DiffusersVae

pytestmark = pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")

SHAPE = (3, 8, 8)

RECIPE = """\
schema: 1
data: {name: arrays, path: images.npy}
base: {name: diffusers-vae, path: vae}
energy: {name: conv, width: 4}
train: {steps: 4, part: energy, energy_steps: 1, batch_size: 8, checkpoint_every: 2, log_every: 2}
ema: {decay: 0}
sampler: {name: mala, step_size: 0.05}
sample: {num_samples: 8, num_chains: 4, warmup: 1, steps: 2, thin: 1}
eval: {metrics: [{name: frechet, features: pixels}], num_samples: 4, num_sets: 2, log_partition: importance-sampling}
device: cpu
"""


def autoencoder(folder: str = "vae", **options: Any) -> Any:
    """Make a tiny autoencoder with random weights, saved to ``folder``: two latent channels, images halved once."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (4, 4), "layers_per_block": 1, "latent_channels": 2, "norm_num_groups": 2}
    made = diffusers.AutoencoderKL(in_channels=3, out_channels=3, **blocks, **sizes, **options)
    made.save_pretrained(folder)
    return made.eval()


def load(path: str | None = "vae", shape: tuple[int, ...] = SHAPE, **options: Any) -> DiffusersVae:
    return DiffusersVae(path, data_shape=shape, value_range=options.pop("value_range", (-1.0, 1.0)), **options)


def test_it_is_the_library_s_own_decoder_and_encoder() -> None:
    made = autoencoder(scaling_factor=0.5, shift_factor=0.25)
    base = load().eval()
    assert isinstance(base, HasEncoder)
    assert isinstance(base, HasSource)
    assert base.latent_dim == 2 * 4 * 4
    z = torch.randn(3, 32)
    with torch.no_grad():
        expected = made.decode(z.reshape(3, 2, 4, 4) / 0.5 + 0.25).sample
        torch.testing.assert_close(base(z), expected)
        torch.testing.assert_close(load(value_range=(0.0, 1.0)).eval()(z), (expected + 1) / 2)
        torch.testing.assert_close(load(scale=2.0).eval()(z), made.decode(z.reshape(3, 2, 4, 4) / 2 + 0.25).sample)
        codes = (made.encode(expected).latent_dist.mean - 0.25) * 0.5
        torch.testing.assert_close(base.encode(expected), codes.flatten(1))
    check_base(base)


def test_a_run_needs_neither_folder_nor_hub() -> None:
    autoencoder()
    np.save("images.npy", np.random.default_rng(0).integers(0, 256, (60, 3, 8, 8), dtype=np.uint8))
    Path("mine.yaml").write_text(RECIPE)
    before = {name: tensor.clone() for name, tensor in load().state_dict().items()}
    run = train("mine.yaml", out="run")
    shutil.rmtree("vae")
    assert json.loads((run.path / "base" / "config.json").read_text())["latent_channels"] == 2
    model = load_run(run.path).model
    for name, tensor in model.base.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert sample(load_run(run.path), num_samples=4, num_chains=4, warmup=1, steps=1).x.shape == (4, *SHAPE)
    assert train("mine.yaml", ["train.steps=6"], out="run", resume=True).step == 6
    with pytest.raises(CheckpointError, match="no weights"):
        load(run_directory=run.path)(torch.randn(1, 32))


def test_what_is_refused_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder()
    autoencoder("pipeline/vae")
    for options, message in (
        ({"path": None}, "needs a path or the name of a repository .hub., exactly one"),
        ({"hub": "nobody/nothing"}, "needs a path or the name of a repository"),
        ({"revision": "main"}, "base.revision belongs to base.hub"),
        ({"scale": 0.0}, "scale must be a number > 0"),
    ):
        with pytest.raises(UsageError, match=message):
            load(**options)
    with pytest.raises(DataError, match=r"the folder nowhere does not exist"):
        load("nowhere")
    with pytest.raises(DataError, match=r"holds no config.json") as caught:
        load("pipeline")
    assert "base.subfolder to one of vae" in caught.value.hint
    assert load("pipeline", subfolder="vae").latent_dim == 32
    for shape in ((1, 8, 8), (3, 9, 8), (2,)):
        with pytest.raises(DataError, match="3 channels with sides that are multiples of 2, but the data have shape"):
            load(shape=shape)
    with pytest.raises(DataError, match="'nobody/nothing' can't be fetched from the Hugging Face hub"):
        load(None, hub="nobody/nothing")
    config = json.loads(Path("vae/config.json").read_text())
    Path("vae/config.json").write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    with pytest.raises(
        UsageError, match="describes a UNet2DModel, but the base diffusers-vae reads only AutoencoderKL"
    ):
        load()
    Path("vae/config.json").write_text(json.dumps(config))
    Path("vae/diffusion_pytorch_model.safetensors").rename("vae/diffusion_pytorch_model.bin")
    with pytest.raises(DataError, match="can't be read") as caught:
        load()
    assert "is a pickle, which is never read" in caught.value.hint
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(PluginError, match="needs the package diffusers") as missing:
        load()
    assert "gebm-kit-hf[diffusers]" in missing.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": [65536, 65536]}, "describes no autoencoder|weights, but the files hold"),
        ({"block_out_channels": [4096, 4096]}, "weights, but the files hold"),
        ({"block_out_channels": [10**9, 4]}, "sizes above 65,536 are not read"),
        ({"layers_per_block": 10**4}, "layers_per_block = 10000; at most"),
        ({"block_out_channels": [4] * 100}, "are not read"),
        ({"scaling_factor": None}, "scaling_factor = None; it must be a positive number"),
        ({"scaling_factor": 0}, "scaling_factor = 0; it must be a positive number"),
        ({"shift_factor": "high"}, "shift_factor = high; it must be a finite number"),
        ({"down_block_types": ["Nothing"]}, "describes no autoencoder"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    autoencoder()
    file = Path("vae/config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(DataError, match=message):
        load()


def test_files_in_place_of_a_folder_are_named() -> None:
    autoencoder()
    with pytest.raises(DataError, match="is a file, but the base diffusers-vae reads a folder"):
        load("vae/diffusion_pytorch_model.safetensors")
    for text, message in (("[" * 10**5, "nested"), ("[]", "is not a configuration"), ("{", "is not valid JSON")):
        Path("vae/config.json").write_text(text)
        with pytest.raises(DataError, match=message):
            load()


def test_the_command_line_does_not_import_the_library() -> None:
    program = """
import sys
from gebm_kit.cli.app import main
for words in (["list", "base"], ["describe", "base", "diffusers-vae"]):
    assert main(words) == 0
print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "diffusers" not in set(done.stderr.split())
