"""Which links and lines of code open a scan in other programs?"""

import shlex
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote

__all__ = ["OpenInOption", "ServedScan", "open_in_options"]

_TOKEN: Final = "TOKEN"  # noqa: S105  a placeholder
_SIGNED_URL_HINT: Final = (
    " The server requires a token, so use a signed URL ('spinezarr serve --sign')."
)


@dataclass(frozen=True, slots=True)
class ServedScan:
    """A scan on a server."""

    origin: str
    """Scheme, host name and port of the server, without a slash at the end."""
    store: str
    scan_id: str
    has_label: bool
    """Whether the scan has a mask."""
    needs_token: bool
    """Whether the server requires tokens."""
    masks: tuple[str, ...] = ()
    """Names of its further masks."""

    @property
    def path(self) -> str:
        """Path of a scan, ``<store>/<scan_id>``, percent-encoded."""
        return f"{quote(self.store, safe='')}/{quote(self.scan_id, safe='')}"

    @property
    def api_path(self) -> str:
        """Path of the scan in the API of the server."""
        return f"/v1/{quote(self.store, safe='')}/scans/{quote(self.scan_id, safe='')}"


@dataclass(frozen=True, slots=True)
class OpenInOption:
    """One program or file that opens a scan."""

    name: str
    """Name of the program or file."""
    kind: Literal["link", "code"]
    """``link`` for a path on the server, ``code`` for text to copy."""
    text: str
    """The path, or the text to copy."""
    hint: str
    """One or two sentences of advice."""


def open_in_options(scan: ServedScan) -> tuple[OpenInOption, ...]:
    """Return all programs and files that open a scan.

    Links are paths on the server. Text that is pasted into other programs names the server.

    Examples
    --------
    >>> scan = ServedScan("http://lab:8765", "ctspine1k", "liver_0", True, False)
    >>> {option.name: option.text for option in open_in_options(scan)}["napari"]
    'napari --plugin napari-ome-zarr http://lab:8765/ome/ctspine1k/liver_0.ome.zarr'
    """
    ome = f"{scan.origin}/ome/{scan.path}.ome.zarr"
    store, scan_id = scan.path.split("/")
    for_slicer = f"{scan.origin}/ome/{store}/itk/{scan_id}.ome.zarr"
    signed_url_hint = _SIGNED_URL_HINT if scan.needs_token else ""
    options = [
        OpenInOption(
            "neuroglancer",
            "link",
            f"/neuroglancer/{scan.path}",
            "It shows the scan in the browser at full resolution, with names and colors of the "
            "vertebrae.",
        ),
        OpenInOption(
            "napari",
            "code",
            f"napari --plugin napari-ome-zarr {shlex.quote(ome)}",
            "Run this in a terminal. It needs pip install 'napari[all]' 'napari-ome-zarr<0.9'."
            f"{signed_url_hint}",
        ),
        OpenInOption(
            "3D Slicer",
            "code",
            for_slicer,
            "Paste this URL into the extension OME-Zarr of Slicer. Without the extension, download "
            f"the NIfTI files, and drop them on the window of Slicer.{signed_url_hint}",
        ),
        OpenInOption(
            "Python", "code", _spinezarr_code(scan), "It needs pip install 'spinezarr[http]'."
        ),
        OpenInOption(
            "xarray", "code", _xarray_code(scan), "It needs pip install xarray zarr dask aiohttp."
        ),
        OpenInOption(
            "NIfTI, image",
            "link",
            f"{scan.api_path}/image.nii.gz",
            "This file holds the whole CT in the axes of its source file.",
        ),
    ]
    if scan.has_label:
        hint = "This file holds the whole mask with the values of the store."
        options.append(OpenInOption("NIfTI, mask", "link", f"{scan.api_path}/label.nii.gz", hint))
    hint = "This file holds the whole mask with its own values."
    options += [
        OpenInOption(f"NIfTI, mask {name}", "link", f"{scan.api_path}/masks/{name}.nii.gz", hint)
        for name in scan.masks
    ]
    return tuple(options)


def _spinezarr_code(scan: ServedScan) -> str:
    url = f"{scan.origin}/{quote(scan.store, safe='')}"
    options = f", storage_options={_headers()}" if scan.needs_token else ""
    return (
        "import spinezarr\n\n"
        f"store = spinezarr.open({url!r}{options})\n"
        f"scan = store.scan({scan.scan_id!r})\n"
        "scan.image, scan.attrs['affine']\n"
    )


def _xarray_code(scan: ServedScan) -> str:
    store, scan_id = scan.path.split("/")
    url = f"{scan.origin}/zarr/{store}/scans/{scan_id}"
    options = f", storage_options={_headers()}" if scan.needs_token else ""
    return (
        "import xarray as xr\n\n"
        f"scan = xr.open_zarr({url!r}, zarr_format=3{options})\n"
        "scan.image.sel(z=scan.z.mean(), method='nearest').values\n"
    )


def _headers() -> str:
    return repr({"headers": {"Authorization": f"Bearer {_TOKEN}"}})
