"""``save_chains``: files that ``load_chains`` reads back to the last bit, and other programs too. Each is whole or is not there."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from sbi_flows._files import write_atomic
from sbi_flows.chain_files.tables import MARK
from sbi_flows.chain_record import Chains

SUFFIXES = (".csv", ".parquet", ".nc", ".txt")


def save_chains(chains: Chains, path: str | os.PathLike) -> Path:
    """Write chains to a file; its suffix says how.

    ============  =====================================================================================================
    ``.csv``      all columns by name, ``chain`` and ``draw`` first; bounds, labels and what is derived in a comment
    ``.parquet``  the same table, smaller and faster (needs pyarrow)
    ``.nc``       ArviZ NetCDF
    ``.txt``      GetDist's layout: ``root_1.txt``, ... with ``root.paramnames`` and ``root.ranges``, which holds no ln likelihood
    ============  =====================================================================================================

    Parameters
    ----------
    chains : Chains
    path : str or Path
        In a folder that exists. A file there is replaced only once the new one is complete.

    Returns
    -------
    Path
        What :func:`load_chains` reads: the file, or for ``.txt`` the root.

    Raises
    ------
    ValueError
        For another suffix, or names that a table cannot hold.
    FileNotFoundError, PermissionError, OSError
        If the folder does not exist, may not be written to, or the disk is full; what was at ``path`` is then as it was.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from sbi_flows import Chains, load_chains, save_chains
    >>> chains = Chains(np.random.default_rng(0).normal(size=(2, 50, 1)), ("a",), bounds={"a": (-9.0, 9.0)})
    >>> again = load_chains(save_chains(chains, tempfile.mkdtemp() + "/run.csv"))
    >>> bool((again.samples == chains.samples).all()), again.bounds
    (True, {'a': (-9.0, 9.0)})
    """
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise ValueError(f"Expected a file name that ends in one of {', '.join(SUFFIXES)}; got {path.name}.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"Expected an existing folder to write {path.name} in; {path.absolute().parent} does not exist.")
    if path.suffix == ".txt":
        return _save_getdist(chains, path.with_suffix(""))
    write = {".csv": _csv, ".parquet": _parquet, ".nc": _netcdf}[path.suffix]
    write_atomic(path, write(chains))
    return path


def table(chains: Chains) -> pd.DataFrame:
    """All there is of every draw, one row a draw: ``chain, draw``, parameters, derived quantities, weight, log-densities, stats."""
    drawn = ~np.isnan(chains.samples).all(axis=-1)
    chain, draw = np.nonzero(drawn)
    columns: dict[str, np.ndarray] = {"chain": chain, "draw": draw}
    contents = {name: chains.samples[..., i] for i, name in enumerate(chains.names)} | dict(chains.derived)
    known = {"weight": chains.weights, "log_posterior": chains.log_posterior, "log_likelihood": chains.log_likelihood}
    contents |= {name: values for name, values in known.items() if values is not None} | dict(chains.stats)
    clash = [name for name in (*chains.names, *chains.derived) if name in ("chain", "draw", *known) or "," in name]
    if clash:
        raise ValueError(f"Expected names that a table can hold; {', '.join(clash)} mean something else in it. Rename them.")
    return pd.DataFrame(columns | {name: values[drawn] for name, values in contents.items()})


def _description(chains: Chains) -> str:
    return json.dumps(chains.description() | {"stats": list(chains.stats)})


def _csv(chains: Chains) -> bytes:
    # Python's repr of a float, which pandas writes, is the shortest text that reads back as the same number.
    rows = table(chains).to_csv(index=False, na_rep="nan")
    return f"# {MARK} {_description(chains)}\n{rows}".encode()


def _parquet(chains: Chains) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise ImportError("Writing parquet needs pyarrow: pip install 'sbi_flows[chains]'. Or write .csv or .nc.") from None
    content = pyarrow.Table.from_pandas(table(chains), preserve_index=False)
    content = content.replace_schema_metadata({**(content.schema.metadata or {}), MARK: _description(chains)})
    buffer = io.BytesIO()
    parquet.write_table(content, buffer)
    return buffer.getvalue()


def _netcdf(chains: Chains) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        needed = 2 * 8 * table(chains).size + 2**20
        # HDF5 that runs out of space takes the interpreter down with it: look before.
        if shutil.disk_usage(folder).free < needed:
            raise OSError(errno.ENOSPC, "No space left to write NetCDF in", folder)
        file = Path(folder) / "chains.nc"
        chains.to_arviz().to_netcdf(str(file), engine="h5netcdf")
        return file.read_bytes()


def _save_getdist(chains: Chains, root: Path) -> Path:
    if chains.log_posterior is None:
        raise ValueError("GetDist's layout has a column of -ln posterior, which these chains do not know. Write .csv, .parquet or .nc.")
    for number, part in enumerate(chains.split(), start=1):
        weights = np.ones(part.samples.shape[1]) if part.weights is None else part.weights[0]
        log_p = np.zeros(0) if part.log_posterior is None else part.log_posterior[0]
        rows = np.column_stack([weights, -log_p, part.samples[0], *(values[0] for values in part.derived.values())])
        buffer = io.StringIO()
        np.savetxt(buffer, rows, fmt="%.17g")
        write_atomic(root.with_name(f"{root.name}_{number}.txt"), buffer.getvalue().encode())
    names = [*chains.names, *(f"{name}*" for name in chains.derived)]
    lines = [f"{name}  {chains.labels.get(name.rstrip('*'), '')}".rstrip() for name in names]
    write_atomic(root.with_name(f"{root.name}.paramnames"), ("\n".join(lines) + "\n").encode())
    ranges = [f"{name}  {_end(low)}  {_end(high)}\n" for name, (low, high) in chains.bounds.items()]
    write_atomic(root.with_name(f"{root.name}.ranges"), "".join(ranges).encode())
    return root


def _end(value: float) -> str:
    return "N" if np.isinf(value) else repr(float(value))
