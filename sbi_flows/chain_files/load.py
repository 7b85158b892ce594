"""``load_chains``: a path in, ``Chains`` out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sbi_flows._validation import choose
from sbi_flows.chain_files import formats
from sbi_flows.chain_files.reading import MEANINGS, Reading
from sbi_flows.chain_record import Chains, join

_LOG_COLUMNS = ("log_posterior", "log_likelihood", "weight")


def load_chains(
    path: str | os.PathLike,
    *,
    burn: float = 0,
    log_column: str | None = None,
    format: str | None = None,
    parameters: Sequence[str] | None = None,
) -> Chains:
    """Chains from the files that a sampler wrote.

    Parameters
    ----------
    path : str or Path
        A file, a folder, or the root that the names of several files begin with:

        ============  ==================================================================================================
        ptmcmc        ``chain_1.txt`` beside ``pars.txt`` (PTMCMCSampler, enterprise), or their folder
        la_forge      HDF5 of a ``la_forge.core.Core``
        getdist       root of ``root_1.txt`` or ``root.txt`` beside ``root.paramnames``, ``root.ranges``
        cobaya        root of ``root.1.txt``, ... beside ``root.updated.yaml``
        montepython   folder of ``*__1.txt``, ... beside ``log.param``
        emcee         HDF5 of ``emcee.backends.HDFBackend``
        dynesty       ``Results``, pickled (read without running code) or as ``numpy.savez(path, **results.asdict())``
        nested        root of ``root_dead-birth.txt`` (PolyChord) or ``root-dead-birth.txt`` (MultiNest) beside ``.paramnames``
        bilby         result in JSON or HDF5
        arviz         NetCDF of ``InferenceData``
        sbi_flows     HDF5 that ``run_chains(path=...)`` keeps its run in, whether it has ended or not
        table         CSV or parquet with named columns; ``chain``, ``draw``, ``weight``, ``log_posterior``, ``log_likelihood`` mean that
        ============  ==================================================================================================
    burn : float
        What to leave out at the start of each chain: below one a fraction of its rows, else a whole number of rows.
    log_column : {"posterior", "likelihood", "none"}, optional
        What the file's column of a log-density holds, **both normalised**: ln L + ln prior, or ln L alone; "none" leaves it out.
        Required where neither the format nor the column's name says it; overrules them where given. It is never guessed.
    format : str, optional
        A name of the table above; by default found out.
    parameters : sequence of str, optional
        Which columns are parameters, in this order; all others are ``derived``. By default what the format says.

    Returns
    -------
    Chains
        With weights, bounds, LaTeX labels and derived quantities where the files have them; one chain a file, walker or temperature-1
        ladder; ``info["files"]`` says which. Units are those of the files.

    Raises
    ------
    FileNotFoundError
        If nothing is there, or a file that tells what the columns are is missing.
    ValueError
        For an unknown format, a truncated file, lines of different length, NaN, a ``burn`` that leaves nothing, an ambiguous log column.
    ImportError
        If the format needs a package that is not installed.

    Examples
    --------
    >>> import tempfile, pathlib, numpy as np
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> draws = np.random.default_rng(0).normal(size=(500, 2))
    >>> log_p = -0.5 * (draws**2).sum(axis=1, keepdims=True)
    >>> np.savetxt(folder / "chain_1.txt", np.hstack([draws, log_p, log_p, 0 * log_p, 0 * log_p]))
    >>> _ = (folder / "pars.txt").write_text("gamma\\nlog10_A\\n")
    >>> load_chains(folder, burn=0.2)
    Chains(1 chains of 400 draws: gamma, log10_A)

    References
    ----------
    Lewis 2019, "GetDist: a Python package for analysing Monte Carlo samples", arXiv:1910.13970 (weights and -ln posterior in columns).
    """
    path = Path(path).expanduser()
    if log_column is not None:
        choose("log_column", log_column, MEANINGS)
    if path.name in ("", ".."):
        path = path.resolve()  # "." has no name that others could begin with
    read = formats.reader(path, format)
    try:
        reading = read(path)
    except (KeyError, IndexError) as error:
        layout = f"the layout of {format}" if format else "the layout its marks promise"
        raise ValueError(f"{path} is not in {layout}: {error} is missing. Is it whole, and is --format right?") from None
    return without_burn_in(assemble(reading, log_column, parameters), burn)


def assemble(reading: Reading, log_column: str | None = None, parameters: Sequence[str] | None = None) -> Chains:
    """A reading as ``Chains``, checked, and its meanings settled."""
    _check_lengths(reading)
    names = _sampled(reading, parameters)
    _check_finite(reading, [list(reading.names).index(name) for name in names])
    return _record(reading, _columns(reading, log_column), names)


def _sampled(reading: Reading, parameters: Sequence[str] | None) -> list[str]:
    names = list(reading.names)
    if parameters is None:
        left = [name for name in names if name not in reading.derived]
        if not left:
            raise ValueError(f"All columns of {reading.files[0]} are derived. Say with parameters= which are to be taken for parameters.")
        return left
    unknown = [name for name in parameters if name not in names]
    if unknown or not len(parameters):
        raise ValueError(f"Expected parameters among {', '.join(names)}; got {', '.join(unknown) or 'none'}.")
    return list(parameters)


def _check_lengths(reading: Reading) -> None:
    for name, values in reading.columns.items():
        if [len(v) for v in values] != [len(x) for x in reading.samples]:
            raise ValueError(f"Expected one {name} a draw in {reading.files[0]}; there are more or fewer. The file is damaged.")


def _check_finite(reading: Reading, sampled: list[int]) -> None:
    for chain, table in enumerate(reading.samples):
        x = table[:, sampled]
        wrong = ~np.isfinite(x).all(axis=1)
        if wrong.any():
            row = int(np.argmax(wrong))
            column = reading.names[sampled[int(np.argmax(~np.isfinite(x[row])))]]
            file = reading.files[chain] if len(reading.files) > chain else reading.files[0]
            raise ValueError(
                f"{int(wrong.sum())} of {len(wrong)} draws in {file} hold NaN or infinity (first: row {row + 1}, column {column}). Remove "
                "those rows, or mend what wrote them."
            )
        weights = reading.columns.get("weight")
        if weights is not None and not (np.isfinite(weights[chain]).all() and weights[chain].min() >= 0 and weights[chain].sum() > 0):
            raise ValueError(f"Expected finite weights in {reading.files[0]}, none negative and not all zero. The file is damaged.")


def _columns(reading: Reading, log_column: str | None) -> dict[str, list[np.ndarray]]:
    """Columns with the meaning of each log-density settled."""
    columns = dict(reading.columns)
    if log_column == "none":
        return {name: values for name, values in columns.items() if name not in ("log_posterior", "log_likelihood")}
    if reading.unsaid is not None:
        if log_column is None:
            raise ValueError(
                f"{reading.files[0]} has a column {reading.unsaid_name!r}, and nothing says what it holds. Say log_column='posterior' "
                "(ln L + ln prior, both normalised), 'likelihood' (ln L alone), or 'none' to leave it out "
                "(on the command line: --log-column)."
            )
        return {f"log_{log_column}": reading.unsaid, **columns}
    if log_column == "likelihood" and "log_likelihood" not in columns and "log_posterior" in columns:
        columns["log_likelihood"] = columns.pop("log_posterior")
    elif log_column == "posterior" and "log_posterior" not in columns and "log_likelihood" in columns:
        columns["log_posterior"] = columns.pop("log_likelihood")
    elif log_column is not None and f"log_{log_column}" not in columns:
        raise ValueError(f"Expected a column of ln {log_column} in {reading.files[0]}; there is no log-density at all.")
    return columns


def _record(reading: Reading, columns: Mapping[str, list[np.ndarray]], parameters: list[str]) -> Chains:
    names = list(reading.names)
    index = [names.index(name) for name in parameters]
    rest = [name for name in names if name not in parameters]

    def part(chain: int) -> Chains:
        def column(name: str) -> np.ndarray | None:
            return columns[name][chain][None] if name in columns else None

        x = reading.samples[chain]
        return Chains(
            samples=x[None][..., index],
            names=tuple(parameters),
            log_posterior=column("log_posterior"),
            log_likelihood=column("log_likelihood"),
            weights=column("weight"),
            stats={name: values[chain][None] for name, values in columns.items() if name not in _LOG_COLUMNS},
            derived={name: x[None][..., names.index(name)] for name in rest},
            ensemble=reading.ensemble,
            independent=reading.independent,
            bounds={name: ends for name, ends in reading.bounds.items() if name in names},
            labels=dict(reading.labels),
            info={
                "format": reading.format,
                "files": tuple(str(file) for file in reading.files),
                "notes": tuple(reading.notes),
                **reading.info,
            },
        )

    return join([part(chain) for chain in range(len(reading.samples))])


def without_burn_in(chains: Chains, burn: float) -> Chains:
    """Each chain without its first rows: a fraction of them below one, else that many."""
    if not np.isfinite(burn) or burn < 0 or (burn >= 1 and burn != int(burn)):
        raise ValueError(f"Expected burn as a fraction of each chain, 0 to below 1, or a whole number of rows; got {burn:g}.")
    if burn == 0:
        return chains
    if chains.independent:
        raise ValueError("Draws of nested sampling have no burn-in: leave burn out.")
    lengths = chains.lengths
    shortest = int(lengths.min())
    if burn >= shortest:
        raise ValueError(f"Expected burn below {shortest}, the rows of the shortest chain; got {burn:g}. Nothing of it would be left.")
    if burn >= 1:
        return chains.from_draws([int(burn)] * len(lengths))
    return chains.from_draws([int(burn * length) for length in lengths])


