"""The full data where they are at hand: ``SBI_FLOWS_DATA``, or ``../shared/data`` beside the clone."""

import os
from pathlib import Path

import pytest

from sbi_flows.physics.pta import FreeSpectrum, FreeSpectrumTarget, SpectrumTable, embedded_degrees_of_freedom, get_model

pytest_plugins = ["tests.repeatable"]

@pytest.fixture(scope="session")
def full_data() -> Path:
    folder = Path(os.environ.get("SBI_FLOWS_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / "ng15_free_spectrum" / "density.npy").is_file():
        pytest.skip("the full data are absent: SBI_FLOWS_DATA is not set and ../shared/data does not exist")
    return folder


@pytest.fixture(scope="session")
def full_target(full_data):
    """A function from a model's name to its target on the full tables, first 14 bins."""
    data = FreeSpectrum.from_folder(full_data / "ng15_free_spectrum").first(14)

    def build(name: str) -> FreeSpectrumTarget:
        table = get_model(name).table
        tables = {table: SpectrumTable.from_hdf5(full_data / "sgwb_models" / f"{table}.h5").at(data.frequencies)} if table else {}
        return FreeSpectrumTarget(get_model(name), data, embedded_degrees_of_freedom(), tables)

    return build
