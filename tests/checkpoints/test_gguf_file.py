"""GGUF files: every tensor and token is read back, and llama.cpp computes the same where it is installed."""

import json
import struct
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import calumma
from calumma.checkpoints.gguf_file import write_gguf
from calumma.checkpoints.hf_qwen3 import qwen3_tensors
from calumma.checkpoints.model_folder import ModelComponents, open_model_folder, save_model
from calumma.cli.main import main
from calumma.errors import CheckpointError
from calumma.model.decoder import Decoder

TEXTS = ["a large red circle, isn't it?", "123 times\n\ttabs    spaces  two", "äöü 猫 [x] = 12.5;"]


@pytest.fixture(scope="module")
def folder(model_parts: ModelComponents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    decoder = Decoder(replace(model_parts.decoder.config, qk_norm="rms"))
    decoder.init_weights(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
    folder = tmp_path_factory.mktemp("gguf") / "model"
    save_model(folder, replace(model_parts, decoder=decoder.eval().requires_grad_(False)))
    return folder


class Reader:
    """Reads the metadata and the tensors of a GGUF file in order."""

    def __init__(self, path: Path) -> None:
        self.data, self.position = path.read_bytes(), 4
        assert self.data[:4] == b"GGUF"
        version, num_tensors, num_values = self.unpack("IQQ")
        assert version == 3
        self.metadata = {self.string(): self.value(*self.unpack("I")) for _ in range(num_values)}
        entries = {}
        for _ in range(num_tensors):
            name, (dims,) = self.string(), self.unpack("I")
            entries[name] = (self.unpack(f"{dims}Q")[::-1], *self.unpack("IQ"))
        start = -(-self.position // 32) * 32
        self.tensors = {}
        for name, (shape, kind, offset) in entries.items():
            assert kind == 0 and offset % 32 == 0
            values = np.frombuffer(self.data, np.float32, int(np.prod(shape)), start + offset)
            self.tensors[name] = torch.from_numpy(values.reshape(shape).copy())

    def unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.position)
        self.position += struct.calcsize("<" + layout)
        return values

    def string(self) -> str:
        (length,) = self.unpack("Q")
        self.position += length
        return self.data[self.position - length : self.position].decode()

    def value(self, kind: int) -> Any:
        if kind == 8:
            return self.string()
        if kind == 9:
            item, count = self.unpack("IQ")
            return [self.value(item) for _ in range(count)]
        return self.unpack({4: "I", 5: "i", 6: "f", 7: "?"}[kind])[0]


def test_every_tensor_and_token_is_in_the_file(folder: Path, tmp_path: Path) -> None:
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "gguf"]) == 0
    found = Reader(tmp_path / "out" / "model.gguf")
    model = open_model_folder(folder)
    config, vocabulary = model.decoder_config, model.text_tokenizer.vocabulary
    expected = qwen3_tensors(model)
    assert len(found.tensors) == len(expected) == 3 + 11 * config.num_layers
    pairs = {"token_embd": "model.embed_tokens", "blk.1.attn_k_norm": "model.layers.1.self_attn.k_norm"}
    pairs |= {
        "blk.0.ffn_down": "model.layers.0.mlp.down_proj",
        "blk.1.ffn_norm": "model.layers.1.post_attention_layernorm",
    }
    for ours, theirs in pairs.items():
        assert torch.equal(found.tensors[f"{ours}.weight"], expected[f"{theirs}.weight"].read())
    values = found.metadata
    assert values["qwen3.block_count"] == config.num_layers
    assert values["qwen3.attention.head_count_kv"] == config.num_kv_heads
    assert values["qwen3.rope.freq_base"] == config.rope_theta
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == config.vocabulary_size
    assert [tokens.index(text) for text in ("a", "Ġ")] == [
        model.text_tokenizer.tokenizer.token_to_id(text) for text in ("a", "Ġ")
    ]
    assert types[vocabulary.bos] == types[vocabulary.codes.start] == 3
    assert types[vocabulary.text.start] == 1


def test_other_decoders_and_tokenizers_are_refused(
    folder: Path, model_parts: ModelComponents, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "layer", model_parts)
    assert main(["convert", str(tmp_path / "layer"), str(tmp_path / "out"), "--to", "gguf"]) == 2
    assert 'has qk_norm = "layer"; expected "rms" for Qwen3' in capsys.readouterr().err
    model = open_model_folder(folder)
    tokenizer = json.loads(model.tokenizer_json) | {"pre_tokenizer": {"type": "ByteLevel"}}
    with pytest.raises(CheckpointError) as error:
        write_gguf(tmp_path / "model.gguf", replace(model, tokenizer_json=json.dumps(tokenizer)))
    assert str(error.value) == (
        "a text tokenizer with the steps of no sequence; expected Split, Digits, Punctuation, ByteLevel, which "
        "llama.cpp has. Use --to qwen3."
    )
    assert not (tmp_path / "model.gguf").exists()


def test_llama_cpp_has_the_same_tokens_and_probabilities(folder: Path, tmp_path: Path) -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    write_gguf(tmp_path / "model.gguf", open_model_folder(folder))
    model = calumma.load(folder, device="cpu", dtype="float32")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(tmp_path / "model.gguf"), 128, 1
    params.cpuparams.n_threads, params.warmup, params.verbosity = 1, False, -1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)

    def post(path: str, body: Any) -> Any:
        request = urllib.request.Request(
            server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    num_compared = 0
    for text in TEXTS:
        ids = [model.vocabulary.bos, *model.text.encode(text)]
        assert post("/tokenize", {"content": text, "add_special": True, "parse_special": False})["tokens"] == ids
        sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 1}
        answer = post(
            "/completion", {"prompt": ids, "n_predict": 1, "n_probs": len(model.vocabulary.text), **sampling}
        )
        logprobs = torch.log_softmax(model.logits(ids)[0, -1], dim=-1)
        for each in answer.get("completion_probabilities", [{"top_logprobs": []}])[0]["top_logprobs"]:
            assert each["logprob"] == pytest.approx(float(logprobs[each["id"]]), abs=1e-4)
            num_compared += 1
    assert num_compared > 300
