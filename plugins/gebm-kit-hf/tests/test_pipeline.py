"""The base of diffusers' one-step pipelines: it equals the pipeline's images, has their gradient, and keeps its files."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gebm_kit_hf", reason="the plugin package gebm-kit-hf is not installed")
pytest.importorskip("diffusers", reason="the package diffusers is not installed")
pytest.importorskip("transformers", reason="the package transformers is not installed")

import diffusers

sys.path.insert(0, str(Path(__file__).parent))
import tiny

import gebm_kit as gk
from gebm_kit.core.errors import CheckpointError, DataError, GebmKitError, PluginError, UsageError
from gebm_kit.core.interfaces import Energy, HasSource
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.testing import check_base
from gebm_kit_hf.pipeline import DiffusersPipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

PROMPT = "a red bag"
KINDS: dict[str, tuple[Callable[[Path], Any], dict[str, Any], dict[str, Any]]] = {
    "sd": (tiny.stable_diffusion, {"prompt": PROMPT, "guidance_scale": 0.0}, {"prompt": PROMPT}),
    "sd, guided": (
        tiny.stable_diffusion,
        {"prompt": PROMPT, "guidance_scale": 3.0, "negative_prompt": "grey"},
        {"prompt": PROMPT, "guidance": 3.0, "negative_prompt": "grey"},
    ),
    "sd, leading": (
        lambda folder: tiny.stable_diffusion(folder, diffusers.EulerDiscreteScheduler(timestep_spacing="leading")),
        {"prompt": PROMPT, "guidance_scale": 0.0},
        {"prompt": PROMPT},
    ),
    "sdxl": (tiny.sdxl, {"prompt": PROMPT, "guidance_scale": 0.0}, {"prompt": PROMPT}),
    "sdxl, guided": (tiny.sdxl, {"prompt": PROMPT, "guidance_scale": 4.0}, {"prompt": PROMPT, "guidance": 4.0}),
    "lcm": (tiny.lcm, {"prompt": PROMPT}, {"prompt": PROMPT}),
    "lcm, guidance 2": (tiny.lcm, {"prompt": PROMPT, "guidance_scale": 2.0}, {"prompt": PROMPT, "guidance": 2.0}),
    "consistency": (tiny.consistency, {}, {}),
    "consistency, classes": (lambda folder: tiny.consistency(folder, 5), {"class_labels": [2]}, {"class_label": 2}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline of each kind."""
    place = tmp_path_factory.mktemp("pipelines")
    for name, make in (("sd", tiny.stable_diffusion), ("sdxl", tiny.sdxl), ("consistency", tiny.consistency)):
        make(place / name)
    return place


def codes(base: DiffusersPipeline, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, base.latent_dim, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_pipeline_s_own_image_for_the_same_noise(kind: str, tmp_path: Path) -> None:
    make, call, options = KINDS[kind]
    pipeline = make(tmp_path / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    base = DiffusersPipeline("pipeline", value_range=(0.0, 1.0), directory=tmp_path, **options).eval()
    assert base.data_shape == (3, 8, 8)
    z = codes(base)
    noise = z.reshape(3, *((3, 8, 8) if "consistency" in kind else (4, 4, 4)))
    with torch.no_grad():
        found = base(z)
        expected = [
            pipeline(latents=row[None].clone(), num_inference_steps=1, output_type="pt", **call).images for row in noise
        ]
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-4)
    assert float(found.std()) > 0.01
    assert float((found[0] - found[1]).abs().max()) > 0.01
    minus = DiffusersPipeline("pipeline", value_range=(-1.0, 1.0), directory=tmp_path, **options)
    torch.testing.assert_close((minus(z) + 1) / 2, found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["sd", "sdxl", "consistency"])
def test_its_gradient_is_that_of_finite_differences(name: str, folders: Path) -> None:
    prompt = None if name == "consistency" else PROMPT
    base = DiffusersPipeline(str(folders / name), prompt=prompt, data_shape=(3, 8, 8)).double().eval()
    check_base(DiffusersPipeline(str(folders / name), prompt=prompt))
    z = codes(base, 2).double().requires_grad_()
    weight = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    (grad,) = torch.autograd.grad((base(z) * weight).sum(), z)
    ways = torch.randn(4, base.latent_dim, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        for way in ways:
            step = 1e-5 * way
            slope = ((base(z + step) - base(z - step)) * weight).flatten(1).sum(1) / 2e-5
            torch.testing.assert_close(grad @ way, slope, rtol=1e-4, atol=1e-6)
    assert base(z).dtype == torch.float64


def test_blocks_and_recomputed_activations_change_nothing_but_memory(folders: Path) -> None:
    found = []
    for options in ({}, {"block_size": 1}, {"block_size": 2, "gradient_checkpointing": True}):
        base = DiffusersPipeline(str(folders / "sd"), prompt=PROMPT, **options).eval()  # type: ignore[arg-type]
        z = codes(base, 5).requires_grad_()
        x = base(z)
        (grad,) = torch.autograd.grad(x.square().sum(), z)
        found.append((x.detach(), grad))
    for x, grad in found[1:]:
        torch.testing.assert_close(x, found[0][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grad, found[0][1], rtol=1e-3, atol=1e-5)
    assert base(codes(base, 5)[:0]).shape == (0, 3, 8, 8)


def test_half_precision_is_inside_alone(folders: Path) -> None:
    full = DiffusersPipeline(str(folders / "sd"), prompt=PROMPT).eval()
    base = DiffusersPipeline(str(folders / "sd"), prompt=PROMPT, dtype="bfloat16").eval()
    z = codes(base).requires_grad_()
    x = base(z)
    assert x.dtype == torch.float32
    assert torch.autograd.grad(x.sum(), z)[0].dtype == torch.float32
    assert float((x - full(z)).abs().max()) < 0.1
    weights = list(base.held_weights())
    assert {w.dtype for w in weights if w.is_floating_point()} == {torch.bfloat16}
    held = sum(w.numel() * w.element_size() for w in weights)
    assert held == pytest.approx(0.5 * sum(w.numel() * w.element_size() for w in full.held_weights()), rel=0.01)
    assert not list(base.parameters())
    assert GEBM(base, _Sum()).dtype == torch.float32


def test_other_sizes_of_images_are_those_of_the_data(folders: Path) -> None:
    base = DiffusersPipeline(str(folders / "sd"), prompt=PROMPT, data_shape=(3, 16, 12)).eval()
    assert base.latent_dim == 4 * 8 * 6
    assert base(codes(base)).shape == (3, 3, 16, 12)
    for shape in ((1, 8, 8), (3, 9, 8), (2,)):
        with pytest.raises(DataError, match="3 channels with sides that are multiples of 2, but the data have shape"):
            DiffusersPipeline(str(folders / "sd"), prompt=PROMPT, data_shape=shape)
    with pytest.raises(DataError, match=r"makes images of shape \[3, 8, 8\], but the data have shape \[3, 16, 16\]"):
        DiffusersPipeline(str(folders / "consistency"), data_shape=(3, 16, 16))


def test_it_is_drawn_from_and_tilted(folders: Path) -> None:
    base = DiffusersPipeline(str(folders / "sd"), prompt=PROMPT).eval()

    def red(x: torch.Tensor) -> torch.Tensor:
        return 20 * (x[:, 0] - x[:, 1]).mean((1, 2))

    options: dict[str, Any] = {"num_samples": 32, "num_base": 128, "sampler": "imh", "warmup": 0, "steps": 8}
    found = gk.tilt(base, red, betas=[2.0], **options, num_chains=8, log_partition="importance-sampling")
    assert found.levels[0].score.value > found.base.score.value
    node = {"name": "diffusers-pipeline", "path": str(folders / "sd"), "prompt": PROMPT}
    again = gk.tilt(node, red, betas=[2.0], **options, num_chains=8, log_partition="importance-sampling")
    assert torch.equal(again.levels[0].draws.x, found.levels[0].draws.x)
    assert found.value_range is None or found.value_range == (-1.0, 1.0)


RECIPE = """\
schema: 1
data: {name: arrays, path: images.npy}
base: {name: diffusers-pipeline, path: sd, prompt: a red bag}
energy: {name: conv, width: 4}
train: {steps: 1, part: energy, energy_steps: 1, batch_size: 4, checkpoint_every: 1, log_every: 1}
ema: {decay: 0}
sampler: {name: mala, step_size: 0.05}
sample: {num_samples: 2, num_chains: 2, warmup: 1, steps: 1, thin: 1}
eval: {metrics: [{name: frechet, features: pixels}], num_samples: 2, num_sets: 2, log_partition: importance-sampling,
       budget: 2}
device: cpu
"""


@pytest.mark.slow
def test_a_run_needs_neither_folder_nor_hub_and_no_other_weights(folders: Path) -> None:
    shutil.copytree(folders / "sd", "sd")
    np.save("images.npy", np.random.default_rng(0).integers(0, 256, (60, 3, 8, 8), dtype=np.uint8))
    Path("mine.yaml").write_text(RECIPE)
    run = gk.train("mine.yaml", out="run")
    base = run.model.base
    assert isinstance(base, HasSource)
    before = base(codes(base))  # type: ignore[arg-type]
    shutil.rmtree("sd")
    kept = run.path / "base"
    names = {p.relative_to(kept).as_posix() for p in kept.rglob("*") if p.is_file() and not p.name.endswith(".sha256")}
    assert {"model_index.json", "unet/config.json", "vae/diffusion_pytorch_model.safetensors"} <= names
    assert not any("safety" in name for name in names)
    model = gk.load_run(run.path).model
    torch.testing.assert_close(model.base(codes(model.base)), before)  # type: ignore[arg-type]
    assert max(p.stat().st_size for p in run.checkpoint.path.rglob("*.safetensors")) < 2**20
    assert gk.sample(gk.load_run(run.path), num_samples=4, num_chains=4, warmup=1, steps=1).x.shape == (4, 3, 8, 8)
    weights = kept / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="is not the pipeline that it was trained with"):
        _ = gk.load_run(run.path).model


# --- what is refused -------------------------------------------------------------------------------------------------


def load(path: str | None, **options: Any) -> DiffusersPipeline:
    return DiffusersPipeline(path, **{"prompt": PROMPT, **options})


def refused(message: str, error: type[GebmKitError], path: str | None, **options: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(error, match=message) as caught:
            load(path, **options)
    assert "\n" not in caught.value.message
    return caught.value.hint


def test_what_is_asked_is_checked(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sd, noise = str(folders / "sd"), str(folders / "consistency")
    refused("needs a path or the name of a repository .hub., exactly one", UsageError, None)
    refused("needs a path or the name of a repository", UsageError, sd, hub="a/b")
    refused("base.revision belongs to base.hub", UsageError, sd, revision="main")
    refused("'nobody/nothing' can't be fetched from the Hugging Face hub", DataError, None, hub="nobody/nothing")
    refused("makes images of a text: set base.prompt", UsageError, sd, prompt=None)
    refused("base.prompt must be one text, got 7", UsageError, sd, prompt=7)
    refused("base.prompt must be one text, got", UsageError, sd, prompt=["a", "b"])
    refused("base.prompt has no meaning for a ConsistencyModelPipeline", UsageError, noise)
    refused("base.guidance has no meaning", UsageError, noise, prompt=None, guidance=2.0)
    refused("base.negative_prompt is used only with a base.guidance above 1", UsageError, sd, negative_prompt="b")
    refused("base.class_label has no meaning", UsageError, sd, class_label=1)
    refused("this model has no classes", UsageError, noise, prompt=None, class_label=1)
    refused("base.dtype must be one of float32, bfloat16", UsageError, sd, dtype="int8")
    refused("block_size must be", UsageError, sd, block_size=0)
    refused("base.variant must be a word", UsageError, sd, variant="../x")
    refused("holds no weights in safetensors of variant 'fp16'", DataError, sd, variant="fp16")
    with pytest.warns(GebmKitWarning, match="the prompt has 18 tokens, and the text encoder reads the first 12"):
        load(sd, prompt="abcd efgh abcd efgh")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "gebm-kit-hf[pipeline]" in refused("needs the package transformers", PluginError, sd)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "gebm-kit-hf[pipeline]" in refused("needs the package diffusers", PluginError, sd)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_folders_are_checked(folders: Path) -> None:
    refused("the folder nowhere does not exist", DataError, "nowhere")
    Path("empty").mkdir()
    refused("holds no model_index.json", DataError, "empty")
    refused(
        "is a file, but the base diffusers-pipeline reads a folder", DataError, str(folders / "sd/model_index.json")
    )

    def broken(change: Callable[[Path], Any], message: str, error: type[GebmKitError] = DataError) -> str:
        shutil.rmtree("sd", ignore_errors=True)
        shutil.copytree(folders / "sd", "sd")
        change(Path("sd"))
        return refused(message, error, "sd")

    kind = "describes a FluxPipeline, but the base diffusers-pipeline reads only StableDiffusionPipeline"
    broken(lambda p: edit(p / "model_index.json", _class_name="FluxPipeline"), kind, UsageError)
    broken(lambda p: (p / "model_index.json").write_text("{"), "not valid JSON")
    broken(lambda p: shutil.rmtree(p / "unet"), "unet does not exist")
    broken(lambda p: shutil.rmtree(p / "tokenizer"), "tokenizer does not exist")
    broken(lambda p: shutil.rmtree(p / "scheduler"), "holds no scheduler_config.json")
    scheduler = "scheduler/scheduler_config.json"
    broken(lambda p: edit(p / scheduler, _class_name="HeunDiscreteScheduler"), "describes a HeunDiscrete", UsageError)
    broken(lambda p: edit(p / scheduler, beta_schedule="no"), "describes no scheduler")
    broken(lambda p: edit(p / "unet/config.json", _class_name="MyUNet"), "describes a MyUNet", UsageError)
    broken(lambda p: edit(p / "unet/config.json", block_out_channels=[10**9, 8]), "sizes above 65,536 are not read")
    broken(lambda p: edit(p / "unet/config.json", block_out_channels=[4096, 4096]), "weights, but the files hold")
    broken(lambda p: edit(p / "unet/config.json", class_embed_type="identity"), "reads class_embed_type", UsageError)
    broken(lambda p: edit(p / "text_encoder/config.json", architectures=["Other"]), "describes a Other", UsageError)
    weights = "unet/diffusion_pytorch_model"
    hint = broken(
        lambda p: (p / f"{weights}.safetensors").rename(p / f"{weights}.bin"), "holds no weights in safetensors"
    )
    assert "is a pickle, which is never read" in hint
    hint = broken(
        lambda p: (p / f"{weights}.safetensors").rename(p / f"{weights}.fp16.safetensors"), "holds no weights"
    )
    assert "Set base.variant to fp16" in hint
    _rename_others_to_fp16(Path("sd"))
    assert load("sd", variant="fp16").latent_dim == 64
    broken(lambda p: (p / f"{weights}.safetensors").unlink(), "holds no weights in safetensors")
    broken(lambda p: (p / f"{weights}.safetensors").write_bytes(b"not weights"), "unet can't be read|weights, but")
    broken(_without_a_weight, r"1 weight is missing from .*unet: conv_in.bias")
    broken(lambda p: edit(p / "vae/config.json", latent_channels=5), "vae can't be read: .*size mismatch")


def _rename_others_to_fp16(folder: Path) -> None:
    for part, stem in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (folder / part / f"{stem}.safetensors").rename(folder / part / f"{stem}.fp16.safetensors")


def _without_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.bias"]
    save_file(tensors, file, {"format": "pt"})


def test_threads_share_it(folders: Path) -> None:
    base = DiffusersPipeline(str(folders / "sd"), prompt=PROMPT).eval()
    energy = _Sum()
    z = codes(base, 6)
    with LatentPotential(GEBM(base, energy), block_size=2) as potential:
        value, grad = potential.value_and_grad(z)
    with LatentPotential(GEBM(base, energy)) as potential:
        whole = potential.value_and_grad(z)
    torch.testing.assert_close(value, whole.value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grad, whole.grad, rtol=1e-3, atol=1e-4)


class _Sum(Energy):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).sum(1)
