"""What a run keeps: its folder, checkpoints, the ledger of its sequences, and where its time went.

Nothing is overwritten silently, and what is on disk is complete or absent.
"""
