"""What every section of a config is."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

LARGEST = 1e15
"""A larger number is a mistake, and some product of it infinite."""
TOO_LARGE = f"Input should be at most {LARGEST:.0e}"


class Section(BaseModel):
    """Base of the sections: frozen, unknown keys forbidden, numbers finite and conceivable."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _conceivable(cls, value: Any) -> Any:
        if isinstance(value, float) and not conceivable(value):  # a seed may have any size
            raise ValueError(TOO_LARGE)
        return value


def conceivable(value: Any) -> bool:
    """Whether a value is no number, or one that may be meant."""
    return not isinstance(value, int | float) or abs(value) <= LARGEST
