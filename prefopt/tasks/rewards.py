"""Rewards of somebody else's: named on the command line, checked on a probe, and held to what they promise.

A reward is a function of N prompts and N responses that gives N numbers. A prompt is a text, or the messages of a chat
as a list of ``{"role": ..., "content": ...}``, whichever the prompts of the comparison are; a response is a text.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from prefopt.contract import plugin_files, registry
from prefopt.contract.plugin_process import in_this_process, while_loading
from prefopt.errors import PrefoptError, UsageError
from prefopt.storage.hashing import digest, sha256_file
from prefopt.tasks.base import Prompt, Task, TaskPrompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Floats = npt.NDArray[np.float64]
ENTRY_POINT_GROUP = "prefopt.rewards"
EMBEDDED = "imdb"
BATCH = 64  # responses of one call
FORMS = "imdb, rm:MODEL, bt:FOLDER, file.py:function, or the entry point of an installed package"
PROBE = (("The film", " was good."), ("I saw", " it twice, and it was a waste of time."), ("A", ""))
_MOST_SHOWN = 200


class RewardError(Exception):
    """A reward raised, hung, or gave what are not as many finite numbers as responses."""


class Reward(Protocol):
    """Scores responses.

    Attributes:
        name: As it was asked for.
        fingerprint: Changes whenever a score would.
    """

    name: str

    @property
    def fingerprint(self) -> str:
        """Hex digits."""

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Floats:
        """(N,) rewards; larger is better."""


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """A reward as it is asked for: its kind (imdb, rm, bt, file or entry) and what follows the colon."""

    text: str
    kind: str
    subject: str
    function: str = ""


def parse_reward(text: str) -> RewardSpec:
    """What ``imdb``, ``rm:MODEL``, ``bt:FOLDER``, ``file.py:function`` or ``NAME`` stands for.

    Raises:
        UsageError: If it is none of these, or names a file that is not there.
    """
    kind, colon, subject = text.partition(":")
    path, _, function = text.rpartition(":")
    subject, path = (str(Path(place).expanduser()) if place.startswith("~") else place for place in (subject, path))
    if text == EMBEDDED:
        return RewardSpec(text, EMBEDDED, "")
    if kind in ("rm", "bt") and subject:
        return RewardSpec(text, kind, subject)
    if path.endswith(".py") and function.isidentifier():
        if not Path(path).is_file():
            raise UsageError(f"--reward {text}: there is no file {path}")
        return RewardSpec(text, "file", path, function)
    if text.endswith(".py"):
        raise UsageError(f"--reward {text}: name the function, too, such as {text}:reward")
    if not colon and text and text == text.strip():
        return RewardSpec(text, "entry", text)
    raise UsageError(f"--reward {text}: write {FORMS}")


def identity(text: str) -> str:
    """What a reward is before anything is loaded: a hash of its code or its weights, or its name where it has neither.

    A model of a hub counts by its name here, and by its weights once it is loaded.

    Raises:
        UsageError: As ``parse_reward`` and ``load_function``.
    """
    spec = parse_reward(text)
    if spec.kind in ("file", "entry"):
        return digest([spec.function or spec.subject, load_function(spec)[1]])
    folder = Path(spec.subject)
    if spec.kind != EMBEDDED and folder.is_dir():
        kept = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".jinja") and p.is_file())
        return digest([spec.kind, *(sha256_file(path) for path in kept)])
    return digest([spec.text])


_LOADED: dict[tuple[str, str, str], tuple[Callable[..., Any], list[tuple[str, str]]]] = {}


def load_function(spec: RewardSpec) -> tuple[Callable[..., Any], list[tuple[str, str]]]:
    """The function of a file or an entry point, and the hashes of the code that it computes with; loaded once.

    Raises:
        UsageError: If it cannot be loaded, or is no function.
    """
    place = (spec.kind, str(Path(spec.subject).resolve()) if spec.kind == "file" else spec.subject, spec.function)
    if place not in _LOADED:
        plugin_files.record_imports()
        try:
            with while_loading():
                function, module = _loaded(spec)
        except PrefoptError as problem:
            raise UsageError(f"--reward {spec.text}: {problem}") from None
        except (Exception, SystemExit) as problem:
            raise UsageError(f"--reward {spec.text}: cannot be loaded: {_shown(problem)}") from None
        if not callable(function):
            raise UsageError(
                f"--reward {spec.text}: {spec.function or spec.subject} is {type(function).__name__}; a function of "
                "(prompts, responses) is wanted"
            )
        _LOADED[place] = function, list(plugin_files.code_of_module(module))
    return _LOADED[place]


def _loaded(spec: RewardSpec) -> tuple[Any, str]:
    if spec.kind == "entry":
        module, function = registry.load_entry_point(spec.subject, ENTRY_POINT_GROUP)
        return function, module
    module = registry.run_file(Path(spec.subject))
    functions = vars(sys.modules[module])
    if spec.function not in functions:
        raise UsageError(f"the file defines no {spec.function}")
    return functions[spec.function], module


class FunctionReward:
    """A function of somebody else's, loaded from a file or an entry point.

    Raises:
        UsageError: If it cannot be loaded.
    """

    def __init__(self, spec: RewardSpec) -> None:
        self._function, code = load_function(spec)
        self.name = spec.text if spec.kind == "entry" else f"{Path(spec.subject).name}:{spec.function}"
        self.fingerprint = digest([spec.function or spec.subject, code])

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> Any:
        """What the function returns."""
        return self._function(list(prompts), list(responses))


class CheckedReward:
    """A reward whose every answer is looked at: as many finite numbers as responses, in time.

    Args:
        reward: Scores responses.
        seconds: That one call, of at most ``BATCH`` responses, may take.
        alive: Called after each call with the responses scored so far and all of them.

    Attributes:
        calls: Responses that it was asked about.
    """

    def __init__(
        self, reward: Reward, *, seconds: float, alive: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        self._reward, self._seconds, self._alive = reward, seconds, alive
        self.name, self.fingerprint, self.calls = reward.name, reward.fingerprint, 0

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Floats:
        """(N,) rewards.

        Raises:
            RewardError: If it raises, takes longer than it may, or gives anything but N finite numbers.
        """
        plain = [as_plain(prompt) for prompt in prompts]
        parts = [np.zeros(0)]
        for start in range(0, len(responses), BATCH):
            end = min(start + BATCH, len(responses))
            value = self._ask(plain[start:end], list(responses[start:end]))
            parts.append(self._numbers(value, end - start))
            self.calls += end - start
            self._alive(end, len(responses))
        return np.concatenate(parts)

    def probe(self, prompts: Sequence[Prompt] = ()) -> None:
        """Ask it about a few responses, an empty one among them, before anything is trained.

        Raises:
            UsageError: In one line, if its answer cannot be used.
        """
        texts = [*(list(prompts) or [prompt for prompt, _ in PROBE])]
        pairs = [(texts[i % len(texts)], response) for i, (_, response) in enumerate(PROBE)]
        try:
            self.score(*zip(*pairs, strict=True))
        except RewardError as problem:
            raise UsageError(
                f"{problem}; it was asked about {len(pairs)} responses as a trial. Nothing was trained"
            ) from None

    def _ask(self, prompts: list[Any], responses: list[str]) -> Any:
        """What the reward returns, if it returns in time: a thread of its own is left behind where it does not."""
        from prefopt.runtime.kept_state import kept_state

        outcome: dict[str, Any] = {}

        def work() -> None:
            try:
                outcome["value"] = self._reward.score(prompts, responses)
            except BaseException as problem:
                outcome["problem"] = problem

        with kept_state(), in_this_process():
            thread = threading.Thread(target=work, daemon=True, name=f"reward {self.name}")
            thread.start()
            thread.join(self._seconds)
        if thread.is_alive():
            took = f"{len(responses)} responses took more than {self._seconds:g} s"
            raise RewardError(f"reward {self.name}: {took}; raise task.reward_s if it may")
        if "problem" in outcome:
            raise RewardError(f"reward {self.name}: raised {_shown(outcome['problem'])}") from None
        return outcome["value"]

    def _numbers(self, value: Any, count: int) -> Floats:
        """``value`` as (count,) finite numbers."""
        wanted = f"reward {self.name}: {count} numbers are wanted, one a response"
        try:
            flat = np.asarray(value.tolist() if hasattr(value, "tolist") else list(value))
        except Exception:
            raise RewardError(f"{wanted}; got {type(value).__name__}") from None
        if flat.shape != (count,):
            raise RewardError(f"{wanted}; got shape {flat.shape}")
        if flat.dtype.kind not in "iuf":
            raise RewardError(f"{wanted}; got {type(value[0]).__name__} such as {str(value[0])[:40]!r}")
        numbers = flat.astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            raise RewardError(f"{wanted}, all finite; {len(bad)} are not, the first {numbers[bad[0]]}")
        return numbers


def as_plain(prompt: Prompt) -> Any:
    """A prompt as a reward is given it: a text, or a list of ``{"role", "content"}``."""
    return prompt if isinstance(prompt, str) else [{"role": turn[0], "content": turn[1]} for turn in prompt]


def _shown(problem: BaseException) -> str:
    try:
        text = " ".join(str(problem).split())[:_MOST_SHOWN].encode("utf-8", "backslashreplace").decode()
    except Exception:
        text = "what it says cannot be shown"
    return f"{type(problem).__name__}: {text}"


class RewardedTask:
    """A task whose responses another reward scores.

    Args:
        task: Gives the prompts and texts.
        reward: Scores.
    """

    has_reward = True

    def __init__(self, task: Task, reward: Reward) -> None:
        self.task, self.scored_by = task, reward
        self.name = task.name

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the task and the reward."""
        return digest([self.task.fingerprint, self.scored_by.fingerprint])

    def prompts(
        self, tokenizer: PreTrainedTokenizerBase, *, train: int, heldout: int, evaluation: int, seed: int
    ) -> TaskPrompts:
        """The task's."""
        return self.task.prompts(tokenizer, train=train, heldout=heldout, evaluation=evaluation, seed=seed)

    def sft_texts(self, count: int, *, seed: int) -> list[str]:
        """The task's."""
        return self.task.sft_texts(count, seed=seed)

    def reward(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Floats:
        """(N,) rewards."""
        return self.scored_by.score(prompts, responses)

    def reward_report(self) -> Mapping[str, float]:
        """Nothing is known of how far it can be trusted."""
        return {}
