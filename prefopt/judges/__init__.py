"""Judges of responses: gold reward, reward models, language models here or behind an API, and imported verdicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prefopt.errors import UsageError, did_you_mean
from prefopt.judges.cache import Cache
from prefopt.judges.contract import PairwiseJudge, PointwiseJudge, Shown, Verdict, parse_reply, question_text
from prefopt.judges.endpoint import EndpointJudge, Limits, key_from_environment
from prefopt.judges.imported import FileJudge
from prefopt.tasks.base import Task

KINDS = ("oracle", "rm", "lm", "openai", "file")

__all__ = [
    "KINDS",
    "Cache",
    "EndpointJudge",
    "FileJudge",
    "Limits",
    "PairwiseJudge",
    "PointwiseJudge",
    "Shown",
    "Verdict",
    "make_judge",
    "parse_reply",
    "parse_spec",
    "question_text",
]


def parse_spec(spec: str) -> tuple[str, str]:
    """Kind and subject of such as ``lm:org/name``.

    Raises:
        UsageError: If there is no such kind, or it lacks its subject.
    """
    kind, _, subject = spec.partition(":")
    if kind not in KINDS:
        raise UsageError(f"--judge {kind!r} is no kind of judge{did_you_mean(kind, list(KINDS))}")
    if (kind == "oracle") == bool(subject):
        raise UsageError(f"--judge {spec}: write " + ("oracle" if kind == "oracle" else f"{kind}:NAME"))
    return kind, subject


def make_judge(
    spec: str,
    *,
    task: Callable[[], Task],
    device: str = "auto",
    base_url: str = "",
    key_variable: str = "OPENAI_API_KEY",
    limits: Limits | None = None,
) -> PairwiseJudge | PointwiseJudge:
    """The judge of a specification.

    Args:
        spec: ``oracle``, ``rm:MODEL``, ``lm:MODEL``, ``openai:MODEL`` or ``file:PATH``.
        task: Gives the task whose gold reward the oracle is.
        device: Where local models run: auto, cpu or cuda.
        base_url: Of the server, for ``openai``.
        key_variable: Environment variable that holds its key.
        limits: What ``openai`` may spend.

    Raises:
        PrefoptError: If it cannot be had.
    """
    kind, subject = parse_spec(spec)
    if kind == "file":
        return FileJudge(Path(subject))
    if kind == "openai":
        if not base_url:
            raise UsageError(f"--judge {spec}: needs --base-url, such as https://api.openai.com/v1")
        return EndpointJudge(subject, base_url=base_url, key=key_from_environment(key_variable), limits=limits)
    if kind == "lm":
        from prefopt.judges.local import LocalJudge
        from prefopt.model.base import load_base
        from prefopt.runtime.device import pick_device

        return LocalJudge(load_base(subject, device=pick_device(device)))
    from prefopt.judges.reward import OracleJudge, RewardModelJudge

    if kind == "oracle":
        return OracleJudge(task())
    from prefopt.runtime.device import pick_device

    return RewardModelJudge(subject, device=pick_device(device))
