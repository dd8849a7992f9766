"""How long a step takes and how much fits: terms, profiles, models, GPUs, memory."""
