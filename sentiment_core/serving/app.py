"""Serve a bundle over HTTP: a Ray Serve deployment whose routes are a FastAPI application.

Requests that arrive while the model is busy are computed together next. Bytes and texts of a request are limited, and
so is how many requests wait. `sentiment-core score` is faster for many texts.
"""

import importlib.util
import logging
import socket
import threading
import time
from importlib.resources import files as package_files
from typing import Any

import ray

from sentiment_core.errors import UserError
from sentiment_core.model import registry, source
from sentiment_core.model.naming import refuse_names
from sentiment_core.runtime import cluster, connection, preflight
from sentiment_core.scoring.stream import LAST_CPUS, READ_CPUS
from sentiment_core.serving.limits import BodySizeLimit, RateLimiter, Turns
from sentiment_core.serving.micro_batching import MicroBatcher
from sentiment_core.serving.model import (
    EXPLAINED_CHARACTERS,
    EXPLAINED_WORDS,
    Explanation,
    MultiLabelExplanation,
    Results,
    ServedModel,
)
from sentiment_core.serving.settings import MAX_EXPLAIN_REQUESTS, MAX_ONGOING_REQUESTS, ServeSettings

APPLICATION = "sentiment-core"
PAGE = "page.html"
FOLLOW_INTERVAL_S = 60.0  # between two looks at which bundle is current
QUIET = {"log_level": "ERROR", "enable_access_log": False}


def start(settings: ServeSettings) -> str:
    """Serve until `stop` is called. Returns the address. Raises `UserError`."""
    if importlib.util.find_spec("fastapi") is None:
        raise UserError("serve needs FastAPI and Ray Serve. Install the extra `serve`.")
    from ray import serve

    refuse_names(settings.model)
    model = source.absolute(settings.model)  # actors may run in another working directory
    path = registry.resolve(model)
    opened = source.open_model(path)
    port = _free_port(settings.host, settings.port)
    connection.connect()
    if others := list(serve.status().applications):
        raise UserError(
            f"Ray Serve already runs {', '.join(others)} on this cluster. Stop it (Ctrl-C where it was started, or "
            "`serve shutdown`), or serve from another cluster."
        )
    is_registry = path != model
    if is_registry:
        preflight.check_shared(model, "--model", writable=False)
    workers, kind = settings.workers, cluster.device_kind(settings.device)
    preflight.check_workers(workers, kind)
    preflight.check_precision(settings.precision, kind)
    source.warn_if_uncalibrated(path, opened.info)
    for name in ("ray.serve", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    actor_options: dict[str, Any] = dict(cluster.actor_resources(workers, (READ_CPUS, LAST_CPUS), kind))
    if kind == "CPU":
        actor_options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    try:
        serve.start(http_options={"host": settings.host, "port": port}, logging_config=QUIET)
        deployment = serve.deployment(
            name="Classifier",
            num_replicas=workers,
            ray_actor_options=actor_options,
            max_ongoing_requests=MAX_ONGOING_REQUESTS,
            max_queued_requests=settings.max_waiting,
            logging_config=QUIET,
        )(_make_service(settings))
        service = deployment.bind(
            ray.put(opened.files), cluster.threads_per_worker(workers), path, model if is_registry else None
        )
        serve.run(service, name=APPLICATION, route_prefix="/")
    except BaseException:  # Ctrl-C too: on a cluster its actors would outlive this process
        stop()
        raise
    return f"http://{settings.host}:{port}/"


def stop() -> None:
    """Stop serving."""
    from ray import serve

    serve.shutdown()


def _free_port(host: str, port: int) -> int:
    """Return the port if it is free; for 0 a free one. Raises `UserError`."""
    try:
        with socket.create_server((host, port)) as server:
            return server.getsockname()[1]
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}. Choose another --host or --port.") from None


def _make_service(settings: ServeSettings) -> Any:
    """Make the deployment's class. It is made here because FastAPI is an extra."""
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse
    from pydantic import BaseModel, Field
    from ray import serve

    from sentiment_core import __version__

    class Texts(BaseModel):
        texts: list[str | dict[str, str | None]] = Field(min_length=1, max_length=settings.max_texts)

    class Text(BaseModel):
        text: str | dict[str, str | None]

    app = FastAPI(title="sentiment-core", version=__version__)
    app.add_middleware(BodySizeLimit, max_bytes=settings.max_bytes)
    page = (package_files("sentiment_core.serving") / PAGE).read_text(encoding="utf-8")
    rate_limiter = RateLimiter(settings.texts_per_second / settings.workers)  # each worker gets its share of requests
    follow_interval_s = FOLLOW_INTERVAL_S

    @app.exception_handler(RequestValidationError)
    async def refuse_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        """Answer 422 without what was sent, which may not be valid Unicode."""
        problems = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        return JSONResponse({"detail": "; ".join(problems)}, 422)

    def check_rate(request: Request, texts: int) -> None:
        if not rate_limiter.allows(request.client.host if request.client else "", texts):
            raise HTTPException(429, "too many texts a second; try again later", {"Retry-After": "1"})

    @serve.ingress(app)
    class Service:
        def __init__(self, files: ray.ObjectRef, threads: int, path: str, models: str | None) -> None:
            """Load the bundle at `path` from its `files`; follow the current one of `models`, a folder of bundles."""
            connection.leave_background()
            cluster.check_assigned_gpu()
            self.model = ServedModel(ray.get(files), threads, settings.min_confidence, settings.precision)
            self.batcher = MicroBatcher(lambda requests: self.model.answer(requests))
            self.explaining = Turns(MAX_EXPLAIN_REQUESTS)  # else many would stand before texts to score
            if models:
                threading.Thread(target=self.follow_current, args=(models, path, threads), daemon=True).start()

        def follow_current(self, models: str, path: str, threads: int) -> None:
            """Load a bundle once it has become the current one. If that fails, keep serving the one at hand."""
            while True:
                try:
                    current = registry.resolve(models)
                    if current != path:
                        new_files = source.open_model(current).files
                        self.model = ServedModel(new_files, threads, settings.min_confidence, settings.precision)
                        path = current
                except Exception:
                    logging.getLogger("ray.serve").exception("the current bundle cannot be served")
                time.sleep(follow_interval_s)

        def read(self, text: str | dict[str, str | None]) -> str | None:
            """Return a request's text; its fields are joined. Answers 422 for fields that the model does not have."""
            try:
                return self.model.join_fields(text)
            except UserError as error:
                raise HTTPException(422, str(error)) from None

        @app.post("/score", response_model=Results)
        async def score(self, body: Texts, request: Request) -> Results:
            """Return label or labels, confidence, probabilities and status of each text, as in scored Parquet."""
            check_rate(request, len(body.texts))
            return await self.batcher([self.read(text) for text in body.texts])

        @app.post("/explain", response_model=Explanation | MultiLabelExplanation)
        async def explain(self, body: Text, request: Request) -> Explanation | MultiLabelExplanation:
            """Return the same for one text, and for each word by how much the label's log odds fall without it."""
            text = self.read(body.text) or ""
            if len(text) > EXPLAINED_CHARACTERS:
                raise HTTPException(422, f"text has more than {EXPLAINED_CHARACTERS} characters")
            if self.explaining.is_full:
                raise HTTPException(503, "too many texts wait to be explained; try again later", {"Retry-After": "1"})
            check_rate(request, min(EXPLAINED_WORDS, 1 + len(text.split())))
            async with self.explaining.wait():
                return await self.model.explain(text, self.batcher.in_turn)

        @app.get("/healthz")
        async def health(self) -> dict[str, str]:
            """Return that the model is loaded, and which one."""
            model = self.model
            return {"status": "ok", "bundle": model.digest, "computed_by": model.computed_by}

        @app.get("/", response_class=HTMLResponse, include_in_schema=False)
        async def index(self) -> str:
            return page

    return Service
