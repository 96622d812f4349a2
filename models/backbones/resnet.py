"""torchvision's ResNet-18 with output stride 8, as DUL and CRW use it.

Legend: B images, H W pixels, h w cells.
"""

from typing import Literal

from torch import Tensor, nn
from torchvision.models import resnet18

from models.extractor import Extractor
from models.layers import conv_head

STRIDE = 8
CHANNELS = {"res3": 256, "res4": 512}


class Backbone(nn.Module):
    """images [B,3,H,W] -> {"res3": [B,256,h,w], "res4": [B,512,h,w]}, h = ceil(H/8), w = ceil(W/8).

    All convolutions of layer3 and layer4 have stride 1, in the shortcuts, too.  There is no pooling at the end and no
    classifier.  The weights are random, as torchvision draws them.

    last: "res3" = a network without layer4.  padding: of all convolutions, "zeros" or "reflect".
    """

    def __init__(self, last: str = "res4", padding: Literal["zeros", "reflect"] = "zeros"):
        super().__init__()
        net = resnet18(weights=None)
        convolutions = lambda part: (m for m in part.modules() if isinstance(m, nn.Conv2d))
        for convolution in (*convolutions(net.layer3), *convolutions(net.layer4)):
            convolution.stride = (1, 1)
        for convolution in convolutions(net):
            convolution.padding_mode = padding
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3 = net.layer1, net.layer2, net.layer3
        if last == "res4":
            self.layer4 = net.layer4

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
        self.head = conv_head(CHANNELS["res4"], embedding)

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
