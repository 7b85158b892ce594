"""Which source explains the gravitational-wave background in the NANOGrav 15-year data? A power law, step by step.

    python tutorials/pta_models.py

The command ``sbi-flows pta compare`` does the same for ten models at once, with figures.
"""

import torch

from sbi_flows import evidence
from sbi_flows.physics.pta import MODELS, pta_target
from sbi_flows.physics.pta.reference import run_reference


def main() -> None:
    log_z = {}
    for name in ("smbhb", "power_law"):
        # A model against the data: prior, likelihood and posterior. The data's 14 lowest frequency bins come with the package.
        target = pta_target(name)
        print(f"{MODELS[name].title}: parameters {', '.join(target.names)}")

        # Reference chains by emcee; they say themselves whether they have converged.
        run = run_reference(target, min_ess=5_000, min_steps=500, random_state=0)
        print(f"    {run.ess:.0f} independent draws, {run.reliability}")
        print(run.chains.to_dataframe().describe().loc[["mean", "std"]].round(3).to_string())

        # The evidence, with its error and its verdict.
        result = evidence(run.chains, target.log_posterior, prior=target.prior, random_state=0)
        print(result, "\n")
        log_z[name] = result.log_z
    print(f"ln Bayes factor, power law against black-hole binaries: {log_z['power_law'] - log_z['smbhb']:.2f}")

    # The likelihood is differentiable: how ln L at the posterior mean changes with each parameter.
    theta = torch.tensor(run.chains.samples.mean((0, 1)))[None].requires_grad_()
    target.log_likelihood(theta).sum().backward()
    print("gradient of ln L at the mean:", dict(zip(target.names, theta.grad[0].tolist(), strict=True)))


if __name__ == "__main__":
    main()
