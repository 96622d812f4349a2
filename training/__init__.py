"""The parts of the training loop, which train.py puts together."""
