"""A device that is not there: on it shapes, types and devices are worked out, and nothing is computed.

PyTorch's fake tensors carry a made-up device, gradients included. A tensor of another device in the same operation
raises, and so does everything that must know a value: ``.item()``, ``bool()``, a mask as an index. These are what a
GPU would wait for, so what runs here has no device mixed and no synchronisation.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.utils.backend_registration as registration
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from training import LORA

from prefopt.model import decoders, generate, packing
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import load_base
from prefopt.train import grouped, microbatch, places

WAITS = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
"""What fake tensors raise where a real device would make the host wait."""


def _device() -> torch.device:
    with contextlib.suppress(RuntimeError):  # the name can be given once in a process
        registration._setup_privateuseone_for_python_backend("npy")
    return torch.device("npy:0")


def _move(module: nn.Module, device: torch.device) -> None:
    """Put fakes in place of parameters and buffers: ``module.to`` cannot."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None and value.device.type != "meta":
                part._parameters[name] = nn.Parameter(
                    torch.empty(value.shape, dtype=value.dtype, device=device), requires_grad=False
                )
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=device)


def _to_device(values: Tensor, device: torch.device | str) -> Tensor:
    return torch.empty(values.shape, dtype=values.dtype, device=device)


@contextlib.contextmanager
def pretended_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, size: int, dtype: str = "float32"
) -> Iterator[AdaptedModel]:
    """A tiny model with ``size`` adapters on the made-up device; everything made inside the block is fake."""
    base = load_base(str(folder), dtype=dtype, device=torch.device("cpu"))
    model = AdaptedModel.wrap(base, LORA, size=size)
    device = _device()
    # The values of a small constant are known to fake tensors, which then would ask the made-up device for the copy.
    for user in (packing, microbatch, places, generate, grouped, decoders):
        monkeypatch.setattr(user, "to_device", _to_device)
    # What is recomputed in a backward pass runs in a thread of the device, and a build without it has no such thread.
    monkeypatch.setattr(microbatch, "checkpoint", lambda function, *args, **_: function(*args))
    with FakeTensorMode(allow_non_fake_inputs=False), torch.autograd.set_multithreading_enabled(False):
        _move(base.model, device)
        shape = model.adapters.params.shape
        model.adapters.params = torch.zeros(shape, device=device)
        model.adapters.grads = torch.zeros(shape, device=device)
        yield AdaptedModel(dataclasses.replace(base, device=device), model.adapters)
