"""The files that ``run_chains(path=...)`` writes: the draws made so far, whether the run has ended or not."""

from __future__ import annotations

from pathlib import Path

from sbi_flows.chain_files.reading import Reading
from sbi_flows.samplers.files import read_run
from sbi_flows.samplers.record import Record, remarks


def read(path: Path) -> Reading:
    """Every chain with the density that was sampled and what the kernel told a draw."""
    description, about, done, arrays = read_run(path)
    thin, n_warmup, n_draws, names = (description[key] for key in ("thin", "n_warmup", "n_draws", "names"))
    if not about.get("same_parameters", True):
        raise ValueError(
            f"{path} holds points of a unit cube, not the parameters: these need the target. Call run_chains with the same arguments and "
            "path: it reads the file and returns them."
        )
    n = (done - n_warmup) // thin
    if n < 1:
        raise ValueError(f"The run in {path} has no draws yet: {done} of its {n_warmup} warm-up steps are done.")
    n_chains = description["n_chains"]
    record = Record(n_chains, n_draws, thin, len(names))
    record.arrays = arrays
    stats = {name: values[:, :n] for name, values in record.stats().items()}
    ensemble = about.get("ensemble", False)
    troubles, notes = remarks(stats, int(arrays["invalid"].sum()), n * thin * n_chains, ensemble)
    if n < n_draws:
        notes.append(f"the run has not ended: {n} of {n_draws} draws a chain are there")
    return Reading(
        format="sbi_flows",
        files=[path],
        names=names,
        samples=list(arrays["samples"].transpose(1, 0, 2)[:, :n]),
        columns={"log_posterior": list(arrays["log_prob"].T[:, :n]), **{name: list(values) for name, values in stats.items()}},
        ensemble=ensemble,
        notes=[*troubles, *notes, "the density that was sampled was taken for ln L + ln prior, both normalised, as evidence needs it"],
        info={"sampler": description["kernel"], "n_warmup": n_warmup, "thin": thin, **record.costs()},
    )
