"""The process that trains: started by the supervisor, which sends a request on its input and hears messages on a pipe.

A crash of native code, the system's out-of-memory killer or a hang ends this process and nothing else. When the
process that started it ends, its input ends, and so does this one.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from pathlib import Path

from prefopt.errors import PrefoptError
from prefopt.launch.protocol import End, Request, Sender

_leave = os._exit  # as it is while no loss is being called


def main() -> None:
    """Do what the first line of the input asks for, and say how it ended."""
    silence_third_parties()
    from prefopt.runtime.interrupts import Stopped, listen

    sender: Sender | None = None
    try:
        with listen():
            for stream in (sys.stdout, sys.stderr):
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr] # lest a line be lost with the process
            request = Request.decode(sys.stdin.buffer.readline())
            sender = _prepare(request)
            _work(request, sender)
        end = End("done")
    except Stopped as stopped:
        end = End("stopped", stopped.number, str(stopped))
    except PrefoptError as problem:
        end = End("refused", problem.exit_code, str(problem))
    except Exception as problem:
        if type(problem).__name__ == "AcceleratorError":
            raise  # the device is lost to this process; another one may have it
        end = End("defect", 1, traceback.format_exc())
    if sender is not None:
        sender.send(end)
    sys.stdout.flush()
    sys.stderr.flush()
    _leave(0)  # nothing is left to write, and taking torch down takes seconds


def _prepare(request: Request) -> Sender:
    """Have this process end with its parent, show where it hung or crashed, and share nothing with what it forks."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    os.register_at_fork(after_in_child=lambda: _let_go(request.events, request.lock))
    return Sender(os.fdopen(request.events, "w", encoding="utf-8"))


def _let_go(*descriptors: int) -> None:
    """In a process that a loss has forked: hold neither the pipe nor the lock, so that both end with the worker."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor, inheritable=False)
    os.close(nowhere)


def _work(request: Request, sender: Sender) -> None:
    sender.stage("starting", 0, 1)
    import torch

    from prefopt.comparison.runner import work
    from prefopt.comparison.seed_group import Partition
    from prefopt.config.load import load_plugins
    from prefopt.config.schema import Config

    load_plugins(request.plugins)
    torch.set_num_threads(request.threads)
    work(
        Config.model_validate(request.config),
        results=Path(request.results),
        command=request.command,
        progress=sender,
        partition=Partition(set(request.skip), set(request.alone), request.isolate),
    )


def _end_with_parent() -> None:
    """Wait for the end of the input, which the parent holds open, whatever ends it."""
    while os.read(0, 1):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # this process, and all that it forked
    _leave(1)


def silence_third_parties() -> None:
    """Keep notices that a user can do nothing about off the screen; native code is never fetched from a hub."""
    os.environ["USE_HUB_KERNELS"] = "0"
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|peft)")
