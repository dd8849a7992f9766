"""The base of the config's sections."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

LARGEST = 1e15
"""A larger number is a mistake, and some product of it infinite."""


class Section(BaseModel):
    """Base of the sections: frozen, unknown keys forbidden, numbers finite and conceivable."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _conceivable(cls, value: Any) -> Any:
        if isinstance(value, float) and abs(value) > LARGEST:
            raise ValueError(f"Input should be at most {LARGEST:.0e}")
        return value
