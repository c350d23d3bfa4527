"""What every table of the configuration file has in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a table under the names that they have in the file ("async" is no name in Python)."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


class Section(BaseModel):
    """A table of the configuration file: immutable, strictly typed, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class OpenSection(Section):
    """A table whose further keys belong to a part chosen by name, which checks them itself."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    @property
    def options(self) -> dict[str, Any]:
        """The keys that this table passes on."""
        return dict(self.model_extra or {})
