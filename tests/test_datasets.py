"""The registry: mirror, cache, network failures, checksums. Nothing here touches the network."""

import hashlib
import zipfile

import pytest
import requests

from sbi_flows import datasets


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No mirror, an empty cache, and no network."""
    monkeypatch.delenv(datasets.VARIABLE, raising=False)
    monkeypatch.setattr(datasets.pooch, "os_cache", lambda name: tmp_path / "cache" / name)

    def refuse(*args, **kwargs):
        raise requests.exceptions.ConnectionError("network is unreachable")

    monkeypatch.setattr(requests.Session, "request", refuse)
    monkeypatch.setattr(requests, "get", refuse)
    return tmp_path


NAME = "sgwb_models/g_star.dat"


def entry(monkeypatch, content: bytes, **changes):
    """Make the registry expect this content under ``NAME``."""
    old = datasets.REGISTRY[NAME]
    new = datasets.Dataset(**{**vars(old), "sha256": hashlib.sha256(content).hexdigest(), **changes})
    monkeypatch.setitem(datasets.REGISTRY, NAME, new)


def test_every_entry_has_an_address_a_checksum_and_a_citation():
    assert len(datasets.names()) == 19
    for name in datasets.names():
        dataset = datasets.REGISTRY[name]
        assert dataset.url.startswith("https://")
        assert len(bytes.fromhex(dataset.sha256)) == 32
        assert dataset.citation


def test_the_mirror_comes_first_and_is_verified(alone, monkeypatch):
    entry(monkeypatch, b"content")
    mirror = alone / "mirror" / NAME
    mirror.parent.mkdir(parents=True)
    mirror.write_bytes(b"content")
    assert datasets.where(NAME) is None
    monkeypatch.setenv(datasets.VARIABLE, str(alone / "mirror"))
    assert datasets.where(NAME) == datasets.fetch(NAME) == mirror
    mirror.write_bytes(b"tampered")
    with pytest.raises(ValueError, match="not the published sgwb_models/g_star"):
        datasets.fetch(NAME)


def test_out_of_reach_names_the_entry_and_the_variable(alone):
    with pytest.raises(ConnectionError, match=r"sgwb_models/g_star\.dat.*SBI_FLOWS_DATA.*failed .ConnectionError."):
        datasets.fetch(NAME)


def test_an_archive_out_of_reach_says_so_too(alone):
    with pytest.raises(ConnectionError, match=r"density\.npy"):
        datasets.fetch("ng15_free_spectrum/density.npy")


def test_an_archive_gives_up_its_member(alone, monkeypatch):
    archive = alone / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("folder/g_star.dat", b"content")
        file.writestr("folder/other.dat", b"other")
    entry(monkeypatch, b"content", url="https://example.org/archive.zip")

    def retrieve(url, known_hash, fname, path, processor):
        path.mkdir(parents=True)
        copy = path / fname
        copy.write_bytes(archive.read_bytes())
        return processor(str(copy), "download", None)

    monkeypatch.setattr(datasets.pooch, "retrieve", retrieve)
    assert datasets.fetch(NAME).read_bytes() == b"content"
    monkeypatch.setattr(datasets.pooch, "retrieve", None)  # a second call needs no download
    assert datasets.fetch(NAME).read_bytes() == b"content"


def test_an_unknown_entry_lists_the_known():
    with pytest.raises(ValueError, match="the registry holds bayes_examples"):
        datasets.fetch("nothing")


def test_the_mirror_at_hand_is_the_published_data(full_data, monkeypatch):
    monkeypatch.setenv(datasets.VARIABLE, str(full_data))
    assert len(datasets.names()) > 3
    for name in datasets.names():
        assert datasets.fetch(name).is_file()
