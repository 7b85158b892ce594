"""Evidence on the way: the flow that helped the chains also gives ln Z, with an error and a count of what it took.

    python tutorials/evidence_on_the_way.py

A straight line or a parabola through twenty points? Both evidences are known exactly (the models are linear), and printed beside ours.
"""

import math

import numpy as np
import torch

from sbi_flows import FlowSampler, compare_models
from sbi_flows.distributions import MultivariateNormal

NOISE, PRIOR_WIDTH = 0.3, 3.0
NAMES = ("offset", "slope", "curvature")


def data() -> tuple[np.ndarray, np.ndarray]:
    """Twenty points of a gentle parabola."""
    t = np.linspace(-1, 1, 20)
    return t, 0.5 + 1.0 * t + 0.4 * t**2 + NOISE * np.random.default_rng(3).normal(size=20)


def exact_log_z(design: np.ndarray, y: np.ndarray) -> float:
    """Of a linear model with normal prior and noise: y is normal with covariance noise^2 + width^2 A A'."""
    covariance = NOISE**2 * np.eye(len(y)) + PRIOR_WIDTH**2 * design @ design.T
    return float(-0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2 * math.pi * covariance)[1]))


def main(n_effective: int = 4000) -> None:
    t, y = data()
    evidences = {}
    for name, order in (("line", 2), ("parabola", 3)):
        design = np.stack([t**k for k in range(order)], axis=1)
        matrix, target = torch.from_numpy(design), torch.from_numpy(y)

        def log_likelihood(theta, matrix=matrix, target=target):
            residual = (target - theta @ matrix.T) / NOISE
            return -0.5 * residual.square().sum(-1) - len(target) * math.log(NOISE * math.sqrt(2 * math.pi))

        prior = MultivariateNormal(np.zeros(order), PRIOR_WIDTH**2 * np.eye(order), names=NAMES[:order])
        sampler = FlowSampler(log_likelihood, prior, n_effective=n_effective, random_state=0).fit()
        evidences[name] = sampler.evidence()
        print(f"{name}: {evidences[name]}")
        print(f"    exactly {exact_log_z(design, y):.4f}; {sampler.report_.n_evaluations} evaluations in all")
    print(compare_models(evidences, reference="line").to_string())


if __name__ == "__main__":
    main()
