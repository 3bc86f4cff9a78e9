"""An independent plain-PyTorch ResNet v1.5, written from the reference's documented behaviour; weights map by name."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = width * (4 if bottleneck else 1)
        shapes = (
            [(channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
            if bottleneck
            else [(channels, width, 3, stride), (width, out, 3, 1)]
        )
        self.depth = len(shapes)
        for i, (inputs, outputs, size, step) in enumerate(shapes, 1):
            setattr(self, f"conv{i}", nn.Conv2d(inputs, outputs, size, step, padding=size // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(outputs))
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.depth else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, stages: Sequence[int], bottleneck: bool, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        channels = width
        for stage, blocks in enumerate(stages):
            layer = nn.Sequential()
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                layer.append(Block(channels, width * 2**stage, stride, bottleneck))
                channels = width * 2**stage * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", layer)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of float32 [B, 3, H, W]."""
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


def torch_name(path: tuple[str, ...]) -> str:
    """("layer1_0", "conv1", "kernel") -> "layer1.0.conv1.weight"."""
    leaf = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return ".".join([*(part.replace("_", ".") for part in path[:-1]), leaf[path[-1]]])


def to_torch(value: np.ndarray) -> torch.Tensor:
    """HWIO -> OIHW, [in, out] -> [out, in]; vectors as they are."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
    return torch.from_numpy(np.array(value).transpose(axes).copy())
