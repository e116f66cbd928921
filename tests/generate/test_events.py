"""What generation gives back."""

from __future__ import annotations

import dataclasses

import pytest

from calumma.generate.events import End, Sample, TextPiece


def test_a_sample_is_what_was_said() -> None:
    sample = Sample(
        parts=["a"],
        prompt_token_ids=[0],
        token_ids=[20, 2],
        logprobs=[-1.0, -0.5],
        finish_reason="stop",
    )
    assert sample.timings == {}
    assert End(sample).sample is sample
    with pytest.raises(dataclasses.FrozenInstanceError):
        TextPiece("a").text = "b"  # type: ignore[misc]
