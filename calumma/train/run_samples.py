"""Samples of a run: images of the same prompts while it trains, which its report shows as a strip.

RUN/samples/step-00000100/0.png, 1.png, ... hold one image per prompt, and the prompt as metadata.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import PIL.Image
from PIL.PngImagePlugin import PngInfo

from calumma.checkpoints.sampling_params import ImageSampling
from calumma.errors import ConfigError
from calumma.files import atomic_write, make_folder
from calumma.html_report import image_tag, scroll_region

MAX_SHOWN_STEPS = 10
"""Steps of a strip; of more steps, the first, the last, and others at equal distances are shown."""

_PROMPT_KEY = "prompt"
_MAX_STORED_SIDE = 128


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Images that are generated while a run trains."""

    interval: int = 0
    """Steps between two sets of images, the first before step 1, the last after the last step; 0
    generates none."""

    prompts: list[str] = field(default_factory=list)
    """Captions, held out from training; each is continued with an image."""

    seed: int = 0
    """Seed of every image."""

    image_sampling: ImageSampling = field(default_factory=ImageSampling)

    def __post_init__(self) -> None:
        if self.interval < 0 or (self.interval and not self.prompts):
            raise ConfigError(
                f"samples.interval={self.interval} with {len(self.prompts)} samples.prompts; expected at least 0, "
                "and captions to draw. Set samples.prompts."
            )


def samples_folder(run: Path, step: int) -> Path:
    """Return the folder of the images after a number of steps."""
    return run / "samples" / f"step-{step:08d}"


def write_step_samples(run: Path, step: int, images: Mapping[str, PIL.Image.Image]) -> None:
    """Write the image of each prompt, scaled down to the size of a strip; the last one is complete last."""
    folder = make_folder(samples_folder(run, step))
    for number, (prompt, image) in enumerate(images.items()):
        small = image.copy()
        small.thumbnail((_MAX_STORED_SIDE, _MAX_STORED_SIDE))
        info = PngInfo()
        info.add_itxt(_PROMPT_KEY, prompt)
        with atomic_write(folder / f"{number}.png") as temporary:
            small.save(temporary, "PNG", pnginfo=info)


def sample_steps(run: Path, max_step: int) -> list[int]:
    """Return the steps up to `max_step` that have images, in order."""
    steps = (int(folder.name.removeprefix("step-")) for folder in (run / "samples").glob("step-*"))
    return sorted(step for step in steps if step <= max_step)


def sample_strip(run: Path, max_step: int) -> str:
    """Return the images of a run as HTML, a row per prompt and a column per step; "" if it has none."""
    steps = _spread(sample_steps(run, max_step))
    columns = [_tags(run, step) for step in steps]
    prompts = list(columns[-1]) if columns else []
    if not prompts:
        return ""
    head = "".join(f'<th scope="col">step {step:,}</th>' for step in steps)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(prompt)}</th>'
        + "".join(f"<td>{column.get(prompt, '')}</td>" for column in columns)
        + "</tr>"
        for prompt in prompts
    )
    return scroll_region(f"<table><tr><td></td>{head}</tr>{rows}</table>", "Samples by step", "samples")


def _spread(steps: Sequence[int]) -> list[int]:
    if len(steps) <= MAX_SHOWN_STEPS:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(number * last / (MAX_SHOWN_STEPS - 1))] for number in range(MAX_SHOWN_STEPS)]


def _tags(run: Path, step: int) -> dict[str, str]:
    """Return the `<img>` of each prompt."""
    paths = sorted(samples_folder(run, step).glob("*.png"), key=lambda path: int(path.stem))
    return dict(_tag(path, path.stat().st_mtime_ns, step) for path in paths)


@lru_cache(maxsize=4096)
def _tag(path: Path, mtime_ns: int, step: int) -> tuple[str, str]:
    """Return the prompt and the `<img>` of a file; the time makes a rewritten file another key."""
    with PIL.Image.open(path) as image:
        prompt = str(image.info[_PROMPT_KEY])
        return prompt, image_tag(image, f"{prompt}, step {step}")


SAMPLE_STYLE = """\
.samples { overflow-x: auto; margin-bottom: 1.6rem }
.samples th { min-width: 4.6rem; max-width: 12rem; text-align: left; vertical-align: top; font-size: .85rem }
.samples th { font-weight: normal }
.samples [scope=row] { min-width: 9rem }
.samples td, .samples th { padding: .15rem .3rem }
.samples tr { border: 0 }
.samples img { display: block; width: 5rem; max-width: none; height: auto; image-rendering: pixelated;
  border-radius: 3px }
@media (max-width: 48rem) { .samples img { width: 4rem } .samples [scope=row] { min-width: 6.5rem } }
"""
"""Style sheet of a strip."""
