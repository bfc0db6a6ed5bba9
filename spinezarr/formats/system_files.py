"""Which files and folders did an operating system or a program leave, rather than a dataset?"""

from typing import Final

__all__ = ["is_system_file"]

_SYSTEM_FILES: Final = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
_SYSTEM_FOLDERS: Final = frozenset(
    {"__macosx", ".spotlight-v100", ".fseventsd", ".trashes", ".temporaryitems"}
    | {"$recycle.bin", "system volume information", "lost+found", "@eadir", "#recycle"}
    | {".git", ".cache"}
)
"""Folders of macOS, Windows, Linux, Synology's disks, Git and caches of download programs."""
_TRASH: Final = ".trash-"


def is_system_file(name: str, *, folder: bool = False) -> bool:
    """Whether a file or folder belongs to an operating system or a program, and to no dataset.

    Parameters
    ----------
    name
        Name without the folder.
    folder
        Whether the name is that of a folder.

    Examples
    --------
    >>> [is_system_file(name) for name in ("._liver_0.nii.gz", "Thumbs.db", "liver_0.nii.gz")]
    [True, True, False]
    >>> is_system_file("__MACOSX", folder=True), is_system_file("lost+found", folder=True)
    (True, True)
    """
    lowered = name.lower()
    if folder:
        return lowered in _SYSTEM_FOLDERS or lowered.startswith(_TRASH)
    return lowered.startswith("._") or lowered in _SYSTEM_FILES
