"""Where the faces of a picture are, by what a package ships: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image

from calumma.errors import ConfigError

FaceBox = tuple[float, float, float, float]
"""Left, top, right and bottom, as shares of a picture's width and height."""

FaceDetector = Callable[[PIL.Image.Image], list[FaceBox]]

MAX_FACES = 4
"""More faces than this in a picture are too small to matter; the largest are kept."""

_MAX_SIDE = 512
"""Pixels of the longer side at which faces are looked for."""

_MIN_FACE_SIZE = 24


def haar_face_detector() -> FaceDetector:
    """Faces by the frontal-face cascade of OpenCV (Viola and Jones, 2001).

    Raises:
        ConfigError: OpenCV is not installed, or is one without cascades.
    """
    try:
        import cv2
        from cv2.data import haarcascades

        name = str(Path(haarcascades) / "haarcascade_frontalface_default.xml")
        cascade = cv2.CascadeClassifier(name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            'regions.faces="haar" needs OpenCV 4 with its cascades, which is not installed. '
            "`pip install 'calumma[faces]'` brings it."
        ) from error

    def find(picture: PIL.Image.Image) -> list[FaceBox]:
        grey = picture.convert("L")
        grey.thumbnail((_MAX_SIDE, _MAX_SIDE))
        least = (_MIN_FACE_SIZE, _MIN_FACE_SIZE)
        found = cascade.detectMultiScale(np.asarray(grey), minNeighbors=5, minSize=least)
        largest = sorted(found, key=lambda box: -int(box[2]))[:MAX_FACES]
        width, height = grey.size
        return [
            (float(x / width), float(y / height), float((x + w) / width), float((y + h) / height))
            for x, y, w, h in largest
        ]

    return find
