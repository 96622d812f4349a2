"""What every room shares: configuration, checkpoints, logging, evaluation.  Imports no other room."""
