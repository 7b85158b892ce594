"""Retrieval of synthetic planets: one network for all against nested sampling of each.

    python -m benchmarks.exoplanets reference [--planets 10]          # dynesty, one file a planet
    python -m benchmarks.exoplanets network [--simulations 200000]    # trains once; killed, it resumes
    python -m benchmarks.exoplanets weights                           # the network against its own weighted draws, without dynesty
    python -m benchmarks.exoplanets score                             # all that is there -> benchmarks/results/exoplanets.csv

Planets, stars and errors are drawn as those that the network learns from, with another seed. Scores are those of the data challenge (at
most 1000; .8 posterior, .2 spectral) against the draws of nested sampling. Two runs of nested sampling differ too: the row ``dynesty
again`` is what a perfect answer could score, ``prior`` what none would. ``network`` is the amortised posterior as it is, ``weighted`` the
same draws with importance weights of the exact likelihood, ``chains`` FlowSampler of that one
planet, a million evaluations at most.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kstest

from sbi_flows import ConditionalFlow, FlowSampler
from sbi_flows.physics.exoplanets import NAMES, AtmosphereNPE, challenge_score, planet_prior, planet_target, simulate_planets
from sbi_flows.samplers import run_dynesty

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".cache" / "exoplanets"
RESULTS = ROOT / "benchmarks" / "results" / "exoplanets.csv"
SEED, DRAWS, LIVE, MOST = 2026, 4000, 200, 10


def planets():
    return simulate_planets(MOST, random_state=SEED)


def reference(i: int, planet, again: bool = False) -> dict[str, np.ndarray]:
    """Draws of nested sampling, kept in a file."""
    path = WORK / f"dynesty-{i}{'-again' if again else ''}.npz"
    if not path.exists():
        began = time.perf_counter()
        draws, found = run_dynesty(planet_target(planet), n_live=LIVE, dlogz=0.5, sample="rwalk", random_state=int(again))
        rng = np.random.default_rng(i)
        rows = draws.samples[rng.choice(len(draws.samples), DRAWS, p=draws.weights / draws.weights.sum())]
        facts = {"log_z": found.log_z, "log_z_err": found.log_z_err, "evaluations": found.info["n_evaluations"]}
        np.savez(path, rows=rows, ess=draws.ess, seconds=time.perf_counter() - began, **facts)
        print(path.name, facts, f"ESS {draws.ess:.0f}, {time.perf_counter() - began:.0f} s", flush=True)
    return dict(np.load(path))


def network(n_simulations: int, epochs: int) -> AtmosphereNPE:
    """The trained network, from its file where there is one."""
    path = WORK / "network.safetensors"
    if path.exists():
        return AtmosphereNPE.load(path)

    def tell(report) -> None:
        print(f"epoch {report.epoch} of {report.max_epochs}: {report.validation_loss.mean():.3f}", flush=True)

    began = time.perf_counter()
    flow = ConditionalFlow(layers=5, hidden=(128, 128), max_epochs=epochs, batch_size=512, callbacks=[tell])
    fitted = AtmosphereNPE(n_simulations, flow, random_state=0).fit(WORK / "network.checkpoint")
    print(f"{n_simulations} simulations, trained in {fitted.npe_.history_.seconds:.0f} s ({time.perf_counter() - began:.0f} s in this run)")
    fitted.save(path)
    return fitted


def rows_of(i: int, planet, fitted: AtmosphereNPE) -> list[dict]:
    """The scores of one planet."""
    exact = reference(i, planet)
    found = []

    def add(route: str, draws: np.ndarray, seconds: float, verdict: str, share: float = np.nan, log_z: float = np.nan) -> None:
        score = challenge_score(planet, draws, exact["rows"], random_state=0)
        found.append(
            {"planet": i, "route": route, "score": score.total, "posterior": score.posterior, "spectral": score.spectral,
             "worst_ks": score.ks.max(), "ess_share": share, "log_z": log_z, "seconds": seconds, "verdict": verdict}
        )  # fmt: skip

    add("prior", planet_prior().sample(DRAWS).numpy(), 0.0, "")
    began = time.perf_counter()
    draws = fitted.posterior(planet).sample(DRAWS, random_state=1)
    add("network", draws, time.perf_counter() - began, _word(fitted.posterior(planet).reliability))
    began = time.perf_counter()
    weighted = fitted.refined(planet, 20_000, random_state=2)
    rng = np.random.default_rng(3)
    chosen = weighted.samples[rng.choice(len(weighted.samples), DRAWS, p=weighted.weights / weighted.weights.sum())]
    verdict = _word(weighted.reliability)
    add("weighted", chosen, time.perf_counter() - began, verdict, weighted.ess / len(weighted.samples), weighted.log_z)
    began = time.perf_counter()
    sampler = FlowSampler(target=planet_target(planet), n_effective=1000, method="local", max_evaluations=1_000_000, random_state=4).fit()
    report = sampler.report_
    add("chains", sampler.sample(DRAWS, random_state=5), time.perf_counter() - began, _word(report.reliability))
    if (WORK / f"dynesty-{i}-again.npz").exists():
        again = reference(i, planet, again=True)
        add("dynesty again", again["rows"], float(again["seconds"]), "", float(again["ess"]) / DRAWS, float(again["log_z"]))
    for row in found:
        row["dynesty_log_z"], row["dynesty_seconds"] = float(exact["log_z"]), float(exact["seconds"])
    return found


def _word(reliability) -> str:
    return "ok" if reliability.ok else "NOT RELIABLE"


def weights(fitted: AtmosphereNPE, n: int) -> None:
    """What the weights of each planet keep, the network's score against the weighted draws, and ranks of new planets."""
    rng = np.random.default_rng(3)
    for i in range(n):
        planet = planets()[i]
        weighted = fitted.refined(planet, 20_000, random_state=2)
        chosen = weighted.samples[rng.choice(len(weighted.samples), DRAWS, p=weighted.weights / weighted.weights.sum())]
        found = challenge_score(planet, fitted.posterior(planet).sample(DRAWS, random_state=1), chosen, random_state=0)
        print(
            f"planet {i}: effective {weighted.ess / 20_000:.1%}, Pareto k {weighted.pareto_k:.2f}, ln Z {weighted.log_z:.2f} +- "
            f"{weighted.log_z_err:.2f}, {_word(weighted.reliability)}; network {found.total:.0f} (posterior {found.posterior:.0f}, largest "
            f"KS {found.ks.max():.2f} in {NAMES[int(found.ks.argmax())]})",
            flush=True,
        )
    new = simulate_planets(400, random_state=SEED + 1)
    below = (fitted.posterior(new).sample(300, random_state=1) < new.theta[:, None]).mean(1)
    for name, ranks in zip(NAMES, below.T, strict=True):
        held = np.mean(np.abs(ranks - 0.5) < 0.34)
        print(f"{name}: ranks of 400 new planets p = {kstest(ranks, 'uniform').pvalue:.3f}, 68 % intervals hold {held:.1%}")


def score(n: int) -> None:
    """Score every planet that has a reference and no rows yet, keep the rows, print means by route."""
    fitted = network(0, 0)
    table = pd.read_csv(RESULTS) if RESULTS.exists() else pd.DataFrame({"planet": []})
    for i in range(n):
        if (WORK / f"dynesty-{i}.npz").exists() and i not in set(table["planet"]):
            table = pd.concat([table, pd.DataFrame(rows_of(i, planets()[i], fitted))], ignore_index=True)
            table.to_csv(RESULTS, index=False, float_format="%.5g")
            print(table[table["planet"] == i].to_string(index=False, float_format="%.4g"), flush=True)
    means = table.groupby("route")[["score", "posterior", "spectral", "worst_ks", "seconds"]].mean()
    print(means.to_string(float_format="%.4g"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["reference", "network", "weights", "score"])
    parser.add_argument("--planets", type=int, default=MOST, choices=range(2, MOST + 1))
    parser.add_argument("--simulations", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=25)
    given = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", UserWarning)  # verdicts are in the table
    if given.what == "reference":
        for i in range(given.planets):
            reference(i, planets()[i])
        for i in range(2):
            reference(i, planets()[i], again=True)
    elif given.what == "network":
        network(given.simulations, given.epochs)
    elif given.what == "weights":
        weights(network(0, 0), given.planets)
    else:
        score(given.planets)


if __name__ == "__main__":
    main()
