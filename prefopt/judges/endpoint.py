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
from prefopt.judges.contract import TEMPLATE_HASH, Shown, Verdict, question_text, short_name
from prefopt.judges.replies import parse_reply, without_thoughts
from prefopt.judges.request import Limits
from prefopt.storage.hashing import digest

LONGEST_WAIT_S = 60.0
GIVE_UP_AFTER = 3  # questions in a row that got no answer however often they were sent
_MOST_TOKENS = 10**9  # of one reply; a larger count is no count
FIRST = 3  # questions that are asked one by one before all others
MOST_UNUSABLE = 12  # replies in a row
WITHHELD = "withheld by the server's content filter"
OPEN_ENDED = "a thought without an end, and no verdict behind it"


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
        self._no_verdict = 0  # replies in a row
        self._why: MachineError | None = None  # it gave up
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
        """Verdicts as they come in; three questions are asked one by one first, from the start, the middle and the end.

        So a wrong key or name costs one call, and a judge that does not answer in letters at all a few. A question is
        sent only once the caller has dealt with the verdict before it, so that a caller who is killed loses no more
        than what is under way. Where it ends early, by an error or by a signal, requests under way are waited for and
        their verdicts given before the error is raised, since they are paid for.

        Raises:
            MachineError: If the server refuses the key, the model or the path, or does not answer any more, or if none
                of the first replies, or of a dozen in a row, is a verdict.
            IncompleteError: If ``max_calls`` is spent.
        """
        if not questions:
            return
        self._stop.clear()
        self._why = None
        first = list(dict.fromkeys((0, len(questions) // 2, len(questions) - 1)))
        verdicts = []
        for i in first:
            verdicts.append(self._verdict(questions[i]))
            yield i, verdicts[-1]
        if len(first) == FIRST < len(questions) and all(verdict.first is None for verdict in verdicts):
            raise self._unusable(f"none of the first {FIRST} questions got a verdict", verdicts[-1])
        rest = iter(i for i in range(len(questions)) if i not in first)
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
        dropped = {"refused parameters": self.client.dropped} if self.client.dropped else {}
        return {"host": self.client.host, "served": sorted(self.served), "calls": self.calls, **self.tokens, **dropped}

    def _verdict(self, question: Shown) -> Verdict:
        """One question; a reply that is no verdict is asked for once more, in stricter words."""
        verdict = Verdict(None)
        for again in (False, True):
            verdict = self._patiently(question_text(question, again=again))
            if verdict.error.startswith("server: "):
                break
            self._count_unusable(verdict)
            if verdict.first is not None:
                break
        self.keep(question, verdict)
        return verdict

    def _count_unusable(self, verdict: Verdict) -> None:
        """Stop where so many replies in a row are no verdict that the rest would be none either."""
        with self._lock:
            self._no_verdict = 0 if verdict.first is not None else self._no_verdict + 1
            if self._no_verdict < MOST_UNUSABLE or self._stop.is_set():
                return
        raise self._give_up(self._unusable(f"{MOST_UNUSABLE} replies in a row were no verdict", verdict))

    def _give_up(self, why: MachineError) -> MachineError:
        """``why`` itself, which is also what every question under way ends with."""
        self._why = why
        self._stop.set()
        return why

    def _unusable(self, what: str, verdict: Verdict) -> MachineError:
        """An error that shows one of the replies."""
        shown = f"; it wrote: {verdict.reply!r}" if verdict.reply else ""
        return MachineError(
            f"{self.name}: {what} ({verdict.error}){shown}. Verdicts before are kept. Take another model, or look at "
            "its chat template and at --max-tokens"
        )

    def _patiently(self, text: str) -> Verdict:
        """One message, sent again with growing pauses while the server cannot answer it."""
        for attempt in range(self.limits.retries + 1):
            if self._stop.is_set():
                raise self._why or MachineError(f"{self.name}: stopped before this question was answered")
            try:
                body = self.client.post(text)
            except RefusedQuestionError as problem:
                self._unanswered = 0
                return Verdict(None, f"refused by the server: {problem}", problem.said)
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
        kept = "the verdicts that it gave before are kept, and " if self.client.answered else ""
        said = f"{self.client.host} does not answer ({problem}); {kept}the same command goes on once it does"
        raise self._give_up(MachineError(f"{self.name}: {said}"))

    def verdict_of(self, body: bytes) -> Verdict:
        """The verdict in a chat completion; anything else is unusable, and says why."""
        try:
            value = json.loads(body)
            choice = value["choices"][0]
            message, finish = choice["message"], choice.get("finish_reason")
            content = _text_of(message["content"])
            thought = any(isinstance(message.get(name), str) and message[name] for name in _THOUGHT_FIELDS)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return Verdict(None, "not a chat completion", self._excerpt(body.decode("utf-8", "replace")))
        self._note(value)
        error = self._no_verdict_because(content, finish, thought)
        if error:
            return Verdict(None, error, self._excerpt(content))
        first = parse_reply(content)
        return Verdict(first) if first is not None else Verdict(None, "no plain verdict", self._excerpt(content))

    def _no_verdict_because(self, content: str, finish: object, thought: bool) -> str:
        """Why a reply cannot hold a verdict; empty where it may."""
        rest, is_open = without_thoughts(content)
        if finish == "length":
            thinking = is_open or (thought and not rest.strip())
            while_ = " while it was thinking" if thinking else ""
            return f"cut off{while_}, after {self.limits.max_tokens} tokens: raise --max-tokens"
        if finish == "content_filter":
            return WITHHELD
        if is_open or (thought and not rest.strip()):
            return OPEN_ENDED
        return "" if content.strip() else "empty reply"

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


_THOUGHT_FIELDS = ("reasoning_content", "reasoning")  # where servers put thoughts apart from the reply


def _text_of(content: object) -> str:
    """A message's text, which some servers send as a list of parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""
