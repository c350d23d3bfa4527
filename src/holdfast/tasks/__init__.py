"""Tasks with verifiable answers and their rewards."""
