"""Tests of the planted headers: each names the data file that its function announces."""

import re

import pytest
import SimpleITK
from metaimage_attack import (
    plant_absolute_data_file,
    plant_data_file_elsewhere,
    plant_data_file_of_other_size,
    plant_linked_data_file,
)


def data_file_of(header):
    return re.search(r"ElementDataFile = (.*)\n$", header.read_text())[1]


def test_a_planted_header_names_an_absolute_path(tmp_path):
    target = tmp_path / "secret" / "secret.raw"
    header = plant_absolute_data_file(tmp_path / "msr", target)
    assert data_file_of(header) == str(target)
    assert target.stat().st_size == 12**3 * 2
    assert [p.name for p in header.parent.iterdir()] == [header.name]


def test_a_planted_header_names_another_folder(tmp_path):
    header = plant_data_file_elsewhere(tmp_path)
    assert data_file_of(header) == "../../9999999.raw"
    assert (tmp_path / "9999999.raw").stat().st_size == 12**3 * 2
    SimpleITK.ReadImage(header)  # a careless reader accepts it


def test_a_planted_data_file_is_a_link(tmp_path):
    target = tmp_path / "secret.raw"
    header = plant_linked_data_file(tmp_path / "msr", target)
    data = header.with_suffix(".raw")
    assert data.is_symlink()
    assert data.resolve() == target.resolve()
    assert data_file_of(header) == data.name


@pytest.mark.parametrize("extra", [-2, -1, 1, 4])
def test_a_planted_data_file_has_another_size(tmp_path, extra):
    header = plant_data_file_of_other_size(tmp_path, extra)
    assert header.with_suffix(".raw").stat().st_size == 12**3 * 2 + extra
