"""What the loaders share: strict fields, lines of JSON, tensors on disk, a sequence cut into prompt and response.

Bytes and plain Python values go in, checked values and columns come out. No framework's name belongs here.
"""
