"""The compiled modules, if any; everything else is in pyproject.toml."""

import os
import sys

from setuptools import setup

backend = sys.modules.get("compiled")  # the build backend, if it is what runs this
setup(
    ext_modules=[] if backend is None else backend.extensions(),
    options={"build_ext": {"parallel": os.cpu_count()}},
)
