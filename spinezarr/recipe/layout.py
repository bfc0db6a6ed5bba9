"""How are the files of one release laid out, and what do the values of its masks mean?"""

import re
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from spinezarr.errors import UsageError
from spinezarr.label_schemes import LabelScheme, label_scheme
from spinezarr.mask_names import is_mask_name
from spinezarr.recipe.pattern import (
    PathPattern,
    PathTemplate,
    PatternTexts,
    TemplateTexts,
    template_names,
)
from spinezarr.recipe.series import SERIES_NAMES, SeriesSelection
from spinezarr.recipe.table import ImageList
from spinezarr.strict_model import StrictModel
from spinezarr.vertebrae import NAME_OF_VALUE, VALUE_OF_NAME, LabelState

__all__ = [
    "CentroidConvention",
    "CentroidFiles",
    "LabelParts",
    "LabelText",
    "Layer",
    "Layout",
    "MaskValueText",
    "StructureText",
    "label_value",
]

CentroidConvention = Literal["verse", "verse-2019-challenge", "verse-2020-challenge", "lml"]
"""Meaning of the coordinates in a centroid file; see :mod:`spinezarr.formats.centroids`."""

_MAX_LABEL: Final = 255
_MAX_MASK_VALUE: Final = 65535
_MAX_SEGMENT_CHARACTERS: Final = 64
"""Longest name of a segment, as that of SegmentLabel in DICOM (PS3.5 section 6.2)."""
_DIGITS: Final = re.compile("[1-9][0-9]{0,4}")


def label_value(label: str) -> int:
    """Return the stored label value of a vertebra name, or of a number as text.

    Raises
    ------
    ValueError
        If the text is neither a vertebra nor a number from 1 to 255.

    Examples
    --------
    >>> label_value("L1"), label_value("255")
    (20, 255)
    """
    if label in VALUE_OF_NAME:
        return VALUE_OF_NAME[label]
    if _DIGITS.fullmatch(label) and int(label) <= _MAX_LABEL:
        return int(label)
    raise ValueError(
        f"{label!r} is neither a vertebra ({', '.join(VALUE_OF_NAME)}) nor a value from 1 to "
        f"{_MAX_LABEL}"
    )


def _checked_label(label: str) -> str:
    label_value(label)
    return label


def _checked_mask_value(text: str) -> str:
    return _checked_number(text, _MAX_MASK_VALUE)


def _checked_structure(text: str) -> str:
    number = _checked_number(text, _MAX_LABEL)
    if int(number) in NAME_OF_VALUE:
        raise ValueError(f"{text} is {NAME_OF_VALUE[int(number)]} in the label scheme")
    return number


def _checked_number(text: str, highest: int) -> str:
    """Refuse text that is no positive mask value. Leading zeros are refused, too."""
    if not (_DIGITS.fullmatch(text) and int(text) <= highest):
        raise ValueError(
            f"{text!r} is no mask value: give a whole number from 1 to {highest} in quotes"
        )
    return text


def _checked_layer_name(name: str) -> str:
    if not is_mask_name(name):
        raise ValueError(
            f"{name!r} cannot be the name of a layer: expected a small letter and then 1 to 63 "
            "small letters, digits and underscores, and not 'image', 'label' or 'sampling'"
        )
    return name


LabelText = Annotated[str, AfterValidator(_checked_label)]
MaskValueText = Annotated[str, AfterValidator(_checked_mask_value)]
SegmentName = Annotated[str, Field(min_length=1, max_length=_MAX_SEGMENT_CHARACTERS)]
LayerName = Annotated[str, AfterValidator(_checked_layer_name)]
StructureText = Annotated[str, AfterValidator(_checked_structure)]


class LabelParts(StrictModel):
    """A mask that is divided into one binary file for each structure."""

    file: PathTemplate
    """Template of the files, in which ``{part}`` is the name of the structure."""
    values: Annotated[dict[str, LabelText], Field(min_length=1)]
    """Vertebra or value of each structure. If two structures overlap, the later one wins."""

    @model_validator(mode="after")
    def _names_the_part(self) -> Self:
        if "part" not in template_names(self.file):
            raise ValueError(f"'file' {self.file!r} does not name {{part}}")
        return self


class CentroidFiles(StrictModel):
    """The files with annotated vertebra centers."""

    files: TemplateTexts
    """Templates of the files, tried in order."""
    convention: CentroidConvention


class Layer(StrictModel):
    """A further mask of the scans of a layout, beside ``label``."""

    files: Annotated[TemplateTexts, Field(min_length=1)]
    """Templates of the mask, tried in order.

    With ``{part}``, there is one binary file for each name of the scheme. If two structures
    overlap, the one of the larger value wins.
    """
    scheme: str | Annotated[dict[MaskValueText, str], Field(min_length=1)] = "vertebrae"
    """Names of the stored values: a scheme of :mod:`spinezarr.label_schemes`, or each name."""
    values: dict[MaskValueText, str] = Field(default_factory=dict)
    """Name of the scheme, or stored value, for each value in the file.

    Other values become background. Without it, values are stored as they are.
    """
    segments: dict[SegmentName, str] = Field(default_factory=dict)
    """Name of the scheme, or stored value, for each segment of a file whose segments have names."""
    model: str = ""
    """Program or network that made the masks, with its version; empty if there is none."""
    author: str = ""
    """Who made or annotated the masks; empty if it is not known."""
    license: str = ""
    """License of the masks; empty if it is not known."""
    label_state: LabelState = "unknown"
    """Whether vertebrae cut by the end of the volume are annotated, or a model drew the masks."""

    @model_validator(mode="after")
    def _values_are_in_the_scheme(self) -> Self:
        try:
            scheme = self.label_scheme
            for label in (*self.values.values(), *self.segments.values()):
                scheme.value_of(label)
        except UsageError as problem:
            raise ValueError(str(problem).removesuffix(".")) from problem
        return self

    @model_validator(mode="after")
    def _one_kind_of_file(self) -> Self:
        in_parts = {"part" in template_names(template) for template in self.files}
        if len(in_parts) > 1:
            raise ValueError("either all 'files' of a layer name {part}, or none does")
        if self.in_parts and (self.values or self.segments):
            raise ValueError("files that name {part} have the values of the scheme, and no others")
        if self.values and self.segments:
            raise ValueError("give either 'values' or 'segments'")
        return self

    @property
    def label_scheme(self) -> LabelScheme:
        """Names of the stored values."""
        if isinstance(self.scheme, str):
            return label_scheme(self.scheme)
        return label_scheme({int(value): name for value, name in self.scheme.items()})

    @property
    def in_parts(self) -> bool:
        """Whether there is one file for each structure."""
        return "part" in template_names(self.files[0])

    @property
    def stored_values(self) -> tuple[tuple[int, int], ...]:
        """Pairs of value in the file and stored value; empty if values are kept."""
        scheme = self.label_scheme
        return tuple((int(value), scheme.value_of(label)) for value, label in self.values.items())

    @property
    def stored_segments(self) -> tuple[tuple[str, int], ...]:
        """Pairs of the name of a segment and its stored value; empty if masks have none."""
        scheme = self.label_scheme
        return tuple((name, scheme.value_of(label)) for name, label in self.segments.items())


class Layout(StrictModel):
    """One way in which the files of a dataset are laid out on disk."""

    description: str
    """Text for users that names the release or download."""
    image: Annotated[PatternTexts, Field(min_length=1)]
    """Patterns of the images, which must remember all texts that the scan id uses.

    A pattern that ends with ``/`` is a folder of DICOM slices.
    """
    constants: dict[str, str] = Field(default_factory=dict)
    """Further texts for templates, which are the same for all images."""
    label: TemplateTexts = ()
    """Templates of the mask of an image, tried in order. ``*`` and ``**/`` stand for any text."""
    label_parts: LabelParts | None = None
    """One binary file for each vertebra, instead of ``label``."""
    mask: Literal["required", "optional"] = "required"
    """Whether an image without its mask is a failure, or a scan without a mask."""
    values: dict[MaskValueText, LabelText] = Field(default_factory=dict)
    """Vertebra or value for each value in the mask file. Other values become background."""
    segments: dict[SegmentName, LabelText] = Field(default_factory=dict)
    """Vertebra or value for each segment of a mask file whose segments have names.

    Other segments become background. If two segments overlap, the one that is named later wins.
    """
    label_state: LabelState | None = None
    """Label state of this layout, if it differs from ``labels.state``."""
    layers: dict[LayerName, Layer] = Field(default_factory=dict)
    """Further masks, by name. A scan need not have them."""
    centroids: CentroidFiles | None = None
    sidecar: TemplateTexts = ()
    """Templates of a JSON file that accompanies the image, tried in order."""
    sidecar_keys: PatternTexts = ()
    """Patterns of the keys of the sidecar whose texts and numbers go into the scan table."""
    image_list: ImageList | None = None
    """List of the images to use for scans that have several."""
    series: SeriesSelection | None = None
    """Selection of the CT series of a DICOM folder that become scans.

    Without it, a folder is one scan: its largest series.
    """

    @model_validator(mode="after")
    def _series_of_folders(self) -> Self:
        if self.series is None:
            return self
        for pattern in self.image:
            if not pattern.endswith("/"):
                raise ValueError(
                    f"'series' goes with folders of DICOM slices: end {pattern!r} with '/'"
                )
            clashing = sorted(PathPattern(pattern).names & SERIES_NAMES)
            if clashing:
                raise ValueError(
                    f"the image pattern names {{{clashing[0]}}}, which 'series' gives, too"
                )
        return self

    @property
    def extra_names(self) -> frozenset[str]:
        """Names that templates may use in addition to those of the image pattern."""
        return frozenset(self.constants) | (
            SERIES_NAMES if self.series is not None else frozenset()
        )

    @model_validator(mode="after")
    def _one_kind_of_mask(self) -> Self:
        if self.label and self.label_parts is not None:
            raise ValueError("give either 'label' or 'label_parts'")
        if self.values and self.label_parts is not None:
            raise ValueError("'values' goes with 'label'; 'label_parts' has values of its own")
        if self.segments and not self.label:
            raise ValueError("'segments' goes with 'label', the file of the segments")
        if self.segments and self.values:
            raise ValueError("give either 'values' or 'segments'")
        return self

    @property
    def mask_templates(self) -> tuple[str, ...]:
        """Templates of the mask files, whole or in parts."""
        return (*self.label, *((self.label_parts.file,) if self.label_parts else ()))

    @property
    def mask_parts(self) -> tuple[str, ...]:
        """Names of the structures that have a file of their own in place of ``label``."""
        return () if self.label_parts is None else tuple(self.label_parts.values)

    def layer_parts(self, template: str) -> tuple[str, ...]:
        """Return the names of the structures whose files a template of layers names."""
        return tuple(
            dict.fromkeys(
                part
                for layer in self.layers.values()
                if layer.in_parts and template in layer.files
                for part in layer.label_scheme.values
            )
        )

    @property
    def layer_templates(self) -> tuple[str, ...]:
        """Templates of the files of all layers."""
        return tuple(template for layer in self.layers.values() for template in layer.files)

    @property
    def centroid_templates(self) -> tuple[str, ...]:
        """Templates of the centroid files."""
        return self.centroids.files if self.centroids else ()

    @property
    def stored_values(self) -> tuple[tuple[int, int], ...]:
        """Pairs of value in the mask file and stored value; empty if values are kept."""
        return tuple((int(value), label_value(label)) for value, label in self.values.items())

    @property
    def stored_segments(self) -> tuple[tuple[str, int], ...]:
        """Pairs of the name of a segment and its stored value; empty if masks have none."""
        return tuple((name, label_value(label)) for name, label in self.segments.items())

    @property
    def has_masks(self) -> bool:
        """Whether the scans of the layout have masks."""
        return bool(self.label) or self.label_parts is not None
