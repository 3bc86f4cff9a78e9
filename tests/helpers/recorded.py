"""Programs and traces as a GPU has them: recorded HLO of tests/golden, and traces in the profiler's own format.

The programs were compiled ahead of time for an H100 by scripts/gpu_program.py with jax 0.12.0.1 for CUDA 13 on
2026-11-29:

    h100-train        --mode train, configs/dgxa100_90e.py: ResNet-50, 224 px, bf16, batch 256
    h100-infer        --mode infer, the same
    h100-mixup-fp16   --mode train --config.precision=fp16 --config.recipe.mixup=0.2 --config.recipe.ema_decay=0.999
                      --config.model.stages="(1, 1)" --config.model.width=16 --config.model.num_classes=10
                      --config.batch_size=16 --config.data.image_size=64

`python tests/helpers/recorded.py FILE` cuts what `gpu_program.py --text FILE` wrote to what the parser reads, as
FILE.xz.
"""

import lzma
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax

GOLDEN = Path(__file__).parents[1] / "golden"


def recorded(name: str) -> str:
    """The text of a recorded program."""
    return lzma.decompress((GOLDEN / f"{name}.hlo.xz").read_bytes()).decode()


def excerpt(text: str) -> str:
    """A program without its tables of source files, parameters' types and backend's settings."""
    lines = ["HloModule recorded"]
    for line in text.splitlines():
        if start := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            lines += ["", f"{start[1] or ''}%{start[2]} () -> () {{"]
        elif line.startswith(" "):
            path = re.search(r'op_name="[^"]*"', line)
            line = re.sub(r", (metadata|frontend_attributes|backend_config)=\{.*", "", line)
            lines.append(re.sub(r"/\*index=\d+\*/", "", line) + (f", metadata={{{path[0]}}}" if path else ""))
        elif line == "}":
            lines.append(line)
    return "\n".join([*lines, "", ""])


class Ran(NamedTuple):
    """A kernel on a stream of a GPU, in nanoseconds. stats: as CUPTI's collector in XLA writes them."""

    stream: str
    kernel: str
    start: int
    length: int
    stats: dict[str, str]


def write_trace(folder: Path, gpus: Iterable[Iterable[Ran]]) -> Path:
    """Writes a `.xplane.pb` with one plane per GPU, beside the host's and a custom one."""
    planes = [_plane(f"/device:GPU:{number}", list(events)) for number, events in enumerate(gpus)]
    noise = [Ran("python", "PjRtCApiLoadedExecutable::Execute", 0, 10**9, {"hlo_op": "never"})]
    planes += [_plane("/host:CPU", noise), _plane("/device:CUSTOM:counters", [noise[0]._replace(stream="Stream #9")])]
    path = folder / "plugins/profile/2026_11_28/machine.xplane.pb"
    path.parent.mkdir(parents=True)
    path.write_bytes(jax.profiler.ProfileData.text_proto_to_serialized_xspace("\n".join(planes)))
    return path


def _plane(name: str, events: list[Ran]) -> str:
    kernels = {kernel: number for number, kernel in enumerate(dict.fromkeys(e.kernel for e in events), 1)}
    names = list(dict.fromkeys(text for e in events for pair in e.stats.items() for text in pair))
    numbers = {text: number for number, text in enumerate(names, 1)}
    parts = [f'name: "{name}"']
    for index, stream in enumerate(dict.fromkeys(e.stream for e in events)):
        parts.append(f'lines {{ id: {index} name: "{stream}" timestamp_ns: 1000')
        for e in events:
            if e.stream != stream:
                continue
            stats = " ".join(
                f"stats {{ metadata_id: {numbers[key]} ref_value: {numbers[value]} }}" for key, value in e.stats.items()
            )
            times = f"offset_ps: {1000 * e.start} duration_ps: {1000 * e.length}"
            parts.append(f"events {{ metadata_id: {kernels[e.kernel]} {times} {stats} }}")
        parts.append("}")
    for field, table in (("event_metadata", kernels), ("stat_metadata", numbers)):
        for text, number in table.items():
            parts.append(f'{field} {{ key: {number} value {{ id: {number} name: "{text}" }} }}')
    return "planes {\n" + "\n".join(parts) + "\n}"


if __name__ == "__main__":
    source = Path(sys.argv[1])
    packed = lzma.compress(excerpt(source.read_text()).encode(), preset=9 | lzma.PRESET_EXTREME)
    source.with_name(source.name + ".xz").write_bytes(packed)
