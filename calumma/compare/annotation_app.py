"""The annotators' page: one item at a time, in an order and under names that tell nothing."""

from __future__ import annotations

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

from calumma.compare.judgement_store import Judgement, JudgementStore
from calumma.compare.questions import QUESTIONS
from calumma.compare.study import Study, StudyItem
from calumma.documents.document import Document, Text
from calumma.documents.image_formats import data_url
from calumma.errors import EvaluationError

ANNOTATION_PAGE = Path(__file__).parent / "page"

MAX_REQUEST_BYTES = 1 << 16
"""Of a request: names and a few words are all that is sent."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Name = Annotated[str, Field(min_length=1, max_length=80)]


class JudgementRequest(BaseModel):
    """What an annotator says of an item."""

    annotator: Name
    item: Annotated[str, Field(max_length=40)]
    answers: dict[str, str]
    seconds: Annotated[float, Field(ge=0, le=86_400)] = 0.0


@dataclass
class AnnotationService:
    """Hands out items and takes in what is said of them."""

    study: Study
    store: JudgementStore
    items: dict[str, StudyItem] = field(init=False)

    def __post_init__(self) -> None:
        self.items = {item.key: item for item in self.study.items()}

    def next_item(self, annotator: str) -> StudyItem | None:
        """The next item of an annotator, in an order of their own."""
        order = sorted(self.items.values(), key=lambda item: self._hash(annotator, item))
        return self.store.claim(order, annotator, self.study.annotators)

    def record(self, told: JudgementRequest) -> None:
        """Take in a judgement.

        Raises:
            EvaluationError: the item is not of this study, or an answer is none of those asked.
        """
        item = self.items.get(told.item)
        if item is None:
            raise EvaluationError(
                f"the item {told.item!r} is none of this study's {len(self.items)}; expected one "
                "that the page was given. Load the page again."
            )
        asked = {question.name: question.choices for question in QUESTIONS[item.question_set]}
        for name in {*asked, *told.answers}:
            if told.answers.get(name) not in asked.get(name, ()):
                raise EvaluationError(
                    f"{name} is answered {told.answers.get(name)!r}; expected one of "
                    f"{', '.join(asked.get(name, ())) or 'no answer'}. Answer every question."
                )
        swapped = self.is_swapped(told.annotator, item)
        turned = {"first": "second", "second": "first"} if swapped else {}
        answers = {name: turned.get(word, word) for name, word in told.answers.items()}
        self.store.record(Judgement(item.key, told.annotator, answers, swapped, told.seconds))

    def is_swapped(self, annotator: str, item: StudyItem) -> bool:
        """Whether this annotator sees the second answer of a pair first."""
        return item.question_set == "pairwise" and self._hash(annotator, item)[-1] % 2 == 1

    def _hash(self, annotator: str, item: StudyItem) -> bytes:
        told = f"{self.study.seed}\0{annotator}\0{item.key}"
        return hashlib.sha256(told.encode()).digest()

    def render_item(self, annotator: str, item: StudyItem) -> dict[str, Any]:
        """What the page shows of an item: never a system's name."""
        answers = [self.study.answers[name][item.prompt] for name in item.systems]
        if self.is_swapped(annotator, item):
            answers.reverse()
        return {
            "key": item.key,
            "kind": item.question_set,
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


def make_annotation_app(study: Study, store: JudgementStore, key: str = "") -> FastAPI:
    """The web application of a study.

    Args:
        study: what is judged.
        store: where judgements go.
        key: a word that every request for items must carry; empty for none.
    """
    desk = AnnotationService(study, store)
    app = FastAPI(title="calumma compare", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        answer = _refusal(request, key) or await call_next(request)
        answer.headers.update(HEADERS)
        return answer

    @app.exception_handler(EvaluationError)
    async def mistaken(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status_code=422)

    @app.get("/api/item")
    def next_item(annotator: Annotated[str, Query(min_length=1, max_length=80)]) -> dict[str, Any]:
        item = desk.next_item(annotator)
        return {
            "done": store.num_judged(annotator),
            "of": len(desk.items),
            "item": None if item is None else desk.render_item(annotator, item),
        }

    @app.post("/api/judgement")
    def record(told: JudgementRequest) -> dict[str, int]:
        desk.record(told)
        return {"done": store.num_judged(told.annotator)}

    app.mount("/", StaticFiles(directory=ANNOTATION_PAGE, html=True))
    return app


def _refusal(request: Request, key: str) -> Response | None:
    """Why a request is not answered, if it is not."""
    if not request.url.path.startswith("/api/"):
        return None
    if key and not hmac.compare_digest(request.headers.get("X-Key", "").encode(), key.encode()):
        text = "the key is missing or wrong; expected the one in the link that you were sent."
        return JSONResponse({"error": text}, status_code=401)
    length = request.headers.get("Content-Length", "0")
    if request.method == "POST" and not (length.isdigit() and 0 < int(length) <= MAX_REQUEST_BYTES):
        text = f"a request of {length} bytes; expected 1 to {MAX_REQUEST_BYTES}, told beforehand."
        return JSONResponse({"error": text}, status_code=413)
    return None
