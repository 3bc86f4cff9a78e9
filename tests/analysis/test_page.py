"""The page about a run: well formed, complete, and alone in the world."""

import base64
import io
import json
import re
from pathlib import Path
from xml.etree.ElementTree import Element

import html5lib
import pytest
from conftest import Run
from helpers.metrics_files import make_run
from helpers.runs import read_lines
from jinja2 import UndefinedError
from markupsafe import Markup
from PIL import Image

from rn50_jax import plot
from rn50_jax.analysis.page_html import LegendItem, Table, Tile, render
from rn50_jax.errors import UserError

HTML, SVG = "{http://www.w3.org/1999/xhtml}", "{http://www.w3.org/2000/svg}"


def parse(path: Path) -> tuple[str, Element]:
    """The text of a page, and its elements; any error of its form is raised."""
    text = path.read_text()
    return text, html5lib.HTMLParser(strict=True).parse(text)


def words(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def assert_alone(text: str, page: Element) -> None:
    """Nothing is loaded from anywhere, and nothing is executed."""
    assert "http:" not in text and "https:" not in text and "@import" not in text
    for element in page.iter():
        assert element.tag not in (HTML + "script", HTML + "link", HTML + "iframe"), element.tag
        for name, value in element.attrib.items():
            if name.endswith(("src", "href")):
                assert value.startswith(("data:image/webp;base64,", "#")), (name, value[:50])
    for target in re.findall(r"url\(([^)]*)\)", text):
        assert target.startswith("#"), target
    names = [element.attrib["id"] for element in page.iter() if "id" in element.attrib]
    assert len(set(names)) == len(names)  # figures do not refer to each other's parts
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', text))
    assert used <= set(names)


def test_a_page_tells_everything_about_a_run(
    trained: tuple[Path, str], call: Run, digits: Path, tmp_path: Path
) -> None:
    workdir, _ = trained
    target = tmp_path / "report.html"
    done = call("plot", workdir, "--html", target)
    assert done.returncode == 0 and done.stdout == f"{target}\n", done.stderr
    text, page = parse(target)
    assert_alone(text, page)
    assert [words(h) for h in page.iter(HTML + "h2")] == [
        "Curves",
        "What it gets wrong",
        "Where the time went",
        "Epochs",
        "Configuration",
        "Hardware and software",
    ]
    told = words(page)
    validations = [line for line in read_lines(workdir) if "val.top1" in line]
    best = max(validations, key=lambda line: line["val.top1"])
    assert f"best top-1{best['val.top1']:.2f} %epoch {best['epoch']}" in told
    assert len(list(page.iter(SVG + "svg"))) == 6  # five panels and the calibration
    for line in validations:
        assert f"{line['val.loss']:.4f}" in told
    assert "model.width" in told and "jax" in told and "1 x CPU" in told and "--config.epochs=2" in told
    assert f"on 297 validation images: top-1 {best['val.top1']:.2f} %" in told
    pictures = list(page.iter(HTML + "img"))
    assert 12 <= len(pictures) <= 24 and all(picture.attrib["alt"] for picture in pictures)
    files = [span for span in page.iter(HTML + "span") if span.attrib.get("class") == "file"]
    assert len(files) == len(pictures) and len({words(file) for file in files[-12:]}) == len(files[-12:])
    for file, picture in zip(files, pictures, strict=True):
        assert words(file) == file.attrib["title"] == picture.attrib["title"] and (digits / words(file)).is_file()
    with Image.open(io.BytesIO(base64.b64decode(pictures[0].attrib["src"].partition(",")[2]))) as image:
        assert image.format == "WEBP" and max(image.size) <= 160
    assert target.stat().st_size < 1_000_000


def test_a_run_whose_data_are_gone_has_the_rest(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "a <run> & more")
    (workdir / "run.json").write_text(json.dumps({"command": ["python", "<script>"], "devices": "8 x GPU"}))
    assert plot.main([str(workdir), "--html", str(tmp_path / "x.html")]) == 0
    assert "GPUs as read" not in (old := words(parse(tmp_path / "x.html")[1])) and "commit" not in old
    gpu = {"name": "NVIDIA H200", "driver": "580.1", "power_limit_w": 700.0, "sm_clock_mhz": None}
    more = {"gpus": [gpu], "environment": {"XLA_FLAGS": "--xla_a=1"}, "commit": "abc+changes"}
    facts = json.loads((workdir / "run.json").read_text()) | more
    (workdir / "run.json").write_text(json.dumps(facts))
    assert plot.main([str(workdir), "--html", str(tmp_path / "x.html")]) == 0
    text, page = parse(tmp_path / "x.html")
    assert_alone(text, page)
    told = words(page)
    assert told.count("a <run> & more") >= 2 and "python '<script>'" in told and "8 x GPU" in told
    assert "Single images could not be looked at" in told and "has no checkpoints" in told
    assert "best top-160.00 %epoch 3" in told
    assert "1 x NVIDIA H200, driver 580.1, 700 W power limit" in told
    assert "commitabc+changes" in told and "XLA_FLAGS--xla_a=1" in told
    with pytest.raises(UserError, match="has no key 'data\\.dri'"):
        plot.main([str(workdir), "--html", str(tmp_path / "x.html"), "--config.data.dri=x"])
    with pytest.raises(UserError, match="cannot write"):
        plot.main([str(workdir), "--html", str(tmp_path / "none/x.html")])


def test_long_tables_are_folded(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run", epochs=30)
    assert plot.main([str(workdir), "--html", str(tmp_path / "x.html")]) == 0
    _, page = parse(tmp_path / "x.html")
    assert "All 30 epochs" in [words(summary) for summary in page.iter(HTML + "summary")]


HOSTILE = "</style><script>alert('1')</script>\"'&\x00\x1b\n\u202e\ud800"


def test_no_text_from_anywhere_is_markup(tmp_path: Path) -> None:
    table = Table([HOSTILE], [[HOSTILE]])
    card = dict.fromkeys(("alt", "told", "truth", "others", "file"), HOSTILE) | {"picture": "", "right": False}
    mistakes = {
        "about": HOSTILE,
        "classes": 1,
        "worst": table,
        "calibration": Markup("<p></p>"),
        "bins": 1,
        "confusions": [{"name": HOSTILE, "counts": [1], "others": 0, "total": 1}],
        "cards": [(HOSTILE, [card, card | {"right": True}])],
    }
    content = dict.fromkeys(("title", "about", "problem", "command", "now"), HOSTILE)
    tables = dict.fromkeys(("epochs", "changed", "keys", "hardware", "versions"), table)
    kinds, tiles = [LegendItem(HOSTILE, "red", HOSTILE, 0.5)], [Tile(HOSTILE, HOSTILE, HOSTILE)]
    rest = {"tiles": tiles, "kinds": kinds, "seconds": kinds, "panels": [], "longest": 0, "facts": True}
    for found in (mistakes, None):
        target = tmp_path / "x.html"
        target.write_text(render(mistakes=found, **content, **tables, **rest))
        text, page = parse(target)
        assert_alone(text, page)
        shown = words(page).count("</style><script>alert('1')</script>\"'&\\x00\\x1b\\n\\u202e\\ud800")
        tooltips = text.count(' title="&lt;/style&gt;')
        assert shown + tooltips == text.count("&lt;/style&gt;&lt;script&gt;") and shown > 20
    with pytest.raises(UndefinedError):
        render(title="only")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"a.b": 1}),
        ("config.json", {"data": 5, "model": {"arch": HOSTILE}}),
        (
            "config.json",
            {"model": {"arch": [HOSTILE]}, "data": {"backend": {}, "dir": 1, "image_size": None}, "epochs": []},
        ),
        ("run.json", {"devices": 5, "versions": [1], "host": HOSTILE, "command": 5}),
        ("run.json", {"gpus": HOSTILE, "environment": [HOSTILE], "commit": {HOSTILE: 1}}),
        ("run.json", {"gpus": [5, {"name": [HOSTILE], "sm_clock_mhz": HOSTILE}], "environment": {HOSTILE: [HOSTILE]}}),
        ("run.json", {"versions": {HOSTILE: 1}, "host": {"cpu": [HOSTILE]}, "command": [1, HOSTILE]}),
    ],
    ids=["dotted", "no section", "odd values", "odd facts", "odd machine", "hostile machine", "hostile facts"],
)
def test_descriptions_of_another_shape(tmp_path: Path, name: str, content: object) -> None:
    workdir = make_run(tmp_path / "run")
    (workdir / name).write_text(json.dumps(content))
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"time": 1.0, "step": 184, "epoch": "<script>alert(1)</script>", "val.top1": 99.0}\n')
        file.write('{"time": 1.0, "step": 31, "goodput.train": -1.0, "goodput.data": null}\n')
        file.write('{"time": 1.0, "step": 31, "epoch": 4, "epochs_done": 4.0, "val.top1": 61.0}\n')
    assert plot.main([str(workdir), "--html", str(tmp_path / "x.html")]) == 0
    text, page = parse(tmp_path / "x.html")
    assert_alone(text, page)
    assert "<script" not in text and "99.00" not in text and "best top-161.00 %epoch 4" in words(page)
