"""Settings that all runs share, so that only the methods differ. Chosen on seed 7, which the study does not use."""

from __future__ import annotations

FLOWS = {
    "realnvp": "base={name: realnvp, transforms: 6, hidden: [64, 64], activation: tanh}",
    "nsf": "base={name: nsf, transforms: 3, hidden: [64, 64], bins: 8}",
    "maf": "base={name: maf, transforms: 5, hidden: [64, 64], activation: tanh, fast: density}",
}

METHODS = ("energy", "joint", "weighted", "pathwise", "both")
"""Ways to train a flow with an energy.

- ``energy``: maximum likelihood, then an energy on top of the frozen flow. Its base is the flow by ML alone.
- ``joint``: both parts from fresh weights by KALE's gradient with latent chains (``pcd``). The energy is on codes, and the
  base learns by MCMC teaching.
- ``weighted``: both parts from fresh weights, the energy on the data by SMILE's estimate of KALE, the base by weighted
  likelihood.
- ``pathwise``: both parts from fresh weights by KALE, the base by the gradient through its draws.
- ``both``: as ``pathwise``, starting from the flow by ML.
"""

LOOK_EVERY = {"pretrain": 50, "energy": 200, "joint": 100, "weighted": 100, "pathwise": 50, "both": 50}
"""Cycles between evaluations on the validation part, which choose the weights."""

ML_STEPS = 3000
"""Steps of maximum likelihood; its weights are chosen among the evaluations during them."""

COMMON = (
    "train.batch_size=256",
    "train.start_steps=0",
    "ema.decay=0.99",
    "energy={name: mlp, hidden: [128, 128, 128], activation: silu}",
    "train.penalty={name: r1, weight: 0.03, every: 4}",
    "train.pretrain.optimizer={name: adamw, lr: 1.0e-3, beta1: 0.9, weight_decay: 1.0e-2, schedule: cosine}",
    f"train.pretrain.steps={ML_STEPS}",
    f"train.pretrain.eval_every={LOOK_EVERY['pretrain']}",
)

OF_THE_METHOD = {
    "energy": (
        "train.part=base-then-energy",
        "train.energy_steps=1",
        "train.steps=2500",
        "train.final.steps=0",
        "optim.energy={lr: 1.0e-3, beta1: 0.5, beta2: 0.99, schedule: linear}",
    ),
    "joint": (
        "energy={name: codes, hidden: [128, 128, 128]}",
        "loss={name: pcd, steps: 2, step_size: 0.05, buffer_size: 512, restart: 0}",
        "train.part=both",
        "train.base_update=mcmc-teaching",
        "train.energy_steps=3",
        "train.steps=2000",
        "train.final.steps=0",
        "train.batch_size=512",
        "train.clip_grad_norm=5",
        "ema.decay=0.97",
        "optim.energy={lr: 2.0e-3, beta1: 0.5, beta2: 0.99, schedule: cosine}",
        "optim.base={name: adamw, lr: 1.0e-3, beta1: 0.9, weight_decay: 1.0e-2, schedule: cosine}",
    ),
    "weighted": (
        "train.part=both",
        "train.base_update=weighted-likelihood",
        "loss=smile",
        "train.energy_steps=2",
        "train.steps=3000",
        "train.final.steps=0",
        "train.batch_size=512",
        "train.clip_grad_norm=5",
        "optim.energy={lr: 2.0e-3, beta1: 0.5, beta2: 0.99, schedule: cosine}",
        "optim.base={name: adamw, lr: 1.0e-3, beta1: 0.9, weight_decay: 1.0e-2, schedule: cosine}",
    ),
    "pathwise": (
        "train.part=both",
        "train.energy_steps=5",
        "train.steps=800",
        "train.final.steps=0",
        "train.batch_size=512",
        "optim.energy={lr: 2.0e-3, beta1: 0.5, beta2: 0.99, schedule: linear}",
    ),
    "both": (
        "train.part=base-then-both",
        "train.energy_steps=5",
        "train.steps=500",
        "train.final.steps=0",
        "optim.energy={lr: 1.0e-3, beta1: 0.5, beta2: 0.99, schedule: linear}",
        "optim.base={lr: 1.0e-5, beta1: 0.5, beta2: 0.99, schedule: linear}",
    ),
}

SPLINES_TOGETHER = (
    "energy={name: codes, hidden: [128, 128, 128], bound: 8}",
    "loss={name: pcd, steps: 4, step_size: 0.05, buffer_size: 256, restart: 0.5, restart_at: data}",
    "train.energy_steps=2",
    "train.steps=3000",
    "train.batch_size=256",
    "train.final.batch_size=256",
    "optim.energy={lr: 4.0e-3, beta1: 0.5, beta2: 0.99, schedule: cosine}",
    "optim.base={name: adamw, lr: 3.0e-3, beta1: 0.9, weight_decay: 1.0e-2, schedule: cosine}",
)
"""Overrides of ``joint`` with ``nsf`` on top of ``joint`` with ``realnvp``. Found after seed 0 had been run without them."""

SMOOTH = (
    "train.penalty={name: r1, weight: 0.3, every: 4}",
    "optim.base={lr: 1.0e-4, beta1: 0.5, beta2: 0.99, schedule: linear}",
)
SHARP = (
    "train.penalty={name: r1, weight: 0.03, every: 4}",
    "optim.base={lr: 2.0e-4, beta1: 0.5, beta2: 0.99, schedule: linear}",
)
FLATTER = ("train.penalty={name: r1, weight: 0.1, every: 4}",)
SHARPER = ("train.penalty={name: r1, weight: 0.02, every: 4}",)


def on_codes(weight: float) -> tuple[str]:
    """Return the penalty of ``joint``, on the slope of the energy in codes."""
    return (f"train.penalty={{name: r1, weight: {weight}, every: 4}}",)


SPLINES_OF_THE_DATA = {
    "redwine": (*on_codes(1.0), "train.noise=0.3"),
    "phoneme": (
        *on_codes(0.03),
        "loss={name: pcd, steps: 2, step_size: 0.05, buffer_size: 256, restart: 0.5, restart_at: data}",
        "train.energy_steps=3",
        "train.steps=3500",
        "optim.energy={lr: 3.0e-3, beta1: 0.5, beta2: 0.99, schedule: cosine}",
    ),
    "magic": on_codes(0.1),
    "penbased": (*on_codes(0.03), "optim.energy={lr: 6.0e-3, beta1: 0.5, beta2: 0.99, schedule: cosine}"),
    "satimage": on_codes(1.0),
}
"""Overrides of ``joint`` with ``nsf`` for each set, chosen on its seed 7; satimage's penalty was raised from 0.3 untried."""

OF_THE_DATA = {
    "joint": {
        "redwine": (*on_codes(1.0), "train.noise=0.3"),
        "phoneme": on_codes(0.02),
        "magic": on_codes(0.02),
        "penbased": on_codes(0.02),
        "satimage": on_codes(0.5),
    },
    "weighted": {"redwine": FLATTER, "phoneme": SHARPER, "magic": SHARPER, "penbased": SHARPER, "satimage": SHARPER},
    "pathwise": {"redwine": SMOOTH, "phoneme": SHARP, "magic": SHARP, "penbased": SMOOTH, "satimage": SMOOTH},
}
"""Overrides for each set, of the methods that train both parts from fresh weights.

- ``joint``: each penalty is one of up to three tried on seed 7 of the set. Red wine's noise was added after seed 0, whose
  energy had memorised rows.
- ``weighted`` was tried on seed 7 of redwine, magic and penbased. The energy keeps up with an average of decay 0.99. At 0.97
  the base of penbased went past the data after 600 cycles.
- ``pathwise``: on seed 7 SHARP was better for two sets, and collapsed or broke down on the others.
"""

FEW_ROWS = {"redwine": "train.penalty={name: r1, weight: 1.0, every: 4}"}
"""Sets that keep the penalty of the recipe ``redwine``.

Seed 7 favours 0.03 on the larger sets. With it, one of three energies on nsf was two nats worse on the test part than on the
validation part.
"""


def overrides(data: str, flow: str, method: str, seed: int, ml_steps: int = ML_STEPS) -> list[str]:
    """Return the overrides of the recipe ``redwine``, except the data node."""
    common = [
        word.replace(f"steps={ML_STEPS}", f"steps={ml_steps}") if ".pretrain." in word else word for word in COMMON
    ]
    few = [FEW_ROWS[data]] if data in FEW_ROWS else []
    more = OF_THE_DATA[method][data] if method in OF_THE_DATA else few
    if method == "joint" and flow == "nsf":
        more = (*SPLINES_TOGETHER, *SPLINES_OF_THE_DATA[data])
    return [FLOWS[flow], *common, *OF_THE_METHOD[method], *more, f"train.seed={seed}"]
