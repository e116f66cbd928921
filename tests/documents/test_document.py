"""Documents from and to JSON, and every error of a record."""

import base64
import re
from pathlib import Path
from typing import Any

import pytest

from calumma.documents.document import (
    Document,
    Image,
    SpecialToken,
    Text,
    Turn,
    document_from_json,
    document_to_json,
    part_from_json,
)
from calumma.documents.paths import RemotePath
from calumma.errors import DocumentError, ImageError
from tests.documents.image_files import BLUE, RED, png

FOLDER = Path("/data/web")


def refusal(record: Any, folder: Path | None = FOLDER) -> str:
    """Return the error message for a record at docs.jsonl:3."""
    with pytest.raises(DocumentError) as caught:
        document_from_json(record, folder, "docs.jsonl:3")
    return str(caught.value)


def test_parts_keep_their_order_and_their_text_to_the_letter() -> None:
    record = {
        "id": "a",
        "source": "web",
        "license": "MIT",
        "content": [
            {"type": "text", "text": " one\n"},
            {"type": "image", "path": "images/1.png"},
            {"type": "text", "text": "two"},
        ],
        "attributes": {"ground": "red", "count": 3},
    }
    assert document_from_json(record, FOLDER, "x") == Document(
        id="a",
        source="web",
        license="MIT",
        content=(Text(" one\n"), Image(path=FOLDER / "images/1.png"), Text("two")),
        attributes={"ground": "red", "count": "3"},
    )


def test_turns_are_read_with_their_roles_and_a_plain_string_is_one_text() -> None:
    record = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": ["What is this?", {"type": "image", "bytes": RED}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
        ]
    }
    document = document_from_json(record, None, "/data/docs.jsonl:3")
    assert document.id == "docs.jsonl:3"
    assert [turn.role for turn in document.messages] == ["system", "user", "assistant"]
    assert document.text == "Be brief.\nWhat is this?\nRed."
    assert document.images == [Image(data=RED)]


def test_json_and_back_is_the_same_document() -> None:
    plain = Document(id="a", source="s", license="MIT", content=(Text("t"), Image(data=RED)))
    talk = Document(
        id="b",
        messages=(Turn("user", (Text("q"), Image(data=BLUE))), Turn("assistant", (Text("a"),))),
        attributes={"split": "train"},
    )
    for document in (plain, talk):
        assert document_from_json(document_to_json(document), None, "x") == document


def test_a_record_of_another_kind_is_refused() -> None:
    assert refusal(["a"]) == (
        'docs.jsonl:3: found list; expected an object with "content" or "messages". '
        "See the document format in docs/documents.md."
    )


@pytest.mark.parametrize(("record", "found"), [({}, "neither"), ({"content": [], "messages": []}, "both")])
def test_a_record_has_content_or_messages(record: dict[str, Any], found: str) -> None:
    assert refusal(record) == (
        f'docs.jsonl:3: found {found} of "content" and "messages"; expected exactly one. '
        "Keep the one that holds the parts."
    )


def test_attributes_are_names_and_values() -> None:
    assert refusal({"content": [], "attributes": ["red"]}) == (
        'docs.jsonl:3: "attributes" is list; expected an object of names and values. Fix it, or remove it.'
    )


def test_messages_hold_at_least_one_turn() -> None:
    assert refusal({"messages": []}) == (
        'docs.jsonl:3: "messages" is no list of turns; expected at least one turn, such as '
        '{"role": "user", "content": [...]}.'
    )


def test_an_unknown_role_is_refused() -> None:
    assert refusal({"messages": [{"role": "bot", "content": "hi"}]}) == (
        "docs.jsonl:3: turn 0 has the role 'bot'; expected one of system, user, assistant."
    )


def test_content_is_a_list_of_parts() -> None:
    assert refusal({"content": {"type": "text"}}) == (
        "docs.jsonl:3: content is dict; expected a list of parts, such as "
        '[{"type": "text", "text": "..."}, {"type": "image", "path": "1.png"}].'
    )


def test_a_part_is_of_a_known_type_and_the_message_says_which_part() -> None:
    turns = [{"role": "user", "content": ["a", {"type": "sound"}]}]
    assert refusal({"messages": turns}) == (
        "docs.jsonl:3, turn 0, part 1: found a part of type 'sound'; expected text, image or "
        'special_token, such as {"type": "text", "text": "..."}.'
    )


def test_an_image_has_path_bytes_or_base64() -> None:
    assert refusal({"content": [{"type": "image"}]}) == (
        "docs.jsonl:3, part 0: an image without path, bytes or base64; expected one of them. "
        "Add it, or remove the part."
    )


def test_base64_that_is_none_is_refused() -> None:
    message = refusal({"content": [{"type": "image", "base64": "a!"}]})
    assert re.fullmatch(
        r"docs\.jsonl:3, part 0: an image's base64 cannot be decoded \(.+\); expected plain "
        r"base64\. "
        r"Encode the image again\.",
        message,
    )


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../b.png"])
def test_an_image_path_never_leaves_the_folder_of_its_file(path: str) -> None:
    assert refusal({"content": [{"type": "image", "path": path}]}) == (
        f"docs.jsonl:3, part 0: image path {path!r} leads out of /data/web; expected a path inside "
        "the folder of the document's file. Copy the image there."
    )


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "docs"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(RED)
    (inside / "1.png").symlink_to(tmp_path / "secret.png")
    message = refusal({"content": [{"type": "image", "path": "1.png"}]}, inside)
    assert message == (
        f"docs.jsonl:3, part 0: image path '1.png' leads out of {inside}; expected a path inside "
        "the folder of the document's file. Copy the image there."
    )


def test_a_path_without_a_folder_is_refused() -> None:
    assert refusal({"content": [{"type": "image", "path": "1.png"}]}, None) == (
        "docs.jsonl:3, part 0: image path '1.png' has no folder to start from; expected bytes or "
        "base64. Put the image itself into the part."
    )


@pytest.mark.parametrize("content", ["ab\ud83d", [{"type": "text", "text": "ab\ud83d"}]])
def test_text_with_a_lone_surrogate_raises(content: Any) -> None:
    part = ", part 0" if isinstance(content, list) else ""
    assert refusal({"content": content}) == (
        f"docs.jsonl:3{part}: the text has a lone surrogate at character 2 ('\\ud83d'); "
        "expected text that UTF-8 can encode. Fix it, or drop the document."
    )


def test_names_that_utf_8_cannot_hold_are_kept_as_far_as_they_go() -> None:
    document = document_from_json({"id": "a\udc80", "content": []}, None, "x")
    assert document.id == "a?"


def test_the_old_key_of_the_license_is_named() -> None:
    assert refusal({"content": [], "licence": "MIT"}) == (
        'docs.jsonl:3: found the key "licence"; expected "license". Rename the key.'
    )


def test_an_image_with_cached_bytes_reads_its_file_once(tmp_path: Path) -> None:
    path = tmp_path / "1.png"
    path.write_bytes(RED)
    image = Image(path=path)
    assert image.cached_bytes == RED
    path.unlink()
    assert image.read_bytes() == RED
    assert image.open().size == (4, 4)
    assert image == Image(path=path)


def test_a_special_token_is_a_part_of_its_own_type() -> None:
    token = {"type": "special_token", "text": "<task>"}
    document = document_from_json({"content": [token, "hi"]}, None, "x")
    assert document.content == (SpecialToken("<task>"), Text("hi"))
    assert document_to_json(document)["content"][0] == token


def test_a_part_alone_can_be_read() -> None:
    encoded = base64.b64encode(RED).decode()
    assert part_from_json("hi", None, "x") == Text("hi")
    assert part_from_json({"type": "image", "base64": encoded}, None, "x") == Image(data=RED)


def test_an_image_is_decoded() -> None:
    image = Image(data=RED).open()
    assert image.size == (4, 4)
    assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no.png"
    with pytest.raises(ImageError) as caught:
        Image(path=path).open()
    assert str(caught.value) == (
        f"{path}: the image cannot be read (No such file or directory); expected an image file at "
        "this path. Fix the path, or drop the document."
    )


def test_a_text_file_named_png_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "words.png"
    path.write_text("These are words.")
    with pytest.raises(ImageError) as caught:
        Image(path=path).open()
    assert str(caught.value) == (
        f"{path}: not an image (its first bytes are b'These ar'); expected PNG, JPEG, WebP or "
        "another format of Pillow. Replace the file, or drop its document."
    )


def test_a_truncated_png_is_broken_and_its_document_is_named() -> None:
    complete = png(size=(64, 64))
    cut = Image(data=complete[: len(complete) // 2], name="docs.parquet, row 7, part 0")
    with pytest.raises(ImageError) as caught:
        cut.open()
    assert re.fullmatch(
        r"docs\.parquet, row 7, part 0: the image is corrupt or truncated \(.+\); expected a "
        r"complete file\. Download it again, or drop its document\.",
        str(caught.value),
    )


@pytest.mark.parametrize("keep", [20, 40, 60, 100])
def test_a_png_cut_anywhere_is_refused_in_one_line(keep: int) -> None:
    with pytest.raises(ImageError) as caught:
        Image(data=png(size=(64, 64))[:keep]).open()
    assert "\n" not in str(caught.value)


def _claiming(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size that its data does not have."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return RED[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + RED[33:]


@pytest.mark.parametrize(
    ("size", "found"),
    [((8001, 8000), "8001 x 8000"), ((10_000, 10_000), "10000 x 10000"), ((60_000, 60_000), "far too many")],
)
def test_an_image_with_too_many_pixels_is_refused_unread(size: tuple[int, int], found: str) -> None:
    with pytest.raises(ImageError) as caught:
        Image(data=_claiming(*size), name="big.png").open()
    assert str(caught.value) == (f"big.png: {found} pixels; expected at most 64,000,000. Scale the image down.")


def test_a_header_is_checked_without_fetching_remote_images() -> None:
    Image(data=RED).require_header()
    Image(path=RemotePath("memory://nowhere/gone.png")).require_header()
    with pytest.raises(ImageError, match="not an image"):
        Image(data=b"no").require_header()
