"""How is a dataset described in the README of a Hugging Face repository?

The front matter is YAML as the hub defines it. The rest is Markdown. Texts of a store may come from
a stranger, so they are escaped.

References
----------
https://huggingface.co/docs/hub/datasets-cards
https://huggingface.co/docs/hub/repositories-licenses
"""

from typing import Any, Final

import yaml

from spinezarr.describe.description import SCAN_LIST, DatasetDescription, license_link
from spinezarr.stats.documents import statistics_sections
from spinezarr.text import count_noun, escape_markdown, to_printable

__all__ = ["PICTURE", "dataset_card"]

PICTURE: Final = "scan.png"
"""Name of the picture that the card shows."""
_HUB_LICENSES: Final = {
    "cc0-1.0",
    *(
        f"cc-{kind}-{version}"
        for kind, versions in {
            "by": ("2.0", "2.5", "3.0", "4.0"),
            "by-sa": ("3.0", "4.0"),
            "by-nc": ("2.0", "3.0", "4.0"),
            "by-nd": ("4.0",),
            "by-nc-nd": ("3.0", "4.0"),
            "by-nc-sa": ("2.0", "3.0", "4.0"),
        }.items()
        for version in versions
    ),
    "mit",
    "apache-2.0",
}
"""Licenses that the hub knows, of those that datasets of CT have."""
_SIZES: Final = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))


def dataset_card(dataset: DatasetDescription, *, has_picture: bool) -> str:
    """Return the card of a dataset.

    Parameters
    ----------
    dataset
        The dataset.
    has_picture
        Whether :data:`PICTURE` lies beside the card.
    """
    front = yaml.safe_dump(
        _front_matter(dataset), sort_keys=False, allow_unicode=True, default_flow_style=False
    )
    parts = [f"# {escape_markdown(dataset.root.title)}"]
    if has_picture:
        text = "A CT in three planes, with its mask and the names of vertebrae"
        parts.append(f"![{text}]({PICTURE})")
    parts += [*_introduction(dataset), *_usage(dataset), *_license(dataset)]
    parts += ["## Citation", escape_markdown(dataset.root.citation)]
    parts += statistics_sections(dataset.statistics)
    errata = int((dataset.table.erratum.to_numpy() != "").sum())
    remarks = [escape_markdown(text) for text in dataset.caveats]
    if errata:
        remarks.insert(
            0,
            f"{count_noun(errata, 'scan')} have a known error. The column `erratum` says which.",
        )
    if remarks:
        parts += ["## Remarks", "\n".join(f"- {remark}" for remark in remarks)]
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(dataset: DatasetDescription) -> dict[str, Any]:
    n = len(dataset.scan_ids)
    size = next((name for limit, name in _SIZES if n < limit), "100K<n<1M")
    return {
        **_license_fields(dataset),
        "pretty_name": to_printable(dataset.root.title),
        "task_categories": ["image-segmentation"],
        "tags": ["medical", "CT", "spine", "vertebra", "zarr"],
        "size_categories": [size],
        "configs": [
            {"config_name": "scans", "data_files": [{"split": "scans", "path": SCAN_LIST}]}
        ],
    }


def _license_fields(dataset: DatasetDescription) -> dict[str, Any]:
    """Return the fields on the license. The hub needs a name and a link for one that it lacks."""
    names = list(dataset.licenses) or [dataset.root.license]
    known = [name.lower().replace(" ", "-") for name in names]
    if set(known) <= _HUB_LICENSES:
        return {"license": known[0] if len(known) == 1 else known}
    fields = {"license": "other", "license_name": to_printable("; ".join(names))}
    link = license_link(names[0], dataset.root.homepage)
    return fields if link is None else {**fields, "license_link": link}


def _introduction(dataset: DatasetDescription) -> list[str]:
    root, statistics = dataset.root, dataset.statistics
    homepage = "" if root.homepage is None else f" Homepage: {escape_markdown(root.homepage)}."
    masks = statistics.scans_with_mask
    scans = count_noun(statistics.scans, "CT scan")
    patients = count_noun(statistics.patients, "patient")
    counts = f"{scans} of {patients}, {masks:,} of them with a mask of the vertebrae.{homepage}"
    form = (
        "The scans are one sharded, lossless [Zarr v3](https://zarr-specs.readthedocs.io) store, "
        "made with spinezarr. Images are in HU, axes are (z, y, x) toward superior, anterior and "
        "right, and coordinates are in mm (RAS+)."
    )
    parts = [counts, form]
    if root.derivation is not None:
        parts.append(f"Each scan is derived: {escape_markdown(root.derivation)}.")
    return parts


def _usage(dataset: DatasetDescription) -> list[str]:
    example = dataset.scan_ids[0] if dataset.scan_ids else "SCAN"
    code = (
        "import spinezarr\n"
        "import xarray as xr\n\n"
        f"scan = xr.open_zarr({dataset.scan_url(example)!a})    # image, label, z, y, x\n"
        f"table = xr.open_zarr({dataset.table_url!a})    # a row for each scan\n\n"
        f"store = spinezarr.open({dataset.url!a})\n"
        "for batch in store.patches((64, 64, 64), batch_size=2, foreground=1/3, n_samples=20):\n"
        "    batch.image, batch.label\n"
    )
    lists = (
        f"`{SCAN_LIST}` lists the scans. `croissant.json` and `intake.yaml` describe them for "
        "programs that know [Croissant](https://mlcommons.org/croissant) or "
        "[intake](https://intake.readthedocs.io)."
    )
    return ["## Use", f"```python\n{code}```", lists]


def _license(dataset: DatasetDescription) -> list[str]:
    licenses = dataset.licenses
    rows = [
        f"| {escape_markdown(name) or '(not stated)'} | {scans:,} |"
        for name, scans in licenses.items()
    ]
    text = f"The dataset states {escape_markdown(dataset.root.license)}."
    if len(licenses) < 2:  # noqa: PLR2004
        return ["## License", text]
    table = "\n".join(["| License | Scans |", "|---|---:|", *rows])
    return ["## License", f"{text} Each scan keeps its own license:", table]
