"""The sets of the study, and what its models change in the recipe ``fashion_mnist``: the data, the length, and no more.

The recipe's own values were chosen on Fashion-MNIST, with seed 7. Nothing was chosen on another set.
"""

from __future__ import annotations

RECIPE = "fashion_mnist"

SETS = {
    "fashion-mnist": "data={{name: idx, path: {fashion}}}",
    "mnist5k": "data={{name: idx, path: {sets}/mnist5k}}",
    "digits": "data={{name: digits}}",
    "emoji": "data={{name: image-folder, path: {sets}/emoji, size: 32}}",
    "icons": "data={{name: image-folder, path: {sets}/icons, size: 32}}",
}
"""The data of each set; ``{fashion}`` and ``{sets}`` are the folders that the command line names."""

GAN = ("train.final.steps=0", "train.final.loss=null", "train.final.energy=null")
"""The same two networks as a plain GAN: the recipe's own main phase, with the energy's time as well."""

METRICS = {
    "fid": "eval.metrics=[{name: frechet}, {name: fid, features: pixels}]",
    "sliced-wasserstein": "eval.metrics=[{name: frechet}, {name: sliced-wasserstein}]",
}
"""On features of the kit's classifier, extrapolated to infinitely many draws; and by the second one on pixels. The FID of
3,072 pixels would take longer than everything else in the evaluation."""

ON_PIXELS = {"emoji": "sliced-wasserstein", "icons": "sliced-wasserstein"}
"""The second metric of a set; the others have ``fid``."""

BRIEF = (
    "sampler=imh",
    "sample={num_chains: 50, warmup: 0, steps: 1, thin: 1}",
    "eval.log_partition=importance-sampling",
)
"""The GAN is scored by its base's draws alone, so its critic is hardly sampled."""
