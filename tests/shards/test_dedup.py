"""Deduplication: the first of equal documents is kept, for any number of workers."""

import json
from pathlib import Path

import pytest

from calumma.documents.document import Document, Image, Text
from calumma.documents.document_filter import FilterConfig
from calumma.documents.writers import write_parquet
from calumma.files import read_json
from calumma.shards.cache import WORK_DIR
from calumma.shards.dedup import document_signatures, duplicate_path, signature_path, write_duplicates
from calumma.shards.executors import build_local
from calumma.shards.reader import ShardReader
from calumma.shards.tasks import BuildJob
from calumma.tokens.folder import Tokenizers
from tests.images import noise, png

RULES = FilterConfig(exact_duplicates=True, near_duplicates=True, min_chars=3)


def bmp(seed: int) -> Image:
    """Return the image `png(seed)` as another file."""
    import io

    file = io.BytesIO()
    noise(seed).save(file, "BMP")
    return Image(data=file.getvalue())


def document(number: int, text: str, *images: Image) -> Document:
    return Document(id=str(number), source="s", content=(Text(text), *images))


DOCUMENTS = [
    document(0, "x", Image(data=png(1))),  # too short: dropped, and no original of duplicates
    document(1, "one", Image(data=png(1))),
    document(2, "two", Image(data=png(2))),
    document(3, "two", Image(data=png(2))),  # an exact duplicate
    document(4, "text alone"),
    document(5, "another caption", bmp(1)),  # a near-duplicate of 1
    document(6, "text alone"),  # an exact duplicate
    document(7, "seven", Image(data=b"no image")),
    document(8, "eight", Image(data=png(8)), Image(data=png(2))),
]


def test_only_documents_kept_by_other_rules_have_signatures() -> None:
    made = document_signatures(DOCUMENTS[:5], RULES)
    assert [value is None for value in made["exact"]] == [True, False, False, False, False]
    assert [value is None for value in made["near"]] == [True, False, False, False, True]
    assert made["exact"][2] == made["exact"][3]
    assert document_signatures(DOCUMENTS[:2], FilterConfig()) == {"exact": [None] * 2, "near": [None] * 2}


def test_the_first_by_task_and_index_is_kept(tmp_path: Path) -> None:
    for number, values in enumerate([[7, 9, None, 7], [9, 3], [3, 7]]):
        path = signature_path(tmp_path, number)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"exact": values, "near": [None] * len(values)}))
    write_duplicates(tmp_path, 3)
    found = [read_json(duplicate_path(tmp_path, number)) for number in range(3)]
    assert found == [
        {"3": ["duplicate", 0, 0]},
        {"0": ["duplicate", 0, 1]},
        {"0": ["duplicate", 1, 1], "1": ["duplicate", 0, 0]},
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_filtered_build_accounts_for_every_document(workers: int, tokenizers: Tokenizers, tmp_path: Path) -> None:
    tokenizers.text.save(tmp_path / "tok")
    tokenizers.image.save(tmp_path / "tok")
    write_parquet(tmp_path / "docs" / "a.parquet", DOCUMENTS[:5])
    write_parquet(tmp_path / "docs" / "b.parquet", DOCUMENTS[5:])
    job = BuildJob(
        out=tmp_path / "out", tokenizers=tmp_path / "tok", documents_per_shard=2, on_error="drop", filters=RULES
    )
    manifest = build_local(job, [tmp_path / "docs"], workers)
    assert manifest.dropped == {"duplicate": 2, "near-duplicate": 1, "text too short": 1, "unreadable": 1}
    assert manifest.total.num_sequences + sum(manifest.dropped.values()) == len(DOCUMENTS)
    assert manifest.fingerprints["filters"] == RULES.fingerprint
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    details = {drop["id"]: drop["detail"] for drop in map(json.loads, lines)}
    assert details["0"] == "1 characters; expected at least 3"
    assert details["3"] == "of document 0 of task 1, both from 0"
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.name != WORK_DIR}
    assert build_local(job, [tmp_path / "docs"], 1) == manifest
    after = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.name != WORK_DIR}
    assert before == after
    assert len(ShardReader(tmp_path / "out")) == 4
