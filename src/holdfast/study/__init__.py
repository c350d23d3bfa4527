"""Studies: a claim, the configurations that test it, seeds to tune and to report on, pages made from results."""
