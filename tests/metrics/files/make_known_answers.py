"""Program that made known_answers.npz and known_answers.json, once, with published reference code.

FID, KID and Inception Score are computed by torch-fidelity 0.4.0, precision, recall, density and coverage by prdc 0.2. To
make the files again, use a separate environment with both packages (the kit's has neither):

    pip install torch-fidelity==0.4.0 prdc==0.2 && python make_known_answers.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prdc import compute_prdc
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

HERE = Path(__file__).parent
KID = {"gaussians": (20, 100), "activations": (10, 30), "collapsed": (15, 150), "many": (100, 1000)}
"""Number of subsets, and rows in each."""
NEIGHBOURS = {"gaussians": (3, 5), "activations": (3, 5), "collapsed": (1, 5), "many": (5, 10)}
SPLITS = {"many": (10, 1), "uneven": (10, 3)}


def features() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return draws and reference of four cases, in float32 like the output of a feature extractor."""
    rng = np.random.default_rng(20261123)
    normal = rng.standard_normal
    mix = normal((12, 12))
    pairs = {
        "gaussians": (normal((300, 12)) @ mix * 0.3 + 0.2, normal((250, 12)) @ mix.T * 0.3),
        # nonnegative, skewed, and fewer rows than features, so that both covariances are singular
        "activations": (np.maximum(normal((50, 64)) - 0.5, 0) ** 2, np.maximum(normal((40, 64)) - 0.3, 0) ** 2),
        # draws of one of three modes, some of them far away
        "collapsed": (
            np.concatenate([normal((190, 6)) * 0.2 + 2.0, normal((10, 6)) + 5.0]),
            np.concatenate([normal((60, 6)) * 0.3 + centre for centre in (-2.0, 0.0, 2.0)]),
        ),
        "many": (normal((1200, 8)) * 1.1, normal((1100, 8))),
    }
    return {name: (x.astype(np.float32), y.astype(np.float32)) for name, (x, y) in pairs.items()}


def logits() -> dict[str, np.ndarray]:
    """Return logits of ten classes; the rows of ``uneven`` can't be split into ten equal parts."""
    rng = np.random.default_rng(7)
    cases = {"many": 3.0 * rng.standard_normal((500, 10)), "uneven": 1.5 * rng.standard_normal((103, 10))}
    return {name: rows.astype(np.float32) for name, rows in cases.items()}


def answers(arrays: dict[str, tuple[np.ndarray, np.ndarray]], scores: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return every value by case."""
    found: dict[str, Any] = {"fid": {}, "kid": {}, "prdc": {}, "inception-score": {}}
    for name, (x, y) in arrays.items():
        draws, reference = torch.from_numpy(x), torch.from_numpy(y)
        statistics = [fid_features_to_statistics(rows.double()) for rows in (draws, reference)]
        found["fid"][name] = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
        subsets, size = KID[name]
        # in float64: torch-fidelity's own float32 loses the last digits in sums of a million kernel values
        kid = kid_features_to_metric(
            draws.double(),
            reference.double(),
            kid_subsets=subsets,
            kid_subset_size=size,
            rng_seed=2020,
            verbose=False,
        )
        found["kid"][name] = {"subsets": subsets, "subset_size": size, "value": kid["kernel_inception_distance_mean"]}
        found["prdc"][name] = [
            {"nearest": k} | {key: float(value) for key, value in compute_prdc(y, x, nearest_k=k).items()}
            for k in NEIGHBOURS[name]
        ]
    for name, rows in scores.items():
        found["inception-score"][name] = [
            {
                "splits": splits,
                "value": isc_features_to_metric(torch.from_numpy(rows), splits, True, 2020)["inception_score_mean"],
            }
            for splits in SPLITS[name]
        ]
    return found


if __name__ == "__main__":
    arrays, scores = features(), logits()
    stored = {f"{name}_{part}": rows for name, pair in arrays.items() for part, rows in zip("xy", pair, strict=True)}
    np.savez_compressed(HERE / "known_answers.npz", **stored, **{f"logits_{k}": rows for k, rows in scores.items()})
    (HERE / "known_answers.json").write_text(json.dumps(answers(arrays, scores), indent=2) + "\n")
