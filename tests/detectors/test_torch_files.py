"""Programs of torch.export, brought to another device than the one that they were exported on.

The device `meta` computes shapes alone, and is there without a GPU.
"""

from __future__ import annotations

import io

import pytest

torch = pytest.importorskip("torch", reason="programs of torch.export run on torch")

from pyimgano_dask.detectors.torch_files import load_program  # noqa: E402

IMAGES = (1, 3, 8, 8)


class Weighted(torch.nn.Module):
    """Weights, a tensor that is no parameter, and tensors that are made where the images are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 1)
        self.scale = torch.full((1, 3, 1, 1), 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(3, device=x.device).view(1, 3, 1, 1)
        return self.conv(x) * self.scale + steps + torch.ones(1).to(x.device)


def exported() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Weighted().eval(), (torch.zeros(IMAGES),)), buffer)
    return buffer.getvalue()


def test_a_program_computes_on_the_device_that_it_is_loaded_for() -> None:
    data = exported()
    there = load_program(data, torch.device("meta")).module()
    assert there(torch.zeros(IMAGES, device="meta")).device.type == "meta"
    here = load_program(data, torch.device("cpu")).module()
    assert here(torch.zeros(IMAGES)).shape == IMAGES


def test_nothing_in_a_program_names_the_device_that_it_was_exported_on() -> None:
    program = load_program(exported(), torch.device("meta"))
    assert {value.device.type for value in (*program.state_dict.values(), *program.constants.values())} == {"meta"}
    named = {str(node.kwargs["device"]) for node in program.graph.nodes if "device" in node.kwargs}
    assert named == {"meta"}
