"""Make ``data/pta_ng15.npz``, the small summaries that let ``sbi-flows pta compare`` run with no network.

Run with ``SBI_FLOWS_DATA`` naming a folder of the full files, or with a network:

    SBI_FLOWS_DATA=../shared/data python scripts/make_embedded_pta.py

What is kept, from which source, and what it costs is written in ``data/README.md`` and tested in
``tests/physics/test_evidence_values.py``.
"""

from pathlib import Path

import numpy as np

from sbi_flows import datasets
from sbi_flows.physics.pta import DEFAULT_BINS, FreeSpectrum, SpectrumTable
from sbi_flows.physics.pta.embedded import FILE

STRIDE = 3  # grid points merged into one
RESOLUTION = 1e-3  # in ln density and in log10 spectrum; stored as integers
TABLES = ("sigw_gauss", "sigw_box", "stable_n", "meta_l", "meta_ls")


def coarsen(data: FreeSpectrum, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Every ``stride``-th grid point, with the density averaged over a triangle that reaches the neighbours: mass is kept."""
    weights = 1 - np.abs(np.arange(1 - stride, stride)) / stride
    weights /= weights.sum()
    padded = np.pad(np.exp(data.log_density), ((0, 0), (stride - 1, stride - 1)), mode="edge")
    smooth = np.stack([np.convolve(row, weights, mode="valid") for row in padded])
    return data.grid[::stride], np.log(smooth[:, ::stride])


def integers(values: np.ndarray) -> np.ndarray:
    return np.round(values / RESOLUTION).astype(np.int32)


def main() -> None:
    folder = {datasets.fetch(f"ng15_free_spectrum/{name}").parent for name in ("freqs.npy", "log10rhogrid.npy", "density.npy")}
    data = FreeSpectrum.from_folder(folder.pop()).first(DEFAULT_BINS)
    grid, log_density = coarsen(data, STRIDE)
    arrays = {
        "frequencies": data.frequencies,
        "grid_start": grid[0],
        "grid_step": (grid[-1] - grid[0]) / (len(grid) - 1),
        "log_density": integers(log_density),
        "degrees_of_freedom": np.loadtxt(datasets.fetch("sgwb_models/g_star.dat")),
        "tables": np.array(TABLES),
    }
    for name in TABLES:
        table = SpectrumTable.from_hdf5(datasets.fetch(f"sgwb_models/{name}.h5"))
        at_bins = table.at(data.frequencies)
        arrays[name] = integers(at_bins.values.numpy())
        arrays[f"{name}_axes"] = np.stack([at_bins.starts, at_bins.steps], axis=1)
        arrays[f"{name}_names"] = np.array(at_bins.names)
    path = Path(__file__).parents[1] / "data" / FILE
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
