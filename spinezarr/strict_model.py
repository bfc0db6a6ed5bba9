"""How are files checked that people or programs wrote?"""

from pydantic import BaseModel, ConfigDict

__all__ = ["StrictModel"]


class StrictModel(BaseModel):
    """Base class of models of files: strict types, frozen, unknown keys refused.

    The schema of a model is built when a file is first parsed, since most programs parse few kinds.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", defer_build=True)
