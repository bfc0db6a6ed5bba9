"""``spinezarr export``: how do scans become files of other formats?"""

from pathlib import Path
from typing import Annotated

import typer

from spinezarr.cli.help import Command, command_group
from spinezarr.cli.options import (
    AsJson,
    OpenOptions,
    Overwrite,
    ScanOptions,
    StoreUrl,
    Uncompressed,
    command,
)

__all__ = ["app"]

app = command_group(help="Give scans back as files of other formats.", add_completion=False)


@app.command(cls=Command, no_args_is_help=True)
@command
def nifti(
    store: StoreUrl,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the files.")],
    chosen: ScanOptions,
    uncompressed: Uncompressed = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Keep the source's type and affine bit for bit, as NIfTI-2 where needed. Not all "
            "programs read such files.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    opening: OpenOptions,
) -> None:
    """Write each scan as NIfTI that other programs read, with the source's voxels and axis order.

    Image and mask become DIR/SCAN_ct.nii.gz and DIR/SCAN_seg.nii.gz. What was NIfTI comes back bit
    for bit if SimpleITK, ITK-SNAP and nibabel read it alike; all else becomes NIfTI-1, in the
    narrowest type that holds the values. Notes say how a file differs from its source.

    Exit code 0: every scan is written; 1: some failed, all others are; 2: wrong usage.

    Example:  spinezarr export nifti demo/ctspine1k.zarr --out nifti
    """
    from spinezarr.cli.console import print_json, show_progress
    from spinezarr.cli.reports.export import print_files

    with show_progress() as show:
        report = opening.open(store).export_nifti(
            out=out,
            **chosen.names,
            compressed=not uncompressed,
            exact=exact,
            overwrite=overwrite,
            on_progress=show,
        )
    if as_json:
        print_json(report.to_json())
    else:
        print_files(report)
    raise typer.Exit(report.exit_code)


@app.command(cls=Command, no_args_is_help=True)
@command
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
        str | None,
        typer.Option(help="Name of the dataset in nnU-Net; the title of the store by default."),
    ] = None,
    chosen: ScanOptions,
    preprocessed: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="nnUNet_preprocessed",
            help="Folder of nnU-Net's preprocessed datasets, where it looks for the splits.",
        ),
    ] = None,
    uncompressed: Uncompressed = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    opening: OpenOptions,
) -> None:
    """Write a raw dataset of nnU-Net v2, with dataset.json and the splits.

    It becomes DIR/Dataset501_NAME. Scans of train and validation go to imagesTr and labelsTr, those
    of test to imagesTs and labelsTs. Labels are numbered as nnU-Net demands, from 1 without gaps;
    dataset.json says which label of the store each one is. It is written last, and only if every
    scan was.

    Exit code 0: the dataset is whole; 1: some scans failed; 2: wrong usage.

    Example:  spinezarr export nnunet demo/ctspine1k.zarr --out nnUNet_raw
    """
    from spinezarr.cli.console import OUT, print_json, show_progress
    from spinezarr.cli.reports.export import print_files

    with show_progress() as show:
        report = opening.open(store).export_nnunet(
            out=out,
            dataset_id=dataset_id,
            name=name,
            **chosen.names,
            preprocessed=preprocessed,
            compressed=not uncompressed,
            overwrite=overwrite,
            on_progress=show,
        )
    if as_json:
        print_json({**report.to_json(), "files": list(report.files)})
    else:
        print_files(report)
        for path in report.files:
            OUT.say(f"Wrote {path}.")
        if report.failed:
            OUT.say("No dataset.json: nnU-Net takes whole datasets only.")
    raise typer.Exit(report.exit_code)


@app.command(name="ome-zarr", cls=Command, no_args_is_help=True)
@command
def ome_zarr(
    store: StoreUrl,
    *,
    out: Annotated[
        str, typer.Option(metavar="DIR|URL", help="Folder, or place in a bucket, for the images.")
    ],
    chosen: ScanOptions,
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Make hard links to the store's shards, which take no room. A change to such a "
            "file changes the store.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    opening: OpenOptions,
) -> None:
    """Write each scan as an OME-Zarr image, for napari, Slicer and other viewers.

    It becomes DIR/SCAN.ome.zarr, version 0.5 on Zarr v3: image and mask as the store's own shards,
    coarser levels, names and colors of vertebrae. On disks that can, shards share their blocks with
    the store's until one is changed.

    Exit code 0: every scan is written; 1: some failed, all others are; 2: wrong usage.

    Example:  spinezarr export ome-zarr demo/ctspine1k.zarr --out images
    """
    from spinezarr.cli.console import print_json, show_progress
    from spinezarr.cli.reports.export import print_images

    # The S3 options apply to the bucket that is written, and to the store if it is in a bucket.
    is_local_store = "://" in out and "://" not in store
    opened = (OpenOptions(catalog=opening.catalog) if is_local_store else opening).open(store)
    with show_progress() as show:
        report = opened.export_ome_zarr(
            out=out,
            **chosen.names,
            storage_options=opening.storage_options,
            link=link,
            overwrite=overwrite,
            on_progress=show,
        )
    if as_json:
        print_json(report.to_json())
    else:
        print_images(report)
    raise typer.Exit(report.exit_code)
