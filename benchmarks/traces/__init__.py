"""Real traces, method by method: what is run, over how many processes, and what it is held against."""
