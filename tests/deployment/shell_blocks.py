"""Commands that pages tell their readers to type."""

from __future__ import annotations

import re
import shlex


def commands(text: str, program: str) -> list[list[str]]:
    """Words of every command of `program` in the text's bash blocks, continued lines joined, comments left out."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(program + " ")]
