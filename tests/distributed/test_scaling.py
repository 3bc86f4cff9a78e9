"""The cost model's documentation, and what it takes for granted about the program."""

import math
import re
import subprocess
import sys

import jax
import pytest
from conftest import REPO
from helpers.tiny import OPTIONS, make_batch, make_model, make_state, make_step, place


@pytest.mark.parametrize("options", [(), ("--all_reduce", "bf16", "--overlap", "1")])
def test_the_tables_are_what_the_program_prints(options: tuple[str, ...]) -> None:
    command = [sys.executable, "scripts/scaling.py", *options]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 13 and done.stdout in (REPO / "docs/scaling.md").read_text()


@pytest.mark.parametrize(("all_reduce", "accumulation"), [("fp32", 1), ("bf16", 2)])
def test_a_step_averages_gradients_statistics_and_metrics_once(all_reduce: str, accumulation: int) -> None:
    model = make_model()
    step, replicate = make_step(model, 2, OPTIONS.replace(all_reduce=all_reduce, accumulation=accumulation))
    state = replicate(make_state(model))
    text = step.lower(state, place(make_batch(2, 4))).as_text()
    sent = {"f32": 0, "bf16": 0}
    for shapes in re.findall(r"stablehlo.all_reduce.*?\}\) : \((.*?)\) ->", text, re.DOTALL):
        for shape in re.findall(r"tensor<([^>]*)>", shapes):
            *sizes, dtype = shape.split("x")
            sent[dtype] += math.prod(int(size) for size in sizes)
    parameters, statistics = (sum(x.size for x in jax.tree.leaves(t)) for t in (state.params, state.batch_stats))
    metrics = 2  # loss and top-1
    if all_reduce == "fp32":
        assert sent == {"f32": parameters + statistics + metrics, "bf16": 0}
    else:
        assert sent == {"f32": statistics + metrics, "bf16": parameters}
