"""Whether a checkpoint is what was written: a checksum of every file, in the format of `sha256sum --check`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from holdfast.errors import DataError
from holdfast.train.keep.files import to_disk, write_text

SUMS = "SHA256SUMS"


def seal(folder: Path) -> None:
    """Write the checksums of a complete folder into it, and force all of it to disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    write_text(folder / SUMS, "".join(f"{_sum(path)}  {path.relative_to(folder).as_posix()}\n" for path in files))
    for path in (*folder.rglob("*"), folder):
        to_disk(path)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, None where nothing is; files that were added later are no damage.

    A folder that was never sealed (by an older version) is taken as it is.

    Raises:
        DataError: a file may not be read.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        for line in lines:
            known, _, name = line.partition("  ")
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _sum(folder / name) != known:
                return f"{name} is not what was written"
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return f"{SUMS} is not what was written"
    except PermissionError as error:
        raise DataError(f"checkpoint {folder} cannot be read: {error}; mend that, then resume") from None
    except OSError as error:
        return str(error)
    return None if lines else f"{SUMS} is empty"


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
