"""What requests and answers hold, and how a request is read: JSON, or a form with files."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ...faces import Face
from ...images import Photo
from ...people import Person, likeness_word, ordered
from .limits import Limits

Asked = TypeVar("Asked", bound=BaseModel)
NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("expected a file, or in JSON its bytes in base64")
    if re.match(r"\s*[a-z][a-z0-9+.-]*://", value, re.IGNORECASE):
        raise ValueError("a URL: this service fetches nothing; send the file itself")
    try:
        text = re.sub(r"^data:[\w/+.-]*;base64,", "", value)
        return base64.b64decode("".join(text.split()), validate=True)  # the command base64 breaks lines
    except (binascii.Error, ValueError):
        raise ValueError("not base64: send the bytes of a file in it, or a form with the file") from None


def _few(value: Any) -> list[Any]:
    """A list that is short: pydantic has a message for each wrong item."""
    if isinstance(value, list) and len(value) > 1000:
        raise ValueError(f"{len(value)} of them: give fewer")
    return value if isinstance(value, list) else [value]


PICTURES = ("image/png", "application/json", "text/event-stream")
"""The forms of the answer with a picture."""
_SAID = {
    "extra_forbidden": "no such field; /openapi.json has all",
    "string_pattern_mismatch": "expected letters, digits, - and _, 64 at most",
}
_BASE64 = {"type": "string", "contentEncoding": "base64"}
_BINARY = {"type": "string", "format": "binary"}
File = Annotated[bytes, BeforeValidator(_bytes), WithJsonSchema(_BASE64)]
Files = Annotated[list[File], BeforeValidator(_few)]
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Names = Annotated[list[Name], BeforeValidator(_few)]
Text = Annotated[str, Field(max_length=2000)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > 100:
            raise ValueError(f"{len(given)} fields: give only those of /openapi.json")
        return given


class FacesRequest(_Request):
    photos: Files = Field(min_length=1, description="JPEG, PNG or WebP")
    embeddings: bool = Field(False, description="recognise the faces too; an embedding is biometric data")


class PersonRequest(_Request):
    photos: Files = Field(min_length=1, description="of one person; the largest face of each counts")
    name: Name | None = Field(None, description="keep the person here under this name, in place of sending it")


class PictureRequest(_Request):
    prompt: Text
    negative_prompt: Text = ""
    photos: Files = Field([], description="of one person; the first gives the pose")
    persons: Names = Field([], description="names of persons that the service keeps")
    person_files: Files = Field([], description=".safetensors files of persons; several persons stand side by side")
    seed: int = Field(0, ge=0, lt=2**63)
    scale: float = Field(0.8, ge=0, le=5, description="of the identity branch")
    num_inference_steps: int | None = Field(None, ge=2, le=1000)
    guidance_scale: float | None = Field(None, ge=0, le=100)
    controlnet_conditioning_scale: float | None = Field(None, ge=0, le=10, description="of the IdentityNet")
    width: int | None = Field(
        None, ge=64, le=4096, multiple_of=8, examples=[1024], description="width x height is bounded too"
    )
    height: int | None = Field(None, ge=64, le=4096, multiple_of=8, examples=[1024])
    likeness: bool = Field(True, description="of the picture's faces to the persons")


class Error(BaseModel):
    error: str


class FoundFace(BaseModel):
    box: list[float] = Field(description="left, top, right, bottom in pixels")
    keypoints: list[list[float]] = Field(description="eyes, nose, corners of the mouth: x and y in pixels")
    score: float
    embedding: list[float] | None = Field(None, description="512 numbers, not normalised")


class FoundFaces(BaseModel):
    width: int
    height: int
    faces: list[FoundFace] = Field(description="from left to right")


class FacesAnswer(BaseModel):
    photos: list[FoundFaces]


class Likeness(BaseModel):
    cosine: float | None = Field(description="-1 to 1; null without a face")
    word: str


class Photographs(BaseModel):
    photographs: int
    alike: Likeness | None = Field(description="of the two that differ most; null for one photograph")
    outliers: list[int] = Field(description="of three or more, those that hardly show this person, from 0")


class PersonAnswer(Photographs):
    name: str


class PersonsAnswer(BaseModel):
    persons: list[str]


class PictureAnswer(BaseModel):
    png: str = Field(description="the picture, in base64")
    width: int
    height: int
    seed: int
    likeness: list[Likeness] | None = Field(description="of each person")
    photos: Photographs | None = Field(description="whether those of the request show one person")


def faces_answer(rows: Iterable[tuple[Photo, list[Face], list[Person]]]) -> FacesAnswer:
    """Photographs, their faces, and the persons of those that were recognised."""
    photos: list[FoundFaces] = []
    for photo, faces, people in rows:
        known = {id(person.face): person.embedding.tolist() for person in people}
        found = [
            FoundFace(
                box=face.bbox.tolist(), keypoints=face.kps.tolist(), score=face.det_score, embedding=known.get(id(face))
            )
            for face in ordered(faces, "left to right")
        ]
        photos.append(FoundFaces(width=photo.width, height=photo.height, faces=found))
    return FacesAnswer(photos=photos)


def photographs(person: Person) -> Photographs:
    """How alike the photographs of a person are."""
    pairs = person.likeness_table()[np.triu_indices(len(person.embeddings), 1)]
    alike = _likeness(float(pairs.min())) if len(pairs) else None
    return Photographs(photographs=len(person.embeddings), alike=alike, outliers=person.outliers())


def picture_answer(drawn: Any, seed: int, photos: Photographs | None) -> dict[str, Any]:
    """A picture with its likeness, as JSON."""
    likeness = None if drawn.likeness is None else [_likeness(cosine) for cosine in drawn.likeness]
    (width, height), picture = drawn.image.size, base64.b64encode(encoded(drawn.image)).decode()
    told = PictureAnswer(png=picture, width=width, height=height, seed=seed, likeness=likeness, photos=photos)
    return told.model_dump()


def _likeness(cosine: float) -> Likeness:
    return Likeness(cosine=None if math.isnan(cosine) else round(cosine, 4), word=likeness_word(cosine))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file of a picture, with nothing about its person in it. Kind and options are those of ``Image.save``."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def event(name: str, fact: Any) -> str:
    """A Server-Sent Event; without a fact, a comment that keeps the connection open."""
    return f": {name}\n\n" if fact is None else f"event: {name}\ndata: {json.dumps(fact)}\n\n"


def body_of(model: type[BaseModel], limits: Limits, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The request body for OpenAPI, in both forms, with the bounds and defaults of this service."""
    schema = model.model_json_schema()
    for name in defaults.keys() & schema["properties"].keys():
        schema["properties"][name] |= {"default": defaults[name], "examples": [defaults[name]]}
    most = {"photos": limits.photos, "persons": limits.people, "person_files": limits.people}
    most |= {"num_inference_steps": limits.steps, "width": limits.area // 64, "height": limits.area // 64}
    for name in most.keys() & schema["properties"].keys():
        each = schema["properties"][name]
        bound, key = (each["anyOf"][0], "maximum") if "anyOf" in each else (each, "maxItems")
        bound[key] = min(most[name], bound.get(key, most[name]))
    form = {**schema, "properties": {}}
    for name, each in schema["properties"].items():
        if "anyOf" in each:  # or null, which a form cannot hold
            null = {"anyOf"} if each["default"] is not None else {"anyOf", "default"}
            each = {key: value for key, value in each.items() if key not in null} | each["anyOf"][0]
        form["properties"][name] = each | ({"items": _BINARY} if each.get("items") == _BASE64 else {})
    content = {"multipart/form-data": {"schema": form}, "application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


async def read(request: Request, model: type[Asked], limits: Limits) -> Asked:
    """Read a request in memory: no file of a client reaches a disk. An HTTPException says what is wrong."""
    kind = _kind_of(request.headers.get("content-type", ""))
    if packed := request.headers.get("content-encoding"):
        raise HTTPException(415, f"content encoding {packed[:80]!r}: send the request as it is")
    if kind == b"application/json":
        body = b"".join([part async for part in request.stream()])  # request.body() would keep it
        read = await run_in_threadpool(_checked, model.model_validate_json, body)
    else:
        parser = MultiPartParser(request.headers, request.stream(), max_files=limits.photos + limits.people)
        parser.spool_max_size = limits.body + 1
        ends: list[bool] = []
        parser.on_end = lambda: ends.append(True)  # or the part that was cut off would count as none
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise HTTPException(422, f"the form: {error.message}") from error
        if not ends:
            raise HTTPException(422, "the form: it is cut off before its last boundary: send all of it")
        given: dict[str, Any] = {}
        for name in form.keys():
            values = form.getlist(name)
            if (
                field := model.model_fields.get(name)
            ) and not field.is_required():  # a browser sends what is left empty
                values = [one for one in values if (one if isinstance(one, str) else one.filename)]
            values = [value if isinstance(value, str) else await value.read() for value in values]
            given |= {name: values if len(values) > 1 else values[0]} if values else {}
        await form.close()
        read = await run_in_threadpool(_checked, model.model_validate, given)
    if isinstance(read, str):
        raise HTTPException(422, read)
    return read


def _checked(validate: Callable[[Any], Asked], given: Any) -> Asked | str:
    """A request, or what is wrong with it: an error would hold the request until a collection."""
    try:
        return validate(given)
    except ValidationError as error:
        return said(error.errors(include_url=False, include_context=False, include_input=False))


def _kind_of(header: str) -> bytes:
    """A content type without its parameters. No others: starlette decodes a form by any codec of Python they name."""
    kind, parameters = parse_options_header(header)
    charset = parameters.pop(b"charset", b"utf-8").lower()
    boundary = parameters.pop(b"boundary", b"")
    known = kind in (b"application/json", b"multipart/form-data") and charset in (b"utf-8", b"utf8")
    if not known or parameters or len(boundary) > 70:  # RFC 2046
        text = "send application/json or multipart/form-data, in UTF-8"
        raise HTTPException(415, f"content type {header[:80]!r}: {text}")
    return kind


def said(errors: Sequence[Any]) -> str:
    """What is wrong with a request, without what it holds."""
    rows = [
        (".".join(map(str, row["loc"]))[:80] or "body", _SAID.get(row["type"]) or str(row["msg"])) for row in errors[:5]
    ]
    return "; ".join(f"{where}: {text.removeprefix('Value error, ')}" for where, text in rows)


def kind_of_answer(accept: str) -> str:
    """Which of the :data:`PICTURES` a client prefers, by its header Accept (RFC 9110, 12.5.1); "" for none."""
    asked: dict[str, tuple[float, int]] = {}  # weight, and place in the header
    for place, part in enumerate(accept.lower().split(",") if accept.strip() else ["*/*"]):
        kind, *more = (text.strip() for text in part.split(";"))
        weight = next((text[2:] for text in more if text.startswith("q=")), "1")
        asked[kind] = float(weight) if re.fullmatch(r"[01](\.[0-9]{0,3})?", weight) else 0.0, -place

    def rank(offer: str) -> tuple[float, bool, int]:
        kinds = (offer, f"{offer.partition('/')[0]}/*", "*/*")  # the first that is asked for decides
        kind = next((kind for kind in kinds if kind in asked), "")
        weight, place = asked.get(kind, (0.0, 0))
        return weight, kind == offer, place

    best = max(PICTURES, key=rank)
    return best if rank(best)[0] else ""
