import pytest
import torch

from sbi_flows._files import check_shapes, load_tensors, save_tensors, write_atomic

TENSORS = {"a": torch.arange(6, dtype=torch.float64).reshape(2, 3), "b": torch.tensor(3), "empty": torch.zeros(0, 2)}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.flow"
    save_tensors(path, TENSORS, {"names": ["x", "y"], "n": 3}, kind="FlowDensity", version=2)
    return path


def test_round_trip_keeps_bits_dtypes_and_header(saved):
    tensors, header = load_tensors(saved, kind="FlowDensity", version=2)
    assert header == {"names": ["x", "y"], "n": 3}
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == {name: (t.dtype, t.shape) for name, t in TENSORS.items()}
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_an_older_layout_is_read_and_a_newer_one_refused(saved):
    load_tensors(saved, kind="FlowDensity", version=3)
    with pytest.raises(ValueError, match=r"layout version 2; this sbi_flows reads up to 1\. Upgrade"):
        load_tensors(saved, kind="FlowDensity", version=1)


def test_another_kind_is_refused(saved):
    with pytest.raises(ValueError, match=r"Expected a file holding a ConditionalFlow; .* holds a FlowDensity"):
        load_tensors(saved, kind="ConditionalFlow", version=2)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is none"):
        load_tensors(tmp_path / "no.flow", kind="FlowDensity", version=1)
    with pytest.raises(FileNotFoundError, match="Expected an existing folder"):
        save_tensors(tmp_path / "no" / "x.flow", TENSORS, {}, kind="FlowDensity", version=1)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_file(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ValueError, match="damaged or truncated"):
        load_tensors(saved, kind="FlowDensity", version=2)


def test_every_flipped_byte_is_noticed(saved):
    content = saved.read_bytes()
    for position in range(8, len(content), 7):
        saved.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(ValueError, match=r"damaged or truncated|was changed after|not one written by sbi_flows"):
            load_tensors(saved, kind="FlowDensity", version=2)


def test_foreign_safetensors(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not one written by sbi_flows"):
        load_tensors(tmp_path / "other.safetensors", kind="FlowDensity", version=1)


def test_pickles_are_refused(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_tensors(tmp_path / "model.pt", kind="FlowDensity", version=1)


def test_check_shapes_names_what_differs():
    expected = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"b is missing; c is unknown; a has shape \(4,\), expected \(2,\)"):
        check_shapes("f", {"a": torch.zeros(4), "c": torch.zeros(1)}, expected)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
