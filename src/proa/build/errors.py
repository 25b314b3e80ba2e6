# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a Dockerfile, in Docker's words."""

from __future__ import annotations

from proa.model.errors import InvalidParameter


class DockerfileError(InvalidParameter):
    """The Dockerfile makes no sense; the message names the line, unless it is the file (line 0)."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"dockerfile parse error on line {line}: {reason}" if line else reason)
        self.line = line
        self.reason = reason
