# SPDX-License-Identifier: Apache-2.0
"""Every error proa raises on purpose, sorted by what the caller can do next.

    EngineError
    ├─ InvalidParameter        the caller's input is wrong; nothing was done
    ├─ Unauthenticated, Forbidden
    ├─ NotFound                NoSuchContainer NoSuchImage NoSuchExec NoSuchNetwork NoSuchVolume
    ├─ Conflict                NameInUse  ResourceInUse  WrongState
    ├─ NotModified             already in the wanted state
    ├─ NotImplementedHere      a part of the Engine API that proa does not have
    ├─ FeatureMissing          the chosen hull cannot honour an option (an InvalidParameter)
    ├─ Unavailable             busy or not ready; trying again may help
    ├─ CommandFailed           a build's own command
    └─ Internal                ToolFailed  TaskLost  DataLoss  OutcomeUnknown

Messages are part of the interface: clients such as docker-py tell causes apart by their wording, so the
NotFound and Conflict texts are those of the Docker Engine. The status of each class is decided in
``proa.api.errors``, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence


class EngineError(Exception):
    """Base of all errors proa raises on purpose.

    :param message: one sentence that names what was wrong, as the user reads it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidParameter(EngineError):
    """The caller's input is wrong; nothing was done."""


class FeatureMissing(InvalidParameter):
    """The chosen runtime cannot honour an option; refused before anything is made."""

    def __init__(self, runtime: str, feature: str, reason: str) -> None:
        super().__init__(f"{feature} is not supported with runtime {runtime}: {reason}")


class Unauthenticated(EngineError):
    """Credentials are missing or wrong."""


class Forbidden(EngineError):
    """The caller may not do this."""


class NotFound(EngineError):
    """What the caller named does not exist."""


class NoSuchContainer(NotFound):
    def __init__(self, ref: str) -> None:
        super().__init__(f"No such container: {ref}")


class NoSuchImage(NotFound):
    def __init__(self, ref: str) -> None:
        super().__init__(f"No such image: {ref}")


class NoSuchExec(NotFound):
    def __init__(self, ref: str) -> None:
        super().__init__(f"No such exec instance: {ref}")


class NoSuchNetwork(NotFound):
    def __init__(self, ref: str) -> None:
        super().__init__(f"network {ref} not found")


class NoSuchVolume(NotFound):
    def __init__(self, ref: str) -> None:
        super().__init__(f"get {ref}: no such volume")


class Conflict(EngineError):
    """The request is sound but does not fit the present state."""


class NameInUse(Conflict):
    """A name is taken; the message says by what."""


class ResourceInUse(Conflict):
    """Something still uses what was to be removed."""


class WrongState(Conflict):
    """The operation needs another state; the message names the state found."""


class NotModified(EngineError):
    """Already in the wanted state; nothing was done."""


class NotImplementedHere(EngineError):
    """A part of the Engine API that proa does not have."""


class Unavailable(EngineError):
    """Busy or not ready; trying again may help."""


class Internal(EngineError):
    """proa or something beneath it failed."""


class ToolFailed(Internal):
    """A program that proa ran failed.

    :param argv: the command as it was run.
    :param status: its exit status; negative for a signal.
    :param stderr: the tail of what it wrote.
    """

    def __init__(self, argv: Sequence[str], status: int, stderr: str) -> None:
        self.argv = tuple(argv)
        self.status = status
        self.stderr = stderr
        super().__init__(f"{argv[0]} failed with status {status}: {stderr.strip() or 'no message'}")


class StartFailed(Internal):
    """The container's process could not be started.

    :param exit_code: what the Engine records for the container: 127 when the program does not exist,
        126 when it cannot be executed, 128 otherwise (docker run's own convention).
    """

    def __init__(self, message: str, *, exit_code: int = 128) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class CommandFailed(EngineError):
    """A command of a build ended with another code than 0.

    :param command: as the user reads it.
    """

    def __init__(self, command: str, code: int) -> None:
        super().__init__(f"The command '{command}' returned a non-zero code: {code}")
        self.command = command
        self.code = code


class TaskLost(Internal):
    """A task vanished without leaving its exit status."""


class DataLoss(Internal):
    """Stored data is damaged."""


class OutcomeUnknown(Internal):
    """A link broke after a command was sent; whether it took effect is not known."""
