"""One run file, three trainers: ours, TRL's and verl's; what one of them cannot do is refused by name."""
