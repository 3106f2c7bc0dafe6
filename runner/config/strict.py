"""What every part of the shape of a configuration rests on: strict models, names, texts by language."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Language = Literal["organism", "english"]
ByLanguage = str | dict[Language, str]


class Strict(BaseModel):
    """No key that nothing reads, no silent conversion, no change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
