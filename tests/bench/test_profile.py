"""Where the time of a step goes, from traces with known answers and from a real one of this CPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from helpers.bench import small_config
from helpers.recorded import Ran, recorded, write_trace

from rn50_jax.bench import cases, compiled, groups, hlo
from rn50_jax.bench import profile as profiles
from rn50_jax.bench.profile import IDLE, Event, share_out, summarize
from rn50_jax.bench.roofline import Ceiling
from rn50_jax.bench.tables import kernel_tables
from rn50_jax.config import loading as configs
from rn50_jax.errors import UserError

COMPUTE, COPIES = "Stream #13(Compute)", "Stream #15(MemcpyD2D,Memset)"


@pytest.mark.slow
def test_a_real_training_step(tmp_path: Path) -> None:
    # Seven classes, as in no other test: a kept program may have the names that an older version gave.
    config = configs.override(small_config(), [("model.num_classes", "7")])
    devices = jax.devices()[:1]
    text = compiled.make_program(config, "train", devices).compilation.compiled.as_text()
    case, ceiling = cases.Case("train", config.precision, config.batch_size, devices=1), Ceiling(1.0, 1000.0)
    result = cases.measure(config, case, steps=3, warmup=1, ceiling=ceiling, trace=tmp_path / "trace")
    found = result["profile"]
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert list(found["groups"]) == [*groups.GROUPS, IDLE]
    parts = found["groups"].values()
    assert sum(part["share"] for part in parts) == pytest.approx(1)
    assert sum(part["seconds"] for part in parts) == pytest.approx(found["step_seconds"])
    # The quick start's small convolutions are matrix products of patches; the stem stays a convolution.
    expected = {groups.CONV_FORWARD: 1, groups.CONV_KERNEL: 1, groups.CONV_INPUT: 0, groups.COLLECTIVE: 0}
    assert {group: found["groups"][group]["kernels"] for group in expected} == expected
    for group in (groups.DOT, groups.SUMS_FORWARD, groups.SUMS_BACKWARD, groups.POOL, groups.INPUT, groups.UPDATE):
        assert found["groups"][group]["seconds"] > 0, found["groups"]
    assert found["groups"][groups.OTHER]["kernels"] == 0
    parsed = hlo.parse_program(text)
    assert len(found["kernels"]) == 20
    seconds = [kernel["seconds"] for kernel in found["kernels"]]
    assert seconds == sorted(seconds, reverse=True)
    for kernel in found["kernels"]:
        assert kernel["count"] == 1
        assert kernel["bytes"] == hlo.bytes_of(parsed.instructions[kernel["name"]], parsed)
        assert kernel["gbytes_per_second"] == pytest.approx(kernel["bytes"] / kernel["seconds"] / 1e9)
        assert kernel["of_copy_ceiling"] == pytest.approx(kernel["gbytes_per_second"] / 1000)
    assert groups.SUMS_BACKWARD in kernel_tables(result)


def kernel_of(instruction: hlo.Instruction) -> str:
    """A name as GPUs give them: cuDNN's own, or after the instruction."""
    own = {
        "__cudnn$convForward": "sm90_xmma_fprop_implicit_gemm_bf16bf16",
        "__cudnn$convBiasActivationForward": "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_fprop>(Params)",
        "__cudnn$convBackwardInput": "sm90_xmma_dgrad_implicit_gemm_indexed_bf16bf16",
        "__cudnn$convBackwardFilter": "sm90_xmma_wgrad_implicit_gemm_indexed_bf16bf16",
    }
    return own.get(instruction.target, instruction.name.replace(".", "_").replace("-", "_"))


def test_the_recorded_program_on_two_gpus(tmp_path: Path) -> None:
    """Every kernel of ResNet-50's step, each with a time of its own; the second GPU takes twice as long."""
    program = hlo.parse_program(recorded("h100-train"))
    each = [i for i in program.computations[program.entry] if i.opcode not in groups.FREE]
    kinds = [group_of(i, program) for i in each]
    lengths = 1000 + 37 * np.arange(len(each)) % 501
    gaps = np.arange(len(each)) % 7 * 10
    gaps[0] = 50
    starts = np.cumsum(gaps + np.concatenate([[0], lengths[:-1]]))
    period = int(starts[-1] + lengths[-1])

    def run(scale: int) -> list[Ran]:
        ran = []
        for step in range(2):
            for number, (i, start, length) in enumerate(zip(each, starts, lengths, strict=True)):
                # Kernels in a CUDA graph have no op, and names that tell it.
                stats = {} if number % 3 == 0 and not i.target else {"hlo_op": i.name, "hlo_module": "jit_body"}
                stream = COPIES if i.opcode == "copy" else COMPUTE
                start, length = scale * (start + step * period), scale * length
                ran.append(Ran(stream, kernel_of(i), int(start), int(length), stats))
        ran.append(Ran(COMPUTE, "MemoryAlloc", 0, 5, {}))
        return [*ran, Ran("CUPTI overhead", "Buffer flush", 0, 10**6, {})]

    events = list(profiles.read_events(write_trace(tmp_path, [run(1), run(2)])))
    assert len(events) == 2 * 2 * 1108
    found = summarize(events, program, "train", 2, copy_gbytes_per_second=4000.0)

    # The mean over one and two times the same. The first gap of the first step comes before any kernel.
    wall = 1.5e-9 * (2 * period - 50) / 2
    assert found["step_seconds"] == pytest.approx(wall, rel=1e-6)
    for group in groups.GROUPS:
        mine = np.array([kind == group for kind in kinds])
        entry = found["groups"][group]
        assert entry["kernels"] == mine.sum()
        assert entry["seconds"] == pytest.approx(1.5e-9 * lengths[mine].sum(), rel=1e-6)
        assert entry["share"] == pytest.approx(entry["seconds"] / wall, rel=1e-6)
    idle = 1.5e-9 * (2 * gaps.sum() - 50) / 2
    assert found["groups"][IDLE] == {
        "seconds": pytest.approx(idle, rel=1e-4),
        "share": pytest.approx(idle / wall, rel=1e-4),
        "kernels": 0,
    }
    assert sum(entry["share"] for entry in found["groups"].values()) == pytest.approx(1)

    assert len(found["kernels"]) == 20
    assert [k["seconds"] for k in found["kernels"]] == pytest.approx(1.5e-9 * np.sort(lengths)[::-1][:20], rel=1e-6)
    for kernel in found["kernels"]:
        instruction = program.instructions[kernel["name"]]
        assert (kernel["kernel"], kernel["count"]) == (kernel_of(instruction), 1)
        assert kernel["bytes"] == hlo.bytes_of(instruction, program)
        assert kernel["gbytes_per_second"] == pytest.approx(kernel["bytes"] / kernel["seconds"] / 1e9)
        assert kernel["of_copy_ceiling"] == pytest.approx(kernel["gbytes_per_second"] / 4000)


def group_of(instruction: hlo.Instruction, program: hlo.Program) -> str:
    return groups.group_of_instruction(instruction, program, "train")


HLO = """
HloModule jit_step

%fused (p: bf16[8,500]) -> bf16[8,500] {
  %p = bf16[8,500]{1,0} parameter(0)
  ROOT %m = bf16[8,500]{1,0} maximum(%p, %p), metadata={op_name="jit(f)/jvp(network)/Mine/first/norm/max"}
}

ENTRY %main (a: bf16[8,500]) -> bf16[8,500] {
  %a = bf16[8,500]{1,0} parameter(0)
  %loop_maximum_fusion.12 = bf16[8,500]{1,0} fusion(%a), kind=kLoop, calls=%fused
  %cudnn-conv.3 = (bf16[8,500]{1,0}, u8[2000]{0}) custom-call(%a), custom_call_target="__cudnn$convForward"
  %all-reduce-start.1 = f32[1000]{0} all-reduce-start(%loop_maximum_fusion.12), to_apply=%add
  ROOT %while.2 = bf16[8,500]{1,0} while(%a), condition=%c, body=%b
}
"""


def test_a_step_counted_by_hand(tmp_path: Path) -> None:
    """One step of 1,000 ns: a convolution of two kernels, an all-reduce half under a fusion, and nothing for 250 ns."""
    conv, fusion, reduce = ({"hlo_op": op} for op in ("cudnn-conv.3", "loop_maximum_fusion.12", "all-reduce-start.1"))
    ran = [
        Ran(COMPUTE, "cudnn::nhwcAddPaddingKernel", 0, 100, conv),
        Ran(COMPUTE, "sm90_xmma_fprop_implicit_gemm", 100, 300, conv),
        Ran(COMPUTE, "loop_maximum_fusion_12", 500, 200, fusion),
        Ran("Stream #20(Compute)", "ncclDevKernel_AllReduce_Sum_f32_RING_LL", 600, 200, reduce),
        Ran(COMPUTE, "MemcpyD2H", 850, 50, {"hlo_op": "while.2"}),
        Ran(COMPUTE, "loop_maximum_fusion_12", 950, 40, {}),
        Ran(COMPUTE, "some_kernel", 990, 10, {"hlo_op": "of.another.module"}),
    ]
    events = list(profiles.read_events(write_trace(tmp_path, [ran])))
    found = summarize(events, hlo.parse_program(HLO), "train", 1, copy_gbytes_per_second=100.0)
    nanoseconds = {name: round(1e9 * g["seconds"], 3) for name, g in found["groups"].items() if g["seconds"]}
    assert round(1e9 * found["step_seconds"], 3) == 1000
    assert nanoseconds == {
        groups.CONV_FORWARD: 400,
        groups.NORM_FORWARD: 100 + 100 / 2 + 40,
        groups.COLLECTIVE: 100 / 2 + 100,
        groups.COPY: 50,
        groups.OTHER: 10,
        IDLE: 100 + 50 + 50,
    }
    assert {name: g["kernels"] for name, g in found["groups"].items() if g["kernels"]} == {
        groups.CONV_FORWARD: 2,
        groups.NORM_FORWARD: 2,
        groups.COLLECTIVE: 1,
        groups.COPY: 1,
        groups.OTHER: 1,
    }
    conv_bytes, fusion_bytes = 2 * 8000 + 2000, 2 * 8000
    assert found["kernels"][:3] == [
        {
            "name": "cudnn-conv.3",
            "kernel": "sm90_xmma_fprop_implicit_gemm",
            "group": groups.CONV_FORWARD,
            "count": 2,
            "seconds": pytest.approx(400e-9),
            "bytes": conv_bytes,  # it ran once
            "gbytes_per_second": pytest.approx(conv_bytes / 400),
            "of_copy_ceiling": pytest.approx(conv_bytes / 400 / 100),
        },
        {
            "name": "loop_maximum_fusion.12",
            "kernel": "loop_maximum_fusion_12",
            "group": groups.NORM_FORWARD,
            "count": 2,
            "seconds": pytest.approx(240e-9),
            "bytes": 2 * fusion_bytes,
            "gbytes_per_second": pytest.approx(2 * fusion_bytes / 240),
            "of_copy_ceiling": pytest.approx(2 * fusion_bytes / 240 / 100),
        },
        {
            "name": "all-reduce-start.1",
            "kernel": "ncclDevKernel_AllReduce_Sum_f32_RING_LL",
            "group": groups.COLLECTIVE,
            "count": 1,
            "seconds": pytest.approx(200e-9),
            "bytes": 8000 + 4000,
            "gbytes_per_second": pytest.approx(60),
            "of_copy_ceiling": pytest.approx(0.6),
        },
    ]
    assert found["kernels"][-1]["bytes"] is found["kernels"][-1]["of_copy_ceiling"] is None
    text = kernel_tables({"profile": found})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["convolution forward", "0.000", "40.0%", "2"] in rows
    assert ["idle", "0.000", "20.0%", "0"] in rows
    assert ["step", "0.001", "100.0%", "7"] in rows
    assert not any(row and row[0] == groups.POOL for row in rows)
    shown = "cudnn-conv.3: sm90_xmma_fprop_implicit_gemm"
    assert [shown, groups.CONV_FORWARD, "2", "0.000", "40.0%", "45.0", "45.0%"] in rows
    assert ["loop_maximum_fusion.12", groups.NORM_FORWARD, "2", "0.000", "24.0%", "133.3", "133.3%"] in rows
    assert ["of.another.module: some_kernel", groups.OTHER, "1", "0.000", "1.0%", "-", "-"] in rows


def test_without_a_ceiling_there_is_no_share_of_it() -> None:
    event = Event("", "loop_maximum_fusion_12", "", 0.0, 1e-6)
    found = summarize([event], hlo.parse_program(HLO), "train", 1)
    assert found["kernels"][0]["gbytes_per_second"] == pytest.approx(16)
    assert found["kernels"][0]["of_copy_ceiling"] is None


def test_a_loop_as_a_whole_does_not_count_beside_what_is_in_it() -> None:
    events = [Event("0", "while.2", "while.2", 0.0, 9.0), Event("0", "cudnn-conv.3", "cudnn-conv.3", 1.0, 3.0)]
    found = summarize(events, hlo.parse_program(HLO), "train", 1)
    assert found["step_seconds"] == 2.0 == found["groups"][groups.CONV_FORWARD]["seconds"]
    assert [(k["name"], k["count"], k["seconds"]) for k in found["kernels"]] == [("cudnn-conv.3", 1, 2.0)]


def test_overlapping_kernels_share_the_time() -> None:
    """Against a count of every single unit of time."""
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(0, 300, 40), rng.integers(0, 20, 40)
    keys = rng.choice(list("abc"), 40)
    ends = starts + lengths
    mine = share_out([(str(k), float(s), float(e)) for k, s, e in zip(keys, starts, ends, strict=True)])
    real = lengths > 0
    expected = dict.fromkeys(("a", "b", "c", ""), 0.0)
    for moment in range(starts[real].min(), ends.max()):
        running = keys[(starts <= moment) & (moment < ends)]
        for key in running:
            expected[str(key)] += 1 / len(running)
        expected[""] += not len(running)
    assert expected[""] > 0
    assert mine == pytest.approx(expected)


def test_a_trace_without_kernels_is_said_in_the_tables(tmp_path: Path) -> None:
    compilation = SimpleNamespace(compiled=SimpleNamespace(as_text=lambda: HLO))
    program: Any = SimpleNamespace(run=lambda _: None, images=1, compilation=compilation)
    speeds = {"images_per_second": 1.0, "copy_gbytes_per_second": None}
    found = profiles.profile(program, tmp_path, steps=1, mode="train", command_buffers=False, **speeds)["profile"]
    assert set(found) == {"dir", "steps", "error"}
    assert kernel_tables({"profile": found}).startswith("the profiler saw no kernels")


def test_a_folder_without_a_trace(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no trace"):
        profiles.newest_trace(tmp_path)
