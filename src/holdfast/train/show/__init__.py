"""What a run shows: metrics, token records, the display, trackers, the summary, and warnings in plain words.

`Rollouts` and the update's result in, plain records out; nothing here changes what is trained.
"""
