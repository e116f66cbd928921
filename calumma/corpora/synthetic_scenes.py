"""The eight colors and the shapes of synthetic images, drawn here."""

import io

import PIL.Image
import PIL.ImageDraw

GROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (240, 140, 30),
    "yellow": (250, 218, 60),
    "green": (60, 165, 80),
    "blue": (60, 110, 215),
    "purple": (135, 75, 185),
    "black": (30, 30, 34),
    "white": (250, 250, 250),
}
"""The eight RGB colors of grounds and shapes, 0 to 255."""

SHAPES = ("circle", "square", "triangle", "ring", "cross", "diamond")

_OVERSAMPLING = 4
"""Factor by which shapes are drawn larger before they are scaled down, for smooth edges."""


def indefinite_article(word: str) -> str:
    """Return the indefinite article of a word.

    >>> indefinite_article("orange"), indefinite_article("blue")
    ('an', 'a')
    """
    return "an" if word[0] in "aeiou" else "a"


def draw_shape(name: str, color: tuple[int, int, int], box: int) -> PIL.Image.Image:
    """Draw one of `SHAPES` as a transparent RGBA image of `box` x `box` pixels."""
    size = box * _OVERSAMPLING
    drawn = PIL.Image.new("RGBA", (size, size), (*color, 0))
    pen = PIL.ImageDraw.Draw(drawn)
    edge, full = size - 1, (*color, 255)
    third = size // 3
    if name == "circle":
        pen.ellipse((0, 0, edge, edge), fill=full)
    elif name == "square":
        pen.rectangle((0, 0, edge, edge), fill=full)
    elif name == "triangle":
        pen.polygon([(edge / 2, 0), (edge, edge), (0, edge)], fill=full)
    elif name == "diamond":
        pen.polygon([(edge / 2, 0), (edge, edge / 2), (edge / 2, edge), (0, edge / 2)], fill=full)
    elif name == "ring":
        pen.ellipse((0, 0, edge, edge), fill=full)
        hole = size // 4
        pen.ellipse((hole, hole, edge - hole, edge - hole), fill=(*color, 0))
    else:
        assert name == "cross", name
        pen.rectangle((third, 0, edge - third, edge), fill=full)
        pen.rectangle((0, third, edge, edge - third), fill=full)
    return drawn.resize((box, box), PIL.Image.Resampling.LANCZOS)


def encode_fast_png(image: PIL.Image.Image) -> bytes:
    """Encode an image as PNG with the fastest compression."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=False, compress_level=1)
    return file.getvalue()
