"""Generators and scorers that come as code, TorchScript archives and torch.export programs; loaded only when trusted.

Loading such a file runs code. A TorchScript archive is a program in its own language, with constants pickled for a
restricted reader. Its author decides what it computes and whether it ends. A torch.export archive is a graph of
operators, but torch reads parts of it with Python's pickle and evaluates the expressions in its shapes. Both are
therefore loaded only with permission (`gebm_kit.core.trust`). `gebm_kit.core.program_files` tells the two kinds apart.
The weights are never changed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.program_files import GENERATOR, Kind, Role
from gebm_kit.core.trust import programs_trusted

KIND_NAMES = {"torchscript": "a TorchScript program", "export": "a torch.export program"}
"""What a message calls each kind of program."""

BATCH_HINT = (
    "Export it with a free batch dimension: torch.export.export(module.eval(), ({point},), "
    "dynamic_shapes=({{0: torch.export.Dim('batch')}},))."
)
"""Hint for programs that take batches of only one size."""


class Program:
    """A program from one tensor to one tensor, with fixed weights, in the floating-point type in which it was exported.

    Args:
        kind: kind of program in ``content``.
        path: the file's path, for messages.
        content: the file's bytes.
        digest: sha256 of the bytes.
        role: what the program is, for messages.

    Attributes:
        input_shape: sizes of its input without the batch, if the file states them; else None.
        dtype: floating-point type of its weights.

    Raises:
        UsageError: programs are not trusted; the program takes more than one input, or batches of only one size.
        DataError: the program can't be loaded.
    """

    def __init__(self, kind: Kind, path: Path, content: bytes, digest: str, role: Role = GENERATOR) -> None:
        self.path, self.what, self.role = path, KIND_NAMES[kind], role
        if not programs_trusted():
            raise UsageError(
                f"{path} is {self.what}: loading it runs code that its author wrote, with your rights on this machine, so "
                f"it is loaded only if you say that you trust it (its sha256 is {digest})",
                hint="If you know where it comes from, add --trust-program (in Python: `with gebm_kit.trust_programs():`). "
                + ("Weights in a .safetensors file with base.architecture need no trust." if role is GENERATOR else ""),
            )
        self.input_shape: tuple[int, ...] | None = None
        self._exported: Any = None
        try:
            with quiet():
                if kind == "torchscript":
                    self._module: Any = torch.jit.load(io.BytesIO(content), map_location="cpu")
                else:
                    self._exported = torch.export.load(io.BytesIO(content))
                    self._module = self._exported.module()
        except Exception as error:  # the type depends on the versions of torch that read and wrote the file
            raise DataError(
                f"{path} can't be loaded as {self.what}: {reason(error)}",
                hint=f"It may be damaged, or written by another version of torch than {torch.__version__}.",
            ) from error
        self._check_inputs()
        tensors = [*self._module.parameters(), *self._module.buffers()]
        for tensor in tensors:
            tensor.requires_grad_(False)
        self.dtype: torch.dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
        if kind == "torchscript":
            self._module.eval()

    def __call__(self, rows: Tensor) -> Any:
        return self._module(rows)

    def weights(self) -> Iterator[Tensor]:
        """Yield parameters and buffers."""
        yield from self._module.parameters()
        yield from self._module.buffers()

    def to(self, device: torch.device) -> None:
        """Move the program. Devices named in its code change only where torch can rewrite the code (torch.export)."""
        if self._exported is None:
            self._module.to(device)
            return
        from torch.export.passes import move_to_device_pass

        self._exported = move_to_device_pass(self._exported, str(device))
        self._module = self._exported.module()
        for parameter in self._module.parameters():
            parameter.requires_grad_(False)

    def _check_inputs(self) -> None:
        if self._exported is not None:
            signature = self._exported.graph_signature
            shapes = [
                tuple(node.meta["val"].shape)
                for node in self._exported.graph.nodes
                if node.op == "placeholder" and node.name in signature.user_inputs
            ]
            count = len(signature.user_inputs)
        else:
            schema = getattr(getattr(self._module, "forward", None), "schema", None)
            if schema is None:
                raise UsageError(f"{self.path} is {self.what} without a forward method")
            inputs = schema.arguments[1:]
            count = max(sum(not argument.has_default_value() for argument in inputs), min(len(inputs), 1))
            shapes = []
        if count != 1:
            raise UsageError(
                f"{self.path} is {self.what} of {count} inputs; {self.role.owner} takes one, {self.role.code}",
                hint=self.role.alone,
            )
        if not shapes:
            return
        batch, *rest = shapes[0]
        if isinstance(batch, int):
            raise UsageError(
                f"{self.path} takes only batches of {batch} {self.role.codes}, but {self.role.owner} gets batches of any "
                "size",
                hint=BATCH_HINT.format(point=self.role.point),
            )
        if all(isinstance(size, int) for size in rest):
            self.input_shape = tuple(rest)


def reason(error: Exception) -> str:
    """Return the one line of a torch error that says what happened: the last for errors inside a program, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if lines[0].startswith("The following operation failed") else lines[0][:300]


@contextlib.contextmanager
def quiet(level: int = logging.CRITICAL) -> Iterator[None]:
    """Silence warnings, and logs up to ``level``, within the block; whatever matters is raised as an error."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def refuse_another_file(
    state: Mapping[str, Any], prefix: str, own: Tensor, file: str | Path, role: str, errors: list[str]
) -> None:
    """Add to ``errors`` of a state dict that is loaded if it was trained with another file.

    Args:
        own: the sha256 of the file, 32 bytes; the state has that of its own file as ``sha256``.
        file: the file, for the message.
        role: what the file is, for the message.
    """
    found = state.get(f"{prefix}sha256")
    if not isinstance(found, Tensor) or found.cpu().tolist() == own.cpu().tolist():
        return
    now, then = (bytes(sha256.cpu().tolist()).hex() for sha256 in (own, found))
    errors.append(
        f"{file} is not the {role} that it was trained with: the file's sha256 is {now}, that in the checkpoint is {then}"
    )
