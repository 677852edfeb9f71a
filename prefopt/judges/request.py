"""The request for a judging, checked before anything is read, loaded or paid for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from prefopt.errors import UsageError, did_you_mean
from prefopt.storage.schema import ORACLE

KINDS = (ORACLE, "rm", "lm", "openai", "file")
PAIRS = ("reference", "all")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on what a judging by a server may cost.

    Attributes:
        max_calls: HTTP requests at most, retries among them; None for no limit.
        concurrency: Requests under way at once.
        retries: How often one question is sent again when the server could not answer it.
        connect_s, read_s, total_s: Deadlines of one request: to connect, between two bytes, and in all.
        max_tokens: The longest reply; models that reason before they answer need more than one letter.
    """

    max_calls: int | None = None
    concurrency: int = 4
    retries: int = 5
    connect_s: float = 10.0
    read_s: float = 120.0
    total_s: float = 120.0
    max_tokens: int = 512


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One judging of a results folder.

    Attributes:
        root: The results folder.
        spec: The judge: ``oracle``, ``rm:MODEL``, ``lm:MODEL``, ``openai:MODEL`` or ``file:PATH``.
        pairs: ``reference`` for every variant against the reference, ``all`` for every two of them as well.
        prompts: How many of the evaluation prompts are judged; None for all.
        base_url: The address of the server, for ``openai``.
        key_variable: The environment variable that holds the server's key.
        limits: What ``openai`` may spend.
        device: Where local models run: auto, cpu or cuda.

    Raises:
        UsageError: If one of them cannot be.
    """

    root: Path
    spec: str
    pairs: str = "reference"
    prompts: int | None = None
    base_url: str = ""
    key_variable: str = "OPENAI_API_KEY"
    limits: Limits = field(default_factory=Limits)
    device: str = "auto"

    def __post_init__(self) -> None:
        parse_spec(self.spec)
        if self.pairs not in PAIRS:
            raise UsageError(f"--pairs {self.pairs}: write reference or all")
        if self.prompts is not None and self.prompts < 2:
            raise UsageError(f"--prompts {self.prompts}: judge at least 2 prompts")


def parse_spec(spec: str) -> tuple[str, str]:
    """The kind of a judge and what follows it, such as ``lm`` and ``org/name`` of ``lm:org/name``.

    Raises:
        UsageError: If there is no such kind, or it lacks what follows.
    """
    kind, _, subject = spec.partition(":")
    if kind not in KINDS:
        raise UsageError(f"--judge {kind!r} is no kind of judge{did_you_mean(kind, list(KINDS))}")
    if (kind == ORACLE) == bool(subject):
        raise UsageError(f"--judge {spec}: write " + (ORACLE if kind == ORACLE else f"{kind}:NAME"))
    return kind, subject
