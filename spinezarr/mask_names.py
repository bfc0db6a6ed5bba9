"""Which names can the further masks of a scan have?"""

import re
from typing import Final

__all__ = ["MASK_NAME", "is_mask_name"]

MASK_NAME: Final = "[a-z][a-z0-9_]{1,63}"
"""Pattern of the names of further masks; coordinates have names of one letter."""
_RESERVED_NAMES: Final = frozenset({"image", "label", "sampling"})
"""Names of other members of a scan, which no further mask may have."""


def is_mask_name(name: str) -> bool:
    """Whether a further mask can have this name.

    Examples
    --------
    >>> is_mask_name("prediction"), is_mask_name("label"), is_mask_name("z"), is_mask_name("A b")
    (True, False, False, False)
    """
    return re.fullmatch(MASK_NAME, name) is not None and name not in _RESERVED_NAMES
