"""ResNet-18 with output stride 8, as DUL and CRW use it; its weights have the names that torchvision gives them.

Legend: B images, H W pixels, h w cells.
"""

from typing import Literal

from torch import Tensor, nn

from models.extractor import Extractor
from models.layers import conv_head

STRIDE = 8
WIDTHS = (64, 128, 256, 512)  # channels of layer1 to layer4


class Block(nn.Module):
    """Two convolutions of 3 x 3 px beside a shortcut; downsample: the shortcut's projection, or None."""

    def __init__(self, inputs: int, outputs: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2, self.downsample = nn.BatchNorm2d(outputs), downsample

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(inner + (x if self.downsample is None else self.downsample(x)))


def _blocks(inputs, outputs, stride=1):
    """Two blocks, the first of which changes channels and size."""
    downsample = None
    if inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return nn.Sequential(Block(inputs, outputs, stride, downsample), Block(outputs, outputs, 1, None))


class Backbone(nn.Module):
    """images [B,3,H,W] -> {"res3": [B,256,h,w], "res4": [B,512,h,w]}, h = ceil(H/8), w = ceil(W/8).

    All convolutions of layer3 and layer4 have stride 1, in the shortcuts, too.  There is no pooling at the end and no
    classifier.  The weights are random, and with the same seed equal to those of torchvision.models.resnet18.

    last: "res3" = a network without layer4.  padding: of all convolutions, "zeros" or "reflect".
    """

    def __init__(self, last: str = "res4", padding: Literal["zeros", "reflect"] = "zeros"):
        super().__init__()
        first, second, third, fourth = WIDTHS
        self.conv1 = nn.Conv2d(3, first, 7, stride=2, padding=3, bias=False)
        self.bn1, self.relu, self.maxpool = nn.BatchNorm2d(first), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)
        self.layer1, self.layer2 = _blocks(first, first), _blocks(first, second, stride=2)
        self.layer3, self.layer4 = _blocks(second, third), _blocks(third, fourth)
        nn.Linear(fourth, 1000)  # torchvision's classifier: it draws random numbers, too
        for convolution in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            convolution.padding_mode = padding
        if last == "res3":
            del self.layer4

    def forward(self, images: Tensor, last: str = "res4") -> dict[str, Tensor]:
        """last: "res3" = layer4 is not computed."""
        maps = {"res3": self.layer3(self.layer2(self.layer1(self.stem(images))))}
        if last == "res4":
            maps["res4"] = self.layer4(maps["res3"])
        return maps

    def stem(self, images: Tensor) -> Tensor:
        """[B,3,H,W] -> [B,64,H/4,W/4]."""
        return self.maxpool(self.relu(self.bn1(self.conv1(images))))


class ResNet(Extractor):
    """DUL's network: layers res4, key (a projection of res4) and res3."""

    layers = ("res4", "key", "res3")

    def __init__(self, embedding: int = 128):
        """embedding: channels of `key`."""
        super().__init__()
        self.backbone = Backbone()
        self.head = conv_head(WIDTHS[-1], embedding)

    def maps(self, images: Tensor, layer: str) -> Tensor:
        if layer == "key":
            return self.head(self.backbone(images)["res4"])
        return self.backbone(images, last=layer)[layer]

    def cell_px(self, layer: str) -> int:
        return STRIDE


class ReflectResNet(Extractor):
    """CRW's network: only res3; convolutions pad by reflection."""

    layers = ("res3",)

    def __init__(self):
        super().__init__()
        self.backbone = Backbone("res3", "reflect")

    def maps(self, images: Tensor, layer: str) -> Tensor:
        return self.backbone(images, last="res3")["res3"]

    def cell_px(self, layer: str) -> int:
        return STRIDE
