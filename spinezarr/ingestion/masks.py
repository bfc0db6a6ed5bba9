"""How do the values of files or an array become a further mask of a stored scan?"""

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import fsspec
import numpy as np

from spinezarr.formats.volume import Volume
from spinezarr.geometry import Grid
from spinezarr.ingestion.label_file import LabelFiles, open_label
from spinezarr.ingestion.labels import label_chunks, label_summaries
from spinezarr.ingestion.scan import (
    ScanOptions,
    absent_parts_note,
    grid_on_image,
    label_notes,
    label_rounding,
    naming_label,
    source_record,
)
from spinezarr.ingestion.voxels.chunks import LabelEncoder, LabelFacts
from spinezarr.ingestion.voxels.encode import encode_volume
from spinezarr.ingestion.voxels.memory import MemoryBudget, Workspace
from spinezarr.label_schemes import LabelScheme
from spinezarr.resources import package_version
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.canonical_json import canonical_json
from spinezarr.store.mask_writer import MaskWriter
from spinezarr.store.records import MaskRecord
from spinezarr.store.writer import StoreWriter
from spinezarr.vertebrae import LabelState

__all__ = ["MaskFacts", "MaskFiles", "MaskSource", "write_mask", "write_mask_files"]

_UNNAMED_NOTE = "values without a name in the scheme {}: {}"


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """What a user says about a further mask."""

    scheme: LabelScheme
    """Names of its values."""
    license: str = ""
    """License of the mask, an SPDX identifier where there is one; empty if it is not known."""
    author: str = ""
    """Who made or annotated the mask; empty if it is not known."""
    model: str = ""
    """Program or network that made the mask, with its version; empty if there is none."""
    label_state: LabelState = "unknown"
    """Whether vertebrae cut by the end of the volume are annotated, or a model drew the mask."""

    def to_record(self) -> dict[str, str]:
        """Return the fields that are stored as they are, by name."""
        return {
            "scheme": self.scheme.name,
            "license": self.license,
            "author": self.author,
            "model": self.model,
            "label_state": self.label_state,
        }


@dataclass(frozen=True, slots=True)
class MaskSource:
    """Where the voxels of a mask come from."""

    volume: Volume
    grid: Grid
    """Grid whose axis directions determine the order of the stored axes."""
    describe: Callable[[], dict[str, Any] | None] = lambda: None
    """Returns the record of the file, once it was read to its end; None for an array."""
    key: str = ""
    """Hash of the file and of the way in which it is read; empty for an array."""
    notes: Sequence[str] = field(default=())
    """Remarks on the file for the user."""
    values: tuple[tuple[int, int], ...] = ()
    """Pairs of value in the file and stored value; empty if values are stored as they are."""
    named_by: str = "scheme"
    """What names the labels, for notes."""


def write_mask(
    writer: MaskWriter,
    facts: MaskFacts,
    source: MaskSource,
    *,
    pool: Executor,
    memory: MemoryBudget,
    scratch: str | None,
    on_voxels: Callable[[int], None] = lambda _: None,
) -> ScanAttributes:
    """Encode a mask slab by slab, and publish it.

    Parameters
    ----------
    writer
        Writes the mask. Whatever it has written is deleted if this fails.
    facts
        What the user says about the mask.
    source
        Voxels of the mask, on the grid of the scan.
    pool
        Threads that encode chunks.
    memory
        Memory that may be used.
    scratch
        Folder for scratch files.
    on_voxels
        Called with the number of voxels that were read, for progress.

    Returns
    -------
    ScanAttributes
        The published attributes of the scan.

    Raises
    ------
    LabelError
        If a value is not a whole number from 0 to 255; the store is then as it was before.
    """
    encoder = LabelEncoder(writer.profile, values=source.values)
    try:
        chunks = encode_volume(
            source.volume,
            source.grid,
            encoder,
            profile=writer.profile,
            write_shard=writer.write_shard,
            pool=pool,
            on_voxels=on_voxels,
            workspace=Workspace(memory, scratch),
        )
        rounding = label_rounding(source.volume, encoder)
        notes = [
            *source.notes,
            *label_notes(source.volume, chunks, rounding, source.named_by),
        ]
        record = _record(facts, source, chunks, rounding.voxels, notes)
        return writer.publish(record, label_chunks(chunks))
    except BaseException:
        writer.discard()
        raise


def _record(
    facts: MaskFacts,
    source: MaskSource,
    chunks: Sequence[LabelFacts],
    rounded_voxels: int,
    notes: list[str],
) -> MaskRecord:
    names = facts.scheme.names
    summaries = label_summaries(chunks)
    unnamed = [str(value) for value in summaries if value not in names]
    if unnamed:
        notes.append(_UNNAMED_NOTE.format(facts.scheme.name, ", ".join(unnamed)))
    file = source.describe()
    if file is not None:
        file = {**file, "rounded_voxels": rounded_voxels}
    return MaskRecord.model_validate(
        {
            **facts.to_record(),
            "labels": {
                str(value): {**summary.to_record(), "name": names.get(value, "")}
                for value, summary in summaries.items()
            },
            "source": file,
            "source_key": source.key,
            "written_by": f"spinezarr {package_version()}",
            "notes": tuple(notes),
        }
    )


@dataclass(frozen=True, slots=True)
class MaskFiles:
    """The files of a further mask of one scan, and how they are read."""

    label: LabelFiles
    """Paths, relative to the folder of the files."""
    stamp: str
    """Hash of names, sizes and times of the files."""
    absent_parts: tuple[str, ...] = ()
    """Structures of the scheme without a file although others have one."""

    def source_key(self, scan: ScanAttributes, facts: MaskFacts, *, take_image_grid: bool) -> str:
        """Return a hash of all that the stored mask depends on, without opening a file.

        Parameters
        ----------
        scan
            Stored attributes of the scan.
        facts
            What the user says about the mask.
        take_image_grid
            Whether the mask takes the affine of the image if both have the same shape.
        """
        how = (self.label.parts, self.label.values, self.label.segments, self.absent_parts)
        parts = (
            scan.content_checksum,
            self.stamp,
            sorted(facts.scheme.names.items()),
            facts.to_record(),
            take_image_grid,
            *([how] if any(how) else []),
        )
        return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:32]


def write_mask_files(
    store: StoreWriter,
    scan_id: str,
    name: str,
    files: MaskFiles,
    facts: MaskFacts,
    *,
    fs: fsspec.AbstractFileSystem,
    root: str,
    options: ScanOptions,
    pool: Executor,
    on_share: Callable[[float], None],
    again: bool = False,
    named_by: str = "scheme",
) -> ScanAttributes | None:
    """Write a further mask of a stored scan from its files, unless it is there already.

    Parameters
    ----------
    store
        Store of the scan.
    scan_id, name
        The scan, and the name of the mask. A mask of that name is replaced.
    files
        Files of the mask.
    facts
        What the user says about the mask.
    fs, root
        File system and path of the folder of the files.
    options
        The user's choices.
    pool
        Threads that encode chunks.
    on_share
        Called with each further share of the mask that is done (0 to 1).
    again
        Whether to write the mask even if it is there already.
    named_by
        What names the labels, for notes.

    Returns
    -------
    ScanAttributes or None
        The published attributes of the scan. None if it has the mask already, from the same files
        in their present state.

    Raises
    ------
    FormatError, GridMismatchError, LabelError
        If a file cannot be used. An earlier mask of that name stays.
    UnknownScanError, CorruptStoreError
        If the store has no such scan, or its metadata are damaged.
    """
    writer = store.scans.start_mask(scan_id, name)
    scan, pseudonyms = writer.scan, options.pseudonyms
    key = files.source_key(scan, facts, take_image_grid=options.take_image_grid)
    if pseudonyms is not None:
        key = pseudonyms.keyed_hash(key)
    stored = scan.masks.get(name)
    is_stored = stored is not None and stored.source_key == key
    if is_stored and not again and store.scans.has_files_of(scan, name):
        return None
    image = scan.image_source
    image_grid = Grid(image.shape_ijk, np.array(image.affine_ijk))
    volume = open_label(fs, root, files.label, image_grid, options.limits)
    grid, notes = grid_on_image(
        image_grid,
        volume,
        image_path=image.file,
        label_path=files.label.file,
        take_image_grid=options.take_image_grid,
    )
    if files.absent_parts:
        notes.append(absent_parts_note(files.absent_parts, len(files.label.parts)))

    def describe() -> dict[str, Any] | None:
        if store.root.pseudonym_key is not None:
            return None  # the name of a file may tell whose scan it is
        return {
            **source_record(files.label.file, volume, volume.source_file(), grid),
            "parts": tuple(files.label.parts),
            "values": tuple(files.label.values),
            "segments": tuple(files.label.segments),
        }

    n_voxels = math.prod(image_grid.shape_ijk)
    with naming_label(volume, files.label.file):
        return write_mask(
            writer,
            facts,
            MaskSource(volume, grid, describe, key, notes, tuple(files.label.values), named_by),
            pool=pool,
            memory=options.memory,
            scratch=options.scratch or store.local_folder,
            on_voxels=lambda voxels: on_share(voxels / n_voxels),
        )
