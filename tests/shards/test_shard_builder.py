"""Shards of groups of documents: killed, changed or broken, the bytes of one undisturbed build."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from calumma.documents.document import Document, Image, Text, Turn
from calumma.documents.error_policy import DroppedDocument, OnError
from calumma.errors import DocumentError, ImageError
from calumma.shards.encode import DocumentEncoder, EncodedCodes, images_with_resize_mode
from calumma.shards.manifest import Manifest, SourceCounts, encoding_fingerprint
from calumma.shards.reader import ShardReader
from calumma.shards.shard_builder import ShardBuilder, ShardWriter
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image_preprocessing import ResizeMode
from calumma.tokens.sequence import encode_document
from calumma.tokens.text import TextTokenizer
from calumma.vocabulary import Vocabulary
from tests.images import noise, png
from tests.shard_building import build_shards as build_in_memory

SMALL = Vocabulary(num_codes=3, num_text=256)
WIDE = Vocabulary(num_codes=3, num_text=70_000)


class FakeImageTokenizer:
    """Encodes an image by its first pixel, and counts the images."""

    class config:
        num_codes = 16
        codes_per_image = 2

    def __init__(self, fingerprint: str = "fake") -> None:
        self.fingerprint = fingerprint
        self.num_encoded = 0

    def encode_stream(self, images: Iterable[tuple[Image, ResizeMode]], **options: object) -> Iterator[EncodedCodes]:
        for image, fit in images:
            self.num_encoded += 1
            try:
                image = image.open()
            except ImageError as error:
                yield error
                continue
            if image.width > 100 * image.height:
                yield ImageError("a mere line")
                continue
            yield [image.getpixel((0, 0))[0] % 16, 0 if fit == "crop" else 1]


def fake(text: TextTokenizer, fingerprint: str = "fake") -> Tokenizers:
    return Tokenizers(text=text, image=FakeImageTokenizer(fingerprint))  # type: ignore[arg-type]


def pair(number: int) -> Document:
    parts = (Text(f"image {number}"), Image(data=png(number)))
    return Document(id=str(number), source=f"s{number % 2}", content=parts)


PAIRS = [pair(number) for number in range(10)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def build_shards(
    documents: Iterable[Document], tokenizers: Tokenizers, folder: Path, on_error: OnError = "raise"
) -> Manifest:
    return build_in_memory(documents, tokenizers, folder, on_error=on_error, documents_per_shard=4)


def test_every_sequence_is_that_of_its_document(
    tokenizers: Tokenizers, documents: list[Document], tmp_path: Path
) -> None:
    manifest = build_shards(documents, tokenizers, tmp_path)
    reader = ShardReader(tmp_path)
    assert reader.manifest == manifest
    assert len(reader) == len(documents)
    assert manifest.sources == ["pairs", "text", "chat"]
    assert manifest.codes_per_image == 4
    for number, document in enumerate(documents):
        images = images_with_resize_mode(document)
        codes = [tokenizers.image.encode_image(p.open(), resize_mode=fit) for p, fit in images]
        expected = encode_document(document, tokenizers.text, codes)
        token_ids, loss_mask = reader.read(number)
        assert (token_ids.tolist(), loss_mask.tolist()) == (expected.token_ids, expected.loss_mask)
        assert reader.source_of(number) == document.source


def killed_after(documents: list[Document], number: int) -> Iterator[Document]:
    yield from documents[:number]
    raise KeyboardInterrupt


@pytest.mark.parametrize("number", [0, 3, 5, 8, 10])
def test_a_killed_build_resumes_to_the_same_bytes(number: int, text_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    build_shards(PAIRS, fake(text_tokenizer), tmp_path / "reference")
    first, second = fake(text_tokenizer), fake(text_tokenizer)
    with pytest.raises(KeyboardInterrupt):
        build_shards(killed_after(PAIRS, number), first, tmp_path / "killed")
    build_shards(PAIRS, second, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "reference")
    finished = number // 4 * 4
    assert (first.image.num_encoded, second.image.num_encoded) == (finished, 10 - finished)  # type: ignore[attr-defined]


def test_a_kill_while_writing_a_shard_affects_that_shard_only(
    text_tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_shards(PAIRS, fake(text_tokenizer), tmp_path)
    expected = contents(tmp_path)
    changed = [*PAIRS[:5], pair(99), *PAIRS[6:]]

    def killed(writer: ShardWriter) -> dict[str, bytes]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardWriter, "_contents", killed)
        build_shards(changed, fake(text_tokenizer), tmp_path)
    (tmp_path / "shard-00000-001.tokens").write_bytes(b"half of the new shard")
    assert not (tmp_path / "manifest.json").exists()
    again = fake(text_tokenizer)
    build_shards(PAIRS, again, tmp_path)
    assert contents(tmp_path) == expected
    assert again.image.num_encoded == 4  # type: ignore[attr-defined]


def num_encoded_again(tokenizers: Tokenizers, documents: list[Document], folder: Path) -> int:
    """Return how many images are encoded to update the folder; it must then equal a new one."""
    build_shards(documents, tokenizers, folder)
    fresh = folder / "fresh"
    num_encoded: int = tokenizers.image.num_encoded  # type: ignore[attr-defined]
    build_shards(documents, tokenizers, fresh)
    expected = contents(fresh)
    assert {name: (folder / name).read_bytes() for name in expected} == expected
    return num_encoded


def test_unchanged_shards_are_kept(text_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    build_shards(PAIRS, fake(text_tokenizer), tmp_path)
    assert num_encoded_again(fake(text_tokenizer), PAIRS, tmp_path) == 0


def test_a_changed_document_invalidates_its_shard(text_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    build_shards(PAIRS, fake(text_tokenizer), tmp_path)
    changed = [*PAIRS[:5], pair(99), *PAIRS[6:]]
    assert num_encoded_again(fake(text_tokenizer), changed, tmp_path) == 4


def test_a_changed_tokenizer_invalidates_everything(text_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    build_shards(PAIRS, fake(text_tokenizer), tmp_path)
    assert num_encoded_again(fake(text_tokenizer, "other"), PAIRS, tmp_path) == 10
    longer = TextTokenizer.train(["image image"], num_text=258, num_codes=16)
    assert num_encoded_again(fake(longer, "other"), PAIRS, tmp_path) == 10


def test_a_new_first_source_leaves_later_shards_unchanged(text_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    build_shards(PAIRS, fake(text_tokenizer), tmp_path)
    changed = [replace(PAIRS[0], source="new"), *PAIRS[1:]]
    assert num_encoded_again(fake(text_tokenizer), changed, tmp_path) == 4
    reader = ShardReader(tmp_path)
    assert reader.sequence_indices("new").tolist() == [0]
    assert reader.sequence_indices("s0").tolist() == [2, 4, 6, 8]


def test_shards_of_an_earlier_longer_build_are_deleted(text_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    build_shards(PAIRS, fake(text_tokenizer), tmp_path / "a")
    build_shards(PAIRS[:5], fake(text_tokenizer), tmp_path / "a")
    build_shards(PAIRS[:5], fake(text_tokenizer), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_part_that_moves_to_another_turn_is_a_change(text_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    a, b, c = Text("a"), Text("b"), Text("c")
    for prompt, answer in [((a, b), (c,)), ((a,), (b, c))]:
        turns = (Turn("user", prompt), Turn("assistant", answer))
        build_shards([Document(id="d", messages=turns)], fake(text_tokenizer), tmp_path)
        _, loss_mask = ShardReader(tmp_path).read(0)
        assert loss_mask.sum() == len(answer) + 1


@pytest.mark.parametrize("suffix", ["tokens", "offsets", "sources", "loss_mask", "crc32"])
def test_a_truncated_shard_is_rebuilt(suffix: str, text_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    build_shards(PAIRS, fake(text_tokenizer), tmp_path)
    path = tmp_path / f"shard-00000-001.{suffix}"
    path.write_bytes(path.read_bytes()[:-1])
    assert num_encoded_again(fake(text_tokenizer), PAIRS, tmp_path) == 4


BROKEN = Document(id="broken", source="s0", content=(Image(data=b"no image", name="here"),))
MISSING = Document(id="missing", source="s0", content=(Image(path=Path("nowhere/1.png")),))
LINE = Document(id="line", source="s0", content=(Image(data=png(0, 300, 1)),))
MONOLOGUE = Document(id="monologue", source="s0", messages=(Turn("assistant", (Text("a"),)),))
BAD = [BROKEN, MISSING, LINE, MONOLOGUE]


@pytest.mark.parametrize("bad", BAD, ids=[document.id for document in BAD])
def test_an_invalid_document_stops_the_build(bad: Document, text_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with pytest.raises((ImageError, DocumentError)):
        build_shards([*PAIRS, bad], fake(text_tokenizer), tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_invalid_documents_are_dropped_and_listed(text_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    mixed = [PAIRS[0], BROKEN, PAIRS[1], MISSING, PAIRS[2], LINE, MONOLOGUE, PAIRS[3]]
    manifest = build_shards(mixed, fake(text_tokenizer), tmp_path, on_error="drop")
    assert [shard.dropped for shard in manifest.shards] == [{"unreadable": 2}] * 2
    assert manifest.total.num_sequences + sum(manifest.dropped.values()) == len(mixed)
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    drops = [json.loads(line) for line in lines]
    assert [drop["id"] for drop in drops] == ["broken", "missing", "line", "monologue"]
    assert drops[2]["detail"] == "a mere line"
    assert Manifest.load(tmp_path) == manifest
    good = build_shards(PAIRS[:4], fake(text_tokenizer), tmp_path / "good")
    assert manifest.total.num_tokens == good.total.num_tokens
    with_bad, alone = ShardReader(tmp_path), ShardReader(tmp_path / "good")
    for number in range(4):
        assert with_bad.read(number)[0].tolist() == alone.read(number)[0].tolist()


def test_noise_has_many_first_pixels() -> None:
    assert len({noise(number).getpixel((0, 0)) for number in range(10)}) == 10


def builder(tokenizers: Tokenizers, folder: Path, *, on_error: OnError = "raise") -> ShardBuilder:
    encoding = encoding_fingerprint(tokenizers.fingerprints)
    return ShardBuilder(DocumentEncoder(tokenizers), folder, encoding, on_error)


def test_a_shard_with_the_same_key_is_kept(tokenizers: Tokenizers, tmp_path: Path) -> None:
    made = builder(tokenizers, tmp_path).build("p", PAIRS[:3])
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = builder(tokenizers, tmp_path).build("p", PAIRS[:3], cached=made)
    assert again is made
    assert {path: path.stat().st_mtime_ns for path in times} == times
    other = builder(tokenizers, tmp_path).build("p", PAIRS[:2], cached=made)
    assert (other.key != made.key, other.shard.num_sequences) == (True, 2)


def test_dropped_documents_are_part_of_the_shard(tokenizers: Tokenizers, tmp_path: Path) -> None:
    drop = DroppedDocument(id="x", source="s", reason="too small", detail="3 px")
    plain = builder(tokenizers, tmp_path).build("p", PAIRS[:3])
    made = builder(tokenizers, tmp_path).build("p", PAIRS[:3], [drop], plain)
    assert (made.shard.dropped, made.shard.sources) == ({"too small": 1}, plain.shard.sources)
    assert builder(tokenizers, tmp_path).build("p", PAIRS[:3], (), made) == plain


def test_the_bytes_of_a_shard_by_hand(tmp_path: Path) -> None:
    writer = ShardWriter(SMALL)
    writer.add([0, 8, 4, 6, 7, 258, 2], [False, True, True, True, True, True, True], "b")
    writer.add([0, 2], [True, True], "a")
    shard = writer.write(tmp_path, "shard-00000-000")
    token_ids = b"\x00\x00\x08\x00\x04\x00\x06\x00\x07\x00\x02\x01\x02\x00" + b"\x00\x00\x02\x00"
    assert (tmp_path / "shard-00000-000.tokens").read_bytes() == token_ids
    ends = bytes([7]) + bytes(7) + bytes([9]) + bytes(7)
    assert (tmp_path / "shard-00000-000.offsets").read_bytes() == ends
    assert (tmp_path / "shard-00000-000.sources").read_bytes() == b"\x00\x00\x01\x00"
    assert (tmp_path / "shard-00000-000.loss_mask").read_bytes() == b"\x00" + b"\x01" * 8
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"shard-00000-000{suffix}" for suffix in (".crc32", ".loss_mask", ".offsets", ".sources", ".tokens")
    ]
    flags = b"\x00" + b"\x01" * 8
    checks = [zlib.crc32(token_ids[:14] + flags[:7]), zlib.crc32(token_ids[14:] + flags[7:])]
    written = (tmp_path / "shard-00000-000.crc32").read_bytes()
    assert written == b"".join(check.to_bytes(4, "little") for check in checks)
    assert shard.sources == {
        "b": SourceCounts(
            num_sequences=1,
            num_tokens=7,
            num_text_tokens=1,
            num_image_tokens=2,
            num_images=1,
            num_loss_tokens=6,
            max_length=7,
        ),
        "a": SourceCounts(num_sequences=1, num_tokens=2, num_loss_tokens=2, max_length=2),
    }
    assert (shard.num_sequences, shard.num_tokens, shard.dropped) == (2, 9, {})
    assert shard.sha256[".tokens"] == hashlib.sha256(token_ids).hexdigest()
    assert shard.sha256.keys() == {".tokens", ".loss_mask", ".offsets", ".sources", ".crc32"}


def test_a_wide_vocabulary_takes_four_bytes_an_id(tmp_path: Path) -> None:
    writer = ShardWriter(WIDE)
    writer.add([65_537], [True], "a")
    writer.write(tmp_path, "p")
    assert (tmp_path / "p.tokens").read_bytes() == b"\x01\x00\x01\x00"


def test_dropped_documents_are_listed_with_their_reasons(tmp_path: Path) -> None:
    writer = ShardWriter(SMALL)
    for id_, reason in [("d", "why"), ("ä", "other"), ("d", "why")]:
        writer.dropped.append(DroppedDocument(id=id_, source="s", reason=reason, detail="7 px"))
    shard = writer.write(tmp_path, "p")
    assert (shard.num_sequences, shard.num_tokens) == (0, 0)
    assert shard.dropped == {"other": 1, "why": 2}
    first, second, third = (tmp_path / "p.dropped").read_text(encoding="utf-8").splitlines()
    assert first == third == '{"id": "d", "source": "s", "reason": "why", "detail": "7 px"}'
    assert second == '{"id": "ä", "source": "s", "reason": "other", "detail": "7 px"}'


def test_a_shard_that_is_made_again_without_drops_lists_none(tmp_path: Path) -> None:
    writer = ShardWriter(SMALL, dropped=[DroppedDocument(id="d", source="s", reason="why", detail="")])
    writer.write(tmp_path, "p")
    assert ShardWriter(SMALL).write(tmp_path, "p").dropped == {}
    assert not (tmp_path / "p.dropped").exists()


def test_ids_and_flags_must_be_as_many() -> None:
    with pytest.raises(AssertionError):
        ShardWriter(SMALL).add([0, 2], [True], "a")
