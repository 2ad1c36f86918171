"""Bring your own images: a folder with one subfolder of PNG files per class.

    pip install pillow
    NETCARVE_IMAGES=path/to/images netcarve sweep examples/images_task.py:task --limit "macs<=0.5x"

    images/cat/0001.png
    images/cat/0002.png
    images/dog/0001.png
    ...

Read tensors_task.py first; new here are the Dataset that reads files, and errors a user can act on.
"""

import os
from pathlib import Path

import netcarve
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

SIZE = 32  # images are resized to SIZE x SIZE pixels


class ImageFolder(Dataset):
    """Samples (image float [3, SIZE, SIZE] in -1..1, class index) from ``folder/class/*.png``."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"no folder {str(folder)!r}; "
                "set NETCARVE_IMAGES to one with a subfolder of PNG files per class"
            )
        # Sorted: the order of files on disk differs between machines, the split below must not.
        self.files = sorted(folder.glob("*/*.png"))
        self.classes = sorted({file.parent.name for file in self.files})
        if len(self.classes) < 2:
            raise FileNotFoundError(
                f"{str(folder)!r} needs at least two class folders with PNG files, found {self.classes}"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image  # only here: netcarve itself does not need Pillow

        file = self.files[index]
        with Image.open(file) as image:
            small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
        image = pixels.view(SIZE, SIZE, 3).permute(2, 0, 1).float() / 127.5 - 1
        return image, self.classes.index(file.parent.name)


def network(classes: int) -> nn.Module:
    """A small convolutional network; any model of yours takes its place (torchvision, timm, ...)."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, stride=2, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(3, 16),
        *block(16, 32),
        *block(32, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def train(model: nn.Module, loader: DataLoader, epochs: int = 10) -> None:
    """Short, for the example. Load your trained weights here instead:
    ``model.load_state_dict(torch.load("weights.pt", weights_only=True))``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


def task() -> netcarve.Task:
    torch.manual_seed(0)
    images = ImageFolder(Path(os.environ.get("NETCARVE_IMAGES", "images")))
    # Every fourth image of the sorted list validates: of each class a quarter, the same in every run.
    valid = Subset(images, range(0, len(images), 4))
    rest = Subset(images, [index for index in range(len(images)) if index % 4])
    model = network(len(images.classes))
    train(model, DataLoader(rest, batch_size=32, shuffle=True, drop_last=len(rest) > 32))
    return netcarve.Task(
        model,
        example=torch.zeros(1, 3, SIZE, SIZE),
        validation=DataLoader(valid, batch_size=64),
        train=DataLoader(
            rest, batch_size=64, shuffle=True
        ),  # shuffled: its first batches stand for all of it
        name="images",
    )
