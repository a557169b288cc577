"""The reader takes what the format allows and refuses everything else with its own error."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from posttrainbench.integrity.safetensors import BadSafetensors, read_file, read_model
from tests.models import save_weights, weights


def file_of(path: Path, header: object, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    tensors = weights(3)
    save_weights(tensors, tmp_path / "model.safetensors")
    found = read_model(tmp_path)
    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        assert tensor.shape == tensors[name].shape
        assert np.array_equal(tensor.floats(0, tensor.count), tensors[name].ravel())


def test_bfloat16(tmp_path: Path) -> None:
    bits = np.array([0x3F80, 0xC000, 0x0000], dtype=np.uint16)
    entry = {"x": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}
    tensor = read_file(file_of(tmp_path / "a.safetensors", entry, bits.tobytes()))["x"]
    assert tensor.floats(0, 3).tolist() == [1.0, -2.0, 0.0]


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BAD = {
    "empty file": None,
    "header longer than file": struct.pack("<Q", 10**12),
    "not json": ("{", b""),
    "not an object": ([1], b""),
    "entry without dtype": ({"x": {"shape": [1], "data_offsets": [0, 4]}}, b"abcd"),
    "unknown dtype": ({"x": {**ENTRY, "dtype": "Q7"}}, b"abcd"),
    "negative shape": ({"x": {**ENTRY, "shape": [-1]}}, b"abcd"),
    "boolean offset": ({"x": {**ENTRY, "data_offsets": [False, 4]}}, b"abcd"),
    "data past the end": ({"x": {**ENTRY, "shape": [2], "data_offsets": [0, 8]}}, b"abcd"),
    "size and shape differ": ({"x": {**ENTRY, "shape": [2]}}, b"abcd"),
    "overlap": ({"x": ENTRY, "y": ENTRY}, b"abcd"),
    "gap": ({"x": {**ENTRY, "data_offsets": [4, 8]}}, b"abcdefgh"),
    "bytes after the last tensor": ({"x": ENTRY}, b"abcdefgh"),
    "dimensions without end": ({"x": {**ENTRY, "shape": [1] * 5000}}, b"abcd"),
    "dimension of many digits": ({"x": {**ENTRY, "shape": [10**4000]}}, b"abcd"),
    "deeply nested header": (b"[" * 100_000, b""),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_refuses(case: object, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    if isinstance(case, tuple):
        file_of(path, *case)
    else:
        path.write_bytes(case if isinstance(case, bytes) else b"")
    with pytest.raises(BadSafetensors):
        read_model(tmp_path)


def test_tensor_in_two_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        file_of(tmp_path / f"{name}.safetensors", {"x": ENTRY}, b"abcd")
    with pytest.raises(BadSafetensors, match="another file"):
        read_model(tmp_path)
