"""Over a hundred hostile image files on the way from a file of documents to shards."""

import base64
import json
from pathlib import Path

import pytest

from calumma.documents.readers import read_documents
from calumma.tokens.folder import Tokenizers
from tests.documents.hostile import hostile_files
from tests.shard_building import build_shards

HOSTILE = hostile_files()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_each_has_codes_or_is_in_the_quarantine_with_its_reason(tokenizers: Tokenizers, tmp_path: Path) -> None:
    lines = [
        json.dumps({
            "id": name,
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image", "base64": base64.b64encode(data).decode()},
            ],
        })
        for name, (data, _) in HOSTILE.items()
    ]  # fmt: skip
    (tmp_path / "documents.jsonl").write_text("\n".join(lines) + "\n")
    documents = read_documents([str(tmp_path / "documents.jsonl")])
    manifest = build_shards(documents, tokenizers, tmp_path / "shards", on_error="drop")
    quarantine = (tmp_path / "shards" / "quarantine.jsonl").read_text().splitlines()
    refused = {drop["id"]: drop for drop in map(json.loads, quarantine)}
    assert manifest.total.num_sequences + len(refused) == len(HOSTILE) >= 100
    for name, (_, fate) in HOSTILE.items():
        assert fate == "either" or (name in refused) == (fate == "refused"), name
    assert all(drop["detail"] and "\n" not in drop["detail"] for drop in refused.values())
