"""Your own generator: trained elsewhere, read from a file, and refined by an energy.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033
    Your GAN is Secretly an Energy-based Model. T. Che et al., NeurIPS 2020. https://arxiv.org/abs/2003.06060
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from torch import Tensor

from gebm_kit.bases.program_checks import Shapes, check_program
from gebm_kit.core.classes import CAPABILITIES, decoded, own_labels
from gebm_kit.core.components import Injected, OfKind, check_arguments
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import Base
from gebm_kit.core.kept_files import Source, read_source
from gebm_kit.core.layers import check_sizes
from gebm_kit.core.priors import PRIORS, Prior, PriorName
from gebm_kit.core.program_files import GENERATOR, folder_error, kind_of
from gebm_kit.core.programs import Program, reason, refuse_another_file

SOURCE = Source(folder="base", role=GENERATOR, key="base.path", folder_error=folder_error)
"""The generator's file, and where a run keeps its copy."""


class Pretrained(Base):
    """A generator ``x = G(z)`` from a file: the weights of a registered base, or a program.

    ``path`` is one of

    - a ``.safetensors`` state dict. ``architecture`` then names the base that the weights belong to, with its parameters.
      The weights may be trained further (``train.part``). A conditional architecture makes this base conditional;
    - a TorchScript program (``torch.jit.save``) or a torch.export program (``torch.export.save``). It is never changed, so
      ``train.part`` must be ``energy``. Such a file is code and is loaded only with ``--trust-program``. It must map codes
      (B, ``*latent_shape``) to (B, ``*output_shape``) for any B. The map must be deterministic, differentiable, and
      computed for each row on its own. All of this is checked when the program is loaded.

    A run keeps a copy of the file. Every checkpoint holds the file's sha256, which is compared when the run is read.

    Args:
        path: the file, relative to the directory in which the command is started.
        architecture: base of the state dict, such as {name: dcgan, latent_dim: 100, width: 64}.
        prefix: prefix of the names in the state dict that belong to the generator (``base.`` in a checkpoint of this
            kit). Other names are ignored.
        latent_shape: shape of one code of a program, [100] or [100, 1, 1]; Z is its product. Null: the shape that the
            file states, as torch.export programs do.
        output_shape: shape that a program returns for one code, with as many numbers as a data point, for example [784].
            Null: the data's shape. It is reshaped to the data's, so it must list their axes in the same order: [784] for
            data [1, 28, 28], but not [32, 32, 3] for data [3, 32, 32].
        channels_last: whether a program returns images as (rows, columns, channels); they are then permuted.
        output_range: [low, high] of a program's values, for example [0, 1] if it ends in a sigmoid. It is mapped linearly
            to the data's range. Null: the values are already in the data's range, which is checked.
        prior: distribution of a program's z: ``normal``, ``uniform`` on [-1, 1]^Z or ``sphere`` of radius sqrt(Z).
        data_shape: ``*D``.
        value_range: (low, high) of the data, or None.

    Attributes:
        source_file, source_sha256: the file that was read, and its sha256.

    Raises:
        DataError: the file is missing, damaged or of another kind.
        UsageError: a program is not trusted or does not do what is required above; parameters contradict each other;
            weights do not fit the architecture.
        CheckpointError: the copy in a run is not the file that the run was trained with.
    """

    sha256: Tensor
    _place: Tensor

    def __init__(
        self,
        path: str,
        architecture: Annotated[Base | None, OfKind("base")] = None,
        prefix: str = "",
        latent_shape: list[int] | None = None,
        output_shape: list[int] | None = None,
        output_range: list[float] | None = None,
        channels_last: bool = False,
        prior: PriorName = "normal",
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        value_range: Annotated[tuple[float, float] | None, Injected] = None,
        directory: Annotated[Path, Injected] = Path(),
        run_directory: Annotated[Path | None, Injected] = None,
    ) -> None:
        super().__init__()
        check_arguments(self, prior=prior)
        for name, sizes in (("latent_shape", latent_shape), ("output_shape", output_shape)):
            if sizes is not None:
                check_sizes(name, sizes or [0])
        self.data_shape = tuple(data_shape)
        self.source_file, content = read_source(path, directory, run_directory, SOURCE)
        self.source_sha256 = hashlib.sha256(content).hexdigest()
        kind = kind_of(self.source_file, content)
        self.network: Base | None = None
        self._program: Program | None = None
        self._scale: tuple[float, float] | None = None
        if kind == "weights":
            given = [("latent_shape", latent_shape is not None), ("output_shape", output_shape is not None)]
            given += [("output_range", output_range is not None), ("prior", prior != "normal")]
            given += [("channels_last", channels_last)]
            self._take_weights(content, architecture, prefix, [name for name, is_given in given if is_given])
        else:
            if architecture is not None or prefix:
                key = "prefix" if architecture is None else "architecture"
                raise UsageError(
                    f"base.{key} belongs to a .safetensors file of weights; {self.source_file} is a program, which "
                    "brings its own network"
                )
            self._program = Program(kind, self.source_file, content, self.source_sha256)
            self._latent_shape = self._codes(latent_shape)
            self._shapes = Shapes.of(self._latent_shape, output_shape, self.data_shape, channels_last)
            self.latent_dim = math.prod(self._latent_shape)
            self._prior = PRIORS[prior](self.latent_dim)
            self._scale = _scale(output_range, value_range)
        digest = torch.frombuffer(bytearray.fromhex(self.source_sha256), dtype=torch.uint8)
        self.register_buffer("sha256", digest.clone())
        self.register_buffer("_place", torch.zeros(()), persistent=False)  # its device is the one for the program
        if self._program is not None:
            self._try(value_range if output_range is None else None)

    @property
    def prior(self) -> Prior:
        return self._prior if self.network is None else self.network.prior

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = own_labels("base", self, labels)
        if self._program is None:
            assert self.network is not None
            return decoded(self.network, z, labels)
        with torch.autocast(z.device.type, enabled=False):  # the program computes in its own precision
            x = self._program(z.to(self._program.dtype).reshape(-1, *self._latent_shape))
        x = self._shapes.arranged(x).to(z.dtype)
        return x if self._scale is None else self._scale[0] + self._scale[1] * x

    def held_weights(self) -> Iterator[Tensor]:
        """Yield the weights of a program, which are no parameters of the model."""
        return iter(()) if self._program is None else self._program.weights()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        before = self._place.device
        super()._apply(fn, recurse)
        if self._program is not None and self._place.device != before:
            self._program.to(self._place.device)
            self._try(None)
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, *rest: Any
    ) -> None:
        """Load a checkpoint, but only one that was trained with this very file."""
        refuse_another_file(state_dict, prefix, self.sha256, self.source_file, "generator", rest[-1])
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    # --- weights -----------------------------------------------------------------------------------------------------

    def _take_weights(self, content: bytes, network: Base | None, prefix: str, given: list[str]) -> None:
        """Load the weights in ``content`` into ``network``.

        Args:
            content: a safetensors file's bytes.
            network: the architecture, or None if the recipe has none.
            prefix: prefix of the generator's names.
            given: parameters in the recipe that are only for programs.
        """
        where = self.source_file
        if network is None:
            raise UsageError(
                f"{where} holds only weights: base.architecture must say which network they belong to",
                hint="For example base.architecture='{name: dcgan, latent_dim: 100}'. `gebm-kit list base` lists networks.",
            )
        if isinstance(network, Pretrained):
            raise UsageError("base.architecture must be the network of the weights; it can't be pretrained itself")
        if given:
            raise UsageError(
                f"base.{given[0]} is only for programs; for a network of this kit use the parameters of base.architecture"
            )
        try:
            tensors = safetensors.torch.load(content)
        except Exception as error:  # a type that torch does not have is a KeyError
            raise DataError(f"{where} is not a safetensors file: {reason(error)}") from error
        chosen = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        _check_names(where, network, chosen, tensors, prefix)
        network.load_state_dict(chosen)
        floats = [t if t.element_size() > 1 else t.float() for t in chosen.values() if t.is_floating_point()]
        if not all(bool(t.isfinite().all()) for t in floats):
            raise DataError(f"{where} holds weights that are not finite (NaN or infinity)")
        self.network, self.latent_dim = network, network.latent_dim
        self.conditional, self.num_classes = network.conditional, network.num_classes
        for name in CAPABILITIES:
            if hasattr(network, name):
                self.__dict__[name] = getattr(network, name)

    # --- programs ----------------------------------------------------------------------------------------------------

    def _codes(self, declared: list[int] | None) -> tuple[int, ...]:
        """Return the shape of one code, from the recipe or the file."""
        assert self._program is not None
        stated = self._program.input_shape
        if declared is None:
            if stated is None:
                raise UsageError(
                    f"{self.source_file} does not state the shape of its input: set base.latent_shape to that of one "
                    "latent code",
                    hint="[100] for codes (B, 100); [100, 1, 1] for codes (B, 100, 1, 1), as in DCGANs.",
                )
            return stated
        if stated is not None and tuple(declared) != stated:
            raise UsageError(
                f"{self.source_file} takes codes of shape {list(stated)}, but base.latent_shape is {declared}",
                hint="Leave base.latent_shape out: the file states the shape.",
            )
        return tuple(declared)

    def _try(self, value_range: tuple[float, float] | None) -> None:
        assert self._program is not None
        check_program(self._program, self._shapes, self.prior, value_range, self._place.device)


def _check_names(
    where: Path, network: Base, chosen: Mapping[str, Tensor], given: Mapping[str, Tensor], prefix: str
) -> None:
    """Raise UsageError if the weights are not the network's; one message names everything that does not fit."""
    wanted = network.state_dict()
    what = f"{where} does not fit base.architecture"
    missing, extra = [n for n in wanted if n not in chosen], [n for n in chosen if n not in wanted]
    if missing or extra:
        found = ((missing, "missing from the file"), (extra, "unknown to the architecture"))
        parts = [f"{_listed(names)} {word}" for names, word in found if names]
        some = next(iter(wanted))
        before = next((n.removesuffix(some) for n in given if n.endswith(f".{some}") and n != some), None)
        other = before is not None and before != prefix
        raise UsageError(
            f"{what}: {' and '.join(parts)}",
            hint=f"The names in the file begin with {before!r}: set base.prefix={before}" if other else "",
        )
    for name, tensor in wanted.items():
        if chosen[name].shape != tensor.shape:
            raise UsageError(
                f"{what}: {name} has shape {tuple(chosen[name].shape)} in the file and {tuple(tensor.shape)} in the network",
                hint="The architecture's parameters (latent_dim, width, ...) must be those of the training.",
            )
        if tensor.is_floating_point() and not chosen[name].is_floating_point():
            raise UsageError(
                f"{what}: {name} has type {chosen[name].dtype} in the file and {tensor.dtype} in the network",
                hint="Quantised weights must be turned into floating-point numbers first, with their scale.",
            )


def _listed(names: list[str]) -> str:
    """Return the number of tensors and the first three names, as the subject of a sentence."""
    some = f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
    return f"1 tensor {some} is" if len(names) == 1 else f"{len(names)} tensors {some} are"


def _scale(output_range: list[float] | None, value_range: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the offset and factor that map ``output_range`` to ``value_range``, or None if there is nothing to map."""
    if output_range is None:
        return None
    if len(output_range) != 2 or not output_range[0] < output_range[1]:
        raise UsageError(f"base.output_range must be [low, high] with low < high, got {output_range}")
    if value_range is None:
        raise UsageError("base.output_range needs data with a fixed range, and these data have none: leave it out")
    factor = (value_range[1] - value_range[0]) / (output_range[1] - output_range[0])
    return value_range[0] - factor * output_range[0], factor
