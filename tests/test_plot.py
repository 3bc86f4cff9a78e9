"""Metrics read back, and what the figures and tables show of them."""

import csv
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from helpers.metrics_files import make_run, train_line, val_line, write
from PIL import Image

from rn50_jax import plot
from rn50_jax.analysis.curves import PANELS, Run, overview, running_mean, save, single
from rn50_jax.errors import UserError
from rn50_jax.loggers.history import metrics_file, read_history


def test_repeated_steps_of_a_resumed_run_count_once(tmp_path: Path) -> None:
    lines = [train_line(10, 3.0, 1.0), val_line(1, 5.0), train_line(20, 2.0, 2.0), train_line(20, 1.0, 2.0)]
    history = read_history(write(tmp_path / "m.jsonl", lines, tail='{"step": 3'))
    assert history.series("train.loss") == {1.0: 3.0, 2.0: 1.0}
    assert [line["val.top1"] for line in history.validations()] == [5.0]
    # On twice as many devices, half as many steps: epochs, not steps, tell what is repeated.
    lines = [val_line(1, 5.0) | {"step": 46}, val_line(2, 6.0) | {"step": 46}]
    assert read_history(write(tmp_path / "n.jsonl", lines)).series("val.top1") == {1.0: 5.0, 2.0: 6.0}


def test_bad_metrics_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none does not exist; name the work folder of a run"):
        metrics_file(tmp_path / "none")
    with pytest.raises(UserError, match=r"has no metrics\.jsonl: it is no run, or has not reported anything yet"):
        metrics_file(tmp_path)
    with pytest.raises(UserError, match=r"bad\.jsonl cannot be read: it is a folder"):
        read_history(write(tmp_path / "bad.jsonl/m.jsonl", []).parent)
    assert metrics_file(write(tmp_path / "other.jsonl", [val_line(1, 5.0)])).name == "other.jsonl"


def test_running_means_are_those_of_numpy() -> None:
    values = np.random.default_rng(0).normal(size=20)
    wanted = [values[max(i - 3, 0) : i + 1].mean() for i in range(20)]
    np.testing.assert_allclose(running_mean(values, 4), wanted, rtol=1e-12)


def test_panels_show_the_numbers(tmp_path: Path) -> None:
    run = Run("one", read_history(make_run(tmp_path / "one") / "metrics.jsonl"))
    figure = overview([run])
    shown = {axes.get_ylabel(): axes for axes in figure.axes if axes.lines}
    assert list(shown) == ["loss", "top-1 (%)", "top-5 (%)", "learning rate", "images per second"]
    training, validation = shown["top-1 (%)"].lines
    assert training.get_xdata().tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert validation.get_xdata().tolist() == [1.0, 2.0, 3.0]
    assert validation.get_ydata().tolist() == [20.0, 40.0, 60.0]
    assert shown["loss"].get_xlabel() == "epoch" and shown["images per second"].get_ylim()[0] == 0
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]


def test_several_runs_have_colours_and_smoothing_is_told(tmp_path: Path) -> None:
    runs = [Run(name, read_history(make_run(tmp_path / name) / "metrics.jsonl")) for name in ("a", "b")]
    figure = overview(runs, smooth=3)
    loss = figure.axes[0]
    assert [line.get_color() for line in loss.lines] == ["#0072B2", "#0072B2", "#D55E00", "#D55E00"]
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    words = [text.get_text() for text in legend.get_texts()]
    assert words == ["a", "b", "training, mean of 3 lines", "validation"]
    rate = next(axes for axes in figure.axes if axes.get_ylabel() == "learning rate")
    assert rate.lines[0].get_xdata().tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]  # never smoothed


def test_one_early_validation_does_not_flatten_the_rest(tmp_path: Path) -> None:
    lines = [val_line(1, 1.0, **{"val.loss": 900.0}), *(val_line(e, 1.0, **{"val.loss": 2.0}) for e in (2, 3, 4))]
    run = Run("x", read_history(write(tmp_path / "m.jsonl", lines)))
    assert single(PANELS[0], [run]).axes[0].get_yscale() == "log"


def test_files_that_the_command_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = make_run(tmp_path / "one", **{"train.loss_scale": 128.0}), make_run(tmp_path / "sub/one")
    assert plot.main([str(one)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{one}/curves.png", f"{one}/curves.svg"]
    with Image.open(one / "curves.png") as image:
        assert image.format == "PNG" and image.width > 2000
    assert ET.fromstring((one / "curves.svg").read_bytes()).tag == "{http://www.w3.org/2000/svg}svg"
    assert plot.main([str(one), "--out", str(tmp_path / "x.pdf")]) == 0
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")
    figures = tmp_path / "figures"
    assert plot.main([str(one), str(two), "--labels", "A,B", "--figures", str(figures)]) == 0
    names = [f"Validation{name}{end}" for name in ("Loss", "Top1", "Top5") for end in (".png", ".svg")]
    assert sorted(path.name for path in figures.iterdir()) == sorted(names)
    assert plot.main([str(one), "--csv", str(tmp_path / "m.csv")]) == 0
    with (tmp_path / "m.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and [row["val.top1"] for row in rows if row["val.top1"]] == ["20.0", "40.0", "60.0"]
    assert rows[0]["train.loss_scale"] == "128.0" and rows[0]["epochs_done"] == "0.5"
    capsys.readouterr()
    assert plot.main([str(one), "--csv", "-"]) == 0
    assert capsys.readouterr().out.startswith("time,step,epoch,epochs_done,train.loss,")


def test_names_are_no_formulas_and_odd_numbers_are_drawn(tmp_path: Path) -> None:
    odd = {"train.loss_scale": 0.0, "lr": -1.0, "train.total_ips": -5.0}
    runs = [make_run(tmp_path / name, **odd) for name in ("a$b_{", "$x^^$", "c\nd")]
    figure = overview([Run(run.name, read_history(run / "metrics.jsonl")) for run in runs])
    save(figure, tmp_path / "x.svg")
    (legend,) = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    assert [text.get_text() for text in legend.get_texts()][:3] == [r"a\$b_{", r"\$x^^\$", r"c\nd"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{one}", "--labels", "a,b"], "--labels has 2 names for 1 run"),
        (["{one}", "{one}", "--csv", "x"], "--csv and --html are of one run"),
        (["{one}", "--smooth", "0"], "--smooth 0 must be at least 1"),
        (["{one}", "--config.seed=1"], "--config.seed is of use with --html alone"),
        (["{one}", "--out", "{one}/none/x.png"], "cannot write .*none/x.png: No such file"),
        (["{one}", "--csv", "{one}/none/x.csv"], "cannot write .*none/x.csv: No such file"),
        (["{one}/metrics.jsonl", "--html", "x.html"], "--html needs the work folder of a run"),
    ],
)
def test_mistakes_of_the_call(tmp_path: Path, args: list[str], message: str) -> None:
    one = make_run(tmp_path / "one")
    with pytest.raises(UserError, match=message):
        plot.main([arg.format(one=one) for arg in args])


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a/run"), make_run(tmp_path / "b/run")]
    assert plot._labels(runs, None) == [str(run) for run in runs]
    assert plot._labels([runs[0], runs[1].parent], None) == ["run", "b"]
