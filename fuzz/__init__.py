"""Feeding damaged and hostile files to every reader: ``python -m fuzz TARGET --seconds N``."""
