"""Registry of public data: where each file comes from, its checksum, and how to get it.

A file is looked for in the folder that ``SBI_FLOWS_DATA`` names, then in pooch's cache, then at its public address; every copy is
checked against its SHA-256.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pooch

VARIABLE = "SBI_FLOWS_DATA"

_RAW = "https://raw.githubusercontent.com"
_PANDORA = f"{_RAW}/NimaLaal/pandora/ebd614f41e8c71ff286f5941ba16733aef85e49f/data"
_BAO = f"{_RAW}/CobayaSampler/bao_data/bb0c1c9009dc76d1391300e169e8df38fd1096db/desi_bao_dr2"
_HARMONIC = f"{_RAW}/astro-informatics/harmonic/dbb9feab66a71224a67b001314b926247abb2af3/examples/data"
_DEM = f"{_RAW}/jarridrb/DEM/8e9531987b0bfe4e770d5009c10a56b8434c0f0a/data"
# The tables of Zenodo record 8084351, byte for byte, in the repository they were developed in.
_PTARCADE = f"{_RAW}/andrea-mitridate/PTArcade/16cbfde421e502408bd19fc6c1e34c86effd2ec5/inputs/models/models_data"
_FREE_SPECTRUM = "https://zenodo.org/records/10495907/files/ng15_30f_fs%7Bhd%7D_ceffyl.zip"

_CITE_FREE_SPECTRUM = (
    "Lamb, Taylor & van Haasteren 2023, Zenodo 10495907; "
    "NANOGrav 15-year data set (Agazie et al. 2023, arXiv:2306.16213), CC BY 4.0"
)
_CITE_MODELS = "PTArcade models 1.0.0, Zenodo 8084351 (Mitridate et al. 2023, arXiv:2306.16377), MIT"
_CITE_TIMING = "github NimaLaal/pandora, MIT; NANOGrav 15-year data set, CC BY 4.0"
_CITE_BAO = "DESI DR2 (arXiv:2503.14738) by github CobayaSampler/bao_data"
_CITE_EXAMPLES = "Ripley 1996; Williams 1959; as distributed with github astro-informatics/harmonic"
_CITE_MOLECULES = "github jarridrb/DEM, MIT"


@dataclass(frozen=True)
class Dataset:
    """One public file.

    Attributes
    ----------
    name : str
        ``folder/file``, also its place under ``SBI_FLOWS_DATA``.
    url : str
        Public address of the file, or of the zip archive that holds it.
    sha256 : str
        Of the file itself.
    citation : str
    """

    name: str
    url: str
    sha256: str
    citation: str

    @property
    def in_archive(self) -> bool:
        return self.url.endswith(".zip")


def _entry(name: str, url: str, sha256: str, citation: str) -> tuple[str, Dataset]:
    return name, Dataset(name, url, sha256, citation)


REGISTRY = dict(
    [
        _entry(
            "ng15_free_spectrum/density.npy",
            _FREE_SPECTRUM,
            "2845ec3c5af217a47451c31fea613cbb92cd017f1b71db180c9f51b4656f1eee",
            _CITE_FREE_SPECTRUM,
        ),
        _entry(
            "ng15_free_spectrum/freqs.npy",
            _FREE_SPECTRUM,
            "1189fd8c985ffa30d977a309fe82ae08f2300dd893f981233058f5b70e933aaa",
            _CITE_FREE_SPECTRUM,
        ),
        _entry(
            "ng15_free_spectrum/log10rhogrid.npy",
            _FREE_SPECTRUM,
            "ac1710e28fe897360732f2c72d006ce11c0b5a1c700e924c86b1f1752bc93a48",
            _CITE_FREE_SPECTRUM,
        ),
        _entry(
            "sgwb_models/g_star.dat",
            f"{_PTARCADE}/g_star.dat",
            "33df10ea30302cda2d83eeb5bc8067be5b2224ff95ec86964dce331877c05ff2",
            _CITE_MODELS,
        ),
        _entry(
            "sgwb_models/meta_l.h5",
            f"{_PTARCADE}/meta_l.h5",
            "668df905a114f253d50c991367fa3fd7c83715a9557ffad1460985fe66b51180",
            _CITE_MODELS,
        ),
        _entry(
            "sgwb_models/meta_ls.h5",
            f"{_PTARCADE}/meta_l%2Bs.h5",
            "3f817fcfdc704f26bc43f2ed5fafd5c33b53ba64fd503d64bae6a7e298c1bd29",
            _CITE_MODELS,
        ),
        _entry(
            "sgwb_models/sigw_box.h5",
            f"{_PTARCADE}/sigw_box.h5",
            "2a5772ad23303bab4e379090df00de600436f629b4baf7bd4a9cae35d0d53e3a",
            _CITE_MODELS,
        ),
        _entry(
            "sgwb_models/sigw_gauss.h5",
            f"{_PTARCADE}/sigw_log.h5",
            "90e972f7247aaa7228669100ea559b26c05f7ea9ea8a3a07633193803346b063",
            _CITE_MODELS,
        ),
        _entry(
            "sgwb_models/stable_n.h5",
            f"{_PTARCADE}/bos.h5",
            "3137f8e8358aec7ea616dd088bf30b3f94d075aa3b04cbb3b990451b6fb8e7bd",
            _CITE_MODELS,
        ),
        _entry(
            "ng15_timing/15yr_TNT_and_TNr_30Int_5common.npz",
            f"{_PANDORA}/15yr_TNT_and_TNr_30Int_5common.npz",
            "ed233d04e199b0f531311f4b58271b5c978f1f1db6515e3108a4188f243660eb",
            _CITE_TIMING,
        ),
        _entry(
            "ng15_timing/15yr_Tspan.npy",
            f"{_PANDORA}/15yr_Tspan.npy",
            "c78c0ad84c3d80c085fba27bac0e1a14511fc0fa1a7cfc05332090df90fad449",
            _CITE_TIMING,
        ),
        _entry(
            "ng15_timing/15yr_pulsar_positions.npy",
            f"{_PANDORA}/15yr_pulsar_positions.npy",
            "10d4decbf7781ff81ed4b5c55303320fd4a7f47452893e207b9b0dec5e10ba62",
            _CITE_TIMING,
        ),
        _entry(
            "ng15_timing/15yr_wn_dict.json",
            f"{_PANDORA}/15yr_wn_dict.json",
            "85da2a6e8c727b30a502e8247378273b4ffd782e32103716ba8791e7481828ca",
            _CITE_TIMING,
        ),
        _entry(
            "desi_dr2_bao/desi_gaussian_bao_ALL_GCcomb_mean.txt",
            f"{_BAO}/desi_gaussian_bao_ALL_GCcomb_mean.txt",
            "9ac154ab583ce759c0f7eef3c978c7c70a6ead2d18774caceadf1a350a640585",
            _CITE_BAO,
        ),
        _entry(
            "desi_dr2_bao/desi_gaussian_bao_ALL_GCcomb_cov.txt",
            f"{_BAO}/desi_gaussian_bao_ALL_GCcomb_cov.txt",
            "252a143274c8a07c78694c119617d36594f6d7965d00319ca611c6ffb886e509",
            _CITE_BAO,
        ),
        _entry(
            "bayes_examples/pima_indian.dat",
            f"{_HARMONIC}/pima_indian.dat",
            "abc9d4165888b55f4042237a0b93703aa82237e24864f329453c63753e5a1e0b",
            _CITE_EXAMPLES,
        ),
        _entry(
            "bayes_examples/radiata_pine.dat",
            f"{_HARMONIC}/radiata_pine.dat",
            "588fefc6bbf0057366ff6975d8411e5312e4ace3602d3003cf17dfc2ef5a9370",
            _CITE_EXAMPLES,
        ),
        _entry(
            "molecules/test_split_DW4.npy",
            f"{_DEM}/test_split_DW4.npy",
            "ef4466793b3502b2fe405aad22d3ae43b34827971594c5bab28684771d828244",
            _CITE_MOLECULES,
        ),
        _entry(
            "molecules/test_split_LJ13-1000.npy",
            f"{_DEM}/test_split_LJ13-1000.npy",
            "c5064a56282e96441f1ff2f1babb13c241a99cd1077aee3667951d06055a785b",
            _CITE_MOLECULES,
        ),
    ]
)


def names() -> list[str]:
    """Every entry of the registry."""
    return sorted(REGISTRY)


def where(name: str) -> Path | None:
    """Where a copy of ``name`` already lies on this machine (mirror first, then cache), or None; nothing is downloaded."""
    dataset = _lookup(name)
    for path in (_mirror_path(name), _cache_path(dataset)):
        if path is not None and path.is_file():
            return path
    return None


def fetch(name: str) -> Path:
    """The file of that name, from the mirror, the cache or its public address, with its checksum verified.

    Parameters
    ----------
    name : str
        An entry of :func:`names`, such as ``"sgwb_models/meta_l.h5"``.

    Raises
    ------
    ValueError
        For an unknown entry, or a copy whose checksum differs.
    ConnectionError
        When no copy can be reached.

    Examples
    --------
    >>> from sbi_flows import datasets
    >>> path = datasets.fetch("desi_dr2_bao/desi_gaussian_bao_ALL_GCcomb_mean.txt")  # doctest: +SKIP
    """
    dataset = _lookup(name)
    path = where(name)
    if path is None:
        path = _download(dataset)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != dataset.sha256:
        raise ValueError(
            f"{path} is not the published {name}: expected SHA-256 {dataset.sha256}, got {found}. "
            "Delete it to fetch a fresh copy."
        )
    return path


def _lookup(name: str) -> Dataset:
    if name not in REGISTRY:
        raise ValueError(f"Unknown dataset {name!r}; the registry holds {', '.join(names())}.")
    return REGISTRY[name]


def _mirror_path(name: str) -> Path | None:
    folder = os.environ.get(VARIABLE)
    return Path(folder).expanduser() / name if folder else None


def _cache_path(dataset: Dataset) -> Path:
    return Path(pooch.os_cache("sbi_flows")) / dataset.name


def _download(dataset: Dataset) -> Path:
    target = _cache_path(dataset)
    folder = target.parent
    try:
        if not dataset.in_archive:
            pooch.retrieve(dataset.url, known_hash=f"sha256:{dataset.sha256}", fname=target.name, path=folder)
            return target
        archive = unquote(Path(dataset.url).name)
        members = pooch.retrieve(dataset.url, known_hash=None, fname=archive, path=folder, processor=pooch.Unzip())
    # pooch passes on whatever its transport raises: requests' errors are OSErrors, a checksum mismatch is a ValueError.
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"Cannot reach dataset {dataset.name!r}: not under ${VARIABLE} "
            f"({os.environ.get(VARIABLE) or 'not set'}), not in the cache {folder}, and {dataset.url} failed ({type(error).__name__}). "
            f"Set {VARIABLE} to a folder that holds {dataset.name}, or connect to the network."
        ) from error
    return _member(dataset, members)


def _member(dataset: Dataset, members: list[str]) -> Path:
    """Move the wanted file out of the unpacked archive into its place in the cache."""
    target = _cache_path(dataset)
    matching = [Path(member) for member in members if Path(member).name == target.name]
    if len(matching) != 1:
        raise ValueError(f"Expected one {target.name} in the archive {dataset.url}; found {len(matching)}.")
    matching[0].replace(target)
    return target
