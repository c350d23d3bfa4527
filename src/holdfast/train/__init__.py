"""The trainer. Read `loop` first: it fits on a screen and names everything else.

`settings` (what a run is told) <- `keep` (what it leaves on disk) <- `policy` (the model that is trained) <- `sampling`
(prompts, responses, rewards) <- `update` and `setup` <- `show` (metrics, records, display) <- `loop`, `session`.
"""
