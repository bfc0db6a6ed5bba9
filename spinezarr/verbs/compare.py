"""How well does a predicted mask agree with the truth, in each scan of a store?"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from spinezarr.compare.csv_table import comparison_csv
from spinezarr.compare.masks import MaskFiles, MaskSource, StoredMask, read_nnunet_labels
from spinezarr.compare.measures import MaskComparison, compare_masks
from spinezarr.compare.summary import ScanComparison, StoreComparison
from spinezarr.errors import ReadOnlyStoreError, SpinezarrError, StoreBusyError, UsageError
from spinezarr.export.atomic_file import make_folder, write_atomically
from spinezarr.progress import OnProgress, ProgressCounter
from spinezarr.store.layout import LABEL
from spinezarr.store.reader import StoreReader
from spinezarr.store.records import ComparisonRecord
from spinezarr.store.scan_handle import ScanHandle
from spinezarr.store.selection import ScanSelection
from spinezarr.stream.read.engine import Engine
from spinezarr.verbs.labels import save_comparisons
from spinezarr.verbs.masked_scans import scans_with_masks

__all__ = ["N_WORST", "CompareOutputs", "ComparedMasks", "compare_scans"]

N_WORST = 10
"""Number of scans of which pictures are drawn."""


@dataclass(frozen=True, slots=True)
class ComparedMasks:
    """The two masks of each scan that are compared."""

    truth: StoredMask
    prediction: MaskSource

    @classmethod
    def plan(
        cls,
        engine: Engine,
        *,
        layer: str | None,
        masks: str | os.PathLike[str] | None,
        truth: str,
        dataset_json: str | os.PathLike[str] | None,
        take_image_grid: bool,
    ) -> "ComparedMasks":
        """Return the masks that a user names; see :meth:`spinezarr.Store.compare`."""
        if (layer is None) == (masks is None):
            raise UsageError(
                "give either --layer, the name of a mask in the store, or --masks, the path of "
                "files such as 'predictions/{scan}.nii.gz'."
            )
        if masks is None:
            if dataset_json is not None or take_image_grid:
                raise UsageError("--dataset-json and --take-image-grid belong to --masks.")
            return cls(StoredMask(engine, truth), StoredMask(engine, str(layer)))
        values = () if dataset_json is None else read_nnunet_labels(Path(dataset_json))
        files = MaskFiles(os.fspath(masks), values, take_image_grid=take_image_grid)
        return cls(StoredMask(engine, truth), files)

    def layer_to_save(self) -> str:
        """Return the name of the predicted mask, with which a comparison can be saved."""
        if not isinstance(self.prediction, StoredMask) or self.prediction.name == LABEL:
            raise UsageError(
                "--save keeps the result with a further mask of the store, which --layer names. "
                "Add files with 'spinezarr add-labels' first."
            )
        return self.prediction.name


@dataclass(frozen=True, slots=True)
class CompareOutputs:
    """Files that a comparison writes; None for those that it does not."""

    csv: Path | None
    plot: Path | None
    pictures: Path | None
    """Folder."""

    def make_folders(self) -> None:
        """Make the folders of all files.

        Raises
        ------
        UsageError
            If a file is a folder, or a folder a file.
        """
        for path in (self.csv, self.plot):
            if path is not None:
                make_folder(path.parent)
                if path.is_dir():
                    raise UsageError(f"{path}: is a folder. Give the name of a file.")
        if self.pictures is not None:
            make_folder(self.pictures)


def compare_scans(
    reader: StoreReader,
    engine: Engine,
    selection: ScanSelection,
    masks: ComparedMasks,
    *,
    outputs: CompareOutputs,
    save: bool,
    on_progress: OnProgress,
) -> StoreComparison:
    """Compare the masks of scans; see :meth:`spinezarr.Store.compare`."""
    layer = masks.layer_to_save() if save else None
    scan_ids = selection.some_scan_ids(reader.columns, reader.name)
    stored = [mask.name for mask in (masks.prediction, masks.truth) if isinstance(mask, StoredMask)]
    if further := [name for name in stored if name != LABEL]:
        scans_with_masks(reader, selection, further)  # an error if no scan has them
    outputs.make_folders()
    counter = ProgressCounter(on_progress, "compare", "scans", len(scan_ids))
    compared: list[ScanComparison] = []
    failed: dict[str, str] = {}
    without_truth: list[str] = []
    opened: dict[str, ScanHandle] = {}
    for scan_id in scan_ids:
        try:
            opened[scan_id] = reader.scan(scan_id)
            comparison = _compare_scan(opened[scan_id], masks)
        except FileNotFoundError as problem:
            failed[scan_id] = f"{problem.filename or problem}: no such file."
        except (SpinezarrError, OSError) as problem:
            failed[scan_id] = str(problem)
        else:
            if comparison is None:
                without_truth.append(scan_id)
            else:
                compared.append(ScanComparison(scan_id, comparison))
        counter.add()
    if without_truth and not compared and not failed:
        raise UsageError(f"{reader.name}: no chosen scan has {masks.truth.description}.")
    result = StoreComparison(
        dataset=reader.root.dataset,
        title=reader.root.title,
        prediction=masks.prediction.description,
        truth=masks.truth.description,
        scans=tuple(compared),
        failed=failed,
        without_truth=tuple(without_truth),
    )
    _write(result, outputs)
    if outputs.pictures is not None:
        worst = result.worst(N_WORST)
        _draw(reader, engine, masks, worst, folder=outputs.pictures, on_progress=on_progress)
    if layer is not None:
        records = {
            compared.scan_id: _record(
                opened[compared.scan_id], masks.truth.name, layer, compared.comparison
            )
            for compared in result.scans
        }
        result = replace(result, not_saved=_save(reader, layer, records))
    return result


def _compare_scan(scan: ScanHandle, masks: ComparedMasks) -> MaskComparison | None:
    """Compare the masks of one scan; return None if it has no true mask."""
    if not masks.truth.is_present(scan):
        return None
    return compare_masks(masks.truth.read(scan), masks.prediction.read(scan), scan.affine)


def _record(
    scan: ScanHandle, truth: str, mask: str, comparison: MaskComparison
) -> ComparisonRecord:
    """Return the part of a comparison that is saved, for the masks that were read."""
    return ComparisonRecord(
        truth=truth,
        truth_checksum=scan.mask(truth).content_checksum,
        mask_checksum=scan.mask(mask).content_checksum,
        verdict=comparison.verdict.kind,
        text=comparison.verdict.text,
        dice=comparison.as_named.verse.dice,
        identification_rate=comparison.as_named.verse.identification_rate,
    )


def _save(reader: StoreReader, mask: str, records: Mapping[str, ComparisonRecord]) -> str:
    """Save comparisons in the store; return why that failed, or an empty text."""
    try:
        replaced = save_comparisons(reader, mask, records)
    except (ReadOnlyStoreError, StoreBusyError) as problem:
        return f"{problem} The comparison is only reported."
    if replaced:
        return (
            f"{reader.name}: masks of these scans were replaced meanwhile, so their comparison is "
            f"not saved: {', '.join(replaced)}. Compare them again."
        )
    return ""


def _write(result: StoreComparison, outputs: CompareOutputs) -> None:
    if outputs.csv is not None:
        with write_atomically(outputs.csv) as file:
            file.write(comparison_csv(result).encode())
    if outputs.plot is not None:
        # matplotlib takes long to import, and few calls draw plots.
        from spinezarr.compare.plot import draw_measures  # noqa: PLC0415

        with write_atomically(outputs.plot) as file:
            draw_measures(result).savefig(file, format="png")


def _draw(
    reader: StoreReader,
    engine: Engine,
    masks: ComparedMasks,
    scans: Iterable[ScanComparison],
    *,
    folder: Path,
    on_progress: OnProgress,
) -> None:
    """Draw scans, whose masks are read again, because not all of them fit into memory."""
    # matplotlib takes long to import, and few calls draw pictures.
    from spinezarr.compare.picture import draw_comparison  # noqa: PLC0415

    drawn = tuple(scans)
    counter = ProgressCounter(on_progress, "pictures", "scans", len(drawn))
    for rank, compared in enumerate(drawn, 1):
        scan = reader.scan(compared.scan_id)
        truth, prediction = masks.truth.read(scan), masks.prediction.read(scan)
        with write_atomically(folder / f"{rank:02}_{compared.scan_id}.png") as file:
            file.write(draw_comparison(scan, engine, truth, prediction, compared))
        counter.add()
