"""How large may a request for batches from a spinezarr server be?"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["PROTOCOL", "BatchLimits", "parse_limits"]

PROTOCOL = 2
"""Version of the requests for batches and of their responses. Both sides must have the same."""


class BatchLimits(BaseModel):
    """The limits that a server states."""

    model_config = ConfigDict(strict=True, frozen=True, use_attribute_docstrings=True)

    protocol: int
    """Version of the requests that it understands; see :data:`PROTOCOL`."""
    items: Annotated[int, Field(ge=1)]
    """Largest number of patches in a request."""
    voxel_bytes: Annotated[int, Field(ge=1)]
    """Largest number of bytes of voxels in an answer, before they are packed."""
    cores: Annotated[int, Field(ge=1, le=4096)]
    """Number of processors that read and pack."""


class _AboutModel(BaseModel):
    batch: BatchLimits


def parse_limits(about: bytes) -> BatchLimits:
    """Return the limits in a server's description of a store.

    Parameters
    ----------
    about
        Response of the server's API for the store, JSON.

    Raises
    ------
    ValidationError
        If it is not the answer of a spinezarr server.
    """
    return _AboutModel.model_validate_json(about).batch
