"""How is a scan opened in other programs: by which link, or by which line of code?"""

import shlex
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote

__all__ = ["OpenIn", "ServedScan", "ways_to_open"]

_TOKEN: Final = "TOKEN"  # noqa: S105  stands for one
_SIGN: Final = " Where a token is needed, give it a signed URL ('spinezarr serve --sign')."


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

    @property
    def path(self) -> str:
        """Store and scan, as parts of a path: ``<store>/<scan_id>``."""
        return f"{quote(self.store, safe='')}/{quote(self.scan_id, safe='')}"

    @property
    def facts(self) -> str:
        """Path of the operations about the scan."""
        return f"/v1/{quote(self.store, safe='')}/scans/{quote(self.scan_id, safe='')}"


@dataclass(frozen=True, slots=True)
class OpenIn:
    """One way to open a scan."""

    name: str
    """Name of the program or file."""
    kind: Literal["link", "code"]
    """``link`` for a path on the server, ``code`` for text to copy."""
    text: str
    """The path, or the text to copy."""
    hint: str
    """One or two sentences of advice."""


def ways_to_open(scan: ServedScan) -> tuple[OpenIn, ...]:
    """Return all ways to open a scan.

    Links are paths on the server. Text that is pasted elsewhere names the server.

    Examples
    --------
    >>> scan = ServedScan("http://lab:8765", "ctspine1k", "liver_0", True, False)
    >>> {way.name: way.text for way in ways_to_open(scan)}["napari"]
    'napari --plugin napari-ome-zarr http://lab:8765/ome/ctspine1k/liver_0.ome.zarr'
    """
    ome = f"{scan.origin}/ome/{scan.path}.ome.zarr"
    store, scan_id = scan.path.split("/")
    for_slicer = f"{scan.origin}/ome/{store}/itk/{scan_id}.ome.zarr"
    signed = _SIGN if scan.needs_token else ""
    ways = [
        OpenIn(
            "neuroglancer",
            "link",
            f"/neuroglancer/{scan.path}",
            "In the browser, at full resolution, with names and colors of the vertebrae.",
        ),
        OpenIn(
            "napari",
            "code",
            f"napari --plugin napari-ome-zarr {shlex.quote(ome)}",
            f"In a terminal; pip install 'napari[all]' 'napari-ome-zarr<0.9'.{signed}",
        ),
        OpenIn(
            "3D Slicer",
            "code",
            for_slicer,
            "The URL for its extension OME-Zarr. Without the extension, download the NIfTI files "
            f"and drop them on its window.{signed}",
        ),
        OpenIn("Python", "code", _spinezarr_code(scan), "pip install 'spinezarr[http]'."),
        OpenIn("xarray", "code", _xarray_code(scan), "pip install xarray zarr dask aiohttp."),
        OpenIn(
            "NIfTI, image",
            "link",
            f"{scan.facts}/image.nii.gz",
            "The whole CT, in the axes of the file that it came from.",
        ),
    ]
    if scan.has_label:
        about = "The whole mask, with the values of the store."
        ways.append(OpenIn("NIfTI, mask", "link", f"{scan.facts}/label.nii.gz", about))
    return tuple(ways)


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
