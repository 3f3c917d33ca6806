"""Serving: a real service, asked by HTTP; its page in Chromium where there is one."""

import asyncio
import concurrent.futures
import html
import json
import shutil
import subprocess
import threading
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
from sentiment_core.serving.app import Rates, ServeSettings, Together
from tests.conftest import make_bundle

TEXTS = ["a wonderful film", "", "boring " * 60, "the book, said he"]


@pytest.fixture(scope="module")
def models(tiny_bundle, tiny_encoder, tmp_path_factory) -> Path:
    """A folder of two bundles, of which the first is current."""
    place = tmp_path_factory.mktemp("registry")
    shutil.copytree(tiny_bundle, place / "first")
    make_bundle(tiny_encoder, place / "second", max_length=8)
    promote(PromoteSettings(models=str(place), bundle="first"))
    return place


@pytest.fixture(scope="module")
def service(ray_here, models):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "FOLLOW_S", 0.5)
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


def test_texts_get_what_the_engine_gives(service, tiny_bundle):
    code, found = ask(service + "score", {"texts": TEXTS})
    assert code == 200
    assert found["bundle"] == bundle.digest_of(bundle.read_files(tiny_bundle)[1])
    wanted, _ = Engine.load(tiny_bundle).probabilities(bundle.load_tokenizer(tiny_bundle).encode(TEXTS)[0])
    assert [result["status"] for result in found["results"]] == ["ok", "empty", "truncated", "ok"]
    for result, row in zip(found["results"], wanted, strict=True):
        if np.isnan(row).any():
            assert result["label"] is result["confidence"] is result["probabilities"] is None
        else:
            np.testing.assert_allclose(list(result["probabilities"].values()), row, atol=1e-2)
            assert result["label"] == ["negative", "positive"][int(np.argmax(list(result["probabilities"].values())))]
            assert result["confidence"] == max(result["probabilities"].values())


def test_requests_that_come_together_get_their_own_answers(service):
    alone = [ask(service + "score", {"texts": [f"number {i}"]})[1]["results"] for i in range(12)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda i: ask(service + "score", {"texts": [f"number {i}"]})[1]["results"], range(12)))
    for one, other in zip(alone, together, strict=True):
        assert one[0]["confidence"] == pytest.approx(other[0]["confidence"], abs=1e-3)
    assert len({one[0]["confidence"] for one in alone}) > 6


def test_words_that_matter(service):
    code, found = ask(service + "explain", {"text": "a wonderful film"})
    assert code == 200
    assert [word for word, _ in found["words"]] == ["a", "wonderful", "film"]
    p = {}
    for text in ("a wonderful film", "a film"):
        p[text] = ask(service + "score", {"texts": [text]})[1]["results"][0]["probabilities"][found["label"]]
    odds = {text: np.log(value / (1 - value)) for text, value in p.items()}
    assert found["words"][1][1] == pytest.approx(odds["a wonderful film"] - odds["a film"], abs=1e-2)


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
def test_what_cannot_be_scored_is_refused(service, content, code, words):
    found, answer = ask(service + "score", content)
    assert found == code
    assert words in answer["detail"]


def test_a_text_too_long_to_explain_is_refused(service):
    code, answer = ask(service + "explain", {"text": "x" * 20_001})
    assert (code, answer["detail"]) == (422, "text has more than 20000 characters")


def test_half_a_character_is_a_character_like_others(service):
    assert ask(service + "score", b'{"texts": ["odd \\ud800"]}')[1]["results"][0]["status"] == "ok"
    assert [word for word, _ in ask(service + "explain", b'{"text": "odd \\ud800"}')[1]["words"]] == ["odd", "?"]


def test_a_client_that_sends_too_much_is_told_to_wait(service):
    codes = [ask(service + "score", {"texts": ["x"] * 64})[0] for _ in range(12)]
    assert codes[0] == 200
    assert 429 in codes
    time.sleep(2.5)
    assert ask(service + "score", {"texts": ["x"]})[0] == 200


def test_requests_that_wait_are_computed_together_but_for_those_whose_clients_are_gone(monkeypatch):
    monkeypatch.setattr(app, "BATCH_TEXTS", 3)
    calls, begun, free = [], threading.Event(), threading.Event()

    def compute(requests: list[list[str]]) -> list[dict]:
        calls.append(requests)
        begun.set()
        assert free.wait(60)
        if ["bad"] in requests:
            raise ValueError("bad")
        return [{"texts": request} for request in requests]

    async def play() -> list:
        together = Together(compute)
        first = asyncio.create_task(together(["a"]))
        assert await asyncio.to_thread(begun.wait, 60)
        others = [asyncio.create_task(together(texts)) for texts in (["b"], ["gone"], ["c", "d"], ["bad"], ["e"])]
        await asyncio.sleep(0)  # they wait now
        others[1].cancel()
        await asyncio.sleep(0)
        free.set()
        answers = await asyncio.gather(first, *others, return_exceptions=True)
        return [*answers, await together(["later"])]

    a, b, gone, c, bad, e, later = asyncio.run(play())
    assert calls == [[["a"]], [["b"], ["c", "d"]], [["bad"], ["e"]], [["later"]]]
    assert [a, b, c, later] == [{"texts": texts} for texts in (["a"], ["b"], ["c", "d"], ["later"])]
    assert isinstance(gone, asyncio.CancelledError)
    assert [str(each) for each in (bad, e)] == ["bad", "bad"]


def test_rates_are_of_each_client(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(app.time, "monotonic", lambda: now[0])
    rates = Rates(10.0)
    assert [rates.allows("a", 15) for _ in range(3)] == [True, True, False]
    assert rates.allows("b", 15)
    now[0] += 2
    assert rates.allows("a", 15)
    assert Rates(0).allows("a", 10**9)


def test_health_and_description(service):
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
    assert html.escape("<b>film") in done.stdout  # shown, not obeyed


def test_a_taken_port_is_refused(service, tiny_bundle):
    port = int(service.rstrip("/").rpartition(":")[2])
    with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
        app.start(ServeSettings(model=tiny_bundle, port=port))


def test_a_cluster_that_serves_already_is_refused(service, tiny_bundle):
    with pytest.raises(UserError, match="already runs sentiment-core on this cluster"):
        app.start(ServeSettings(model=tiny_bundle, port=0))


def test_the_bundle_that_becomes_current_is_taken(service, models):
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
    found = ask(service + "score", texts)[1]
    assert (found["bundle"], found["results"][0]["status"]) == (digest("second"), "truncated")
    promote(PromoteSettings(models=str(models), back=True))
    wait_for("first")
    assert ask(service + "score", texts)[1]["results"][0]["status"] == "ok"
