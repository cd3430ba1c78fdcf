"""Many arms x seeds from one file, each a run of its own, and the table over them (``python -m`` runs it)."""
