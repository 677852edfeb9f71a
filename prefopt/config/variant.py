"""A variant: one loss with its settings, as it is written in a file or typed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from prefopt.config.recipe import Recipe, parse_recipe, split_recipe
from prefopt.config.strict import Place, Strict
from prefopt.contract.labels import RATE, parse_label, split_rate, swept, with_rate
from prefopt.contract.loss import Loss
from prefopt.contract.registry import loss_fields, make_loss


class Variant(Strict):
    """One loss with its hyperparameters, under the name that it has everywhere.

    Attributes:
        loss: The loss with hyperparameters, such as ``simpo[beta=2.5]``, and behind it where its pairs come from and
            in how many rounds: ``dpo@rso``, ``dpo@best-worst@3rounds``. ``lr`` among them is ``learning_rate``.
        label: Its name in folders, tables and legends; the loss's own label where empty, with ``lr`` where that was
            written.
        learning_rate: Replaces the shared rate.
        reward: Scores what the policy says in its rounds, in place of the reward that labels pairs; in the same forms.
        family: Under what name the settings of one loss are seen as one; the loss's name where empty.
    """

    loss: str
    label: str = ""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    reward: Place = ""
    family: str = ""

    @model_validator(mode="before")
    @classmethod
    def _rate_of_label(cls, value: Any) -> Any:
        """Take the learning rate out of a label, and keep it in the variant's name."""
        if not isinstance(value, Mapping) or not isinstance(value.get("loss"), str):
            return value
        own, rest = split_recipe(value["loss"])
        loss, rate = split_rate(own)
        if rate is None or RATE in loss_fields(parse_label(loss)[0]):
            return value
        if value.get("learning_rate") is not None:
            raise ValueError(f"{value['loss']}: the learning rate is given as {RATE} and as learning_rate; drop one")
        label = value.get("label") or with_rate(make_loss(loss).label, rate) + parse_recipe(value["loss"]).suffix
        return {**value, "loss": loss + rest, "learning_rate": rate, "label": label}

    def build(self) -> Loss:
        """The loss itself."""
        return make_loss(self.recipe.loss)

    @property
    def recipe(self) -> Recipe:
        """The loss, where its pairs come from, and in how many rounds."""
        return parse_recipe(self.loss)

    @property
    def name(self) -> str:
        """The label, or the loss's own with its builder and rounds."""
        return self.label or self.build().label + self.recipe.suffix


def swept_variants(variant: Any) -> list[Any]:
    """Every variant of a sweep such as ``dpo[beta=0.05|0.1]``; the variant itself where there is none."""
    if not isinstance(variant, Mapping) or not isinstance(variant.get("loss"), str):
        return [variant]
    own, rest = split_recipe(variant["loss"])
    losses = [one + rest for one in swept(own)]
    if len(losses) > 1 and variant.get("label"):
        raise ValueError(f"{variant['loss']}: a sweep has a name for each of its variants; drop label")
    return [{**variant, "loss": loss} for loss in losses]
