"""Any OpenAI-compatible chat server as a judge: who may be called, how often, for how long, and what counts."""

from __future__ import annotations

import ipaddress
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from prefopt.errors import IncompleteError, MachineError, UsageError
from prefopt.judges.contract import TEMPLATE_HASH, Shown, Verdict, parse_reply, question_text, short_name
from prefopt.storage.hashing import digest

BODY_LIMIT = 1 << 20  # bytes of a reply; a verdict is one letter
LONGEST_WAIT_S = 60.0
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_ONE_QUESTION = frozenset({400, 413, 422})


@dataclass(frozen=True, slots=True)
class Limits:
    """What a judging may cost.

    Attributes:
        max_calls: HTTP requests at most, retries among them; None for no limit.
        concurrency: Requests under way at once.
        retries: Of one question that the server could not take just now.
        connect_s, read_s, total_s: Deadlines of one request: to connect, between two bytes, and in all.
        max_tokens: Of a reply; models that reason before they answer need more than one letter.
    """

    max_calls: int | None = None
    concurrency: int = 4
    retries: int = 5
    connect_s: float = 10.0
    read_s: float = 120.0
    total_s: float = 120.0
    max_tokens: int = 512


def check_url(url: str) -> str:
    """``url`` without a trailing slash, if texts and a key may be sent there.

    Raises:
        UsageError: If it is neither https nor this machine, carries a password, or is a link-local address.
    """
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError, ValueError):
        raise UsageError("--base-url: not a URL; write such as https://host/v1") from None
    if parsed.userinfo:
        raise UsageError("--base-url: holds a user name or password; keys belong in an environment variable")
    host = parsed.host.strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    here = host == "localhost" or (address is not None and address.is_loopback)
    if not host or not (parsed.scheme == "https" or (parsed.scheme == "http" and here)):
        raise UsageError(f"--base-url {parsed.scheme}://{host}: must be https, or http to this machine")
    if address is not None and (address.is_link_local or address.is_unspecified or address.is_multicast):
        raise UsageError(f"--base-url: {host} is an address of no judge")
    if parsed.query or parsed.fragment:
        raise UsageError("--base-url: holds a query or fragment; write such as https://host/v1")
    return str(parsed).rstrip("/")


class _UnavailableError(Exception):
    """The server could not answer just now; ``wait_s`` is what it asked for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class EndpointJudge:
    """A chat model behind ``POST <base_url>/chat/completions``, asked for one letter at temperature 0.

    Args:
        model: As the server calls it.
        base_url: Up to and with ``/v1``.
        key: Sent as a bearer token if there is one; never shown, stored or part of any message.
        limits: What may be spent.
        sleep: For tests.

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
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.model, self.base_url, self.limits = model, check_url(base_url), limits or Limits()
        self.name = f"openai:{short_name(model)}"
        host = httpx2.URL(self.base_url).host
        self.fingerprint = digest(["openai", model, self.base_url, TEMPLATE_HASH, self.limits.max_tokens])
        self.calls = 0
        self.tokens = {"prompt_tokens": 0, "completion_tokens": 0}
        self.served: set[str] = set()
        self._sleep = sleep
        self._jitter = random.Random()
        self._answered = False
        self._lock = threading.Lock()
        self._length_field = "max_tokens"
        self._key = key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(
            headers=headers,
            follow_redirects=False,
            timeout=httpx2.Timeout(self.limits.read_s, connect=self.limits.connect_s),
            trust_env=host not in ("localhost", "127.0.0.1", "::1"),  # no proxy between this machine and itself
        )

    def ask(self, questions: Sequence[Shown]) -> Iterator[tuple[int, Verdict]]:
        """Verdicts as they come in; the first question is asked alone, so that a wrong key or name costs one call.

        Raises:
            MachineError: If the server refuses the key, the model or the path.
            IncompleteError: If ``max_calls`` is spent.
        """
        if not questions:
            return
        yield 0, self._verdict(questions[0])
        with ThreadPoolExecutor(max_workers=self.limits.concurrency) as pool:
            waiting: dict[Future[Verdict], int] = {}
            try:
                for i, question in enumerate(questions[1:], start=1):
                    waiting[pool.submit(self._verdict, question)] = i
                for done in as_completed(waiting):
                    yield waiting[done], done.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def facts(self) -> dict[str, object]:
        """The server and models that answered; more than one model means that it changed under way."""
        host = httpx2.URL(self.base_url).host
        return {"host": host, "served": sorted(self.served), "calls": self.calls, **self.tokens}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _verdict(self, question: Shown) -> Verdict:
        """One question; an unusable reply is asked for once more, and a server that fails up to ``retries`` times."""
        verdict = Verdict(None)
        for again in (False, True):
            verdict = self._patiently(question_text(question, again=again))
            if verdict.first is not None or verdict.error.startswith("server: "):
                break
        return verdict

    def _patiently(self, text: str) -> Verdict:
        for attempt in range(self.limits.retries + 1):
            try:
                return self._read(self._post(text))
            except _UnavailableError as problem:
                if attempt == self.limits.retries:
                    return Verdict(None, f"server: {problem}")
                backoff = min(LONGEST_WAIT_S, 0.5 * 2**attempt) * self._jitter.uniform(0.5, 1.0)
                asked = problem.wait_s
                self._sleep(max(asked, backoff) if asked is not None and asked <= LONGEST_WAIT_S else backoff)
        raise AssertionError("unreachable: the last attempt returns")

    def _post(self, text: str) -> bytes:
        """The body of a 200 reply.

        Raises:
            _UnavailableError: If it may work later.
        """
        with self._lock:
            if self.limits.max_calls is not None and self.calls >= self.limits.max_calls:
                raise IncompleteError(
                    f"{self.name}: --max-calls {self.limits.max_calls} is spent; what was answered is kept, "
                    "and the same command with a higher limit goes on from there"
                )
            self.calls += 1
        message = {"model": self.model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        message[self._length_field] = self.limits.max_tokens
        deadline = time.monotonic() + self.limits.total_s
        try:
            with self._client.stream("POST", f"{self.base_url}/chat/completions", json=message) as reply:
                body = bytearray()
                for part in reply.iter_bytes():
                    body += part
                    if len(body) > BODY_LIMIT:
                        raise _UnavailableError(f"reply of more than {BODY_LIMIT} bytes")
                    if time.monotonic() > deadline:
                        raise _UnavailableError(f"no whole reply within {self.limits.total_s:g} s")
                status, headers = reply.status_code, reply.headers
        except (httpx2.HTTPError, httpx2.StreamError) as problem:
            raise _UnavailableError(type(problem).__name__) from None
        if status == 200:
            self._answered = True
            return bytes(body)
        if status == 400 and self._length_field == "max_tokens" and b"max_completion_tokens" in body:
            self._length_field = "max_completion_tokens"  # newer models know the limit by this name only
            return self._post(text)
        if status in _PASSING:
            raise _UnavailableError(f"status {status}", retry_after(headers.get("retry-after")))
        if status in _ONE_QUESTION and self._answered:
            return json.dumps({"refused": status}).encode()  # such as a question too long: others go on
        raise MachineError(f"{self.name}: {self._refusal(status)}")

    def _refusal(self, status: int) -> str:
        host = httpx2.URL(self.base_url).host
        if status in (401, 402, 403):
            return f"{host} refuses the key or the account (status {status}); set the key's environment variable"
        if status in (404, 405):
            return f"{host} has no such model or path (status {status}); check the name and --base-url"
        if 300 <= status < 400:
            return f"{host} redirects (status {status}), which is not followed; give the final --base-url"
        return f"{host} refuses the request (status {status})"

    def _read(self, body: bytes) -> Verdict:
        """The verdict in a chat completion; anything else is unusable, and says why."""
        try:
            value = json.loads(body)
            choice = value["choices"][0]
            content = choice["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            return Verdict(None, "not a chat completion", self._excerpt(body.decode("utf-8", "replace")))
        self._note(value)
        if not isinstance(content, str) or not content.strip():
            return Verdict(None, "empty reply")
        if choice.get("finish_reason") == "length":
            return Verdict(None, "cut off at the longest reply", self._excerpt(content))
        first = parse_reply(content)
        return Verdict(first) if first is not None else Verdict(None, "no plain verdict", self._excerpt(content))

    def _excerpt(self, text: str) -> str:
        """The start of a reply, to be kept; a server that echoes its requests must not spread the key."""
        return (text.replace(self._key, "[key]") if self._key else text)[:200]

    def _note(self, value: dict[str, Any]) -> None:
        with self._lock:
            known = [str(value[key]) for key in ("model", "system_fingerprint") if value.get(key)]
            served = [name.replace(self.model, short_name(self.model))[:120] for name in known]
            if served:
                self.served.add(" ".join(served))
            usage = value.get("usage")
            for key in self.tokens:
                count = usage.get(key) if isinstance(usage, dict) else None
                self.tokens[key] += count if isinstance(count, int) and count >= 0 else 0


def retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, a number or a date; None where it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = ((when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if seconds == seconds else None


def key_from_environment(name: str) -> str | None:
    """The key in an environment variable, or None where it is not set."""
    return os.environ.get(name, "").strip() or None
