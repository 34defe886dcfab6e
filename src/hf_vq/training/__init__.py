"""Training helpers: losses, data order, checkpoints, command lines. The loops are in the scripts."""
