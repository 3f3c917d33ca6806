"""Requests that cannot be carried out: one sentence before any work, and nothing left behind."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from sentiment_core.errors import UserError
from sentiment_core.runtime import preflight
from sentiment_core.scoring.job import score
from sentiment_core.scoring.plan import plan_scoring
from sentiment_core.scoring.settings import ScoreSettings
from tests.conftest import make_bundle
from tests.scoring.runs import plan_folder, score_folder, write_shard


def refuse(words: list[str], **settings: Any) -> None:
    """Check that scoring with these settings is refused with a message that holds these words."""
    values = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    with pytest.raises(UserError) as error:
        score(plan_scoring(ScoreSettings(**values)))
    assert all(word in str(error.value) for word in words), error.value


def test_wrong_requests_are_refused_and_leave_nothing(ray_here, tiny_bundle, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    write_shard(source, "a.parquet", {"text": ["good"], "n": [1]})
    good = {"model": tiny_bundle, "input": source, "out": out}
    refuse(["--model", "is not a bundle"], **good | {"model": source})
    refuse(["nowhere", "does not exist"], **good | {"input": tmp_path / "nowhere"})
    refuse(["'body'", "text, n", "--text-column"], **good | {"text_column": ("body",)})
    refuse(["'n'", "int64"], **good | {"text_column": ("n",)})
    write_shard(source, "_hidden.parquet", {"text": ["good"]})
    refuse(["_hidden.parquet has a name", "rename it"], **good | {"input": source / "_hidden.parquet"})
    refuse(["--workers 99 needs 99 CPUs", "Lower it"], **good | {"workers": 99})
    refuse(["overlap"], **good | {"out": source / "scored"})
    refuse(["overlap"], **good | {"out": tmp_path})
    refuse(["--workers", "0", "1 or more"], **good | {"workers": 0})
    assert not out.exists()
    out.mkdir()
    (out / "thesis.docx").write_text("mine")
    refuse(["is not empty"], **good)
    assert [path.name for path in out.iterdir()] == ["thesis.docx"]


def test_probabilities_and_kept_columns_count_where_a_disk_is_small(in_process, tiny_bundle, tmp_path, monkeypatch):
    write_shard(tmp_path / "in", "a.parquet", {"text": ["good"] * 10, "photo": [os.urandom(1_000)] * 10})
    space = os.statvfs(tmp_path)
    free = {"f_bavail": 10 * 80, "f_frsize": 1}
    monkeypatch.setattr(preflight.os, "statvfs", lambda path: SimpleNamespace(**free, f_files=space.f_files))
    for settings in ({"probabilities": True, "keep": ()}, {"keep": ("photo",)}, {}):
        with pytest.raises(UserError, match="GB free and about"):
            score_folder(tiny_bundle, tmp_path / "in", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    assert score_folder(tiny_bundle, tmp_path / "in", tmp_path / "out", keep=()).summary["complete"]


@pytest.mark.parametrize(
    ("int8", "words"),
    [
        ({"agreement": 0.99, "rows": 500}, ["500 rows", "99.00 %", "99.5 %", "without --int8"]),
        ({"reason": "not installed"}, ["was not checked in 8 bits (not installed)", "Train it again"]),
        ({}, ["made by an older version"]),
        ({"agreement": 0.999, "rows": 500}, ["no int8.safetensors", "an older version made it", "Train it again"]),
    ],
)
def test_int8_that_changes_labels_is_refused(tiny_encoder, tmp_path, int8, words):
    write_shard(tmp_path / "in", "a.parquet", {"text": ["good"]})
    model = make_bundle(tiny_encoder, tmp_path / "b", int8=int8)
    refuse(words, model=model, input=tmp_path / "in", out=tmp_path / "out", int8=True)


def test_devices_the_cluster_does_not_have_are_refused_at_once(ray_here):
    assert ray.cluster_resources().get("GPU", 0) == 0, "this test is for machines without a GPU"
    with pytest.raises(UserError, match=r"--workers 1000 needs 1000 CPUs; the cluster has at most \d+\."):
        preflight.check_workers(1000, "CPU")


def test_a_number_type_that_the_chip_lacks_is_refused_before_the_folder_is_claimed(ray_here, tiny_bundle, tmp_path):
    write_shard(tmp_path / "in", "a.parquet", {"text": ["good"]})
    with pytest.raises(UserError, match=r"--precision float16: .* computes float32.* only\. Leave out --precision"):
        score_folder(tiny_bundle, tmp_path / "in", tmp_path / "out", precision="float16")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_and_writes_nothing(tiny_bundle, tmp_path):
    write_shard(tmp_path / "in", "a.parquet", {"text": ["good"] * 20})
    plan = plan_folder(tiny_bundle, tmp_path / "in", tmp_path / "out", dry_run=True)
    assert plan.describe().startswith("20 rows in 1 units; to score: 20 rows in 1 units")
    assert not (tmp_path / "out").exists()
