"""The benchmark of quantization errors, on the tiny model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.model.decoder import Decoder

BENCH = Path(__file__).parents[2] / "benches" / "quantization_error.py"


def test_each_quantization_has_its_perplexities(model_parts: ModelComponents, shards: Path, tmp_path: Path) -> None:
    decoder = Decoder(replace(model_parts.decoder.config, model_dim=64, feed_forward_dim=64))
    decoder.init_weights(0)
    save_model(tmp_path, replace(model_parts, decoder=decoder))
    command = [sys.executable, BENCH, tmp_path, shards, "--num-sequences", "8", "--judge", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()[:-1]]
    assert [line["side"] for line in lines] == ["float32", "bfloat16", "int8", "int4"]
    assert (lines[0]["changed"], lines[0]["changed_text"]) == (0, 0)
    assert 0 < lines[3]["changed_text"] <= 1
    assert lines[2]["weight_bytes"] < lines[1]["weight_bytes"] < lines[0]["weight_bytes"]
    assert all(line["drawn"] == 0 for line in lines)
    assert all(line["text"] > 1 and line["image"] > 1 for line in lines)
