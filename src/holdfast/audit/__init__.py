"""Reads logged rollouts of any framework and says where they drifted, why, what it costs and what to set."""
