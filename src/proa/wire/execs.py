# SPDX-License-Identifier: Apache-2.0
"""Messages about processes started by exec. Source: Engine API, tag Exec."""

from __future__ import annotations

import msgspec

from proa.model.config import ApiStruct


class ExecCreateRequest(ApiStruct, frozen=True, kw_only=True):
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    detach_keys: str = ""
    tty: bool = False
    env: list[str] | None = None
    cmd: list[str] | str | None = None
    privileged: bool = False
    user: str = ""
    working_dir: str = ""
    console_size: list[int] | None = None  # rows, columns


class ExecCreated(ApiStruct, frozen=True, kw_only=True):
    id: str


class ExecStartRequest(ApiStruct, frozen=True, kw_only=True):
    detach: bool = False
    tty: bool = False
    console_size: list[int] | None = None  # rows, columns


class ExecProcessConfig(msgspec.Struct, frozen=True, kw_only=True):
    tty: bool = False
    entrypoint: str = ""
    arguments: list[str] = []
    privileged: bool = False
    user: str = ""


class ExecInspect(ApiStruct, frozen=True, kw_only=True):
    """``exit_code`` is null until the process has ended."""

    id: str = msgspec.field(name="ID")
    running: bool = False
    exit_code: int | None = None
    process_config: ExecProcessConfig = ExecProcessConfig()
    open_stdin: bool = False
    open_stderr: bool = False
    open_stdout: bool = False
    can_remove: bool = False
    container_id: str = msgspec.field(default="", name="ContainerID")
    detach_keys: str = ""
    pid: int = 0
