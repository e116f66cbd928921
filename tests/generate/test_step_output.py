"""What goes to a device and what comes back from it; here the device is the host itself."""

from __future__ import annotations

import torch

from calumma.generate.params import Request
from calumma.generate.request import RequestState
from calumma.generate.step_output import (
    SampledGroup,
    StepOutput,
    resolve_placeholders,
    to_device_async,
)
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=4, num_text=6)


def states(count: int) -> list[RequestState]:
    return [
        RequestState.from_request(Request(prompt_token_ids=(V.bos,)), V, 3, 64)
        for _ in range(count)
    ]


def test_each_work_is_told_its_own_draws_in_order() -> None:
    one, other, third = states(3)
    drawn = StepOutput(
        [
            SampledGroup(
                [(other, 1), (other, 0)], torch.tensor([4, 5]), torch.tensor([-1.0, -2.0])
            ),
            SampledGroup(
                [(one, 0), (third, 0)], torch.tensor([12, 13]), torch.tensor([-3.0, -4.0])
            ),
        ]
    )
    assert drawn.requests == [other, one, third]
    drawn.requests.remove(one)
    assert drawn.get_output() == [(other, [4, 5], [-1.0, -2.0]), (third, [13], [-4.0])]
    assert StepOutput().get_output() == []


def test_what_a_host_sends_is_what_the_device_has() -> None:
    values = torch.tensor([[1, 2], [3, 4]])
    assert to_device_async(values, torch.device("cpu")).tolist() == [[1, 2], [3, 4]]
    assert to_device_async(values, torch.device("meta")).is_meta


def test_an_id_that_the_device_alone_knows_is_put_in_by_its_seat() -> None:
    latest = torch.tensor([11, 12, 13])
    ids = torch.tensor([[0, ~0, 7], [~2, ~1, 2]])
    assert resolve_placeholders(ids, latest).tolist() == [[0, 11, 7], [13, 12, 2]]
