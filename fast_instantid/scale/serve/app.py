"""The routes of the service."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import fastapi_offline
from fastapi import Depends, FastAPI, Path as InPath, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import Match

from ... import __version__
from ...errors import BackendError, FastInstantIDError, NotFiniteError
from ...people import Person, merge, ordered
from . import documents as doc
from .batch_queue import Busy, Waiting
from .engine import Engine
from .limits import Guard
from .metrics import Metrics
from .person_store import PersonStore, as_bytes, from_bytes
from .uploads import opened

logger = logging.getLogger("fast_instantid")

_OURS, _SWAGGER = Path(__file__).parent / "page", Path(fastapi_offline.__file__).parent / "static"
_PAGES = {
    "/": _OURS / "index.html",
    "/docs": _OURS / "docs.html",
    **{f"/{name}": _OURS / name for name in ("page.js", "page.css", "docs.js")},
    **{f"/{name}": _SWAGGER / name for name in ("swagger-ui-bundle.js", "swagger-ui.css")},
}
_KINDS = {".html": "html", ".js": "javascript", ".css": "css"}
_WITHOUT_KEY = {*_PAGES, "/healthz", "/readyz", "/openapi.json"}
_FILE = "application/octet-stream"
_Name = Annotated[str, InPath(pattern=f"^{doc.NAME}$")]
_EVENTS = (
    "Server-Sent Events with JSON: queued {waiting}, step {step, steps}, preview {step, jpeg}, and last picture, as in "
    "application/json, or error {error, status}. Comments between them keep the connection open."
)
_BINARY: Any = {"schema": {"type": "string", "format": "binary"}}
_PERSON: Any = {"content": {_FILE: _BINARY}}
_PICTURE: Any = {
    "content": {"image/png": _BINARY, "text/event-stream": {"schema": {"type": "string", "description": _EVENTS}}},
    "headers": {
        "X-Likeness": {"schema": {"type": "string"}, "description": "of a PNG's persons: cosines, nan without a face"},
        "X-Photos-Alike": {"schema": {"type": "number"}, "description": "of the two photographs that differ most"},
    },
    "description": "as Accept asks; a PNG by default",
}


def _errors(*statuses: int) -> dict[int | str, Any]:
    return {status: {"model": doc.Error} for status in statuses}


_ERRORS, _ERRORS_OF_BODY = _errors(401, 403, 413, 421, 500, 503), _errors(408, 415, 422, 429, 504)


def make_app(engine: Engine, key: str = "", persons: Path | None = None) -> FastAPI:
    """The service as an ASGI app. It starts and stops the engine.

    Args:
        key: that clients send as ``Authorization: Bearer KEY``; "" for none.
        persons: the folder that keeps named persons; None keeps none.
    """
    limits, store = engine.limits, PersonStore(persons)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        # Our bound of pixels takes the place of Pillow's.
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        # Strangers cause these, as many as they like. Diffusers' hold prompts.
        warnings.filterwarnings("ignore", module="PIL")
        for library in ("diffusers", "transformers", "python_multipart"):
            logging.getLogger(library).setLevel(logging.ERROR)
        engine.start()
        yield
        engine.stop()
        await run_in_threadpool(engine.join)
        Image.MAX_IMAGE_PIXELS = before

    app = FastAPI(
        title="Fast InstantID",
        version=__version__,
        lifespan=lifespan,
        responses=_ERRORS,
        docs_url=None,  # both pages of FastAPI load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    # It documents the key. The guard asks for it.
    keyed: Any = {"dependencies": [Depends(HTTPBearer(auto_error=False, scheme_name="key"))] if key else []}
    app.state.engine, metrics = engine, Metrics(engine)
    app.add_middleware(Guard, limits=limits, key=key, without_key=_WITHOUT_KEY, seen=metrics.answered)

    for kind in (HTTPException, RequestValidationError, FastInstantIDError):
        app.add_exception_handler(kind, _refused)

    async def read(request: Request, model: type[doc.Asked]) -> tuple[float, doc.Asked]:
        start = time.monotonic()
        check_ready()
        return start, await doc.read(request, model, limits)

    def check_ready() -> None:
        if not engine.is_ready:
            why = "the warm-up failed: the log says why" if engine.failure else "warming up"
            raise HTTPException(503, why)

    async def searched(request: Request, photos: list[bytes], keep: Any, start: float) -> list[Any]:
        if len(photos) > limits.photos:
            raise HTTPException(422, f"photos: {len(photos)} of them: at most {limits.photos}")
        engine.face_queue.check()
        if (pixels := await run_in_threadpool(_pixels, photos)) > limits.pixels:
            raise HTTPException(413, f"photos of {pixels} pixels: at most {limits.pixels}; scale them down")
        job = engine.search(photos, keep, pixels)
        return await Waiting(request, engine.face_queue, job, start, limits.seconds).result()

    async def person_of(request: Request, photos: list[bytes], name: str, start: float) -> Person:
        rows = await searched(request, photos, lambda faces: ordered(faces)[:1], start)
        if empty := [photo.name for photo, faces, _ in rows if not faces]:
            text = "send photographs that show the face larger, sharper and unobstructed"
            raise HTTPException(422, f"no face found in {', '.join(empty)}: {text}")
        return merge([people[0] for _, _, people in rows], name)

    @app.post(
        "/v1/faces",
        openapi_extra=doc.body_of(doc.FacesRequest, limits, engine.defaults),
        responses=_ERRORS_OF_BODY,
        **keyed,
    )
    async def find_faces(request: Request) -> doc.FacesAnswer:
        """Find faces in photographs."""
        start, asked = await read(request, doc.FacesRequest)
        rows = await searched(request, asked.photos, engine.largest if asked.embeddings else lambda _: [], start)
        return doc.faces_answer(rows)

    @app.post(
        "/v1/persons",
        responses={200: _PERSON, 201: {"model": doc.PersonAnswer}, **_errors(404, 409), **_ERRORS_OF_BODY},
        response_class=Response,
        openapi_extra=doc.body_of(doc.PersonRequest, limits, engine.defaults),
        **keyed,
    )
    async def make_person(request: Request) -> Response:
        """Make a person of photographs; with a name, it is kept here."""
        start, asked = await read(request, doc.PersonRequest)
        if asked.name:
            store.check_free(asked.name)
        person = await person_of(request, asked.photos, asked.name or "person", start)
        if not asked.name:
            return Response(await run_in_threadpool(as_bytes, person), media_type=_FILE)
        await run_in_threadpool(store.keep, person)
        told = doc.PersonAnswer(name=person.name, **doc.photographs(person).model_dump())
        return JSONResponse(told.model_dump(), 201)

    @app.get("/v1/persons", **keyed)
    async def list_persons() -> doc.PersonsAnswer:
        """Names of the persons that are kept here."""
        return doc.PersonsAnswer(persons=await run_in_threadpool(store.names))

    @app.get("/v1/persons/{name}", response_class=Response, responses={200: _PERSON, **_errors(404, 422)}, **keyed)
    async def get_person(name: _Name) -> Response:
        """The file of a person that is kept here."""
        return Response(await run_in_threadpool(store.read, name), media_type=_FILE)

    @app.delete("/v1/persons/{name}", status_code=204, responses=_errors(404, 422), **keyed)
    async def delete_person(name: _Name) -> None:
        """Delete a person that is kept here."""
        await run_in_threadpool(store.delete, name)

    @app.post(
        "/v1/pictures",
        response_model=doc.PictureAnswer,
        responses={200: _PICTURE, **_errors(404, 406), **_ERRORS_OF_BODY},
        openapi_extra=doc.body_of(doc.PictureRequest, limits, engine.defaults),
        **keyed,
    )
    async def draw(request: Request) -> Response:
        """Draw persons. The answer is a PNG, or JSON, or events: each step, previews, and the picture."""
        start, asked = await read(request, doc.PictureRequest)
        engine.check_number(bool(asked.photos) + len(asked.persons) + len(asked.person_files))
        engine.picture_queue.check()
        if not (kind := doc.kind_of_answer(accept := ",".join(request.headers.getlist("accept")))):
            raise HTTPException(406, f"accept {accept[:80]!r}: a picture comes as {', '.join(doc.PICTURES)}")
        people = [await person_of(request, asked.photos, "person", start)] if asked.photos else []
        people += [await run_in_threadpool(store.person, name) for name in asked.persons]
        files = enumerate(asked.person_files)
        people += [await run_in_threadpool(from_bytes, data, f"person_files.{number}") for number, data in files]
        photos = doc.photographs(people[0]) if asked.photos else None
        asked = asked.model_copy(update={"photos": [], "person_files": []})
        request.scope["release"]()  # who waits for the pipeline holds no files
        job = await run_in_threadpool(engine.picture, asked, people, kind == "text/event-stream")
        waiting = Waiting(request, engine.picture_queue, job, start, limits.seconds)
        if kind == "text/event-stream":
            return StreamingResponse(stream(waiting, asked.seed, photos), media_type="text/event-stream")
        drawn = await waiting.result()
        metrics.pictures.inc()
        if kind == "application/json":
            return JSONResponse(await run_in_threadpool(doc.picture_answer, drawn, asked.seed, photos))
        headers = {} if drawn.likeness is None else {"x-likeness": ", ".join(f"{x:.4f}" for x in drawn.likeness)}
        if photos is not None and photos.alike is not None:
            headers["x-photos-alike"] = f"{photos.alike.cosine:.4f}"
        return Response(await run_in_threadpool(doc.encoded, drawn.image), media_type="image/png", headers=headers)

    async def stream(waiting: Waiting, seed: int, photos: Any) -> AsyncIterator[str]:
        try:
            async for name, fact in waiting.events():
                if name == "result":
                    metrics.pictures.inc()
                    name, fact = "picture", await run_in_threadpool(doc.picture_answer, fact, seed, photos)
                yield doc.event(name, fact)
        except Exception as error:
            status, text = _status_and_text(error)
            yield doc.event("error", {"error": text, "status": status})

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        """Whether requests are taken: after the warm-up."""
        check_ready()
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}}, **keyed)
    async def tell_metrics() -> Response:
        """Requests, seconds, queues, batches and pictures of this process, for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    for path, file in _PAGES.items():
        whole: Any = Response(file.read_bytes(), media_type=f"text/{_KINDS[file.suffix]}")
        app.add_route(path, whole, ["GET"], include_in_schema=False)
    return app


def _pixels(photos: Sequence[bytes]) -> int:
    return sum(math.prod(opened(data, f"photos.{number}").size) for number, data in enumerate(photos))


async def _refused(request: Request, error: Exception) -> Response:
    status, text = _status_and_text(error)
    headers = {"Retry-After": "5"} if status == 503 else getattr(error, "headers", None)
    if status == 405:  # starlette names the methods of one route only
        there = [route for route in request.app.routes if route.matches(request.scope)[0] is Match.PARTIAL]
        methods = {method for route in there for method in getattr(route, "methods", ())}
        headers = {"Allow": ", ".join(sorted(methods))}
    return JSONResponse({"error": text}, status, headers=headers)


def _status_and_text(error: Exception) -> tuple[int, str]:
    """Status and text of an answer. Of our own errors, which may name files, only the log tells."""
    if isinstance(error, HTTPException):
        unknown = "; /openapi.json has all requests" if error.detail in ("Not Found", "Method Not Allowed") else ""
        return error.status_code, f"{error.detail}{unknown}"
    if isinstance(error, RequestValidationError):
        return 422, doc.said(error.errors())
    if isinstance(error, FastInstantIDError) and not isinstance(error, (BackendError, NotFiniteError)):
        return 429 if isinstance(error, Busy) else 422, str(error)
    logger.error("a request failed", exc_info=error)
    return 500, "the service failed at this request: its log says why"
