"""Packages of Debian that a test needs and the machine lacks: got where one may, as root."""

import os
import shutil
import subprocess


def install(*packages: str) -> None:
    """Try to. Where it cannot be done nothing happens: whoever asks looks again, and tells."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    for command in (["update", "-q"], ["install", "-y", "-q", *packages]):
        subprocess.run(["apt-get", *command], capture_output=True, timeout=600, check=False)
