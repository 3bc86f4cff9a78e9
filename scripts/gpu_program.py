#!/usr/bin/env python3
"""Lists what XLA makes of the step for a GPU, without having one: kernels, bytes, copies. See docs/performance.md.

    python scripts/gpu_program.py --config configs/dgxa100_90e.py --mode train --config.batch_size=256

Compiles ahead of time for an H100, which needs JAX for CUDA installed (requirements-cuda12.txt or -cuda13.txt) but
neither a GPU nor its driver. Nothing runs, so nothing is timed, and no algorithm is picked by trying (autotuning is
off). Bytes are those of each kernel's inputs and outputs, as if no kernel found anything in a cache.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

# The facts about the card that XLA's choices depend on; memory_bandwidth in bytes per second.
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  l2_cache_size: 52428800 device_memory_size: 84929347584 memory_bandwidth: 3352320000000
}
"""


class Kernel(NamedTuple):
    """One kernel, or one call of cuDNN or cuBLAS.

    group: what it does, see rn50_jax/bench/groups.py. bytes: read and written. origin: where in the model it is from.
    float32: whether it writes an activation in float32.
    """

    name: str
    group: str
    bytes: int
    origin: str
    float32: bool


def kernels(text: str, activation: int, mode: str) -> list[Kernel]:
    """The kernels of a compiled program, in order.

    Args:
      text: HLO text of an optimized module.
      activation: elements from which on an array is an activation.
      mode: "train" or "infer".
    """
    from rn50_jax.bench import groups, hlo

    program = hlo.parse_program(text)
    return [
        Kernel(
            each.name,
            groups.group_of_instruction(each, program, mode),
            hlo.bytes_of(each, program),
            each.path,
            any(dtype == "f32" and n >= activation for dtype, n in hlo.arrays(each.shape)),
        )
        for each in program.computations[program.entry]
        if each.opcode not in groups.FREE
    ]


def compile_program(argv: Sequence[str]) -> tuple[str, str, int, int]:
    """Returns the optimized program, its mode, the images of a call and their size in pixels."""
    from rn50_jax import cli
    from rn50_jax.config import loading as configs

    parser = cli.CommandLine(prog="gpu_program.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="a file of configs/")
    parser.add_argument("--mode", choices=("train", "infer"), default="train", help="default: train")
    parser.add_argument("--text", type=Path, metavar="FILE", help="write the program's text to FILE too")
    args, overrides = configs.parse_args(parser, argv)
    fixed = [("data.backend", "synthetic"), ("compute.parallel", "shard_map")]
    config, _ = configs.load(args.config, [*fixed, *overrides])
    compiled = _compile(config, args.mode)
    memory = compiled.memory_analysis().temp_size_in_bytes
    print(f"memory besides inputs and outputs: {memory / config.batch_size / 1e6:.1f} MB per image\n")
    if args.text:
        args.text.write_text(compiled.as_text(), encoding="utf-8")
    return compiled.as_text(), args.mode, config.batch_size, config.data.image_size


def _compile(config: Any, mode: str) -> Any:
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import NamedSharding, PartitionSpec

    from rn50_jax.config.derived import make_plan
    from rn50_jax.config.model import build_model
    from rn50_jax.distributed.devices import AXIS, make_mesh, map_over_devices
    from rn50_jax.inference.predict_step import predict_step
    from rn50_jax.models.fold import fold, pack
    from rn50_jax.training.build import build_state, compile_steps

    devices = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1").devices
    mesh = make_mesh(devices)

    def placed(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    images, size = config.batch_size, config.data.image_size
    model = build_model(config, num_classes=config.model.num_classes or 1000, platform="gpu")
    state = build_state(config, model, abstract=True)
    batch = {
        "image": jax.ShapeDtypeStruct((1, images, size, size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((1, images), jnp.int32),
        "weight": jax.ShapeDtypeStruct((1, images), jnp.float32),
    }
    if mode == "train":
        step: Any = compile_steps(config, model, make_plan(config, num_images=1_281_167, num_devices=1), mesh)[0]
    else:
        state = {"params": state.params, "batch_stats": state.batch_stats}
        if config.compute.fold_batch_norm != "off":
            state = jax.eval_shape(lambda tree: pack(model, fold(model, tree)), state)
        one_step = partial(predict_step, model=model, axis_name=AXIS)
        step = map_over_devices(one_step, mesh, mode=config.compute.parallel, stacked=True)
        batch = {"image": batch["image"]}
    traced = step.trace(placed(state, PartitionSpec()), placed(batch, PartitionSpec(AXIS)))
    return traced.lower(lowering_platforms=("cuda",)).compile()


def main(argv: Sequence[str]) -> int:
    """Prints the table."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1"}
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    text, mode, images, size = compile_program(argv)
    found = kernels(text, images * max(size // 32, 1) ** 2 * 512, mode)
    print("| kernels | number | MB per image |\n|---|---|---|")
    from rn50_jax.bench.groups import GROUPS

    for name in GROUPS:
        group = [kernel for kernel in found if kernel.group == name]
        if group:
            print(f"| {name} | {len(group)} | {sum(k.bytes for k in group) / images / 1e6:.1f} |")
    print(f"| all | {len(found)} | {sum(k.bytes for k in found) / images / 1e6:.1f} |")
    wide = [kernel for kernel in found if kernel.float32]
    print(f"\nactivations written in float32: {len(wide)}")
    for kernel in wide:
        print(f"  {kernel.name}: {kernel.origin}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
