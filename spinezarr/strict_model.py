"""Which base class do the models of files have?"""

from pydantic import BaseModel, ConfigDict

__all__ = ["StrictModel"]


class StrictModel(BaseModel):
    """Base class of models of files, which are strict, frozen and without unknown keys.

    The schema of a model is built when a file is first parsed, because most programs parse few
    kinds of files.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", defer_build=True)
