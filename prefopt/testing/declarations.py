"""What a loss says about itself: hyperparameters, spec and docstring, checked. ``prefopt.testing`` runs these."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

from prefopt.contract.examples import ordinary_pairs, same, value_of, wide_pairs
from prefopt.contract.loss import Loss, OffScaleWarning, PairLogps, inside
from prefopt.contract.registry import loss_names, make_loss
from prefopt.testing.groups import group_effect


def _candidates(field: dataclasses.Field[Any]) -> list[Any]:
    """Other values for a hyperparameter, some of which must have an effect."""
    default: Any = field.default
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, str):
        words = (*field.metadata.get("choices", ()), *field.metadata.get("tries", ()))
        return [word for word in words if word != default]
    if isinstance(default, int):
        return [default + 1, default - 1, default * 2]
    return [default * 2, default / 2, default + 0.05, default - 0.05, default * 10, default / 10]


def check_hyperparameters(loss: Loss, device: str) -> Iterator[str]:
    """Every field: a default, an effect, a range that is kept, a scale that is warned about."""
    cls, base = type(loss), type(loss)()
    batches: list[PairLogps] = [ordinary_pairs(base, device=device), wide_pairs(base, device=device)]
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING:
            yield f"{field.name} has no default"
            continue
        others = [other for value in _candidates(field) if (other := _variant(base, field.name, value))]
        # Every word of a choice must do something; of the numbers, one that does is enough.
        effects = [_has_effect(base, other, batches) or group_effect(base, other) for other in others]
        wanted = all if isinstance(field.default, str) else any
        if not others or not wanted(effects):
            yield f"{field.name} has no effect on the loss"
        for value in _outside(field):
            if _variant(base, field.name, value) is not None:
                yield f"{field.name} = {value} is out of range {field.metadata['within']}, and is accepted"
        value = _off_scale(field)
        if value is not None and not _warns(base, field.name, value):
            yield f"{field.name} = {value:g} is off the paper's scale, and there is no OffScaleWarning"


def _variant(loss: Loss, field: str, value: Any) -> Loss | None:
    try:
        return dataclasses.replace(loss, **{field: value})
    except ValueError:
        return None


def _has_effect(loss: Loss, other: Loss, batches: list[PairLogps]) -> bool:
    histories = [(pairs, before) for pairs in batches for before in (None, *batches)]
    return any(
        not same(value_of(loss, pairs, before), value_of(other, pairs, before), 1e-6) for pairs, before in histories
    )


def _outside(field: dataclasses.Field[Any]) -> list[Any]:
    """Values just out of the declared range, NaN among them."""
    if field.metadata.get("choices"):
        return ["no-such-word"]
    if not field.metadata:
        return []
    interval = field.metadata["within"]
    ends = [float(end) for end in interval[1:-1].split(",")]
    near = [ends[0], ends[0] - 1e-3, ends[1], ends[1] + 1e-3, float("nan")]
    return [value for value in near if not inside(value, interval)]


def _off_scale(field: dataclasses.Field[Any]) -> float | None:
    """A value that is allowed and outside the paper's scale, if there is one."""
    if not field.metadata.get("paper"):
        return None
    low, high = field.metadata["paper"]
    tried = (high * 3 + 1, low / 3, (high + 1) / 2, low - 1)
    fit = [v for v in tried if inside(v, field.metadata["within"]) and not low <= v <= high]
    return fit[0] if fit else None


def _warns(loss: Loss, field: str, value: float) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _variant(loss, field, value)
    return any(issubclass(w.category, OffScaleWarning) and field in str(w.message) for w in caught)


def check_spec(loss: Loss, device: str) -> Iterator[str]:
    """The spec and the label rebuild the loss."""
    if getattr(type(loss), "name", None) not in loss_names():
        yield 'not registered; put @register("name") above the class'
        return
    if json.loads(json.dumps(loss.spec())) != loss.spec():
        yield "spec() is not plain values"
    for source in (loss.spec(), loss.label):
        if make_loss(source) != loss:
            yield f"make_loss({source!r}) is not the loss it came from"


def check_docstring(loss: Loss, device: str) -> Iterator[str]:
    """Summary, formula, every hyperparameter, source."""
    text = inspect.cleandoc(type(loss).__doc__ or "")
    if not text or text.startswith(f"{type(loss).__name__}("):
        yield "the class needs a docstring whose first line says what the loss is"
        return
    if not re.search(r"^ {4,}.*\bloss +=", text, re.MULTILINE):
        yield "the docstring has no indented formula 'loss = ...'"
    for field in dataclasses.fields(loss):
        if not re.search(rf"^ +{field.name}: ", text, re.MULTILINE):
            yield f"the docstring's Args do not explain {field.name}"
    if not re.search(r"^Source:$", text, re.MULTILINE):
        yield "the docstring has no section Source:"
