"""Sends one request to an OpenAI-compatible chat server: its limits, what it refuses, and what each failure means."""

from __future__ import annotations

import json
import re
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from prefopt.errors import IncompleteError, MachineError
from prefopt.judges.address import check_url
from prefopt.judges.request import Limits

BODY_LIMIT = 1 << 20  # bytes of a reply; a verdict is one letter
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_ONE_QUESTION = frozenset({400, 413, 422})
_SPENT = re.compile(r"insufficient_quota|exceeded your current quota|billing|credit balance", re.IGNORECASE)
_UNKNOWN = re.compile(r"unsupported|not support|unrecogni|unknown|unexpected|extra|not permitted|not allowed|invalid",
                      re.IGNORECASE)  # fmt: skip
_TOO_LARGE = re.compile(r"too large|at most|maximum|exceed|less than|greater than|out of range", re.IGNORECASE)
LONGEST_WORDS = 300  # characters of what a server says


class UnavailableError(Exception):
    """The server could not answer just now.

    Attributes:
        wait_s: The seconds that it asked to be left alone, if it did.
        unreachable: Whether no connection came about at all.
    """

    def __init__(self, reason: str, *, wait_s: float | None = None, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.wait_s, self.unreachable = wait_s, unreachable


class RefusedQuestionError(Exception):
    """The server refuses one question, such as one that is too long, and may answer others.

    Attributes:
        said: Its own words.
    """

    def __init__(self, reason: str, said: str = "") -> None:
        super().__init__(reason)
        self.said = said


class ChatClient:
    """``POST <base_url>/chat/completions`` for one model, at temperature 0 where the server lets itself be told.

    Args:
        name: The judge, as messages call it.
        model: As the server calls it.
        base_url: Up to and with ``/v1``.
        key: Sent as a bearer token if there is one.
        limits: What may be spent.

    Attributes:
        calls: Requests sent.
        answered: Whether the server has answered any of them.
        dropped: Parameters that the server refused, and that are not sent since.

    Raises:
        UsageError: If the URL is refused.
    """

    def __init__(self, name: str, model: str, *, base_url: str, key: str | None, limits: Limits) -> None:
        self.name, self.model, self.base_url, self.limits = name, model, check_url(base_url), limits
        self.host = httpx2.URL(self.base_url).host
        self.calls = 0
        self.answered = False
        self._key = key
        self._lock = threading.Lock()
        self.dropped: list[str] = []
        self._parameters: dict[str, Any] = {"temperature": 0, "max_tokens": limits.max_tokens}
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            follow_redirects=False,
            timeout=httpx2.Timeout(limits.read_s, connect=limits.connect_s),
            trust_env=self.host not in ("localhost", "127.0.0.1", "::1"),  # no proxy between this machine and itself
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def public(self, text: str) -> str:
        """What the server wrote, as it may be kept: without the key, and as text that a file can hold."""
        text = text.replace(self._key, "[key]") if self._key else text
        return text.encode("utf-8", "replace").decode()

    def post(self, text: str) -> bytes:
        """The body of the reply to one message.

        Raises:
            UnavailableError: If it may work later.
            RefusedQuestionError: If the server does not take this message, though it took others.
            MachineError: If the server refuses the key, the model or the path, in its own words.
            IncompleteError: If ``max_calls`` is spent.
        """
        self._count()
        sent = dict(self._parameters)
        status, headers, body = self._exchange(text, sent)
        if status == 200:
            self.answered = True
            return body
        said = self.words(body)
        if status in (400, 422) and self._without_refused(sent, said):
            return self.post(text)
        if status in _PASSING and not (status == 429 and _SPENT.search(said)):
            raise UnavailableError(f"status {status}", wait_s=retry_after(headers.get("retry-after")))
        if status in _ONE_QUESTION and self.answered:
            raise RefusedQuestionError(f"status {status}", said)
        raise MachineError(f"{self.name}: {self._refusal(status)}" + (f"; it says: {said}" if said else ""))

    def words(self, body: bytes) -> str:
        """What the server says went wrong, as it may be shown: its message, or the start of what it wrote."""
        text = body.decode("utf-8", "replace")
        try:
            value = json.loads(text)
            value = value.get("error", value) if isinstance(value, dict) else value
            if isinstance(value, dict):
                facts = [value.get(name) for name in ("message", "detail", "code", "param")]
                text = " · ".join(dict.fromkeys(str(fact) for fact in facts if fact)) or text
            else:
                text = str(value)
        except (ValueError, RecursionError):
            text = re.sub(r"<[^>]*>", " ", text)
        return " ".join(self.public(text).split())[:LONGEST_WORDS]

    def _without_refused(self, sent: dict[str, Any], said: str) -> bool:
        """Leave out, or call by its newer name, the parameter that the server refuses; whether to ask again.

        The limit of a reply is left out only where its name is not known, since without one a reply has no end.
        """
        with self._lock:
            if sent != self._parameters:  # another question has found out meanwhile
                return True
            if "max_tokens" in sent and "max_completion_tokens" in said:  # newer models know it by this name only
                self._parameters = {**sent, "max_completion_tokens": sent["max_tokens"]}
                del self._parameters["max_tokens"]
                return True
            for name in sent:
                unknown = _UNKNOWN.search(said) and not _TOO_LARGE.search(said)
                if re.search(rf"\b{name}\b", said) and (name == "temperature" or unknown):
                    self._parameters = {key: value for key, value in sent.items() if key != name}
                    self.dropped.append(name)
                    return True
        return False

    def _count(self) -> None:
        with self._lock:
            if self.limits.max_calls is not None and self.calls >= self.limits.max_calls:
                raise IncompleteError(
                    f"{self.name}: --max-calls {self.limits.max_calls} is spent; what was answered is kept, "
                    "and the same command with a higher limit goes on from there"
                )
            self.calls += 1

    def _exchange(self, text: str, parameters: dict[str, Any]) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and body of one request, within the deadline and the longest body."""
        message = {"model": self.model, "messages": [{"role": "user", "content": text}], **parameters}
        deadline = time.monotonic() + self.limits.total_s
        body = bytearray()
        try:
            with self._client.stream("POST", f"{self.base_url}/chat/completions", json=message) as reply:
                for part in reply.iter_bytes():
                    body += part
                    if len(body) > BODY_LIMIT:
                        raise UnavailableError(f"reply of more than {BODY_LIMIT} bytes")
                    if time.monotonic() > deadline:
                        raise UnavailableError(f"no whole reply within {self.limits.total_s:g} s")
                return reply.status_code, reply.headers, bytes(body)
        except httpx2.ConnectError:
            raise UnavailableError("no connection", unreachable=True) from None
        except (httpx2.HTTPError, httpx2.StreamError) as problem:
            raise UnavailableError(type(problem).__name__) from None

    def _refusal(self, status: int) -> str:
        if status in (401, 402, 403):
            return f"{self.host} refuses the key or the account (status {status}); set the key's environment variable"
        if status in (404, 405):
            return f"{self.host} has no such model or path (status {status}); check the name and --base-url"
        if 300 <= status < 400:
            return f"{self.host} redirects (status {status}), which is not followed; give the final --base-url"
        if status == 429:
            return f"{self.host} has no more budget for this key (status {status}); add to it, or use another key"
        return f"{self.host} refuses the request (status {status})"


def retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, a number or a date; None where it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
            seconds = ((when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
        except (ValueError, OverflowError):  # a year that no calendar has
            return None
    return max(0.0, seconds) if seconds == seconds else None
