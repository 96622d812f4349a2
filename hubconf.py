"""For torch.hub: torch.hub.load("PATH or OWNER/NAME", "tracker")."""

from pathlib import Path

from core.errors import UserError
from labelprop import Tracker
from models import DEFAULT, load

dependencies = ["torch", "torchvision", "numpy", "PIL", "cv2", "yaml", "safetensors", "tqdm"]


def dul_resnet18():
    """DUL's ResNet-18 with the weights in the box: an Extractor, to call with frames and the name of a layer."""
    return load()


def ino_vits8(source):
    """INO's ViT-S/8: an Extractor.  Its weights are not in the box.

    source: a file that the authors published, a checkpoint of a run with configs/charades.yaml, or "untrained".
    """
    config = Path(__file__).parent / "configs" / "charades.yaml" if source == "untrained" else None
    extractor = load(source, config)
    backbone = getattr(extractor, "backbone", None)
    if (getattr(backbone, "stride", None), getattr(backbone, "channels", None)) != (8, 384):
        raise UserError(f"{source}: holds a {type(extractor).__name__} that is no ViT-S/8")
    return extractor


def tracker(source=DEFAULT, **arguments):
    """A labelprop.Tracker.  source: anything that models.load takes; arguments: further arguments of the Tracker."""
    return Tracker(load(source), **arguments)
