"""Any image network of the package timm, which is optional (requirements-optional.txt), as an Extractor.

Legend: B images, D channels, h w cells.
"""

import sys

import torch

from core import checkpoint
from core.devices import scarce
from core.errors import UserError
from core.suggest import suggestion
from models.extractor import Extractor

#: the oldest release that is accepted: older ones may run code from downloaded weights
OLDEST = (1, 0, 26)
#: arguments by which the families of timm's networks accept frames of any size
ANY_SIZE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class Timm(Extractor):
    """A network of timm; H and W of frames must be multiples of a layer's cells.

    Layers, the last first: block12, block11, ... where all layers have cells of one size, else stage4, stage3, ...
    """

    protocol = "DINO"

    def __init__(self, name: str, weights: str | None = None):
        """name: as timm lists it, with or without the tag of its weights.

        weights: None = random, "pretrained" = timm downloads them, else a file.  Raises UserError where timm, the
        network, its weights or its feature maps are not available.
        """
        super().__init__()
        self.name = name
        self.network = _created(name, weights == "pretrained").eval()
        if weights not in (None, "pretrained"):
            _load(self.network, name, weights)
        self.mean, self.std = (tuple(self.network.pretrained_cfg[key]) for key in ("mean", "std"))
        self._places = _layers(self.network, name)
        self.layers = tuple(self._places)
        self._try()

    def cell_px(self, layer):
        return self._places[layer][1]

    def maps(self, images, layer):
        """See Extractor.  Maps of a vision transformer lie behind its last norm, without class and register tokens."""
        index, px = self._places[layer]
        self.require_whole_cells(images, px)
        H, W = images.shape[-2:]
        try:
            return self._map(images, index)
        except (AssertionError, RuntimeError, ValueError) as error:  # timm raises all of these for wrong sizes
            if scarce(error):
                raise
            coarse = max(px for _, px in self._places.values())
            raise UserError(
                f"timm's {self.name} cannot read frames of {H} x {W} px ({_line(error)}); "
                f"try --set propagation.multiple={coarse}"
            ) from error

    def _map(self, images, index):
        (maps,) = self.network.forward_intermediates(
            images, indices=[index], norm=True, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return maps

    @torch.no_grad()
    def _try(self):
        """Raise UserError unless a frame of 8 x 12 cells, a size that no network is made for, gives 8 x 12 vectors."""
        index, px = self._places[self.layers[0]]
        try:
            found = tuple(self._map(torch.zeros(1, 3, 8 * px, 12 * px), index).shape[-2:])
        except Exception as error:  # a network of a fixed size may raise any error
            found = _line(error)
        if found != (8, 12):
            raise UserError(
                f"timm's {self.name} does not map frames of any size to cells of {px} px (8 x 12 cells gave: {found}); "
                "choose one that does, for example of the families vit, deit, eva, convnext, swin, resnet or regnet"
            )


def is_known(name: str) -> bool:
    """Whether timm is installed and has a network of that name."""
    try:
        return _library().is_model(name)
    except UserError:
        return False


def _library():
    """The package timm.  Raises UserError where it is missing or too old."""
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"timm cannot be imported ({error}); it is optional: python -m pip install -r requirements-optional.txt"
        ) from None
    if tuple(int(part) for part in timm.__version__.split(".")[:3]) < OLDEST:
        raise UserError(
            f"timm {timm.__version__}: must be {'.'.join(map(str, OLDEST))} or newer, which loads weights without "
            "running code; python -m pip install -U -r requirements-optional.txt"
        )
    return timm


def _created(name, pretrained):
    """The network without classifier, for frames of any size where timm offers this."""
    timm = _library()
    known = [*timm.list_models(), *timm.list_models(pretrained=True)]
    if name not in known:
        raise UserError(
            f"timm {timm.__version__} has no network {name!r}{suggestion(name, known)}; "
            "timm.list_models('*vit_small*') lists those that there are"
        )
    for flags in ANY_SIZE:
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **flags)
        except Exception as error:  # from the internet and the file system, too
            if isinstance(error, TypeError) and any(flag in str(error) for flag in flags):
                continue
            if not pretrained:
                raise UserError(f"timm cannot make {name}: {_line(error)}") from error
            raise UserError(
                f"timm has no weights for {name} at hand: {_line(error)}; if this machine is offline, bring the file "
                f"and name it (timm:{name}@PATH), or evaluate random weights: timm:{name}@untrained"
            ) from error


def _load(network, name, path):
    """Load weights from a file (.safetensors, .pth, ...) by name and strictly; those of a classifier are left out."""
    content = checkpoint.load(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not weights by name")
    inner = ("state_dict_ema", "model_ema", "state_dict", "model")
    state = next((content[key] for key in inner if isinstance(content.get(key), dict)), content)
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    classifiers = network.pretrained_cfg.get("classifier") or ()
    for classifier in (classifiers,) if isinstance(classifiers, str) else classifiers:
        for part in ("weight", "bias"):
            state.pop(f"{classifier}.{part}", None)
    # timm's own function that converts the names of a network's authors and resizes the position embedding
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", lambda state, _: state)
    try:
        state = convert(state, network)
    except Exception as error:  # the function does not check files: a wrong file raises errors of any kind
        raise UserError(f"{path}: holds no weights of timm's {name} ({_line(error)})") from error
    checkpoint.load_strictly(network, state, path)


def _layers(network, name):
    """{layer: (index in timm's feature_info, pixels per side of a cell)}, the last layer first."""
    info = getattr(network, "feature_info", None)
    if not isinstance(info, list) or not info or not hasattr(network, "forward_intermediates"):
        raise UserError(f"timm's {name} has no feature maps; choose another network")
    cells = [layer["reduction"] for layer in info]
    alike = len(set(cells)) == 1
    # The stem is left out, so that stage1 has cells of 4 px in nearly every convolutional network.
    kept = [(index, px) for index, px in enumerate(cells) if alike or px >= 4]
    layers = [f"{'block' if alike else 'stage'}{n}" for n in range(1, len(kept) + 1)]
    return dict(reversed(list(zip(layers, kept))))


def _line(error):
    """The class and the first line of an error."""
    return " ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
