"""Synthetic photos for measurements: soft light, shapes and grain, so that their files have the size of real ones."""

import cv2
import numpy as np
import simplejpeg


def synthetic_photo(width: int, height: int, seed: int, quality: int = 85) -> bytes:
    """A JPEG file of about 0.15 to 0.3 bytes per pixel, like photos on the web."""
    rng = np.random.default_rng(seed)
    light = rng.integers(30, 225, (9, 12, 3), dtype=np.uint8)
    canvas = cv2.resize(light, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(24):
        colour = [int(value) for value in rng.integers(0, 255, 3)]
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        radius = int(rng.integers(min(width, height) // 40 + 1, min(width, height) // 6 + 2))
        if rng.random() < 0.5:
            cv2.circle(canvas, (x, y), radius, colour, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(canvas, (x, y), (x + radius, y + 2 * radius), colour, -1)
    grain = rng.normal(0.0, 5.0, (height // 2 + 1, width // 2 + 1, 1)).astype(np.float32)
    grain = cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR)
    noisy = np.clip(canvas.astype(np.float32) + grain[:, :, np.newaxis], 0, 255)
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(noisy.astype(np.uint8)), quality, "RGB", "420"
    )
