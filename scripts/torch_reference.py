"""An independent plain-PyTorch training of ResNet v1.5, written from the reference's documented behaviour.

Model, initial values, losses, the groups of SGD's weight decay, and schedules; nothing here comes from `rn50_jax`.
Names of parameters are torchvision's, and timm's where torchvision has no such layer. The tests compare with it, and
`torch_train.py` trains with it.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, units, 1)
        self.fc2 = nn.Conv2d(units, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        bottleneck: bool,
        groups: int,
        inner: int,
        se_units: int | None,
        average_shortcut: bool,
    ) -> None:
        super().__init__()
        hidden, out = width * inner, width * (4 if bottleneck else 1)
        shapes = (
            [(channels, hidden, 1, 1, 1), (hidden, hidden, 3, stride, groups), (hidden, out, 1, 1, 1)]
            if bottleneck
            else [(channels, width, 3, stride, 1), (width, out, 3, 1, 1)]
        )
        self.depth = len(shapes)
        for i, (inputs, outputs, size, step, parts) in enumerate(shapes, 1):
            conv = nn.Conv2d(inputs, outputs, size, step, padding=size // 2, groups=parts, bias=False)
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", nn.BatchNorm2d(outputs))
        self.se = None if se_units is None else SqueezeExcitation(out, se_units or out // 16)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            if average_shortcut:
                mean = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
                conv = nn.Conv2d(channels, out, 1, bias=False)
                self.downsample = nn.Sequential(mean, conv, nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.depth else y
        if self.se is not None:
            y = self.se(y)
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """ResNet v1.5 and its relatives.

    se_units: None for no squeeze and excitation, 0 for a sixteenth of a block's channels.
    deep_stem, average_shortcut: what makes ResNet-D of it (He et al. 2018, arXiv:1812.01187, figure 2).
    small_stem: a 3x3 convolution of stride 1, without pooling (He et al. 2015, arXiv:1512.03385, section 4.2).
    """

    def __init__(
        self,
        stages: Sequence[int],
        bottleneck: bool,
        num_classes: int,
        *,
        width: int = 64,
        widths: Sequence[int] = (),
        groups: int = 1,
        inner: int = 1,
        se_units: int | None = None,
        deep_stem: bool = False,
        average_shortcut: bool = False,
        small_stem: bool = False,
    ) -> None:
        super().__init__()
        self.conv1: nn.Module = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        if small_stem:
            self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        if deep_stem:
            layers: list[nn.Module] = []
            for inputs, step in ((3, 2), (width // 2, 1)):
                layers.append(nn.Conv2d(inputs, width // 2, 3, step, padding=1, bias=False))
                layers += [nn.BatchNorm2d(width // 2), nn.ReLU()]
            self.conv1 = nn.Sequential(*layers, nn.Conv2d(width // 2, width, 3, padding=1, bias=False))
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.Identity() if small_stem else nn.MaxPool2d(3, 2, padding=1)
        channels, self.stages = width, len(stages)
        for stage, blocks in enumerate(stages):
            layer = nn.Sequential()
            stage_width = widths[stage] if widths else width * 2**stage
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                layer.append(
                    Block(channels, stage_width, stride, bottleneck, groups, inner, se_units, average_shortcut)
                )
                channels = stage_width * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", layer)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of [B, 3, H, W]."""
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


def initialize(net: ResNet, fan: str, *, zero_init_last_gamma: bool = False) -> None:
    """Draws He's initial values (un-truncated) for convolutions; all else keeps PyTorch's own.

    fan: "fan_in" or "fan_out". zero_init_last_gamma: each block starts as its shortcut.
    """
    for module in net.modules():
        # With a bias it is one of squeeze and excitation's, which are linear layers.
        if isinstance(module, nn.Conv2d) and module.bias is None:
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
        if isinstance(module, Block) and zero_init_last_gamma:
            nn.init.zeros_(getattr(module, f"bn{module.depth}").weight)


def normalize(
    images: np.ndarray,
    dtype: torch.dtype = torch.float32,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> torch.Tensor:
    """uint8 [B, H, W, 3] to [B, 3, H, W]: minus 255 times the mean, over 255 times the standard deviation."""
    shift, scale = (255 * torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    return ((torch.from_numpy(images).double() - shift) / scale).permute(0, 3, 1, 2).to(dtype).contiguous()


def smoothed_loss(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """(1 - s) * nll + s * mean over classes of -log p; `targets` are probabilities."""
    log_p = torch.log_softmax(logits, -1)
    nll = -(targets * log_p).sum(-1)
    return ((1 - smoothing) * nll - smoothing * log_p.mean(-1)).mean()


def decay_groups(net: nn.Module, rule: str, weight_decay: float) -> list[dict]:
    """The optimizer's groups, without decay and with it.

    rule: what is not decayed: "reference", names with "bn" in them, as in the reference's code; "no_bn", BatchNorms, as
    in its documentation; "no_bn_bias", these and biases; "all", nothing.
    """
    batch_norms = {f"{name}." for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    free = {
        "reference": lambda name: "bn" in name,
        "no_bn": lambda name: name.rpartition(".")[0] + "." in batch_norms,
        "no_bn_bias": lambda name: name.rpartition(".")[0] + "." in batch_norms or name.endswith(".bias"),
        "all": lambda name: False,
    }[rule]
    parameters = list(net.named_parameters())
    return [
        {"params": [p for name, p in parameters if free(name)], "weight_decay": 0.0},
        {"params": [p for name, p in parameters if not free(name)], "weight_decay": weight_decay},
    ]


def learning_rate(
    kind: str,
    tick: int,
    *,
    peak: float,
    warmup: int,
    total: int,
    end: float = 0.0,
    milestones: Sequence[int] = (30, 60, 80),
    factor: float = 0.1,
    power: float = 2.0,
) -> float:
    """The learning rate at a tick (from 0): an epoch, as in the reference, or a step.

    warmup, total, milestones: in ticks too. kind: "cosine" and "poly" go down to `end`, the latter by `power`; "linear"
    goes to 0; "step" falls by `factor` at each milestone.
    """
    if tick < warmup:
        return peak * (tick + 1) / warmup
    if kind == "step":
        return peak * factor ** sum(tick >= milestone for milestone in milestones)
    progress = (tick - warmup) / (total - warmup)
    if kind == "cosine":
        return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (1 - progress) if kind == "linear" else end + (peak - end) * (1 - progress) ** power


def torch_name(path: tuple[str, ...]) -> str:
    """("layer1_0", "conv1", "kernel") -> "layer1.0.conv1.weight"."""
    leaf = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return ".".join([*(part.replace("_", ".") for part in path[:-1]), leaf[path[-1]]])


def to_torch(name: str, value: np.ndarray) -> torch.Tensor:
    """HWIO -> OIHW, [in, out] -> [out, in] (with two unit axes for squeeze and excitation); vectors as they are."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
    array = np.array(value).transpose(axes).copy()
    return torch.from_numpy(array[:, :, None, None] if ".se." in name and array.ndim == 2 else array)
