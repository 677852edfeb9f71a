"""A chat-completions server on loopback that runs a real model through transformers, and misbehaves when told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

KEY = "sk-secret-of-the-tests"


class ChatServer:
    """State of one server.

    Attributes:
        faults: What the next requests meet, first in first out: a status, ``html``, ``empty``, ``null``, ``length``,
            ``prose``, ``echo``, ``drip``, ``huge``, ``redirect``, (status, headers) or (status, headers, body), or a
            name of ``manners``.
        always: A fault that every other request meets.
        dies_after: Requests that are answered before every connection is cut; None for no end.
        newer: Whether the reply's length is known by its newer name only.
        refuses: Bodies of refusals by the parameter that is refused where it is sent.
        requests: Bodies received.
        keys: Authorization headers received.
    """

    def __init__(self, model: Any = None, tokenizer: Any = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.faults: list[Any] = []
        self.always: Any = None
        self.dies_after: int | None = None
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.names = ["tiny"]
        self.at_once = self.most_at_once = 0
        self.delay_s = 0.0
        self.newer = False
        self.refuses: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.url = ""

    def answer(self, body: dict[str, Any]) -> str:
        """The letter that the model finds likeliest where an answer starts."""
        if self.model is None:
            return "A"
        text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"]])
        with self.lock, torch.inference_mode():
            logits = self.model(input_ids=ids).logits[0, -1]
        letters = {letter: self.tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "AB"}
        return max(letters, key=lambda letter: logits[letters[letter]].item())

    def completion(self, content: Any, finish: str = "stop") -> bytes:
        """A chat completion's body."""
        name = self.names.pop(0) if len(self.names) > 1 else self.names[0]
        choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content}}
        usage = {"prompt_tokens": 100, "completion_tokens": 1}
        return json.dumps({"id": "x", "model": name, "choices": [choice], "usage": usage}).encode()

    def manners(self, key: str) -> dict[str, bytes]:
        """Bodies of replies that are wrong in one way each; ``key`` is what the request carried."""
        plain = json.loads(self.completion("A"))
        count = b'{"choices": [{"message": {"content": "A"}}], "usage": {"prompt_tokens": %s}}' % (b"9" * 4299)
        return {
            "html": b"<html><body>It works!</body></html>",
            "empty": b'{"choices": []}',
            "null": self.completion(None),
            "length": self.completion("A", "length"),
            "filter": self.completion("A", "content_filter"),
            "twice": self.completion('{"verdict": "A", "verdict": "B"}'),
            "prose": self.completion("Both are fine, but A and B differ."),
            "half a character": json.dumps({**json.loads(self.completion("A \ud800")), "model": "\ud800x"}).encode(),
            "echo": self.completion(f"you sent {key}"),
            "key as model": json.dumps({**plain, "model": key}).encode(),
            "key as fingerprint": json.dumps({**plain, "system_fingerprint": f"k:{key}"}).encode(),
            "huge count": count,
            "huge": b" " * (3 << 20),
            "nested": b"[" * 200_000,
        }


def _handler(state: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

        def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, kind: str = "json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"application/{kind}")
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            state.requests.append({"redirected": self.path})
            self.reply(200, state.completion("A"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.requests.append(body)
                state.keys.append(self.headers.get("Authorization"))
                fault = state.faults.pop(0) if state.faults else state.always
                if state.dies_after is not None and len(state.requests) > state.dies_after:
                    fault = "hangup"
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                time.sleep(state.delay_s)
                self.misbehave(fault, body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client hung up, as it should
            finally:
                with state.lock:
                    state.at_once -= 1

        def misbehave(self, fault: Any, body: dict[str, Any]) -> None:
            if self.path != "/v1/chat/completions":
                self.reply(404, b"{}")
            elif state.newer and "max_tokens" in body:
                self.reply(400, b'{"error": "Unsupported: use max_completion_tokens"}')
            elif refused := next((name for name in state.refuses if name in body), None):
                self.reply(400, state.refuses[refused])
            elif fault is None:
                self.reply(200, state.completion(state.answer(body)))
            elif isinstance(fault, tuple):
                self.reply(fault[0], fault[2] if len(fault) > 2 else b'{"error": "busy"}', fault[1])
            elif isinstance(fault, int):
                self.reply(fault, f"no: {self.headers.get('Authorization')}".encode())
            elif fault == "redirect":
                self.reply(307, b"", {"Location": f"{state.url}/elsewhere"})
            elif fault == "drip":
                self.send_response(200)
                self.end_headers()
                for _ in range(100):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.05)
            elif fault == "hangup":
                self.connection.close()
            else:
                key = str(self.headers.get("Authorization")).removeprefix("Bearer ")
                self.reply(200, state.manners(key)[fault])

    return Handler


@contextmanager
def serve(model: Any = None, tokenizer: Any = None) -> Iterator[ChatServer]:
    """A running server; ``url`` is its base URL."""
    state = ChatServer(model, tokenizer)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
