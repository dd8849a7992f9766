"""The engine: what happens and when. The only package that imports SimPy."""
