"""The network's shape: what follows from it, and what cannot be built."""

import pytest
import torch

from calumma.errors import ConfigError
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel


def test_the_defaults_are_the_release() -> None:
    with torch.device("meta"):
        network = VQModel(VQConfig())
    counts = [
        sum(p.numel() for p in part.parameters())
        for part in (network.encoder, network.decoder, network.quantizer, network)
    ]
    assert [round(count / 1e6, 2) for count in counts] == [27.19, 39.29, 2.10, 68.72]


def test_cells_follow_from_the_levels() -> None:
    config = VQConfig(resolution=48, channel_multipliers=(1, 1, 2, 4))
    assert (config.downsampling, config.codes_per_side, config.codes_per_image) == (8, 6, 36)


def test_lists_from_a_file_are_kept_as_tuples() -> None:
    config = VQConfig(channel_multipliers=[1, 2], attention_resolutions=[256])  # type: ignore[arg-type]
    assert config == VQConfig(channel_multipliers=(1, 2), attention_resolutions=(256,))
    assert config.to_json()["channel_multipliers"] == [1, 2]


def test_the_default_context_is_not_written_so_that_old_fingerprints_stay_valid() -> None:
    assert "encoder_context" not in VQConfig().to_json()
    cell = VQConfig(encoder_context="cell")
    assert cell.to_json()["encoder_context"] == "cell"
    assert VQConfig(**cell.to_json()) == cell


REFUSALS = {
    "context": ({"encoder_context": "row"}, 'encoder_context=\'row\' is not known; expected "image" or "cell".'),
    "codes": ({"num_codes": 0}, "num_codes=0; expected at least 1."),
    "no levels": (
        {"channel_multipliers": ()},
        "channel_multipliers=[]; expected one whole number of at least 1 for each level, such as [1, 2, 4].",
    ),
    "blocks": ({"num_res_blocks": -1}, "num_res_blocks=-1; expected 0 or more."),
    "no blocks to widen": (
        {"num_res_blocks": 0, "channel_multipliers": (1, 2, 4)},
        "num_res_blocks=0 with channel_multipliers=[1, 2, 4]: an encoder without blocks cannot "
        "widen. Set num_res_blocks=1, or all multipliers but the last to 1.",
    ),
    "dropout": ({"dropout": 1.0}, "dropout=1.0; expected at least 0 and below 1."),
    "widths": (
        {"base_channels": 40},
        "base_channels=40 gives a level of 40 channels, which 32 norm groups cannot share evenly; "
        "the nearest that works is base_channels=32.",
    ),
    "resolution": (
        {"resolution": 500},
        "resolution=500 cannot be halved 4 times; the nearest that can is resolution=496.",
    ),
    "attention": (
        {"attention_resolutions": (100,)},
        "attention_resolutions names 100, but the levels' sides are 512, 256, 128, 64, 32; name one of these.",
    ),
}


@pytest.mark.parametrize(("fields", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_built_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VQConfig(**fields)  # type: ignore[arg-type]
    assert str(caught.value) == message
