"""Samples and events."""

import dataclasses

import pytest

from calumma.generate.events import End, Sample, TextPiece


def test_samples_and_events_are_immutable() -> None:
    sample = Sample(parts=["a"], prompt_token_ids=[0], token_ids=[20, 2], logprobs=[-1.0, -0.5], finish_reason="stop")
    assert sample.timings == {}
    assert End(sample).sample is sample
    with pytest.raises(dataclasses.FrozenInstanceError):
        TextPiece("a").text = "b"  # type: ignore[misc]
