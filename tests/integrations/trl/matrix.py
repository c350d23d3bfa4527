"""The plug-in's tests over releases of TRL: python matrix.py [RELEASE ...], in the environment of `make test-trl`.

Wheels are downloaded once, without dependencies, and put in front of the installed release. Everything else stays as
locked, so this says that the plug-in fits the release, not that the release fits other versions of transformers.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

RELEASES = ["1.10", "1.11", "1.12", "1.13", "1.14", "1.16"]
# 1.15 cannot train without Triton, so not on a CPU.
TESTS = ["test_contract.py", "test_same_as_trl.py", "test_mismatch.py", "test_top_k.py", "test_log_names.py"]
WARNINGS = "error\nignore:trl .* was never tried with this plug-in"
FOLDER = Path(__file__).parents[3] / "build" / "trl"


def unpacked(release: str) -> Path:
    """The folder of a release's newest wheel, downloaded unless it is there."""
    folder = FOLDER / release
    if not folder.is_dir():
        wheels = FOLDER / "wheels" / release
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*pip, "--dest", str(wheels), f"trl=={release}.*"], check=True)
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as file:
            file.extractall(folder)
    return folder


def passes(release: str, tests: list[str]) -> bool:
    """Whether the tests pass with this release in front of the installed one."""
    paths = [str(unpacked(release)), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    files = [str(Path(__file__).parent / name) for name in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-o", f"filterwarnings={WARNINGS}", *files]
    return subprocess.run(command, env=environment, check=False).returncode == 0


def main(releases: list[str]) -> int:
    """A line per release; 1 if any of them fails."""
    found = {release: passes(release, TESTS) for release in releases or RELEASES}
    for release, ok in found.items():
        print(f"trl {release}: {'passes' if ok else 'FAILS'}")
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
