"""Judges of responses: gold reward, reward models, language models here or behind an API, and imported verdicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prefopt.errors import UsageError
from prefopt.judges.address import key_from_environment
from prefopt.judges.cache import Cache
from prefopt.judges.contract import PairwiseJudge, PointwiseJudge, Shown, Verdict, question_text
from prefopt.judges.endpoint import EndpointJudge
from prefopt.judges.imported import FileJudge
from prefopt.judges.replies import parse_reply
from prefopt.judges.request import KINDS, JudgeRequest, Limits, parse_spec
from prefopt.storage.schema import ORACLE
from prefopt.tasks import load_task
from prefopt.tasks.base import Task

__all__ = [
    "KINDS",
    "Cache",
    "EndpointJudge",
    "FileJudge",
    "JudgeRequest",
    "Limits",
    "PairwiseJudge",
    "PointwiseJudge",
    "Shown",
    "Verdict",
    "check_judge",
    "make_judge",
    "parse_reply",
    "parse_spec",
    "question_text",
]


def check_judge(request: JudgeRequest) -> None:
    """Make sure that a judge can be had, as far as that shows without asking it anything.

    Raises:
        PrefoptError: If it cannot.
    """
    kind, subject = parse_spec(request.spec)
    if kind == "openai":
        judge = make_judge(request, task=lambda: load_task("data"))
        if isinstance(judge, EndpointJudge):
            judge.__exit__(None, None, None)
    elif kind in ("rm", "lm"):
        from prefopt.model.source import local_folder

        local_folder(subject)
    elif kind == "file" and not Path(subject).is_file():
        raise UsageError(f"--judge {request.spec}: there is no such file")


def make_judge(request: JudgeRequest, *, task: Callable[[], Task]) -> PairwiseJudge | PointwiseJudge:
    """The judge that a request names.

    Args:
        request: Names the judge, and the server, limits or device that it may use.
        task: Gives the task whose gold reward the oracle is.

    Raises:
        PrefoptError: If it cannot be had.
    """
    kind, subject = parse_spec(request.spec)
    if kind == "file":
        return FileJudge(Path(subject))
    if kind == "openai":
        if not request.base_url:
            raise UsageError(
                f"--judge {request.spec}: needs --base-url or $OPENAI_BASE_URL, such as https://api.openai.com/v1"
            )
        key = key_from_environment(request.key_variable)
        return EndpointJudge(subject, base_url=request.base_url, key=key, limits=request.limits)
    if kind == ORACLE:
        from prefopt.judges.reward import OracleJudge

        return OracleJudge(task())
    from prefopt.runtime.device import pick_device

    device = pick_device(request.device)
    if kind == "lm":
        from prefopt.judges.local import LocalJudge
        from prefopt.model.base import load_base

        return LocalJudge(load_base(subject, device=device))
    from prefopt.judges.reward import RewardModelJudge

    return RewardModelJudge(subject, device=device)
