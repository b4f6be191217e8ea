"""The engine: levels, pooling, local steps and the round that joins them."""
