"""Face detection with a cascade that OpenCV ships: nothing is downloaded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image

from calumma.errors import ConfigError

FaceBox = tuple[float, float, float, float]
"""Left, top, right and bottom, as fractions of the image's width and height."""

FaceDetector = Callable[[PIL.Image.Image], list[FaceBox]]

MAX_FACES = 4
"""Maximum number of faces per image; the largest are kept."""

_MAX_SIDE = 512
"""Pixels of the longer side of the image that is searched."""

_MIN_FACE_SIZE = 24


def haar_face_detector() -> FaceDetector:
    """Return a detector with OpenCV's frontal-face cascade (Viola and Jones, 2001).

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
            'regions.faces="haar" needs OpenCV 4 with its cascades, which is not installed; '
            "expected it. Install it with `pip install 'calumma[faces]'`."
        ) from error

    def detect(image: PIL.Image.Image) -> list[FaceBox]:
        gray = image.convert("L")
        gray.thumbnail((_MAX_SIDE, _MAX_SIDE))
        min_size = (_MIN_FACE_SIZE, _MIN_FACE_SIZE)
        found = cascade.detectMultiScale(np.asarray(gray), minNeighbors=5, minSize=min_size)
        largest = sorted(found, key=lambda box: -int(box[2]))[:MAX_FACES]
        width, height = gray.size
        return [
            (float(x / width), float(y / height), float((x + w) / width), float((y + h) / height))
            for x, y, w, h in largest
        ]

    return detect
