"""`holdfast completion bash|zsh|fish`: a script that completes commands, options, keys and presets in a shell."""

from holdfast.commands.completion.script import run

__all__ = ["run"]
