"""A sample on disk is a document that calumma reads again, and a page that tells no lies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from calumma.documents.document import Image, Text, document_from_json
from calumma.generate.sample import Sample
from calumma.generate.written import write_sample
from tests.pictures import noise, png

SAMPLE = Sample(
    parts=["<b>a</b> & ", noise(1), "end"],
    prompt_ids=[0, 20],
    ids=[21, 22, 2],
    logprobs=[-1.0, -2.0, -3.0],
    finish_reason="stop",
    timings={"first_token": 0.5, "total": 1.0},
)


def test_a_written_answer_is_a_document(tmp_path: Path) -> None:
    write_sample(tmp_path, [Text("see"), Image(data=png(2))], SAMPLE)
    record = json.loads((tmp_path / "document.json").read_text())
    first, drawn, last = document_from_json(record, tmp_path, "here").content
    assert (first, last) == (Text("<b>a</b> & "), Text("end"))
    assert isinstance(drawn, Image)
    assert drawn.open().tobytes() == noise(1).tobytes()
    assert record["prompt"] == ["see", "[picture]"]
    assert (record["finish_reason"], record["num_tokens"]) == ("stop", 3)
    assert record["timings"] == SAMPLE.timings


def test_the_page_shows_text_as_text_and_holds_its_pictures(tmp_path: Path) -> None:
    write_sample(tmp_path, [Text("<script>")], SAMPLE)
    page = (tmp_path / "document.html").read_text()
    assert "<b>a" not in page and "&lt;b&gt;a&lt;/b&gt; &amp; " in page
    assert "<script>" not in page
    assert page.count('src="data:image/png;base64,') == 1


def test_another_sample_in_the_same_folder_replaces_the_first(tmp_path: Path) -> None:
    write_sample(tmp_path, [Text("a")], SAMPLE)
    write_sample(tmp_path, [Text("a")], replace(SAMPLE, parts=["only words"]))
    record = json.loads((tmp_path / "document.json").read_text())
    assert record["content"] == [{"type": "text", "text": "only words"}]
    assert list((tmp_path / "images").iterdir()) == []
