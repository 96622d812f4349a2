"""What labelprop gets from a method, whatever the precision."""

import pytest
import torch

from core import devices
from core.errors import UserError
from models.methods import dul, ino
from tests.small import dul_config, ino_config

BITS = {"fp32": 2**-23, "fp16": 2**-10, "bf16": 2**-7}


@pytest.mark.parametrize("make", [lambda: dul.Method(dul_config()), lambda: ino.Method(ino_config())])
@pytest.mark.parametrize("precision", list(devices.DTYPES))
def test_features_are_float32_and_unit_in_every_precision(make, precision):
    torch.manual_seed(0)
    method = make().eval()
    frames = torch.rand(2, 3, 32, 40)
    for key in method.keys:
        exact = method.extractor(key)(frames)
        cells = method.extractor(key, precision)(frames)
        assert cells.dtype == torch.float32 and not cells.requires_grad
        torch.testing.assert_close(cells.norm(dim=1), torch.ones(2, 4, 5), rtol=0, atol=1e-6)
        error = (cells - exact).norm(dim=1).max()  # of a unit vector, after a dozen layers or so
        assert error < 16 * BITS[precision]
        assert precision == "fp32" or error > 0


def test_an_unknown_key_is_told():
    with pytest.raises(UserError, match="key 'res5': must be one of res4"):
        dul.Method(dul_config()).extractor("res5")


def test_inference_is_in_fp32_on_a_cpu_and_in_fp16_on_a_gpu_unless_told():
    for name, cpu, gpu in (("auto", "fp32", "fp16"), ("bf16", "bf16", "bf16"), ("fp32", "fp32", "fp32")):
        chosen = [devices.inference_precision(torch.device(device), name) for device in ("cpu", "cuda:1")]
        assert chosen == [cpu, gpu]
