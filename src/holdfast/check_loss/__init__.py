"""Laws of policy losses, run against a loss that somebody else wrote: `holdfast check-loss`.

`cases` makes batches, `shapes` and `trl` call a loss the way its framework does, `laws` and `split` judge it, `rows`
says which row of the table it is, `report` puts it together as text or JSON.
"""
