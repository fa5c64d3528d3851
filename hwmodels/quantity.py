"""One number of a chip file: its value, where it comes from, and how far to trust it."""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Confidence = Literal["measured", "datasheet", "derived", "inferred"]
T = TypeVar("T")


class Frozen(BaseModel):
    """A part of a chip file: no field that the schema does not know, none that changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Quantity(Frozen, Generic[T]):
    """One number with its source (paper, datasheet, data set) and how far to trust it."""

    value: T
    source: str = Field(min_length=2)
    confidence: Confidence
    note: str | None = None


_Pos = Annotated[float, Field(gt=0)]
_PosInt = Annotated[int, Field(gt=0)]
_Frac = Annotated[float, Field(gt=0, le=1)]
_NonNeg = Annotated[float, Field(ge=0)]
Positive = Quantity[_Pos]
Count = Quantity[_PosInt]
Fraction = Quantity[_Frac]
NonNegative = Quantity[_NonNeg]
