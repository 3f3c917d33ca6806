"""Object storage by its own protocol, from corpus to verified output."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from sentiment_core.data import files, shards, unit_reader
from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.runtime import storage
from sentiment_core.runtime.storage import FileStamp
from sentiment_core.scoring import outputs
from sentiment_core.scoring.plan import plan_scoring
from sentiment_core.scoring.settings import ScoreSettings
from tests import s3
from tests.conftest import sentences
from tests.lake import read_rows, to_rows, write_delta

pytestmark = pytest.mark.ray  # the store is a server in a process of its own
REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server():
    with s3.moto_server() as port:
        yield port


@pytest.fixture
def store(server, monkeypatch):
    """Return the faults of a store, which is reached as a user would reach it."""
    with s3.misbehaving(server) as (port, faults):
        for name, value in s3.environment(port).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(storage, "RETRY_AFTER_S", (0.1, 0.1, 0.1))
        storage._open_bucket.cache_clear()
        yield faults
        storage._open_bucket.cache_clear()


def test_a_throttled_request_is_retried(store):
    path = f"s3://{s3.BUCKET}/throttled"
    store.key, store.throttle = "throttled", 8
    storage.write_file(path, b"content")
    assert store.done == 8  # more than the SDK takes by itself
    store.throttle = 8
    assert storage.read_file(path) == b"content"


def test_a_file_is_read_by_one_request(store):
    """After one for its size. A model has hundreds of megabytes."""
    content = os.urandom(3 << 20)
    for name, held in {"large": content, "empty": b""}.items():
        storage.write_file(f"s3://{s3.BUCKET}/{name}", held)
        store.asked.clear()
        assert storage.read_file(f"s3://{s3.BUCKET}/{name}") == held
        assert len(store.asked) <= 2


def test_a_connection_dropped_in_the_middle_of_a_file_is_retried(store, tmp_path):
    pq.write_table(sentences(3_000, seed=0), tmp_path / "a.parquet")
    storage.write_file(f"s3://{s3.BUCKET}/dropped/a.parquet", (tmp_path / "a.parquet").read_bytes())
    store.key, store.drop = "a.parquet", 2
    planned = shards.plan(f"s3://{s3.BUCKET}/dropped/", ["text"], None, ())
    store.drop = 2
    table = unit_reader.read_rows(planned.root, planned.units[0], lambda _: ["text"])
    assert table.equals(sentences(3_000, seed=0).select(["text"]))
    assert store.done == 4


def test_a_permanent_error_is_raised_at_once(store):
    with pytest.raises(FileNotFoundError):
        storage.read_file(f"s3://{s3.BUCKET}/nothing")
    with pytest.raises(UserError, match="does not exist"):
        files.find_files(f"s3://{s3.BUCKET}/nowhere", (".parquet",))


def test_an_output_deleted_after_its_listing_is_not_there(store, monkeypatch):
    out = f"s3://{s3.BUCKET}/shared"
    storage.write_file(f"{out}/theirs.parquet", b"x")
    listed = [*files.list_files(out, (".parquet",)), FileStamp("gone.parquet", 1_000, 1)]
    monkeypatch.setattr(files, "list_files", lambda *_: listed)
    assert [output.path for output in outputs.read_outputs(out)] == ["theirs.parquet"]


def test_names_that_would_leave_the_output_are_listed_and_the_others_planned(store, tmp_path):
    pq.write_table(sentences(3, seed=0), tmp_path / "a.parquet")
    names = ["a.parquet", "/b.parquet", "../../c.parquet", "k/./d.parquet", "k/../e.parquet", "k%20=?/f*.parquet"]
    client = s3.client(store.port)
    for name in names:
        client.put_object(Bucket=s3.BUCKET, Key=f"names/{name}", Body=(tmp_path / "a.parquet").read_bytes())
    planned = shards.plan(f"s3://{s3.BUCKET}/names", ["text"], None, ())
    assert {unit.output for unit in planned.units} == {"a.parquet", "k%20=?/f*.parquet"}
    assert {shard.source for shard in planned.failed} == set(names[1:5])
    assert all("rename it" in shard.reason for shard in planned.failed)
    with pytest.raises(OSError, match="rename it"):
        storage.read_folder(f"s3://{s3.BUCKET}/names")


def test_a_bundle_that_changes_while_it_is_read_is_refused(store, tiny_bundle):
    path = f"s3://{s3.BUCKET}/changing"
    pyarrow.fs.copy_files(tiny_bundle, f"{s3.BUCKET}/changing", destination_filesystem=s3.filesystem(store.port))
    info, _ = bundle.read_files(path)
    card = json.dumps(asdict(info) | {"max_length": info.max_length - 1})
    store.when_listed = lambda: s3.client(store.port).put_object(
        Bucket=s3.BUCKET, Key=f"changing/{bundle.CARD}", Body=card.encode()
    )
    with pytest.raises(UserError, match="changed while it was read"):
        bundle.read_files(path)


def test_a_bundle_that_was_half_uploaded_is_uploaded_again(store, tiny_bundle):
    path = f"s3://{s3.BUCKET}/half"
    s3.client(store.port).put_object(Bucket=s3.BUCKET, Key="half/model.safetensors", Body=b"of a run that was killed")
    with pytest.raises(UserError, match="already holds something"):
        bundle.check_free(path)
    bundle.check_free(path, can_resume=True)
    bundle.copy(tiny_bundle, path, {})
    assert bundle.digest_of(bundle.read_files(path)[1]) == bundle.digest_of(bundle.read_files(tiny_bundle)[1])
    with pytest.raises(UserError, match="already holds something"):
        bundle.check_free(path, can_resume=True)


@pytest.mark.parametrize(("error", "attempts"), [("AWS Error NETWORK_CONNECTION", 4), ("AWS Error ACCESS_DENIED", 1)])
def test_retries_end(store, error, attempts):
    calls: list[int] = []

    def fail():
        calls.append(1)
        raise OSError(error)

    with pytest.raises(OSError, match=error):
        storage.retry_transient_errors(f"s3://{s3.BUCKET}/a", fail)
    assert len(calls) == attempts


def s3_keys(port: int) -> list[str]:
    return [entry["Key"] for entry in s3.client(port).list_objects_v2(Bucket=s3.BUCKET).get("Contents", [])]


@pytest.mark.journey
def test_training_and_scoring_from_store_to_store(server, tiny_encoder, tmp_path, monkeypatch):
    """A request is throttled and one dropped; credentials are in the environment."""
    (tmp_path / "in").mkdir()
    for shard in range(3):
        pq.write_table(sentences(50, seed=shard), tmp_path / "in" / f"{shard}.parquet")
    with s3.misbehaving(server) as (port, faults):
        env = os.environ | s3.environment(port)
        files = s3.filesystem(server)
        pyarrow.fs.copy_files(str(tmp_path / "in"), f"{s3.BUCKET}/in", destination_filesystem=files)
        paths = ["--input", f"s3://{s3.BUCKET}/in", "--out", f"s3://{s3.BUCKET}/out"]
        model = ["--model", f"s3://{s3.BUCKET}/model", "--keep", ""]
        output = ""
        training = ["--data", f"s3://{s3.BUCKET}/in", "--model", tiny_encoder, "--out", f"s3://{s3.BUCKET}/model"]
        training += ["--epochs", "1", "--batch-size", "4", "--checkpoint-minutes", "0.001"]
        for command in (["train.py", *training], ["score.py", *model, *paths], ["verify.py", *paths]):
            if command[0] == "score.py":
                faults.key, faults.throttle, faults.drop = ".parquet", 1, 1
            done = subprocess.run(
                [sys.executable, REPO / "jobs" / command[0], *command[1:]],
                env=env, capture_output=True, text=True, check=False, timeout=240,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            output += done.stdout + done.stderr
        assert faults.done == 2
        assert not [path for path in s3_keys(server) if path.startswith("_training-")]
        for name, value in s3.environment(port).items():
            monkeypatch.setenv(name, value)
        storage._open_bucket.cache_clear()
        faults.asked.clear()
        uris = {"model": f"s3://{s3.BUCKET}/model", "input": f"s3://{s3.BUCKET}/in", "out": f"s3://{s3.BUCKET}/out"}
        assert plan_scoring(ScoreSettings(**uris, keep=())).scored_counts.units == 3
        storage._open_bucket.cache_clear()
        listed = [path for path in faults.asked if "?list-type=2" in path and "prefix=out%2F" in path]
        assert len(listed) == 1  # all of it, once, however many shards
    assert "150 rows in, 150 rows out" in output
    (tmp_path / "out").mkdir()
    pyarrow.fs.copy_files(f"{s3.BUCKET}/out", str(tmp_path / "out"), source_filesystem=files)
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"0.parquet", "1.parquet", "2.parquet", "_run.json", "_summary.json", "_SUCCESS"} == set(written)
    assert s3.SECRET not in output
    assert not any(s3.SECRET.encode() in content for content in written.values())


def upload(folder: Path, uri: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write_file(f"{uri}/{path.relative_to(folder)}", path.read_bytes())


def test_a_delta_table_is_planned_by_its_log_and_the_footers(store, tmp_path):
    for text in ("good", "bad"):
        write_delta(tmp_path / "t", text=[text], day=["x y"])
    upload(tmp_path / "t", f"s3://{s3.BUCKET}/lake/delta")
    assert to_rows(read_rows(f"s3://{s3.BUCKET}/lake/delta")) == [
        {"text": "bad", "day": "x y"},
        {"text": "good", "day": "x y"},
    ]
    store.asked.clear()
    planned = shards.plan(f"s3://{s3.BUCKET}/lake/delta", ["text"], None, ())
    assert (planned.rows, planned.table.version) == (2, 1)
    data = [path for path in store.asked if ".parquet" in path]
    assert len(data) == len(planned.units)  # one request each, for the footer


def test_an_iceberg_table_in_a_store(store, tmp_path):
    properties = {
        "s3.endpoint": os.environ["AWS_ENDPOINT_URL"],
        "s3.access-key-id": "key",
        "s3.secret-access-key": s3.SECRET,
        "s3.region": "us-east-1",
    }
    catalog = SqlCatalog("c", uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"s3://{s3.BUCKET}/lake", **properties)
    catalog.create_namespace("ns")
    table = catalog.create_table("ns.t", pa.schema([("text", pa.string())]))
    table.append(pa.table({"text": ["good", "bad"]}))
    assert table.location().startswith("s3://")
    for place in (table.location(), table.metadata_location):
        assert read_rows(place)["text"].to_pylist() == ["good", "bad"]
