"""The process that trains: started by ``supervise``, told what to do on its input, and heard on a pipe.

A crash of native code, the system's out-of-memory killer or a hang ends this process and nothing else. When the
process that started it ends, its input ends, and so does this one.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any

from prefopt.errors import PrefoptError
from prefopt.launch.protocol import Events


def main() -> None:
    """Do what the first line of the input asks for, and say how it ended."""
    silence_third_parties()
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    events = Events(os.fdopen(request["events"], "w", encoding="utf-8"))
    from prefopt.runtime.interrupts import Stopped, listen

    try:
        with listen():
            _work(request, events)
    except Stopped as end:
        events.send("end", "stopped", end.number, str(end))
    except PrefoptError as problem:
        events.send("end", "refused", problem.exit_code, str(problem))
    except Exception as problem:
        if type(problem).__name__ == "AcceleratorError":
            raise  # the device is lost to this process; another one may have it
        events.send("end", "defect", 1, traceback.format_exc())
    else:
        events.send("end", "done", 0, "")
    sys.stderr.flush()
    os._exit(0)  # nothing is left to write, and taking torch down takes seconds


def _work(request: dict[str, Any], events: Events) -> None:
    events.stage("starting", 0, 1)
    import torch

    import prefopt
    from prefopt.comparison.runner import work
    from prefopt.config.schema import Config
    from prefopt.contract import registry

    _ = prefopt.losses
    for plugin in request["plugins"]:
        registry.load_plugin(plugin)
    torch.set_num_threads(request["threads"])
    work(
        Config.model_validate(request["config"]),
        results=Path(request["results"]),
        command=request["command"],
        progress=events,
        skip={(variant, seed) for variant, seed in request["skip"]},
        alone=set(request["alone"]),
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
