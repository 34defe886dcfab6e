"""What the command line `hf-vq` does: a module for each command, on top of everything else in the package."""
