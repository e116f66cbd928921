"""Parts of prompts and messages in the types that users of `Model` pass."""

from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image

from calumma.documents.document import ROLES, Image, Role, SpecialToken, Text, Turn, part_from_json
from calumma.errors import DocumentError

UserPart = str | PIL.Image.Image | dict[str, Any] | Text | Image
"""A text, an image, or a part as documents write it."""


def open_user_part(part: UserPart) -> str | SpecialToken | PIL.Image.Image:
    """Return a part as a text, a special token, or an opened image.

    Raises:
        DocumentError: a dict is no part of a document.
        ImageError: an image cannot be opened.
    """
    if isinstance(part, str | PIL.Image.Image):
        return part
    known = part if isinstance(part, Text | Image) else part_from_json(part, None, "prompt")
    if isinstance(known, Image):
        return known.open()
    return known if isinstance(known, SpecialToken) else known.text


def role_and_parts(message: Turn | Mapping[str, Any], number: int) -> tuple[Role, Sequence[UserPart]]:
    """Return the role and the parts of a message, whose number is for the error.

    Raises:
        DocumentError: the role is unknown.
    """
    if isinstance(message, Turn):
        return message.role, message.parts
    role, content = message.get("role"), message.get("content", ())
    if role not in ROLES:
        raise DocumentError(f"message {number} has the role {role!r}; expected one of {', '.join(ROLES)}.")
    return role, [content] if isinstance(content, str) else content
