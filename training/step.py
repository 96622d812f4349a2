"""One step of the optimiser."""

from core import schedule
from training import optim
from training.gradients import gradients


def step(run, model, batch, progress):
    """One optimiser step; waits for no result.  -> the losses by name, and the learning rate."""
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
