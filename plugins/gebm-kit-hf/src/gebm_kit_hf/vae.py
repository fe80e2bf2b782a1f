"""The decoder of a diffusers autoencoder as a base: the network with which latent diffusion models decode.

References:
    Auto-Encoding Variational Bayes. D. P. Kingma, M. Welling, ICLR 2014. https://arxiv.org/abs/1312.6114
    High-Resolution Image Synthesis with Latent Diffusion Models. R. Rombach et al., CVPR 2022.
    https://arxiv.org/abs/2112.10752 (the autoencoder, and the scale of its latents)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import CheckpointError, DataError, UsageError
from gebm_kit.core.interfaces import Base
from gebm_kit.core.reading import read_file
from gebm_kit_hf.library import (
    CONFIG_FILE,
    MAX_CONFIG,
    check_numbers,
    checked_config,
    fetched,
    imported,
    quiet,
    read_network,
    require_folder,
    said,
)

NAME = "diffusers-vae"
RUN_FOLDER = "base"
"""Folder of a run directory that holds the copy of the configuration."""

MODEL_CLASS = "AutoencoderKL"
"""The only diffusers class that this base reads: the autoencoder of latent diffusion models."""


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
        library = imported("diffusers", NAME, "diffusers")
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
            inside = f"{subfolder}/" if subfolder else ""
            found = fetched(hub, revision, [f"{inside}{CONFIG_FILE}", f"{inside}*.safetensors"])
            self.source_file, self._given = found / (subfolder or "") / CONFIG_FILE, True
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


def _from_folder(library: Any, folder: Path) -> Any:
    require_folder(folder, CONFIG_FILE, NAME)
    config = checked_config(folder / CONFIG_FILE, [MODEL_CLASS], NAME)
    make = getattr(library, MODEL_CLASS)
    check_numbers(lambda: make.from_config(config), folder, "autoencoder")
    return read_network(make, folder).requires_grad_(True)


def _from_config(library: Any, file: Path) -> Any:
    """Build the same network; its weights will come from a checkpoint."""
    config = checked_config(file, [MODEL_CLASS], NAME)
    try:
        with quiet():
            return getattr(library, MODEL_CLASS).from_config(config).eval()
    except Exception as error:  # the library raises many types
        raise DataError(f"{file} describes no autoencoder: {said(error)}") from error


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
