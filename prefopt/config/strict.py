"""What every section of the settings is made of: a strict base, and types with their ranges."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from prefopt.storage.redact import portable

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
# A path or a hub name: as it was typed, but published without the home folder and without secrets.
Place = Annotated[str, PlainSerializer(portable, when_used="json")]


class Strict(BaseModel):
    """Base of every section: unknown keys refused, no conversion of types, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
