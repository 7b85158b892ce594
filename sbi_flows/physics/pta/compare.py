"""Rank source models of the gravitational-wave background on a free spectrum."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sbi_flows._files import write_atomic
from sbi_flows._validation import choose
from sbi_flows.physics.pta.embedded import DEFAULT_BINS, embedded_free_spectrum, pta_target
from sbi_flows.physics.pta.figures import spectrum_figure
from sbi_flows.physics.pta.free_spectrum import FreeSpectrum
from sbi_flows.physics.pta.models import DEFAULT_MODELS, MODELS, get_model
from sbi_flows.physics.pta.pipeline import Job, ModelResult, finished_results, run_model
from sbi_flows.physics.pta.workers import Outcome, run_here, run_jobs
from sbi_flows.plots import evidence_bars, save_figure

if TYPE_CHECKING:
    import pandas

REFERENCE = "smbhb"
COLUMNS = (
    "model",
    "log_z",
    "log_z_err",
    "log_bf",
    "log_bf_err",
    "reliable",
    "reasons",
    "hellinger_mean",
    "hellinger_max",
    "seconds",
    "hellinger_floor",
    "method",
    "n_bins",
)


@dataclass(frozen=True)
class Comparison:
    """Finished models and the ones left out.

    Attributes
    ----------
    results : dict of str to ModelResult
        In the order asked for; after these, what earlier runs with the same settings finished in the output folder.
    skipped : dict of str to str
        Why a model has no result.
    data : FreeSpectrum
        The bins that entered.
    """

    results: Mapping[str, ModelResult]
    skipped: Mapping[str, str]
    data: FreeSpectrum = field(repr=False)

    def records(self) -> list[dict]:
        """One plain record a model, with keys :data:`COLUMNS`; ``log_bf`` is None where SMBHB has no result."""
        reference = self.results.get(REFERENCE)
        return [_record(result, reference) for result in self.results.values()]

    def to_dataframe(self) -> pandas.DataFrame:
        """The records as rows."""
        import pandas as pd

        return pd.DataFrame(self.records(), columns=list(COLUMNS))

    def write(self, folder: Path) -> None:
        """``comparison.json`` and ``comparison.csv`` into an existing folder, each replaced whole."""
        write_atomic(folder / "comparison.json", json.dumps(self.records(), indent=1, allow_nan=False).encode())
        table = self.to_dataframe()
        table["reasons"] = table["reasons"].map("; ".join)
        write_atomic(folder / "comparison.csv", table.to_csv(index=False).encode())

    def write_figures(self, folder: Path) -> list[Path]:
        """``spectrum.png``, ``evidence.png`` and the same as PDF."""
        if not self.results:
            return []
        bands = {name: np.array(result.bands) for name, result in self.results.items()}
        figures = {"spectrum": spectrum_figure(self.data, bands)}
        if REFERENCE in self.results:
            titles = {name: MODELS[name].title for name in self.results}
            figures["evidence"] = evidence_bars(self.to_dataframe(), reference=MODELS[REFERENCE].title, titles=titles)
        return [save_figure(figure, folder / f"{name}.{end}") for name, figure in figures.items() for end in ("png", "pdf")]


def compare(
    models: Sequence[str] = DEFAULT_MODELS,
    data: FreeSpectrum | str | Path | None = None,
    *,
    n_bins: int | None = None,
    output: str | Path | None = None,
    seed: int = 0,
    n_jobs: int = 1,
    quick: bool = False,
    sampler: str = "emcee",
    on_stage: Callable[[str, str], None] | None = None,
) -> Comparison:
    """Evidence of each model, with a reference posterior by emcee and the flow's distance from it.

    Parameters
    ----------
    models : sequence of str
        Names of :data:`MODELS`.
    data : FreeSpectrum, path, or None
        A folder of ``freqs.npy``, ``log10rhogrid.npy`` and ``density.npy``; None is the embedded NANOGrav 15-year summary.
    n_bins : int, optional
        How many of the lowest bins enter: 14, or all where there are fewer.
    output : path, optional
        Folder for tables, figures and chains. Models that a run with the same settings finished there are not run again, and the
        tables and figures hold them as well, asked for or not.
    seed : int
    n_jobs : int
        Processes. With more than one, a script must guard its start by ``if __name__ == "__main__":``.
    quick : bool
        Fewer draws, for a first look.
    sampler : {"emcee", "flow"}
        What samples the posterior: emcee, or :class:`sbi_flows.FlowSampler`, whose evidence comes on the way.
    on_stage : callable, optional
        Told ``(model, what it is doing)``.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError, FileNotFoundError
        For an unknown model, data of the wrong shape, or an output folder with results of other settings.
    KeyboardInterrupt
        Passed on after what is finished has been written.

    Examples
    --------
    >>> from sbi_flows.physics.pta.compare import compare
    >>> compare(["smbhb", "power_law"], quick=True).to_dataframe()  # doctest: +SKIP
    """
    names = list(dict.fromkeys(get_model(name).name for name in models))
    if not names:
        raise ValueError(f"Expected at least one model; the models are {', '.join(MODELS)}.")
    choose("sampler", sampler, ["emcee", "flow"])
    if n_jobs < 1 or seed < 0:
        raise ValueError(f"Expected n_jobs of at least 1 and a seed of at least 0; got n_jobs={n_jobs}, seed={seed}.")
    data = FreeSpectrum.from_folder(data) if isinstance(data, str | Path) else data
    full = embedded_free_spectrum() if data is None else data
    n_bins = min(DEFAULT_BINS, len(full.frequencies)) if n_bins is None else n_bins
    if data is None and n_bins > len(full.frequencies):
        raise ValueError(
            f"Expected between 1 and {len(full.frequencies)} bins, as many as the embedded summary holds; got {n_bins}. For more give a "
            "folder with all 30 bins of the NANOGrav 15-year release (Zenodo 10495907), or of another array: --data DIR."
        )
    used = full.first(n_bins)
    folder = None if output is None else Path(output)
    tell = on_stage or (lambda model, stage: None)

    if folder is not None:
        _make_folder(folder)
    jobs = {name: Job(name, data, n_bins, seed, quick, folder / "models" / name if folder else None, sampler) for name in names}
    results = {} if folder is None else finished_results(folder)
    _check_settings(folder, results, jobs[names[0]])
    for name in names:
        if name in results:
            tell(name, "done (from an earlier run)")
    skipped: dict[str, str] = {}

    def so_far() -> Comparison:
        ordered = {name: results[name] for name in dict.fromkeys([*names, *results]) if name in results}
        return Comparison(ordered, {name: skipped[name] for name in names if name in skipped}, used)

    def receive(outcome: Outcome[Job]) -> None:
        name = outcome.job.model
        if outcome.error is None:
            results[name] = outcome.result
            tell(name, "done")
        else:
            skipped[name] = outcome.error
            tell(name, "skipped")
        if folder is not None:
            so_far().write(folder)

    # Most parameters first: the longest jobs must not begin last.
    waiting = sorted((jobs[name] for name in names if name not in results), key=lambda job: -get_model(job.model).prior.features)
    waiting = _reachable(waiting, receive)
    n_jobs = min(n_jobs, len(waiting))
    try:
        if n_jobs > 1:
            run_jobs(run_model, waiting, n_jobs, lambda job, text: tell(job.model, text), receive)
        else:
            run_here(run_model, waiting, lambda job, text: tell(job.model, text), receive)
    finally:
        if folder is not None:
            so_far().write(folder)
            so_far().write_figures(folder)
    return so_far()


def _make_folder(folder: Path) -> None:
    """The output folder, now rather than after minutes of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"Cannot write results to {folder}: {error.strerror}. Choose another --output.") from error


def _check_settings(folder: Path | None, results: Mapping[str, ModelResult], job: Job) -> None:
    """Results of other settings are neither mixed into a table nor overwritten: both would happen unseen."""
    for name, stored in results.items():
        now = {**job.settings, "model": name}
        differing = [key for key in now if stored.settings.get(key) != now[key]]
        if differing:
            what = ", ".join(f"{key} {_short(stored.settings.get(key))} there and {_short(now[key])} now" for key in differing)
            raise ValueError(
                f"{folder} holds {name} with other settings: {what}. Choose another --output, or remove that folder if its results "
                "are no longer wanted."
            )


def _short(setting) -> str:
    """Checksums of data are long."""
    return setting[:12] if isinstance(setting, str) else repr(setting)


def _reachable(jobs: list[Job], receive: Callable[[Outcome[Job]], None]) -> list[Job]:
    """The jobs whose tables are at hand; a missing one is fetched here, once, before processes ask for it together."""
    ready = []
    for job in jobs:
        try:
            pta_target(job.model, job.data, job.n_bins)
        except (ConnectionError, ValueError) as error:
            receive(Outcome(job, error=str(error)))
        else:
            ready.append(job)
    return ready


def _record(result: ModelResult, reference: ModelResult | None) -> dict:
    if reference is None:
        log_bf, log_bf_err = None, None
    elif result.model == reference.model:
        log_bf, log_bf_err = 0.0, 0.0
    else:
        log_bf = result.log_z - reference.log_z
        log_bf_err = float(np.hypot(result.log_z_err, reference.log_z_err))
    values = {
        "model": result.model,
        "log_z": result.log_z,
        "log_z_err": result.log_z_err,
        "log_bf": log_bf,
        "log_bf_err": log_bf_err,
        "reliable": result.reliable,
        "reasons": result.reasons,
        "hellinger_mean": result.hellinger_mean,
        "hellinger_max": result.hellinger_max,
        "seconds": result.seconds,
        "hellinger_floor": result.hellinger_floor,
        "method": result.method,
        "n_bins": result.settings["n_bins"],
    }
    return {key: _plain(value) for key, value in values.items()}


def _plain(value):
    """JSON has no NaN or infinity: a number that is not finite becomes null."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
