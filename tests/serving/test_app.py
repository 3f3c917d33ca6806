"""A real service, asked over HTTP; its page in Chromium where that is installed."""

import concurrent.futures
import html
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from sentiment_core.errors import UserError
from sentiment_core.inference.engine import Engine
from sentiment_core.model import bundle
from sentiment_core.model.registry import PromoteSettings, promote
from sentiment_core.serving import app
from sentiment_core.serving.settings import ServeSettings
from tests.conftest import make_bundle

TEXTS = ["a wonderful film", "", "boring " * 60, "the book, said he"]


@pytest.fixture(scope="module")
def models(tiny_bundle, tiny_encoder, tmp_path_factory) -> Path:
    """Make a folder of two bundles. The first is current."""
    folder = tmp_path_factory.mktemp("registry")
    shutil.copytree(tiny_bundle, folder / "first")
    make_bundle(tiny_encoder, folder / "second", max_length=8)
    promote(PromoteSettings(models=str(folder), bundle="first"))
    return folder


@pytest.fixture(scope="module")
def service(ray_here, models):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "FOLLOW_INTERVAL_S", 0.5)
        yield app.start(ServeSettings(model=str(models), port=0, max_bytes=25_000, texts_per_second=200.0))
    app.stop()


def ask(address: str, content: object = None) -> tuple[int, dict]:
    body = None if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_texts_get_the_probabilities_of_the_engine(service, tiny_bundle):
    code, answer = ask(service + "score", {"texts": TEXTS})
    assert code == 200
    assert answer["bundle"] == bundle.digest_of(bundle.read_files(tiny_bundle)[1])
    expected, _ = Engine.load(tiny_bundle).probabilities(bundle.load_tokenizer(tiny_bundle).encode(TEXTS)[0])
    assert [result["status"] for result in answer["results"]] == ["ok", "empty", "truncated", "ok"]
    for result, row in zip(answer["results"], expected, strict=True):
        if np.isnan(row).any():
            assert result["label"] is result["confidence"] is result["probabilities"] is None
        else:
            np.testing.assert_allclose(list(result["probabilities"].values()), row, atol=1e-2)
            assert result["label"] == ["negative", "positive"][int(np.argmax(list(result["probabilities"].values())))]
            assert result["confidence"] == max(result["probabilities"].values())


def test_simultaneous_requests_get_their_own_answers(service):
    alone_answers = [ask(service + "score", {"texts": [f"number {i}"]})[1]["results"] for i in range(12)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together_answers = list(
            pool.map(lambda i: ask(service + "score", {"texts": [f"number {i}"]})[1]["results"], range(12))
        )
    for alone, together in zip(alone_answers, together_answers, strict=True):
        assert alone[0]["confidence"] == pytest.approx(together[0]["confidence"], abs=1e-3)
    assert len({result[0]["confidence"] for result in alone_answers}) > 6


def test_a_word_weighs_what_the_log_odds_fall_without_it(service):
    code, answer = ask(service + "explain", {"text": "a wonderful film"})
    assert code == 200
    assert [word for word, _ in answer["words"]] == ["a", "wonderful", "film"]
    p = {}
    for text in ("a wonderful film", "a film"):
        p[text] = ask(service + "score", {"texts": [text]})[1]["results"][0]["probabilities"][answer["label"]]
    odds = {text: np.log(value / (1 - value)) for text, value in p.items()}
    assert answer["words"][1][1] == pytest.approx(odds["a wonderful film"] - odds["a film"], abs=1e-2)


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        ({"texts": []}, 422, "body.texts: List should have at least 1 item"),
        ({"texts": ["x"] * 65}, 422, "body.texts: List should have at most 64 items"),
        ({"texts": "x"}, 422, "body.texts"),
        (b"no JSON", 422, "JSON decode error"),
        ({"texts": ["x" * 30_000]}, 413, "more than 25000 bytes"),
    ],
)
def test_invalid_requests_are_refused(service, content, code, words):
    status, answer = ask(service + "score", content)
    assert status == code
    assert words in answer["detail"]


def test_a_text_too_long_to_explain_is_refused(service):
    code, answer = ask(service + "explain", {"text": "x" * 20_001})
    assert (code, answer["detail"]) == (422, "text has more than 20000 characters")


def test_lone_surrogates_are_scored_as_question_marks(service):
    assert ask(service + "score", b'{"texts": ["odd \\ud800"]}')[1]["results"][0]["status"] == "ok"
    assert [word for word, _ in ask(service + "explain", b'{"text": "odd \\ud800"}')[1]["words"]] == ["odd", "?"]


def test_a_client_above_its_rate_gets_429(service):
    with concurrent.futures.ThreadPoolExecutor(24) as pool:  # at once: one by one a slow machine keeps to the rate
        codes = list(pool.map(lambda _: ask(service + "score", {"texts": ["x"] * 64})[0], range(24)))
    assert set(codes) == {200, 429}
    time.sleep(2.5)
    assert ask(service + "score", {"texts": ["x"]})[0] == 200


def test_the_service_describes_itself(service):
    assert ask(service + "healthz")[1]["status"] == "ok"
    paths = ask(service + "openapi.json")[1]["paths"]
    assert set(paths) == {"/score", "/explain", "/healthz"}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_the_page_shows_a_label_and_its_words(service, tmp_path):
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000"]
    done = subprocess.run(
        [*command, "--dump-dom", service + "?text=a+wonderful+%3Cb%3Efilm"], capture_output=True, text=True, timeout=60
    )
    label = ask(service + "explain", {"text": "a wonderful <b>film"})[1]["label"]
    assert f'<p id="label">{label}, ' in done.stdout
    assert ">wonderful</span>" in done.stdout
    assert html.escape("<b>film") in done.stdout  # shown, not interpreted


def test_a_taken_port_is_refused(service, tiny_bundle):
    port = int(service.rstrip("/").rpartition(":")[2])
    with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
        app.start(ServeSettings(model=tiny_bundle, port=port))


def test_a_cluster_that_already_serves_is_refused(service, tiny_bundle):
    with pytest.raises(UserError, match="already runs sentiment-core on this cluster"):
        app.start(ServeSettings(model=tiny_bundle, port=0))


def test_the_service_follows_the_current_bundle(service, models):
    def digest(name: str) -> str:
        return bundle.digest_of(bundle.read_files(str(models / name))[1])

    def wait_for(name: str) -> None:
        deadline = time.monotonic() + 30
        while ask(service + "healthz")[1]["bundle"] != digest(name):
            assert time.monotonic() < deadline
            time.sleep(0.2)

    texts = {"texts": ["a wonderful film, and so we talked about it"]}
    promote(PromoteSettings(models=str(models), bundle="second"))
    wait_for("second")
    answer = ask(service + "score", texts)[1]
    assert (answer["bundle"], answer["results"][0]["status"]) == (digest("second"), "truncated")
    promote(PromoteSettings(models=str(models), back=True))
    wait_for("first")
    assert ask(service + "score", texts)[1]["results"][0]["status"] == "ok"
