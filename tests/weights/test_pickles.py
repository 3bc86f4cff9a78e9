"""Weight files whose objects are nested beyond reason are refused before PyTorch unpacks them and ends the process."""

import io
import pickle
import pickletools
import zipfile
from pathlib import Path

import pytest
import torch
from torch_reference import ResNet as TorchResNet

from rn50_jax.errors import UserError
from rn50_jax.weights.files import load_torch, read_weights
from rn50_jax.weights.pickles import check_pickles


def nested(levels: int) -> bytes:
    """A dict with one key: a tuple in a tuple in a tuple ..."""
    return b"\x80\x02}(" + b")" + b"\x85" * levels + b"K\x01u."


def doubled(levels: int) -> bytes:
    """A dict with one key: a tuple of twice the same, which is a tuple of twice the same, ..."""
    return b"\x80\x02}()" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(levels)) + b"K\x01u."


def as_zip(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


@pytest.mark.parametrize("data", [nested(300_000), doubled(60)], ids=["deep", "doubled"])
def test_objects_that_no_reader_survives_are_refused(data: bytes, tmp_path: Path) -> None:
    legacy = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})) + data
    # PyTorch looks at the first bytes alone, whatever is behind.
    both = legacy + as_zip(b"N.")
    for name, content in (("zip.pth", as_zip(data)), ("legacy.pth.tar", legacy), ("both.pt", both)):
        (tmp_path / name).write_bytes(content)
        for read in (read_weights, load_torch):
            with pytest.raises(UserError, match=rf"{name} cannot be read: its objects are nested beyond reason"):
                read(tmp_path / name)


def test_too_many_steps_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rn50_jax.weights.pickles._STEPS", 100)
    check_pickles(io.BytesIO(as_zip(pickle.dumps([0] * 40))))
    with pytest.raises(ValueError, match="more than 100 steps"):
        check_pickles(io.BytesIO(as_zip(pickle.dumps([0] * 400))))


@pytest.mark.parametrize("data", [nested(50), doubled(10), b"", b"\x80\x02(", b"h\x05.", b"0.", b"\xff"])
def test_the_rest_is_left_to_its_reader(data: bytes) -> None:
    file = io.BytesIO(as_zip(data))
    check_pickles(file)
    assert file.tell() == 0


def test_real_files_are_nowhere_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """The full ResNet-50 with its optimiser's state, in both of PyTorch's forms and all of pickle's protocols."""
    net = TorchResNet((3, 4, 6, 3), True, 1000)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.zeros(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    content = {"epoch": 3, "state_dict": net.state_dict(), "optimizer": optimizer.state_dict()}
    monkeypatch.setattr("rn50_jax.weights.pickles._DEEPEST", 20)
    monkeypatch.setattr("rn50_jax.weights.pickles._MOST", 100_000)
    monkeypatch.setattr("rn50_jax.weights.pickles._STEPS", 200_000)
    for zipped in (True, False):
        for protocol in (2, 4):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
            check_pickles(file)
            assert torch.load(file, weights_only=protocol == 2)["epoch"] == 3


def test_every_step_of_a_pickle_is_known() -> None:
    for code in pickletools.opcodes:
        assert "mark" not in [kind.name for kind in code.stack_after] or code.name == "MARK"
