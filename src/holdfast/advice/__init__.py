"""What was measured on trained models, line by line: the source of docs/choosing.md and of `holdfast advise`."""
