"""Renders chat templates in a process of its own, so that a hostile or endless one harms nothing.

Run as a file by ``prefopt.data.render``: reads one JSON request from standard input, writes one JSON answer to
standard output. transformers' sandbox keeps a template from reaching code and files; this process bounds its memory
and, by an alarm that ends it whatever it is doing, its time; the caller bounds the time of all.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from datetime import datetime, tzinfo
from typing import Any

_EXTRA_MEMORY_BYTES = 512 * 1024**2
_MAX_GROWTH_CHARS = 100_000  # a template's own text, per message


class _FixedDate(datetime):
    """A template may write today's date into its prompts; this one keeps ids the same from day to day."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> _FixedDate:
        """The same moment always."""
        return cls(2024, 7, 26, tzinfo=tz)


def _limit_memory() -> None:
    with suppress(ImportError, OSError, ValueError):  # no such limit on this system: time is still bounded
        import resource
        from pathlib import Path

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + _EXTRA_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _set_alarm(seconds: float) -> None:
    """Let the system end this process in ``seconds``, unless it is set again; 0 calls it off."""
    with suppress(AttributeError):  # Windows has none
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _render(chat: dict[str, Any], template: str, special_tokens: dict[str, str]) -> dict[str, str]:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = chat["messages"]
    try:
        rendered, _ = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            add_generation_prompt=chat["generation"],
            **special_tokens,
        )
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as problem:  # whatever a template raises, by design or by mistake, is the row's to report
        return {"error": str(problem)[:200] or type(problem).__name__}
    given = sum(len(message["content"]) for message in messages)
    if len(rendered[0]) > 2 * given + _MAX_GROWTH_CHARS * len(messages):
        return {"error": f"it makes {len(rendered[0])} characters of {given}"}
    return {"text": rendered[0]}


def main() -> None:
    """Answer one request."""
    sys.modules["torch"] = None  # type: ignore[assignment] # templates need none of it, and it takes seconds to import
    from transformers.utils import chat_template_utils  # here, so that the memory limit counts from after it

    chat_template_utils.datetime = _FixedDate
    request = json.loads(sys.stdin.buffer.read())
    _limit_memory()
    answers = []
    for chat in request["chats"]:
        _set_alarm(request["chat_s"])
        answers.append(_render(chat, request["template"], request["special_tokens"]))
    _set_alarm(0)
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main()
