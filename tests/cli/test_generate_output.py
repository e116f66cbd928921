"""Samples on disk: a document that calumma reads again, and an HTML page."""

import json
from dataclasses import replace
from pathlib import Path

from calumma.cli.generate_output import write_samples
from calumma.documents.document import Image, Text, document_from_json
from calumma.files import read_json
from calumma.generate.events import ImageCodes, Sample, TokenUsage
from calumma.vocabulary import TokenCounts
from tests.images import noise, png

SAMPLE = Sample(
    parts=["<b>a</b> & ", noise(1), "end"],
    prompt_token_ids=[0, 20],
    token_ids=[21, 22, 2],
    logprobs=[-1.0, -2.0, -3.0],
    finish_reason="stop",
    usage=TokenUsage(TokenCounts(text_tokens=2), TokenCounts(text_tokens=3)),
    timings={"time_to_first_token": 0.5, "latency": 1.0},
)


def write(folder: Path, prompt: list[Text | Image], *samples: Sample) -> None:
    write_samples(folder, prompt, samples, [{"seed": number} for number in range(len(samples))])


def test_a_written_sample_is_a_document(tmp_path: Path) -> None:
    write(tmp_path, [Text("see"), Image(data=png(2))], SAMPLE)
    record = json.loads((tmp_path / "document.json").read_text())
    first, image, last = document_from_json(record, tmp_path, "here").content
    assert (first, last) == (Text("<b>a</b> & "), Text("end"))
    assert isinstance(image, Image)
    assert image.open().tobytes() == noise(1).tobytes()
    assert record["prompt"] == ["see", "[image]"]
    assert (record["finish_reason"], record["num_tokens"]) == ("stop", 3)
    assert record["timings"] == SAMPLE.timings
    assert record["request"] == {"seed": 0}


def test_the_page_escapes_text_and_embeds_images(tmp_path: Path) -> None:
    write(tmp_path, [Text("<script>")], SAMPLE)
    page = (tmp_path / "document.html").read_text()
    assert "<b>a" not in page and "&lt;b&gt;a&lt;/b&gt; &amp; " in page
    assert "<script>" not in page
    assert page.count('src="data:image/png;base64,') == 1


def test_another_sample_in_the_same_folder_replaces_the_first(tmp_path: Path) -> None:
    write(tmp_path, [Text("a")], SAMPLE)
    write(tmp_path, [Text("a")], replace(SAMPLE, parts=["only words"]))
    record = json.loads((tmp_path / "document.json").read_text())
    assert record["content"] == [{"type": "text", "text": "only words"}]
    assert list((tmp_path / "images").iterdir()) == []


def test_the_page_shows_tokens_seconds_seed_and_finish_reason(tmp_path: Path) -> None:
    write(tmp_path, [Text("a")], SAMPLE)
    page = (tmp_path / "document.html").read_text()
    for fact in ("3 new tokens (3 text)", "1.00 s, 3 tokens/s", "first token after 0.50 s"):
        assert f"<span>{fact}</span>" in page
    for fact in ("2.00 nats per token", "finished", "seed 0"):
        assert f"<span>{fact}</span>" in page


def test_several_samples_have_a_folder_each_and_one_page(tmp_path: Path) -> None:
    write(tmp_path, [Text("a")], SAMPLE, replace(SAMPLE, parts=[]))
    for number, content in ((1, 3), (2, 0)):
        record = json.loads((tmp_path / str(number) / "document.json").read_text())
        assert len(record["content"]) == content
        assert record["request"] == {"seed": number - 1}
    page = (tmp_path / "document.html").read_text()
    assert "Answer 2 of 2" in page and '<p class="none">empty</p>' in page


def test_an_image_that_was_not_decoded_is_written_as_its_codes(tmp_path: Path) -> None:
    sample = Sample(
        parts=["here: ", ImageCodes((3, 1, 2, 0))],
        prompt_token_ids=[],
        token_ids=[],
        logprobs=[],
        finish_reason="stop",
    )
    write_samples(tmp_path, [Text("draw")], [sample], [{"seed": 0}])
    assert read_json(tmp_path / "document.json")["content"] == [
        {"type": "text", "text": "here: "},
        {"type": "image_codes", "codes": [3, 1, 2, 0]},
    ]
    assert "[image of 4 codes]" in (tmp_path / "document.html").read_text(encoding="utf-8")
