"""What a plugin could change for the whole process while it is imported, kept before and set back after.

Nothing here imports torch, numpy or random; their state is kept where they are imported already.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gebm_kit.core.progress import GebmKitWarning

KIT = "gebm_kit"
KIT_FOLDER = str(Path(__file__).parents[1])


@dataclass(frozen=True)
class ProcessState:
    """State of the process before a plugin is imported; `restore` sets it back."""

    modules: dict[str, Any]
    path: list[str]
    environ: dict[str, str]
    folder: str | None
    filters: list[Any]
    showwarning: Any
    recursion: int
    collects: bool
    builtin: dict[str, Any]
    signals: dict[int, Any]
    hooks: dict[str, Any]
    random: Any
    numpy: Any
    torch: dict[str, Any]

    @classmethod
    def now(cls) -> ProcessState:
        """Return the state as it is."""
        return cls(
            modules=dict(sys.modules),
            path=list(sys.path),
            environ=dict(os.environ),
            folder=_folder(),
            filters=list(warnings.filters),
            showwarning=warnings.showwarning,
            recursion=sys.getrecursionlimit(),
            collects=gc.isenabled(),
            builtin=dict(vars(builtins)),
            signals=_signals(),
            hooks={name: getattr(sys, name) for name in ("excepthook", "displayhook")},
            random=sys.modules["random"].getstate() if "random" in sys.modules else None,
            numpy=sys.modules["numpy"].random.get_state() if _whole("numpy.random") else None,
            torch=_torch_state(),
        )

    def restore(self, module: str, *, failed: bool) -> list[str]:
        """Set everything back that was changed, and name it.

        Args:
            module: the module that was imported.
            failed: whether it failed. Then modules of its package are forgotten, and what it added to the module search
                path and the environment is removed. What a plugin that works added to these two stays.
        """
        changes = [*self._restore_modules(module, failed), *self._restore_interpreter(failed)]
        return [*changes, *self._restore_warnings(), *self._restore_signals(), *self._restore_numbers()]

    def _restore_modules(self, module: str, failed: bool) -> Iterator[str]:
        top = module.partition(".")[0]
        for name in set(sys.modules) - set(self.modules):
            own = name == top or name.startswith(top + ".")
            if (failed and own) or (name.startswith(f"{KIT}.") and not _of_the_kit(sys.modules[name])):
                del sys.modules[name]
                if not own:
                    yield f"added a module {name!r}"
        replaced = [name for name, found in self.modules.items() if sys.modules.get(name) is not found]
        for name in replaced:
            sys.modules[name] = self.modules[name]
        if replaced:
            yield f"replaced {_listed(replaced)} in sys.modules"
        if failed:
            sys.path[:] = self.path

    def _restore_interpreter(self, failed: bool) -> Iterator[str]:
        if failed and dict(os.environ) != self.environ:
            for name in set(os.environ) - set(self.environ):
                del os.environ[name]
            os.environ.update(self.environ)
        if self.folder is not None and _folder() != self.folder:
            with contextlib.suppress(OSError):
                os.chdir(self.folder)
            yield "changed the working directory"
        if sys.getrecursionlimit() != self.recursion:
            sys.setrecursionlimit(self.recursion)
            yield "changed the recursion limit"
        if gc.isenabled() != self.collects:
            (gc.enable if self.collects else gc.disable)()
            yield "switched the garbage collector"
        changed = [
            name for name, value in self.builtin.items() if vars(builtins).get(name) is not value and name != "_"
        ]
        for name in changed:
            setattr(builtins, name, self.builtin[name])
        if changed:
            yield f"replaced {_listed(changed)} in builtins"
        changed = [name for name, value in self.hooks.items() if getattr(sys, name) is not value]
        for name in changed:
            setattr(sys, name, self.hooks[name])
        if changed:
            yield f"replaced sys.{' and sys.'.join(changed)}"

    def _restore_warnings(self) -> Iterator[str]:
        if warnings.showwarning is not self.showwarning:
            warnings.showwarning = self.showwarning
            yield "replaced warnings.showwarning"
        found: list[Any] = list(warnings.filters)
        added = [each for each in found if each not in self.filters]
        wide = [each for each in added if each[0] == "error" or _is_wide(each)]
        if wide or any(each not in found for each in self.filters):
            mutable: Any = warnings.filters
            mutable[:] = [*(each for each in added if each not in wide), *self.filters]
            with contextlib.suppress(AttributeError):
                warnings._filters_mutated()  # type: ignore[attr-defined]
            yield "changed the filters of all warnings"

    def _restore_signals(self) -> Iterator[str]:
        changed = [number for number, handler in _signals().items() if self.signals.get(number) is not handler]
        for number in changed:
            if self.signals.get(number) is not None:
                signal.signal(number, self.signals[number])
        if changed:
            yield f"replaced the handler of {_listed([signal.Signals(number).name for number in changed])}"

    def _restore_numbers(self) -> Iterator[str]:
        if self.random is not None and sys.modules["random"].getstate() != self.random:
            sys.modules["random"].setstate(self.random)
            yield "drew from or seeded Python's random numbers"
        if self.numpy is not None and not _same(sys.modules["numpy"].random.get_state(), self.numpy):
            sys.modules["numpy"].random.set_state(self.numpy)
            yield "drew from or seeded numpy's random numbers"
        if not _whole("torch"):
            return
        torch: Any = sys.modules["torch"]
        # torch that the plugin imported itself starts from torch's defaults
        before = self.torch or {"dtype": torch.float32, "gradients": True, "threads": None, "random": None}
        before.setdefault("device", torch.device("cpu"))
        if torch.get_default_dtype() != before["dtype"]:
            yield f"set torch's default type to {torch.get_default_dtype()}"
            torch.set_default_dtype(before["dtype"])
        if torch.is_grad_enabled() != before["gradients"]:
            torch.set_grad_enabled(before["gradients"])
            yield "switched torch's gradients"
        if before["threads"] is not None and torch.get_num_threads() != before["threads"]:
            torch.set_num_threads(before["threads"])
            yield "changed torch's number of threads"
        device = torch.get_default_device()
        if device != before["device"]:
            yield f"set torch's default device to {device}"
            torch.set_default_device(None if before["device"].type == "cpu" else before["device"])
        if before["random"] is not None and not torch.equal(torch.random.get_rng_state(), before["random"]):
            torch.random.set_rng_state(before["random"])
            yield "drew from or seeded torch's random numbers"


def _torch_state() -> dict[str, Any]:
    if not _whole("torch"):
        return {}
    torch: Any = sys.modules["torch"]
    state = {"dtype": torch.get_default_dtype(), "gradients": torch.is_grad_enabled()}
    state |= {"threads": torch.get_num_threads(), "device": torch.get_default_device()}
    return state | {"random": torch.random.get_rng_state()}


def _whole(name: str) -> bool:
    """Return whether a module is imported, and not just being imported."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


def _of_the_kit(module: Any) -> bool:
    return str(getattr(module, "__file__", None) or KIT_FOLDER).startswith(KIT_FOLDER) and hasattr(module, "__spec__")


def _same(one: Any, other: Any) -> bool:
    """Return whether two states of numpy's legacy generator are equal."""
    return bool(one[0] == other[0] and (one[1] == other[1]).all() and one[2:] == other[2:])


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _signals() -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = (number for number in signal.valid_signals() if number not in _FIXED)
    return {int(number): signal.getsignal(number) for number in numbers}


_FIXED = {getattr(signal, name) for name in ("SIGKILL", "SIGSTOP") if hasattr(signal, name)}


def _is_wide(each: Any) -> bool:
    """Return whether a filter of warnings covers the kit's own, from any module and with any text."""
    _, message, category, module, _ = each
    return message is None and module is None and issubclass(GebmKitWarning, category)


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
