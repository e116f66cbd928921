"""The config of the image tokenizer's network."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from calumma.errors import ConfigError

NORM_GROUPS = 32
"""Number of groups of every GroupNorm, as in the release; each width must be a multiple."""


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Everything that decides the shapes of the network's tensors, and the dropout.

    `VQConfig()` is the release's network (68.7 million parameters).

    >>> config = VQConfig()
    >>> config.downsampling, config.codes_per_side, config.codes_per_image
    (16, 32, 1024)
    >>> config.widths
    (128, 128, 256, 256, 512)
    """

    resolution: int = 512
    """Side in pixels of the square images it is trained on."""

    base_channels: int = 128
    """Number of channels at full resolution before the first multiplier."""

    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """One factor per level, from full resolution down; between levels the side is halved."""

    num_res_blocks: int = 2
    """Number of residual blocks per level of the encoder; the decoder has one more. With 0 the
    encoder keeps `base_channels`, and all multipliers but the last must be 1."""

    latent_channels: int = 256
    """Number of channels between encoder or decoder and the quantizer's projections."""

    code_dim: int = 256
    """Dimension of a codebook row."""

    num_codes: int = 8192
    """Number of rows of the codebook."""

    attention_resolutions: tuple[int, ...] = ()
    """Sides in pixels of the levels with attention after each block; the middle always has it."""

    dropout: float = 0.0
    """Dropout probability inside residual blocks in training."""

    encoder_context: Literal["image", "cell"] = "image"
    """Pixels that determine a code: the whole image, as in the release, whose norms and attention
    mix all cells; or the pixels of its own cell alone, so that equal cells have equal codes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        object.__setattr__(self, "attention_resolutions", tuple(self.attention_resolutions))
        self._require_positive()
        if self.encoder_context not in ("image", "cell"):
            raise ConfigError(f'encoder_context={self.encoder_context!r} is not known; expected "image" or "cell".')
        self._require_widths()
        self._require_resolution()

    def _require_positive(self) -> None:
        for name in ("resolution", "base_channels", "latent_channels", "code_dim", "num_codes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected at least 1.")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ConfigError(
                f"channel_multipliers={list(self.channel_multipliers)}; expected one whole number "
                "of at least 1 for each level, such as [1, 2, 4]."
            )
        if self.num_res_blocks < 0:
            raise ConfigError(f"num_res_blocks={self.num_res_blocks}; expected 0 or more.")
        if self.num_res_blocks == 0 and set(self.channel_multipliers[:-1]) - {1}:
            raise ConfigError(
                f"num_res_blocks=0 with channel_multipliers={list(self.channel_multipliers)}: an encoder without "
                "blocks cannot widen. Set num_res_blocks=1, or all multipliers but the last to 1."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout={self.dropout}; expected at least 0 and below 1.")

    def _require_widths(self) -> None:
        for width in (self.base_channels, *self.widths):
            if width % NORM_GROUPS:
                nearest = max(1, round(self.base_channels / NORM_GROUPS)) * NORM_GROUPS
                raise ConfigError(
                    f"base_channels={self.base_channels} gives a level of {width} channels, which {NORM_GROUPS} norm "
                    f"groups cannot share evenly; the nearest that works is base_channels={nearest}."
                )

    def _require_resolution(self) -> None:
        if self.resolution % self.downsampling:
            nearest = max(1, round(self.resolution / self.downsampling)) * self.downsampling
            raise ConfigError(
                f"resolution={self.resolution} cannot be halved {len(self.channel_multipliers) - 1} times; the "
                f"nearest that can is resolution={nearest}."
            )
        sides = tuple(self.resolution >> level for level in range(len(self.channel_multipliers)))
        for side in self.attention_resolutions:
            if side not in sides:
                raise ConfigError(
                    f"attention_resolutions names {side}, but the levels' sides are "
                    f"{', '.join(map(str, sides))}; name one of these."
                )

    @property
    def downsampling(self) -> int:
        """Side in pixels of the cell of one code."""
        halvings = len(self.channel_multipliers) - 1
        return 1 << halvings

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of channels of each level, from full resolution down."""
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multipliers)

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Number of channels of each encoder level: `widths`, unless there are no blocks."""
        if self.num_res_blocks:
            return self.widths
        return (self.base_channels,) * len(self.widths)

    @property
    def codes_per_side(self) -> int:
        """Number of cells along the side of an image."""
        return self.resolution // self.downsampling

    @property
    def codes_per_image(self) -> int:
        """Number of cells of an image."""
        return self.codes_per_side**2

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, without the default of `encoder_context`."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        if self.encoder_context == "image":
            del values["encoder_context"]  # the fingerprints of older tokenizers stay valid
        return values
