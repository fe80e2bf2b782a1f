"""A one-step text-to-image pipeline of diffusers as a base: z is the noise that it starts from.

References:
    Adversarial Diffusion Distillation. A. Sauer et al., ECCV 2024. https://arxiv.org/abs/2311.17042 (SD-Turbo, SDXL-Turbo)
    Latent Consistency Models. S. Luo et al., 2023. https://arxiv.org/abs/2310.04378
    Consistency Models. Y. Song et al., ICML 2023. https://arxiv.org/abs/2303.01469
    ReNO: Enhancing One-step Text-to-Image Models through Reward-based Noise Optimization. L. Eyring et al., NeurIPS 2024.
    https://arxiv.org/abs/2406.04312
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import DataError, UsageError, shown
from gebm_kit.core.interfaces import Base
from gebm_kit.core.paths import user_path
from gebm_kit.core.programs import refuse_another_file
from gebm_kit.core.reading import open_regular
from gebm_kit_hf.library import fetched, imported, require_folder
from gebm_kit_hf.networks import INDEX, Asked, Networks, files_of, hub_patterns

NAME = "diffusers-pipeline"

RUN_FOLDER = "base"
"""Folder of a run directory that holds the pipeline's files."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

HASHED_BYTES = 2**24
"""Bytes of a file that are read at a time for its sha256."""

BIG_SIDE, ROWS = 256, 16
"""Sides of images from which on they are made one at a time, and how many smaller ones are made at once, by default."""


class DiffusersPipeline(Base):
    """``x = G(z)`` of a one-step pipeline in diffusers' format: z is the initial noise, standard normal, x the image.

    It serves SD-Turbo, SDXL-Turbo and other StableDiffusionPipeline and StableDiffusionXLPipeline models for one step,
    latent consistency models (LatentConsistencyModelPipeline), and consistency models (ConsistencyModelPipeline). G is what
    the pipeline itself computes from this noise with one step, clamped to its range as the pipeline does, but
    differentiable, without a safety checker, and with the prompt fixed.

    The format is a folder with ``model_index.json`` and weights in safetensors, on this machine or in a repository of the
    Hugging Face hub. Pickled weights are not read, and no code that comes with a model is run. The weights never change, so
    ``train.part`` must be ``energy``. A run keeps the pipeline's files in its folder ``base`` (as links where the disk
    allows) and every checkpoint their sha256.

    Args:
        path: a folder, relative to the directory where the command is started.
        hub: name of a repository instead, such as stabilityai/sd-turbo; the library keeps what it downloads.
        revision: branch, tag or commit of the repository.
        variant: variant of the weights, such as fp16; null: the files without one.
        prompt: the text; null: none, for consistency models.
        negative_prompt: text that guidance leads away from; null: the empty text, or what the model was trained with for it.
        guidance: scale of classifier-free guidance; up to 1 there is none, as turbo models need. Null: none, but 8.5 for
            models that take the scale as an input, as latent consistency models do.
        class_label: class of a consistency model with classes.
        timestep: timestep where the one step starts, for schedulers that take one; null: the scheduler's.
        dtype: floating-point type of weights and computation. bfloat16 halves the memory; z and x stay as they are.
        gradient_checkpointing: whether activations are recomputed on the way back: less memory, a third more time.
        block_size: images that are made at once; null: 1 for images with sides of 256 and more, else 16.
        data_shape: (channels, height, width); null: that of the images that the model was made for.
        value_range: range of the data; the pipeline's [-1, 1] is mapped to it.

    Attributes:
        source_file, source_sha256: ``model_index.json``, and its sha256.
        source_parts: the other files, by name.

    Raises:
        DataError: the folder or repository does not exist, is damaged, or has no weights in safetensors; the data have
            another shape.
        UsageError: neither or both of path and hub are given; the pipeline or one of its parts is of another kind; a prompt
            is missing, or has no meaning.
        PluginError: diffusers or transformers is not installed.
        CheckpointError: the files are not those that the run was trained with.
    """

    sha256: Tensor
    _place: Tensor

    def __init__(
        self,
        path: str | None = None,
        hub: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        guidance: Annotated[float | None, Range(0, None)] = None,
        class_label: Annotated[int | None, Range(0, None)] = None,
        timestep: Annotated[int | None, Range(0, None)] = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        gradient_checkpointing: bool = False,
        block_size: Annotated[int | None, Range(1, None)] = None,
        *,
        data_shape: Annotated[tuple[int, ...] | None, Injected] = None,
        value_range: Annotated[tuple[float, float] | None, Injected] = None,
        directory: Annotated[Path, Injected] = Path(),
        run_directory: Annotated[Path | None, Injected] = None,
    ) -> None:
        super().__init__()
        _check(self, guidance=guidance, class_label=class_label, timestep=timestep, block_size=block_size)
        for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            if text is not None and not isinstance(text, str):
                raise UsageError(f"base.{name} must be one text, got {shown(text)}")
        if dtype not in DTYPES:
            raise UsageError(f"base.dtype must be one of {', '.join(DTYPES)}, got {shown(dtype)}")
        if variant is not None and not variant.isalnum():
            raise UsageError(f"base.variant must be a word such as fp16, got {shown(variant)}")
        library = imported("diffusers", NAME, "pipeline")
        folder = _folder(path, hub, revision, variant, directory, run_directory)
        require_folder(folder, INDEX, NAME)
        asked = Asked(prompt, negative_prompt, guidance, class_label, timestep, variant, DTYPES[dtype], NAME)
        self._networks = Networks(library, folder, asked)
        if gradient_checkpointing:
            self._networks.checkpoint_activations()
        self._dtype, self._recomputes = DTYPES[dtype], gradient_checkpointing
        self.data_shape, self._latent_shape = _shapes(self._networks, data_shape)
        self.latent_dim = math.prod(self._latent_shape)
        self._rows = block_size or (1 if max(self.data_shape[1:]) >= BIG_SIDE else ROWS)
        low, high = value_range or (-1.0, 1.0)
        self._centre, self._half = (high + low) / 2, (high - low) / 2
        self.source_file, self.source_parts = folder / INDEX, files_of(folder, variant)
        sums = {name: _sha256(file) for name, file in self.source_parts.items()}
        self.source_sha256 = sums[INDEX]
        del self.source_parts[INDEX]
        digest = hashlib.sha256("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()).digest()
        self.register_buffer("sha256", torch.frombuffer(bytearray(digest), dtype=torch.uint8).clone())
        self.register_buffer("_place", torch.zeros(()), persistent=False)  # its device and type are the networks'

    def forward(self, z: Tensor) -> Tensor:
        """Return G(z): (B, Z) -> (B, C, H, W)."""
        networks = self._networks
        noise = z.to(networks.dtype).reshape(-1, *self._latent_shape)
        with torch.autocast(z.device.type, enabled=False):  # the networks compute in their own type
            parts = [self._images(part) for part in noise.split(self._rows)] if len(noise) else []
        x = torch.cat(parts) if parts else noise.new_empty(0, *self.data_shape)
        return self._centre + self._half * x.to(z.dtype)

    def held_weights(self) -> Iterator[Tensor]:
        """Yield the networks' weights, which are no parameters of the model."""
        return self._networks.weights()

    def _images(self, noise: Tensor) -> Tensor:
        if self._recomputes and torch.is_grad_enabled() and noise.requires_grad:
            x: Tensor = checkpoint(self._networks, noise, use_reentrant=False, preserve_rng_state=False)
            return x
        return self._networks(noise)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """Move the networks along; double precision is taken over, and any other type is that of ``dtype``."""
        super()._apply(fn, recurse)
        dtype = torch.float64 if self._place.dtype == torch.float64 else self._dtype
        if (self._place.device, dtype) != (self._networks.device, self._networks.dtype):
            self._networks.to(self._place.device, dtype)
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, *rest: Any
    ) -> None:
        """Load a checkpoint, but only one that was trained with these very files."""
        refuse_another_file(state_dict, prefix, self.sha256, self.source_file.parent, "pipeline", rest[-1])
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def _check(base: DiffusersPipeline, **values: float | None) -> None:
    check_arguments(base, **{name: value for name, value in values.items() if value is not None})


def _folder(
    path: str | None,
    hub: str | None,
    revision: str | None,
    variant: str | None,
    directory: Path,
    run_directory: Path | None,
) -> Path:
    """Return the folder of the pipeline: a run's own, the given one, or the library's copy of a repository."""
    if (path is None) == (hub is None):
        raise UsageError(f"the base {NAME} needs a path or the name of a repository (hub), exactly one of them")
    if revision is not None and hub is None:
        raise UsageError("base.revision belongs to base.hub")
    kept = None if run_directory is None else run_directory / RUN_FOLDER
    if kept is not None and (kept / INDEX).is_file():
        return kept
    if path is not None:
        return directory / user_path(path, error=DataError)
    assert hub is not None
    return fetched(hub, revision, hub_patterns(variant))


def _shapes(networks: Networks, data_shape: tuple[int, ...] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of an image and of its noise."""
    side, factor, channels = networks.default_side, networks.factor, networks.data_channels
    shape = (channels, side, side) if data_shape is None else tuple(data_shape)
    right = len(shape) == 3 and shape[0] == channels and not any(n % factor for n in shape[1:])
    if networks.fixed_size and shape != (channels, side, side):
        raise DataError(
            f"this {networks.kind} makes images of shape {[channels, side, side]}, but the data have shape {list(shape)}",
            hint="Set data.size (image folders).",
        )
    if not right:
        raise DataError(
            f"this {networks.kind} makes images of {channels} channels with sides that are multiples of {factor}, but the "
            f"data have shape {list(shape)}",
            hint="Set data.size (image folders).",
        )
    return shape, (networks.latent_channels, shape[1] // factor, shape[2] // factor)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(file) as opened:
        while block := opened.read(HASHED_BYTES):
            digest.update(block)
    return digest.hexdigest()
