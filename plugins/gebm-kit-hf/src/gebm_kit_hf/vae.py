"""The decoder of a diffusers autoencoder as a base: the network with which latent diffusion models decode.

References:
    Auto-Encoding Variational Bayes. D. P. Kingma, M. Welling, ICLR 2014. https://arxiv.org/abs/1312.6114
    High-Resolution Image Synthesis with Latent Diffusion Models. R. Rombach et al., CVPR 2022.
    https://arxiv.org/abs/2112.10752 (the autoencoder, and the scale of its latents)
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import CheckpointError, DataError, PluginError, UsageError
from gebm_kit.core.interfaces import Base
from gebm_kit.core.reading import read_file, read_json_file

CONFIG_FILE = "config.json"
RUN_FOLDER = "base"
"""Folder of a run directory that holds the copy of the configuration."""

MODEL_CLASS = "AutoencoderKL"
"""The only diffusers class that this base reads: the autoencoder of latent diffusion models."""


MAX_CONFIG = 2**22
"""Largest configuration that is read, in bytes; those of published models have a kilobyte."""

MAX_SIZE, MAX_BLOCKS = 2**16, 64
"""Largest size of a layer or an image, and most blocks or layers of a block, in a configuration; published models have
at most 1,024 channels and 4 blocks."""


class DiffusersVae(Base):
    """``x = decode(z / scale + shift)``, z standard normal, of an AutoencoderKL in diffusers' format.

    The format is a folder with ``config.json`` and weights in safetensors, on this machine or in a repository of the Hugging
    Face hub. In the folder of a whole pipeline, ``subfolder`` is ``vae``. Pickled weights are not read, and no code that
    comes with a model is run. Images (C, H, W) have sides that are multiples of the autoencoder's factor f (8 in Stable
    Diffusion). Codes are the latents, (channels, H/f, W/f), flattened. ``encode`` returns the mean of the encoder's
    posterior.

    The latents of data are not standard normal, so draws of the decoder alone are poor: the energy must learn the joint law
    of the latents. A run keeps the weights in its checkpoints and the configuration in its folder ``base``, so it needs
    neither the hub nor the original folder.

    Args:
        path: a folder, relative to the directory where the command is started.
        hub: name of a repository instead, such as stabilityai/sd-vae-ft-mse; the library keeps what it downloads.
        subfolder: folder inside ``path`` or the repository.
        revision: branch, tag or commit of the repository.
        scale: number that codes are divided by before decoding; null: the configuration's ``scaling_factor``, with which
            the codes of data have variance 1.
        data_shape: (channels, height, width).
        value_range: range of the data; the decoder's [-1, 1] is mapped to it.

    Raises:
        DataError: the folder or repository does not exist or has no weights in safetensors, or the data have another shape.
        UsageError: neither or both of path and hub are given, or the model is of another class.
        PluginError: diffusers is not installed.
        CheckpointError: (on decoding) the weights of the run have not been loaded.
    """

    def __init__(
        self,
        path: str | None = None,
        hub: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        scale: Annotated[float | None, Range(0, None, low_open=True)] = None,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        value_range: Annotated[tuple[float, float] | None, Injected] = None,
        directory: Annotated[Path, Injected] = Path(),
        run_directory: Annotated[Path | None, Injected] = None,
    ) -> None:
        super().__init__()
        if scale is not None:
            check_arguments(self, scale=scale)
        if (path is None) == (hub is None):
            raise UsageError(
                "the base diffusers-vae needs a path or the name of a repository (hub), exactly one of them"
            )
        if revision is not None and hub is None:
            raise UsageError("base.revision belongs to base.hub")
        library = _diffusers()
        folder = None if path is None else directory / Path(path).expanduser() / (subfolder or "")
        kept = None if run_directory is None else run_directory / RUN_FOLDER / CONFIG_FILE
        if kept is not None and kept.is_file():
            # the base of a run: its checkpoint has the weights; as long as there is none, the folder's weights are used
            self.source_file = kept
            autoencoder = _from_config(library, kept)
            self._given = folder is not None and folder.is_dir()
            if self._given:
                assert folder is not None
                autoencoder = _from_folder(library, folder)
        elif folder is not None:
            self.source_file, self._given = folder / CONFIG_FILE, True
            autoencoder = _from_folder(library, folder)
        else:
            assert hub is not None
            self.source_file, self._given = _from_hub(library, hub, subfolder, revision), True
            autoencoder = _from_folder(library, self.source_file.parent)
        self.source_sha256 = hashlib.sha256(read_file(self.source_file, limit=MAX_CONFIG)).hexdigest()
        self.autoencoder: Any = autoencoder
        config = autoencoder.config
        self.data_shape = tuple(data_shape)
        self._latent_shape = _latent_shape(config, self.data_shape)
        self.latent_dim = math.prod(self._latent_shape)
        self._scale = scale or _number(self.source_file, "scaling_factor", config.scaling_factor, positive=True)
        self._shift = _number(self.source_file, "shift_factor", config.shift_factor or 0.0)
        low, high = value_range or (-1.0, 1.0)
        self._centre, self._half = (high + low) / 2, (high - low) / 2

    def forward(self, z: Tensor) -> Tensor:
        """Return G(z): (B, Z) -> (B, C, H, W)."""
        if not self._given:
            raise CheckpointError(
                "the base diffusers-vae has no weights: its folder is gone, and no checkpoint was read"
            )
        latents = z.reshape(-1, *self._latent_shape) / self._scale + self._shift
        x: Tensor = self.autoencoder.decode(latents).sample
        return self._centre + self._half * x

    def encode(self, x: Tensor) -> Tensor:
        """Return the mean of q(z|x): (B, C, H, W) -> (B, Z)."""
        mean: Tensor = self.autoencoder.encode((x - self._centre) / self._half).latent_dist.mean
        return ((mean - self._shift) * self._scale).flatten(1)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        self._given = self._given or any(name.startswith(f"{prefix}autoencoder.") for name in state_dict)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _diffusers() -> Any:
    try:
        with _quiet():
            import diffusers
    except ImportError as error:
        raise PluginError(
            f"the base diffusers-vae needs the package diffusers: {error}",
            hint="Install it with `pip install 'gebm-kit-hf[diffusers]'`.",
        ) from error
    return diffusers


def _from_folder(library: Any, folder: Path) -> Any:
    if folder.is_file():
        raise DataError(
            f"{folder} is a file, but the base diffusers-vae reads a folder with {CONFIG_FILE} and safetensors",
            hint="Give the folder that the file is in; for a generator in one file use the base pretrained.",
        )
    if not (folder / CONFIG_FILE).is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}")) if folder.is_dir() else []
        problem = f"holds no {CONFIG_FILE}" if folder.is_dir() else "does not exist"
        hint = f"Set base.subfolder to one of {', '.join(inside)}." if inside else "Set base.path, or base.hub."
        raise DataError(f"the folder {folder} {problem}", hint=hint)
    config = _checked_config(folder / CONFIG_FILE)
    _check_size(library, folder, config)
    try:
        with _quiet():
            found = getattr(library, MODEL_CLASS).from_pretrained(
                str(folder), use_safetensors=True, local_files_only=True
            )
    except Exception as error:  # the library raises many types
        pickled = list(folder.glob("*.bin"))
        text = " ".join(str(error).split())[:300]
        raise DataError(
            f"{folder} can't be read: {text}",
            hint=f"{pickled[0].name} is a pickle, which is never read: save the model as safetensors."
            if pickled
            else "",
        ) from error
    return found.eval()


def _from_config(library: Any, file: Path) -> Any:
    """Build the same network; its weights will come from a checkpoint."""
    config = _checked_config(file)
    try:
        with _quiet():
            return getattr(library, MODEL_CLASS).from_config(config).eval()
    except Exception as error:  # the library raises many types
        raise DataError(f"{file} describes no autoencoder: {' '.join(str(error).split())[:300]}") from error


def _check_size(library: Any, folder: Path, config: dict[str, Any]) -> None:
    """Raise DataError if the configuration asks for more numbers than the weights hold, before memory is allocated."""
    import torch

    held = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    try:
        with _quiet(), torch.device("meta"):
            numbers = sum(p.numel() for p in getattr(library, MODEL_CLASS).from_config(config).parameters())
    except Exception as error:  # the library raises many types
        raise DataError(
            f"{folder / CONFIG_FILE} describes no autoencoder: {' '.join(str(error).split())[:300]}"
        ) from error
    if held and numbers > held:  # at least one byte each
        raise DataError(f"{folder / CONFIG_FILE} describes {numbers:,} weights, but the files hold {held:,} bytes")


def _from_hub(library: Any, hub: str, subfolder: str | None, revision: str | None) -> Path:
    """Download configuration and weights; return the configuration's place in the library's cache, beside the weights."""
    import huggingface_hub

    inside = f"{subfolder}/" if subfolder else ""
    try:
        with _quiet():
            place = huggingface_hub.snapshot_download(
                hub, revision=revision, allow_patterns=[f"{inside}{CONFIG_FILE}", f"{inside}*.safetensors"]
            )
    except Exception as error:  # the library raises many types
        text = " ".join(str(error).split())[:300]
        raise DataError(
            f"{hub!r} can't be fetched from the Hugging Face hub: {text}",
            hint="Check the name and the network (HF_ENDPOINT, HF_HUB_OFFLINE), or set base.path to a copy of it.",
        ) from error
    return Path(place) / (subfolder or "") / CONFIG_FILE


def _checked_config(file: Path) -> dict[str, Any]:
    """Return the configuration in a file once its class and sizes are checked."""
    config = read_json_file(file, limit=MAX_CONFIG)
    if not isinstance(config, dict):
        raise DataError(f"{file} is not a configuration: it holds a {type(config).__name__}")
    name = config.get("_class_name")
    if name != MODEL_CLASS:
        raise UsageError(f"{file} describes a {name}, but the base diffusers-vae reads only {MODEL_CLASS}")
    for key, value in config.items():
        sizes = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int)]
        if len(sizes) > MAX_BLOCKS or any(n > MAX_SIZE for n in sizes):
            raise DataError(f"{file} has {key} = {str(value)[:80]}; sizes above {MAX_SIZE:,} are not read")
    layers = config.get("layers_per_block")
    if isinstance(layers, int) and layers > MAX_BLOCKS:
        raise DataError(f"{file} has layers_per_block = {layers}; at most {MAX_BLOCKS} are read")
    return config


def _number(file: Path, key: str, value: object, *, positive: bool = False) -> float:
    """Return a number of the configuration, which must be finite."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or (positive and value <= 0):  # type: ignore[arg-type, operator]
        wanted = "a positive number" if positive else "a finite number"
        raise DataError(f"{file} has {key} = {str(value)[:80]}; it must be {wanted}")
    return float(value)  # type: ignore[arg-type]


def _latent_shape(config: Any, data_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (channels, height, width) of a code."""
    factor = 2 ** (len(config.block_out_channels) - 1)
    channels = int(config.out_channels)
    if len(data_shape) != 3 or data_shape[0] != channels or any(side % factor for side in data_shape[1:]):
        raise DataError(
            f"this autoencoder makes images of {channels} channels with sides that are multiples of {factor}, "
            f"but the data have shape {list(data_shape)}",
            hint="Set data.size (image folders), or take another autoencoder.",
        )
    return int(config.latent_channels), data_shape[1] // factor, data_shape[2] // factor


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the library logs while it loads, inside the block."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
