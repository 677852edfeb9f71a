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


def main() -> None:
    """Do what the first line of the input asks for, and say how it ended."""
    silence_third_parties()
    request = Request.decode(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    sender = Sender(os.fdopen(request.events, "w", encoding="utf-8"))
    from prefopt.runtime.interrupts import Stopped, listen

    try:
        with listen():
            _work(request, sender)
    except Stopped as end:
        sender.send(End("stopped", end.number, str(end)))
    except PrefoptError as problem:
        sender.send(End("refused", problem.exit_code, str(problem)))
    except Exception as problem:
        if type(problem).__name__ == "AcceleratorError":
            raise  # the device is lost to this process; another one may have it
        sender.send(End("defect", 1, traceback.format_exc()))
    else:
        sender.send(End("done"))
    sys.stderr.flush()
    os._exit(0)  # nothing is left to write, and taking torch down takes seconds


def _work(request: Request, sender: Sender) -> None:
    sender.stage("starting", 0, 1)
    import torch

    from prefopt.comparison.runner import work
    from prefopt.config.schema import Config
    from prefopt.losses import load_plugin

    for plugin in request.plugins:
        load_plugin(plugin)
    torch.set_num_threads(request.threads)
    work(
        Config.model_validate(request.config),
        results=Path(request.results),
        command=request.command,
        progress=sender,
        skip=set(request.skip),
        alone=set(request.alone),
    )


def _end_with_parent() -> None:
    """Wait for the end of the input, which the parent holds open, whatever ends it."""
    while os.read(0, 1):
        pass
    os._exit(1)


def silence_third_parties() -> None:
    """Keep notices that a user can do nothing about off the screen; native code is never fetched from a hub."""
    os.environ["USE_HUB_KERNELS"] = "0"
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|peft)")
