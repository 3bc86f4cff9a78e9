"""Words from other programs, and arguments in the wrong place: the error says what to write here."""

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest
from conftest import REPO

from rn50_jax import cli
from rn50_jax.config import loading as configs
from rn50_jax.config import schema, synonyms
from rn50_jax.config.hints import options_of
from rn50_jax.errors import UserError

COMMANDS = ("benchmark", "check_data", "convert", "evaluate", "export", "features", "plot", "predict", "train")


class Parsed(Exception):
    """Ends a command once its parser is made."""


def options(monkeypatch: pytest.MonkeyPatch, command: str) -> set[str]:
    """The options of a command."""
    found: list[cli.CommandLine] = []

    def stop(parser: cli.CommandLine, *_: object) -> None:
        found.append(parser)
        raise Parsed

    with monkeypatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(cli.CommandLine, "parse_known_args", stop)
        importlib.import_module(f"rn50_jax.{command}").main([])
    return set(options_of(found[0]))


def complaint(command: str, *words: str) -> str:
    with pytest.raises(UserError) as error:
        importlib.import_module(f"rn50_jax.{command}").main(words)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_target_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(synonyms.KEYS.values()) <= schema.options().keys()
    every = set().union(*(options(monkeypatch, command) for command in COMMANDS))
    assert {option for wanted in synonyms.OPTIONS.values() for option in wanted.split()} <= every
    for advice in set(synonyms.ABSENT.values()):
        assert set(re.findall(r"--config\.([\w.]+\w)", advice)) <= schema.options().keys(), advice
        assert set(re.findall(r"--(?!config\.)\w+", advice)) <= every, advice
        for page in re.findall(r"docs/[\w-]+\.md", advice):
            assert (REPO / page).exists()


def test_no_name_means_two_things() -> None:
    for table in (synonyms._KEYS, synonyms._OPTIONS):
        words = Counter(word for word in table.split() if word != "<-" and not word.startswith("--"))
        assert [word for word, count in words.items() if count > 1] == []
    assert synonyms.KEYS.keys() & synonyms.ABSENT.keys() == set()
    own: dict[str, set[str]] = {}
    for key in schema.options():
        own.setdefault(synonyms.normalize(key), set()).add(key)
    # What is called the same here must not be turned into something else; only that of resuming is explained.
    assert {name for name in synonyms.KEYS if name in own and synonyms.KEYS[name] not in own[name]} == set()
    assert synonyms.ABSENT.keys() & own.keys() == {"resume"}
    for name in (*synonyms.KEYS, *synonyms.ABSENT, *synonyms.OPTIONS):
        assert synonyms.normalize(f"--section.{name.replace('_', '-').upper()}") == name


def test_what_is_absent_really_is() -> None:
    accepted = " ".join(rule.valid for rule in schema.options().values())
    for name in ("adam", "adamw", "lion", "rmsprop", "dropout", "drop_path", "distillation", "multi_label", "focal"):
        assert name in synonyms.ABSENT and f"'{name}'" not in accepted


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("recipe.learning_rate", "recipe.lr"),
        ("lr", "recipe.lr"),
        ("model.name", "model.arch"),
        ("model", "model.arch"),
        ("data.path", "data.dir"),
        ("data_dir", "data.dir"),
        ("data.root", "data.dir"),
        ("data", "data.dir"),
        ("recipe.wd", "recipe.weight_decay"),
        ("optimizer.weight_decay", "recipe.weight_decay"),
        ("opt", "recipe.optimizer"),
        ("optimizer.name", "recipe.optimizer"),
        ("num_workers", "data.workers"),
        ("data.num_workers", "data.workers"),
        ("workers", "data.workers"),
        ("img_size", "data.image_size"),
        ("model.input_size", "data.image_size"),
        ("smoothing", "recipe.label_smoothing"),
        ("batch", "batch_size"),
        ("data.batch_size", "batch_size"),
        ("val_batch", "batch_size"),
        ("train.epochs", "epochs"),
        ("amp", "precision"),
        ("fp16", "precision"),
        ("initial_checkpoint", "model.pretrained_weights"),
        ("pretrained", "model.pretrained_weights"),
        ("validation_split", "data.val_share"),
        ("clip_grad", "recipe.clip_norm"),
        ("reprob", "recipe.random_erasing"),
        ("aa", "data.augment"),
        ("model_ema_decay", "recipe.ema_decay"),
        ("sync_bn", "recipe.bn_group"),
        ("log_interval", "log.print_every"),
    ],
)
def test_keys_of_others(word: str, key: str) -> None:
    base = ["--config", "quickstart"]
    with_value = complaint("train", *base, f"--config.{word}=1")
    assert with_value == f"config has no key {word!r}; did you mean {key}?"
    told = complaint("train", *base, f"--{word}=1")
    if word in ("initial_checkpoint", "pretrained"):
        assert told.endswith("did you mean --pretrained_weights?")
    else:
        assert told.endswith(f"did you mean --config.{key}=1?")
        assert complaint("train", *base, f"--{word.replace('_', '-')}", "1").endswith(f"--config.{key}=VALUE?")
    assert complaint("train", *base, f"{word}=1").partition("; ")[2] == told.partition("; ")[2]


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("distillation", "knowledge distillation is not supported"),
        ("recipe.dropout", "dropout is not supported; --config.recipe.label_smoothing"),
        ("drop-path", "stochastic depth is not supported"),
        ("color_jitter", "color jitter is not a key of its own; --config.data.augment="),
        ("multi_label", "multi-label classification is not supported"),
        ("adamw", "Adam and AdamW are not supported; --config.recipe.optimizer takes sgd, lars or lamb"),
        ("patience", "--target_top1 X ends a run"),
        ("class_weight", "balanced sampling are not supported"),
        ("gpus", "CUDA_VISIBLE_DEVICES=0,1"),
        ("prefetch", "data.prefetch is gone: two batches are always ready on the device"),
        ("mixup-draw", "recipe.mixup_draw is gone: each device draws its own mixing"),
        ("auto_resume", "the same command with the same --workdir resumes by itself"),
    ],
)
def test_what_is_not_there_is_said(word: str, part: str) -> None:
    for argument in (f"--config.{word}=1", f"--{word}=1", f"--{word}"):
        assert part in complaint("train", "--config", "quickstart", argument)


def test_resume_as_a_key() -> None:
    assert "resumes by itself" in complaint("train", "--config", "quickstart", "--config.resume=x")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, data and a recipe."""
    (tmp_path / "runs/x/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/x/config.json").write_text("{}")
    (tmp_path / "photos/train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    return tmp_path


@pytest.mark.parametrize(
    ("command", "words", "end"),
    [
        ("train", "configs/quickstart.py", "did you mean --config configs/quickstart.py?"),
        ("train", "quickstart", "did you mean --config quickstart?"),
        ("train", "--config quickstart runs/new", "did you mean --workdir runs/new?"),
        ("train", "--config quickstart photos", "did you mean --config.data.dir=photos?"),
        ("train", "--config quickstart w.pth", "did you mean --pretrained_weights w.pth?"),
        ("train", "--config quickstart --output-dir runs/new", "did you mean --workdir?"),
        ("train", "--config quickstart --config.workdir=runs/new", "did you mean --workdir?"),
        ("train", "--config runs/x", "give its config: --config runs/x/config.json"),
        ("benchmark", "dgx1_90e", "did you mean --config dgx1_90e?"),
        ("evaluate", "runs/x", "did you mean --workdir runs/x?"),
        ("evaluate", "runs/none", "did you mean --workdir runs/none?"),
        ("evaluate", "w.safetensors", "did you mean --weights w.safetensors?"),
        ("evaluate", "--workdir runs/x photos", "did you mean --config.data.dir=photos?"),
        ("evaluate", "--workdir runs/x --tta", "did you mean --flip_tta?"),
        ("predict", "photo.jpg", "say which model: --workdir RUN, the folder of a training run, or --weights FILE"),
        ("predict", "runs/x photo.jpg", "did you mean --workdir runs/x?"),
        (
            "predict",
            "--topk 3 photo.jpg",
            "say which model: --workdir RUN, the folder of a training run, or --weights FILE",
        ),
        ("predict", "photo.jpg --workdir runs/x --topk=3", "did you mean --top_k?"),
        ("plot", "--workdir runs/x", "give it without an option: python -m rn50_jax.plot runs/x"),
        ("plot", "--logdir=runs/x", "give it without an option: python -m rn50_jax.plot runs/x"),
        ("convert", "--weights w.pth out.npz", "give it without an option: python -m rn50_jax.convert w.pth"),
        ("check_data", "--config.data.dir=photos", "give it without an option: python -m rn50_jax.check_data photos"),
        ("check_data", "--config quickstart", "give it without an option: python -m rn50_jax.check_data DIR"),
        ("check_data", "--data photos", "give it without an option: python -m rn50_jax.check_data photos"),
        ("check_data", "photos --num_workers 4", "did you mean --workers?"),
        ("check_data", "photos --verbose", "see --help"),
        ("features", "--data photos --workdir runs/x", "give it without an option: python -m rn50_jax.features photos"),
    ],
)
def test_arguments_in_the_wrong_place(place: Path, command: str, words: str, end: str) -> None:
    assert complaint(command, *words.split()).endswith(f"; {end}")


def test_names_are_quoted(place: Path) -> None:
    (place / "my run/checkpoints").mkdir(parents=True)
    assert complaint("evaluate", "my run").endswith("did you mean --workdir 'my run'?")
    assert complaint("evaluate", "a\0b").endswith("?")


def test_correct_lines_pass() -> None:
    parser = cli.CommandLine("rn50_jax.train", "")
    parser.add_argument("--config", required=True)
    args, overrides = configs.parse_args(parser, ["--config", "a.py", "--config.epochs", "3", "--config.data.dir=a=b"])
    assert args.config == "a.py" and overrides == [("epochs", "3"), ("data.dir", "a=b")]
