"""What every table of settings is: frozen, and without unknown keys."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from fedpeft.config.values import as_taken


class Section(BaseModel):
    """A frozen table of settings in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _as_taken(cls, value: Any, info: ValidationInfo) -> Any:
        return as_taken(cls.model_fields[str(info.field_name)].annotation, value)
