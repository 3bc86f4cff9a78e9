"""The groups of kernels, on a real trace of this CPU and on the names that GPUs give."""

from pathlib import Path

import jax
import pytest
from test_bench_parts import small_config

from rn50_jax.bench import cases
from rn50_jax.bench import profile as profiles
from rn50_jax.bench.profile import COLLECTIVE, CONV, COPY, NORM, OTHER, UPDATE, Event
from rn50_jax.bench.tables import kernel_tables
from rn50_jax.errors import UserError


@pytest.mark.slow
def test_a_real_training_step(tmp_path: Path) -> None:
    program = cases.make_program(small_config(), "train", jax.devices()[:1])
    text = program.compiled.as_text()
    found = profiles.profile(program.run, text, tmp_path / "trace", steps=3, mode="train")
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert set(found["groups"]) == set(profiles.GROUPS)
    for group in (CONV, NORM, UPDATE):
        assert found["groups"][group] > 0, found["groups"]
    parsed = profiles.parse_program(text)
    events = profiles.read_events(profiles.newest_trace(tmp_path / "trace"))
    groups = [group for event in events if (group := profiles.group_of(event, parsed, "train"))]
    assert groups.count(OTHER) < 0.3 * len(groups), found
    assert sum(found["groups"].values()) == pytest.approx(found["kernel_seconds"])
    assert len(found["kernels"]) == 20
    seconds = [kernel["seconds"] for kernel in found["kernels"]]
    assert seconds == sorted(seconds, reverse=True)
    assert all(kernel["name"] in parsed and kernel["count"] == 3 for kernel in found["kernels"])
    assert CONV in kernel_tables(found)


HLO = """
HloModule jit_step

%fused_computation.7 (param_0: bf16[8,64], param_1: f32[64]) -> bf16[8,64] {
  %param_0 = bf16[8,64]{1,0} parameter(0)
  %param_1 = f32[64]{0} parameter(1)
  %multiply.1 = bf16[8,64]{1,0} multiply(%param_0, %param_0), metadata={op_name="jit(f)/jvp(ResNet)/bn1/mul"}
  ROOT %maximum.2 = bf16[8,64]{1,0} maximum(%multiply.1, %param_0), metadata={op_name="jit(f)/jvp(ResNet)/max"}
}

%fused_computation.8 (param_0.1: f32[64]) -> f32[64] {
  %param_0.1 = f32[64]{0} parameter(0)
  ROOT %subtract.9 = f32[64]{0} subtract(%param_0.1, %param_0.1), metadata={op_name="jit(f)/sub"}
}

%fused_computation.9 (param_0.2: bf16[8,64]) -> bf16[64,8] {
  %param_0.2 = bf16[8,64]{1,0} parameter(0)
  ROOT %transpose.3 = bf16[64,8]{1,0} transpose(%param_0.2), dimensions={1,0}
}

ENTRY %main.5 (arg: bf16[8,64]) -> bf16[8,64] {
  %arg = bf16[8,64]{1,0} parameter(0)
  %loop_maximum_fusion.12 = bf16[8,64]{1,0} fusion(%arg), kind=kLoop, calls=%fused_computation.7
  %loop_subtract_fusion = f32[64]{0} fusion(%arg), kind=kLoop, calls=%fused_computation.8
  %input_transpose_fusion.1 = bf16[64,8]{1,0} fusion(%arg), kind=kInput, calls=%fused_computation.9
  %cudnn-conv.3 = (bf16[8,64]{1,0}, u8[0]{0}) custom-call(%arg), custom_call_target="__cudnn$convForward"
  %all-reduce.1 = f32[64]{0} all-reduce(%loop_subtract_fusion), to_apply=%add
  ROOT %while.2 = bf16[8,64]{1,0} while(%arg), condition=%c, body=%b
}
"""


@pytest.mark.parametrize(
    ("kernel", "op", "group"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16", "cudnn-conv.3", CONV),
        ("loop_maximum_fusion_12", "", NORM),  # a CUDA graph's kernel: only its name tells
        ("loop_maximum_fusion_12", "loop_maximum_fusion.12", NORM),
        ("loop_subtract_fusion", "loop_subtract_fusion", UPDATE),
        ("input_transpose_fusion_1", "", COPY),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "all-reduce.1", COLLECTIVE),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "", COLLECTIVE),
        ("sm80_xmma_wgrad_implicit_gemm_indexed", "", CONV),
        ("nvjet_hsh_128x64", "", CONV),
        ("MemcpyD2D", "", COPY),
        ("some_kernel", "", OTHER),
        ("while", "while.2", None),
    ],
)
def test_names_of_gpus(kernel: str, op: str, group: str | None) -> None:
    assert profiles.group_of(Event(kernel, op, 1.0), profiles.parse_program(HLO), "train") == group


def test_containers_do_not_count_twice() -> None:
    events = [Event("a", "while.2", 5.0), Event("b", "cudnn-conv.3", 2.0), Event("b", "cudnn-conv.3", 1.0)]
    found = profiles.summarise(events, profiles.parse_program(HLO), "train")
    assert found["kernel_seconds"] == 3.0
    assert [(k["name"], k["count"], k["seconds"]) for k in found["kernels"]] == [("cudnn-conv.3", 2, 3.0)]


def test_a_folder_without_a_trace(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no trace"):
        profiles.newest_trace(tmp_path)
