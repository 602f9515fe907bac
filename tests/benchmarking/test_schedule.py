"""What runs in a compiled step: bytes with turns, layouts and other memories, estimated cycles."""

import jax
import jax.numpy as jnp
import pytest

from grain_jax.benchmarking.schedule import read_schedule


def noted(name: str, cycles: int) -> str:
    config = f'{{"window_config":{{"estimated_cycles":"{cycles}"}}}}'
    return f'metadata={{op_name="jit(step)/{name}"}}, backend_config={config}'


COST = (
    'backend_config={"custom_call_config":{"cost_estimate":{"flops":"5000","transcendentals":"3",'
    '"bytes_accessed":"70"}}}'
)
PROJECTION = "decoder/self_attention/out/dot_general"
NEAR = "f32[8,128]{1,0:T(8,128)S(1)}"
PROGRAM = f"""HloModule step

%fused (p: f32[8,128]) -> f32[8,128] {{
  %p = f32[8,128]{{1,0:T(8,128)}} parameter(0)
  ROOT %c = f32[8,128]{{1,0:T(8,128)}} convolution(%p, %p)
}}

%condition (state: (s32[], f32[6,8,100])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant(6)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}}

%body (state: (s32[], f32[6,8,100])) -> (s32[], f32[6,8,100]) {{
  %stack = f32[6,8,100]{{2,1,0:T(8,128)}} get-tuple-element(%state), index=1
  %near = {NEAR} copy(%stack), {noted("vision/while", 10)}
  %exp = {NEAR} fusion(%near), calls=%fused2, {noted("vision/while/layers/attention/exp", 100)}
}}

ENTRY %main (p: f32[4]) -> f32[4] {{
  %p.1 = bf16[8,100]{{1,0:T(8,128)(2,1)}} parameter(0)
  %loop = (s32[], f32[6,8,100]) while(%t), condition=%condition, body=%body
  %out = f32[8,128]{{1,0:T(8,128)}} fusion(%p.1), calls=%fused, {noted(PROJECTION, 7)}
  %kernel = {NEAR} custom-call(%near), custom_call_target="tpu_custom_call", {COST}
}}
"""


def test_loops_padding_and_other_memories_are_counted():
    found = read_schedule(PROGRAM)
    stacked = 6 * 8 * 128 * 4  # one layer a turn, 100 numbers laid out as 128
    # And the few bytes that the loop's condition reads.
    assert found.num_bytes == pytest.approx(stacked + 8 * 128 * 2 + 8 * 128 * 4, abs=8)
    assert found.cycles == 6 * 110 + 7
    assert found.by_part == {
        "vision": {"copies": 60, "attention": 600},
        "decoder": {"products": 7},
    }
    assert (found.kernels, found.kernel_flops, found.kernel_bytes) == (1, 5000, 70)


def on_gpus(line: str) -> str:
    return f"""
ENTRY %main (p: f32[130,64]) -> f32[130,64] {{
  %p = f32[130,64]{{1,0}} parameter(0)
  %q = f32[64,64]{{1,0}} parameter(1)
  ROOT {line}
}}
"""


CUBLAS = 'custom_call_target="__cublas$lt$matmul"'


@pytest.mark.parametrize(
    ("line", "expected"),
    [  # numbers of four bytes
        (
            f"%a = (f32[130,64]{{1,0}}, s8[33554432]{{0}}) custom-call(%p, %q), {CUBLAS}",
            2 * 130 * 64 + 64 * 64,
        ),
        (f"%a = f32[130,64]{{1,0}} custom-call(%p, %q), {CUBLAS}", 2 * 130 * 64 + 64 * 64),
        (
            '%a = (f32[130,64]{1,0}, s8[64]{0}) custom-call(%p), custom_call_target="other"',
            2 * 130 * 64 + 16,
        ),
        (
            "%a = ((f32[130,64]{1,0}), f32[1040,64]{1,0}) all-gather-start(%p), channel_id=1",
            130 * 64 + 1040 * 64,
        ),
        ("%a = f32[130,64]{1,0} all-reduce-start(%p), channel_id=1", 2 * 130 * 64),
        ("%a = f32[130,64]{1,0} all-reduce-done(%p)", 0),
    ],
)
def test_on_gpus_no_workspace_is_counted_and_no_operand_twice(line, expected):
    """cuBLAS takes room that the program gives with its results: 32 MiB for each product."""
    assert read_schedule(on_gpus(line)).num_bytes == 4 * expected


def test_a_scan_moves_its_stacked_weights_once():
    """Against what the program has to move: XLA's own count takes a loop as one turn."""
    layers, rows, width = 6, 256, 512

    def stack(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    shapes = jnp.zeros((rows, width)), jnp.zeros((layers, width, width))
    found = read_schedule(jax.jit(stack).lower(*shapes).compile().as_text())
    weights, state = layers * width * width * 4, rows * width * 4
    assert found.cycles is None
    # Weights in; the product out, in and out again; copies of the state at the ends.
    assert weights + layers * 2 * state <= found.num_bytes <= 2 * weights + layers * 8 * state


@pytest.mark.parametrize("text", ["", "HloModule empty\n"])
def test_what_is_no_program_is_refused(text):
    with pytest.raises(ValueError, match="no compiled program"):
        read_schedule(text)
