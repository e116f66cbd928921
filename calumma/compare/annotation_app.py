"""The annotation page: one item at a time, blind, in a random order for each annotator."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from calumma.compare.judgment_store import Judgment, JudgmentStore
from calumma.compare.study import QUESTIONS, Study, StudyItem
from calumma.documents.document import Document, Text
from calumma.documents.image_formats import data_url
from calumma.errors import EvaluationError
from calumma.serve.config import SECURITY_HEADERS

ANNOTATION_PAGE = Path(__file__).parent / "annotation_page"

MAX_REQUEST_BYTES = 1 << 16
"""Bytes of a request body: names and a few words."""

_Name = Annotated[str, Field(min_length=1, max_length=80)]


class JudgmentRequest(BaseModel):
    """The body of a request that submits an annotator's judgment."""

    annotator: _Name
    item: Annotated[str, Field(max_length=40)]
    answers: dict[str, str]
    seconds: Annotated[float, Field(ge=0, le=86_400)] = 0.0


@dataclass
class AnnotationService:
    """Assigns items to annotators and records their judgments."""

    study: Study
    store: JudgmentStore
    items: dict[str, StudyItem] = field(init=False)

    def __post_init__(self) -> None:
        self.items = {item.key: item for item in self.study.items()}

    def next_item(self, annotator: str) -> StudyItem | None:
        """Return an annotator's next item, in the annotator's own order."""
        order = sorted(self.items.values(), key=lambda item: self._hash(annotator, item))
        return self.store.claim(order, annotator, self.study.annotators)

    def record(self, request: JudgmentRequest) -> None:
        """Record a judgment.

        Raises:
            EvaluationError: the item is not in this study, or an answer is not among the options.
        """
        item = self.items.get(request.item)
        if item is None:
            raise EvaluationError(
                f"the item {request.item!r} is not one of this study's {len(self.items)}; expected "
                "one that the page was given. Load the page again."
            )
        options = {question.name: question.choices for question in QUESTIONS[item.question_set]}
        for name in {*options, *request.answers}:
            if request.answers.get(name) not in options.get(name, ()):
                raise EvaluationError(
                    f"{name} is answered {request.answers.get(name)!r}; expected one of "
                    f"{', '.join(options.get(name, ())) or 'no answer'}. Answer every question."
                )
        swapped = self.is_swapped(request.annotator, item)
        swap = {"first": "second", "second": "first"} if swapped else {}
        answers = {name: swap.get(answer, answer) for name, answer in request.answers.items()}
        self.store.record(Judgment(item.key, request.annotator, answers, swapped, request.seconds))

    def is_swapped(self, annotator: str, item: StudyItem) -> bool:
        """Return whether this annotator sees the second answer of a pair first."""
        return item.question_set == "pairwise" and self._hash(annotator, item)[-1] % 2 == 1

    def _hash(self, annotator: str, item: StudyItem) -> bytes:
        key = f"{self.study.seed}\0{annotator}\0{item.key}"
        return hashlib.sha256(key.encode()).digest()

    def render_item(self, annotator: str, item: StudyItem) -> dict[str, Any]:
        """Return what the page shows of an item, without names of systems."""
        answers = [self.study.answers[name][item.prompt] for name in item.systems]
        if self.is_swapped(annotator, item):
            answers.reverse()
        return {
            "key": item.key,
            "question_set": item.question_set,
            "prompt": _parts(self.study.prompts[item.prompt]),
            "answers": [_parts(answer) for answer in answers],
            "questions": [
                {"name": question.name, "text": question.text, "options": question.options}
                for question in QUESTIONS[item.question_set]
            ],
        }


def _parts(document: Document) -> list[dict[str, str]]:
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, Text)
        else {"type": "image", "url": data_url(part.read_bytes())}
        for part in document.parts()
    ]


def make_annotation_app(study: Study, store: JudgmentStore, access_token: str = "") -> FastAPI:
    """Return the web application of a study.

    Args:
        study: the study.
        store: where judgments are recorded.
        access_token: token that every API request must carry; empty for none.
    """
    service = AnnotationService(study, store)
    app = FastAPI(title="calumma compare", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def check_request(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = _rejection(request, access_token) or await call_next(request)
        response.headers.update(SECURITY_HEADERS | {"cache-control": "no-store"})
        return response

    @app.exception_handler(EvaluationError)
    async def invalid_judgment(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status_code=422)

    @app.get("/api/item")
    def next_item(annotator: Annotated[str, Query(min_length=1, max_length=80)]) -> dict[str, Any]:
        item = service.next_item(annotator)
        return {
            "done": store.num_judged(annotator),
            "total": len(service.items),
            "item": None if item is None else service.render_item(annotator, item),
        }

    @app.post("/api/judgment")
    def record(body: JudgmentRequest) -> dict[str, int]:
        service.record(body)
        return {"done": store.num_judged(body.annotator)}

    app.mount("/", StaticFiles(directory=ANNOTATION_PAGE, html=True))
    return app


def _rejection(request: Request, access_token: str) -> Response | None:
    """Return the error response of an invalid request, or None."""
    if not request.url.path.startswith("/api/"):
        return None
    expected = f"Bearer {access_token}".encode()
    if access_token and not hmac.compare_digest(request.headers.get("Authorization", "").encode(), expected):
        text = "the access token is missing or wrong; expected the one in the link you were sent."
        return JSONResponse({"error": text}, status_code=401)
    length = request.headers.get("Content-Length", "0")
    if request.method == "POST" and not (length.isdigit() and 0 < int(length) <= MAX_REQUEST_BYTES):
        text = f"Content-Length of {length} bytes; expected 1 to {MAX_REQUEST_BYTES}."
        return JSONResponse({"error": text}, status_code=413)
    return None
