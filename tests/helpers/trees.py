"""Class folders made for tests, and configs that read them."""

from pathlib import Path

from PIL import Image

from rn50_jax.config import loading as configs
from rn50_jax.config.schema import Config


def make_config(root: Path | str, *overrides: tuple[str, str]) -> Config:
    basics = [
        ("data.dir", str(root)),
        ("data.image_size", "32"),
        ("data.resize", "32"),
        ("data.workers", "2"),
        ("batch_size", "4"),
        ("epochs", "2"),
        ("recipe.warmup_epochs", "0"),
    ]
    return configs.override(Config(), [*basics, *overrides])


def write_image(path: Path, color: tuple[int, int, int] = (0, 0, 0), size: tuple[int, int] = (40, 36)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
