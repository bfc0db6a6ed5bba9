"""``spinezarr info``: a store on one screen."""

from collections import Counter
from typing import Any, Final

import numpy as np

import spinezarr
from spinezarr.cli.console import (
    OUT,
    Said,
    Table,
    errors_for_users,
    megabytes,
    print_json,
    print_side_by_side,
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
from spinezarr.redaction import redact_url
from spinezarr.text import count_noun, to_printable

__all__ = ["info"]

_LONGEST_TEXT: Final = 300
"""Characters of a title or license: some licenses come as a whole text."""


def info(
    store: StoreUrl,
    *,
    as_json: AsJson = False,
    catalog: CatalogFile = None,
    endpoint_url: EndpointUrl = None,
    profile: Profile = None,
    no_sign_request: NoSignRequest = False,
) -> None:
    """Show what a store holds: splits, sizes, compression, vertebra counts.

    Example:  spinezarr info demo/ctspine1k.zarr
    """
    with errors_for_users():
        options = storage_options(endpoint_url, profile, no_sign_request=no_sign_request)
        summary = summarize(spinezarr.open(store, catalog=catalog, storage_options=options))
        if as_json:
            print_json(summary)
        else:
            _print(summary)


def summarize(store: "spinezarr.Store") -> dict[str, Any]:
    """Sum up a store from its scan table alone."""
    table = store.table
    voxels = table.shape_zyx.prod("axis")
    source = [str(name) for name in table.source.to_numpy()]
    split = [str(name) for name in table.split.to_numpy()]
    pairs = Counter(zip(source, split, strict=True))
    statistics = store.stats()
    return {
        "url": redact_url(store.url),
        **store.attrs,
        "scans": statistics.scans,
        "patients": statistics.patients,
        "scans_without_mask": statistics.scans - statistics.scans_with_mask,
        "splits": store.splits,
        "scans_by_source_and_split": [
            {"source": name, "split": part, "scans": n} for (name, part), n in sorted(pairs.items())
        ],
        "shape_zyx": _spread(table.shape_zyx.to_numpy()),
        "spacing_zyx_mm": _spread(table.spacing_zyx_mm.to_numpy()),
        "orientations": dict(Counter(str(name) for name in table.orientation.to_numpy())),
        "source_bytes": int(table.source_bytes.sum()),
        "stored_bytes": int(table.stored_bytes.sum()),
        "uncompressed_bytes": int(
            sum(
                n * (np.dtype(str(name)).itemsize + (state != "none"))
                for n, name, state in zip(
                    voxels.to_numpy().tolist(),
                    table.image_stored_dtype.to_numpy(),
                    table.label_state.to_numpy(),
                    strict=True,
                )
            )
        ),
        "scans_by_vertebra": {
            name: row.scans for name, row in statistics.vertebrae.items() if row.scans
        },
        "scans_by_annotated_centroid": {
            name: row.annotated_centroids
            for name, row in statistics.vertebrae.items()
            if row.annotated_centroids
        },
        "scans_by_audit": dict(Counter(str(verdict) for verdict in table.audit.to_numpy())),
        "other_label_voxels": int(table.other_label_voxels.sum()),
    }


def _spread(values: np.ndarray[Any, Any]) -> dict[str, list[float]]:
    """Minimum, median and maximum of each column."""
    if not len(values):
        return {}
    rows = {"min": values.min(0), "median": np.median(values, 0), "max": values.max(0)}
    return {name: [round(float(v), 4) for v in row] for name, row in rows.items()}


def _print(summary: dict[str, Any]) -> None:
    title, license = (to_printable(summary[name], _LONGEST_TEXT) for name in ("title", "license"))
    OUT.say(Said(title, "bold"), "  ", summary["url"])
    OUT.say(
        f"license {license}, {count_noun(summary['scans'], 'scan')} of "
        f"{count_noun(summary['patients'], 'patient')}, "
        f"{summary['scans_without_mask']} without a mask"
    )
    if summary["citation"]:
        OUT.say(f"cite: {summary['citation']}")
    splits = list(summary["splits"])
    headings = tuple(split or "(no split)" for split in splits)
    scans = Table("Scans", "source", *headings, "all", right=(*headings, "all"))
    counts = {
        (row["source"], row["split"]): row["scans"] for row in summary["scans_by_source_and_split"]
    }
    for source in sorted({key[0] for key in counts}):
        row = [counts.get((source, split), 0) for split in splits]
        scans.add_row(source or "(one)", *map(str, row), str(sum(row)))
    scans.add_row("all", *map(str, summary["splits"].values()), str(summary["scans"]))
    sizes = Table("Bytes", "", "size", "of source", right=("size", "of source"))
    for name, key in (
        ("source files", "source_bytes"),
        ("this store", "stored_bytes"),
        ("uncompressed", "uncompressed_bytes"),
    ):
        share = summary[key] / max(1, summary["source_bytes"])
        sizes.add_row(name, megabytes(summary[key]), f"{share:.2f} x")
    shapes = Table("Volumes (z, y, x)", "", "voxels", "spacing mm")
    for name in summary["shape_zyx"]:
        voxels = " x ".join(f"{n:g}" for n in summary["shape_zyx"][name])
        spacing = " x ".join(f"{n:.3g}" for n in summary["spacing_zyx_mm"][name])
        shapes.add_row(name, voxels, spacing)
    tables = [scans, sizes, shapes] if summary["scans"] else [scans, sizes]
    print_side_by_side(tables, gap=3)
    _print_counts("Scans that show each vertebra", summary["scans_by_vertebra"])
    centroids = summary["scans_by_annotated_centroid"]
    if centroids:
        _print_counts("Scans that annotate the center of each vertebra", centroids)
    if summary["other_label_voxels"]:
        OUT.say(f"{summary['other_label_voxels']} mask voxels lie outside the label scheme.")
    audit = ", ".join(
        f"{n} {verdict or 'not audited'}"
        for verdict, n in sorted(summary["scans_by_audit"].items())
    )
    OUT.say(Said("Audit", "bold"), f": {audit or 'no scans'}")


def _print_counts(title: str, counts: dict[str, int]) -> None:
    """Print numbers of scans by vertebra in columns, so that no pair is torn apart."""
    OUT.say(title, style="bold")
    pairs = [(f"{name:>3} ", Said(str(n), "bold")) for name, n in counts.items()]
    if pairs:
        print_side_by_side(pairs, gap=2)
    else:
        OUT.say("none")
