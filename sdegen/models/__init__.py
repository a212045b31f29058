"""Models: what is behind x_t."""
