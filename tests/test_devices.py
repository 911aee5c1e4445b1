from __future__ import annotations

import pytest
import torch

from spwnet.devices import convolution_type, deterministic, memory_format, pick_device
from spwnet.errors import SettingsError


def test_auto_takes_what_there_is(monkeypatch):
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert pick_device().type == expected
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("name", "message"),
    [("gpu", "expected a device of this machine .*but got 'gpu'"),
     (None, "expected a device of this machine .*but got None"),
     ("meta", "expected the device 'auto', 'cpu', 'cuda' or 'mps', but got 'meta'")],
)  # fmt: skip
def test_unknown_devices(name, message):
    with pytest.raises(SettingsError, match=message):
        pick_device(name)


def test_why_a_device_cannot_be_used_is_said(monkeypatch):
    def empty(*_, **__):
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(SettingsError, match=r"got 'cuda', which cannot be used: CUDA error: out of memory; leave it"):
        pick_device("cuda")


def test_precision():
    cpu = torch.device("cpu")
    assert convolution_type("float32", cpu) == torch.float32
    assert convolution_type("bfloat16", cpu) == torch.bfloat16
    fast = torch.cpu._is_avx512_bf16_supported()
    assert convolution_type("auto", cpu) == (torch.bfloat16 if fast else torch.float32)
    assert convolution_type("auto", torch.device("mps")) == torch.float32
    assert memory_format(2) == torch.channels_last
    assert memory_format(3) == torch.channels_last_3d


def test_deterministic_mode_is_put_back():
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic():
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before
