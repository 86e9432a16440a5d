"""A model: any module with batch norm."""

from torch import Tensor, nn


class Net(nn.Module):
    """Two convolutions. bnlab gives the first three arguments; all others are settings, as model.width."""

    def __init__(self, channels: int, image_size: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
        )
        # `classes` is 1 where labels are numbers, as those of data.py.
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images).mean((2, 3)))
