"""Your own scorer as an energy: a frozen program, or a trained energy's weights, read from a file.

References:
    Your GAN is Secretly an Energy-based Model. T. Che et al., NeurIPS 2020. https://arxiv.org/abs/2003.06060
    ReNO: Enhancing One-step Text-to-Image Models through Reward-based Noise Optimization. L. Eyring et al., NeurIPS 2024.
    https://arxiv.org/abs/2406.04312
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from gebm_kit.core.components import Injected, OfKind, Range, check_arguments
from gebm_kit.core.errors import DataError, GebmKitError, UsageError, shown
from gebm_kit.core.interfaces import Energy, OnCodes
from gebm_kit.core.kept_files import Source, read_source
from gebm_kit.core.layers import check_sizes
from gebm_kit.core.program_files import SCORER, kind_of
from gebm_kit.core.programs import Program, reason, refuse_another_file
from gebm_kit.energies.scorer_checks import Reading, called, check_scorer, score_of


def _folder_error(folder: Path, given: str) -> GebmKitError:
    hint = "Give the file inside it; a trained run's own energy is used with `gk.sample(RUN)` or `gebm-kit sample RUN`."
    return DataError(f"{folder} is a folder, but a scorer's file is needed", hint=hint)


SOURCE = Source(folder="energy", role=SCORER, key="energy.path", folder_error=_folder_error, keyed=True)
"""The scorer's file, and where a run keeps its copy."""


class PretrainedEnergy(Energy):
    """A frozen scorer from a file as an energy, ``E(x) = sign * scale * f(x)``; (B, *D) -> (B,).

    ``path`` is one of

    - a TorchScript program (``torch.jit.save``) or a torch.export program (``torch.export.save``), which maps data
      (B, ``*D``) to one number for each row, (B,) or (B, 1), or to logits (B, K) with ``target``. Then
      ``f(x) = log softmax(logits)[target]``, the log-probability of that class. Such a file is code and is loaded only with
      ``--trust-program``. What it returns is checked when it is loaded;
    - a ``.safetensors`` state dict. ``architecture`` then names the energy that the weights belong to; the sign is 1.

    It is never changed and needs no training. With the default sign, -1, f is a score: the higher it is, the likelier x. The
    latent posterior at inverse temperature beta is then ``prior(z) exp(beta * scale * f(G(z)))``, which maximises
    ``beta * scale * E[f] - KL(q || base)``. A run keeps a copy of the file, and every checkpoint holds its sha256.

    A program without a gradient with respect to x serves samplers that need none: pcn, elliptical, rwm or imh.

    Args:
        path: the file, relative to the directory in which the command is started.
        target: class whose log-probability is the score, for a program that returns logits; null: it returns the score.
        scale: factor of f, above 0.
        sign: -1 where f is a score (high is good), 1 where f is an energy (low is good). Null: 1 for weights, else -1.
        input_range: [low, high] of the values that a program expects, such as [0, 1]; the data's range is mapped to it
            linearly. Null: the data's own values.
        resize: [rows, columns] of the images that a program expects; images are resized bilinearly, with antialiasing.
            Null: as they are.
        input_shape: shape of one row that a program expects, for example [784]; it has as many numbers as a (resized) data
            point. Null: the data's shape.
        architecture: energy of the state dict, such as {name: mlp}.
        prefix: prefix of the names in the state dict that belong to the energy (``energy.`` in a checkpoint of this kit).
        data_shape: ``*D``.
        value_range: (low, high) of the data, or None.

    Attributes:
        source_file, source_sha256: the file that was read, and its sha256.
        source_copy: name of the copy that a run keeps.

    Raises:
        DataError: the file is missing, damaged or of another kind.
        UsageError: a program is not trusted, or does not return what is required above; parameters contradict each other;
            the class does not exist; weights do not fit the architecture.
        CheckpointError: the copy in a run is not the file that the run was trained with.
    """

    frozen = True
    sha256: Tensor
    _place: Tensor

    def __init__(
        self,
        path: str,
        target: Annotated[int | None, Range(0, None)] = None,
        scale: Annotated[float, Range(0, None, low_open=True)] = 1.0,
        sign: Literal[-1, 1] | None = None,
        input_range: list[float] | None = None,
        resize: list[int] | None = None,
        input_shape: list[int] | None = None,
        architecture: Annotated[Energy | None, OfKind("energy")] = None,
        prefix: str = "",
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        value_range: Annotated[tuple[float, float] | None, Injected] = None,
        directory: Annotated[Path, Injected] = Path(),
        run_directory: Annotated[Path | None, Injected] = None,
    ) -> None:
        super().__init__()
        check_arguments(self, scale=scale)
        if sign not in (None, -1, 1):
            raise UsageError(f"energy.sign must be -1 (f is a score) or 1 (f is an energy), got {shown(sign)}")
        if target is not None and (not isinstance(target, int) or isinstance(target, bool) or target < 0):
            raise UsageError(f"energy.target must be a class, a whole number >= 0, got {shown(target)}")
        self.data_shape = tuple(data_shape)
        self.source_file, content = read_source(path, directory, run_directory, SOURCE)
        self.source_copy = SOURCE.copy_name(path)
        self.source_sha256 = hashlib.sha256(content).hexdigest()
        kind = kind_of(self.source_file, content, SCORER)
        self.target, self.scale = target, float(scale)
        self.network: Energy | None = None
        self._program: Program | None = None
        given = {"target": target, "input_range": input_range, "resize": resize, "input_shape": input_shape}
        if kind == "weights":
            self._take_weights(
                content, architecture, prefix, [name for name, value in given.items() if value is not None]
            )
        else:
            if architecture is not None or prefix:
                key = "prefix" if architecture is None else "architecture"
                raise UsageError(
                    f"energy.{key} belongs to a .safetensors file of weights; {self.source_file} is a program, which brings "
                    "its own network"
                )
            self._program = Program(kind, self.source_file, content, self.source_sha256, SCORER)
        self.sign: int = sign or (1 if kind == "weights" else -1)
        self._mapping = _mapping(input_range, value_range)
        self._resize = _image_size(resize, self.data_shape)
        for name, sizes in (("input_shape", input_shape), ("resize", resize)):
            if sizes is not None:
                check_sizes(name, sizes or [0])
        self._input_shape = None if input_shape is None else tuple(input_shape)
        digest = torch.frombuffer(bytearray.fromhex(self.source_sha256), dtype=torch.uint8)
        self.register_buffer("sha256", digest.clone())
        self.register_buffer("_place", torch.zeros(()), persistent=False)  # its device is the one for the program
        self._value_range = value_range
        self._try()

    def forward(self, x: Tensor) -> Tensor:
        if self._program is None:
            assert self.network is not None
            energy: Tensor = self.network(x)
            return self.sign * self.scale * energy
        with torch.autocast(x.device.type, enabled=False):  # the program computes in its own precision
            found = called(self._program, self.prepared(x).to(self._program.dtype))
            score = score_of(self._program, found, len(x), self.target)
        return (self.sign * self.scale) * score.to(x.dtype)

    def prepared(self, x: Tensor) -> Tensor:
        """Return data as the program expects them: in its range, resized and reshaped; (B, *D) -> (B, ...)."""
        if self._mapping is not None:
            x = self._mapping[0] + self._mapping[1] * x
        if self._resize is not None:
            x = F.interpolate(x, self._resize, mode="bilinear", antialias=True, align_corners=False)
        if self._input_shape is not None:
            try:
                x = x.reshape(len(x), *self._input_shape)
            except RuntimeError as error:
                raise UsageError(
                    f"energy.input_shape={list(self._input_shape)} has another number of values than a data point of shape "
                    f"{list(x.shape[1:])}"
                ) from error
        return x

    def _try(self) -> None:
        if self._program is not None:
            reading = Reading(self.data_shape, self._value_range, self.target, self._place.device)
            check_scorer(self._program, self.prepared, reading)

    def held_weights(self) -> Iterator[Tensor]:
        """Yield the weights of a program, which are no parameters of the model."""
        return iter(()) if self._program is None else self._program.weights()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        before = self._place.device
        super()._apply(fn, recurse)
        if self._program is not None and self._place.device != before:
            self._program.to(self._place.device)
            self._try()
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, *rest: Any
    ) -> None:
        """Load a checkpoint, but only one that was trained with this very file."""
        refuse_another_file(state_dict, prefix, self.sha256, self.source_file, "scorer", rest[-1])
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def _take_weights(self, content: bytes, network: Energy | None, prefix: str, given: list[str]) -> None:
        """Load the weights in ``content`` into ``network``, and freeze it."""
        where = self.source_file
        if network is None:
            raise UsageError(
                f"{where} holds only weights: energy.architecture must say which energy they belong to",
                hint="For example energy.architecture='{name: mlp}'. `gebm-kit list energy` lists energies.",
            )
        if isinstance(network, PretrainedEnergy | OnCodes):
            raise UsageError(f"energy.architecture can't be {type(network).__name__}; it must be an energy on data")
        if given:
            raise UsageError(f"energy.{given[0]} is only for programs; weights belong to an energy of this kit")
        try:
            tensors = safetensors.torch.load(content)
        except Exception as error:  # a type that torch does not have is a KeyError
            raise DataError(f"{where} is not a safetensors file: {reason(error)}") from error
        chosen = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        try:
            network.load_state_dict(chosen)
        except RuntimeError as error:
            words = " ".join(str(error).split())[:300]
            raise UsageError(
                f"{where} does not fit energy.architecture: {words}",
                hint="Names in a run's checkpoint begin with energy.: set energy.prefix=energy.",
            ) from error
        self.network = network.requires_grad_(False)


def _mapping(input_range: list[float] | None, value_range: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the offset and factor that map ``value_range`` to ``input_range``, or None if there is nothing to map."""
    if input_range is None:
        return None
    if len(input_range) != 2 or not input_range[0] < input_range[1]:
        raise UsageError(f"energy.input_range must be [low, high] with low < high, got {input_range}")
    if value_range is None:
        raise UsageError(
            "energy.input_range needs data with a fixed range, and these have none",
            hint="With `gebm-kit tilt`, state the generator's range: --range=-1,1; or leave energy.input_range out.",
        )
    factor = (input_range[1] - input_range[0]) / (value_range[1] - value_range[0])
    return input_range[0] - factor * value_range[0], factor


def _image_size(resize: list[int] | None, data_shape: tuple[int, ...]) -> tuple[int, int] | None:
    if resize is None:
        return None
    if len(resize) != 2 or len(data_shape) != 3:
        what = f"got {resize} for data of shape {list(data_shape)}"
        raise UsageError(f"energy.resize is [rows, columns], for images (channels, rows, columns); {what}")
    return resize[0], resize[1]
