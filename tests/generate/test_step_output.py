"""Copies to a device and back, and placeholders; the device is the CPU here."""

import torch

from calumma.generate.params import Request
from calumma.generate.request import RequestState
from calumma.generate.step_output import SampledGroup, StepOutput, resolve_placeholders
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=4, num_text=6)


def states(count: int) -> list[RequestState]:
    return [RequestState.from_request(Request(prompt_token_ids=(V.bos,)), V, 3, 64) for _ in range(count)]


def test_each_request_gets_its_samples_in_order() -> None:
    one, other, third = states(3)
    output = StepOutput(
        [
            SampledGroup([(other, 1), (other, 0)], torch.tensor([4, 5]), torch.tensor([-1.0, -2.0])),
            SampledGroup([(one, 0), (third, 0)], torch.tensor([12, 13]), torch.tensor([-3.0, -4.0])),
        ]
    )
    assert output.requests == [other, one, third]
    output.requests.remove(one)
    assert output.get_output() == [(other, [4, 5], [-1.0, -2.0], [{}, {}]), (third, [13], [-4.0], [{}])]
    assert StepOutput().get_output() == []


def test_placeholders_are_resolved_by_batch_slot() -> None:
    last_token_ids = torch.tensor([11, 12, 13])
    ids = torch.tensor([[0, ~0, 7], [~2, ~1, 2]])
    assert resolve_placeholders(ids, last_token_ids).tolist() == [[0, 11, 7], [13, 12, 2]]
