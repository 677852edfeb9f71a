"""Any OpenAI-compatible chat server as a judge: which replies count, how patient it is, and when it gives up."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from types import TracebackType
from typing import Any

from prefopt.errors import MachineError
from prefopt.judges.chat import ChatClient, RefusedQuestionError, UnavailableError
from prefopt.judges.contract import TEMPLATE_HASH, Shown, Verdict, parse_reply, question_text, short_name
from prefopt.judges.request import Limits
from prefopt.storage.hashing import digest

LONGEST_WAIT_S = 60.0
GIVE_UP_AFTER = 3  # questions in a row that got no answer however often they were sent
_MOST_TOKENS = 10**9  # of one reply; a larger count is no count
_NO_VERDICT_BY_FINISH = {
    "length": "cut off at the longest reply",
    "content_filter": "withheld by the server's content filter",
}


class EndpointJudge:
    """A chat model behind ``POST <base_url>/chat/completions``, asked for one letter at temperature 0.

    Use it as a context manager, which closes its connections.

    Args:
        model: As the server calls it.
        base_url: Up to and with ``/v1``.
        key: Sent as a bearer token if there is one; never shown, stored or part of any message.
        limits: What may be spent.
        sleep: How it waits between two tries; a test may give another way.

    Attributes:
        keep: Called with each question and its verdict as soon as the reply is there, by the thread that has it: what
            is paid for must not wait for the caller of ``ask``, who may be killed.

    Raises:
        UsageError: If the URL is refused.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        key: str | None = None,
        limits: Limits | None = None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.model, self.limits = model, limits or Limits()
        self.name = f"openai:{short_name(model)}"
        self.client = ChatClient(self.name, model, base_url=base_url, key=key, limits=self.limits)
        self.fingerprint = digest(["openai", model, self.client.base_url, TEMPLATE_HASH, self.limits.max_tokens])
        self.tokens = {"prompt_tokens": 0, "completion_tokens": 0}
        self.served: set[str] = set()
        self._stop = threading.Event()
        self._sleep = sleep or self._stop.wait
        self._jitter = random.Random()
        self.keep: Callable[[Shown, Verdict], object] = lambda question, verdict: None
        self._unanswered = 0  # questions in a row
        self._lock = threading.Lock()

    def __enter__(self) -> EndpointJudge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()

    @property
    def calls(self) -> int:
        """Requests sent, repeated ones among them."""
        return self.client.calls

    def ask(self, questions: Sequence[Shown]) -> Iterator[tuple[int, Verdict]]:
        """Verdicts as they come in; the first question is asked alone, so that a wrong key or name costs one call.

        A question is sent only once the caller has dealt with the verdict before it, so that a caller who is killed
        loses no more than what is under way. Where it ends early, by an error or by a signal, requests under way are
        waited for and their verdicts given before the error is raised, since they are paid for.

        Raises:
            MachineError: If the server refuses the key, the model or the path, or does not answer any more.
            IncompleteError: If ``max_calls`` is spent.
        """
        if not questions:
            return
        self._stop.clear()
        yield 0, self._verdict(questions[0])
        rest = iter(range(1, len(questions)))
        pool = ThreadPoolExecutor(max_workers=self.limits.concurrency)
        waiting: dict[Future[Verdict], int] = {}
        try:
            for i in islice(rest, self.limits.concurrency):
                waiting[pool.submit(self._verdict, questions[i])] = i
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    verdict = future.result()
                    yield waiting.pop(future), verdict
                    for i in islice(rest, 1):
                        waiting[pool.submit(self._verdict, questions[i])] = i
        except GeneratorExit:
            raise
        except BaseException:
            self._stop.set()
            pool.shutdown(wait=True)
            yield from ((i, future.result()) for future, i in waiting.items() if future.exception() is None)
            raise
        finally:
            self._stop.set()
            pool.shutdown(wait=False)

    def facts(self) -> dict[str, object]:
        """The server and models that answered; more than one model means that it changed under way."""
        return {"host": self.client.host, "served": sorted(self.served), "calls": self.calls, **self.tokens}

    def _verdict(self, question: Shown) -> Verdict:
        """One question; a reply that is no verdict is asked for once more, in stricter words."""
        verdict = Verdict(None)
        for again in (False, True):
            verdict = self._patiently(question_text(question, again=again))
            if verdict.first is not None or verdict.error.startswith("server: "):
                break
        self.keep(question, verdict)
        return verdict

    def _patiently(self, text: str) -> Verdict:
        """One message, sent again with growing pauses while the server cannot answer it."""
        for attempt in range(self.limits.retries + 1):
            if self._stop.is_set():
                raise MachineError(f"{self.name}: stopped before this question was answered")
            try:
                body = self.client.post(text)
            except RefusedQuestionError as problem:
                self._unanswered = 0
                return Verdict(None, f"refused by the server: {problem}")
            except UnavailableError as problem:
                hopeless = problem.unreachable and not self.client.answered and attempt >= 1
                if hopeless or attempt == self.limits.retries:
                    return self._without_answer(problem)
                self._sleep(self._pause_s(attempt, problem.wait_s))
            else:
                self._unanswered = 0
                return self.verdict_of(body)
        raise AssertionError("unreachable: the last attempt returns")

    def _pause_s(self, attempt: int, requested_s: float | None) -> float:
        """Seconds before the next try: what the server asked for within reason, else a growing pause."""
        backoff: float = min(LONGEST_WAIT_S, 0.5 * 2**attempt) * self._jitter.uniform(0.5, 1.0)
        if requested_s is None or requested_s > LONGEST_WAIT_S:
            return backoff
        return max(requested_s, backoff)

    def _without_answer(self, problem: UnavailableError) -> Verdict:
        """No verdict for one question, unless so many went without an answer that the server must be down."""
        with self._lock:
            self._unanswered += 1
            if self.client.answered and self._unanswered < GIVE_UP_AFTER:
                return Verdict(None, f"server: {problem}")
        self._stop.set()
        kept = "the verdicts that it gave before are kept, and " if self.client.answered else ""
        raise MachineError(
            f"{self.name}: {self.client.host} does not answer ({problem}); {kept}the same command goes on once it does"
        )

    def verdict_of(self, body: bytes) -> Verdict:
        """The verdict in a chat completion; anything else is unusable, and says why."""
        try:
            value = json.loads(body)
            choice = value["choices"][0]
            content, finish = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return Verdict(None, "not a chat completion", self._excerpt(body.decode("utf-8", "replace")))
        self._note(value)
        if not isinstance(content, str) or not content.strip():
            return Verdict(None, "empty reply")
        if isinstance(finish, str) and finish in _NO_VERDICT_BY_FINISH:
            return Verdict(None, _NO_VERDICT_BY_FINISH[finish], self._excerpt(content))
        first = parse_reply(content)
        return Verdict(first) if first is not None else Verdict(None, "no plain verdict", self._excerpt(content))

    def _excerpt(self, text: str) -> str:
        """The start of a reply, to be kept; a server that echoes its requests must not spread the key."""
        return self.client.public(text)[:200]

    def _note(self, value: dict[str, Any]) -> None:
        """Add to what is known of the server: the model that answered, and the tokens that it counted."""
        names = [
            value[key] for key in ("model", "system_fingerprint") if isinstance(value.get(key), str) and value[key]
        ]
        known = [self.client.public(name).replace(self.model, short_name(self.model))[:120] for name in names]
        usage = value.get("usage")
        with self._lock:
            if known:
                self.served.add(" ".join(known))
            for key in self.tokens:
                count = usage.get(key) if isinstance(usage, dict) else None
                self.tokens[key] += count if type(count) is int and 0 <= count <= _MOST_TOKENS else 0
