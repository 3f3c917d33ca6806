"""An output of score teaches what its latest bundle answered to the texts that it read."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment_core.distillation.settings import DistillSettings
from sentiment_core.distillation.teachers import collect_answers, open_teacher
from sentiment_core.model import bundle
from sentiment_core.scoring.job import score
from sentiment_core.scoring.plan import plan_scoring
from sentiment_core.scoring.settings import ScoreSettings
from tests.conftest import make_bundle
from tests.scoring.runs import score_folder


def write(folder: object, name: str, texts: list[str]) -> None:
    pq.write_table(pa.table({"title": texts, "body": [f"the body of {text}" for text in texts]}), f"{folder}/{name}")


@pytest.mark.usefixtures("in_process")
def test_answers_come_from_the_latest_bundle_and_the_columns_that_it_read(tmp_path, tiny_bundle, tiny_encoder):
    texts, scored = tmp_path / "texts", str(tmp_path / "scored")
    texts.mkdir()
    write(texts, "a.parquet", ["one", "two", "three"])
    flags = {"text_column": ("title", "body"), "keep": ("title", "body"), "probabilities": True}
    score_folder(tiny_bundle, texts, scored, **flags)
    settings = DistillSettings(texts=scored, model="m", out="o")
    teacher = open_teacher(settings)
    assert (teacher.text_columns, teacher.remarks) == (("title", "body"), ())
    answers = collect_answers(settings, teacher, None, [])
    assert len(answers) == 3
    assert "one" in answers.texts[0]
    assert "the body of one" in answers.texts[0]
    assert open_teacher(DistillSettings(texts=scored, model="m", out="o", text_column=("body",))).text_columns == (
        "body",
    )

    write(texts, "b.parquet", ["four", "five"])
    other = make_bundle(tiny_encoder, tmp_path / "other", max_length=16)
    digests = [bundle.digest_of(bundle.read_files(path)[1]) for path in (tiny_bundle, other)]
    score(plan_scoring(ScoreSettings(model=other, input=str(texts), out=scored, **flags), {"": digests[:1]}))
    teacher = open_teacher(settings)
    assert teacher.digest == digests[1]
    assert teacher.remarks == ("3 rows of --texts were scored by earlier bundles and were left out",)
    assert len(collect_answers(settings, teacher, None, [])) == 2
