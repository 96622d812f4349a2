"""One step of the optimiser, with the gradients of a batch, which is computed at once or part by part."""

from contextlib import AbstractContextManager, nullcontext

from core import schedule
from core.devices import autocast, enough_memory
from training import optim


def fitting(run) -> AbstractContextManager[None]:
    """Inside, a step that needs more memory than the device has is a UserError."""
    config, cures = run.config, ["start a new run with a lower data.batch_size"]
    if not run.method.undivided:
        cures.insert(0, "raise data.accumulate")
    if not (config.optim.checkpointing or config.optim.compile):
        cures.insert(0, "set optim.checkpointing=true")
    return enough_memory(
        f"data.batch_size = {config.data.batch_size}: a step needs more memory than {run.device} has; "
        + ", or ".join(cures)
    )


def step(run, model, batch, progress):
    """Take one optimiser step without waiting for the device.  Returns {name: loss} and the learning rate.

    model, batch, progress: as for `gradients`.
    """
    config = run.config
    run.reseed()
    lr = schedule.learning_rate(config.schedule, config.base_lr, progress)
    optim.set_rates(run.optimiser, lr, schedule.weight_decay(config.schedule, config.optim.weight_decay, progress))
    losses = gradients(run, model, batch, progress)
    run.method.before_step(progress)
    if config.optim.clip_norm:
        run.scaler.unscale_(run.optimiser)
        optim.clip_each(run.method.parameters(), config.optim.clip_norm)
    run.scaler.step(run.optimiser)
    run.scaler.update()
    run.method.after_step(progress)
    run.step += 1
    return losses, lr


def gradients(run, model, batch, progress):
    """Replace the gradients of run.method by those of a batch's loss without waiting for the device.

    model: run.method, or the module that wraps it and averages gradients over the processes.  progress: see
    core.schedule.  The batch goes through the model in data.accumulate equal parts; its loss is the mean of their
    losses, and the activations of only one part are in memory at a time.  Returns {name: loss}.
    """
    count, precision = run.config.data.accumulate, run.config.optim.precision
    batch = {name: value.to(run.device, non_blocking=True) for name, value in batch.items()}
    parts = [dict(zip(batch, values)) for values in zip(*(value.chunk(count) for value in batch.values()))]
    run.optimiser.zero_grad(set_to_none=True)
    with autocast(run.device, precision):
        parts = run.method.prepare(parts, progress)
    means = {}
    for number, part in enumerate(parts, 1):
        # Only the backward pass of the last part averages the gradients, the sum of all parts, over the processes.
        with nullcontext() if number == count or model is run.method else model.no_sync():
            with autocast(run.device, precision):
                losses = model(part)
            run.scaler.scale(losses.total / count).backward()
        for name, value in {"total": losses.total.detach(), **losses.terms}.items():
            means[name] = means.get(name, 0.0) + value / count
    return means
