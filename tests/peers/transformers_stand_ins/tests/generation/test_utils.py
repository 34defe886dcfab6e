class GenerationTesterMixin:
    """Tests of models that write text; none of ours does."""
