"""Losses as they are typed: ``simpo[beta=2.5,lr=1e-4]``, lists of them, and sweeps over several values.

A label names a loss and, in brackets, hyperparameters; ``lr`` there is the variant's own learning rate, unless the loss
has a hyperparameter of that name.
"""

from __future__ import annotations

import re
from itertools import product
from typing import Any

from prefopt.errors import UsageError

RATE = "lr"
MOST_VARIANTS = 1000  # of one sweep: a longer list is a slip of the hand


def parse_label(text: str) -> tuple[str, dict[str, Any]]:
    """Split ``simpo[beta=2.5,gamma_beta_ratio=0.3]`` into its name and hyperparameters.

    What ``mix`` has in its brackets is one hyperparameter, its terms.

    Example:
        >>> parse_label("simpo[beta=2.5,gamma_beta_ratio=0.3]")
        ('simpo', {'beta': 2.5, 'gamma_beta_ratio': 0.3})
    """
    match = re.fullmatch(r"\s*([^\[\]\s]+)\s*(?:\[(.*)\])?\s*", text)
    if match is None:
        raise UsageError(f"cannot read loss {text!r}; write name or name[key=value,key=value]")
    if match[1] == "mix" and match[2] and not match[2].startswith("terms="):
        return "mix", {"terms": match[2]}
    given: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in (match[2] or "").split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise UsageError(f"cannot read {part!r} in {text!r}; write key=value")
        if key in given:
            raise UsageError(f"{text}: {key} is given twice")
        given[key] = _literal(value)
    return match[1], given


def _literal(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def split_labels(text: str) -> list[str]:
    """Split ``dpo,simpo[beta=2,gamma_beta_ratio=0.5]`` at the commas outside brackets.

    Example:
        >>> split_labels("dpo,simpo[beta=2,gamma_beta_ratio=0.5]")
        ['dpo', 'simpo[beta=2,gamma_beta_ratio=0.5]']
    """
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def split_rate(text: str) -> tuple[str, float | None]:
    """A label without its learning rate, and the rate, None where it names none.

    Raises:
        UsageError: If the rate is no number, or is given twice.

    Example:
        >>> split_rate("dpo[beta=0.2,lr=5e-4]"), split_rate("ipo[lr=1e-3]"), split_rate("mix[0.8*dpo+1.0*sft,lr=1e-4]")
        (('dpo[beta=0.2]', 0.0005), ('ipo', 0.001), ('mix[0.8*dpo+1.0*sft]', 0.0001))
    """
    name, bracket, inside = text.strip().removesuffix("]").partition("[")
    parts = [part.strip() for part in inside.split(",")]
    rates = [part for part in parts if part.partition("=")[0].strip() == RATE]
    if not rates:
        return text, None
    if len(rates) > 1:
        raise UsageError(f"{text}: {RATE} is given twice")
    try:
        rate = float(rates[0].partition("=")[2])
    except ValueError:
        raise UsageError(f"{text}: {RATE} must be a learning rate such as 5e-4; got {rates[0]!r}") from None
    rest = ",".join(part for part in parts if part not in rates)
    return name + (f"{bracket}{rest}]" if rest else ""), rate


def with_rate(label: str, rate: float) -> str:
    """A label that names its learning rate, too.

    Example:
        >>> with_rate("dpo", 0.0005), with_rate("dpo[beta=0.2]", 0.0005)
        ('dpo[lr=0.0005]', 'dpo[beta=0.2,lr=0.0005]')
    """
    return f"{label[:-1]},{RATE}={rate}]" if label.endswith("]") else f"{label}[{RATE}={rate}]"


def swept(label: str) -> list[str]:
    """Every label of a sweep: the product over all values that ``|`` separates; the label itself where there is none.

    Raises:
        UsageError: If it is more than a thousand.

    Example:
        >>> swept("dpo[beta=0.05|0.1,lr=5e-4|1e-3]")
        ['dpo[beta=0.05,lr=5e-4]', 'dpo[beta=0.05,lr=1e-3]', 'dpo[beta=0.1,lr=5e-4]', 'dpo[beta=0.1,lr=1e-3]']
        >>> swept("simpo")
        ['simpo']
    """
    name, bracket, inside = label.strip().removesuffix("]").partition("[")
    if "|" not in inside:
        return [label]
    parts = [part.partition("=") for part in inside.split(",")]
    values = [[f"{key}{equals}{one.strip()}" for one in value.split("|")] for key, equals, value in parts]
    count = 1
    for some in values:
        count *= len(some)
    if count > MOST_VARIANTS:
        raise UsageError(f"{label[:100]}: {count:,} variants; write at most {MOST_VARIANTS:,}")
    return [f"{name}{bracket}{','.join(chosen)}]" for chosen in product(*values)]
