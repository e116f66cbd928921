"""POST /v1/completions: continuations of texts, or of text and images, without turns."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.sse import EventSourceResponse

from calumma.generate.events import TextPiece
from calumma.generate.loglikelihood import SequenceLogprobs
from calumma.serve.api_errors import APIError
from calumma.serve.handler import RequestHandler
from calumma.serve.logprobs import CompletionLogprobsBuilder
from calumma.serve.output_processor import EncodedImage, Finished, NewTokens, OutputEvent
from calumma.serve.prompt_encoder import Prompt, completion_prompt
from calumma.serve.protocol import Completion, CompletionChoice, CompletionRequest
from calumma.serve.request_context import RequestContext, get_request_context
from calumma.serve.request_params import completion_params
from calumma.serve.response_stream import (
    ERROR_RESPONSES,
    STREAM_HEADERS,
    CompletedOutput,
    ResponseStream,
    event_stream,
    sse_event,
)
from calumma.serve.routes.chat import content_parts, to_image_part


def completion_routes(handler: RequestHandler) -> APIRouter:
    """Build the router."""
    router = APIRouter()

    @router.post("/v1/completions", response_model=Completion, responses=ERROR_RESPONSES)
    async def complete(body: CompletionRequest, request: Request) -> Any:
        """Continue each prompt."""
        context = get_request_context(request)
        params = completion_params(body, handler.model, handler.config.limits)
        stream = await handler.submit(context, _prompts(body), params)
        if body.stream:
            events = _events(handler, context, stream, body)
            return EventSourceResponse(events, headers=STREAM_HEADERS)
        scores = None
        if body.echo:
            scores = await handler.prompt_logprobs(stream.prompts, body.logprobs or 0, body.model)
        return _response(handler, context, stream, await stream.collect(), body, scores)

    return router


def _prompts(body: CompletionRequest) -> list[Prompt]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [completion_prompt(prompt)]
    if not prompt:
        message = "the list of prompts is empty; expected at least one. Add one."
        raise APIError(400, message, "empty_prompt", param="prompt")
    if isinstance(prompt[0], int):
        return [Prompt((), is_chat=False, token_ids=tuple(prompt))]
    if isinstance(prompt[0], str):
        return [completion_prompt(text) for text in prompt]
    if isinstance(prompt[0], list):
        return [Prompt((), is_chat=False, token_ids=tuple(ids)) for ids in prompt]
    return [completion_prompt(prompt)]


def _response(
    handler: RequestHandler,
    context: RequestContext,
    stream: ResponseStream,
    outputs: Sequence[CompletedOutput],
    body: CompletionRequest,
    scores: Sequence[SequenceLogprobs] | None,
) -> Completion:
    """Build the response; `scores` are those of the prompts, if they are echoed."""
    choices: list[CompletionChoice] = []
    per_prompt = len(outputs) // len(stream.prompts)
    for index, (output, seed) in enumerate(zip(outputs, stream.seeds, strict=True)):
        number = index // per_prompt
        prompt = stream.prompts[number]
        tokens = output.finished.tokens
        if scores is not None:
            echo = handler.model.text.decode([id_ for id_ in prompt if id_ in handler.model.vocabulary.text])
            output = replace(output, parts=[echo, *output.parts])
        images, parts = content_parts(output)
        logprobs = None
        if body.logprobs is not None:
            builder = CompletionLogprobsBuilder(handler.model, body.logprobs)
            logprobs = builder.add(tokens, prompt, scores[number] if scores is not None else None)
        choice = CompletionChoice(
            index=index,
            text=output.text,
            images=images,
            content_parts=parts,
            logprobs=logprobs,
            finish_reason=output.finished.reason,
            seed=seed,
            token_ids=list(tokens.token_ids) if body.return_token_ids else None,
            prompt_token_ids=prompt if body.return_token_ids else None,
        )
        choices.append(choice)
    return Completion(
        id=f"cmpl-{context.id}",
        created=context.created,
        model=context.model_name,
        choices=choices,
        usage=stream.usage(),
    )


def _events(handler: RequestHandler, context: RequestContext, stream: ResponseStream, body: CompletionRequest) -> Any:
    def chunk(index: int, text: str = "", **more: Any) -> dict[str, Any]:
        choice = {"index": index, "text": text, "finish_reason": None, "logprobs": None, **more}
        return {
            "id": f"cmpl-{context.id}",
            "object": "text_completion",
            "created": context.created,
            "model": context.model_name,
            "choices": [choice],
        }

    builders = [CompletionLogprobsBuilder(handler.model, body.logprobs or 0) for _ in stream.seeds]

    def encode(index: int, event: OutputEvent) -> bytes | None:
        match event:
            case TextPiece():
                return sse_event(chunk(index, event.text))
            case EncodedImage(partial_index=None):
                return sse_event(chunk(index, images=[to_image_part(event.png).model_dump()]))
            case NewTokens():
                sent = b""
                if body.logprobs is not None:
                    logprobs = builders[index].add(event.tokens)
                    if logprobs.tokens:
                        sent += sse_event(chunk(index, logprobs=logprobs.model_dump()))
                if body.return_token_ids:
                    tokens = {"token_ids": list(event.tokens.token_ids)}
                    sent += sse_event(chunk(index) | tokens, "tokens")
                return sent or None
            case Finished():
                return sse_event(chunk(index, finish_reason=event.reason))
        return None

    def trailer() -> Iterator[bytes]:
        usage = stream.usage().model_dump()
        if body.stream_options is not None and body.stream_options.include_usage:
            yield sse_event(chunk(0) | {"choices": [], "usage": usage})

    return event_stream(stream, encode, trailer=trailer)
