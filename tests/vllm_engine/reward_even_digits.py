"""A reward that a model without training gets some of: the share of even digits in its response."""


def score(problem, response):
    return sum(character in "02468" for character in response) / max(1, len(response))
