"""What each kernel of real programs for a GPU does, and the bytes that it touches."""

from collections import Counter
from collections.abc import Iterator

import pytest
from helpers.recorded import excerpt, recorded

from rn50_jax.bench import groups, hlo
from rn50_jax.bench.groups import group_of_instruction, group_of_kernel

BATCH = 256


def kernels(program: hlo.Program, names: list[str]) -> Iterator[hlo.Instruction]:
    for name in names:
        for each in program.computations[name]:
            if each.opcode not in groups.FREE | groups.CONTAINERS:
                yield each


def count(text: str, mode: str) -> dict[str, tuple[int, float]]:
    """Kernels and megabytes per image of each group."""
    program = hlo.parse_program(text)
    numbers, touched = Counter[str](), Counter[str]()
    for each in kernels(program, [program.entry]):
        group = group_of_instruction(each, program, mode)
        numbers[group] += 1
        touched[group] += hlo.bytes_of(each, program)
    return {group: (numbers[group], round(touched[group] / BATCH / 1e6, 1)) for group in groups.GROUPS}


def layers() -> Iterator[tuple[int, int, int, int, int]]:
    """ResNet-50's convolutions: pixels of a side and channels before and after, size of the kernel."""
    yield 224, 4, 112, 64, 7  # of four channels, one of them padding
    side, channels = 56, 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            after = side // 2 if stage > 0 and block == 0 else side
            yield side, channels, side, width, 1
            yield side, width, after, width, 3
            yield after, width, after, 4 * width, 1
            if block == 0:
                yield side, channels, after, 4 * width, 1
            side, channels = after, 4 * width


def megabytes(convolutions: list[tuple[int, int, int, int, int]]) -> float:
    """Input, output and kernel once each, in bf16, per image."""
    pixels = sum(h * h * c + k * k * m for h, c, k, m, _ in convolutions)
    return (2 * pixels + 2 * sum(size**2 * c * m for _, c, _, m, size in convolutions) / BATCH) / 1e6


def block_inputs() -> float:
    """What enters the 16 blocks, in bf16: megabytes per image."""
    pixels = 56**2 * (64 + 2 * 256 + 256) + 28**2 * (3 * 512 + 512) + 14**2 * (5 * 1024 + 1024) + 7**2 * 2 * 2048
    return 2 * pixels / 1e6


def test_the_training_step_for_a_gpu() -> None:
    found = count(recorded("h100-train"), "train")
    assert sum(number for number, _ in found.values()) == 1108
    assert found[groups.OTHER] == found[groups.COLLECTIVE] == (0, 0)
    every = list(layers())
    assert len(every) == 53
    assert found[groups.CONV_FORWARD] == (53, pytest.approx(megabytes(every), abs=0.06))
    assert found[groups.CONV_KERNEL] == (53, pytest.approx(megabytes(every), abs=0.06))
    # Each block's last one reads what it adds to: the gradient that came by the other way.
    assert found[groups.CONV_INPUT] == (52, pytest.approx(megabytes(every[1:]) + block_inputs(), abs=0.06))
    # 53 layers of two kernels each, since the sums are split; and as many small ones for means and factors, or fewer.
    for sums in (groups.SUMS_FORWARD, groups.SUMS_BACKWARD):
        assert 106 <= found[sums][0] <= 106 + 2 * 53
    outputs = sum(2 * k * k * m for _, _, k, m, _ in every) / 1e6
    assert found[groups.SUMS_FORWARD][1] == pytest.approx(outputs, abs=0.3)  # each output read once
    assert (
        found[groups.NORM_FORWARD][0] == 53 - 1 - 4
    )  # the stem's is fused with its pooling, a downsampling's is with bn3
    assert found[groups.POOL] == (4, 6.9)
    assert found[groups.INPUT] == (1, pytest.approx((3 + 2 * 4) * 224**2 / 1e6, abs=0.06))  # uint8 in, four of bf16 out
    assert found[groups.UPDATE][1] == pytest.approx(25.6e6 * (4 * 4 + 2) / BATCH / 1e6, abs=0.3)


def test_the_inference_step_for_a_gpu() -> None:
    found = {group: numbers for group, numbers in count(recorded("h100-infer"), "infer").items() if numbers[0]}
    of_images = (3 + 2 * 4) * 224**2 / 1e6
    assert {group: number for group, (number, _) in found.items()} == {
        groups.CONV_FORWARD: 53,
        groups.DOT: 1,
        groups.POOL: 2,
        groups.INPUT: 1,
        groups.LOSS: 1,
        groups.COPY: 1,  # the stem's kernel gets its fourth channel
    }
    assert found[groups.INPUT][1] == pytest.approx(of_images, abs=0.06)


def test_mixup_loss_scale_and_moving_averages() -> None:
    program = hlo.parse_program(recorded("h100-mixup-fp16"))
    # But what a reduction or a sort does to two numbers, which has no path.
    traced = [name for name, body in program.computations.items() if any("/" in i.path for i in body)]
    found = [(group_of_instruction(i, program, "train"), i) for i in kernels(program, traced)]
    assert not [i for group, i in found if group == groups.OTHER]
    entry = set(program.computations[program.entry])
    paths = {path for group, i in found if group == groups.INPUT and i in entry for path in [i.path]}
    assert any("/augment/jit(_shuffle)/sort" in path for path in paths)
    assert all(group == groups.INPUT for group, i in found if "/augment/" in i.path and "while/" not in i.path)
    loops = [i for i in program.computations[program.entry] if i.opcode == "while"]
    assert loops, "mixup draws its coefficient in a loop"
    assert Counter(group for group, i in found if i in entry and "convolution" in group) == {
        groups.CONV_FORWARD: 9,
        groups.CONV_INPUT: 8,
        groups.CONV_KERNEL: 9,
    }
    averages = [group for group, i in found if i in entry and any("ema" in o for o in i.operands)]
    assert set(averages) == {groups.UPDATE}


# Of a network of one's own: scopes tell the groups, not names of modules.
NETWORK = "jit(body)/jvp(network)/Mine/third"
GRADIENT = "jit(body)/transpose(jvp(network))/Mine/third"
# One instruction of each kind: opcode and what follows it, its path, and what is fused into it.
KINDS = [
    (groups.DOT, 'custom-call(%a), custom_call_target="__cublas$lt$matmul"', f"{NETWORK}/linear/dot_general", ""),
    (groups.DOT, 'custom-call(%a), custom_call_target="__cublas$gemm"', f"{GRADIENT}/conv/dot_general", ""),
    (groups.DOT, "dot(%a, %a)", f"{NETWORK}/conv/dot_general", ""),
    (groups.DOT, "fusion(%a)", f"{GRADIENT}/conv/transpose", f"reduce|{GRADIENT}/conv/transpose"),  # was split
    (groups.DOT, "fusion(%a)", f"{NETWORK}/linear/logistic", f"logistic|{NETWORK}/linear/logistic"),
    (groups.CONV_FORWARD, 'custom-call(%a), custom_call_target="__cudnn$convBiasActivationForward"', "", ""),
    (groups.CONV_INPUT, 'custom-call(%a), custom_call_target="__cudnn$convForward"', f"{GRADIENT}/conv/add_any", ""),
    (groups.CONV_INPUT, 'custom-call(%a), custom_call_target="__cudnn$convBackwardInput"', "", ""),
    (groups.CONV_KERNEL, 'custom-call(%a), custom_call_target="__cudnn$convBackwardFilter"', "", ""),
    (
        groups.CONV_FORWARD,
        "convolution(%a, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
        NETWORK,
        "",
    ),
    (groups.CONV_INPUT, "convolution(%a, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f", GRADIENT, ""),
    (groups.CONV_KERNEL, "convolution(%a, %a), window={size=16x16}, dim_labels=f01b_i01o->b01f", GRADIENT, ""),
    (groups.CONV_KERNEL, "convolution(%a, %a), window={size=16x16 rhs_dilate=2x2}, dim_labels=b01f_01io->b01f", "", ""),
    (groups.CONV_FORWARD, 'custom-call(%a), custom_call_target="__onednn$convolution"', NETWORK, ""),
    (groups.SUMS_FORWARD, "fusion(%a)", f"{NETWORK}/norm/convert_element_type", f"reduce|{NETWORK}/norm/reduce"),
    (groups.SUMS_BACKWARD, "fusion(%a)", f"{GRADIENT}/norm/mul", f"reduce|{GRADIENT}/norm/reduce"),
    (groups.SUMS_FORWARD, "fusion(%c)", f"{NETWORK}/norm/mul", f"rsqrt|{NETWORK}/norm/rsqrt"),
    (groups.SUMS_FORWARD, "fusion(%c)", f"{NETWORK}/mul", "multiply|"),  # running averages
    (groups.NORM_FORWARD, "fusion(%a)", f"{NETWORK}/norm/jit(relu)/max", f"maximum|{NETWORK}/norm/jit(relu)/max"),
    (groups.NORM_FORWARD, "fusion(%a)", f"{NETWORK}/mul", "multiply|"),  # a gate
    # The gradient of a mean is no work of its own.
    (groups.NORM_BACKWARD, "fusion(%a)", f"{GRADIENT}/norm/mul", "multiply|jit(body)/transpose(jvp(network))/pool/div"),
    (groups.NORM_BACKWARD, "fusion(%a)", f"{GRADIENT}/conv/add_any", f"add|{GRADIENT}/conv/add_any"),
    (groups.POOL, "fusion(%a)", f"{NETWORK}/norm/max", f"compare|{NETWORK}/norm/pool/gt"),
    (groups.POOL, "fusion(%a)", f"{NETWORK}/pool/reduce_sum", f"reduce|{NETWORK}/pool/reduce_sum"),
    (groups.POOL, "fusion(%a)", f"{GRADIENT}/conv/add_any", f"reduce-window|{GRADIENT}/pool/reduce_window_sum"),
    (groups.POOL, "fusion(%a)", f"{NETWORK}/reduce_window_max", f"reduce-window|{NETWORK}/reduce_window_max"),
    (groups.POOL, "select-and-scatter(%a, %a)", f"{GRADIENT}/select_and_scatter", ""),
    (groups.INPUT, "fusion(%a)", f"{NETWORK}/conv/jit(_pad)/pad", "subtract|jit(body)/augment/sub"),
    (groups.INPUT, "fusion(%a)", "jit(body)/network/augment/div", "subtract|"),
    (groups.INPUT, "fusion(%c)", "jit(body)/while/body/augment/jit(_shuffle)/sort", "sort|"),
    (groups.UPDATE, "fusion(%c)", "jit(body)/cond/branch_0_fun/jit(_where)/select_n", "select|"),
    (groups.UPDATE, "fusion(%c)", "jit(body)/reduce_and", "reduce|jit(body)/reduce_and"),
    (groups.UPDATE, "fusion(%a)", "jit(body)/cond/branch_0_fun/jit(norm)/reduce", "reduce|jit(body)/jit(norm)/reduce"),
    (groups.LOSS, "fusion(%c)", "jit(body)/transpose(jvp(jit(log_softmax)))/mul", "multiply|"),
    (groups.LOSS, 'custom-call(%a), custom_call_target="TopK"', "jit(body)/jvp()/top_k", ""),
    (groups.COLLECTIVE, "all-reduce-start(%c)", "jit(body)/psum", ""),
    (groups.COLLECTIVE, "all-reduce(%c)", "", ""),
    (groups.COPY, "copy(%a)", "", ""),
    (groups.COPY, "transpose(%a)", f"{GRADIENT}/conv/conv_general_dilated", ""),
    (groups.COPY, "fusion(%k)", f"{NETWORK}/conv/convert_element_type", "convert|"),
    (groups.COPY, "fusion()", "", "broadcast|"),
    (groups.OTHER, 'custom-call(%a), custom_call_target="convert_something"', "", ""),
    (groups.OTHER, "fusion(%a)", "reduce_sum", "multiply|reduce_sum"),
]


@pytest.mark.parametrize(("group", "call", "path", "fused"), KINDS)
def test_one_of_each_kind(group: str, call: str, path: str, fused: str) -> None:
    def metadata(text: str) -> str:
        return f', metadata={{op_name="{text}" stack_frame_id=3}}' if text else ""

    opcode, _, inner = fused.partition("|")
    shape = "f32[16]{0}" if "%c" in call or "sums" in group else "bf16[4,8,8,16]{3,2,1,0}"
    body = "%body (p: bf16[4,8,8,16]) -> f32[16] {\n  %p = bf16[4,8,8,16]{3,2,1,0} parameter(0)\n"
    body += f"  ROOT %r = {shape} {opcode}(%p){metadata(inner)}\n}}\n" if fused else "}\n"
    called = ", kind=kLoop, calls=%body" if fused else ""
    text = f"""HloModule test

{body}
ENTRY %main (a: bf16[4,8,8,16], k: bf16[3,3,16,16], c: f32[16]) -> f32[16] {{
  %a = bf16[4,8,8,16]{{3,2,1,0}} parameter(0)
  %k = bf16[3,3,16,16]{{3,2,1,0}} parameter(1)
  %c = f32[16]{{0}} parameter(2)
  ROOT %it.1 = {shape} {call}{called}{metadata(path)}
}}
"""
    program = hlo.parse_program(text)
    assert group_of_instruction(program.instructions["it.1"], program, "train") == group


def test_operations_that_xla_leaves_without_a_path() -> None:
    text = """
%stage (p: pred[1,1,64,64]) -> pred[1,1,2,2] {
  %p = pred[1,1,64,64]{3,2,1,0} parameter(0)
  ROOT %window = pred[1,1,2,2]{3,2,1,0} reduce-window(%p, %p), window={size=1x1x32x32}
}

ENTRY %main (a: bf16[4,8,8,16], u: u8[1,4,8,8,3], f: pred[1,1,64,64]) -> f32[16] {
  %a = bf16[4,8,8,16]{3,2,1,0} parameter(0)
  %u = u8[1,4,8,8,3]{4,3,2,1,0} parameter(1)
  %f = pred[1,1,64,64]{3,2,1,0} parameter(2)
  %pooled = bf16[4,4,4,16]{3,2,1,0} reduce-window(%a, %a), window={size=1x3x3x1}
  %stage = f32[8,16]{1,0} reduce-window(%a, %a), window={size=32x1}
  %normalized = f32[4,8,8,3]{3,2,1,0} divide(%u, %a), metadata={op_name="jit(f)/div"}
  %alone = f32[8,16]{1,0} reduce-window(%a, %a), window={size=32x1}
  %plain = f32[8,16]{1,0} multiply(%a, %a)
  %first = pred[1,1,2,2]{3,2,1,0} fusion(%f), kind=kLoop, calls=%stage
  %second = pred[1,1,1,2]{3,2,1,0} reduce-window(%first, %first), window={size=1x1x2x1}
  %finite = pred[] reduce(%second, %second), metadata={op_name="jit(f)/reduce_and"}
  ROOT %sum = f32[16]{0} reduce(%stage, %plain), metadata={op_name="jit(f)/transpose(jvp(network))/a/norm/reduce_sum"}
}
"""
    program = hlo.parse_program(text)
    found = {i.name: group_of_instruction(i, program, "train") for i in kernels(program, [program.entry])}
    assert found == {
        "pooled": groups.POOL,
        "stage": groups.SUMS_BACKWARD,
        "normalized": groups.INPUT,
        "alone": groups.OTHER,
        "plain": groups.OTHER,
        "first": groups.UPDATE,
        "second": groups.UPDATE,
        "finite": groups.UPDATE,
        "sum": groups.SUMS_BACKWARD,
    }


def test_the_first_layer_casts_images_and_kernels() -> None:
    text = """
ENTRY %main (m: f32[4,8,8,3], k: f32[7,7,3,16]) -> bf16[4,8,8,3] {
  %m = f32[4,8,8,3]{3,2,1,0} parameter(0)
  %k = f32[7,7,3,16]{3,2,1,0} parameter(1)
  %mixed = f32[4,8,8,3]{3,2,1,0} multiply(%m, %m), metadata={op_name="jit(f)/augment/mul"}
  %kernel = bf16[7,7,3,16]{3,2,1,0} convert(%k), metadata={op_name="jit(f)/jvp(network)/a/conv/convert_element_type"}
  ROOT %cast = bf16[4,8,8,3]{3,2,1,0} convert(%mixed), metadata={op_name="jit(f)/jvp(network)/a/conv/convert"}
}
"""
    program = hlo.parse_program(text)
    found = [group_of_instruction(program.instructions[name], program, "train") for name in ("kernel", "cast")]
    assert found == [groups.COPY, groups.INPUT]


def test_inference_without_folding_has_no_sums() -> None:
    text = """
ENTRY %main (c: f32[16]) -> f32[16] {
  %c = f32[16]{0} parameter(0)
  %f = f32[16]{0} multiply(%c, %c), metadata={op_name="jit(body)/network/Mine/first/norm/mul"}
  ROOT %p = f32[4,10]{1,0} divide(%c, %c), metadata={op_name="jit(body)/div"}
}
"""
    program = hlo.parse_program(text)
    found = [group_of_instruction(program.instructions[name], program, "infer") for name in "fp"]
    assert found == [groups.NORM_FORWARD, groups.LOSS]


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", groups.CONV_FORWARD),
        ("sm90_xmma_dgrad_implicit_gemm_indexed_bf16bf16", groups.CONV_INPUT),
        ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized>(Params)", groups.CONV_INPUT),
        ("sm80_xmma_wgrad_implicit_gemm_indexed_bf16bf16", groups.CONV_KERNEL),
        ("cudnn::cnn::wgrad2d_grouped_direct_kernel", groups.CONV_KERNEL),
        ("nvjet_tst_128x64_64x6_1x2_h_bz_NNT", groups.DOT),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", groups.DOT),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", groups.COLLECTIVE),
        ("MemcpyD2D", groups.COPY),
        ("Memset", groups.COPY),
        ("some_kernel", groups.OTHER),
    ],
)
def test_names_of_kernels_alone(kernel: str, group: str) -> None:
    assert group_of_kernel(kernel) == group


def test_bytes_are_those_of_results_and_operands_each_once() -> None:
    text = """
ENTRY %main (x: bf16[2,7,7,512], k: bf16[512,3,3,512]) -> bf16[2,7,7,512] {
  %x = bf16[2,7,7,512]{3,2,1,0} parameter(0)
  %k = bf16[512,3,3,512]{3,2,1,0} parameter(1)
  %conv = (bf16[2,7,7,512]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), custom_call_target="__cudnn$convForward"
  %y = bf16[2,7,7,512]{3,2,1,0} get-tuple-element(%conv), index=0
  ROOT %wide = (f32[2,7,7,512]{3,2,1,0}, /*index=1*/pred[]) fusion(%y, %y), kind=kLoop, calls=%absent
}
"""
    program = hlo.parse_program(text)
    array, kernel = 2 * 2 * 7 * 7 * 512, 2 * 9 * 512 * 512
    found = {name: hlo.bytes_of(program.instructions[name], program) for name in ("conv", "wide")}
    assert found == {"conv": 2 * array + kernel, "wide": 3 * array + 1}
    assert program.entry == "main" and [i.name for i in program.computations["main"]] == ["x", "k", "conv", "y", "wide"]


def test_an_excerpt_says_the_same_as_the_whole() -> None:
    whole = recorded("h100-infer")
    assert count(excerpt(whole), "infer") == count(whole, "infer")
    assert excerpt(whole) == whole
