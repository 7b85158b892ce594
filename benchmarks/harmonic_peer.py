"""One evidence by the `harmonic` package, as its "basic usage" tutorial computes it. Runs in that package's own environment.

    python benchmarks/harmonic_peer.py IN.npz realnvp|rqspline SEED        # prints one JSON line

IN.npz holds ``samples (chain, draw, d)`` and ``log_posterior (chain, draw)``. The clock runs from loaded arrays to the evidence:
neither the import nor the start of jax counts, compilation does, because every new data set pays it.
"""

import json
import sys
import time

import harmonic
import jax
import numpy as np

EPOCHS = 20
MODELS = {"realnvp": harmonic.model.RealNVPModel, "rqspline": harmonic.model.RQSplineModel}


def main(path: str, flow: str, seed: int) -> None:
    stored = np.load(path)
    samples, log_posterior = stored["samples"], stored["log_posterior"]
    key = jax.random.PRNGKey(seed)
    jax.block_until_ready(key)
    start = time.perf_counter()
    chains = harmonic.Chains(samples.shape[-1])
    chains.add_chains_3d(samples, log_posterior)
    train, infer = harmonic.utils.split_data(chains, training_proportion=0.5)
    model = MODELS[flow](samples.shape[-1], standardize=True, temperature=0.8)
    model.fit(train.samples, epochs=EPOCHS, key=key)
    estimate = harmonic.Evidence(infer.nchains, model)
    estimate.add_chains(infer)
    below, above = estimate.compute_ln_inv_evidence_errors()
    seconds = time.perf_counter() - start
    error = float(abs(above) + abs(below)) / 2
    print(json.dumps({"log_z": -float(estimate.ln_evidence_inv), "log_z_err": error, "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
