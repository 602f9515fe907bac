"""What `loss.logits_precision` costs in accuracy: the contrastive loss and its gradients.

    python tests/benchmarks/logits_precision.py [--rows=2048] [--width=512] [--scales=14.3,50,100]

A TPU makes a float32 product of one, three or six products in bfloat16 (default, high, highest).
Other devices do not, so the products are put together here from parts in bfloat16 that are added up
in float32, both in the loss and in its backward pass, and compared with float64. Embeddings are of
unit length; each image has the cosine `--cosine` with its caption and none with the others.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

PARTS = {"default": 1, "high": 2, "highest": 3}  # bfloat16 numbers that a float32 one is split into


def split(values: jax.Array, count: int) -> list[jax.Array]:
    """Parts in bfloat16, the largest first, whose sum is close to the values."""
    parts = []
    for _ in range(count):
        part = values.astype(jnp.bfloat16)
        parts.append(part)
        values = values - part.astype(jnp.float32)
    return parts


def multiply(first: jax.Array, second: jax.Array, precision: str) -> jax.Array:
    """first @ second, of the 1, 3 or 6 largest products of parts."""
    count = PARTS[precision]
    left, right = split(first, count), split(second, count)
    products = [
        jnp.matmul(a, b, preferred_element_type=jnp.float32)
        for i, a in enumerate(left)
        for j, b in enumerate(right)
        if i + j < count
    ]
    return sum(reversed(products[:-1]), products[-1])  # the smallest first


def softmax_loss(logits, xp):
    """Mean of the losses over rows and over columns, and its gradient by the logits."""
    targets = xp.eye(len(logits), dtype=logits.dtype)
    loss, gradient = 0.0, 0.0
    for axis in (0, 1):
        shifted = logits - logits.max(axis=axis, keepdims=True)
        log_sum = xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))
        loss += (log_sum.mean() - xp.diagonal(shifted).mean()) / 2
        gradient += (xp.exp(shifted - log_sum) - targets) / (2 * len(logits))
    return loss, gradient


def measured(image, text, scale: float, precision: str) -> tuple[float, np.ndarray]:
    """The loss and its gradients by both embeddings, all products of this precision."""
    logits = scale * multiply(image, text.T, precision)
    loss, gradient = softmax_loss(logits, jnp)
    by_image = scale * multiply(gradient, text, precision)
    by_text = scale * multiply(gradient.T, image, precision)
    return float(loss), np.concatenate([by_image, by_text]).astype(np.float64)


def exact(image: np.ndarray, text: np.ndarray, scale: float) -> tuple[float, np.ndarray]:
    """The same in float64."""
    loss, gradient = softmax_loss(scale * image @ text.T, np)
    return float(loss), scale * np.concatenate([gradient @ text, gradient.T @ image])


def embeddings(rows: int, width: int, cosine: float) -> tuple[np.ndarray, np.ndarray]:
    """Of images and their captions, float32 [rows, width]."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, rows, width))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second -= (second * first).sum(axis=1, keepdims=True) * first
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    text = cosine * first + np.sqrt(1 - cosine**2) * second
    return first.astype(np.float32), text.astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--cosine", type=float, default=0.2)
    parser.add_argument("--scales", default="14.3,50,100")
    options = parser.parse_args()
    image, text = embeddings(options.rows, options.width, options.cosine)
    print("| scale | products | loss | its relative error | error of the gradient |")
    print("|---|---|---|---|---|")
    for scale in map(float, options.scales.split(",")):
        truth, gradient = exact(image.astype(np.float64), text.astype(np.float64), scale)
        for precision in PARTS:
            loss, found = measured(jnp.asarray(image), jnp.asarray(text), scale, precision)
            error = np.linalg.norm(found - gradient) / np.linalg.norm(gradient)
            relative = abs(loss - truth) / truth if truth else np.nan
            print(f"| {scale:g} | {precision} | {truth:.3g} | {relative:.1e} | {error:.1e} |")


if __name__ == "__main__":
    main()
