"""Fuzz every reader with mutated files: does any of them lead to a traceback, a hang, or much memory?

    python -m benchmarks.fuzz [--cases 20000] [--seed 0] [--readers NAME,...] [--json]

A small run and small data files are made in a temporary directory. Each case mutates one of these files and gives it to the
command that reads it. A good command ends with exit code 0 (the mutation did no harm), 2 (the file is refused) or 3 (a
plugin is missing), within five seconds, and never calls the file a bug of the kit. Mutations are structured where random
bytes would only reach the outermost check: an archive's member is mutated and packed again, a safetensors header or a PNG
chunk gets a right length or checksum.

Cases run in forked processes, so a crash of the interpreter is one failed case. The exit code of this program is 1 if any
case failed; each failed case is printed with the reader and the number that repeats it (``--readers NAME --only NUMBER``).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.fuzz.scene import Reader, make_scene, quiet, readers, without_pictures
from gebm_kit.cli.app import main

SECONDS = 5.0
"""Longest time that a case may take."""

MEMORY = 1_000_000_000
"""Largest resident memory of a process that runs cases, in bytes, torch included."""

BATCH = 25
"""Cases that one forked process runs before it is replaced."""


class Hang(BaseException):
    """A case that takes more than `SECONDS`."""


def run_case(reader: Reader, number: int, seed: int) -> str:
    """Run one case in the current directory, and return what is wrong with it; empty: nothing."""
    rng = random.Random(f"{seed} {reader.name} {number}")
    path = Path(reader.file)
    before = path.read_bytes()
    path.write_bytes(reader.mutate(before, rng))
    words = rng.choice(reader.commands)

    def late(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with quiet() as (out, err), warnings.catch_warnings():
            code: Any = main(list(words))
        said = out.getvalue() + err.getvalue()
        if code not in (0, 2, 3) or "bug in gebm-kit" in said:
            return f"exit code {code} of {' '.join(words)}: {said.strip()[-300:]}"
        return ""
    except Hang:
        return f"more than {SECONDS:g} s in {' '.join(words)}"
    except BaseException as error:
        return f"{type(error).__name__} left {' '.join(words)}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        path.write_bytes(before)
        shutil.rmtree("run/scores", ignore_errors=True)


def run_batch(scene: Path, work: list[tuple[Reader, int]], seed: int, connection: Any) -> None:
    """Run cases in a copy of the scene, and send what is wrong with each, then the most memory that was used."""
    copy = Path(tempfile.mkdtemp(prefix="case-", dir=scene.parent))
    try:
        shutil.copytree(scene, copy, dirs_exist_ok=True)
        os.chdir(copy)
        for reader, number in work:
            connection.send(run_case(reader, number, seed))
        connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def run_all(scene: Path, work: list[tuple[Reader, int]], seed: int) -> tuple[list[dict[str, Any]], int]:
    """Run all cases in forked processes; return the failed ones and the most memory that one process used."""
    failed, most = [], 0
    context = multiprocessing.get_context("fork")
    while work:
        batch, work = work[:BATCH], work[BATCH:]
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=run_batch, args=(scene, batch, seed, there))
        process.start()
        there.close()
        for done, (reader, number) in enumerate(batch):
            try:
                problem = here.recv() if here.poll(SECONDS + 10) else "a hang that no signal ends"
            except EOFError:
                process.join()
                problem = f"the process ended with code {process.exitcode}"
            if problem:
                failed.append({"reader": reader.name, "number": number, "problem": problem})
            if "process ended" in problem or "no signal" in problem:
                process.kill()
                work = batch[done + 1 :] + work
                break
        else:
            with contextlib.suppress(EOFError):
                memory = here.recv()
                most = max(most, memory)
                if memory > MEMORY:
                    failed.append(
                        {"reader": batch[0][0].name, "number": batch[0][1], "problem": f"{memory / 1e9:.2f} GB"}
                    )
        process.join()
        here.close()
    return failed, most


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", default="", help="names of readers, between commas; default: all")
    parser.add_argument("--only", type=int, help="the one case to repeat")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(argv)


def fuzz(arguments: argparse.Namespace) -> int:
    """Run the cases, print what failed, and return the exit code."""
    torch.set_num_threads(1)
    without_pictures()
    wanted = [name for name in arguments.readers.split(",") if name]
    chosen = [reader for reader in readers() if not wanted or reader.name in wanted]
    numbers = [arguments.only] if arguments.only is not None else range(-(-arguments.cases // len(chosen)))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        scene = Path(place) / "scene"
        scene.mkdir()
        os.chdir(scene)
        make_scene(scene)
        work = [(reader, number) for reader in chosen for number in numbers]
        failed, most = run_all(scene, work, arguments.seed)
        os.chdir("/")
    seconds = time.perf_counter() - start
    if arguments.json:
        print(json.dumps({"cases": len(work), "failed": failed, "memory": most, "seconds": round(seconds, 1)}))
    else:
        for case in failed:
            print(f"{case['reader']} {case['number']}: {case['problem']}")
        count = collections.Counter(case["reader"] for case in failed)
        print(
            f"{len(work)} cases over {len(chosen)} readers in {seconds:.0f} s: "
            f"{len(failed)} failed; at most {most / 1e6:.0f} MB"
        )
        for name, times in count.most_common():
            print(f"  {name}: {times}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(fuzz(parsed()))
