"""The processes in which torch's DataLoader reads data: how they start and end, and what they hand over."""

import multiprocessing.connection
import os
import signal
import sys
import threading
import warnings

import cv2
import torch
from torch.utils.data import DataLoader, default_collate

#: Seconds after which workers that have not ended are killed.
PATIENCE = 2.0
#: Seconds that a worker needs at most to end, from the moment when its connections break.
DYING = 1.0
MEMORY = (
    "Usually memory ran out: /dev/shm (in a container, start it with --shm-size=16g) or the machine's; "
    "lower data.workers or data.batch_size, or set data.workers=0"
)


def started(dataset, items, workers, pinned):
    """Start the workers.  Returns an iterator over what `collate` makes of each batch.

    items: for each batch, a list of the dataset's items.  workers: how many; 0 = this process reads.  pinned: whether
    batches lie in pinned memory.
    """
    with warnings.catch_warnings():
        # The user may ask for more workers than there are cores.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = DataLoader(
            dataset,
            batch_sampler=items,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pinned,
            worker_init_fn=_start,
            generator=torch.Generator(),  # else the loader would draw from the run's own generator
        )
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # workers inherit it, for `_obey`
        handler = signal.getsignal(signal.SIGCHLD)
        try:
            return iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if signal.getsignal(signal.SIGCHLD) is not handler:
                # torch's handler raises an error for a dead worker in any line of the program, also in one that saves
                # a checkpoint or ends the workers.  Without it, the next batch that is asked for raises the error.
                signal.signal(signal.SIGCHLD, handler)


def collate(samples):
    """(the batch, the "bad" entries of all samples, the first "error"); the batch is None where there is an error."""
    bad = [entry for sample in samples for entry in sample.pop("bad")]
    error = next((sample["error"] for sample in samples if "error" in sample), None)
    try:
        return None if error else default_collate(samples), bad, error
    except RuntimeError as failure:
        if "</torch_" not in str(failure):  # torch names places in shared memory so
            raise
        return None, bad, f"no memory was left to hand a batch over ({failure}).  {MEMORY}"


def _workers(batches):
    """The worker processes of a DataLoader's iterator, for which torch has no public name."""
    return getattr(batches, "_workers", [])


def died(batches, error):
    """Whether the death of a worker is the cause of an error."""
    if "DataLoader worker (pid" in str(error):
        return True
    workers = _workers(batches)
    if str(error).startswith("Caught ") or not workers or batches._shutdown:
        return False
    # A batch that a dead worker sent in part raises errors of any kind, perhaps before the worker has quite ended.
    return bool(multiprocessing.connection.wait([worker.sentinel for worker in workers], DYING))


def end(batches):
    """End the workers as torch does, and kill them where this takes longer than PATIENCE."""
    workers = _workers(batches)
    if not workers:
        return
    force = threading.Timer(PATIENCE, lambda: [worker.kill() for worker in workers])
    force.start()
    batches._shutdown_workers()
    for worker in workers:
        worker.join()
    force.cancel()


def _start(_):
    """Set up a worker: it ignores signals to all processes, and goes on until the main process ends it."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_obey, daemon=True).start()
    sys.excepthook = report
    cv2.setNumThreads(0)


def report(kind, error, trace):
    """Show an error of a worker's thread, but no broken connection: the main process may stop while it gets a batch."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _obey():
    """End this worker at a SIGTERM from the main process; a SIGTERM from any other process is ignored."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
