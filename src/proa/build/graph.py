# SPDX-License-Identifier: Apache-2.0
"""Which stages a build needs, and what each depends on. Pure.

Source: Dockerfile reference, FROM; docker build --target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proa.build.errors import DockerfileError
from proa.build.parser import Dockerfile, Stage
from proa.build.scope import GlobalScope
from proa.image.shellwords import expand
from proa.model.errors import InvalidParameter


def find_target(dockerfile: Dockerfile, target: str) -> Stage:
    """Return the stage to build: the last one without a target. Raises InvalidParameter."""
    if not target:
        return dockerfile.stages[-1]
    for stage in reversed(dockerfile.stages):
        if stage.name == target.lower():
            return stage
    if target.isdecimal() and int(target) < len(dockerfile.stages):
        return dockerfile.stages[int(target)]
    raise InvalidParameter(f"failed to reach build target {target} in Dockerfile")


def expand_bases(dockerfile: Dockerfile, scope: GlobalScope) -> dict[int, str]:
    """Return what each FROM names, with variables put in. Raises DockerfileError."""
    bases: dict[int, str] = {}
    for stage in dockerfile.stages:
        try:
            base = expand(stage.base, scope.variables, escape=dockerfile.escape)
        except InvalidParameter as error:
            raise DockerfileError(stage.origin.line, error.message) from error
        if not base:
            raise DockerfileError(stage.origin.line, f"base name ({stage.base}) should not be blank")
        bases[stage.index] = base
    return bases


def find_stage(dockerfile: Dockerfile, name: str, before: int, *, numbers: bool) -> Stage | None:
    """Return the stage of this name (or number) that comes before another; None when it is none's."""
    for stage in reversed(dockerfile.stages[:before]):
        if stage.name and stage.name == name.lower():
            return stage
    if numbers and name.isascii() and name.isdecimal() and int(name) < before:
        return dockerfile.stages[int(name)]
    return None


def needed_stages(
    dockerfile: Dockerfile,
    target: Stage,
    bases: Mapping[int, str],
    stands_for: Callable[[str], str] = lambda name: name,
) -> list[Stage]:
    """Return the target and all it depends on, in the order of the file.

    :param stands_for: gives the stage that a name means when a named context may have it.
    """
    found: dict[int, Stage] = {}
    pending = [target]
    while pending:
        stage = pending.pop()
        if stage.index in found:
            continue
        found[stage.index] = stage
        names = [(bases[stage.index], False)]
        for instruction in stage.instructions:
            names += [(name, True) for name in instruction.all_flags("from")]
            for text in instruction.all_flags("mount"):
                fields = (part.strip().partition("=") for part in text.split(","))
                names += [(value, True) for key, _, value in fields if key == "from"]
        for name, numbers in names:
            other = find_stage(dockerfile, stands_for(name), stage.index, numbers=numbers)
            if other is not None:
                pending.append(other)
    return [found[index] for index in sorted(found)]
