"""Which name does each value of a further mask have?

The masks ``label`` of all stores use the one scheme of :mod:`spinezarr.vertebrae`. A further mask,
such as the output of a program, keeps the values of that program. The schemes below are those of
the programs whose masks are common; a user may give any other.

References
----------
.. [1] TPTBox, ``TPTBox/core/vert_constants.py``, classes ``Vertebra_Instance`` and ``Location``,
   https://github.com/Hendrik-code/TPTBox
.. [2] SPINEPS, which writes its masks with these values, https://github.com/Hendrik-code/spineps
.. [3] TotalSegmentator, ``totalsegmentator/map_to_binary.py``, class map ``total``,
   https://github.com/wasserth/TotalSegmentator
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from spinezarr.errors import UsageError
from spinezarr.strict_model import StrictModel
from spinezarr.strict_yaml import load_strict_yaml
from spinezarr.text import did_you_mean, is_printable
from spinezarr.vertebrae import NAME_OF_VALUE, vertebra_of

__all__ = ["SCHEMES", "LabelScheme", "label_scheme", "named_scheme"]

_LARGEST_LABEL: Final = 255
_LARGEST_NAME: Final = 100
"""Largest number of characters of a name."""
_CUSTOM: Final = "custom"
_DIGITS: Final = re.compile("[1-9][0-9]{0,2}")
_RIB_OFFSET, _DISC_OFFSET, _ENDPLATE_OFFSET = 32, 100, 200
"""Distances of the value of a rib, disc or endplate from that of its vertebra [1]_."""
_L1, _T13, _RIB_OF_T13 = 20, 28, 53


@dataclass(frozen=True, slots=True)
class LabelScheme:
    """Names of the values of a mask."""

    name: str
    """Name of the scheme."""
    names: Mapping[int, str]
    """Name of each value, 1 to 255; other values have none."""

    def __reduce__(self) -> tuple[type["LabelScheme"], tuple[str, dict[int, str]]]:
        """Pickle the names as a dict, because a read-only view cannot be pickled."""
        return type(self), (self.name, dict(self.names))

    @property
    def values(self) -> dict[str, int]:
        """Value of each name, in the order of the values."""
        return {name: value for value, name in sorted(self.names.items())}

    @property
    def vertebrae(self) -> frozenset[int]:
        """Values that are whole vertebrae."""
        return frozenset(
            value for value, name in self.names.items() if vertebra_of(name) is not None
        )

    def value_of(self, text: str) -> int:
        """Return the value of a name, or of a number as text.

        Raises
        ------
        UsageError
            If the text is neither a name of the scheme nor a whole number from 1 to 255.
        """
        value = self.values.get(text)
        if value is not None:
            return value
        if not (_DIGITS.fullmatch(text) and int(text) <= _LARGEST_LABEL):
            raise UsageError(
                f"{text!r} is neither a name of the scheme {self.name!r} nor a whole number from 1 "
                f"to {_LARGEST_LABEL}"
            )
        return int(text)


def _spineps() -> dict[int, str]:
    """Return the values of instances in the masks of SPINEPS [1]_ [2]_."""
    vertebrae = {value: name for value, name in NAME_OF_VALUE.items() if name != "sacrum"}
    # S1 has the value that all of the sacrum has in the stores of spinezarr.
    sacrum = {26: "S1", 29: "S2", 30: "S3", 31: "S4", 32: "S5", 33: "S6"}
    with_ribs = range(7, _L1 + 1)
    ribs = {value + _RIB_OFFSET: f"{vertebrae[value]}_rib" for value in with_ribs}
    ribs[_RIB_OF_T13] = "T13_rib"
    segments = {**vertebrae, **sacrum}
    discs = {value + _DISC_OFFSET: f"{name}_disc" for value, name in segments.items()}
    plates = {value + _ENDPLATE_OFFSET: f"{name}_endplate" for value, name in segments.items()}
    return {**segments, **ribs, **discs, **plates}


_SUBREGIONS: Final = {
    40: "vertebra",
    41: "arcus",
    42: "spinous_process",
    43: "costal_process_left",
    44: "costal_process_right",
    45: "superior_articular_process_left",
    46: "superior_articular_process_right",
    47: "inferior_articular_process_left",
    48: "inferior_articular_process_right",
    49: "corpus_border",
    50: "corpus",
    51: "dens",
    52: "endplate_superior",
    53: "endplate_inferior",
    60: "spinal_cord",
    61: "spinal_canal",
    62: "endplate",
    63: "rib_left",
    64: "rib_right",
    100: "disc",
}
"""Values of the parts of a vertebra, and of what surrounds it, in masks of TPTBox [1]_."""

_TOTALSEGMENTATOR: Final = """
spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right
adrenal_gland_left lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right
lung_middle_lobe_right lung_lower_lobe_right esophagus trachea thyroid_gland small_bowel duodenum
colon urinary_bladder prostate kidney_cyst_left kidney_cyst_right sacrum vertebrae_S1 vertebrae_L5
vertebrae_L4 vertebrae_L3 vertebrae_L2 vertebrae_L1 vertebrae_T12 vertebrae_T11 vertebrae_T10
vertebrae_T9 vertebrae_T8 vertebrae_T7 vertebrae_T6 vertebrae_T5 vertebrae_T4 vertebrae_T3
vertebrae_T2 vertebrae_T1 vertebrae_C7 vertebrae_C6 vertebrae_C5 vertebrae_C4 vertebrae_C3
vertebrae_C2 vertebrae_C1 heart aorta pulmonary_vein brachiocephalic_trunk subclavian_artery_right
subclavian_artery_left common_carotid_artery_right common_carotid_artery_left
brachiocephalic_vein_left brachiocephalic_vein_right atrial_appendage_left superior_vena_cava
inferior_vena_cava portal_vein_and_splenic_vein iliac_artery_left iliac_artery_right iliac_vena_left
iliac_vena_right humerus_left humerus_right scapula_left scapula_right clavicula_left
clavicula_right femur_left femur_right hip_left hip_right spinal_cord gluteus_maximus_left
gluteus_maximus_right gluteus_medius_left gluteus_medius_right gluteus_minimus_left
gluteus_minimus_right autochthon_left autochthon_right iliopsoas_left iliopsoas_right brain skull
rib_left_1 rib_left_2 rib_left_3 rib_left_4 rib_left_5 rib_left_6 rib_left_7 rib_left_8 rib_left_9
rib_left_10 rib_left_11 rib_left_12 rib_right_1 rib_right_2 rib_right_3 rib_right_4 rib_right_5
rib_right_6 rib_right_7 rib_right_8 rib_right_9 rib_right_10 rib_right_11 rib_right_12 sternum
costal_cartilages
"""
"""Structures of the task ``total`` of TotalSegmentator 2, in the order of their values, 1 to 117.

The names are also those of its files, if it writes one for each structure [3]_.
"""

SCHEMES: Final[Mapping[str, LabelScheme]] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            LabelScheme("vertebrae", MappingProxyType(dict(NAME_OF_VALUE))),
            LabelScheme("subregions", MappingProxyType(_SUBREGIONS)),
            LabelScheme("spineps", MappingProxyType(_spineps())),
            LabelScheme(
                "totalsegmentator",
                MappingProxyType(dict(enumerate(_TOTALSEGMENTATOR.split(), start=1))),
            ),
        )
    }
)
"""The known schemes by name: vertebrae as in ``label``, and those of programs [1]_ [2]_ [3]_.

Examples
--------
>>> SCHEMES["vertebrae"].names[26], SCHEMES["spineps"].names[26], SCHEMES["spineps"].names[124]
('sacrum', 'S1', 'L5_disc')
>>> SCHEMES["subregions"].names[42], SCHEMES["spineps"].names[53]
('spinous_process', 'T13_rib')
>>> SCHEMES["totalsegmentator"].names[31], SCHEMES["totalsegmentator"].value_of("rib_right_12")
('vertebrae_L1', 115)
"""


def label_scheme(scheme: str | Mapping[int, str]) -> LabelScheme:
    """Return a scheme by its name, or one of the given names.

    Parameters
    ----------
    scheme
        Name of one of :data:`SCHEMES`, or the name of each value.

    Raises
    ------
    UsageError
        If there is no such scheme, a value is not a whole number from 1 to 255, a name is empty or
        cannot be printed, or two values have one name.

    Examples
    --------
    >>> label_scheme({1: "rib_left_1"}).name
    'custom'
    """
    if isinstance(scheme, str):
        if scheme not in SCHEMES:
            raise UsageError(
                f"there is no label scheme {scheme!r}; choose {', '.join(SCHEMES)}, or give the "
                "name of each value."
                f"{did_you_mean(scheme, SCHEMES)}"
            )
        return SCHEMES[scheme]
    checked = {_checked_value(value): _checked_name(value, name) for value, name in scheme.items()}
    if len(set(checked.values())) != len(checked):
        raise UsageError("several label values have one name: give each value another name.")
    return LabelScheme(_CUSTOM, MappingProxyType(dict(sorted(checked.items()))))


class _SchemeFile(StrictModel):
    """Content of a file with a scheme."""

    labels: dict[str, int]
    """Value of each name."""


def named_scheme(text: str) -> str | Mapping[int, str]:
    """Return the argument of :func:`label_scheme` that a user names on the command line.

    Parameters
    ----------
    text
        Name of one of :data:`SCHEMES`, or path of a ``.yaml`` file with the value of each name
        under ``labels``.

    Raises
    ------
    UsageError
        If the file cannot be read, has another form, or gives two names one value.
    """
    if not text.endswith((".yaml", ".yml")):
        return text
    labels = load_strict_yaml(Path(text), _SchemeFile, UsageError).labels
    names = {value: name for name, value in labels.items()}
    if len(names) != len(labels):
        raise UsageError(f"{text}: several names have one value: give each name another value.")
    return names


def _checked_value(value: object) -> int:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not (is_number and isinstance(value, int) and 1 <= value <= _LARGEST_LABEL):
        raise UsageError(f"label value {value!r}: must be a whole number from 1 to 255.")
    return value


def _checked_name(value: object, name: object) -> str:
    if not isinstance(name, str) or not 1 <= len(name.strip()) <= _LARGEST_NAME:
        raise UsageError(
            f"name of the label value {value}: must be a text of 1 to {_LARGEST_NAME} characters."
        )
    if not is_printable(name):
        raise UsageError(f"name of the label value {value}: has characters that cannot be printed.")
    return name
