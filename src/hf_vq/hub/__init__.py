"""Models on the Hub: their cards, and publishing them."""

from .cards import build_card, is_generated, write_card

__all__ = ["build_card", "is_generated", "write_card"]
