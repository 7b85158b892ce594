"""The text chains of CosmoMC, GetDist and cobaya: weight, -ln posterior, parameters; names and bounds in files beside them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from sbi_flows.chain_files.reading import Reading
from sbi_flows.chain_files.text import header_names, read_lines, read_table

_NUMBERED = re.compile(r"(?P<root>.+)[._](?P<chain>\d+)\.txt")
COBAYA_START = ["weight", "minuslogpost"]


def find(path: Path) -> tuple[Path, list[Path]]:
    """The root and its chain files: of a root all there are, of a file itself."""
    if path.is_file():
        match = _NUMBERED.fullmatch(path.name)
        if path.suffix == ".txt":
            return path.with_name(match["root"] if match else path.stem), [path]
        return path, []
    folder = path.parent
    if not folder.is_dir():
        return path, []
    numbered = []
    for file in folder.iterdir():
        match = _NUMBERED.fullmatch(file.name)
        if match and match["root"] == path.name and file.is_file():
            numbered.append((int(match["chain"]), file))
    single = path.with_name(path.name + ".txt")
    return path, [file for _, file in sorted(numbered)] or ([single] if single.is_file() else [])


def _beside(root: Path, suffix: str) -> Path:
    return root.with_name(root.name + suffix)


def recognise(path: Path) -> bool:
    root, files = find(path)
    if not files:
        return False
    return _beside(root, ".paramnames").is_file() or header_names(files[0])[:2] == COBAYA_START


def read(path: Path) -> Reading:
    """All chains of a root, or the one file."""
    root, files = find(path)
    return _read_cobaya(root, files) if header_names(files[0])[:2] == COBAYA_START else _read_getdist(root, files)


def _refuse_nested(root: Path, file: Path) -> None:
    """PolyChord and MultiNest write tables that look the same but hold -2 ln likelihood."""
    marks = (".stats", "_equal_weights.txt", "stats.dat", "ev.dat", "post_equal_weights.dat")
    found = next((root.name + mark for mark in marks if root.with_name(root.name + mark).is_file()), None)
    if found is not None:
        raise ValueError(
            f"{file} is of a nested sampler ({found} lies beside it): its second column is -2 ln likelihood. Read the files of dead "
            f"points, {root.name}_dead-birth.txt (PolyChord) or {root.name}dead-birth.txt (MultiNest), which hold more."
        )


def _read_getdist(root: Path, files: list[Path]) -> Reading:
    _refuse_nested(root, files[0])
    names, derived, labels = read_paramnames(_beside(root, ".paramnames"))
    tables = [read_table(file) for file in files]
    for file, table in zip(files, tables, strict=True):
        if table.shape[1] != len(names) + 2:
            raise ValueError(
                f"{root.name}.paramnames names {len(names)} parameters, so {file} must have {len(names) + 2} columns (weight, "
                f"-ln posterior, parameters); it has {table.shape[1]}. They are not of one run."
            )
    return Reading(
        format="getdist",
        files=files,
        names=names,
        samples=[table[:, 2:] for table in tables],
        columns={"weight": [table[:, 0] for table in tables], "log_posterior": [-table[:, 1] for table in tables]},
        derived=derived,
        bounds=read_ranges(_beside(root, ".ranges")),
        labels=labels,
        notes=["the second column was read as -ln posterior, as the format defines it; whether the prior is normalised, it does not say"],
    )


def read_paramnames(path: Path) -> tuple[list[str], list[str], dict[str, str]]:
    """Names, which of them are derived (marked *), and LaTeX labels."""
    names, derived, labels = [], [], {}
    for line in read_lines(path):
        name, *rest = line.split(None, 1)
        if name.endswith("*"):
            name = name[:-1]
            derived.append(name)
        names.append(name)
        if rest:
            labels[name] = rest[0].strip()
    return names, derived, labels


def read_ranges(path: Path) -> dict[str, tuple[float, float]]:
    """Ends of parameters, one a line: name, low, high; N is no end."""
    if not path.is_file():
        return {}
    bounds = {}
    for line in read_lines(path):
        name, *ends = line.split()
        if len(ends) < 2:
            raise ValueError(f"Expected 'name low high' in every line of {path}; got {line!r}.")
        low, high = (_end(entry, default, path) for entry, default in zip(ends, (-np.inf, np.inf), strict=False))
        if low < high:  # a parameter fixed at one value has two equal ends
            bounds[name] = (low, high)
    return bounds


def _end(entry: str, default: float, path: Path) -> float:
    if entry in ("N", "None"):
        return default
    try:
        return float(entry)
    except ValueError:
        raise ValueError(f"Expected a number or N in {path}; got {entry!r}.") from None


def _read_cobaya(root: Path, files: list[Path]) -> Reading:
    """Names are in the header; the .yaml beside says which of them were sampled, and their priors."""
    header = header_names(files[0])
    for file in files:
        if header_names(file) != header:
            raise ValueError(f"{file} has other columns than {files[0]}: they are not chains of one run.")
    tables = [read_table(file) for file in files]
    wrong = next((file for file, table in zip(files, tables, strict=True) if table.shape[1] != len(header)), None)
    if wrong is not None:
        raise ValueError(f"The header of {wrong} names {len(header)} columns, but its rows are longer or shorter. Write it again.")
    params, sampler = _cobaya_input(root)
    sampled = [name for name, entry in params.items() if isinstance(entry, dict) and "prior" in entry]
    absent = [name for name in sampled if name not in header]
    if absent:
        raise ValueError(f"{root.name}.*.yaml samples {', '.join(absent)}, of which {files[0]} has no column: they are not of one run.")
    kept = [name for name in header[2:] if not name.startswith(("minuslogprior", "chi2"))]
    unknown = [name for name in kept if name not in params]
    if unknown:
        raise ValueError(
            f"{files[0]} has columns {', '.join(unknown)}, of which {root.name}.*.yaml knows nothing: that file is truncated, or of "
            "another run."
        )
    index = [header.index(name) for name in kept]
    columns = {"weight": [table[:, 0] for table in tables], "log_posterior": [-table[:, 1] for table in tables]}
    if "minuslogprior" in header:
        prior = header.index("minuslogprior")
        columns["log_likelihood"] = [table[:, prior] - table[:, 1] for table in tables]
    labels = {name: str(entry["latex"]) for name, entry in params.items() if isinstance(entry, dict) and "latex" in entry and name in kept}
    return Reading(
        format="cobaya",
        files=files,
        names=kept,
        samples=[table[:, index] for table in tables],
        columns=columns,
        derived=[name for name in kept if name not in sampled],
        bounds={name: ends for name in sampled if (ends := _prior_ends(params[name]["prior"])) is not None},
        labels=labels,
        independent=sampler == "polychord",
        info={"sampler": sampler},
    )


def _cobaya_input(root: Path) -> tuple[dict[str, Any], str]:
    """The block ``params`` and the name of the sampler."""
    candidates = [_beside(root, suffix) for suffix in (".updated.yaml", ".input.yaml")]
    path = next((file for file in candidates if file.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"Expected {candidates[0].name} or {candidates[1].name} beside the chains in {root.parent}: it says which columns were "
            "sampled. Copy it from the run's output folder."
        )
    try:
        import yaml
    except ImportError:
        raise ImportError(f"Reading {path.name} needs PyYAML: pip install 'sbi_flows[chains]'.") from None

    # Tags of python objects (lambdas of external functions) become nothing: none is run.
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("", lambda *_: None)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not a valid YAML file ({error}).") from None
    params = content.get("params") if isinstance(content, dict) else None
    if not isinstance(params, dict):
        raise ValueError(f"Expected a block 'params' in {path}; there is none.")
    if "sampler" not in content:
        raise ValueError(f"Expected a block 'sampler' in {path}; there is none: the file is truncated. Copy it again.")
    sampler = content["sampler"]
    return params, next(iter(sampler), "") if isinstance(sampler, dict) else str(sampler or "")


def _prior_ends(prior: Any) -> tuple[float, float] | None:
    """Ends of a cobaya prior that is uniform: a pair, or min and max without another distribution."""
    if isinstance(prior, list | tuple) and len(prior) == 2:
        return float(prior[0]), float(prior[1])
    if isinstance(prior, dict) and prior.get("dist", "uniform") == "uniform" and {"min", "max"} <= set(prior):
        return float(prior["min"]), float(prior["max"])
    return None
