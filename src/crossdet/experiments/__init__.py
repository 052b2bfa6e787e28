"""Planning and comparing trainings: what the commands around `train` compute, and what they print."""
