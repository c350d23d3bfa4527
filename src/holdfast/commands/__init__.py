"""One file per command: `run(argv) -> int`, imported only when the command is used."""
