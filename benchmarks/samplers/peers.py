"""One process of the peers' side, run by the interpreter of their own virtual environment (jax, blackjax, numpyro).

    python -m benchmarks.samplers.peers --target NAME --seed S --samplers blackjax-hmc ... --exports DIR --out DIR
    python -m benchmarks.samplers.peers --target NAME --exports DIR --check

Chains are vectorised and split over two virtual devices, one for each core. Otherwise XLA's matrix products of these
sizes would use one core. Everything is compiled before it is timed.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.samplers.records import Outcome, save_failure, save_outcome
from benchmarks.samplers.targets import TARGETS, Target

TUNING_CHAINS = 16
"""Number of chains that tune NUTS and HMC with Stan's windows; their step sizes and metrics are averaged."""

CHEES_LEARNING_RATE = 0.02
CHEES_FIRST_STEP = 0.1
MALA_TARGET = 0.574
MAMS_TARGET = 0.9
MICROCANONICAL_CHAINS = 4

Point = Any
Energy = Callable[[Point], Any]  # U: (d,) -> ()


def configure(devices: int, cache: Path | None, double: bool) -> None:
    """Set the environment and settings of jax, before it is imported."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_enable_x64", double)
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


class Run:
    """A target with its energy and starting points, and what every sampler needs to warm up and draw."""

    def __init__(self, target: Target, energy: Energy, seed: int) -> None:
        import jax
        import jax.numpy as jnp

        self.target, self.energy = target, energy
        self.start = jnp.asarray(target.start(seed))
        self.warmup_key, self.burn_key, self.draw_key = jax.random.split(jax.random.key(seed), 3)
        self.mesh = jax.make_mesh((jax.device_count(),), ("chains",))
        self.warmup_seconds = 0.0

    def log_density(self, x: Point) -> Any:
        return -self.energy(x)

    def tuned(self, warm_up: Callable[..., Any], *arguments: Any) -> Any:
        """Compile ``warm_up(*arguments)``, then time it."""
        import jax

        compiled = jax.jit(warm_up).lower(*arguments).compile()
        began = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments))
        self.warmup_seconds += time.perf_counter() - began
        return result

    def chains(self, step: Callable[..., Any], draws: int, thin: int) -> Callable[..., Any]:
        """Compile all chains into one function: (keys, states, parameters) -> states, positions (C, N, d), counts (C, 3).

        ``step(key, state, parameters)`` gives a state, its position and (gradients, acceptance, divergence) as floats.
        """
        import jax
        from jax.sharding import PartitionSpec

        def kept(parameters: Any, carry: Any, key: Any) -> Any:
            def one(carry: Any, key: Any) -> Any:
                state, counts = carry
                state, _, count = step(key, state, parameters)
                return (state, counts + count), None

            carry, _ = jax.lax.scan(one, carry, jax.random.split(key, thin))
            return carry, self.position(carry[0])

        def chain(key: Any, state: Any, parameters: Any) -> Any:
            zero = jax.numpy.zeros(3)
            keys = jax.random.split(key, draws)
            (state, counts), positions = jax.lax.scan(functools.partial(kept, parameters), (state, zero), keys)
            return state, positions, counts

        split, whole = PartitionSpec("chains"), PartitionSpec()
        vectorised = jax.vmap(chain, in_axes=(0, 0, None))
        return jax.jit(
            jax.shard_map(vectorised, mesh=self.mesh, in_specs=(split, split, whole), out_specs=split, check_vma=False)
        )

    @staticmethod
    def position(state: Any) -> Any:
        return state.z if hasattr(state, "z") else state.position

    def outcome(
        self, step: Callable[..., Any], states: Any, parameters: Any, *, thin: int, burn: int, tuned: dict[str, Any]
    ) -> Outcome:
        """Make ``burn`` steps of burn-in, then the draws, timed without compilation."""
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        split = NamedSharding(self.mesh, PartitionSpec("chains"))
        whole = NamedSharding(self.mesh, PartitionSpec())
        keys = [jax.device_put(jax.random.split(k, self.target.chains), split) for k in (self.burn_key, self.draw_key)]
        states, parameters = jax.device_put(states, split), jax.device_put(parameters, whole)
        if burn:
            burning = self.chains(step, burn, 1).lower(keys[0], states, parameters).compile()
            began = time.perf_counter()
            states, _, _ = jax.block_until_ready(burning(keys[0], states, parameters))
            self.warmup_seconds += time.perf_counter() - began
        drawing = self.chains(step, self.target.draws, thin).lower(keys[1], states, parameters).compile()
        began, began_cpu = time.perf_counter(), time.process_time()
        _, positions, counts = jax.block_until_ready(drawing(keys[1], states, parameters))
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        counts = np.asarray(counts, np.float64)
        transitions = self.target.draws * thin * self.target.chains
        return Outcome(
            draws=np.asarray(positions),
            grad_evals=float(counts[:, 0].sum()),
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            warmup_seconds=self.warmup_seconds,
            acceptance=float(counts[:, 1].sum() / transitions),
            divergences=int(counts[:, 2].sum()),
            tuned={name: float(np.asarray(value).mean()) for name, value in tuned.items()},
        )


def _hmc_counts(info: Any) -> Any:
    import jax.numpy as jnp

    return jnp.stack([jnp.asarray(v, jnp.float32) for v in (
        info.num_integration_steps, info.acceptance_rate, info.is_divergent
    )])  # fmt: skip


def _pooled_windows(run: Run, algorithm: Any, steps: int, **extra: Any) -> dict[str, Any]:
    """Run Stan's window adaptation on `TUNING_CHAINS` chains; geometric means of step size and diagonal metric."""
    import blackjax
    import jax
    import jax.numpy as jnp
    from blackjax.adaptation.base import get_filter_adapt_info_fn

    def one(key: Any, position: Any) -> Any:
        adaptation = blackjax.window_adaptation(
            algorithm, run.log_density, adaptation_info_fn=get_filter_adapt_info_fn(), **extra
        )
        (_, parameters), _ = adaptation.run(key, position, steps)
        return parameters["step_size"], parameters["inverse_mass_matrix"]

    def warm_up(key: Any, positions: Any) -> Any:
        sizes, metrics = jax.vmap(one)(jax.random.split(key, TUNING_CHAINS), positions)
        return {"step_size": jnp.exp(jnp.log(sizes).mean()), "inverse_mass_matrix": jnp.exp(jnp.log(metrics).mean(0))}

    return run.tuned(warm_up, run.warmup_key, run.start[:TUNING_CHAINS])


def blackjax_hmc(run: Run) -> Outcome:
    """Run blackjax.hmc with the target's L, window adaptation (acceptance 0.8)."""
    import blackjax
    import jax

    length = run.target.leapfrog
    parameters = _pooled_windows(run, blackjax.hmc, run.target.peer_warmup, num_integration_steps=length)
    kernel = blackjax.hmc.build_kernel()

    def step(key: Any, state: Any, p: Any) -> Any:
        state, info = kernel(key, state, run.log_density, p["step_size"], p["inverse_mass_matrix"], length)
        return state, state.position, _hmc_counts(info)

    states = jax.vmap(lambda x: blackjax.hmc.init(x, run.log_density))(run.start)
    return run.outcome(step, states, parameters, thin=1, burn=100, tuned={"step_size": parameters["step_size"]})


def blackjax_nuts(run: Run) -> Outcome:
    """Run blackjax.nuts, window adaptation (acceptance 0.8)."""
    import blackjax
    import jax

    parameters = _pooled_windows(run, blackjax.nuts, run.target.peer_warmup)
    kernel = blackjax.nuts.build_kernel()

    def step(key: Any, state: Any, p: Any) -> Any:
        state, info = kernel(key, state, run.log_density, p["step_size"], p["inverse_mass_matrix"])
        return state, state.position, _hmc_counts(info)

    states = jax.vmap(lambda x: blackjax.nuts.init(x, run.log_density))(run.start)
    return run.outcome(step, states, parameters, thin=1, burn=50, tuned={"step_size": parameters["step_size"]})


def blackjax_mala(run: Run) -> Outcome:
    """Run blackjax.mala; its step size comes from blackjax's dual averaging on the mean acceptance of all chains (0.574)."""
    import blackjax
    import jax
    import jax.numpy as jnp
    from blackjax.adaptation.step_size import dual_averaging_adaptation

    kernel = blackjax.mala.build_kernel()
    init, update, final = dual_averaging_adaptation(MALA_TARGET)

    def warm_up(key: Any, states: Any) -> Any:
        def one(carry: Any, key: Any) -> Any:
            states, averaging = carry
            size = jnp.exp(averaging.log_step_size)
            keys = jax.random.split(key, run.target.chains)
            states, info = jax.vmap(lambda k, s: kernel(k, s, run.log_density, size))(keys, states)
            return (states, update(averaging, info.acceptance_rate.mean())), None

        keys = jax.random.split(key, run.target.peer_warmup)
        (states, averaging), _ = jax.lax.scan(one, (states, init(0.01)), keys)
        return states, final(averaging)

    def step(key: Any, state: Any, size: Any) -> Any:
        state, info = kernel(key, state, run.log_density, size)
        return state, state.position, jnp.stack([jnp.ones(()), info.acceptance_rate, jnp.zeros(())])

    states = jax.vmap(lambda x: blackjax.mala.init(x, run.log_density))(run.start)
    states, size = run.tuned(warm_up, run.warmup_key, states)
    return run.outcome(step, states, size, thin=run.target.thin, burn=0, tuned={"step_size": size})


def _chees(run: Run, metric: str | None) -> Outcome:
    import blackjax
    import optax
    from blackjax.adaptation.base import get_filter_adapt_info_fn

    target = run.target
    adaptation = blackjax.chees_adaptation(
        run.log_density, target.chains, mass_matrix_estimation=metric, adaptation_info_fn=get_filter_adapt_info_fn()
    )
    functions: dict[str, Any] = {}

    def warm_up(key: Any, start: Any) -> Any:
        (states, parameters), _ = adaptation.run(
            key, start, CHEES_FIRST_STEP, optax.adam(CHEES_LEARNING_RATE), target.peer_warmup
        )
        names = ("next_random_arg_fn", "integration_steps_fn")
        functions.update({name: parameters[name] for name in names})
        return states, {name: value for name, value in parameters.items() if name not in names}

    states, parameters = run.tuned(warm_up, run.warmup_key, run.start)
    kernel = blackjax.dynamic_hmc.build_kernel(**functions)

    def step(key: Any, state: Any, p: Any) -> Any:
        state, info = kernel(key, state, run.log_density, **p)
        return state, state.position, _hmc_counts(info)

    (steps,) = parameters["integration_steps_params"]
    tuned = {"step_size": parameters["step_size"], "leapfrog": steps}
    return run.outcome(step, states, parameters, thin=1, burn=0, tuned=tuned)


def blackjax_chees(run: Run) -> Outcome:
    """Run blackjax.chees_adaptation with its defaults (identity metric), then dynamic_hmc."""
    return _chees(run, None)


def blackjax_chees_diagonal(run: Run) -> Outcome:
    """Run blackjax.chees_adaptation with its optional diagonal metric, then dynamic_hmc."""
    return _chees(run, "diagonal")


def blackjax_meads(run: Run) -> Outcome:
    """Run blackjax.meads_adaptation, then ghmc."""
    import blackjax
    import jax.numpy as jnp
    from blackjax.adaptation.base import get_filter_adapt_info_fn

    target = run.target
    adaptation = blackjax.meads_adaptation(
        run.log_density, target.chains, adaptation_info_fn=get_filter_adapt_info_fn()
    )

    def warm_up(key: Any, start: Any) -> Any:
        (states, parameters), _ = adaptation.run(key, start, target.peer_warmup)
        return states, parameters

    states, parameters = run.tuned(warm_up, run.warmup_key, run.start)
    kernel = blackjax.ghmc.build_kernel()

    def step(key: Any, state: Any, p: Any) -> Any:
        new, info = kernel(key, state, run.log_density, **p)
        moved = (new.position != state.position).any()
        return (
            new,
            new.position,
            jnp.stack([jnp.ones(()), moved.astype(jnp.float32), info.is_divergent.astype(jnp.float32)]),
        )

    tuned = {name: parameters[name] for name in ("step_size", "alpha")}
    return run.outcome(step, states, parameters, thin=target.thin, burn=0, tuned=tuned)


def blackjax_mclmc(run: Run) -> Outcome:
    """Run blackjax.mclmc (two gradients a step), tuned by mclmc_find_L_and_step_size, without a Metropolis test."""
    import blackjax
    import jax
    import jax.numpy as jnp

    target = run.target
    kernel = blackjax.mclmc.build_kernel()
    count = MICROCANONICAL_CHAINS

    def warm_up(key: Any, start: Any) -> Any:
        def one(key: Any, position: Any) -> Any:
            first, second = jax.random.split(key)
            state = blackjax.mclmc.init(position, run.log_density, first)
            _, found, _ = blackjax.mclmc_find_L_and_step_size(
                mclmc_kernel=kernel, num_steps=10 * target.peer_warmup, state=state, rng_key=second,
                logdensity_fn=run.log_density,
            )  # fmt: skip
            return found.L, found.step_size, found.inverse_mass_matrix

        lengths, sizes, metrics = jax.vmap(one)(jax.random.split(key, count), start)
        lengths, sizes, metrics = (jnp.exp(jnp.log(v).mean(0)) for v in (lengths, sizes, metrics))
        return {"L": lengths, "step_size": sizes, "inverse_mass_matrix": metrics}

    parameters = run.tuned(warm_up, run.warmup_key, run.start[:count])

    def step(key: Any, state: Any, p: Any) -> Any:
        state, info = kernel(key, state, run.log_density, **p)
        return state, state.position, jnp.stack([jnp.full((), 2.0), jnp.ones(()), 1.0 - info.nonans])

    keys = jax.random.split(run.burn_key, target.chains)
    states = jax.vmap(lambda x, k: blackjax.mclmc.init(x, run.log_density, k))(run.start, keys)
    tuned = {name: parameters[name] for name in ("L", "step_size")}
    return run.outcome(step, states, parameters, thin=max(1, target.thin // 2), burn=300, tuned=tuned)


def blackjax_mams(run: Run) -> Outcome:
    """Run blackjax.adjusted_mclmc_dynamic (two gradients an integration step), tuned by its own adaptation."""
    import blackjax
    import jax
    import jax.numpy as jnp
    from blackjax.mcmc.adjusted_mclmc_dynamic import make_random_trajectory_length_fn

    target = run.target
    kernel = blackjax.adjusted_mclmc_dynamic.build_kernel(integration_steps_fn=make_random_trajectory_length_fn(True))
    count = MICROCANONICAL_CHAINS

    def warm_up(key: Any, start: Any) -> Any:
        def one(key: Any, position: Any) -> Any:
            first, second = jax.random.split(key)
            state = blackjax.adjusted_mclmc_dynamic.init(position, run.log_density, first)
            _, found, _ = blackjax.adjusted_mclmc_find_L_and_step_size(
                mclmc_kernel=kernel, logdensity_fn=run.log_density, num_steps=10 * target.peer_warmup, state=state,
                rng_key=second, target=MAMS_TARGET,
            )  # fmt: skip
            return found.L, found.step_size, found.inverse_mass_matrix

        lengths, sizes, metrics = jax.vmap(one)(jax.random.split(key, count), start)
        lengths, sizes, metrics = (jnp.exp(jnp.log(v).mean(0)) for v in (lengths, sizes, metrics))
        return {
            "step_size": sizes, "inverse_mass_matrix": metrics, "integration_steps_params": (lengths / sizes,)
        }  # fmt: skip

    parameters = run.tuned(warm_up, run.warmup_key, run.start[:count])

    def step(key: Any, state: Any, p: Any) -> Any:
        state, info = kernel(key, state, run.log_density, **p)
        return state, state.position, _hmc_counts(info) * jnp.asarray([2.0, 1.0, 1.0])

    keys = jax.random.split(run.burn_key, target.chains)
    states = jax.vmap(lambda x, k: blackjax.adjusted_mclmc_dynamic.init(x, run.log_density, k))(run.start, keys)
    (steps,) = parameters["integration_steps_params"]
    tuned = {"step_size": parameters["step_size"], "integration_steps": steps}
    return run.outcome(step, states, parameters, thin=1, burn=100, tuned=tuned)


def _numpyro(run: Run, algorithm: str, burn: int, **settings: Any) -> Outcome:
    """Run numpyro's functional interface: warm-up on `TUNING_CHAINS` chains, averaged and frozen, then all chains."""
    import jax
    import jax.numpy as jnp
    from numpyro.infer.hmc import hmc

    target = run.target
    init, sample = hmc(run.energy, algo=algorithm)
    nothing: dict[str, Any] = {}

    def warm_up(key: Any, positions: Any) -> Any:
        def one(key: Any, position: Any) -> Any:
            state = init(position, target.peer_warmup, rng_key=key, **settings)
            state = jax.lax.fori_loop(0, target.peer_warmup, lambda _, s: sample(s, (), nothing), state)
            return state.adapt_state.step_size, state.adapt_state.inverse_mass_matrix

        sizes, metrics = jax.vmap(one)(jax.random.split(key, TUNING_CHAINS), positions)
        return jnp.exp(jnp.log(sizes).mean()), jnp.exp(jnp.log(metrics).mean(0))

    size, metric = run.tuned(warm_up, run.warmup_key, run.start[:TUNING_CHAINS])
    init, sample = hmc(run.energy, algo=algorithm)

    def begin(key: Any, position: Any) -> Any:
        return init(
            position, 0, step_size=size, inverse_mass_matrix=metric, adapt_step_size=False, adapt_mass_matrix=False,
            rng_key=key, **settings,
        )  # fmt: skip

    def step(key: Any, state: Any, _: Any) -> Any:
        state = sample(state._replace(rng_key=key), (), nothing)
        counts = (state.num_steps, state.accept_prob, state.diverging)
        return state, state.z, jnp.stack([jnp.asarray(v, jnp.float32) for v in counts])

    states = jax.vmap(begin)(jax.random.split(run.burn_key, target.chains), run.start)
    return run.outcome(step, states, jnp.zeros(()), thin=1, burn=burn, tuned={"step_size": size})


def numpyro_hmc(run: Run) -> Outcome:
    """Run numpyro HMC with the target's L."""
    return _numpyro(run, "HMC", 100, num_steps=run.target.leapfrog, trajectory_length=None)


def numpyro_nuts(run: Run) -> Outcome:
    """Run numpyro NUTS."""
    return _numpyro(run, "NUTS", 50)


SAMPLERS: dict[str, Callable[[Run], Outcome]] = {
    "blackjax-hmc": blackjax_hmc,
    "blackjax-mala": blackjax_mala,
    "blackjax-nuts": blackjax_nuts,
    "blackjax-chees": blackjax_chees,
    "blackjax-chees-diagonal": blackjax_chees_diagonal,
    "blackjax-meads": blackjax_meads,
    "blackjax-mams": blackjax_mams,
    "blackjax-mclmc": blackjax_mclmc,
    "numpyro-hmc": numpyro_hmc,
    "numpyro-nuts": numpyro_nuts,
}


def energy_of(target: Target, exports: Path) -> Energy:
    """Return U as a function of one point (d,)."""
    import jax.numpy as jnp

    if target.function is not None:
        return functools.partial(_with_namespace, target.function)
    from benchmarks.samplers.jax_network import load

    network = load(exports / target.name)
    return lambda x: 0.5 * jnp.sum(x * x) + network(x)


def _with_namespace(function: Any, x: Any) -> Any:
    import jax.numpy as jnp

    return function(x, jnp)


def check(target: Target, exports: Path) -> float:
    """Return the largest relative difference, in float64, from the values and gradients that the kit's side saved."""
    import jax

    known = np.load(exports / f"{target.name}.reference.npz")
    value, grad = jax.vmap(jax.value_and_grad(energy_of(target, exports)))(jax.numpy.asarray(known["points"]))
    return max(
        float(np.abs(np.asarray(found) - known[name]).max() / np.abs(known[name]).max())
        for name, found in (("value", value), ("grad", grad))
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, choices=TARGETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--exports", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="of the lengths of runs")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    target = TARGETS[options.target].scaled(options.scale)
    configure(options.threads, None if options.check else options.out / "compiled", options.check)
    if options.check:
        print(check(target, options.exports))
        return 0
    for name in options.samplers:
        try:
            outcome = SAMPLERS[name](Run(target, energy_of(target, options.exports), options.seed))
        except Exception as error:  # a peer that fails gets a line in the table that says so
            traceback.print_exc()
            save_failure(options.out, name, target, options.seed, f"{type(error).__name__}: {error}")
        else:
            save_outcome(options.out, name, target, options.seed, outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main())
