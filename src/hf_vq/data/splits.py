"""What the data sets say of splits that a source does not have."""


class MissingSplitError(ValueError):
    """A source has no split of the name asked for, while it may have others."""
