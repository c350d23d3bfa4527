"""A composed verl config read before anything starts: what is refused, and settings that do not do what they say."""
