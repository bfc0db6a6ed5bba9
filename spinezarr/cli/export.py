"""``spinezarr export``: a store's scans as files of other formats."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Annotated

import numpy as np
import typer

import spinezarr
from spinezarr.cli.console import (
    OUT,
    SHOWN,
    SOME_FAILED,
    Table,
    bytes_progress,
    errors_for_users,
    make_folder,
    print_capped,
    print_json,
)
from spinezarr.cli.options import (
    AsJson,
    CatalogFile,
    EndpointUrl,
    NoSignRequest,
    Profile,
    StoreUrl,
    storage_options,
)
from spinezarr.errors import SpinezarrError, UsageError
from spinezarr.export.nifti import ExportedScan, check_no_conflicting_file, file_name
from spinezarr.processors import cpu_count
from spinezarr.redaction import redact_url
from spinezarr.store.reader import resolve_scan_ids
from spinezarr.text import count_noun

__all__ = ["app"]

OnBytes = Callable[[int], None]

app = typer.Typer(help="Give scans back as files of other formats.", no_args_is_help=True)


@app.callback()
def _export() -> None:
    """Give scans back as files of other formats."""


@app.command(no_args_is_help=True)
def nifti(
    store: StoreUrl,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the files.")],
    scan: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only this scan; may be repeated.")
    ] = None,
    uncompressed: Annotated[
        bool, typer.Option("--uncompressed", help="Write .nii, not .nii.gz.")
    ] = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Keep the source's type and affine bit for bit, as NIfTI-2 where needed. Not all "
            "programs read such files.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there.")
    ] = False,
    as_json: AsJson = False,
    catalog: CatalogFile = None,
    endpoint_url: EndpointUrl = None,
    profile: Profile = None,
    no_sign_request: NoSignRequest = False,
) -> None:
    """Write each scan as NIfTI that other programs read, with the source's voxels and axis order.

    Image and mask become DIR/SCAN_ct.nii.gz and DIR/SCAN_seg.nii.gz. What was NIfTI comes back bit
    for bit if SimpleITK, ITK-SNAP and nibabel read it alike; all else becomes NIfTI-1, in the
    narrowest type that holds the values. Notes say how a file differs from its source.

    Exit code 0: every scan is written; 1: some failed, all others are; 2: wrong usage.

    Example:  spinezarr export nifti demo/ctspine1k.zarr --out nifti
    """
    with errors_for_users():
        options = storage_options(endpoint_url, profile, no_sign_request=no_sign_request)
        opened = spinezarr.open(store, catalog=catalog, storage_options=options)
        names = _chosen(opened, scan)
        make_folder(out)
        _check_room(names, out, compressed=not uncompressed, overwrite=overwrite)

        def export(name: str, on_bytes: OnBytes) -> ExportedScan:
            return opened.export_nifti(
                name, out, compressed=not uncompressed, exact=exact, on_bytes=on_bytes
            )

        done, failed = _export_all(names, _voxel_bytes(opened, names), export)
        if as_json:
            print_json({"done": [_plain(d) for d in done], "failed": failed})
        else:
            _print(done, failed, out)
        raise typer.Exit(SOME_FAILED if failed else 0)


@app.command(no_args_is_help=True)
def nnunet(
    store: StoreUrl,
    *,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", envvar="nnUNet_raw", help="Folder of nnU-Net's raw datasets."),
    ],
    dataset_id: Annotated[
        int, typer.Option(min=1, max=999, help="Number of the dataset in nnU-Net.")
    ] = 501,
    name: Annotated[
        str | None, typer.Option(help="Its name there; else the title of the store.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Only scans of this split; may be repeated.")
    ] = None,
    preprocessed: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="nnUNet_preprocessed",
            help="Folder of nnU-Net's preprocessed datasets, where it looks for the splits.",
        ),
    ] = None,
    uncompressed: Annotated[
        bool, typer.Option("--uncompressed", help="Write .nii, not .nii.gz.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there.")
    ] = False,
    as_json: AsJson = False,
    catalog: CatalogFile = None,
    endpoint_url: EndpointUrl = None,
    profile: Profile = None,
    no_sign_request: NoSignRequest = False,
) -> None:
    """Write a raw dataset of nnU-Net v2, with dataset.json and the splits.

    It becomes DIR/Dataset501_NAME. Scans of train and validation go to imagesTr and labelsTr, those
    of test to imagesTs and labelsTs. Labels are numbered as nnU-Net demands, from 1 without gaps;
    dataset.json says which label of the store each one is. It is written last, and only if every
    scan was.

    Exit code 0: the dataset is whole; 1: some scans failed; 2: wrong usage.

    Example:  spinezarr export nnunet demo/ctspine1k.zarr --out nnUNet_raw
    """
    with errors_for_users():
        options = storage_options(endpoint_url, profile, no_sign_request=no_sign_request)
        opened = spinezarr.open(store, catalog=catalog, storage_options=options)
        export = opened.export_nnunet(
            out,
            dataset_id=dataset_id,
            name=name,
            splits=split,
            preprocessed=preprocessed,
            compressed=not uncompressed,
        )
        export.make_folders(overwrite=overwrite)
        done, failed = _export_all(
            export.scan_ids, _voxel_bytes(opened, export.scan_ids), export.write
        )
        written = [] if failed else export.finish()
        if as_json:
            files = [str(path) for path in written]
            print_json({"done": [_plain(d) for d in done], "failed": failed, "files": files})
        else:
            _print(done, failed, export.folder)
            for path in written:
                OUT.say(f"Wrote {path}.")
            if failed:
                OUT.say("No dataset.json: nnU-Net takes whole datasets only.")
        raise typer.Exit(SOME_FAILED if failed else 0)


@app.command(name="ome-zarr", no_args_is_help=True)
def ome_zarr(
    store: StoreUrl,
    *,
    out: Annotated[
        str, typer.Option(metavar="DIR|URL", help="Folder, or place in a bucket, for the images.")
    ],
    scan: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only this scan; may be repeated.")
    ] = None,
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Make hard links to the store's shards: they take no room, and whoever changes "
            "one in place changes the store.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace images that are there.")
    ] = False,
    as_json: AsJson = False,
    catalog: CatalogFile = None,
    endpoint_url: EndpointUrl = None,
    profile: Profile = None,
    no_sign_request: NoSignRequest = False,
) -> None:
    """Write each scan as an OME-Zarr image, for napari, Slicer and other viewers.

    It becomes DIR/SCAN.ome.zarr, version 0.5 on Zarr v3: image and mask as the store's own shards,
    coarser levels, names and colors of vertebrae. On disks that can, shards share their blocks with
    the store's until one is changed.

    Exit code 0: every scan is written; 1: some failed, all others are; 2: wrong usage.

    Example:  spinezarr export ome-zarr demo/ctspine1k.zarr --out images
    """
    with errors_for_users():
        options = storage_options(endpoint_url, profile, no_sign_request=no_sign_request)
        is_far = "://" in out
        opened = spinezarr.open(
            store,
            catalog=catalog,
            storage_options={} if is_far and "://" not in store else options,
        )
        names = _chosen(opened, scan)
        if not is_far:
            make_folder(Path(out))
            _check_no_images(names, Path(out), overwrite=overwrite)

        def export(name: str, on_bytes: OnBytes) -> ExportedScan:
            return opened.export_ome_zarr(
                name,
                out,
                storage_options=options if is_far else None,
                link=link,
                overwrite=overwrite,
                on_bytes=on_bytes,
            )

        done, failed = _export_all(names, _voxel_bytes(opened, names), export)
        if as_json:
            print_json({"done": [_plain(d) for d in done], "failed": failed})
        else:
            OUT.say(f"Wrote {count_noun(len(done), 'image')} to {redact_url(out)}.")
            _print_rows("Notes", ("images", "note"), _grouped(done))
            _print_rows("Failed", ("scan", "reason"), list(failed.items()))
        raise typer.Exit(SOME_FAILED if failed else 0)


def _check_no_images(names: Sequence[str], out: Path, *, overwrite: bool) -> None:
    """Refuse to write where images are in the way."""
    for name in names:
        path = out / f"{name}.ome.zarr"
        if path.exists() and not overwrite:
            raise UsageError(
                f"{path}: is there already. Choose another folder, or give --overwrite."
            )


def _plain(exported: ExportedScan) -> dict[str, object]:
    return {
        "scan_id": exported.scan_id,
        "files": list(exported.files),
        "notes": list(exported.notes),
    }


def _chosen(store: "spinezarr.Store", wanted: Sequence[str] | None) -> list[str]:
    known = [str(name) for name in store.table.scan.to_numpy()]
    if wanted is None:
        return known
    return list(dict.fromkeys(resolve_scan_ids(wanted, known, store.url)))


def _export_all(
    names: Sequence[str], size_bytes: int, export: Callable[[str, OnBytes], ExportedScan]
) -> tuple[list[ExportedScan], dict[str, str]]:
    """Export scans side by side; return what was written, and why others were not."""
    done: list[ExportedScan] = []
    failed: dict[str, str] = {}
    interrupted = Event()
    with bytes_progress() as progress:
        task = progress.add_task("export", total=size_bytes)

        def advance(size_bytes: int) -> None:
            if interrupted.is_set():
                raise KeyboardInterrupt
            progress.advance(task, size_bytes)

        def attempt(name: str) -> ExportedScan | str:
            try:
                return export(name, advance)
            except SpinezarrError as problem:
                return str(problem)

        pool = ThreadPoolExecutor(cpu_count(), thread_name_prefix="spinezarr-export")
        try:
            for name, result in zip(names, pool.map(attempt, names), strict=True):
                if isinstance(result, ExportedScan):
                    done.append(result)
                else:
                    failed[name] = result
        except BaseException:
            interrupted.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return done, failed


def _voxel_bytes(store: "spinezarr.Store", names: Sequence[str]) -> int:
    """Sum up the stored voxels of image and mask."""
    table = store.table.sel(scan=list(names))
    columns = (table.shape_zyx, table.image_stored_dtype, table.label_state)
    return sum(
        math.prod(shape) * (np.dtype(str(dtype)).itemsize + (state != "none"))
        for shape, dtype, state in zip(*(c.to_numpy().tolist() for c in columns), strict=True)
    )


def _check_room(names: Sequence[str], out: Path, *, compressed: bool, overwrite: bool) -> None:
    """Refuse to write where files are in the way."""
    for name in names:
        for array in ("image", "label"):
            path = out / file_name(name, array, compressed=compressed)
            check_no_conflicting_file(path)
            if path.exists() and not overwrite:
                raise UsageError(
                    f"{path}: is there already. Choose another folder, or give --overwrite."
                )


def _print(done: Sequence[ExportedScan], failed: dict[str, str], out: Path) -> None:
    files = sum(len(exported.files) for exported in done)
    OUT.say(f"Wrote {count_noun(files, 'file')} of {count_noun(len(done), 'scan')} to {out}.")
    _print_rows("Notes", ("files", "note"), _grouped(done))
    _print_rows("Failed", ("scan", "reason"), list(failed.items()))


def _grouped(done: Sequence[ExportedScan]) -> list[tuple[str, str]]:
    """Return each note once, and which file it is about, or how many; the rarest first."""
    files: dict[str, list[str]] = {}
    for exported in done:
        for note in exported.notes:
            file, _, text = note.partition(": ")
            files.setdefault(text, []).append(file)
    rarest_first = sorted(files.items(), key=lambda item: len(item[1]))
    return [
        (names[0] if len(names) == 1 else f"{len(names)}, e.g. {names[0]}", text)
        for text, names in rarest_first
    ]


def _print_rows(title: str, columns: tuple[str, str], rows: Sequence[tuple[str, str]]) -> None:
    if not rows:
        return
    table = Table(title, *columns)
    for row in rows[:SHOWN]:
        table.add_row(*row)
    print_capped(table, len(rows))
