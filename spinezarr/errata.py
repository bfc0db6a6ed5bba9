"""What does an ingest do with a list of errors in the labels of a dataset?"""

from typing import Literal

__all__ = ["Errata"]

Errata = Literal["mark", "apply"]
"""Whether lists of errata only mark scans, or also correct the labels of their masks."""
