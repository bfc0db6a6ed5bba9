"""Orientations for tests: twelve in 'make test', and the other 36 in 'make test-long'.

Among the twelve are two opposite orientations for each order of the axes.
"""

import pytest

from spinezarr.testing import all_axcodes

__all__ = ["AXCODES", "FEW_AXCODES"]

FEW_AXCODES = ("AIL", "ALI", "IAR", "ILA", "LAS", "LIA", "PSR", "PRS", "SPL", "SRP", "RPI", "RSP")
AXCODES = [
    axcodes if axcodes in FEW_AXCODES else pytest.param(axcodes, marks=pytest.mark.long)
    for axcodes in all_axcodes()
]
"""Values of a parameter: all 48 orientations."""
