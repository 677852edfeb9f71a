"""A run on disk while it trains: adapter, optimizer state, moving average and history, every so many steps.

A checkpoint is a folder ``step-<n>`` with a manifest of sizes and SHA-256, under its name whole or not at all. The
newest two are kept. Steps are read from names, never from times. A checkpoint whose bytes are not those that were
written, or that belongs to another run, is renamed and not used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from prefopt.config.schema import Train
from prefopt.model.adapters import AdapterBank
from prefopt.storage import durable, folders
from prefopt.train.optimizer import with_optimizer
from prefopt.train.state import Counters, Metrics, Run

STATE, FACTS = "state.safetensors", "state.json"
KEPT = 2


@dataclass
class Checkpoints:
    """The checkpoints of one run.

    Args:
        path: Their folder.
        key: What the run is and what it was made from, as JSON; a checkpoint of another key is set aside.
        say: Called with a line for each one that is set aside.

    Attributes:
        valid: Tensors and facts of those that were read and fit, by step.
    """

    path: Path
    key: Mapping[str, Any]
    say: Callable[[str], None] = lambda text: None
    valid: dict[int, tuple[dict[str, Tensor], dict[str, Any]]] = field(default_factory=dict)

    def look(self) -> list[int]:
        """Steps of the valid checkpoints, newest first; the others are set aside."""
        self.valid.clear()
        for step in reversed(self._steps()):
            folder = self._at(step)
            try:
                self.valid[step] = self._checked(folders.read_folder(folder), step)
            except durable.DamagedError as problem:
                aside = durable.set_aside(folder)
                self.say(f"checkpoint set aside as {aside}: {problem}")
        return list(self.valid)

    def _checked(self, files: Mapping[str, bytes], step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        try:
            facts, tensors = json.loads(files[FACTS]), load(files[STATE])
        except (KeyError, ValueError, SafetensorError) as problem:
            raise durable.DamagedError(f"it is no checkpoint: {problem!r}") from None
        if facts.get("key") != self.key:
            raise durable.DamagedError("it belongs to another run")
        if facts.get("step") != step:
            raise durable.DamagedError(f"it was written at step {facts.get('step')}, and its name says {step}")
        return tensors, facts

    def write(self, run: Run, bank: AdapterBank) -> None:
        """Write a run's state after the steps that are behind it, and remove all but the newest two.

        Raises:
            MachineError: If the system refuses the write; earlier checkpoints are intact.
        """
        tensors, plain = optimizer_state(run.state.optimizer)
        tensors["adapter"] = bank.params[run.slot]
        if run.state.running is not None:
            tensors["running"] = run.state.running
        facts = {"key": self.key, "history": run.history, "optimizer": plain, **asdict(run.counters)}
        if run.sampled:
            facts["sampled"] = run.sampled
        state = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
        folders.write_folder(self._at(run.counters.step), {STATE: state, FACTS: json.dumps(facts).encode()})
        for step in self._steps()[:-KEPT]:
            durable.remove(self._at(step))

    def restore(self, step: int, run: Run, bank: AdapterBank, config: Train) -> None:
        """Put a run back to where it was after ``step`` steps; ``look`` has read them."""
        tensors, facts = self.valid[step]
        device = bank.params.device
        bank.params[run.slot] = tensors["adapter"].to(device)
        run.state.optimizer = None
        restore_optimizer(with_optimizer(run, bank, config), tensors, facts["optimizer"])
        run.state.running = tensors["running"].to(device) if "running" in tensors else None
        run.sampled[:] = [tuple(row) for row in facts.get("sampled", ())]
        run.history[:] = [Metrics(*row) for row in facts["history"]]
        for counter in fields(Counters):
            setattr(run.counters, counter.name, facts[counter.name])

    def remove(self) -> None:
        """Remove them all, once the run is complete."""
        if self.path.is_dir():
            durable.remove(self.path)

    def _at(self, step: int) -> Path:
        return self.path / f"step-{step:06}"

    def _steps(self) -> list[int]:
        matches = [re.fullmatch(r"step-(\d{6,})", path.name) for path in self.path.glob("step-*")]
        return sorted(int(match[1]) for match in matches if match)


def common_step(steps_of_runs: list[list[int]]) -> int | None:
    """The newest step at which every run with checkpoints has one, so that a kill between two writes leaves no gap."""
    lists = [set(steps) for steps in steps_of_runs if steps]
    return max(set.intersection(*lists), default=None) if lists else None


def optimizer_state(optimizer: torch.optim.Optimizer | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The one parameter's state as it is: tensors, under ``optimizer/<name>``, and plain numbers."""
    assert optimizer is not None
    (parameter,) = optimizer.param_groups[0]["params"]
    state = optimizer.state[parameter]
    tensors = {f"optimizer/{name}": value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in state.items() if not isinstance(value, Tensor)}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> None:
    """The inverse of ``optimizer_state``, without the casts of ``load_state_dict``; paged state is paged again."""
    (parameter,) = optimizer.param_groups[0]["params"]
    state = optimizer.state[parameter]
    state.update(plain)
    for name, value in tensors.items():
        if not name.startswith("optimizer/"):
            continue
        key = name.removeprefix("optimizer/")
        state[key] = value.to(parameter.device)
        if getattr(optimizer, "is_paged", False) and key in ("state1", "state2"):
            state[key] = optimizer.get_state_buffer(parameter, dtype=value.dtype)  # type: ignore[attr-defined]
            state[key].copy_(value)
