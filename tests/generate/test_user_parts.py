"""Parts and messages in the types that users of `Model` pass."""

from typing import Any

import PIL.Image
import pytest

from calumma.documents.document import Text, Turn
from calumma.errors import DocumentError
from calumma.generate.user_parts import UserPart, open_user_part, role_and_parts
from tests.images import noise


@pytest.mark.parametrize("part", ["a", Text("a"), {"type": "text", "text": "a"}])
def test_a_text_may_have_several_types(part: UserPart) -> None:
    assert open_user_part(part) == "a"


def test_an_image_is_returned_as_it_is() -> None:
    image: PIL.Image.Image = noise(1)
    assert open_user_part(image) is image


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (Turn("user", (Text("a"),)), ("user", (Text("a"),))),
        ({"role": "assistant", "content": "a"}, ("assistant", ["a"])),
        ({"role": "system", "content": ["a", "b"]}, ("system", ["a", "b"])),
        ({"role": "user"}, ("user", ())),
    ],
)
def test_a_message_has_a_role_and_parts(message: Any, expected: tuple[str, Any]) -> None:
    assert role_and_parts(message, 1) == expected


def test_an_unknown_role_is_refused_with_the_number_of_its_message() -> None:
    with pytest.raises(DocumentError) as caught:
        role_and_parts({"role": "tool", "content": "a"}, 3)
    assert str(caught.value) == ("message 3 has the role 'tool'; expected one of system, user, assistant.")
