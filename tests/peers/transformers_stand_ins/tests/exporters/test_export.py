class ExportTesterMixin:
    """No tests of exports without the repository of transformers."""
