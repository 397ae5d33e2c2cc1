"""A simulated vLLM: ``model`` schedules without I/O or a clock, ``server`` puts it behind HTTP in real time."""
