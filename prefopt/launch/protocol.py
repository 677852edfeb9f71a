"""What a supervisor and its worker tell each other: one request, then messages, each a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TextIO

from prefopt.runtime.progress import LatestMetrics, Progress


@dataclass(frozen=True, slots=True)
class Request:
    """What a worker is to do.

    Attributes:
        events: The descriptor of the pipe that messages go to.
        lock: The descriptor of the results folder's lock.
        config: The configuration.
        results: The folder of all comparisons.
        command: The command line, for the manifest.
        plugins: What registers losses, by file or name.
        threads: Of torch.
        skip: Variants and seeds to leave out.
        alone: Seeds whose variants are trained one after the other.
        isolate: Whether losses from outside this package are trained in a group of their own.
    """

    events: int
    lock: int
    config: Mapping[str, Any]
    results: str
    command: Sequence[str]
    plugins: Sequence[str]
    threads: int
    skip: Sequence[tuple[str, int]]
    alone: Sequence[int]
    isolate: bool

    def encode(self) -> bytes:
        """As one line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Request:
        """From what ``encode`` gave."""
        value = json.loads(line)
        return cls(**{**value, "skip": [(variant, seed) for variant, seed in value["skip"]]})


@dataclass(frozen=True, slots=True)
class Stage:
    """What is running now, and how far it is."""

    text: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Step:
    """The same for a step of training, with the last metrics of each variant."""

    text: str
    done: int
    total: int
    values: LatestMetrics


@dataclass(frozen=True, slots=True)
class Say:
    """A line that stays."""

    text: str


@dataclass(frozen=True, slots=True)
class At:
    """Which runs are under way."""

    seed: int
    variants: Sequence[str]
    step: int


@dataclass(frozen=True, slots=True)
class End:
    """How the work ended.

    Attributes:
        how: "done"; "refused" for what the user can mend; "stopped" by a signal; "defect" for anything else.
        code: The exit status of a refusal, or the signal's number.
        text: What to say.
    """

    how: Literal["done", "refused", "stopped", "defect"]
    code: int = 0
    text: str = ""


Message = Stage | Step | Say | At | End
_KINDS: dict[str, type[Message]] = {kind.__name__.lower(): kind for kind in (Stage, Step, Say, At, End)}


def encode(message: Message) -> str:
    """A message as one line."""
    return json.dumps({"kind": type(message).__name__.lower(), **asdict(message)}) + "\n"


def decode(line: bytes | str) -> Message:
    """From what ``encode`` gave."""
    value = json.loads(line)
    return _KINDS[value.pop("kind")](**value)


def tell(progress: Progress, message: Message) -> None:
    """Hand a message on to a listener of this process; ``End`` is nobody's progress."""
    match message:
        case Stage(text, done, total):
            progress.stage(text, done, total)
        case Step(text, done, total, values):
            progress.step(text, done, total, values)
        case Say(text):
            progress.say(text)
        case At(seed, variants, step):
            progress.at(seed, variants, step)


class Sender:
    """A listener that sends what it hears to another process; every line is a sign of life."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def send(self, message: Message) -> None:
        """One line."""
        self.out.write(encode(message))
        self.out.flush()

    def stage(self, text: str, done: int, total: int) -> None:
        """What is running now, and how far it is."""
        self.send(Stage(text, done, total))

    def step(self, text: str, done: int, total: int, values: LatestMetrics) -> None:
        """The same for a step of training, with the last metrics of each variant."""
        self.send(Step(text, done, total, values))

    def say(self, text: str) -> None:
        """A line that stays."""
        self.send(Say(text))

    def at(self, seed: int, variants: Sequence[str], step: int) -> None:
        """Which runs are under way."""
        self.send(At(seed, list(variants), step))
