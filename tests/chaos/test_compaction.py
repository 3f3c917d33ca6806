"""Kill scoring runs in nights between which a corpus is appended to and compacted, and read its outputs meanwhile.

make chaos MINUTES=10
"""

import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from sentiment_core.scoring.verify import VerifySettings, verify
from tests.chaos.test_kills import RUN_TIMEOUT_S, job, needs_linux, run_disturbed
from tests.conftest import sentences

FIRST_ROWS, NEW_ROWS, FILES = 60_000, 60_000, 12
WAIT_S = 6, 16  # before the first kill: a night takes little longer


class PlainFolder:
    """A folder of shards, compacted as tools without a log do it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.written = folder, 0
        folder.mkdir()

    def append(self, rows: pa.Table) -> None:
        pq.write_table(rows, self.folder / f"part-{self.written}.parquet")
        self.written += 1

    def compact(self, rng: random.Random) -> None:
        paths = sorted(self.folder.glob("*.parquet"))
        some = rng.sample(paths, max(2, len(paths) // 2))
        self.append(pa.concat_tables([pq.read_table(path) for path in some]))
        for path in some:
            path.unlink()


class Delta:
    """A Delta table, compacted by its library."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, rows: pa.Table) -> None:
        write_deltalake(str(self.folder), rows, mode="append")

    def compact(self, rng: random.Random) -> None:
        DeltaTable(str(self.folder)).optimize.compact()


def read_ids(out: Path) -> Counter:
    """Read the ids of all scored rows, as a reader does that lists the files and then reads them."""
    while True:
        try:
            tables = [pq.read_table(path, columns=["id"], partitioning=None) for path in out.rglob("[!_]*.parquet")]
        except FileNotFoundError:  # deleted since it was listed
            continue
        return Counter(value for table in tables for value in table["id"].to_pylist())


class Reader:
    """Reads the output again and again; notes rows that were missing."""

    def __init__(self, out: Path) -> None:
        self.out, self.reads, self.missing = out, 0, set()

    @contextmanager
    def expecting(self, ids: set[int]) -> Iterator[None]:
        """Expect these ids at any moment inside the block."""
        ended = threading.Event()

        def poll() -> None:
            while not ended.is_set():
                self.missing |= ids - set(read_ids(self.out))
                self.reads += 1
                time.sleep(0.2)

        thread = threading.Thread(target=poll)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@needs_linux
@pytest.mark.parametrize("kind", [Delta, PlainFolder])
def test_rows_are_never_missing_while_a_corpus_is_compacted(kind, tiny_bundle, tmp_path, chaos_minutes):
    if chaos_minutes < 1 and kind is PlainFolder:
        pytest.skip("needs --chaos-minutes of 1 or more; a table is tried before")
    seed = int(os.environ.get("CHAOS_SEED", time.time_ns() % 1_000_000))
    print(f"CHAOS_SEED={seed}, {kind.__name__}")
    rng = random.Random(seed)
    corpus, out = kind(tmp_path / "in"), tmp_path / "out"
    reader, rows, kills, nights = Reader(out), 0, Counter(), 0
    command = job("score.py", "--model", tiny_bundle, "--input", corpus.folder, "--out", out, "--keep", "id")

    def append(count: int) -> None:
        nonlocal rows
        table = sentences(count, seed=rows).select(["text"])
        texts = [f"{text}, row {rows + i}" for i, text in enumerate(table["text"].to_pylist())]
        corpus.append(pa.table({"id": range(rows, rows + count), "text": texts}))
        rows += count

    def check() -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert read_ids(out) == Counter(range(rows))
        findings = verify(VerifySettings(input=str(corpus.folder), out=str(out)))
        assert (findings.exit_code, findings.rows_out) == (0, rows), findings.report()

    for _ in range(FILES):
        append(FIRST_ROWS // FILES)
    check()
    until = time.monotonic() + 60 * chaos_minutes
    while time.monotonic() < until or not kills:
        with reader.expecting(set(range(rows))):
            append(NEW_ROWS)
            corpus.compact(rng)
            for _ in range(rng.randint(1, 3)):
                run_kills, code, output = run_disturbed(rng, command, dict(os.environ), WAIT_S)
                kills.update(kill.rpartition(" ")[2] for kill in run_kills)
                print(f"night {nights}: exit code {code}; killed: {'; '.join(run_kills) or 'nothing'}")
                assert code in (0, 3) or run_kills, output
            check()
        nights += 1
    print(f"{kills.total()} kills in {nights} nights: {dict(kills)}; {reader.reads} reads")
    assert reader.missing == set()
