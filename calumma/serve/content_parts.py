"""Input of requests: text, images, special tokens and token ids, in the shapes of OpenAI's API."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from calumma.renamed import REQUEST_FIELDS, rename_message


def _require_utf8(text: str) -> str:
    """Reject lone surrogates, which UTF-8 cannot encode."""
    text.encode()
    return text


Utf8Str = Annotated[str, AfterValidator(_require_utf8)]
"""Text that UTF-8 can encode."""


class StrictModel(BaseModel):
    """Base of request bodies: "5" is not accepted as the number 5, nor an old field name."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _reject_renamed_fields(cls, body: Any) -> Any:
        if isinstance(body, dict):
            for old, new in REQUEST_FIELDS.items():
                if old in body:
                    raise ValueError(rename_message("field", old, new))
        return body


class TextPart(StrictModel):
    """A text part."""

    type: Literal["text"] = "text"
    text: Utf8Str

    @model_validator(mode="before")
    @classmethod
    def _reject_image(cls, part: Any) -> Any:
        if isinstance(part, dict) and part.get("image_url"):
            raise ValueError("a text part has an image_url; expected a part of its own for each of them")
        return part


class ImageURL(StrictModel):
    """URL of an image: a data: URL, or one of a host that the operator allows."""

    url: Utf8Str


class ImagePart(StrictModel):
    """An image part. The URL may also be given as a plain string."""

    type: Literal["image_url"] = "image_url"
    image_url: Annotated[
        ImageURL,
        BeforeValidator(
            lambda value: {"url": value} if isinstance(value, str) else value, json_schema_input_type=ImageURL | str
        ),
    ]

    @model_validator(mode="before")
    @classmethod
    def _reject_text(cls, part: Any) -> Any:
        if isinstance(part, dict) and part.get("text"):
            raise ValueError("an image_url part has a text; expected a part of its own for each of them")
        return part


class SpecialTokenPart(StrictModel):
    """A token that was added to the tokenizer, named by its text."""

    type: Literal["special_token"] = "special_token"
    text: Utf8Str


ContentPart = Annotated[TextPart | ImagePart | SpecialTokenPart, Field(discriminator="type")]


def _shape(value: Any) -> str:
    """Return which of the types of a content or a prompt a value is meant to be."""
    if isinstance(value, str):
        return "text"
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, str):
        return "texts"
    if isinstance(first, int):
        return "token_ids"
    return "token_id_lists" if isinstance(first, list) else "parts"


Content = Annotated[
    Annotated[Utf8Str, Tag("text")] | Annotated[list[ContentPart], Tag("parts")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "parts"),
]
"""A text, or texts and images in reading order."""

TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(max_length=2**16)]

PromptInput = Annotated[
    Annotated[Utf8Str, Tag("text")]
    | Annotated[list[Utf8Str], Tag("texts")]
    | Annotated[list[ContentPart], Tag("parts")]
    | Annotated[TokenIds, Tag("token_ids")]
    | Annotated[list[TokenIds], Tag("token_id_lists")],
    Discriminator(_shape),
]
"""A text, several texts, texts and images in reading order, token ids, or several lists of them."""
