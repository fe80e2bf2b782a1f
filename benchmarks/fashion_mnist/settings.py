"""Settings of the models, which share the generator and, if they have one, the critic. Chosen on seed 7 alone."""

from __future__ import annotations

LATENT, WIDTH = 64, 16

BASE = f"base={{name: dcgan, latent_dim: {LATENT}, width: {WIDTH}}}"
ENERGY = f"energy={{name: conv, width: {WIDTH}, activation: leaky-relu}}"

COMMON = (
    "train.batch_size=64",
    "train.start_steps=0",
    "train.noise=0.1",
    "train.checkpoint_every=100000",
    "train.final.steps=0",
    "optim.energy.lr=4.0e-4",
    "optim.base.lr=4.0e-4",
    "eval={metrics: [frechet], num_samples: 500, num_sets: 2}",
    "sample={num_samples: 100, num_chains: 100, warmup: 2, steps: 2, thin: 1}",
    "sampler={name: hmc, num_leapfrog: 3}",
)

REFINED = (
    BASE,
    "loss=kale",
    "train.part=energy",
    "train.energy_steps=1",
    "train.noise=0",
    "train.penalty={name: r1, weight: 0.01, every: 4}",
    "optim.energy={name: adam, lr: 4.0e-4, beta1: 0.5, beta2: 0.99, schedule: linear}",
)
"""Overrides for an energy on top of the finished base, on features learned beforehand; that counts as training time."""

MODELS = {
    "base": (
        BASE,
        ENERGY,
        "loss=kale-dv",
        "train.energy_steps=1",
        "train.penalty={name: r1, weight: 5.0, every: 4}",
    ),
    "gebm": (*REFINED, "energy={name: projected, features: labels}"),
    "gebm-unlabelled": (*REFINED, "energy={name: projected, features: contrastive}"),
    "gan": (
        BASE,
        ENERGY,
        "loss=logistic",
        "train.energy_steps=1",
        "train.penalty={name: r1, weight: 5.0, every: 4}",
    ),
    "vae": (
        f"base={{name: vae, latent_dim: {LATENT}, network: conv, width: {WIDTH}, kl_warmup: 500}}",
        ENERGY,
        "loss=elbo",
        "train.part=base",
        "train.penalty=[]",
        "train.noise=0",
        "optim.base={lr: 1.0e-3, beta1: 0.9, beta2: 0.999, schedule: linear, decay_start: 0.5, end_scale: 0.02}",
    ),
}

ON_BASE = ("gebm", "gebm-unlabelled")
"""Models whose base is the model ``base`` of the same seed."""

BASE_SHARE = 0.7
"""Share of the time for the base; the rest is for the energy on top of it."""

BETAS = (0.7, 1.0, 1.4)
"""Inverse temperatures; the validation part chooses one."""

CHAINS = {"num_chains": 1000, "warmup": 40, "thin": 5}
"""Settings of the sampler for GEBM draws; ten draws a chain."""
