"""How does a notebook show a scan, without a server?

It shows NiiVue as a widget, or a picture where widgets are not available. The widget gets image and
masks as NIfTI files in memory, of the finest level that fits, with the same window, names and
colors as all pictures of spinezarr. The notebook file also holds the picture, for people who view
it without running it.

References
----------
Widget: https://github.com/niivue/ipyniivue
How notebooks choose among representations: https://ipython.readthedocs.io/en/stable/config/integrating.html
"""

import math
import sys
from base64 import b64encode
from collections.abc import Sequence
from functools import cached_property
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip

from spinezarr.errors import UsageError
from spinezarr.export.nifti_placement import NiftiPlacement
from spinezarr.export.preview import preview_scan
from spinezarr.export.spine_slices import middle_of_spine
from spinezarr.processors import cpu_count
from spinezarr.store.layout import LABEL
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.stream.read.engine import Engine
from spinezarr.text import to_printable
from spinezarr.vertebrae import BACKGROUND
from spinezarr.view.levels import Level, LevelReader, levels_of, shown_dtype
from spinezarr.view.scan_view import VertebraModel, shown_vertebrae
from spinezarr.view.served_levels import ServedLevels
from spinezarr.view.slice_picture import is_border
from spinezarr.view.windows import WindowHU

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LARGEST_AXIS", "MAX_BYTES", "ScanView", "finest_that_fits"]

MAX_BYTES: Final = 32 << 20
"""Most bytes of an image in a notebook: 256³ voxels of int16."""
LARGEST_AXIS: Final = 2048
"""Most voxels along an axis of a 3D texture that every WebGL 2 implementation supports."""
_INSTALL: Final = "Widgets need more packages: pip install 'spinezarr[notebook]'."
_GZIP_LEVEL: Final = 1
_OPACITY: Final = 0.5
_NO_LABEL: Final = "\N{EN DASH}"
"""Stands for background in the line that names the values of two masks."""
_BACKGROUND_COLOR: Final = (0.0, 0.0, 0.0, 1.0)
_AZIMUTH_ELEVATION_DEG: Final = (150.0, 15.0)
"""Azimuth and elevation of the 3D view in degrees: the view is from the front, left and above."""
_igzip: Any = igzip  # the package has few annotations
_nib: Any = nib


def finest_that_fits(scan: ScanHandle) -> Level:
    """Return the finest level of a scan that fits into a notebook; the coarsest if none fits.

    Parameters
    ----------
    scan
        The scan. A level fits if its image has at most :data:`MAX_BYTES`, and at most
        :data:`LARGEST_AXIS` voxels along an axis. A CT of 512 x 512 voxels is shown at full detail
        up to 64 slices, and at half the detail along x and y up to 256 slices.
    """
    item = shown_dtype(scan.image).itemsize
    levels = levels_of(scan)
    return next(
        (
            level
            for level in levels
            if math.prod(level.shape_zyx) * item <= MAX_BYTES
            and max(level.shape_zyx) <= LARGEST_AXIS
        ),
        levels[-1],
    )


class ScanView:
    """A scan, which a notebook shows as a widget or picture.

    Parameters
    ----------
    scan
        The scan.
    engine
        Reads its voxels.
    mask
        Mask that is filled with colors; None for none. A scan that lacks ``label`` is shown without
        it.
    outline
        Mask that is outlined over it; None for none.
    window_hu
        HU of black and of white.
    level
        Number of the level to show; None for :func:`finest_that_fits`.
    height_px
        Height of the widget.
    served
        Requests coarse levels from the server of the store; None to compute them here.

    Raises
    ------
    UnknownMaskError
        If the scan has no such mask.
    UsageError
        If there is no such level, or both masks are one.
    """

    def __init__(
        self,
        scan: ScanHandle,
        engine: Engine,
        *,
        mask: str | None,
        outline: str | None,
        window_hu: WindowHU,
        level: int | None,
        height_px: int,
        served: ServedLevels | None = None,
    ) -> None:
        levels = levels_of(scan)
        if level is not None and not 0 <= level < len(levels):
            raise UsageError(f"level {level}: the levels of the scan are 0 to {len(levels) - 1}.")
        if mask is not None and mask == outline:
            raise UsageError(
                f"outline {outline!r}: this mask is filled already. Name another one, or fill "
                "none with mask=None."
            )
        self.level = finest_that_fits(scan) if level is None else levels[level]
        """Level that the widget shows."""
        self._scan = scan
        self._engine = engine
        self._filled = _mask_of(scan, mask)
        self._outlined = None if outline is None else scan.mask(outline)
        self._window_hu = window_hu
        self._height_px = height_px
        self._served = served

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.level.shape_zyx))
        spacing = " x ".join(f"{mm:.3g}" for mm in self.level.spacing_zyx_mm)
        filled = "" if self._filled is None else f", mask {self._filled.name}"
        outlined = "" if self._outlined is None else f", outline {self._outlined.name}"
        return to_printable(
            f"<spinezarr view of {self._scan.attributes.scan_id}: image{filled}{outlined}, level "
            f"{self.level.level}, {shape} voxels of {spacing} mm (z, y, x)>"
        )

    @cached_property
    def figure(self) -> "Figure":
        """The picture: three planes through the spine, as :meth:`spinezarr.Store.figure` draws.

        It shows one mask: the filled one, or the outlined one if none is filled.
        """
        return preview_scan(self._scan, self._engine, self._leading)

    @cached_property
    def widget(self) -> Any:  # noqa: ANN401  of an extra
        """The widget, an ``ipyniivue.NiiVue``, whose options can be changed.

        Raises
        ------
        UsageError
            If ipyniivue is not installed.
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        niivue = _niivue()
        low, high = self._window_hu
        image = niivue.Volume(
            name="image.nii.gz",
            data=_nifti(self._voxels["image"], self.level),
            colormap="gray",
            cal_min=low,
            cal_max=high,
        )
        volumes = [image]
        for mask in self._masks:
            voxels = self._voxels[mask.name]
            is_outline = mask is self._outlined
            if is_outline:
                # NiiVue can only outline all masks of a widget, or none.
                voxels = np.where(is_border(voxels), voxels, np.uint8(BACKGROUND))
            volume = niivue.Volume(
                name=f"{mask.name}.nii.gz",
                data=_nifti(voxels, self.level),
                opacity=1.0 if is_outline else _OPACITY,
            )
            volume.set_colormap_label(_colors(self._labels_of(mask)))
            volumes.append(volume)
        widget = niivue.NiiVue(
            height=self._height_px,
            back_color=_BACKGROUND_COLOR,
            drag_and_drop_enabled=False,
            is_radiological_convention=True,
            multiplanar_layout=niivue.MultiplanarType.GRID,
            multiplanar_show_render=niivue.ShowRender.ALWAYS,
            sagittal_nose_left=True,
            slice_type=niivue.SliceType.MULTIPLANAR,
        )
        widget.load_volumes(volumes)
        widget.scene.crosshair_pos = self._crosshair()
        widget.scene.render_azimuth, widget.scene.render_elevation = _AZIMUTH_ELEVATION_DEG
        return widget

    @cached_property
    def _masks(self) -> tuple[ArraySpec, ...]:
        """The shown masks, the filled one first."""
        return tuple(mask for mask in (self._filled, self._outlined) if mask is not None)

    @property
    def _leading(self) -> str:
        """Name of the mask whose spine the planes show."""
        return self._masks[0].name if self._masks else LABEL

    @cached_property
    def _voxels(self) -> dict[str, npt.NDArray[Any]]:
        """Voxels of image and masks of the level, by name."""
        return {array.name: self._read(array) for array in (self._scan.image, *self._masks)}

    def _read(self, array: ArraySpec) -> npt.NDArray[Any]:
        if self._served is not None and self.level.level > 0:
            voxels = self._served.read(self._scan, array, self.level)
            if voxels is not None:
                return voxels
        levels = LevelReader(self._engine)
        voxels = levels.read(array, self.level, threads=cpu_count())
        return voxels.astype(shown_dtype(array), copy=False)

    def _labels_of(self, mask: ArraySpec) -> list[VertebraModel]:
        """Vertebrae and other structures of a mask."""
        return list(shown_vertebrae(self._scan.attributes, mask.name))

    @cached_property
    def _widget_with_text(self) -> Any:  # noqa: ANN401  of an extra
        """The widget, the names of the labels, and a line that describes the clicked voxel."""
        import ipywidgets  # noqa: PLC0415  comes with the extra

        text = ipywidgets.HTML(self._voxel_text(self._middle_mm()))
        self.widget.on_location_change(
            lambda location: setattr(text, "value", self._voxel_text(location["mm"][:3]))
        )
        return ipywidgets.VBox([self.widget, text, ipywidgets.HTML(self._legend())])

    def _legend(self) -> str:
        """Return the names of the labels with their colors, as HTML; a line for each mask."""
        lines = [_names(self._labels_of(mask)) for mask in self._masks]
        if self._outlined is not None:
            kinds = ("outlined",) if self._filled is None else ("filled", "outlined")
            lines = [
                f"<b>{escape(mask.name)}</b> ({kind}) {line}"
                for mask, kind, line in zip(self._masks, kinds, lines, strict=True)
            ]
        return "<br>".join(lines)

    def _voxel_text(self, mm: Sequence[float]) -> str:
        """Describe the voxel at a position, x, y, z in RAS+ mm, as HTML."""
        to_voxel = np.linalg.inv(self.level.affine)
        x, y, z = np.rint((to_voxel @ (*mm, 1.0))[:3]).astype(int).tolist()
        text = "x {:.1f}, y {:.1f}, z {:.1f} mm".format(*mm)
        index_and_size = zip((z, y, x), self.level.shape_zyx, strict=True)
        if all(0 <= index < n for index, n in index_and_size):
            text += f" · {self._voxels['image'][z, y, x]:.4g} HU"
            for mask in self._masks:
                value = self._voxels[mask.name][z, y, x]
                found = [label.name for label in self._labels_of(mask) if label.value == value]
                if len(self._masks) > 1:
                    found = [f"{mask.name} {found[0] if found else _NO_LABEL}"]
                text += "".join(f" · {name}" for name in found)
        level = self.level
        if level.level:
            text += f" (of {' x '.join(map(str, level.factor_zyx))} voxels)"
        return escape(to_printable(text))

    def _crosshair(self) -> list[float]:
        """Return the point where the planes cross, as fractions of the volume along x, y and z."""
        middle = middle_of_spine(self._scan, self._engine, self._leading)
        axes = zip(middle, self.level.factor_zyx, self.level.shape_zyx, strict=True)
        return [(index + 0.5) / (factor * n) for index, factor, n in axes][::-1]

    def _middle_mm(self) -> list[float]:
        z, y, x = middle_of_spine(self._scan, self._engine, self._leading)
        position: list[float] = (self._scan.affine[:3] @ (x, y, z, 1)).tolist()
        return position

    def _repr_mimebundle_(
        self,
        include: object = None,  # noqa: ARG002  notebooks choose the form
        exclude: object = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        picture = BytesIO()
        self.figure.savefig(picture, format="png")
        forms = {
            "text/plain": repr(self),
            "image/png": b64encode(picture.getvalue()).decode("ascii"),
        }
        if not _is_notebook():
            return forms
        try:
            bundle = self._widget_with_text._repr_mimebundle_()
        except UsageError:
            return {**forms, "text/plain": f"{self!r}\n{_INSTALL}"}
        widget_forms = bundle[0] if isinstance(bundle, tuple) else bundle
        return {
            **forms,
            **{
                mime_type: form
                for mime_type, form in widget_forms.items()
                if mime_type not in forms
            },
        }


def _mask_of(scan: ScanHandle, name: str | None) -> ArraySpec | None:
    """Return the mask to fill; a scan may lack ``label``, which is the default."""
    if name is None:
        return None
    return scan.label if name == LABEL else scan.mask(name)


def _nifti(voxels_zyx: npt.NDArray[Any], level: Level) -> bytes:
    voxels = np.ascontiguousarray(voxels_zyx).T
    header = NiftiPlacement.from_affine(level.affine, voxels.shape).header(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    data: bytes = _igzip.compress(
        _nib.Nifti1Image(voxels, None, header).to_bytes(), _GZIP_LEVEL, mtime=0
    )
    return data


def _niivue() -> Any:  # noqa: ANN401  of an extra
    try:
        import ipyniivue  # noqa: PLC0415  an extra
    except ImportError as problem:
        raise UsageError(_INSTALL) from problem
    return ipyniivue


def _names(vertebrae: list[VertebraModel]) -> str:
    """Return the names of the labels of a mask with their colors, as HTML."""
    return " ".join(
        f'<span style="white-space:nowrap;margin-right:.8em"><span style="color:{vertebra.color}">'
        f"&#9632;</span> {escape(to_printable(vertebra.name))}</span>"
        for vertebra in vertebrae
    )


def _colors(vertebrae: list[VertebraModel]) -> dict[str, list[Any]]:
    """Return a label map for NiiVue: value, color, opacity, name; background is transparent."""
    rgb = [
        [int(vertebra.color[start : start + 2], 16) for start in (1, 3, 5)]
        for vertebra in vertebrae
    ]
    red, green, blue = ([0, *(color[part] for color in rgb)] for part in range(3))
    return {
        "R": red,
        "G": green,
        "B": blue,
        "A": [0, *[255] * len(vertebrae)],
        "I": [0, *(vertebra.value for vertebra in vertebrae)],
        "labels": ["", *(vertebra.name for vertebra in vertebrae)],
    }


def _is_notebook() -> bool:
    """Whether a Jupyter kernel runs this code, which can show widgets."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython  # noqa: PLC0415  already imported

    return getattr(get_ipython(), "kernel", None) is not None
