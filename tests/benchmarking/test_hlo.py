"""The reader of compiled programs: how XLA writes groups, loops and asynchronous work."""

import pytest

from grain_jax.benchmarking import hlo
from grain_jax.benchmarking.compiled_step import collectives, whole_bytes

PROGRAM = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
}

%second (p: f32[4]) -> f32[4] {
  %reduced = f32[4]{0} all-reduce(%p), channel_id=2, replica_groups=[2,2]<=[4], to_apply=%add
}

%turn (state: (f32[4])) -> (f32[4]) {
  %chosen = f32[4]{0} conditional(%c), branch_computations={%add, %second}
}

%until_six (state: (s32[], f32[4])) -> pred[] {
  %six = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[] compare(%i, %six), direction=LT
}

%turn_of_six (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %scattered = f32[4]{0} reduce-scatter(%p), channel_id=5, replica_groups=[2,2]<=[4], to_apply=%add
}

%turn_of_unknown (state: (f32[4])) -> (f32[4]) {
  %moved = f32[4]{0} collective-permute(%p), channel_id=3, source_target_pairs={{0,1},{1,0}}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %loop = (f32[4]) while(%t), body=%turn, backend_config={"known_trip_count":{"n":"4"}}
  %other = (f32[4]) while(%t), body=%turn_of_unknown
  %third = (s32[], f32[4]) while(%t), condition=%until_six, body=%turn_of_six
  ROOT %gathered = (f32[2]{0}, f32[8]{0}, u32[]) all-gather-start(%p), channel_id=4
}
"""


def test_a_collective_in_any_branch_within_a_loop_is_in_the_loop_and_counts_its_turns():
    found = {one.collective: one for one in hlo.instructions(PROGRAM) if one.collective}
    assert {name: (one.in_loop, one.turns) for name, one in found.items()} == {
        "all-reduce": (True, 4),
        "collective-permute": (True, None),
        "reduce-scatter": (True, 6),
        "all-gather": (False, 1),
    }
    assert found["all-gather"].num_bytes == 8 * 4


def test_an_asynchronous_reduction_of_several_arrays_makes_all_of_them():
    line = "  %r = (f32[4]{0}, bf16[6]{0}) all-reduce-start(%p)"
    assert (
        hlo.instructions(f"ENTRY %main (p: f32[4]) -> f32[4] {{\n{line}\n}}")[0].num_bytes
        == 4 * 4 + 6 * 2
    )


# As the compiler for GPUs writes them: operands and results in tuples of their own, and numbered.
ON_GPUS = """
ENTRY %main (p: f32[2]) -> f32[2] {
  %gather = ((f32[2,64]{1,0}, pred[2]{0}, /*index=5*/u32[2]{0}), (f32[16,64]{1,0}, pred[16]{0}, \
/*index=5*/u32[16]{0})) all-gather-start(%x, %y, /*index=5*/%z), channel_id=3, replica_groups=\
mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, dimensions={0}, use_global_device_ids=true
  %gathered = (f32[16,64]{1,0}, pred[16]{0}, /*index=5*/u32[16]{0}) all-gather-done(%gather)
  %scatter = ((f32[16]{0}), f32[2]{0}) reduce-scatter-start(%p), channel_id=5, replica_groups=\
mesh['axis_0'=8] {'axis_0'}, use_global_device_ids=true, dimensions={0}, to_apply=%add.clone
  %scattered = f32[2]{0} reduce-scatter-done(%scatter), metadata={scheduling_name="scattered"}
  %reduce = pred[] all-reduce-start(%q), channel_id=1, replica_groups=mesh['axis_0'=8] {'axis_0'}
  ROOT %reduced = pred[] all-reduce-done(%reduce)
}
"""


def test_collectives_of_gpus_are_counted_once_without_their_operands():
    found = {one.collective: one for one in collectives(ON_GPUS)}
    assert {name: one.num_bytes for name, one in found.items()} == {
        "all-gather": 16 * 64 * 4 + 16 + 16 * 4,
        "reduce-scatter": 2 * 4,
        "all-reduce": 1,
    }
    assert found["all-gather"].made[0] == ("f32", (16, 64))
    assert all(hlo.groups(one) == [list(range(8))] for one in found.values())
    assert whole_bytes(found["reduce-scatter"]) == 16 * 4


def test_reductions_of_shard_map_have_one_channel_on_gpus():
    reduce = "all-reduce-start(%p), channel_id=1, replica_groups={{0,1}}"
    lines = [f"  %r.{number} = f32[4]{{0}} {reduce}" for number in range(3)]
    program = "\n".join(["ENTRY %main (p: f32[4]) -> f32[4] {", *lines, "}"])
    assert len(collectives(program, repeated=False)) == 3
    assert len(collectives(program)) == 1


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
    ],
)
def test_groups_are_read_in_each_form(written, groups):
    text = f"%r = f32[4] all-reduce(%p), channel_id=1, replica_groups={written}, to_apply=%add"
    instruction = hlo.Instruction("all-reduce", (("f32", (4,)),), False, text)
    assert hlo.groups(instruction) == groups


def test_a_collective_that_continues_in_a_loop_is_done_once():
    """As the TPU compiler writes it: begun before a loop and continued in it, on one channel."""
    gather = "all-gather(%p), channel_id=7, replica_groups=[2,2]<=[4], dimensions={0}"
    program = f"""
%turn (state: (f32[4])) -> (f32[4]) {{
  %goes_on = f32[8]{{0}} {gather}
  %own = f32[8]{{0}} {gather.replace("channel_id=7", "channel_id=8")}
}}

ENTRY %main (p: f32[4]) -> f32[4] {{
  %begun = f32[8]{{0}} {gather}
  %loop = (f32[4]) while(%t), body=%turn, backend_config={{"known_trip_count":{{"n":"4"}}}}
}}
"""
    found = collectives(program)
    assert sorted((one.in_loop, one.turns) for one in found) == [(False, 1), (True, 4)]


def test_permutes_of_one_channel_are_all_counted():
    """As those of a loop in `shard_map` are compiled for TPUs: all on channel 1, one in parts."""
    pairs = "channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}"
    program = f"""
%turn (state: (f32[4])) -> (f32[4]) {{
  %begun = (f32[320,64]{{1,0}}, f32[320,64]{{1,0}}, u32[]) collective-permute-start(%p), {pairs}
  %other = f32[64,64]{{1,0}} collective-permute(%q), {pairs}
  %ended = f32[320,64]{{1,0}} collective-permute-done(%begun)
}}

ENTRY %main (p: f32[4]) -> f32[4] {{
  %loop = (f32[4]) while(%t), body=%turn, backend_config={{"known_trip_count":{{"n":"4"}}}}
}}
"""
    found = collectives(program)
    assert sorted(one.num_bytes * one.turns for one in found) == [4 * 64 * 64 * 4, 4 * 320 * 64 * 4]
