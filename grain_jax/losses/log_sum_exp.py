"""The log-sum-exp over a row or column of logits: what contrastive losses cost, in two forms."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grain_jax.losses.pairs import MASKED, Columns, Precision, Rows, cosines, left_out
from grain_jax.losses.tiled import Tiling, pair_sums


@dataclass(frozen=True)
class LogitsForm:
    """How logits are computed: all at once, or in tiles that are not kept.

    `axes`: mesh axes that the batch is split over; around them goes the ring of the tiled form.
    """

    tiled: bool = False
    axes: tuple[str, ...] = ()
    precision: Precision = "highest"


DENSE = LogitsForm()


def log_sum_exp(
    rows: Rows,
    columns: Columns,
    scale: Float[Array, ""],
    *,
    form: LogitsForm,
    with_own: bool = True,
    by_column: bool = False,
) -> tuple[Float[Array, "N"], Float[Array, "T"]]:
    """Of scale * cosine of the pairs that are not left out, over each row and over each column.

    Where nothing is left about `MASKED`. Without `by_column` the second is zeros. For `with_own`
    see `left_out`.
    """
    if form.tiled:
        tiling = Tiling(form.axes, form.precision, with_own=with_own, by_column=by_column)
        return pair_sums(tiling, rows, columns, scale)
    logits = scale * cosines(rows.embed, columns.embed, form.precision)
    logits = jnp.where(left_out(rows, columns, with_own=with_own), MASKED, logits)
    by_row = jax.nn.logsumexp(logits, axis=1)
    if not by_column:
        return by_row, jnp.zeros(columns.number.shape, jnp.float32)
    return by_row, jax.nn.logsumexp(logits, axis=0)
