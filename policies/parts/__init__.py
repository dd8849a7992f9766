"""Helpers shared by policies; they know no registry and no policy."""
