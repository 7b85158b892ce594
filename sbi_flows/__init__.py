"""sbi_flows: densities, posteriors, evidences and samplers for physics, each with its own reliability verdict.

Public names load on first use (PEP 562), so importing the package touches neither torch nor numpy.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "FlowDensity": "estimators",
    "ConditionalFlow": "estimators",
    "RatioClassifier": "estimators",
    "CountColumn": "flows",
    "CountDensity": "flows",
    "MixedDensity": "flows",
    "NLE": "inference",
    "NPE": "inference",
    "simulate": "inference",
    "sequential": "inference",
    "NRE": "inference",
    "ModelClassifier": "inference",
    "Posterior": "inference",
    "variational": "inference",
    "BoltzmannGenerator": "boltzmann",
    "FreeEnergy": "boltzmann",
    "free_energy_difference": "boltzmann",
    "Target": "targets",
    "FlowSampler": "flow_sampling",
    "run_chains": "samplers",
    "run_dynesty": "samplers",
    "run_emcee": "samplers",
    "FlowMove": "samplers",
    "RandomWalk": "samplers",
    "HMC": "samplers",
    "NUTS": "samplers",
    "MALA": "samplers",
    "Mixed": "samplers",
    "Stretch": "samplers",
    "IndependentMetropolis": "samplers",
    "smc": "samplers",
    "parallel_tempering": "samplers",
    "stochastic_flow": "samplers",
    "diffusion_sampler": "samplers",
    "distil": "distillation",
    "reflow": "distillation",
    "evidence": "model_evidence",
    "compare_models": "model_evidence",
    "average_models": "model_evidence",
    "savage_dickey": "model_evidence",
    "compare_chains": "diagnostics",
    "report": "reporting",
    "load_chains": "chain_files",
    "save_chains": "chain_files",
    "diagnose": "diagnostics",
    "sbc": "diagnostics",
    "expected_coverage": "diagnostics",
    "tarp": "diagnostics",
    "c2st": "diagnostics",
    "local_c2st": "diagnostics",
    "joint_c2st": "diagnostics",
    "mmd": "diagnostics",
    "misspecification": "diagnostics",
    "posterior_predictive": "diagnostics",
    "Evidence": "results",
    "Reliability": "results",
    "WeightedSamples": "results",
    "SMCResult": "results",
    "TemperedChains": "results",
    "Chains": "results",
    "FitHistory": "results",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sbi_flows' has no attribute {name!r}; public names: {', '.join(sorted(_PUBLIC))}")
    value = getattr(import_module(f"sbi_flows.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
