"""People's files, made at random: whatever they hold, each row comes out once, and what cannot be read is named.

The stages run in this process, as Ray Data runs them, so that a minute holds hundreds of corpora. What the rows are,
DuckDB says, which reads the same files on its own.
"""

import datetime
import decimal
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sentiment_core.errors import EXIT_OK, EXIT_PARTIAL, UserError
from sentiment_core.scoring.job import score
from sentiment_core.scoring.plan import ScorePlan
from sentiment_core.scoring.verify import VerifySettings, verify
from tests.scoring.runs import plan_folder

SECONDS = 20.0  # in `make test`; `make chaos` takes its own minutes
EXAMPLES_OF_A_ROUND = 200

TEXTS = ["good film", "bad", "", " \n", "naïve 😀", "\x00", "a" * 300, "word " * 50, "<br/>", None, None]
TEXT_TYPES = ["string", "large", "view", "dictionary", "bytes", "json", "null"]
FOLDERS = [
    *["", "", "day=1", "day=2026-11-30", "_year=2024", "city=S%C3%A3o", "x=__HIVE_DEFAULT_PARTITION__", "plain"],
    *["label=x", "_hidden", ".hidden", "a b", "day=1/hour=02", "ü"],
]
NAMES = [
    *["a.parquet", "b.PARQUET", "c.pq", "d.parq", "part-0", "e.parquet.gzip", "_f.parquet", ".g.parquet"],
    *["x=1.parquet", "%41.parquet", "h i.parquet", "é.parquet", "j.snappy.parquet"],
    "a.rows-000000000000-000000000001.parquet",
]
COLUMNS = [
    *["id", "label", "Label", "status", "row", "source", "probabilities", "n", "a b", "ü", "__index_level_0__"],
    *["x.y", ""],
]
DAY = datetime.datetime(2026, 11, 30, 1, 2, 3, 4000)
VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "int8": (pa.int8(), [1, -1]),
    "uint64": (pa.uint64(), [1, 2**63]),
    "double": (pa.float64(), [0.5, float("inf")]),
    "bool": (pa.bool_(), [True, False]),
    "string": (pa.string(), ["x", ""]),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), ["x", "y"]),
    "large list": (pa.large_list(pa.large_string()), [["x"], []]),
    "view": (pa.string_view(), ["x", "long enough to be no inline view"]),
    "bytes": (pa.binary(), [b"x", b"\xff"]),
    "decimal": (pa.decimal128(9, 2), [decimal.Decimal("1.25"), decimal.Decimal("-7.00")]),
    "date": (pa.date32(), [DAY.date(), datetime.date(9999, 12, 31)]),
    "timestamp ns": (pa.timestamp("ns"), [DAY, DAY]),
    "timestamp us": (pa.timestamp("us"), [DAY, datetime.datetime(9999, 12, 31)]),
    "timestamp ms": (pa.timestamp("ms", "UTC"), [DAY.replace(microsecond=0), DAY.replace(microsecond=0)]),
    "time": (pa.time64("us"), [DAY.time(), datetime.time()]),
    "struct": (pa.struct([("t", pa.timestamp("us")), ("n", pa.list_(pa.int32()))]), [{"t": DAY, "n": [1]}, None]),
    "map": (pa.map_(pa.string(), pa.int32()), [[("k", 1)], []]),
    "null": (pa.null(), [None, None]),
    "only nulls": (pa.float64(), [None, None]),
    "list of nulls": (pa.list_(pa.null()), [[], [None]]),
}  # fmt: skip


def text_column(kind: str, texts: list[str | None]) -> pa.Array:
    if kind == "bytes":
        return pa.array([text if text is None else text.encode() for text in texts], pa.binary())
    if kind == "json":
        return pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(texts, pa.string()))
    if kind == "null":
        return pa.nulls(len(texts))
    array = pa.array(texts, {"large": pa.large_string(), "view": pa.string_view()}.get(kind, pa.string()))
    return array.dictionary_encode() if kind == "dictionary" else array


@st.composite
def shards(draw: st.DrawFn) -> tuple[str, pa.Table, dict[str, Any]]:
    """A path, a table, and options to write it with."""
    folder, name = draw(st.sampled_from(FOLDERS)), draw(st.sampled_from(NAMES))
    texts = draw(st.lists(st.sampled_from(TEXTS), max_size=12))
    columns = {"text": text_column(draw(st.sampled_from(TEXT_TYPES)), texts)}
    for column in draw(st.lists(st.sampled_from(COLUMNS), max_size=3, unique=True)):
        kind, values = VALUES[draw(st.sampled_from(list(VALUES)))]
        rows = [draw(st.sampled_from([*values, None])) for _ in texts]
        columns[column] = pa.array(rows, kind)
    if draw(st.booleans()):  # the text is not always the first
        columns = dict(reversed(columns.items()))
    options = draw(
        st.fixed_dictionaries(
            {
                "row_group_size": st.integers(1, 6),
                "compression": st.sampled_from(["snappy", "zstd", "none"]),
                "use_dictionary": st.booleans(),
                "write_statistics": st.booleans(),
                "store_schema": st.booleans(),
                "data_page_version": st.sampled_from(["1.0", "2.0"]),
                "use_deprecated_int96_timestamps": st.booleans(),
            }
        )
    )
    return f"{folder}/{name}" if folder else name, pa.table(columns), options


corpora = st.lists(shards(), min_size=1, max_size=4, unique_by=lambda shard: shard[0])
link_names = st.sampled_from(["link.parquet", "latest", "_link", "day=9"])
links = st.lists(st.tuples(st.integers(0, 3), link_names), max_size=2, unique_by=lambda link: link[1])
junk = st.lists(st.sampled_from(["empty.parquet", "cut.parquet", "notes.txt", "_SUCCESS"]), max_size=2, unique=True)
requests = st.fixed_dictionaries(
    {
        "prefix": st.sampled_from(["", "pred_", "label"]),
        "keep": st.sampled_from([None, None, (), ("id",)]),
        "probabilities": st.booleans(),
        "min_confidence": st.sampled_from([0.0, 0.6]),
    }
)


def real_data(root: Path) -> dict[str, str]:
    """The files that are data, by the rule that the guide gives: their real paths, and the shortest of their names."""
    names: dict[str, str] = {}

    def visit(folder: Path, real_folders: tuple[str, ...]) -> None:
        for path in sorted(folder.iterdir()):
            if path.name[0] in "_." and "=" not in path.name:
                continue
            real_path = os.path.realpath(path)
            if path.is_dir() and real_path not in real_folders:
                visit(path, (*real_folders, real_path))
            elif path.is_file() and path.name.lower().endswith((".parquet", ".pq", ".parq")):
                names.setdefault(real_path, str(path.relative_to(root)))

    visit(root, (os.path.realpath(root),))
    return names


def read_as_text(path: str, columns: str = "*") -> list[tuple]:
    """Read a file by DuckDB, each value as its text."""
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        return connection.sql(
            f"select columns({columns})::varchar from read_parquet($${path}$$, hive_partitioning = false)"
        ).fetchall()


def check_rows(source: str, output: Path, width: int) -> None:
    """Check that the kept columns of an output, its first ones, hold what DuckDB reads in the input."""
    try:
        expected = read_as_text(source)
    except duckdb.Error:  # there are types that it does not read
        return
    names = pq.read_schema(source).names
    text = names.index("text")
    kept = [row[:text] + row[text + 1 :] for row in expected]
    assert [row[:width] for row in read_as_text(str(output))] == kept


def test_every_row_of_any_corpus_comes_out_once(in_process, tiny_bundle, chaos_minutes):
    """Also a second time: the same command then has nothing to do."""
    seconds = 60 * chaos_minutes or SECONDS
    deadline, outcomes = time.monotonic() + seconds, []

    @settings(
        max_examples=EXAMPLES_OF_A_ROUND,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(corpora, links, junk, requests)
    def check(corpus, links, junk, request):
        if time.monotonic() < deadline:
            folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
            try:
                outcomes.append(check_corpus(tiny_bundle, folder, corpus, links, junk, request))
            finally:
                shutil.rmtree(folder)

    while time.monotonic() < deadline:
        check()
    counts = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    print(f"{len(outcomes)} corpora: {counts}")
    assert counts["scored"] > 0.2 * len(outcomes) > 1


def check_corpus(model: str, folder: Path, corpus, links, junk, request) -> str:
    """Score one corpus and check all that is promised; return what came of it."""
    root, out = folder / "in", folder / "out"
    for path, table, options in corpus:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / path, **options)
    for number, name in links:
        path = corpus[number % len(corpus)][0]
        target = path if name.endswith(".parquet") else os.path.dirname(path) or "."
        if not (root / name).exists():
            os.symlink(target, root / name)
    for name in junk:
        if not (root / name).exists():
            (root / name).write_bytes(b"PAR1 cut" if name == "cut.parquet" else b"")
    try:
        plan = plan_folder(model, root, out, **request)
    except UserError as refusal:
        message = str(refusal)
    else:
        return check_scored(model, plan, root, out, request)
    assert message.strip()
    assert "\n" not in message
    assert not out.exists()
    return "refused"


def check_scored(model: str, plan: ScorePlan, root: Path, out: Path, request) -> str:
    """Carry out a plan, and check its output against what DuckDB reads."""
    summary = score(plan).record
    expected = real_data(root)
    failed = {shard.source: shard.reason for shard in summary.failed_shards}
    assert not summary.stopped
    for source, reason in failed.items():
        is_junk = os.path.basename(source) in ("empty.parquet", "cut.parquet")
        assert is_junk or (request["keep"] and "has no column 'id'" in reason), (source, reason)
    findings = verify(VerifySettings(input=str(root), out=str(out)))
    assert findings.exit_code == (EXIT_PARTIAL if failed else EXIT_OK), findings.report()
    units = {os.path.realpath(root / unit.source): unit for unit in plan.corpus.units}
    rows = 0
    for real_path, name in expected.items():
        if {name, os.path.relpath(real_path, os.path.realpath(root))} & failed.keys():
            continue
        unit = units[real_path]
        rows += pq.read_metadata(real_path).num_rows
        if request["keep"] is None:
            check_rows(real_path, out / unit.output, len(pq.read_schema(real_path).names) - 1)
    assert summary.rows == findings.rows_in == findings.rows_out == rows
    assert plan_folder(model, root, out, **request).units_to_score == []
    return "scored, but for some" if failed else "scored"
