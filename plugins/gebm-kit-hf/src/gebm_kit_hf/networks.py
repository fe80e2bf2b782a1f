"""The networks of a one-step pipeline, read once and held with fixed weights: noise to images.

Shapes: B rows, C channels of a latent, h, w its sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gebm_kit.core.errors import UsageError
from gebm_kit_hf.library import (
    CONFIG_FILE,
    check_numbers,
    checked_config,
    read_network,
    require_folder,
    weight_files,
)
from gebm_kit_hf.one_step import FILE as SCHEDULER_FILE, OneStep, read_step
from gebm_kit_hf.prompts import Prompt, Texts

INDEX = "model_index.json"

TEXT_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "LatentConsistencyModelPipeline")
PIPELINES = (*TEXT_PIPELINES, "ConsistencyModelPipeline")
"""Pipelines that are read."""

LCM_GUIDANCE = 8.5
"""Guidance of models that take it as an input, where none is given: the library's default for them."""

UNSET_LATENTS = {"steps_offset": 1, "clip_sample": False}
"""Values that diffusers' Stable Diffusion pipelines put in place of a scheduler's own."""


@dataclass(frozen=True)
class Asked:
    """What a recipe asks of a pipeline.

    Attributes:
        prompt, negative: texts; None: none.
        guidance: scale; None: the library's for models that take it as an input, otherwise no guidance.
        class_label: class of a class-conditional model; None: it has no classes.
        timestep: timestep of the one step; None: the scheduler's.
        variant: variant of the weights' files; None: those without one.
        dtype: floating-point type to compute in.
        base: name of the base, for messages.
    """

    prompt: str | None
    negative: str | None
    guidance: float | None
    class_label: int | None
    timestep: int | None
    variant: str | None
    dtype: torch.dtype
    base: str


@dataclass(frozen=True)
class Conditions:
    """What the network is told besides noise and timestep, each for one row; None where the network takes none.

    Attributes:
        tokens: embeddings of the prompt, (1, L, D).
        negative: those that guidance leads away from; None: no guidance.
        pooled, negative_pooled: embeddings of the whole texts, (1, P).
        guidance_embedding: of the scale, (1, G), for models that take it as an input.
        class_label: (1,) int64.
    """

    tokens: Tensor | None = None
    negative: Tensor | None = None
    pooled: Tensor | None = None
    negative_pooled: Tensor | None = None
    guidance_embedding: Tensor | None = None
    class_label: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditions:
        return replace(
            self,
            **{
                field.name: value.to(device, dtype if value.is_floating_point() else value.dtype)
                for field in fields(self)
                if (value := getattr(self, field.name)) is not None
            },
        )


class Networks:
    """Denoiser, decoder and conditions of a pipeline: standard normal noise (B, C, h, w) to images (B, *D) in [-1, 1].

    The weights are fixed. Nothing has state, so threads may call it side by side.

    Args:
        library: diffusers.
        folder: the pipeline's folder.
        asked: what the recipe asks for.

    Attributes:
        data_channels, latent_channels: channels of images and of latents.
        factor: sides of images over those of latents.
        default_side: sides of the images that the model was made for.
        fixed_size: whether it makes no other images.

    Raises:
        DataError, UsageError: a part is missing, damaged, of another kind, or does not fit the others.
        PluginError: a library is missing.
    """

    def __init__(self, library: Any, folder: Path, asked: Asked) -> None:
        require_folder(folder, INDEX, asked.base)
        index = checked_config(folder / INDEX, PIPELINES, asked.base)
        self.kind = str(index["_class_name"])
        self._text = self.kind in TEXT_PIPELINES
        self._double = self.kind == "StableDiffusionXLPipeline"
        _check_asked(asked, self.kind, self._text)
        overrides = UNSET_LATENTS if self.kind == "StableDiffusionPipeline" else {}
        self.step: OneStep = read_step(library, folder / "scheduler", asked.base, asked.timestep, overrides)
        self.unet = _read(library, folder / "unet", ["UNet2DConditionModel" if self._text else "UNet2DModel"], asked)
        config = self.unet.config
        self.latent_channels = int(config.in_channels)
        if int(config.out_channels) != self.latent_channels:
            raise UsageError(
                f"{folder / 'unet'} returns {config.out_channels} channels for {self.latent_channels}: it is not a model "
                "of text or noise alone"
            )
        self.vae: Any = None
        self.data_channels, self.factor = self.latent_channels, 1
        if self._text:
            self.vae = _read(library, folder / "vae", ["AutoencoderKL", "AutoencoderTiny"], asked)
            self.data_channels, self.factor = _fitting(self.vae.config, self.latent_channels, folder)
        size = config.sample_size
        side = int(size[0] if isinstance(size, list | tuple) else size or 64)
        self.default_side, self.fixed_size = side * self.factor, not self._text
        self._guidance = _guidance(asked, config) if self._text else 0.0
        self._conditions = self._read_conditions(folder, asked, bool(index.get("force_zeros_for_empty_prompt", True)))
        self._dtype, self.device = asked.dtype, torch.device("cpu")
        self.to(self.device, asked.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type in which it computes."""
        return self._dtype

    def weights(self) -> Iterator[Tensor]:
        """Yield the weights."""
        for network in (self.unet, self.vae):
            if network is not None:
                yield from network.state_dict().values()

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the networks, and compute in ``dtype`` from now on."""
        for network in (self.unet, self.vae):
            if network is not None:
                nn.Module.to(network, device, dtype)
        self._conditions = self._conditions.to(device, dtype)
        self.step = replace(self.step, timestep=self.step.timestep.to(device))
        self.device, self._dtype = device, dtype

    def checkpoint_activations(self) -> None:
        """Recompute activations of each block of layers on the way back, instead of keeping them."""
        for network in (self.unet, self.vae):
            if network is not None and getattr(network, "_supports_gradient_checkpointing", False):
                network.enable_gradient_checkpointing()

    def __call__(self, z: Tensor) -> Tensor:
        """Compute images from noise, (B, C, h, w) -> (B, *D) in [-1, 1]."""
        step = self.step
        predicted = self._guided(step.to_input * z)
        x = step.from_noise * z + step.from_output * predicted
        if step.clip:
            x = x.clamp(-1, 1)
        if self.vae is not None:
            x = self.vae.decode(self._unscaled(x), return_dict=False)[0]
        return x.clamp(-1, 1)

    def _guided(self, noisy: Tensor) -> Tensor:
        """Return the network's prediction, with guidance where it is used."""
        found = self._conditions
        sides = (noisy.shape[2] * self.factor, noisy.shape[3] * self.factor)
        if found.negative is None:
            return self._predicted(noisy, found, sides)
        away = replace(found, tokens=found.negative, pooled=found.negative_pooled)
        without = self._predicted(noisy, away, sides)
        return without + self._guidance * (self._predicted(noisy, found, sides) - without)

    def _predicted(self, noisy: Tensor, conditions: Conditions, sides: tuple[int, int]) -> Tensor:
        rows = len(noisy)
        more: dict[str, Any] = {}
        if self._text:
            more = {"encoder_hidden_states": _expanded(conditions.tokens, rows)}
            more["timestep_cond"] = _expanded(conditions.guidance_embedding, rows)
        if conditions.class_label is not None:
            more["class_labels"] = _expanded(conditions.class_label, rows)
        if self._double:
            sizes = torch.tensor([*sides, 0, 0, *sides], dtype=noisy.dtype, device=noisy.device)
            more["added_cond_kwargs"] = {
                "text_embeds": _expanded(conditions.pooled, rows),
                "time_ids": sizes.expand(rows, -1),
            }
        output: Tensor = self.unet(noisy, self.step.timestep, return_dict=False, **more)[0]
        return output

    def _unscaled(self, x: Tensor) -> Tensor:
        """Return latents as the decoder expects them."""
        config = self.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        x = x / config.scaling_factor
        if self._double and mean is not None and std is not None:
            shape = (1, -1, 1, 1)
            x = x * torch.tensor(std, dtype=x.dtype, device=x.device).reshape(shape)
            x = x + torch.tensor(mean, dtype=x.dtype, device=x.device).reshape(shape)
        return x

    def _read_conditions(self, folder: Path, asked: Asked, zeros_for_empty: bool) -> Conditions:
        config = self.unet.config
        if not self._text:
            return Conditions(class_label=_label(asked, config))
        assert asked.prompt is not None
        texts = Texts(folder, self._double, asked.variant, asked.base)
        prompt = texts.encode(asked.prompt)
        _check_prompt(prompt, config, folder, self._double)
        found = Conditions(prompt.tokens, pooled=prompt.pooled)
        if config.time_cond_proj_dim is not None:
            return replace(found, guidance_embedding=_embedded(self._guidance - 1, int(config.time_cond_proj_dim)))
        if self._guidance <= 1:
            return found
        empty = self._double and asked.negative is None and zeros_for_empty
        negative = prompt.zeros() if empty else texts.encode(asked.negative or "")
        return replace(found, negative=negative.tokens, negative_pooled=negative.pooled)


def files_of(folder: Path, variant: str | None) -> dict[str, Path]:
    """Return the files that a pipeline is read from, by their names inside the folder."""
    kind = checked_config(folder / INDEX, PIPELINES, "diffusers-pipeline")["_class_name"]
    found = [folder / INDEX, folder / "scheduler" / SCHEDULER_FILE]
    parts = ["unet", *(["vae", "text_encoder", "text_encoder_2"] if kind in TEXT_PIPELINES else [])]
    for part in parts:
        if (folder / part).is_dir():
            found += [folder / part / CONFIG_FILE, *weight_files(folder / part, variant)]
    for tokenizer in ("tokenizer", "tokenizer_2"):
        if kind in TEXT_PIPELINES and (folder / tokenizer).is_dir():
            found += sorted(path for path in (folder / tokenizer).iterdir() if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found}


def hub_patterns(variant: str | None) -> list[str]:
    """Return the files of a repository that a pipeline is read from."""
    end = "" if variant is None else f".{variant}"
    found = [INDEX, f"scheduler/{SCHEDULER_FILE}", "tokenizer/*", "tokenizer_2/*"]
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        found += [f"{part}/{CONFIG_FILE}", f"{part}/*.safetensors.index{end}.json"]
        found += [f"{part}/{name}{end}{rest}.safetensors" for name in ("model", "diffusion_pytorch_model")
                  for rest in ("", "-*")]  # fmt: skip
    return found


def _read(library: Any, folder: Path, classes: list[str], asked: Asked) -> Any:
    require_folder(folder, CONFIG_FILE, asked.base)
    config = checked_config(folder / CONFIG_FILE, classes, asked.base)
    make = getattr(library, config["_class_name"])
    weight_files(folder, asked.variant)
    check_numbers(lambda: make.from_config(config), folder, config["_class_name"])
    options = {} if asked.variant is None else {"variant": asked.variant}
    return read_network(make, folder, torch_dtype=asked.dtype, **options)


def _check_asked(asked: Asked, kind: str, text: bool) -> None:
    """Raise if the recipe has a text for a pipeline without text, or none for one that needs it."""
    if text:
        if asked.prompt is None:
            raise UsageError(
                f"a {kind} makes images of a text: set base.prompt", hint="For example base.prompt='a red bag'."
            )
        if asked.class_label is not None:
            raise UsageError(f"base.class_label has no meaning for a {kind}, which makes images of a text")
        if asked.negative is not None and (asked.guidance or 0.0) <= 1:
            raise UsageError("base.negative_prompt is used only with a base.guidance above 1")
        return
    for name, value in (("prompt", asked.prompt), ("negative_prompt", asked.negative), ("guidance", asked.guidance)):
        if value is not None:
            raise UsageError(f"base.{name} has no meaning for a {kind}, which reads no text: leave it out")


def _guidance(asked: Asked, config: Any) -> float:
    as_input = config.time_cond_proj_dim is not None
    if as_input and asked.negative is not None:
        raise UsageError("base.negative_prompt has no meaning for a model that takes the guidance as an input")
    if asked.guidance is None:
        return LCM_GUIDANCE if as_input else 0.0
    return asked.guidance


def _label(asked: Asked, config: Any) -> Tensor | None:
    classes = getattr(config, "num_class_embeds", None)
    if classes is None:
        if asked.class_label is not None:
            raise UsageError("base.class_label has no meaning: this model has no classes")
        return None
    if asked.class_label is None:
        raise UsageError(
            f"this model makes images of {classes} classes: set base.class_label to one of 0 to {classes - 1}"
        )
    if not 0 <= asked.class_label < classes:
        raise UsageError(f"base.class_label={asked.class_label} does not exist: the classes are 0 to {classes - 1}")
    return torch.tensor([asked.class_label])


def _fitting(config: Any, channels: int, folder: Path) -> tuple[int, int]:
    """Return the decoder's channels, and the sides of images over those of latents."""
    if int(config.latent_channels) != channels:
        raise UsageError(
            f"the vae in {folder} decodes {config.latent_channels} channels, and the unet makes {channels}"
        )
    return int(config.out_channels), 2 ** (len(config.block_out_channels) - 1)


OTHER_CONDITIONS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
"""Keys of a network that reads more than noise and text."""


def _check_prompt(prompt: Prompt, config: Any, folder: Path, double: bool) -> None:
    for key in OTHER_CONDITIONS:
        if config.get(key) is not None:
            raise UsageError(f"the unet in {folder} reads {key}, which is neither noise nor text")
    wide = config.cross_attention_dim
    if isinstance(wide, int) and prompt.tokens.shape[-1] != wide:
        raise UsageError(
            f"the text encoders in {folder} give {prompt.tokens.shape[-1]} numbers a token, and the unet reads {wide}"
        )
    if double:
        assert prompt.pooled is not None
        given = prompt.pooled.shape[-1] + 6 * int(config.addition_time_embed_dim or 0)
        if given != config.projection_class_embeddings_input_dim:
            raise UsageError(
                f"the pooled text and sizes in {folder} are {given} numbers, and the unet reads "
                f"{config.projection_class_embeddings_input_dim}"
            )
    elif config.addition_embed_type is not None:
        raise UsageError(f"the unet in {folder} reads conditions of a StableDiffusionXLPipeline (addition_embed_type)")


def _expanded(value: Tensor | None, rows: int) -> Tensor | None:
    return None if value is None else value.expand(rows, *value.shape[1:])


def _embedded(scale: float, dim: int) -> Tensor:
    """Return sines and cosines of a guidance scale, (1, dim), as latent consistency models read it."""
    half = dim // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10_000.0) / (half - 1)))
    angles = 1000.0 * scale * rates
    found = torch.cat([angles.sin(), angles.cos()])
    return nn.functional.pad(found, (0, dim - 2 * half))[None]
