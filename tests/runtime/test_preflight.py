"""Paths that a job would fail on are refused before it starts."""

import pytest

from sentiment_core.errors import UserError
from sentiment_core.runtime import preflight


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to.*--out"):
        preflight.check_writable(str(tmp_path / "file" / "out"))


def test_an_output_without_enough_space_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"GB free.*--out"):
        preflight.check_space(str(tmp_path / "not" / "yet"), 10**18)


def test_a_relative_output_of_a_submitted_job_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "working_dir_files" / "_ray_pkg_1"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    with pytest.raises(UserError, match="ends with the job; give an absolute path or a URI"):
        preflight.check_lasting("scored")
    preflight.check_lasting("/scored")
    preflight.check_lasting("s3://bucket/scored")


def test_an_output_that_overlaps_the_input_is_refused(tmp_path):
    corpus, out = str(tmp_path / "corpus"), str(tmp_path / "corpus" / "scored")
    with pytest.raises(UserError, match=r"--out .* and --input .* overlap; choose"):
        preflight.check_overlap(corpus, out, recursive=True)
    with pytest.raises(UserError, match=r"--out .* and --input .* overlap; choose"):
        preflight.check_overlap(out, corpus, recursive=False)
    preflight.check_overlap(corpus, out, recursive=False)  # the files of one folder, not those below it
    preflight.check_overlap(corpus, str(tmp_path / "corpus2"), recursive=True)
