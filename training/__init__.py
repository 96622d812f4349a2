"""What the training loop is made of.  train.py puts it together."""
