# SPDX-License-Identifier: Apache-2.0
"""What crun and runc print when they fail, in Docker's words and exit codes. Pure.

Clients read both: the docker command line takes its exit status from the wording.

Source: docker CLI, cli/command/container/run.go (126 and 127); moby, daemon/start.go; crun and runc.
"""

from __future__ import annotations

import re

from proa.model.errors import StartFailed

NOT_FOUND, NOT_EXECUTABLE, OTHER = 127, 126, 128


def translate(output: str, *, program: str, action: str) -> StartFailed:
    """Return the error for what a runtime printed.

    :param program: the first argument of the process.
    :param action: "create", "start" or "exec".
    """
    reason, code = _classify(output, program)
    if action == "exec":
        text = f"OCI runtime exec failed: exec failed: {reason}: unknown"
    else:
        text = (
            "failed to create task for container: failed to create shim task: "
            f"OCI runtime create failed: {reason}: unknown"
        )
    return StartFailed(text, exit_code=code)


def _classify(output: str, program: str) -> tuple[str, int]:
    text = _message(output)
    low = text.lower()
    starting = f'unable to start container process: exec: "{program}": '
    names_program = _is_about(program, text)
    if "not found in $path" in low or "executable file not found" in low:
        # A path, as against a word, is not searched for: Docker then says what stat(2) said.
        if "/" in program:
            return f"{starting}stat {program}: no such file or directory", NOT_FOUND
        return f"{starting}executable file not found in $PATH", NOT_FOUND
    if names_program and "no such file or directory" in low:
        return f"{starting}stat {program}: no such file or directory", NOT_FOUND
    if names_program and ("is a directory" in low or "open executable: operation not permitted" in low):
        return f"{starting}is a directory", NOT_EXECUTABLE
    if names_program and "permission denied" in low:
        return f"{starting}permission denied", NOT_EXECUTABLE
    if "exec format error" in low:
        return f"{starting}exec format error", NOT_EXECUTABLE
    return text or "the runtime failed without a message", OTHER


def _is_about(program: str, text: str) -> bool:
    """Whether the message is on the program itself, not on a mount or a namespace."""
    return bool(re.search(r"\bexec|executable|open executable", text)) or (
        bool(program) and re.search(rf"[`'\"\s]{re.escape(program)}[`'\":\s]", f" {text} ") is not None
    )


def _message(output: str) -> str:
    """The message in one line, without what only a log wants (runc's time and level)."""
    found = re.findall(r'level=(?:error|fatal) msg="((?:[^"\\]|\\.)*)"', output)
    text = re.sub(r'\\(["\\])', r"\1", found[-1]) if found else output
    text = re.sub(r"^(runc|exec|create|run) (create|exec|start|run)? ?failed: ", "", text.strip())
    text = re.sub(r"^exec failed: ", "", text)
    return re.sub(r"\s*\n\s*", "; ", text)
