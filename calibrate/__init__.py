"""Measure, fit and replay on a real device. The only package that imports torch."""
