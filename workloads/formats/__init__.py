"""Trace formats, one file each: a module-level `FORMAT`. Adding a file here registers it."""
