"""Which dataset does the store at a path hold, and may this dataset be written there?"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from spinezarr.errors import DamagedMetadataError, UsageError
from spinezarr.store.attributes import OtherFormatError, RootAttributes, parse_root
from spinezarr.store.bundle import TABLE_BUNDLE, unbundle_files
from spinezarr.store.files import PARTIAL, open_store, publish_file, read_files
from spinezarr.store.layout import METADATA, TABLE, profile_named
from spinezarr.store.metadata import root_files
from spinezarr.store.sealed import unseal
from spinezarr.store.table import root_from_table
from spinezarr.store.table_file import parse_table
from spinezarr.store.writable import WritableStore

__all__ = ["check_root", "claim_store", "stored_root"]


def stored_root(
    url: str, storage_options: Mapping[str, Any] | None = None
) -> RootAttributes | None:
    """Return the attributes of a store's root; None if there is no root that can be read.

    The result is the same for an empty folder and for one that holds something else;
    :func:`claim_store` distinguishes them.
    """
    fs, path = open_store(url, storage_options)
    try:
        return parse_root(fs.cat_file(f"{path}/{METADATA}"))
    except (OSError, DamagedMetadataError, OtherFormatError):
        return None


def claim_store(store: WritableStore, requested: RootAttributes, *, repair: bool) -> RootAttributes:
    """Check that a store holds the requested dataset, or start a new store.

    Parameters
    ----------
    store
        Place of the store.
    requested
        Attributes that the root gets. If they name no codec profile, the store keeps its own, and a
        new store gets the default.
    repair
        If the root is missing or damaged, take the dataset from the scan table and write the root
        again.

    Returns
    -------
    RootAttributes
        The attributes that the root has now; they name a codec profile.

    Raises
    ------
    UsageError
        If something else lies at its place, or the store has another dataset, derivation, codec
        profile or pseudonym key.
    """
    stored = existing = _read_root(store, repair=repair)
    if existing is None and _is_occupied(store):
        # Another run may have made the store meanwhile.
        stored = existing = _read_root(store, repair=repair)
        if existing is None:
            existing = _root_from_table(store, repair=repair)
    if existing is not None:
        check_root(store.name, existing, requested)
    profile = profile_named((existing or requested).codec_profile).name
    root = requested.model_copy(update={"codec_profile": profile})
    _write_root(store, root, stored)
    return root


def _write_root(store: WritableStore, root: RootAttributes, stored: RootAttributes | None) -> None:
    """Write the root group and the group of scans if they differ from the stored ones."""
    files = root_files(root.model_dump(mode="json"))
    if stored != root:
        publish_file(store.fs, f"{store.path}/{METADATA}", files[METADATA])
    others = {f"{store.path}/{key}": data for key, data in files.items() if key != METADATA}
    present = read_files(store.fs, others)
    for path, data in others.items():
        if present.get(path) != data:
            publish_file(store.fs, path, data)


def _read_root(store: WritableStore, *, repair: bool) -> RootAttributes | None:
    """Read the root; None if it is missing or damaged."""
    try:
        data = store.fs.cat_file(f"{store.path}/{METADATA}")
    except FileNotFoundError:
        return None
    try:
        if repair:
            unseal(data)  # a flipped digit of the version must not pass for another format
        return parse_root(data)
    except OtherFormatError as problem:
        raise UsageError(f"{store.name}: {problem}") from problem
    except DamagedMetadataError:
        return None


def _root_from_table(store: WritableStore, *, repair: bool) -> RootAttributes:
    """Rebuild the attributes of a missing or damaged root from the scan table."""
    paths = [f"{store.path}/{TABLE}/{METADATA}", f"{store.path}/{TABLE_BUNDLE}"]
    contents = read_files(store.fs, paths)
    if not contents:
        raise UsageError(f"{store.name}: exists and is not a store. Choose an empty or new folder.")
    if not repair:
        raise UsageError(
            f"{store.name}: the root of the store, zarr.json, is missing or damaged. Run the "
            "same command again with --repair to write it anew from the scan table."
        )
    for path, data in contents.items():
        with suppress(DamagedMetadataError):
            is_bundle = path.endswith(TABLE_BUNDLE)
            metadata = unbundle_files(data).get(METADATA, b"") if is_bundle else data
            return root_from_table(parse_table(metadata).attributes)
    raise UsageError(
        f"{store.name}: the root of the store and its scan table are both damaged. Copy one of "
        "them, zarr.json or table/zarr.json, from another copy of the store, or ingest into a "
        "new place."
    )


def check_root(name: str, existing: RootAttributes, requested: RootAttributes) -> None:
    """Refuse a store of another dataset, derivation, codec profile or pseudonym key.

    Parameters
    ----------
    name
        Path or URL of the store for messages.
    existing
        Attributes of its root.
    requested
        Attributes that the root would get; without a codec profile, any is accepted.

    Raises
    ------
    UsageError
        If the store is another one.
    """
    if (existing.dataset, existing.title) != (requested.dataset, requested.title):
        raise UsageError(
            f"{name}: holds {_describe(existing)}, not {_describe(requested)}. "
            "One store holds one dataset: choose another place."
        )
    if existing.derivation != requested.derivation:
        raise UsageError(
            f"{name}: holds {_describe_origin(existing)}, not {_describe_origin(requested)}. "
            "Choose another place."
        )
    stored_profile = profile_named(existing.codec_profile).name
    if requested.codec_profile is not None and requested.codec_profile != stored_profile:
        raise UsageError(
            f"{name}: is written with the codec profile {stored_profile!r}, not "
            f"{requested.codec_profile!r}. One store has one profile: leave --codec out, or choose "
            "another place."
        )
    if existing.pseudonym_key != requested.pseudonym_key:
        kind = "without pseudonyms" if existing.pseudonym_key is None else "with pseudonyms"
        raise UsageError(
            f"{name}: was made {kind}, or those of another key. Give --pseudonymize and "
            "--pseudonyms as before, or choose another place."
        )


def _describe(root: RootAttributes) -> str:
    return f"the dataset {root.dataset!r} ({root.title})"


def _describe_origin(root: RootAttributes) -> str:
    if root.derivation is None:
        return "scans that were ingested"
    return f"scans that were derived ({root.derivation})"


def _is_occupied(store: WritableStore) -> bool:
    """Whether the folder holds more than the start of a store whose creation was interrupted."""
    if not store.fs.exists(store.path):
        return False
    if store.fs.isfile(store.path):
        return True
    names = {path.rsplit("/", 1)[1] for path in store.fs.ls(store.path, detail=False)}
    return bool(names - {METADATA + PARTIAL})
