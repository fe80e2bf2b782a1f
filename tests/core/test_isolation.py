"""Plugins whose import misbehaves: no command stops, its JSON stays whole, and the process stays as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gebm_kit.core import isolation
from gebm_kit.core.errors import PluginError
from gebm_kit.core.isolation import first_words, isolated

HOOK = """
import gebm_kit
@gebm_kit.hookimpl
def gebm_components():
"""

FAILING = {
    "base-exception": ("class X(BaseException): pass\nraise X('y')", "X: y"),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "os-exit": ("import os; os._exit(0)", "os._exit(0)"),
    "reads-stdin": ("input('your name? ')", "EOFError"),
    "text-that-raises": ("class X(Exception):\n    def __str__(self): raise SystemExit\nraise X", "its text can't be had"),
    "long-text": ("raise ValueError('x' * 10**6)", "ValueError: xxx"),
    "escapes": ("raise ValueError('\\x1b[2Jgone\\x07')", "\\x1b[2Jgone\\x07"),
    "endless-hook": (
        HOOK + "    while True: yield gebm_kit.Component('metric', 'm', 'a:b', 's')",
        "returned more than 1000 components",
    ),
    "hook-exits": (HOOK + "    raise SystemExit(2)", "SystemExit: 2"),
    "not-components": (HOOK + "    return [7]", "returned 7 where a Component"),
    "repr-raises": (
        "class X:\n    def __repr__(self): raise KeyboardInterrupt\n" + HOOK + "    return [X()]", "KeyboardInterrupt"
    ),
    "subclass": (
        "import gebm_kit\nclass C(gebm_kit.Component):\n    def __post_init__(self): pass\n"
        + HOOK + "    return [C('banana', 'm', 'a:b', 's')]", "kind 'banana' is unknown",
    ),
    "huge-summary": (HOOK + "    return [gebm_kit.Component('metric', 'm', 'a:b', 's' * 10**7)]", "at most 1000"),
    "surrogate": (HOOK + "    return [gebm_kit.Component('metric', 'm', 'a:b', 'x\\udcff')]", "control characters"),
    "escape-summary": (HOOK + "    return [gebm_kit.Component('metric', 'm', 'a:b', 'x\\x1b[2J')]", "control characters"),
    "api-version": ("api_version = 'x' * 10**6" + HOOK + "    return []", "plugin API 'xxx"),
}  # fmt: skip
"""Modules that fail, and what the report says."""

MEDDLING = {
    "closes": ("import sys; sys.stdout.close(); sys.__stdout__.close()", ""),
    "closes-stderr": ("import sys; sys.stderr.close(); sys.__stderr__.close(); sys.__stdout__.close()", ""),
    "closes-descriptors": ("import os\nfor n in (0, 1, 2): os.close(n)", ""),
    "os-write": ("import os; os.write(1, b'noise'); os.write(2, b'noise')", ""),
    "child-prints": ("import os; os.system('echo noise')", ""),
    "prints": ("import sys; print('noise'); sys.__stdout__.write('noise'); sys.stdout.buffer.write(b'noise')", ""),
    "prints-at-exit": ("import atexit; atexit.register(print, 'bye')", ""),
    "prints-from-a-thread": ("import threading; threading.Timer(1.0, print, ['late']).start()", ""),
    "replaces-stdout": ("import io, sys; sys.stdout = sys.stderr = io.StringIO()", ""),
    "modules": ("import sys; sys.modules['json'] = None; del sys.modules['gebm_kit.cli.list']", "in sys.modules"),
    "fakes-ours": ("import sys; sys.modules['gebm_kit.samplers.hmc'] = object()", "gebm_kit.samplers.hmc"),
    "builtins": ("import builtins; builtins.print = builtins.open = None", "in builtins"),
    "warnings": ("import warnings; warnings.simplefilter('error')", "filters of all warnings"),
    "silences": ("import warnings; warnings.resetwarnings(); warnings.simplefilter('ignore')", "filters"),
    "signals": (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN)",
        "SIGINT",
    ),
    "folder": ("import os; os.chdir('/')", "the working directory"),
    "recursion": ("import sys; sys.setrecursionlimit(60)", "recursion limit"),
    "hooks": ("import sys; sys.excepthook = sys.displayhook = None", "sys.excepthook"),
}
"""Modules of plugins that load but meddle with the process, and what the warning says; "": nothing to say."""


def distribution(
    folder: Path, name: str, module: str, metadata: bytes | None = None, points: bytes | None = None
) -> Path:
    """Write an installed distribution by hand; return the folder that belongs on the module search path."""
    information = folder / name / f"{name.replace('-', '_')}-1.0.dist-info"
    information.mkdir(parents=True)
    word = "plug_" + name.replace("-", "_")
    (folder / name / f"{word}.py").write_text(module)
    (information / "METADATA").write_bytes(metadata or f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode())
    (information / "entry_points.txt").write_bytes(points or f"[gebm_kit]\nmain = {word}\n".encode())
    return folder / name


def listed(*folders: Path, words: tuple[str, ...] = ("list", "--json")) -> tuple[dict[str, object], str]:
    """Return the JSON of a command with these distributions installed, and what it wrote on stderr."""
    path = [*map(str, folders), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environ = {name: value for name, value in os.environ.items() if not name.endswith("_PLUGINS")}
    environ |= {"PYTHONPATH": os.pathsep.join(filter(None, path)), "COLUMNS": "200"}
    command = [sys.executable, "-m", "gebm_kit", *words]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("{"), done.stdout[:100]
    return json.loads(done.stdout), done.stderr


def plugins(*folders: Path) -> tuple[dict[str, dict[str, str]], str]:
    found, said = listed(*folders, words=("plugins", "list", "--json"))
    return {p["distribution"]: p for p in found["plugins"]}, said  # type: ignore[attr-defined]


def test_plugins_that_fail_in_every_way_stop_nothing(tmp_path):
    folders = [distribution(tmp_path, name, module) for name, (module, _) in FAILING.items()]
    found, said = plugins(*folders)
    for name, (_, words) in FAILING.items():
        assert (found[name]["state"], words in found[name]["error"]) == ("failed", True), found[name]["error"]
        assert len(found[name]["error"]) < 400
        assert f"warning: plugin {name} failed to load" in said
    assert "\x1b" not in said
    assert "hmc" in json.dumps(listed(*folders)[0])


@pytest.mark.parametrize("name", MEDDLING)
def test_plugins_that_meddle_with_the_process_change_nothing(tmp_path, name):
    module, words = MEDDLING[name]
    folder = distribution(tmp_path, name, module + HOOK + "    return []")
    found, said = plugins(folder)
    assert found[name]["state"] == "ok"
    if words:
        (note,) = found[name]["notes"][:1]
        assert words in note
        assert f"warning: plugin {name} {note}" in said
    else:
        assert found[name]["notes"] == []


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_the_caller_closed_is_not_an_error(closed):
    command = f'"{sys.executable}" -m gebm_kit list {closed}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("hmc" in done.stdout) == (">&-" not in closed.replace("2>&-", ""))


def test_damaged_distributions_are_named_and_hide_no_other(tmp_path):
    broken = [
        distribution(tmp_path, "bytes", "", b"\xff\xfe\0", b"[gebm_kit]\nfoo = \xff\xff:::bad bad\n= x\n"),
        distribution(tmp_path, "metadata", "raise ValueError", b"\xff\xfe\0"),
        distribution(tmp_path, "no-module", "", points=b"[gebm_kit]\nfoo bar = not a module!\n"),
        distribution(tmp_path, "large", "", points=b"[gebm_kit]\n" + b"# filler\n" * 200_000),
    ]
    pipe = distribution(tmp_path, "pipe", "")
    (points,) = pipe.glob("*.dist-info/entry_points.txt")
    points.unlink()
    os.mkfifo(points)
    whole = distribution(tmp_path, "whole", HOOK + "    return []")
    again = distribution(tmp_path / "second", "whole", "raise ValueError")
    found, said = plugins(*broken, pipe, whole, again)
    assert found["whole"]["state"] == "ok"
    reasons = {"bytes": "UnicodeDecodeError", "metadata": "ValueError", "no-module": "neither 'module' nor"}
    reasons |= {"large": "at most", "pipe": "a named pipe"}
    for name, words in reasons.items():
        assert found[name]["state"] == "failed"
        assert words in found[name]["error"]
        assert f"warning: plugin {name} failed to load" in said


def test_an_import_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(isolation, "TICK_SECONDS", 0.01)
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(PluginError, match="did not end"), isolated("nothing", patience=3):  # noqa: PT012
        while True:
            pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_an_import_that_goes_from_module_to_module_has_all_the_time_it_needs(monkeypatch):
    monkeypatch.setattr(isolation, "TICK_SECONDS", 0.01)
    looks = 0
    kept = dict(sys.modules)
    with isolated("made_up_for_this", patience=2):
        handler = signal.getsignal(signal.SIGALRM)
        assert callable(handler)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for looks in range(20):
            sys.modules[f"made_up_for_this.{looks}"] = sys
            handler(signal.SIGALRM, None)
    assert looks == 19
    for name in set(sys.modules) - set(kept):
        del sys.modules[name]


@pytest.mark.parametrize("swallowed", [False, True])
def test_an_interrupt_from_outside_is_not_taken_for_the_plugins(swallowed):
    with pytest.raises(KeyboardInterrupt), isolated("nothing"):  # noqa: PT012
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            if not swallowed:
                raise


def test_torch_and_the_random_numbers_stay_as_they_were():
    import random

    import numpy as np
    import torch

    legacy = np.random  # the generator that plugins seed for the whole process
    states = random.getstate(), torch.random.get_rng_state(), legacy.get_state()[1].copy()
    with isolated("nothing") as changes:
        random.seed(0)
        legacy.seed(0)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
        torch.set_num_threads(torch.get_num_threads() + 1)
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float32, True)
    assert torch.get_default_device() == torch.device("cpu")
    assert random.getstate() == states[0]
    assert torch.equal(torch.random.get_rng_state(), states[1])
    assert (legacy.get_state()[1] == states[2]).all()
    for words in ("default type", "default device", "gradients", "threads", "Python's", "numpy's", "torch's random"):
        assert any(words in change for change in changes), (words, changes)


def test_a_failure_leaves_no_trace(tmp_path, monkeypatch):
    (tmp_path / "leaves_traces.py").write_text(
        "import sys; sys.path.insert(0, 'x')\nimport os; os.environ['LEFT'] = '1'\n1/0"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = list(sys.path)
    with pytest.raises(ZeroDivisionError), isolated("leaves_traces"):
        __import__("leaves_traces")
    assert (sys.path, "LEFT" in os.environ, "leaves_traces" in sys.modules) == (path, False, False)


def test_text_of_anything_is_short_printable_and_on_one_line():
    assert first_words("a\n b\t\x1b[2J") == "a b \\x1b[2J"
    assert len(first_words("x" * 10**6)) == 300
    assert first_words("é – ü") == "é – ü"
