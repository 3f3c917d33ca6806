"""Serving a few texts at a time by HTTP: a Ray Serve deployment that holds the engine which scores corpora.

Requests that arrive while the model is busy are computed together next. What is sent is bounded: bytes, texts, and
how many requests wait. For many texts use jobs/score.py, which is faster.
"""

import asyncio
import importlib.util
import logging
import socket
import string
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files as package_files
from typing import Any

import numpy as np
import ray

from sentiment_core.config import REQUIRED, check, setting
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, registry
from sentiment_core.runtime import cluster, connection, preflight, storage
from sentiment_core.scoring.stream import LAST_CPUS, READ_CPUS
from sentiment_core.text.status import STATUS_NAMES, apply_min_confidence

BATCH_TEXTS = 256  # computed together, and what the last request has beyond
ONGOING = 128  # requests taken by a replica, computed or waiting; further ones wait where another replica can take them
EXPLAINED_WORDS, EXPLAINED_CHARACTERS = 200, 20_000  # of a text; as many copies of it are computed as it has words
APPLICATION = "sentiment-core"
PAGE = "page.html"
CLIENTS = 10_000  # whose rates are kept in mind
WARM_UP_BATCHES = 3  # after one, the engine grew by 40 MB more under requests; after three by 2
FOLLOW_S = 60.0  # between two looks for which bundle is current


@dataclass(frozen=True)
class ServeSettings:
    model: str = setting(REQUIRED, "model bundle, or folder of bundles with a current one: a folder or URI", "BUNDLE")
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 lets in whoever reaches this machine")
    port: int = setting(8000, "port to listen on; 0 takes a free one")
    workers: int = setting(1, "copies of the model, one for each GPU, or sharing the CPUs")
    min_confidence: float = setting(0.0, "texts whose best label is less probable get none (status abstained)", "P")
    max_texts: int = setting(64, "texts in a request")
    max_bytes: int = setting(1_000_000, "bytes of a request")
    max_waiting: int = setting(
        256, f"requests that may wait while each model has taken {ONGOING}; more are answered with 503"
    )
    texts_per_second: float = setting(0.0, "of one client, more are answered with 429; 0: as many as it sends")

    def __post_init__(self) -> None:
        for name in ("workers", "max_texts", "max_bytes", "max_waiting"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        check(0 <= self.min_confidence <= 1, "min_confidence", self.min_confidence, "a probability from 0 to 1")
        check(0 <= self.port < 65536, "port", self.port, "0 to 65535")
        check(self.texts_per_second >= 0, "texts_per_second", self.texts_per_second, "0 or more")


def start(settings: ServeSettings) -> str:
    """Serve from now on; the address. Raises `UserError`."""
    if importlib.util.find_spec("fastapi") is None:
        raise UserError("jobs/serve.py needs FastAPI and Ray Serve; pip install -c constraints.txt -e '.[serve]'")
    from ray import serve

    model = storage.absolute(settings.model)  # replicas may work in another folder
    place = registry.resolve(model)
    _, files = bundle.read_files(place)
    port = _free_port(settings.host, settings.port)
    connection.connect()
    if others := list(serve.status().applications):
        raise UserError(
            f"Ray Serve already runs {', '.join(others)} on this cluster, behind an address of its own; end that "
            "first (Ctrl-C where it was started, else `serve shutdown`), or serve from another cluster"
        )
    if follows := place != model:
        preflight.check_shared(model, "--model", writable=False)
    workers = settings.workers
    preflight.check_workers(workers)
    for name in ("ray.serve", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    try:
        serve.start(http_options={"host": settings.host, "port": port}, logging_config=quiet)
        deployment = serve.deployment(
            name="Classifier",
            num_replicas=workers,
            ray_actor_options=dict(cluster.actor_resources(workers, (READ_CPUS, LAST_CPUS))),
            max_ongoing_requests=ONGOING,
            max_queued_requests=settings.max_waiting,
            logging_config=quiet,
        )(_service(settings))
        service = deployment.bind(
            ray.put(files), cluster.threads_per_worker(workers), place, model if follows else None
        )
        serve.run(service, name=APPLICATION, route_prefix="/")
    except BaseException:  # Ctrl-C, too: its actors would outlive this process on a cluster
        stop()
        raise
    return f"http://{settings.host}:{port}/"


def stop() -> None:
    from ray import serve

    serve.shutdown()


def _free_port(host: str, port: int) -> int:
    try:
        with socket.create_server((host, port)) as free:
            return free.getsockname()[1]
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port") from None


class Model:
    """The engine and its tokenizer. Texts in, results out."""

    def __init__(self, files: dict[str, bytes], threads: int, min_confidence: float) -> None:
        from sentiment_core.inference.engine import Engine

        self.min_confidence = min_confidence
        self.lock = threading.Lock()  # requests of two kinds come from two threads, and the engine takes one at a time
        self.digest = bundle.digest_of(files)
        with storage.unpack_files(files) as folder:
            self.labels = bundle.read_info(folder).labels
            self.engine = Engine.load(folder, threads=threads)
            self.tokenizer = bundle.load_tokenizer(folder)
        self._warm_up()

    def _warm_up(self) -> None:
        """Compute full batches of texts of all lengths, most of them short, so that buffers have their size and kernels
        are there when requests come."""
        random = np.random.default_rng(0)
        letters = list(string.ascii_lowercase)  # words of one token
        for _ in range(WARM_UP_BATCHES):
            lengths = self.engine.max_length ** random.random(BATCH_TEXTS)
            self.probabilities([" ".join(random.choice(letters, int(n))) for n in lengths])

    def probabilities(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(n, classes), NaN where there is nothing to score, and the status codes (n,)."""
        tokens, status = self.tokenizer.encode([_unicode(text) for text in texts])
        with self.lock:
            probabilities, _ = self.engine.probabilities(tokens)
        return probabilities, apply_min_confidence(status, probabilities, self.min_confidence)

    def results(self, texts: list[str]) -> list[dict]:
        """Of each text what jobs/score.py writes of a row."""
        return [self._result(row, code) for row, code in zip(*self.probabilities(texts), strict=True)]

    def _result(self, row: np.ndarray, code: int) -> dict:
        scored = not np.isnan(row).any()
        status = STATUS_NAMES[code]
        return {
            "label": self.labels[int(row.argmax())] if scored and status != "abstained" else None,
            "confidence": float(row.max()) if scored else None,
            "probabilities": dict(zip(self.labels, row.tolist(), strict=True)) if scored else None,
            "status": status,
        }

    def explanation(self, text: str) -> dict:
        """The text's result, and of each of its first words by how much the label's log odds fall when it is left out
        (Li et al. 2016, Understanding Neural Networks through Representation Erasure)."""
        words = _unicode(text).split()
        some = words[:EXPLAINED_WORDS]
        without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(some))]
        probabilities, status = self.probabilities([text, *without])
        result = self._result(probabilities[0], status[0])
        if result["confidence"] is None:
            return result | {"words": [[word, 0.0] for word in some]}
        best = int(probabilities[0].argmax())
        p = np.clip(np.nan_to_num(probabilities[:, best], nan=1 / len(self.labels)), 1e-6, 1 - 1e-6)
        odds = np.log(p / (1 - p))
        return result | {"words": [[w, round(float(odds[0] - o), 4)] for w, o in zip(some, odds[1:], strict=True)]}


def _unicode(text: str) -> str:
    """Without halves of characters, which JSON may hold."""
    return text.encode("utf-8", "replace").decode()


class Together:
    """Computes in one call what waits for the model: a request alone at once, those that come meanwhile next.
    (Batches of `serve.batch` are of what came within some milliseconds, however long they then wait.)"""

    def __init__(self, compute: Callable[[list[list[str]]], list[dict]]) -> None:
        """`compute`: from the texts of each request the answer to each; called in a thread, one call at a time."""
        self.compute = compute
        self.waiting: deque[tuple[list[str], asyncio.Future[dict]]] = deque()
        self.task: asyncio.Task | None = None

    async def __call__(self, texts: list[str]) -> dict:
        answer = asyncio.get_running_loop().create_future()
        self.waiting.append((texts, answer))
        if self.task is None:
            self.task = asyncio.create_task(self._work())  # a task of its own: a request's ends when its client goes
        return await answer

    async def _work(self) -> None:
        while self.waiting:
            requests: list[list[str]] = []
            answers: list[asyncio.Future[dict]] = []
            while self.waiting and sum(map(len, requests)) < BATCH_TEXTS:
                texts, answer = self.waiting.popleft()
                if not answer.done():  # else its client is gone
                    requests.append(texts)
                    answers.append(answer)
            try:
                found: list = await asyncio.to_thread(self.compute, requests)
            except Exception as error:
                found = [error] * len(answers)
            for answer, result in zip(answers, found, strict=True):
                if answer.done():
                    continue
                if isinstance(result, Exception):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)
        self.task = None


class Rates:
    """How many texts each client has sent to this replica, which gets its share of them: a token bucket that holds two
    seconds' worth."""

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self.left: dict[str, tuple[float, float]] = {}  # texts, and when that was

    def allows(self, client: str, texts: int) -> bool:
        if not self.per_second:
            return True
        now, most = time.monotonic(), 2 * max(self.per_second, 1.0)
        left, then = self.left.get(client, (most, now))
        left = min(most, left + (now - then) * self.per_second)
        allowed = left > 0  # so that a request larger than the bucket passes when it is full
        if len(self.left) >= CLIENTS:
            self.left.clear()
        self.left[client] = (left - texts if allowed else left, now)
        return allowed


def _service(settings: ServeSettings) -> Any:
    """The deployment's class, made here since FastAPI is an extra."""
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse
    from pydantic import BaseModel, Field
    from ray import serve

    from sentiment_core import __version__

    class Texts(BaseModel):
        texts: list[str] = Field(min_length=1, max_length=settings.max_texts)

    class Text(BaseModel):
        text: str

    class Result(BaseModel):
        label: str | None
        confidence: float | None
        probabilities: dict[str, float] | None
        status: str

    class Results(BaseModel):
        bundle: str
        results: list[Result]

    class Explained(Result):
        bundle: str
        words: list[tuple[str, float]]

    app = FastAPI(title="sentiment-core", version=__version__)
    app.add_middleware(Bounded, max_bytes=settings.max_bytes)
    page = (package_files("sentiment_core.serving") / PAGE).read_text(encoding="utf-8")
    rates, follow_s = Rates(settings.texts_per_second / settings.workers), FOLLOW_S

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        """Without what was sent, which may be no Unicode."""
        told = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        return JSONResponse({"detail": told}, 422)

    def admit(request: Request, texts: int) -> None:
        if not rates.allows(request.client.host if request.client else "", texts):
            raise HTTPException(429, "too many texts a second; try again later", {"Retry-After": "1"})

    @serve.ingress(app)
    class Service:
        def __init__(self, files: ray.ObjectRef, threads: int, place: str, models: str | None) -> None:
            """`files`: those of the bundle at `place`; `models`: the folder of bundles whose current one it is."""
            connection.leave_background()
            self.model = Model(ray.get(files), threads, settings.min_confidence)
            self.together = Together(self.answers)
            if models:
                threading.Thread(target=self.follow, args=(models, place, threads), daemon=True).start()

        def follow(self, models: str, place: str, threads: int) -> None:
            """Take the bundle that has become current meanwhile. If it cannot be had, the one at hand goes on."""
            while True:
                try:
                    current = registry.resolve(models)
                    if current != place:
                        self.model = Model(bundle.read_files(current)[1], threads, settings.min_confidence)
                        place = current
                except Exception:
                    logging.getLogger("ray.serve").exception("the bundle that is current cannot be served")
                time.sleep(follow_s)

        def answers(self, requests: list[list[str]]) -> list[dict]:
            model = self.model
            found = iter(model.results([text for request in requests for text in request]))
            return [{"bundle": model.digest, "results": [next(found) for _ in request]} for request in requests]

        @app.post("/score", response_model=Results)
        async def score(self, given: Texts, request: Request) -> dict:
            """Label, confidence, probabilities and status of each text, as jobs/score.py writes them."""
            admit(request, len(given.texts))
            return await self.together(given.texts)

        @app.post("/explain", response_model=Explained)
        async def explain(self, given: Text, request: Request) -> dict:
            """The same of one text, and of each word by how much the label's log odds fall when it is left out."""
            if len(given.text) > EXPLAINED_CHARACTERS:
                raise HTTPException(422, f"text has more than {EXPLAINED_CHARACTERS} characters")
            admit(request, min(EXPLAINED_WORDS, 1 + len(given.text.split())))
            model = self.model
            return {"bundle": model.digest} | await asyncio.to_thread(model.explanation, given.text)

        @app.get("/healthz")
        async def health(self) -> dict:
            """That the model is loaded, and which."""
            model = self.model
            return {"status": "ok", "bundle": model.digest, "computed_by": model.engine.backend.name}

        @app.get("/", response_class=HTMLResponse, include_in_schema=False)
        async def index(self) -> str:
            return page

    return Service


class Bounded:
    """ASGI middleware that answers 413 to bodies larger than `max_bytes`, as soon as that shows."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None  # the client is gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_bytes:
                return await self._refuse(send)
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> dict:
            return waiting.pop() if waiting else await receive()

        return await self.app(scope, again, send)

    async def _refuse(self, send: Any) -> None:
        content = b'{"detail": "more than %d bytes"}' % self.max_bytes
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": content})
