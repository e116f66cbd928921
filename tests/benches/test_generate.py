"""The benchmark of generation: its sides share one network and do the same work."""

import json
import sys
from dataclasses import astuple

import pytest
import torch

from benches import generate
from benches.generation_requests import BenchRequest, OutputState, RequestGenerator
from benches.port import generating_port
from benches.release_loop import PlainNetwork
from calumma.generate.engine_defaults import resolve_engine_config
from calumma.generate.params import EngineConfig
from calumma.model.decoder import Decoder
from calumma.vocabulary import Vocabulary

VOCABULARY = Vocabulary(num_codes=8, num_text=256)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quick_run_measures_every_job_of_every_side(
    dtype: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--quick --size tiny --small-vocabulary --codes 6 --text 6 --dtype {dtype}"
    monkeypatch.setattr(sys, "argv", ["generate.py", *words.split()])
    generate.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["bench"] == "generate"
    assert set(result["ratio"]) == {"transformers", "release-like"}
    for side in (result["ours"], *result["peers"].values()):
        assert {"tokens_per_second", "seconds_per_image", "mixed_seconds_per_image"} <= set(side)
        assert {"text_tokens_per_second", "text_time_to_first_token_seconds"} <= set(side)
        assert 0 < side["text_bandwidth_fraction"] < 1


def test_peers_may_be_our_engine_with_other_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--quick --size tiny --small-vocabulary --codes 6 --text 6 --dtype float32 --peers bfloat16 int8"
    monkeypatch.setattr(sys, "argv", ["generate.py", *words.split()])
    generate.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["ratio"]) == {"bfloat16", "int8"}
    assert all(ratio["mixed_tokens_per_second"] > 0 for ratio in result["ratio"].values())


def test_our_side_is_what_the_product_does_on_the_device(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    for has_products, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(generate, "prefers_bfloat16_products", lambda *shape, found=has_products: found)
        arguments = generate.parse()
        assert (arguments.device, arguments.dtype, arguments.warmups) == ("cpu", dtype, 0)
    config = generate.our_config(arguments, decoder)
    # All eight requests run at once: for the rest it is the default.
    assert config == resolve_engine_config(
        EngineConfig(max_cached_tokens=65_536, enable_prefix_caching=False), decoder
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--no-cuda-graphs"])
    arguments = generate.parse()
    assert (arguments.device, arguments.dtype, arguments.warmups) == ("cuda", "bfloat16", 1)
    resolved: list[EngineConfig] = []
    monkeypatch.setattr(generate, "resolve_engine_config", lambda config, decoder: resolved.append(config) or config)
    generate.our_config(arguments, decoder)
    assert resolved == [EngineConfig(cuda_graphs=False, enable_prefix_caching=False)]


@torch.inference_mode()
def test_the_peers_networks_are_ours(decoder: Decoder) -> None:
    config = decoder.config
    port = generating_port(config, decoder.state_dict())
    rows = [[5, 9, 100, 7], [250, 3]]
    expected = [decoder(torch.tensor([row]))[0, -1] for row in rows]
    plain = PlainNetwork(port, rows=2, slots=4)
    plain.forward([[5, 9, 100], [250]])
    halves = plain.forward([[7], [3]])
    torch.testing.assert_close(halves, torch.stack(expected), atol=2e-4, rtol=1e-3)
    theirs = port(input_ids=torch.tensor([rows[0]])).logits[0, -1]
    torch.testing.assert_close(theirs, expected[0], atol=2e-4, rtol=1e-3)


def test_unequal_work_is_refused() -> None:
    text, begin = VOCABULARY.text[0], VOCABULARY.begin_image
    one, other = ([generate.JobOutput([0.1], [ids])] for ids in ([text, text], [text, begin]))
    generate.require_equal_work("text", {"ours": one, "peer": one}, VOCABULARY)
    with pytest.raises(SystemExit, match="text: the sides differ in their text tokens and codes"):
        generate.require_equal_work("text", {"ours": one, "peer": other}, VOCABULARY)


def test_an_output_closes_its_image_and_begins_no_second() -> None:
    request = BenchRequest((0,), num_text_tokens=2, num_images=1, image_first=True)
    output = OutputState(request, VOCABULARY, codes_per_image=2)
    output.start()
    assert output.num_codes_remaining == 2
    for id_ in (4, 5):
        output.append(id_)
    assert output.token_ids == [VOCABULARY.begin_image, 4, 5, VOCABULARY.end_image]
    assert (output.num_remaining, output.num_codes_remaining, output.may_begin_image) == (2, 0, False)


def test_eight_requests_differ_and_are_the_same_next_time() -> None:
    job, again = (RequestGenerator(VOCABULARY, 4).jobs(text=8)["mixed"] for _ in range(2))
    assert job == again
    assert len({astuple(one) for one in job}) == 8
