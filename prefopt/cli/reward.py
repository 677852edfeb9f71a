"""``prefopt reward``: a Bradley-Terry reward model from pairs, rankings, or responses that are sampled and labelled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefopt.cli.console import Console
from prefopt.cli.options import (
    AsJson,
    ConfigFile,
    Device,
    LabelNoise,
    Model,
    Plugins,
    Quiet,
    Settings,
    as_lines,
    as_text,
    style,
)


def reward(
    config: ConfigFile = None,
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("reward-model"),
    data: Annotated[str | None, typer.Option(help="Your pairs, or rows of prompt and ranked responses.")] = None,
    prompts: Annotated[str | None, typer.Option(help="Your prompts, to be answered and labelled by --labels.")] = None,
    labels: Annotated[str | None, typer.Option(help="Gold reward: imdb, rm:MODEL or file.py:function.")] = None,
    model: Model = None,
    device: Device = None,
    label_noise: LabelNoise = None,
    settings: Settings = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a reward model, and say how far it can be trusted; --reward bt:FOLDER then labels or evaluates by it."""
    from prefopt.config.load import load_command
    from prefopt.prepare.reward_model import make_reward_model
    from prefopt.runtime.device import pick_device

    overrides = {
        "model.name": model,
        "data.source": data,
        "task.prompts": prompts,
        "task.reward": labels,
        "device": device,
        "pairs.label_noise": label_noise,
    }
    wanted = load_command(config, overrides, settings=settings, plugins=plugin)
    with Console(style(quiet, as_json)) as console:
        facts = make_reward_model(wanted, out, pick_device(wanted.device), console)
    shown = {"folder": str(out), **{k: v for k, v in facts["heldout"].items() if k != "reliability"}}
    print(as_text({"folder": str(out), **facts}) if as_json else as_lines(shown))
