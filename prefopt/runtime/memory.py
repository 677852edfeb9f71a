"""Peak memory of a stretch of work: of the device on CUDA, of the process elsewhere."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch


def free_bytes(device: torch.device) -> int:
    """Memory that a process may still take on the device."""
    if device.type == "cuda":
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 - not a file of ours
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def give_back(device: torch.device) -> None:
    """Return to the system what was freed and is still held, so that pieces of it do not pile up run by run."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim(device)


def trim(device: torch.device) -> None:
    """Return to the system what the C library holds between pieces in use; a CPU's training grows by it otherwise."""
    if device.type == "cpu":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def reset_peak(device: torch.device) -> None:
    """Give back what is free, and begin to measure the peak anew."""
    give_back(device)
    forget_peak(device)


def forget_peak(device: torch.device) -> None:
    """Begin to measure the peak anew, and leave memory as it is.

    Where the system cannot forget a process's peak (it can on Linux), ``peak_gib`` is that since the process began.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_gib(device: torch.device) -> float:
    """Peak memory on the device, or of this process for a CPU, since ``reset_peak``; GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def total_gib(device: torch.device) -> float:
    """All memory of the device, or of the machine for a CPU; GiB."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory) / 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
