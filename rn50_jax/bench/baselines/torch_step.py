"""PyTorch beside us: the network eager, compiled or timm's, and a DataLoader; plain, as its users write it."""

import itertools
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from rn50_jax.bench.baselines.torch_network import make_network
from rn50_jax.bench.cpu_time import time_batches, time_steps
from rn50_jax.config.loading import from_saved
from rn50_jax.errors import UserError


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Runs one trial, see `bench.trials`."""
    if spec["kind"] == "torch-loader":
        return _run_loader(spec)
    cuda = spec["device"] != "cpu" and torch.cuda.is_available()
    if spec["device"] == "gpu" and not cuda:
        raise UserError(f"torch {torch.__version__} finds no GPU; install a build of PyTorch for CUDA")
    device = torch.device("cuda" if cuda else "cpu")
    torch.backends.cudnn.benchmark = True
    precision = spec["config"]["precision"]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.zeros(1, device=device)  # CUDA starts, as it has for JAX when its start is timed
    start = time.perf_counter()
    net: nn.Module = _make_net(spec).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    step = _train_step(spec, net, device) if spec["mode"] == "train" else _infer_step(spec, net, device)
    timed = time_steps(
        lambda count: _seconds(step, count, cuda, spec["mode"]),
        steps=spec["steps"],
        warmup=spec["warmup"],
        began=start,
        ready=torch.cuda.reset_peak_memory_stats if cuda else lambda: None,
    )
    timm = f", timm {sys.modules['timm'].__version__}" if spec["kind"] == "timm" else ""
    threads = "" if cuda else f", {torch.get_num_threads()} threads"
    return timed | {
        "platform": "gpu" if cuda else "cpu",
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "precision": precision,
        "images_per_step": spec["config"]["batch_size"],
        "start": "cold" if spec["trial"] == 1 else "warm",
        "peak_memory_bytes": torch.cuda.max_memory_reserved() if cuda else None,
        "about": f"torch {torch.__version__}{timm}{threads}",
    }


def _make_net(spec: dict[str, Any]) -> nn.Module:
    net = spec["network"]
    if spec["kind"] == "timm":
        try:
            import timm
        except ImportError as error:
            raise UserError(f"timm cannot be imported ({error}); pip install timm") from None
        model = from_saved(spec["config"], source="the trial").config.model
        shape = (model.arch, model.num_blocks, model.width, model.stage_widths, model.small_stem)
        if shape != ("resnet50", (3, 4, 6, 3), 64, (64, 128, 256, 512), False):
            raise UserError("timm is compared on an unchanged resnet50")
        made: nn.Module = timm.create_model("resnet50", num_classes=net["classes"])
        return made
    made = make_network(net)
    # "reduce-overhead" and "max-autotune" need more memory and minutes; the default is what users write.
    return torch.compile(made) if spec["kind"] == "torch-compile" else made  # type: ignore[return-value]


def _autocast(precision: str, device: torch.device) -> Any:
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, types[precision]) if precision in types else nullcontext()


def _batch(spec: dict[str, Any], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    # Ready on the device, normalized and in torch's best layout; our own step also has to convert uint8.
    size, batch = spec["config"]["data"]["image_size"], spec["config"]["batch_size"]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator)
    labels = torch.randint(spec["network"]["classes"], (batch,), generator=generator)
    return images.to(device, memory_format=torch.channels_last), labels.to(device)


def _train_step(spec: dict[str, Any], net: nn.Module, device: torch.device) -> Callable[[], Any]:
    """Forward, backward and SGD with momentum, under automatic mixed precision in bf16 and fp16."""
    recipe, precision = spec["config"]["recipe"], spec["config"]["precision"]
    optimizer = torch.optim.SGD(
        net.parameters(), lr=1e-3, momentum=recipe["momentum"], weight_decay=recipe["weight_decay"]
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe["label_smoothing"])
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    images, labels = _batch(spec, device)
    net.train()

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(precision, device):
            loss = criterion(net(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step


def _infer_step(spec: dict[str, Any], net: nn.Module, device: torch.device) -> Callable[[], Any]:
    images, _ = _batch(spec, device)
    net.eval()

    def step() -> torch.Tensor:
        with torch.inference_mode(), _autocast(spec["config"]["precision"], device):
            return torch.softmax(net(images).float(), -1)

    return step


def _seconds(step: Callable[[], Any], count: int, cuda: bool, mode: str) -> list[float]:
    """Of each step: between the ends of queued ones in training, one after the other in inference; as our own."""
    if not cuda or mode == "infer":
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            step()
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return seconds
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    ends[0].record()
    for end in ends[1:]:
        step()
        end.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(ends)]


class Crops(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Pillow's decoding, random-resized crop and flip: uint8 [S, S, 3], torchvision's transform without torchvision."""

    def __init__(self, files: list[str], data: dict[str, Any]) -> None:
        self.files, self.data = files, data

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        rng = np.random.default_rng([index, torch.initial_seed() % 2**32])
        size = self.data["image_size"]
        with Image.open(self.files[index]) as file:
            image = file.convert("RGB")
        image = image.crop(_random_box(rng, *image.size, self.data)).resize((size, size), Image.Resampling.BILINEAR)
        if rng.random() < self.data["flip"]:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)), index


def _random_box(rng: np.random.Generator, width: int, height: int, data: dict[str, Any]) -> tuple[int, int, int, int]:
    low, high = np.log(data["crop_aspect"])
    for _ in range(10):
        area = width * height * rng.uniform(*data["crop_area"])
        aspect = np.exp(rng.uniform(low, high))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    # The middle of the image: all of it, but for what is too wide or too high.
    low, high = data["crop_aspect"]
    w, h = max(1, min(width, round(height * high))), max(1, min(height, round(width / low)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _run_loader(spec: dict[str, Any]) -> dict[str, Any]:
    endings = (".jpg", ".jpeg", ".png")
    files = [str(path) for path in sorted(Path(spec["folder"]).glob("*/*")) if path.suffix.lower() in endings]
    if len(files) < spec["config"]["batch_size"]:
        raise UserError(f"{spec['folder']} has {len(files)} JPEG or PNG files in class folders: too few for a batch")
    loader = torch.utils.data.DataLoader(
        Crops(files, spec["config"]["data"]),
        batch_size=spec["config"]["batch_size"],
        shuffle=True,
        num_workers=spec["workers"],
        drop_last=True,
        persistent_workers=True,
    )

    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    return time_batches(batches, steps=spec["steps"], warmup=spec["warmup"]) | {
        "images": spec["steps"] * spec["config"]["batch_size"],
        "about": f"torch {torch.__version__} DataLoader, Pillow, {spec['workers']} processes",
    }
