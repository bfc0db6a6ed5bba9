"""A fixture that runs the command line as a user does, in this process."""

import logging
import sys
import warnings

import pytest

from spinezarr.cli import main as cli


@pytest.fixture
def run(monkeypatch, capfdbinary, tmp_path):
    """Return a function that runs ``spinezarr``, checks its exit code and returns its output."""

    def run_command(*words, code=None):
        monkeypatch.setattr(sys, "argv", ["spinezarr", *map(str, words)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        monkeypatch.setattr(logging, "lastResort", logging.lastResort)
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capfdbinary.readouterr()
        assert (ended.value.code or 0) in ({0, 1, 2} if code is None else {code}), output
        return output

    monkeypatch.chdir(tmp_path)
    return run_command
