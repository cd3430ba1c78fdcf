"""Gradient routing against reward hacking, as PyTorch Lightning modules."""

__version__ = "0.1.0"
