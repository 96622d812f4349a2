"""The features of extractors."""

import pytest
import torch

from core.devices import DTYPES, autocast
from core.errors import UserError
from models.methods import dul, ino
from tests.small import dul_config, ino_config

BITS = {"fp32": 2**-23, "fp16": 2**-10, "bf16": 2**-7}


@pytest.mark.parametrize("make", [lambda: dul.Method(dul_config()), lambda: ino.Method(ino_config())])
@torch.no_grad()
def test_features_are_float32_and_unit_in_every_precision(make):
    torch.manual_seed(0)
    extractor = make().eval().extractor
    frames = torch.rand(2, 3, 32, 40)
    for layer in extractor.layers[::4]:
        exact = extractor(frames, layer)
        for precision in DTYPES:
            with autocast(frames.device, precision):
                cells = extractor(frames, layer)
            assert cells.dtype == torch.float32 and extractor.cell_px(layer) == 8
            torch.testing.assert_close(cells.norm(dim=1), torch.ones(2, 4, 5), rtol=0, atol=1e-6)
            error = (cells - exact).norm(dim=1).max()  # of a unit vector, after about 12 layers
            assert error < 16 * BITS[precision]
            assert precision == "fp32" or error > 0


def test_an_unknown_layer_is_told():
    with pytest.raises(UserError, match="layer = 'res5': must be one of res4"):
        dul.Method(dul_config()).extractor.require_layer("res5")
