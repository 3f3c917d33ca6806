"""Run what pages and the notebook show in Python."""

import json
import re
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.conftest import sentences

REPO = Path(__file__).resolve().parents[1]
MARKED = re.compile(r"^<!-- run in a test -->\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/guides/python.md"])
def test_python_in_pages_runs(page, ray_here, tiny_encoder, tmp_path, monkeypatch):
    blocks = MARKED.findall((REPO / page).read_text())
    assert blocks
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    rows = sentences(200, seed=0)
    pq.write_table(rows.append_column("id", rows["label"]), "corpus/part.parquet")
    for name, seed in (("reviews.csv", 1), ("test.csv", 2)):
        pyarrow.csv.write_csv(sentences(200, seed), name)
    code = "\n".join(blocks).replace("distilbert-base-uncased", tiny_encoder)
    exec(compile(code, page, "exec"), {})
    assert len(pq.read_table("scored")) == len(rows)


def test_the_notebook_runs(ray_here, packaged_encoder, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((REPO / "examples" / "quickstart.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict = {}
    exec(compile("\n".join(cells), "quickstart.ipynb", "exec"), names)
    assert names["findings"].exit_code == 0
    assert names["trained"].metrics["accuracy"] > 0.9
    assert len(names["scored"]) == 1_500
