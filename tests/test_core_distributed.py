import os
import socket

import pytest
import torch
import torch.nn.functional as F

from core import distributed
from core.errors import UserError
from models.methods.dul import dul_losses
from tests.programs import CONTEXT
from tests.small import run_of
from tests.test_models_ino import START, batch_of, method_of
from training.step import gradients


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "5")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UserError, match="4 GPUs for process 6"):
        distributed.own(torch.device("cuda"))
    assert distributed.own(torch.device("cpu")) == torch.device("cpu")


def test_one_process_waits_for_nobody():
    distributed.barrier()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    agreement = distributed.Agreement()
    assert [agreement.any(flag) for flag in (False, True)] == [False, True] and not agreement.last()
    assert distributed.gathered("mine") == ["mine"]


def test_the_loss_of_another_process_is_told_in_words(monkeypatch):
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection reset by peer\nand more")
    with pytest.raises(RuntimeError, match="reset by peer"), distributed.peers():
        raise lost  # with one process, no other process can be lost
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="another process was lost.*reset by peer"), distributed.peers():
        raise lost
    with pytest.raises(RuntimeError, match="of shapes"), distributed.peers():
        raise RuntimeError("a mistake of shapes")


def dul_terms(rank=None):
    """DUL's losses of two clips, or of the clip of one rank, and the gradient of the features."""
    torch.manual_seed(0)
    plain, transformed = (F.normalize(torch.randn(2, 3, 8, 6, 6), dim=2) for _ in range(2))
    theta = torch.tensor([[0.7, 0.0, 0.2], [0.0, 0.7, -0.1]]).expand(2, 3, 2, 3).contiguous()
    batch = [plain, transformed, theta, torch.randint(36, (2, 4)), torch.randint(36, (2, 3))]
    maps, *rest = batch if rank is None else [part[rank : rank + 1] for part in batch]
    maps.requires_grad_()
    terms = dul_losses(maps, *rest, 0.05)
    (terms["temp"] + 0.1 * terms["cross_key"]).backward()
    return torch.stack(list(terms.values())).detach(), maps.grad


def ino_step(model, method, clips, accumulate):
    """Two steps of INO -> both centres and 50 values of a gradient."""
    for _ in range(2):
        gradients(run_of(method, accumulate), model, clips, START)
    gradient = method.student.backbone.patch_embed.proj.weight.grad
    return method.centre_class, method.centre_patch, gradient.flatten()[:50]


def _rank(rank, port, queue):
    """One process of two."""
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.start(torch.device("cpu"))
    dul = dul_terms(rank)
    method = method_of(mask_chance=1.0, drop_path=0.0)
    model = torch.nn.parallel.DistributedDataParallel(method)
    torch.manual_seed(100 + rank)  # each rank has its own seed, as in training
    mine = {name: value[2 * rank : 2 * rank + 2] for name, value in batch_of(clips=4).items()}
    ino = ino_step(model, method, mine, accumulate=2)
    method.eval()(mine)  # must not wait for the other rank
    queue.put((rank, *(part.tolist() for part in (*dul, *ino))))
    queue.close()
    queue.join_thread()
    distributed.stop()


def test_two_processes_have_the_losses_centres_and_gradients_of_one_with_the_whole_batch():
    """DUL takes negatives from both processes.  INO takes the mask of the first one and accumulates two parts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = CONTEXT.Queue()
    ranks = [CONTEXT.Process(target=_rank, args=(rank, port, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = [[torch.tensor(part) for part in parts] for _, *parts in sorted(queue.get(timeout=120) for _ in ranks)]
    for process in ranks:
        process.join(timeout=60)

    values, gradient = dul_terms()
    torch.testing.assert_close((found[0][0] + found[1][0]) / 2, values, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([parts[1] for parts in found]) / 2, gradient, atol=1e-6, rtol=0)

    method = method_of(mask_chance=1.0, drop_path=0.0)
    torch.manual_seed(100)
    wanted = ino_step(method, method, batch_of(clips=4), accumulate=1)
    for first, second, one in zip(found[0][2:], found[1][2:], wanted):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, one, atol=2e-5, rtol=1e-3)
