"""For torch.hub: torch.hub.load("PATH or OWNER/NAME", "tracker")."""

from labelprop import Tracker
from models import DEFAULT, load

dependencies = ["torch", "torchvision", "numpy", "PIL", "cv2", "yaml", "safetensors", "tqdm"]


def dul_resnet18():
    """DUL's ResNet-18 with the weights that come along: an Extractor, called with frames and a layer's name."""
    return load()


def tracker(source=DEFAULT, **arguments):
    """A labelprop.Tracker of the weights in `source`, anything that models.load takes; arguments: the Tracker's."""
    return Tracker(load(source), **arguments)
