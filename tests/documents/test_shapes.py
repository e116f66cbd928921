"""What other programs write is read with nothing lost: `datasets`, WebDataset and img2dataset."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calumma.documents.column_account import ColumnAccount
from calumma.documents.document import Document
from calumma.documents.readers import read_documents
from tests.documents.image_files import BLUE, RED, png

IMAGES = [png(color, (side, side)) for color, side in (("red", 5), ("green", 6), ("blue", 7))]
CAPTIONS = ["a red square", "a green square", "a blue square"]


def require_complete(path: Path, num_documents: int = 3) -> list[Document]:
    """Read a path, and require each image and caption once, with their bytes."""
    documents = list(read_documents([path]))
    account = ColumnAccount()
    for document in documents:
        account.update(document.account)
    account.require_complete(str(path))
    found = Counter(image.read_bytes() for document in documents for image in document.images)
    assert len(documents) == num_documents
    assert found == Counter(IMAGES)
    assert sorted(text for document in documents for text in document.text.split("\n")) == sorted(CAPTIONS)
    assert account.total("image") == 3
    return documents


def dataset() -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    rows = [
        {"image": {"bytes": data, "path": None}, "text": text} for data, text in zip(IMAGES, CAPTIONS, strict=True)
    ]
    return datasets.Dataset.from_list(rows, features=features)


def to_parquet(folder: Path) -> None:
    dataset().to_parquet(str(folder / "train.parquet"))


def save_to_disk(folder: Path) -> None:
    dataset().save_to_disk(str(folder / "saved"), num_shards=2)


def push_to_hub_layout(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "README.md").write_text("---\nconfigs: []\n---\n")
    for number in range(2):
        shard = dataset().shard(2, number)
        shard.to_parquet(str(folder / "data" / f"train-{number:05d}-of-00002.parquet"))


def to_json(folder: Path) -> None:
    rows = [{"file_name": f"{n}.png", "text": text} for n, text in enumerate(CAPTIONS)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, data in enumerate(IMAGES):
        (folder / f"{number}.png").write_bytes(data)


def img2dataset_files(folder: Path) -> None:
    (folder / "00000").mkdir()
    for key, data, meta in img2dataset_samples():
        (folder / "00000" / f"{key}.jpg").write_bytes(data)
        (folder / "00000" / f"{key}.txt").write_text(meta["caption"])
        (folder / "00000" / f"{key}.json").write_text(json.dumps(meta))
    (folder / "00000_stats.json").write_text("{}")


def img2dataset_samples() -> list[tuple[str, bytes, dict[str, Any]]]:
    return [
        (f"{n:09d}", data, {
            "caption": text, "url": f"https://x/{n}.jpg", "key": f"{n:09d}", "status": "success",
            "error_message": None, "width": 5, "height": 5, "original_width": 9, "original_height": 9,
            "exif": '{"Image Make": "A camera of make"}', "sha256": "ab",
        })
        for n, (data, text) in enumerate(zip(IMAGES, CAPTIONS, strict=True))
    ]  # fmt: skip


def img2dataset_parquet(folder: Path) -> None:
    rows = [{**meta, "jpg": data} for _, data, meta in img2dataset_samples()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")


def img2dataset_tar(folder: Path) -> None:
    members: list[tuple[str, bytes]] = []
    for key, data, meta in img2dataset_samples():
        members += [(f"{key}.jpg", data), (f"{key}.txt", meta["caption"].encode())]
        members.append((f"{key}.json", json.dumps(meta).encode()))
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def shard_writer(folder: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="not a test dependency; img2dataset_tar has its layout")
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=2, verbose=0) as writer:
        for number, (data, text) in enumerate(zip(IMAGES, CAPTIONS, strict=True)):
            writer.write(
                {"__key__": f"{number:06d}", "png": data, "txt": text, "json": {"caption": text, "n": number}}
            )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "write",
    [to_parquet, save_to_disk, push_to_hub_layout, to_json, img2dataset_files, img2dataset_parquet, img2dataset_tar,
     shard_writer],
)  # fmt: skip
def test_what_other_programs_write_is_read_with_nothing_lost(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    require_complete(tmp_path)


KNOWN_SHAPES: dict[str, tuple[dict[str, Any], int, int]] = {
    "C4": ({"text": "a", "timestamp": "2019-04-25T12:57:54Z", "url": "https://x/y"}, 0, 1),
    "LAION from img2dataset": ({"jpg": RED, "caption": "a", "url": "https://x/1.jpg", "width": 4, "key": "1"}, 1, 1),
    "DataComp from img2dataset": (
        {"uid": "1", "jpg": RED, "text": "a", "url": "https://x/1.jpg", "clip_l14_similarity_score": 0.3}, 1, 1),
    "OBELICS": ({"texts": ["a", None, "b"], "images": [None, RED, None], "metadata": "[]"}, 1, 2),
    "MINT-1T": ({"texts": [None, "a"], "images": [RED, None], "url": "https://x/y"}, 1, 1),
    "MMC4": ({"text_list": ["a", "b"], "image_info": [{"image_name": "1.png", "matched_text_index": 1}]}, 1, 2),
    "LLaVA": ({"id": "1", "image": "1.png", "conversations": [{"from": "human", "value": "<image>\na"},
              {"from": "gpt", "value": "b"}]}, 1, 2),
    "ShareGPT4V": ({"image": RED, "conversations": [{"from": "human", "value": "a\n<image>"}]}, 1, 1),
    "LlamaFactory": ({"images": [RED], "messages": [{"role": "user", "content": "<image>a"}], "system": "s"}, 1, 1),
    "VQA": ({"image": RED, "question": "a", "answers": [{"answer": "b"}, {"answer": "b"}], "question_id": 7}, 1, 2),
    "the Cauldron": ({"images": [RED, BLUE], "texts": [{"user": "a", "assistant": "b", "source": "x"}]}, 2, 2),
    "ChartQA": ({"image": RED, "query": "a", "label": ["b"], "human_or_machine": 0}, 1, 2),
    "COCO captions": ({"image": RED, "captions": ["a", "b"], "image_id": 7}, 1, 2),
    "Alpaca": ({"instruction": "a", "input": "b", "output": "c"}, 0, 2),
}  # fmt: skip
"""A record of each shape, with the numbers of its images and of the texts of its document."""


@pytest.mark.parametrize("name", KNOWN_SHAPES)
def test_a_line_of_each_known_shape(name: str, tmp_path: Path) -> None:
    record, num_images, num_texts = KNOWN_SHAPES[name]
    (tmp_path / "1.png").write_bytes(RED)
    if RED in [each for value in record.values() for each in (value if isinstance(value, list) else [value])]:
        pq.write_table(pa.Table.from_pylist([record]), tmp_path / "d.parquet")
    else:
        (tmp_path / "d.jsonl").write_text(json.dumps(record))
    [document] = read_documents([f"{tmp_path}/d.*"])
    if name != "LlamaFactory":
        document.account.require_complete(name)
    assert len(document.images) == num_images
    assert len([part for part in document.parts() if not hasattr(part, "path")]) == num_texts
