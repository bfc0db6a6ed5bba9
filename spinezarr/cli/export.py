"""``spinezarr export``: how do scans become files of other formats?"""

from pathlib import Path
from typing import Annotated

import typer

from spinezarr.cli.completion import complete_masks
from spinezarr.cli.help import Command, command_group
from spinezarr.cli.options import (
    AsJson,
    IncludeRestricted,
    Layer,
    OpenOptions,
    Overwrite,
    ScanOptions,
    StoreUrl,
    Uncompressed,
    command,
)

__all__ = ["app"]

app = command_group(help="Write scans as files of other formats.", add_completion=False)


@app.command(cls=Command, no_args_is_help=True)
@command
def nifti(
    store: StoreUrl,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the files.")],
    layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Mask to write: label, which is the default, or a further mask; may be repeated.",
            autocompletion=complete_masks,
        ),
    ] = None,
    scan_options: ScanOptions,
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
    include_restricted: IncludeRestricted = False,
    as_json: AsJson = False,
    open_options: OpenOptions,
) -> None:
    """Write each scan as NIfTI that other programs read, with the source's voxels and axis order.

    Image and mask become DIR/SCAN_ct.nii.gz and DIR/SCAN_seg.nii.gz, and a further mask becomes
    DIR/SCAN_seg-NAME.nii.gz. A NIfTI source comes back bit for bit if SimpleITK, ITK-SNAP and
    nibabel agree on it. Other sources become NIfTI-1 in the narrowest type that holds the values.
    Notes say how a file differs from its source.

    Exit code 0: every scan was written; 1: some failed, all others were written; 2: wrong usage.

    Example:  spinezarr export nifti demo/ctspine1k.zarr --out nifti
    """
    from spinezarr.cli.console import print_json
    from spinezarr.cli.progress import show_progress
    from spinezarr.cli.reports.export import print_files

    with show_progress() as on_progress:
        report = open_options.open(store).export_nifti(
            out=out,
            layer=layer,
            **scan_options.names,
            compressed=not uncompressed,
            exact=exact,
            overwrite=overwrite,
            include_restricted=include_restricted,
            on_progress=on_progress,
        )
    if as_json:
        print_json(report.to_json(), report.exit_code)
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
        int,
        typer.Option(metavar="N", min=1, max=999, help="Number of the dataset in nnU-Net."),
    ] = 501,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the dataset in nnU-Net; by default the title of the store.",
        ),
    ] = None,
    layer: Layer = "label",
    scan_options: ScanOptions,
    preprocessed: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="nnUNet_preprocessed",
            help="Folder of nnU-Net's preprocessed datasets, where it expects the splits.",
        ),
    ] = None,
    uncompressed: Uncompressed = False,
    overwrite: Overwrite = False,
    include_restricted: IncludeRestricted = False,
    as_json: AsJson = False,
    open_options: OpenOptions,
) -> None:
    """Write a raw dataset of nnU-Net v2, with dataset.json and the splits.

    The dataset is DIR/Dataset501_NAME. Scans of train and validation go to imagesTr and labelsTr,
    those of test to imagesTs and labelsTs. Labels are numbered from 1 without gaps, as nnU-Net
    demands; dataset.json names the label of the store for each. It is written last, and only if
    every scan was written.

    Exit code 0: the dataset is complete; 1: some scans failed; 2: wrong usage.

    Example:  spinezarr export nnunet demo/ctspine1k.zarr --out nnUNet_raw
    """
    from spinezarr.cli.console import OUT, print_json
    from spinezarr.cli.progress import show_progress
    from spinezarr.cli.reports.export import print_files

    with show_progress() as on_progress:
        report = open_options.open(store).export_nnunet(
            out=out,
            dataset_id=dataset_id,
            name=name,
            layer=layer,
            **scan_options.names,
            preprocessed=preprocessed,
            compressed=not uncompressed,
            overwrite=overwrite,
            include_restricted=include_restricted,
            on_progress=on_progress,
        )
    if as_json:
        print_json({**report.to_json(), "files": list(report.files)}, report.exit_code)
    else:
        print_files(report)
        for path in report.files:
            OUT.say(f"Wrote {path}.")
        if report.failed:
            OUT.say("dataset.json was not written, because nnU-Net accepts complete datasets only.")
    raise typer.Exit(report.exit_code)


@app.command(name="ome-zarr", cls=Command, no_args_is_help=True)
@command
def ome_zarr(
    store: StoreUrl,
    *,
    out: Annotated[
        str, typer.Option(metavar="DIR|URL", help="Folder or URL in a bucket for the images.")
    ],
    scan_options: ScanOptions,
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Make hard links to the store's shards, which take no space. A change to such a "
            "file changes the store.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    include_restricted: IncludeRestricted = False,
    as_json: AsJson = False,
    open_options: OpenOptions,
) -> None:
    """Write each scan as an OME-Zarr image, for napari, neuroglancer and other viewers.

    Each image is DIR/SCAN.ome.zarr, version 0.5 on Zarr v3. It holds image and masks as shards of
    the store, coarser levels, and names and colors of vertebrae. If the file system can, shards
    share their blocks with those of the store until one is changed.

    Exit code 0: every scan was written; 1: some failed, all others were written; 2: wrong usage.

    Example:  spinezarr export ome-zarr demo/ctspine1k.zarr --out images
    """
    from spinezarr.cli.console import print_json
    from spinezarr.cli.progress import show_progress
    from spinezarr.cli.reports.export import print_images

    opened_store = open_options.open_source(store, out)
    with show_progress() as on_progress:
        report = opened_store.export_ome_zarr(
            out=out,
            **scan_options.names,
            storage_options=open_options.storage_options,
            link=link,
            overwrite=overwrite,
            include_restricted=include_restricted,
            on_progress=on_progress,
        )
    if as_json:
        print_json(report.to_json(), report.exit_code)
    else:
        print_images(report)
    raise typer.Exit(report.exit_code)


@app.command(cls=Command, no_args_is_help=True)
@command
def card(
    store: StoreUrl,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the files.")],
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="URL at which others will find the store; by default the URL that is read.",
        ),
    ] = None,
    scan_options: ScanOptions,
    overwrite: Overwrite = False,
    include_restricted: IncludeRestricted = False,
    as_json: AsJson = False,
    open_options: OpenOptions,
) -> None:
    """Describe a store for a hub, for Croissant and for intake.

    DIR gets README.md (a dataset card with license, citation, counts and splits), a picture,
    scans.csv (the scans and their URLs), croissant.json and intake.yaml.

    Exit code 0: the files were written; 2: wrong usage.

    Example:  spinezarr export card demo/ctspine1k.zarr --url s3://lab/ctspine1k.zarr --out card
    """
    from spinezarr.cli.console import OUT, print_json
    from spinezarr.cli.reports.export import print_left_out

    report = open_options.open(store).export_card(
        out=out,
        url=url,
        **scan_options.names,
        overwrite=overwrite,
        include_restricted=include_restricted,
    )
    if as_json:
        print_json({"files": list(report.files), "left_out": report.left_out})
    else:
        for path in report.files:
            OUT.say(f"Wrote {path}.")
        print_left_out(report.left_out, {}, "describes")
