"""What every room shares: configuration, protocols, checkpoints, pictures, evaluation.  Imports no other room."""
