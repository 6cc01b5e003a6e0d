"""The loops of measures."""

from __future__ import annotations

import numpy as np

from explorer.compiled import summing


@summing
def error_sums(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float, float, float]:
    """Sums over a signal and its quantized version, accumulated in float64, in one pass.

    Args:
        x: float32 ``(size,)``.
        y: float32 ``(size,)``.

    Returns:
        the sums of ``x**2``, ``(x - y)**2``, ``x * y`` and ``y**2``, and the largest ``|x - y|``; with NaN or infinity
        among the numbers the second is neither finite, and the third and the last say nothing.
    """
    signal = noise = cross = image = 0.0
    peak = np.float32(0)
    for i in range(len(x)):
        before, after = np.float64(x[i]), np.float64(y[i])
        error = x[i] - y[i]
        signal += before * before
        noise += np.float64(error) * np.float64(error)
        cross += before * after
        image += after * after
        peak = max(peak, abs(error))
    return signal, noise, cross, image, float(peak)
