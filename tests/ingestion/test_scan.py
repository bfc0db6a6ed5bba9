import filecmp
import threading

import numpy as np
import pytest
from raw_files import files_below

from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.ingestion.scan import ScanOptions
from spinezarr.ingestion.voxels.memory import MemoryBudget
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_nifti

PAIRS = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="pairs-test")
PHANTOM = make_phantom(
    PhantomSpec(shape_zyx=(70, 52, 50), spacing_zyx_mm=(3.0, 5.0, 5.0), levels=("T12", "L1"))
)
ALL_ON_DISK = ScanOptions(memory=MemoryBudget(strip_bytes=9, voxel_bytes=9, encoded_bytes=0))


def write_pair(
    folder, *, image=PHANTOM.image, label=PHANTOM.label, axes="LPS", dtypes=(None, None)
):
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "a_ct.nii.gz", folder / "a_seg.nii.gz"
    forms = [
        NiftiForm(orientation=axes, dtype=dtype or default)
        for dtype, default in zip(dtypes, ("int16", "uint8"), strict=True)
    ]
    write_nifti(paths[0], image, PHANTOM.affine_xyz, forms[0])
    write_nifti(paths[1], label, PHANTOM.affine_xyz, forms[1])
    return paths


def run(folder, out, **options):
    return ingest(PAIRS, discover(PAIRS, str(folder)), str(out), **options)


@pytest.mark.parametrize("axes", ["LPS", "PIR", "SAR"])
@pytest.mark.parametrize("kept", [np.int16(3), np.float32(0.5)])
def test_the_memory_budget_changes_no_byte_of_a_store(tmp_path, axes, kept):
    image = PHANTOM.image.astype(kept.dtype)
    image[40, 20, 30] = kept
    write_pair(tmp_path / "raw", image=image, axes=axes, dtypes=(kept.dtype.name, None))
    for name, options in (("memory", ScanOptions()), ("disk", ALL_ON_DISK)):
        assert run(tmp_path / "raw", tmp_path / name, options=options).done == ("a",)
    assert files_below(tmp_path / "memory") == files_below(tmp_path / "disk")
    for name in files_below(tmp_path / "memory"):
        assert filecmp.cmp(tmp_path / "memory" / name, tmp_path / "disk" / name, shallow=False)


def test_the_error_of_two_bad_files_names_the_image(tmp_path):
    image, mask = write_pair(
        tmp_path / "raw", label=PHANTOM.label.astype(np.int32) * 400, dtypes=(None, "int32")
    )
    for options in (ScanOptions(), ALL_ON_DISK):
        (failed,) = run(tmp_path / "raw", tmp_path / "s.zarr", options=options).failed
        assert mask.name in failed.reason
    image.write_bytes(image.read_bytes()[:-2000])
    for options in (ScanOptions(), ALL_ON_DISK):
        (failed,) = run(tmp_path / "raw", tmp_path / "s.zarr", options=options).failed
        assert image.name in failed.reason
    assert list((tmp_path / "s.zarr" / "scans").rglob("*")) in (
        [],
        [tmp_path / "s.zarr/scans/zarr.json"],
    )


def test_a_failed_image_stops_the_mask(tmp_path):
    image, _ = write_pair(tmp_path / "raw")
    image.write_bytes(image.read_bytes()[:-2000])
    assert run(tmp_path / "raw", tmp_path / "s.zarr", options=ALL_ON_DISK).failed
    ours = ("spinezarr-encode", "spinezarr-mask")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(ours)]


def test_progress_is_reported_in_the_thread_that_ingests(tmp_path):
    class Listener:
        shares = ()
        threads = frozenset()

        def started(self, source):
            pass

        def advanced(self, _source, share):
            self.shares += (share,)
            self.threads |= {threading.get_ident()}

        def finished(self, source, outcome):
            pass

    write_pair(tmp_path / "raw")
    for options in (ScanOptions(), ALL_ON_DISK):
        listener = Listener()
        out = tmp_path / f"{options.memory.strip_bytes}.zarr"
        assert run(tmp_path / "raw", out, options=options, listener=listener).done
        assert listener.threads == {threading.get_ident()}
        assert sum(listener.shares) == pytest.approx(1)


def test_scratch_files_are_written_to_the_given_folder(tmp_path):
    write_pair(tmp_path / "raw")
    missing = ScanOptions(memory=ALL_ON_DISK.memory, scratch=str(tmp_path / "none"))
    (failed,) = run(tmp_path / "raw", tmp_path / "s.zarr", options=missing).failed
    assert f"{tmp_path / 'none'}: cannot hold scratch files" in failed.reason
    assert run(tmp_path / "raw", tmp_path / "s.zarr", options=ALL_ON_DISK).done == ("a",)
