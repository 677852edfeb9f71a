"""What the words of a report mean: the two that its first lines use, and all others in a section of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prefopt.analysis.checks import NULL_LOSS
from prefopt.analysis.sentences import counted, listed, spread_over

Row = Mapping[str, Any]


def first_terms(results: Row) -> list[str]:
    """The reference, and controls that train nothing, where they are first named."""
    steps = results["setup"]["reference"].get("sft_steps")
    tuned = f" (here after a fine-tune of {counted(int(steps), 'step')})" if steps else ""
    said = [f"The reference is the model that every variant starts from{tuned}, before any preference training."]
    controls = [entry["variant"] for entry in results["variants"] if entry["loss"] == NULL_LOSS]
    if controls:
        said.append(
            f"{listed(controls)} is a control and no method: its loss is zero, so that it must stay the reference and "
            "win exactly half."
        )
    return said


def glossary(results: Row) -> list[tuple[str, str]]:
    """(term, meaning) of every word that this report uses."""
    return [(term, meaning(results)) for term, used, meaning in _TERMS if used(results)]


def _always(_: Row) -> bool:
    return True


def _judged(results: Row) -> bool:
    return bool(results["versus_reference"])


def _verdict(word: str) -> Callable[[Row], bool]:
    return lambda r: any(row["verdict"] == word for row in (*r["versus_reference"], *r["pairs"]))


def _text(text: str) -> Callable[[Row], str]:
    return lambda _: text


_TERMS: tuple[tuple[str, Callable[[Row], bool], Callable[[Row], str]], ...] = (
    ("variant", _always, _text("A loss with its hyperparameters and learning rate.")),
    ("reference", _always, _text("The model before preference training. Every variant starts as it.")),
    (
        "seed",
        _always,
        _text("One training run: it decides the order of the pairs, the initial adapter and the noise of sampling."),
    ),
    (
        "75.0 [71.9, 77.8]",
        _always,
        lambda r: (
            "An estimate, and its 95 % interval: of a hundred comparisons like this one about 95 intervals hold the "
            f"true value. It covers new {spread_over(r)}."
        ),
    ),
    ("win rate", _judged, _text("Share of comparisons that a variant wins, ties one half; 50 % is no difference.")),
    (
        "at equal length",
        lambda r: bool(r["length_control"]),
        _text("The win rate as it would be if both sides wrote equally long answers."),
    ),
    (
        "BETTER, WORSE",
        lambda r: _verdict("BETTER")(r) or _verdict("WORSE")(r),
        _text("The difference is there for certain: chance gives such a verdict in at most 5 % of families of tests."),
    ),
    (
        "EQUIVALENT",
        _verdict("EQUIVALENT"),
        lambda r: f"The whole interval lies within {100 * r['settings']['delta']:g} points of 50 %.",
    ),
    (
        "INCONCLUSIVE",
        _verdict("INCONCLUSIVE"),
        _text("These runs cannot say whether there is a difference. It does not mean that there is none."),
    ),
    (
        "INCOMPLETE",
        _verdict("INCOMPLETE"),
        _text("A planned run of the variant has no result, so nothing is claimed of it."),
    ),
    (
        "NO VERDICT",
        _verdict("NO VERDICT"),
        _text("The judge fails questions with a known answer, so nothing is claimed from what it says."),
    ),
    (
        "Holm",
        lambda r: any(row["p_holm"] is not None for row in r["versus_reference"]),
        _text("A correction of p-values for the number of comparisons, without which some come out by chance."),
    ),
    (
        "visible from",
        lambda r: any(row["mde"] is not None for row in r["versus_reference"]),
        _text("A true difference of that size would be settled in four of five repetitions; a smaller one less often."),
    ),
    ("rank", lambda r: bool(r["ratings"]), _text("The places that the differences of ratings leave open.")),
    ("reward gain", lambda r: bool(r["rewards"]), _text("Mean gold reward of samples, minus the reference's.")),
    (
        "KL, nats",
        lambda r: bool(r["kl"]),
        _text(
            "How far a policy's answers are from what the reference would say; 0 is the reference itself. A nat is a "
            "factor of e in probability."
        ),
    ),
    (
        "log-ratio margin",
        lambda r: bool(r["margins"]),
        _text(
            "By how many nats training has raised the chosen response over the rejected one. It compares variants; a "
            "loss's own reward does not."
        ),
    ),
    (
        "pair accuracy",
        lambda r: bool(r["margins"]),
        _text("Share of held-out pairs whose chosen response has the larger log-ratio. It is not quality of samples."),
    ),
    (
        "distinct-n, compression",
        lambda r: bool(r["text"]),
        _text("How varied samples are: different words over all words, and how well the whole text compresses."),
    ),
)
