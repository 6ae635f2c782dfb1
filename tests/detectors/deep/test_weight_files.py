"""Files of weights: state dicts of torch, safetensors, and what is neither."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="files of weights need torch")

from pyimgano_dask.detectors.deep.padim import Padim  # noqa: E402
from pyimgano_dask.detectors.deep.weight_files import read_weights  # noqa: E402
from pyimgano_dask.detectors.model_files import ModelFiles  # noqa: E402
from pyimgano_dask.errors import ConfigError  # noqa: E402

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def safetensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """A file as the format describes it: the header's length, the header, the values one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    values = b""
    for name, tensor in tensors.items():
        raw = bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())
        offsets = [len(values), len(values) + len(raw)]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        values += raw
    return with_header(header, values)


def with_header(header: Any, values: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values


SOME = {
    "odd.bytes": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "module.weight": torch.arange(6, dtype=torch.float32).view(2, 3) / 7,
    "half": torch.tensor([0.5, -2.0], dtype=torch.float16),
    "brain": torch.tensor([[1.5], [3.0]], dtype=torch.bfloat16),
    "double": torch.tensor(0.1, dtype=torch.float64),
    "counter": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "none": torch.zeros(0, 4),
}


def test_safetensors_give_the_tensors_that_were_written() -> None:
    found = read_weights(safetensors(SOME), "w.safetensors")
    assert found.keys() == {name.removeprefix("module.") for name in SOME}
    for name, tensor in SOME.items():
        read = found[name.removeprefix("module.")]
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)


@given(st.integers(min_value=9, max_value=len(safetensors(SOME)) - 1))
def test_safetensors_that_are_cut_short_are_refused(length: int) -> None:
    with pytest.raises(ConfigError, match=r"w\.safetensors' is a safetensors file that is cut short or damaged"):
        read_weights(safetensors(SOME)[:length], "w.safetensors")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}, "numbers of the kind F8_E4M3"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}, "4 numbers F32 at the bytes 0 to 12 of 16"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [-4, 12]}, "at the bytes -4 to 12"),
        ({"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}, "at the bytes 0 to 32 of 16"),
        ({"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}, "damaged"),
        ({"dtype": "F32", "shape": [0, 10**30], "data_offsets": [0, 0]}, "damaged"),
        ({"dtype": "F32", "shape": ["4"], "data_offsets": [0, 16]}, "damaged"),
        ({"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]}, "damaged"),
        ({"dtype": "F32", "shape": [4], "data_offsets": 3}, "damaged"),
        ({"dtype": "F32", "data_offsets": [0, 16]}, "no 'shape'"),
        ([1, 2], "damaged"),
    ],
)
def test_a_header_that_says_nonsense_is_refused(entry: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=r"w\.safetensors'.*copy it again") as caught:
        read_weights(with_header({"weight": entry}, bytes(16)), "w.safetensors")
    assert said in str(caught.value)


@pytest.mark.parametrize("text", [b"{", b"{}}", b'{"a": 1', b"{" * 100_000, b'{"\xff": 1}'])
def test_a_header_that_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(ConfigError, match="cut short or damaged"):
        read_weights(len(text).to_bytes(8, "little") + text, "w.safetensors")


def test_a_folder_and_an_empty_file_are_told(tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ConfigError, match=r"weights_path: 'folder\.pth' cannot be read: .*[Dd]irectory"):
        Padim.create(weights_path="folder.pth").opened(ModelFiles(str(tmp_path)))
    with pytest.raises(ConfigError, match=r"weights_path: 'empty\.pth' is not a file of weights .* it is empty"):
        Padim.create(weights_path="empty.pth").opened(ModelFiles(str(tmp_path)))


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before the zip format"])
@given(share=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_files_of_torch_that_are_cut_short_or_damaged_end_in_words(is_zip: bool, share: float, byte: int) -> None:
    file = io.BytesIO()
    torch.save({"weight": torch.arange(6.0)}, file, _use_new_zipfile_serialization=is_zip)
    data = file.getvalue()
    place = int(share * len(data))
    with pytest.raises(ConfigError, match=r"weights_path: 'w.pth'"):
        read_weights(data[:place], "w.pth")
    with suppress(ConfigError):
        read_weights(data[:place] + bytes([byte]) + data[place + 1 :], "w.pth")


def test_a_file_of_an_old_torch_that_is_cut_short_is_told_so() -> None:
    file = io.BytesIO()
    torch.save({"weight": torch.full((64,), 2.5)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(ConfigError, match="a state dict of torch that is cut short or damaged"):
        read_weights(file.getvalue()[:-100], "w.pth")


def test_a_flipped_bit_in_the_numbers_of_a_file_of_torch_is_noticed() -> None:
    file = io.BytesIO()
    torch.save({"weight": torch.full((64,), 2.5)}, file)
    data = file.getvalue()
    place = data.index(torch.full((64,), 2.5).numpy().tobytes())
    with pytest.raises(ConfigError, match="a zip archive that is cut short or damaged"):
        read_weights(data[:place] + b"\1" + data[place + 1 :], "w.pth")


def test_tensors_of_safetensors_that_overlap_are_refused() -> None:
    entry = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}
    header = json.dumps({"a": entry, "b": {**entry, "data_offsets": [4, 12]}}).encode()
    with pytest.raises(ConfigError, match="its tensors overlap"):
        read_weights(len(header).to_bytes(8, "little") + header + bytes(12), "w.safetensors")
