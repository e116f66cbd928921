"""The image tokenizer benchmark runs and prints its result line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benches import encode_images
from calumma.tokens.image import ENCODE_BATCH_SIZE


def test_a_quick_run_ends_in_one_line_of_json() -> None:
    pytest.importorskip("transformers")
    words = ["--quick", "--images", "2", "--batch", "2", "--rounds", "1", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benches.encode_images", *words],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["bench"] == "encode_images" and line["codes_equal"] == 1.0
    assert set(line["peers"]) == {"transformers", "transformers-batched"}
    for measures in (line["ours"], *line["peers"].values()):
        assert measures["images_per_second"] > 0 and measures["fraction_of_limit"] > 0


@pytest.mark.parametrize(("precision", "compiled"), [("float32", False), ("bfloat16", True)])
def test_a_gpu_encodes_as_build_shards_does(precision: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["encode_images.py", "--precision", precision])
    args = encode_images.parse_arguments()
    assert (args.device, args.images, args.batch) == ("cuda", 512, ENCODE_BATCH_SIZE)
    assert (args.precision, args.compiled) == (precision, compiled)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = encode_images.parse_arguments()
    assert (args.device, args.images, args.batch, args.compiled) == ("cpu", 4, 4, False)
