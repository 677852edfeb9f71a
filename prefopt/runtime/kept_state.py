"""What code of somebody else's may change for everybody in a process: noted before it runs, put back after."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

_BACKENDS = (
    (torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cudnn, "benchmark"), (torch.backends.cudnn, "deterministic"), (torch.backends.cudnn, "enabled"),
    (torch.backends.mkldnn, "enabled"), (torch.utils.deterministic, "fill_uninitialized_memory"),
)  # fmt: skip
_KERNELS: tuple[Callable[[], bool], ...] = (
    torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled,
    torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.cudnn_sdp_enabled,
)  # fmt: skip
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, name))
_SPARE = np.random.MT19937(0)  # of numpy's global functions meanwhile: copying their state takes longer than all else
_TINY = torch.tensor(1e-40)  # 0 once multiplied where denormal numbers are flushed


def _torch_flags() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_float32_matmul_precision(), torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled(),
        torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cpu"), torch.get_autocast_dtype("cuda"), bool(_TINY * 1.0 == 0.0),
        *(kernel() for kernel in _KERNELS),
        *(getattr(place, name) for place, name in _BACKENDS),
    )  # fmt: skip


def _put_torch_flags(before: tuple[Any, ...]) -> None:
    (grad, dtype, device, threads, exact, warn, precision, anomaly, nan, *rest) = before
    autocast_cpu, autocast_cuda, dtype_cpu, dtype_cuda, flushed, flash, efficient, math, cudnn, *backends = rest
    torch.set_grad_enabled(grad)
    torch.set_default_dtype(dtype)
    if torch.get_default_device() != device:
        torch.set_default_device(None if device == torch.device("cpu") else device)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(exact, warn_only=warn)
    torch.set_anomaly_enabled(anomaly, nan)
    torch.set_autocast_enabled("cpu", autocast_cpu)
    torch.set_autocast_enabled("cuda", autocast_cuda)
    torch.set_autocast_dtype("cpu", dtype_cpu)
    torch.set_autocast_dtype("cuda", dtype_cuda)
    torch.set_flush_denormal(flushed)
    torch.backends.cuda.enable_flash_sdp(flash)
    torch.backends.cuda.enable_mem_efficient_sdp(efficient)
    torch.backends.cuda.enable_math_sdp(math)
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    for (place, name), value in zip(_BACKENDS, backends, strict=True):
        if getattr(place, name) != value:
            setattr(place, name, value)
    torch.set_float32_matmul_precision(precision)


def _torch_random() -> list[bytes]:
    states = [torch.get_rng_state().numpy().tobytes()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += [torch.cuda.get_rng_state(i).numpy().tobytes() for i in range(torch.cuda.device_count())]
    return states


def _put_torch_random(before: list[bytes]) -> None:
    host, *devices = (torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in before)
    torch.set_rng_state(host)
    for i, state in enumerate(devices):
        torch.cuda.set_rng_state(state, i)


def _put_numpy_errors(before: Any) -> None:
    np.seterr(**before)


def _python() -> tuple[Any, ...]:
    return (
        sys.stdout, sys.stderr, sys.stdin, sys.getrecursionlimit(), gc.isenabled(), logging.root.manager.disable,
        logging.root.level, warnings.showwarning, sys.getswitchinterval(), Path.cwd(),
    )  # fmt: skip


def _put_python(before: tuple[Any, ...]) -> None:
    sys.stdout, sys.stderr, sys.stdin, limit, collects, disable, level, warnings.showwarning, interval, folder = before
    sys.setrecursionlimit(limit)
    (gc.enable if collects else gc.disable)()
    logging.disable(disable)
    logging.root.setLevel(level)
    sys.setswitchinterval(interval)
    os.chdir(folder)


def _put_filters(before: list[Any]) -> None:
    warnings.filters[:] = before  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined] # as catch_warnings does, so that caches notice


def _put_path(before: list[str]) -> None:
    sys.path[:] = before


def _environment() -> dict[Any, Any]:
    return dict(os.environ._data)  # type: ignore[attr-defined] # encoded, as it is: a copy of os.environ decodes all


def _put_environment(before: dict[Any, Any]) -> None:
    decode = os.environ.decodevalue
    wanted = {decode(name): decode(value) for name, value in before.items()}
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)


def _handlers() -> list[Any]:
    return [signal.getsignal(number) for number in _SIGNALS]


def _put_handlers(before: list[Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)


_PARTS: tuple[tuple[Callable[[], Any], Callable[[Any], None]], ...] = (
    (_torch_flags, _put_torch_flags), (_torch_random, _put_torch_random),
    (np.geterr, _put_numpy_errors), (random.getstate, random.setstate), (_python, _put_python),
    (lambda: list(warnings.filters), _put_filters), (_handlers, _put_handlers),
)  # fmt: skip
# A module may set these when it is imported, for what it imports and calls later.
_OF_A_MODULE: tuple[tuple[Callable[[], Any], Callable[[Any], None]], ...] = (
    (lambda: list(sys.path), _put_path), (_environment, _put_environment),
)  # fmt: skip


@contextmanager
def kept_state(*, importing: bool = False) -> Iterator[None]:
    """Inside, foreign code runs; whatever it changed of what a process shares is as before when it has ended.

    Of torch: gradient mode, default type and device, threads, determinism, precision, autocast and kernels; random
    states of torch, numpy and Python; warnings, logging, streams, folder, paths, environment, and signal handlers.

    Args:
        importing: Whether that code is a module that is imported, which may set paths and environment for later.
    """
    parts = _PARTS if importing else (*_PARTS, *_OF_A_MODULE)
    before = [get() for get, _ in parts]
    generator = np.random.mtrand.get_bit_generator()
    np.random.mtrand.set_bit_generator(_SPARE)
    try:
        yield
    finally:
        np.random.mtrand.set_bit_generator(generator)
        for (get, put), value in zip(parts, before, strict=True):
            if get() != value:
                put(value)
