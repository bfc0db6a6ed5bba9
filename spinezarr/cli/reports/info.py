"""What does ``spinezarr info`` print?"""

from typing import Any, Final

from spinezarr.cli.console import OUT, StyledText, Table, print_side_by_side
from spinezarr.text import count_noun, megabytes, to_printable

__all__ = ["print_summary"]

_LONGEST_TEXT: Final = 300
"""Most characters of a title or license that are shown, because some licenses are whole texts."""
_NOT_STATED: Final = "-"


def print_summary(summary: dict[str, Any]) -> None:
    """Print the summary of a store on one screen."""
    title, license = (to_printable(summary[name], _LONGEST_TEXT) for name in ("title", "license"))
    OUT.say(StyledText(title, "bold"), "  ", summary["url"])
    OUT.say(
        f"license {license}, {count_noun(summary['scans'], 'scan')} of "
        f"{count_noun(summary['patients'], 'patient')}, "
        f"{summary['scans_without_mask']} without a mask"
    )
    if summary.get("derivation"):
        OUT.say(
            f"derived from {to_printable(summary['derived_from'])}: "
            f"{to_printable(summary['derivation'], _LONGEST_TEXT)}"
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
        OUT.say(
            f"{summary['other_label_voxels']} mask voxels have values outside the label scheme."
        )
    _print_masks(summary["masks"])
    audit = ", ".join(
        f"{n} {verdict or 'not audited'}"
        for verdict, n in sorted(summary["scans_by_audit"].items())
    )
    OUT.say(StyledText("Audit", "bold"), f": {audit or 'no scans'}")


def _print_masks(masks: list[dict[str, Any]]) -> None:
    """Print who made each further mask, and how many scans show each of its labels."""
    if not masks:
        return
    table = Table(
        "Further masks", "", "scans", "made by", "license", "scheme", "compared", right=("scans",)
    )
    for mask in masks:
        for number, made in enumerate(mask["made"]):
            makers = ", ".join(filter(None, (made["model"], made["author"])))
            table.add_row(
                "" if number else mask["name"],
                str(made["scans"]),
                makers or _NOT_STATED,
                to_printable(made["license"], _LONGEST_TEXT) or _NOT_STATED,
                made["scheme"],
                "" if number else _comparison(mask),
            )
    OUT.print(table)
    for mask in masks:
        title = f"Scans that show each label of {mask['name']}"
        if mask["scans_by_structure"] is None:
            OUT.say(f"{title}: the scan table has no room for these numbers.")
        else:
            _print_counts(title, mask["scans_by_structure"])


def _comparison(mask: dict[str, Any]) -> str:
    """Return the verdicts of the saved comparisons of a mask, and its mean Dice coefficient."""
    verdicts = [f"{n} {kind}" for kind, n in mask["scans_by_verdict"].items()]
    dice = [] if mask["mean_dice"] is None else [f"mean Dice {mask['mean_dice']:.3f}"]
    return ", ".join(verdicts + dice)


def _print_counts(title: str, counts: dict[str, int]) -> None:
    """Print the number of scans of each vertebra or other label, in columns."""
    OUT.say(title, style="bold")
    pairs = [(f"{name:>3} ", StyledText(str(n), "bold")) for name, n in counts.items()]
    if pairs:
        print_side_by_side(pairs, gap=2)
    else:
        OUT.say("none")
