# SPDX-License-Identifier: Apache-2.0
"""What crun and runc print when they fail, in Docker's words and exit codes. Pure.

Clients read both: the docker command line takes its exit status from the wording.

Source: docker CLI, cli/command/container/run.go (126 and 127); moby, daemon/errors.go; crun and runc.
"""

from __future__ import annotations

import re

from proa.model.errors import StartFailed

NOT_FOUND, NOT_EXECUTABLE, OTHER = 127, 126, 128
_UNABLE = "unable to start container process: "
_NO_DIRECTORY = re.compile(
    r'chdir to cwd \("(.*)"\) set in config.json failed: not a directory'
    r"|error during container init: mkdir (.*): not a directory"
)
_MISTAKEN = (
    ": Are you trying to mount a directory onto a file (or vice-versa)? "
    "Check if the specified host path exists and is the expected type"
)


def translate(output: str, *, program: str, action: str) -> StartFailed:
    """Return the error for what a runtime printed.

    :param program: the first argument of the process.
    :param action: "create", "start" or "exec".
    """
    reason = _reason(_message(output), program)
    unmade = _NO_DIRECTORY.search(reason)
    if unmade and action != "exec":  # dockerd makes the working directory itself, and fails on it so
        return StartFailed(f"Cannot mkdir: {unmade[1] or unmade[2]} is not a directory", exit_code=OTHER)
    if action == "exec":
        text = f"OCI runtime exec failed: exec failed: {reason}: unknown"
    else:
        text = (
            "failed to create task for container: failed to create shim task: "
            f"OCI runtime create failed: {reason}: unknown"
        )
    amendment, code = _classify(reason)
    return StartFailed(text + amendment, exit_code=code)


def _classify(reason: str) -> tuple[str, int]:
    """Return what dockerd appends to such a reason, and the exit code it records: by the words alone."""
    low = reason.lower()
    if "permission denied" in low:
        return "", NOT_EXECUTABLE
    if "is a directory" in low:
        return ": permission denied", NOT_EXECUTABLE  # for the docker command, which looks for these words
    if "not a directory" in low:
        return _MISTAKEN, NOT_FOUND
    if "executable file not found" in low or "no such file or directory" in low:
        return "", NOT_FOUND
    if "exec format error" in low:
        return "", NOT_EXECUTABLE  # runc notices only after the start, and leaves its own 1 or 255
    return "", OTHER


def _reason(text: str, program: str) -> str:
    """What went wrong, as runc says it."""
    low = text.lower()
    starting = f'{_UNABLE}exec: "{program}": '
    names_program = _is_about(program, text)
    changing = re.search(r"chdir (?:to )?`(.*)`: (.*)", text)  # crun's
    if changing:
        return f'{_UNABLE}chdir to cwd ("{changing[1]}") set in config.json failed: {changing[2].lower()}'
    if "chdir to cwd" in low:
        return _UNABLE + text.removeprefix(_UNABLE)
    if "not found in $path" in low or "executable file not found" in low:
        # A path, as against a word, is not searched for: Docker then says what stat(2) said.
        if "/" in program:
            return f"{starting}stat {program}: no such file or directory"
        return f"{starting}executable file not found in $PATH"
    if names_program and "no such file or directory" in low:
        return f"{starting}stat {program}: no such file or directory"
    if names_program and ("is a directory" in low or "open executable: operation not permitted" in low):
        return f"{starting}is a directory"
    if names_program and "permission denied" in low:
        return f"{starting}permission denied"
    if "exec format error" in low:
        return f"{starting}exec format error"
    return text or "the runtime failed without a message"


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
