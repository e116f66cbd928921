"""The bench of generation runs, its sides share one network, and they do the same work."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from benches.asked import Asked, Asker, Reply

from benches import generate
from benches.port import generating_port
from benches.release_loop import PlainNetwork
from calumma.model.decoder import Decoder
from calumma.vocabulary import Vocabulary

VOCABULARY = Vocabulary(num_codes=8, num_text=256)


def test_a_quick_run_tells_every_job_of_every_side(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--quick --size tiny --small-vocabulary --codes 6 --text 6"
    monkeypatch.setattr(sys, "argv", ["generate.py", *words.split()])
    generate.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["bench"] == "generate"
    assert set(told["ratio"]) == {"transformers", "release-like"}
    for side in (told["ours"], *told["peers"].values()):
        assert {"tokens_per_second", "seconds_per_image", "mixed_seconds_per_image"} <= set(side)
        assert {"text_tokens_per_second", "text_first_token_seconds"} <= set(side)
        assert 0 < side["text_bandwidth_share"] < 1


@torch.inference_mode()
def test_the_peers_networks_are_ours(decoder: Decoder) -> None:
    config = decoder.config
    port = generating_port(config, decoder.state_dict())
    rows = [[5, 9, 100, 7], [250, 3]]
    expected = [decoder(torch.tensor([row]))[0, -1] for row in rows]
    plain = PlainNetwork(port, rows=2, slots=4)
    plain.read([[5, 9, 100], [250]])
    halves = plain.read([[7], [3]])
    torch.testing.assert_close(halves, torch.stack(expected), atol=2e-4, rtol=1e-3)
    theirs = port(input_ids=torch.tensor([rows[0]])).logits[0, -1]
    torch.testing.assert_close(theirs, expected[0], atol=2e-4, rtol=1e-3)


def test_work_that_is_not_the_same_stops_the_bench() -> None:
    text, begin = VOCABULARY.text[0], VOCABULARY.begin_image
    one, other = ([generate.Told([0.1], [ids])] for ids in ([text, text], [text, begin]))
    generate.require_equal_work("text", {"ours": one, "peer": one}, VOCABULARY)
    with pytest.raises(SystemExit, match="text: the sides did not do the same work"):
        generate.require_equal_work("text", {"ours": one, "peer": other}, VOCABULARY)


def test_a_reply_closes_its_image_and_begins_no_second() -> None:
    reply = Reply(Asked((0,), text=2, images=1, at_once=True), VOCABULARY, codes_per_image=2)
    reply.begin()
    assert reply.codes_owed == 2
    for id_ in (4, 5):
        reply.add(id_)
    assert reply.ids == [VOCABULARY.begin_image, 4, 5, VOCABULARY.end_image]
    assert (reply.room, reply.codes_owed, reply.may_begin) == (2, 0, False)


def test_eight_requests_differ_and_are_the_same_next_time() -> None:
    job, again = (Asker(VOCABULARY, 4).jobs(text=8)["mixed"] for _ in range(2))
    assert job == again
    assert len({(len(one.ids), one.text, one.images, one.at_once) for one in job}) == 8
