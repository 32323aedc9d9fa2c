"""The sample's network in plain numpy: forwards, backwards, one step of learning.

Invariant: images are [N, 1, 8, 8], scores [N, 10]; the weights lie as matrices with one column an output. Knows neither
the data set nor ONNX (`sample.py`). Imported only when training starts, for it needs numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


class Network:
    """Two 3 x 3 convolutions, a 2 x 2 maximum, two dense layers; softmax cross-entropy; Adam."""

    def __init__(self, generator: np.random.Generator, filters: tuple[int, int], hidden: int) -> None:
        def he(rows: int, columns: int) -> Array:
            return generator.standard_normal((rows, columns), np.float32) * np.float32(np.sqrt(2.0 / rows))

        first, second = filters
        self.weights: list[Array] = [he(9, first), he(9 * first, second), he(second * 16, hidden), he(hidden, 10)]
        self.biases: list[Array] = [np.zeros(w.shape[1], np.float32) for w in self.weights]
        self._adam = [
            (parameter, np.zeros_like(parameter), np.zeros_like(parameter)) for parameter in self.weights + self.biases
        ]
        self._steps = 0

    def scores(self, images: Array) -> Array:
        """Return the ten scores of each image: [N, 1, 8, 8] -> [N, 10]."""
        scores: Array = self._forward(images)[-1]
        return scores

    def _forward(self, images: Array) -> list[Any]:
        n = len(images)
        columns_1 = _columns(images.transpose(0, 2, 3, 1))
        relu_1 = np.maximum(columns_1 @ self.weights[0] + self.biases[0], 0)
        columns_2 = _columns(relu_1.reshape(n, 8, 8, -1))
        relu_2 = np.maximum(columns_2 @ self.weights[1] + self.biases[1], 0)
        squares = relu_2.reshape(n, 4, 2, 4, 2, -1).transpose(0, 1, 3, 5, 2, 4).reshape(n, 4, 4, -1, 4)
        winners = squares.argmax(axis=-1)
        pooled = np.take_along_axis(squares, winners[..., None], axis=-1)[..., 0]
        flat = pooled.transpose(0, 3, 1, 2).reshape(n, -1)  # channels first, as ONNX's Flatten will see it
        relu_3 = np.maximum(flat @ self.weights[2] + self.biases[2], 0)
        return [columns_1, relu_1, columns_2, relu_2, winners, flat, relu_3, relu_3 @ self.weights[3] + self.biases[3]]

    def step(self, images: Array, labels: npt.NDArray[np.int64], rate: float) -> None:
        """Change the weights once by what ``images`` teach."""
        n = len(images)
        columns_1, relu_1, columns_2, relu_2, winners, flat, relu_3, scores = self._forward(images)
        exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
        slope = exponents / exponents.sum(axis=1, keepdims=True)
        slope[np.arange(n), labels] -= 1
        slope /= n

        weight_slopes: list[Array] = [slope] * 4
        bias_slopes: list[Array] = [slope] * 4
        weight_slopes[3], bias_slopes[3] = relu_3.T @ slope, slope.sum(axis=0)
        slope = (slope @ self.weights[3].T) * (relu_3 > 0)
        weight_slopes[2], bias_slopes[2] = flat.T @ slope, slope.sum(axis=0)
        slope = (slope @ self.weights[2].T).reshape(n, -1, 4, 4).transpose(0, 2, 3, 1)
        squares = np.zeros((*slope.shape, 4), np.float32)
        np.put_along_axis(squares, winners[..., None], slope[..., None], axis=-1)
        slope = squares.reshape(n, 4, 4, -1, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(n * 64, -1) * (relu_2 > 0)
        weight_slopes[1], bias_slopes[1] = columns_2.T @ slope, slope.sum(axis=0)
        slope = _fold(slope @ self.weights[1].T, n).reshape(n * 64, -1) * (relu_1 > 0)
        weight_slopes[0], bias_slopes[0] = columns_1.T @ slope, slope.sum(axis=0)

        self._steps += 1
        scale = rate * np.sqrt(1 - 0.999**self._steps) / (1 - 0.9**self._steps)
        for (parameter, mean, square), gradient in zip(self._adam, weight_slopes + bias_slopes, strict=True):
            mean += 0.1 * (gradient - mean)
            square += 0.001 * (gradient * gradient - square)
            parameter -= (scale * mean / (np.sqrt(square) + 1e-8)).astype(np.float32)


def _columns(images: Array) -> Array:
    """Return the 3 x 3 neighbourhood of each pixel (im2col, zeros outside): [N, 8, 8, C] -> [N * 64, 9 * C]."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [padded[:, y : y + 8, x : x + 8, :] for y in range(3) for x in range(3)]
    return np.concatenate(parts, axis=-1).reshape(len(images) * 64, -1)


def _fold(columns: Array, n: int) -> Array:
    """Return the sum of overlapping neighbourhoods, the reverse of `_columns`: [N * 64, 9 * C] -> [N, 8, 8, C]."""
    parts = columns.reshape(n, 8, 8, 9, -1)
    padded = np.zeros((n, 10, 10, parts.shape[-1]), np.float32)
    for place in range(9):
        y, x = divmod(place, 3)
        padded[:, y : y + 8, x : x + 8, :] += parts[:, :, :, place, :]
    return padded[:, 1:9, 1:9, :]


def shift(generator: np.random.Generator, images: Array) -> Array:
    """Return ``images``, each moved by up to one pixel, so that the network learns shapes and not places."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    shifted = np.empty_like(images)
    for row, (y, x) in enumerate(generator.integers(0, 3, size=(len(images), 2))):
        shifted[row] = padded[row, :, y : y + 8, x : x + 8]
    return shifted
