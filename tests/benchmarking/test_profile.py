"""The page on where a step goes, of a traced program and of one that is written down."""

import jax
import jax.numpy as jnp
import pytest

from grain_jax.benchmarking.profile import (
    PAGE,
    Operation,
    Spent,
    page,
    part_of,
    read_operations,
    write_profile,
)

PROGRAM = """
HloModule jit_step

%fused_computation (p.0: f32[8,8]) -> f32[8] {
  %p.0 = f32[8,8]{1,0} parameter(0)
  ROOT %reduce.1 = f32[8]{0} reduce(%p.0, %c), dimensions={1}, to_apply=%add
}

%moved (p.1: f32[8,8]) -> f32[8,8] {
  %p.1 = f32[8,8]{1,0} parameter(0)
  ROOT %t = f32[8,8]{0,1} transpose(%p.1), dimensions={1,0}
}

ENTRY %main (a: f32[8,8]) -> f32[8] {
  %a = f32[8,8]{1,0} parameter(0)
  %dot.3 = f32[8,8]{1,0} dot(%a, %a), metadata={op_name="jit(step)/jvp(ImageTextModel)/vision/dot"}
  %gemm = f32[8,8]{1,0} custom-call(%a), custom_call_target="__cublas$gemm"
  %flash = (f32[8,8]{1,0}, u8[0]{0}) custom-call(%a), custom_call_target="__cudnn$fmhaSoftmax"
  %attention_forward.2 = (bf16[8,8]{1,0:T(8,128)(2,1)}, f32[8]{0}) custom-call(%a), \
custom_call_target="tpu_custom_call"
  %own.7 = bf16[8,8]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(step)/transpose(jvp(ImageTextModel))/vision/attention_backward"}
  %kernel = f32[8,8]{1,0} custom-call(%a), custom_call_target="tpu_custom_call"
  %all-reduce.1 = f32[8,8]{1,0} all-reduce(%dot.3), replica_groups={}, to_apply=%add
  %copied = f32[8,8]{1,0} fusion(%dot.3), kind=kLoop, calls=%moved
  %tanh.4 = f32[8,8]{1,0} tanh(%copied)
  %loop = f32[8,8]{1,0} while(%tanh.4), condition=%c, body=%b
  ROOT %sum = f32[8]{0} fusion(%loop), kind=kLoop, calls=%fused_computation
}
"""


def test_every_operation_has_a_kind():
    found = {name: one.kind for name, one in read_operations(PROGRAM).items()}
    assert found["dot.3"] == found["gemm"] == "matrix products"
    assert found["flash"] == "fused attention"
    assert found["attention_forward.2"] == found["own.7"] == "fused attention"
    assert found["kernel"] == "custom call tpu_custom_call"
    assert found["all-reduce.1"] == "collectives"
    assert found["copied"] == "copies and layout"
    assert found["tanh.4"] == "elementwise"
    assert found["sum"] == "reductions (norms, softmax, sums)"
    assert "loop" not in found  # what it holds is in the trace too
    assert read_operations(PROGRAM)["dot.3"].part == "image tower"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("jit(step)/transpose(jvp(ImageTextModel))/x.encode_images/vision/layer_1", "image tower"),
        ("jit(step)/jvp(ImageTextModel)/ImageTextModel.encode_images/decoder/norm", "decoder"),
        ("jit(step)/jvp(ImageTextModel)/text/layer_0/attention", "captions"),
        ("jit(step)/jvp(ImageTextModel)/x._encode_descriptions/text/layer_0", "descriptions"),
        ("jit(step)/transpose(jvp())/mul", "losses and matching"),
        ("jit(step)/sqrt", "optimizer and the rest"),
        ("", "not named"),
    ],
)
def test_the_part_of_a_step_is_read_from_the_name(name, part):
    assert part_of(name) == part


def test_the_columns_of_a_page_add_up():
    operations = {
        "a": Operation("matrix products", "decoder"),
        "b": Operation("elementwise", "decoder"),
    }
    text = page(
        Spent({"a": 0.6, "b": 0.2}, {"a": 4, "b": 2}), operations, step_seconds=0.5, num_steps=2
    )
    assert "| matrix products | 300.00 | 75.0% |" in text
    assert "| decoder | 400.00 | 100.0% |" in text
    assert "| `a` | matrix products | decoder | 2 | 300.00 | 75.0% |" in text
    assert "| 0 others | | | | 0.00 | 0.0% |" in text


def test_a_traced_program_gives_a_page_and_its_longest_operation(tmp_path):
    def products(x, w):
        return jnp.tanh(jnp.sin(x @ w) @ w).sum()

    x = jnp.ones((256, 256))
    compiled = jax.jit(products).lower(x, x).compile()
    jax.block_until_ready(compiled(x, x))
    path = write_profile(
        tmp_path,
        lambda: jax.block_until_ready([compiled(x, x) for _ in range(3)]),
        text=compiled.as_text(),
        num_steps=3,
    )
    assert path == tmp_path / PAGE
    text = path.read_text()
    assert "3 steps were traced" in text
    kinds = [line for line in text.splitlines() if line.startswith("| matrix products | ")]
    milliseconds = float(kinds[0].split("|")[2].replace(",", ""))
    assert milliseconds > 0.1  # 2 x 33 MFLOP: no processor does a TFLOP/s in one thread


def test_a_trace_without_the_program_is_refused(tmp_path):
    x = jnp.ones((4, 4))
    with pytest.raises(ValueError, match="no operation of the compiled step"):
        write_profile(tmp_path, lambda: jax.block_until_ready(x + x), text=PROGRAM, num_steps=1)
