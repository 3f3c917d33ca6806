"""Run what pages and the notebook show in Python, and hold the files that this writes to their JSON Schemas."""

import json
import re
import shutil
from pathlib import Path

import jsonschema
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.conftest import sentences
from tests.test_documents import hooks

REPO = Path(__file__).resolve().parents[1]
MARKED = re.compile(r"^<!-- run in a test -->\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


# which use what the first one leaves
PAGES = ["README.md", "docs/guides/python.md", "docs/guides/several-models.md", "docs/reference/outputs.md"]


@pytest.fixture(scope="module")
def folder(ray_here, tiny_encoder, tmp_path_factory):
    """Run the Python blocks of the pages in a folder with labelled text and a corpus; return the folder."""
    path = tmp_path_factory.mktemp("pages")
    (path / "corpus").mkdir()
    texts = sentences(200, seed=0)["text"]
    pq.write_table(pa.table({"id": range(200), "text": texts}), path / "corpus" / "part.parquet")
    for name, seed in (("reviews.csv", 1), ("test.csv", 2)):
        pyarrow.csv.write_csv(sentences(200, seed), path / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        for page in PAGES:
            if page.endswith("several-models.md"):
                shutil.copytree(path / "models" / "reviews", path / "models" / "topics")
            blocks = MARKED.findall((REPO / page).read_text())
            assert blocks
            code = "\n".join(blocks).replace("distilbert-base-uncased", tiny_encoder)
            exec(compile(code, page, "exec"), {})
    return path


@pytest.mark.journey
def test_python_in_pages_runs(folder):
    for name in ("scored", "scored-ids", "both"):
        assert len(pq.read_table(folder / name)) == 200


@pytest.mark.journey
def test_files_are_as_their_schemas_say(folder):
    module = hooks()
    bundle = folder / "models" / "reviews"
    records = [
        ("sentiment", (bundle / "sentiment.json").read_text()),
        ("epoch", (bundle / "training_log.jsonl").read_text().splitlines()[0]),
    ]
    for scored, counts in ((folder / "scored", "counts"), (folder / "both", "counts_of_models")):
        footer = pq.read_metadata(next(scored.glob("*.parquet"))).metadata
        records += [
            ("run", (scored / "_run.json").read_text()),
            ("summary", (scored / "_summary.json").read_text()),
            ("origin", footer[b"sentiment_core.origin"]),
            (counts, footer[b"sentiment_core.counts"]),
        ]
    for name, text in records:
        schema, record = module.schema(name), json.loads(text)
        jsonschema.validate(record, schema)
        assert set(record) <= set(schema["properties"]), name


@pytest.mark.journey
def test_the_notebook_runs(ray_here, packaged_encoder, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((REPO / "examples" / "quickstart.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict = {}
    exec(compile("\n".join(cells), "quickstart.ipynb", "exec"), names)
    assert names["findings"].exit_code == 0
    assert names["trained"].metrics["accuracy"] > 0.9
    assert len(names["scored"]) == 1_500
