from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import chat_server
import judged
import pytest
import transformers
from command import wait_for

from prefopt.errors import IncompleteError, MachineError, UsageError
from prefopt.judges import Cache, EndpointJudge, JudgeRequest, Limits, judging
from prefopt.judges.address import check_url
from prefopt.judges.cache import key_of
from prefopt.judges.chat import retry_after
from prefopt.judges.contract import Shown
from prefopt.judges.endpoint import FIRST, MOST_UNUSABLE
from prefopt.judges.judging import judge_folder
from prefopt.judges.local import LocalJudge
from prefopt.judges.questions import questions
from prefopt.runtime.progress import Silent

QUICK = Limits(read_s=2.0, total_s=1.0, retries=2)


@pytest.fixture
def server() -> Iterator[chat_server.ChatServer]:
    with chat_server.serve() as state:
        yield state


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def client(server: chat_server.ChatServer, waits: list[float]) -> Iterator[EndpointJudge]:
    with EndpointJudge("tiny", base_url=server.url, key=chat_server.KEY, limits=QUICK, sleep=waits.append) as judge:
        yield judge


def some(n: int = 1) -> list[Shown]:
    return [Shown(f"prompt {i}", "one", "two") for i in range(n)]


def ask(judge: EndpointJudge, n: int = 1) -> list[tuple[float | None, str]]:
    return [(v.first, v.error) for _, v in sorted(judge.ask(some(n)), key=lambda pair: pair[0])]


def test_a_real_model_behind_a_server_agrees_with_the_same_model_here(tmp_path: Path, tiny_base) -> None:
    base = tiny_base()
    plain = transformers.AutoModelForCausalLM.from_pretrained(base.name).eval()
    folder = judged.write(tmp_path / "x", {"better": 2, "worse": 0}, seeds=1)
    to_judge = questions(folder, prompts=2)
    cache = Cache(tmp_path / "cache.sqlite")
    local = LocalJudge(base)
    local.window = 100_000
    with chat_server.serve(plain, base.tokenizer) as state:
        with EndpointJudge("tiny", base_url=state.url) as remote:
            record = judge_folder(folder, remote, to_judge, cache=cache, progress=Silent())
        with EndpointJudge("tiny", base_url=state.url) as again:
            judge_folder(folder, again, to_judge, cache=cache, progress=Silent())
        assert again.calls == 0, "all verdicts are in the cache"
    some_questions = to_judge.shown()
    soft = dict(local.ask(some_questions))
    hard = dict(enumerate(cache.get([_key(remote, question) for question in some_questions]).values()))
    assert [round(soft[i].first) for i in soft] == [int(hard[i]) for i in soft]
    assert record["invalid_share"] == 0
    assert record["facts"]["served"] == ["tiny"]
    assert record["facts"]["completion_tokens"] == remote.calls > 0


def _key(judge: EndpointJudge, question: Shown) -> str:
    return key_of(judge.fingerprint, question.prompt, question.first, question.second)


def test_request_is_a_plain_chat_completion(client: EndpointJudge, server: chat_server.ChatServer) -> None:
    assert ask(client) == [(1.0, "")]
    (body,) = server.requests
    assert body["model"] == "tiny"
    assert body["temperature"] == 0
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert server.keys == [f"Bearer {chat_server.KEY}"]


@pytest.mark.parametrize("fault", [429, 500, 502, 503, "drip", "huge", "hangup"])
def test_what_passes_is_tried_again(client: EndpointJudge, server, waits: list[float], fault) -> None:
    server.faults = [fault, fault]
    assert ask(client) == [(1.0, "")]
    assert client.calls == 3
    assert len(waits) == 2
    assert 0 < waits[0] <= 0.5 < 2 * waits[1] <= 2


def test_one_question_that_gets_no_answer_is_unusable_and_not_a_loss(client: EndpointJudge, server) -> None:
    assert ask(client) == [(1.0, "")]
    server.faults = [503] * 3
    assert ask(client) == [(None, "server: status 503")]
    assert client.calls == 4


def test_server_that_never_answers_ends_it_at_the_first_question(client: EndpointJudge, server) -> None:
    server.faults = [503] * 90
    with pytest.raises(MachineError, match=r"127\.0\.0\.1 does not answer \(status 503\)"):
        ask(client, 20)
    assert client.calls == 3


def test_a_reply_is_kept_as_it_arrives_whatever_the_caller_does(client: EndpointJudge, server) -> None:
    """What is paid for is on disk before the caller comes back for it: it may be killed meanwhile."""
    kept: list[Shown] = []
    client.keep = lambda question, verdict: kept.append(question)
    verdicts = client.ask(some(20))
    for _ in range(FIRST + 1):
        next(verdicts)
    wait_for(lambda: len(server.requests) == len(kept) == FIRST + client.limits.concurrency, 10)
    verdicts.close()


def test_slow_drip_ends_at_the_deadline(client: EndpointJudge, server) -> None:
    server.faults = ["drip"] * 3
    began = time.monotonic()
    with pytest.raises(MachineError, match="within 1 s"):
        ask(client)
    assert time.monotonic() - began < 4.5


@pytest.mark.parametrize(("wait", "least"), [("2", 2.0), ("60", 60.0), ("0", 0.0)])
def test_retry_after_is_honoured(client: EndpointJudge, server, waits: list[float], wait: str, least: float) -> None:
    server.faults = [(429, {"Retry-After": wait})]
    assert ask(client) == [(1.0, "")]
    assert waits[0] >= least


def test_absurd_retry_after_is_not(client: EndpointJudge, server, waits: list[float]) -> None:
    server.faults = [(429, {"Retry-After": "86400"})]
    assert ask(client) == [(1.0, "")]
    assert waits[0] <= 0.5


def test_retry_after_reads_numbers_and_dates() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after(soon) == pytest.approx(30, abs=3)
    assert retry_after("1.5") == 1.5
    assert retry_after("-4") == 0
    assert [retry_after(value) for value in (None, "soon", "nan")] == [None, None, None]


@pytest.mark.parametrize(
    ("fault", "error"),
    [("html", "not a chat completion"), ("empty", "not a chat completion"), ("null", "empty reply"),
     ("length", "cut off"), ("prose", "no plain verdict"), ("nested", "not a chat completion")],
)  # fmt: skip
def test_unusable_replies_are_asked_for_once_more_then_counted(client: EndpointJudge, server, fault, error) -> None:
    server.faults = [fault]
    assert ask(client) == [(1.0, "")]
    assert "could not be read" in server.requests[1]["messages"][0]["content"]
    server.faults = [fault] * 2
    ((first, said),) = ask(client)
    assert first is None
    assert error in said
    assert client.calls == 4


@pytest.mark.parametrize(
    ("fault", "said"), [(401, "key"), (403, "key"), (404, "no such model"), (400, "refuses"), ("redirect", "redirects")]
)
def test_refusals_end_it_after_one_call(client: EndpointJudge, server, fault, said: str, caplog) -> None:
    server.faults = [fault] * 50
    with caplog.at_level(logging.DEBUG), pytest.raises(MachineError, match=said) as problem:
        ask(client, 20)
    assert len(server.requests) == 1, "and a redirect is not followed"
    assert chat_server.KEY not in str(problem.value) + repr(problem.value) + caplog.text


def test_one_question_that_a_server_refuses_does_not_end_the_others(client: EndpointJudge, server) -> None:
    server.faults = [None, 400, 400]
    assert ask(client, 2) == [(1.0, ""), (None, "refused by the server: status 400")]
    assert [first for first, _ in ask(client, 2)] == [1.0, 1.0]


def test_calls_are_limited_and_concurrent(server, waits: list[float]) -> None:
    server.delay_s = 0.05
    with EndpointJudge("tiny", base_url=server.url, limits=Limits(concurrency=3), sleep=waits.append) as judge:
        assert len(ask(judge, 13)) == 13
    assert server.most_at_once == 3
    before = len(server.requests)
    answers = []
    limited = EndpointJudge("tiny", base_url=server.url, limits=Limits(max_calls=5), sleep=waits.append)
    with limited, pytest.raises(IncompleteError, match="--max-calls 5"):
        answers.extend(limited.ask(some(13)))
    assert len(server.requests) - before == 5
    assert len(answers) == 5, "what was paid for is given, though others were not asked"


def test_newer_name_of_the_length_limit(client: EndpointJudge, server) -> None:
    server.newer = True
    assert [first for first, _ in ask(client, 4)] == [1.0] * 4
    assert ["max_tokens" in body for body in server.requests] == [True] + [False] * 4
    assert all("max_completion_tokens" in body for body in server.requests[1:])


def refusal(name: str, message: str = "") -> bytes:
    said = message or f"Unsupported value: '{name}' does not support 0 with this model. Only the default is supported."
    return json.dumps({"error": {"message": said, "param": name, "code": "unsupported_value"}}).encode()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("temperature", ""),
        ("temperature", "`temperature` must be strictly positive"),
        ("max_tokens", "Unrecognized request argument supplied: max_tokens"),
    ],
)
def test_a_parameter_that_the_server_refuses_is_left_out(client: EndpointJudge, server, name: str, said: str) -> None:
    server.refuses = {name: refusal(name, said)}
    assert [first for first, _ in ask(client, 5)] == [1.0] * 5
    assert [name in body for body in server.requests] == [True] + [False] * 5
    assert client.facts()["refused parameters"] == [name]


def test_several_refused_parameters_are_left_out_one_after_the_other(client: EndpointJudge, server) -> None:
    server.newer = True
    server.refuses = {"temperature": refusal("temperature")}
    assert [first for first, _ in ask(client, 4)] == [1.0] * 4
    assert set(server.requests[-1]) == {"model", "messages", "max_completion_tokens"}


def test_a_limit_that_is_too_large_is_not_left_out(client: EndpointJudge, server) -> None:
    said = "max_tokens is too large: 512. This model's maximum context length is 128 tokens."
    server.refuses = {"max_tokens": refusal("max_tokens", said)}
    with pytest.raises(
        MachineError, match=r"refuses the request \(status 400\); it says: max_tokens is too large: 512"
    ):
        ask(client, 5)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, {"error": {"message": "The model `tiny` does not exist"}}, "no such model or path .* it says: The model"),
        (400, {"message": "context length is 128 tokens"}, "it says: context length is 128 tokens"),
        (400, {"error": "busy doing nothing"}, "it says: busy doing nothing"),
        (401, {"detail": "Invalid key"}, "key or the account .* it says: Invalid key"),
        (
            429,
            {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}},
            "no more budget",
        ),
    ],
)
def test_refusals_are_in_the_servers_own_words(client: EndpointJudge, server, status: int, body, said: str) -> None:
    server.faults = [(status, {}, json.dumps(body).encode())] * 40
    with pytest.raises(MachineError, match=said):
        ask(client, 20)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("message", "finish", "error"),
    [
        ({"content": "", "reasoning_content": "endless"}, "length", "cut off while it was thinking, after 512 tokens"),
        (
            {"content": "<think>on and on"},
            "length",
            "cut off while it was thinking, after 512 tokens: raise --max-tokens",
        ),
        ({"content": "Well, A is"}, "length", "cut off, after 512 tokens: raise --max-tokens"),
        ({"content": "<think>A"}, "stop", "a thought without an end"),
        ({"content": None, "reasoning": "hm"}, "stop", "a thought without an end"),
        ({"content": None}, "stop", "empty reply"),
    ],
)
def test_thoughts_that_leave_no_verdict_are_named(client: EndpointJudge, message, finish: str, error: str) -> None:
    body = json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode()
    verdict = client.verdict_of(body)
    assert verdict.first is None
    assert verdict.error.startswith(error)


def test_content_in_parts_is_read(client: EndpointJudge) -> None:
    body = json.dumps({"choices": [{"message": {"content": [{"type": "text", "text": "B"}]}}]}).encode()
    assert client.verdict_of(body).first == 0.0


def test_a_judge_without_letters_is_stopped_after_three_questions_and_shown(client: EndpointJudge, server) -> None:
    server.always = "prose"
    said = r"none of the first 3 questions got a verdict \(no plain verdict\); it wrote: 'Both are fine, but A and B"
    with pytest.raises(MachineError, match=said):
        ask(client, 50)
    assert len(server.requests) == 2 * FIRST


def test_a_dozen_unusable_replies_in_a_row_stop_it(client: EndpointJudge, server) -> None:
    server.faults = [None] * 9
    server.always = "prose"
    answers = []
    with pytest.raises(MachineError, match="12 replies in a row were no verdict"):
        answers.extend(client.ask(some(200)))
    assert len(server.requests) <= 9 + MOST_UNUSABLE + 2 * client.limits.concurrency
    assert sum(verdict.first is not None for _, verdict in answers) == 9, "what was read before is given"


def test_unusable_replies_here_and_there_do_not_stop_it(server) -> None:
    server.faults = [None, None, None, *(["prose"] * 2 + [None]) * 30]
    with EndpointJudge("tiny", base_url=server.url, limits=Limits(concurrency=1)) as judge:
        verdicts = ask(judge, 60)
    assert sum(first is None for first, _ in verdicts) == 29, "every other one of 57"


def test_changed_model_is_flagged(tmp_path: Path, server) -> None:
    server.names = ["model-1"] * 9 + ["model-2"]
    folder = judged.write(tmp_path / "x", {"better": 2}, seeds=1)
    cache = Cache(tmp_path / "c.sqlite")
    with EndpointJudge("tiny", base_url=server.url) as judge:
        record = judge_folder(folder, judge, questions(folder, prompts=2), cache=cache, progress=Silent())
    assert any("changed its model" in problem for problem in record["problems"])


def test_a_server_that_echoes_the_key_does_not_spread_it(client: EndpointJudge, server) -> None:
    server.faults = ["echo", "echo"]
    ((_, verdict),) = client.ask(some())
    assert verdict.reply == "you sent [key]"


@pytest.mark.parametrize(
    "url", ["https://api.example.com/v1/", "http://127.0.0.1:8000/v1", "http://localhost/v1", "http://[::1]:1/v1"]
)
def test_urls_that_may_be_called(url: str) -> None:
    assert check_url(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    ["http://api.example.com/v1", "https://user:swordfish@host/v1", "http://169.254.169.254/v1", "https://169.254.169.254",
     "ftp://127.0.0.1", "127.0.0.1:8000", "", "http://127.0.0.1.example.com/v1", "https:///v1", "https://h/v1?key=1",
     "http://0.0.0.0:1/v1", "https://[fe80::1]/v1", "file:///etc/passwd"],
)  # fmt: skip
def test_urls_that_may_not(url: str) -> None:
    with pytest.raises(UsageError, match="--base-url") as problem:
        check_url(url)
    assert "swordfish" not in str(problem.value)


def test_whole_command_plan_limit_run_and_no_key_anywhere(tmp_path: Path, server, monkeypatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", chat_server.KEY)
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    folder = judged.write(tmp_path / "x", {"better": 2, "same": 1}, seeds=1)
    server.faults = ["prose", "prose"]

    def request(**limits: int) -> JudgeRequest:
        return JudgeRequest(
            folder.root, "openai:tiny", base_url=server.url, key_variable="JUDGE_KEY", limits=Limits(**limits)
        )

    plan = judging.plan(request())
    assert server.requests == []
    assert plan.calls == plan.facts["verdicts"]
    assert plan.facts["tokens"] > 100 * plan.calls
    with pytest.raises(UsageError, match=f"needs {plan.calls} calls"):
        judging.run(request(max_calls=plan.calls - 1), Silent())
    assert server.requests == []
    record = judging.run(request(max_calls=plan.calls + 1), Silent())
    assert len(server.requests) == plan.calls + 1
    assert judging.plan(request()).calls == 1, "the unusable reply alone is to be asked for again"
    assert chat_server.KEY in server.keys[0]
    assert chat_server.KEY not in json.dumps(record)
    for path in [*folder.root.rglob("*"), *(tmp_path / "cache").rglob("*")]:
        assert not path.is_file() or chat_server.KEY.encode() not in path.read_bytes(), path
