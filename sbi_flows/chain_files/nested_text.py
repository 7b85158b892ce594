"""Dead and live points of PolyChord and MultiNest: parameters, ln likelihood, ln likelihood at birth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sbi_flows.chain_files.getdist_text import read_paramnames, read_ranges
from sbi_flows.chain_files.reading import Reading
from sbi_flows.chain_files.text import read_table
from sbi_flows.model_evidence import BIRTH, N_LIVE, live_points, log_weights

# The files of dead and live points, and the columns of each from the right: ln L and ln L at birth.
_LAYOUTS = {
    "polychord": (("_dead-birth.txt", (-2, -1)), ("_phys_live-birth.txt", (-2, -1))),
    "multinest": (("dead-birth.txt", (-4, -3)), ("phys_live-birth.txt", (-3, -2))),
}

_FROM_THE_PRIOR = -1e29  # PolyChord and MultiNest write -1e30 and below for a birth without contour


def find(path: Path) -> tuple[Path, str] | None:
    """Root and layout; ``path`` may be the file of the dead points or the root."""
    for layout, ((dead, _), _) in _LAYOUTS.items():
        root = path.with_name(path.name.removesuffix(dead)) if path.name.endswith(dead) and path.name != dead else path
        if root.with_name(root.name + dead).is_file():
            return root, layout
    return None


def recognise(path: Path) -> bool:
    return find(path) is not None


def read(path: Path) -> Reading:
    """Dead points and, where they are there, the last live ones, by ascending ln likelihood."""
    found = find(path)
    if found is None:
        raise FileNotFoundError(f"Expected {path.name}_dead-birth.txt (PolyChord) or {path.name}dead-birth.txt (MultiNest); there is none.")
    root, layout = found
    sidecar = _sidecar(root)
    names, derived, labels = read_paramnames(sidecar)
    parts, files = [], []
    for suffix, (at, birth_at) in _LAYOUTS[layout]:
        file = root.with_name(root.name + suffix)
        if not file.is_file():
            continue
        table = read_table(file)
        if table.shape[1] != len(names) - at:
            raise ValueError(
                f"{sidecar.name} names {len(names)} parameters, so {file} must have {len(names) - at} columns; it has {table.shape[1]}. "
                "They are not of one run."
            )
        parts.append(np.column_stack([table[:, : len(names)], table[:, at], table[:, birth_at]]))
        files.append(file)
    # PolyChord lists points that died last in both files.
    points = np.unique(np.concatenate(parts), axis=0)
    points = points[np.argsort(points[:, -2], kind="stable")]
    log_l, birth = points[:, -2], np.where(points[:, -1] <= _FROM_THE_PRIOR, -np.inf, points[:, -1])
    n_live = live_points(log_l, birth)
    if n_live.min() < 1:
        row = int(np.argmin(n_live)) + 1
        raise ValueError(f"Births and deaths in {root.name} do not match: no point is alive at death {row}. The files are damaged.")
    weights = log_weights(log_l, n_live)
    absent = "the file of the last live points is absent: ln Z is right only if the sampler wrote them among the dead ones"
    return Reading(
        format="nested",
        files=files,
        names=names,
        samples=[points[:, :-2]],
        columns={
            "weight": [np.exp(weights - weights.max())],
            "log_likelihood": [log_l],
            BIRTH: [birth],
            N_LIVE: [n_live.astype(np.float64)],
        },
        derived=derived,
        bounds=read_ranges(root.with_name(root.name + ".ranges")),
        labels=labels,
        independent=True,
        notes=[] if len(files) > 1 else [absent],
        info={"sampler": layout},
    )


def _sidecar(root: Path) -> Path:
    path = root.with_name(root.name + ".paramnames")
    if not path.is_file():
        raise FileNotFoundError(f"Expected {path} beside the dead points: one line a parameter, 'name  label', derived ones marked *.")
    return path
