# SPDX-License-Identifier: Apache-2.0
"""Compiled seccomp filters, kept from one container to the next of the same profile.

crun compiles the profile for every container anew: 20 ms of processor time for Docker's default with its
three architectures, against 9 for all else of a create. What it compiled lies in its state directory, and
an annotation gives it back. runc has no such way. The profile stays in config.json: a crun that does not know
the annotation compiles it.

Source: crun(1), run.oci.seccomp_bpf_data; crun, src/libcrun/seccomp.c (the file seccomp.bpf).
"""

from __future__ import annotations

import base64
import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import cast

import msgspec

Json = dict[str, object]

ANNOTATION = "run.oci.seccomp_bpf_data"
FILE = "seccomp.bpf"
MAX_KEPT = 32  # about 9 KB each
MAX_FILTER_BYTES = 4096 * 8  # BPF_MAXINSNS instructions of 8 bytes (linux/bpf_common.h)


class FilterCache:
    """Filters by the digest of what they were compiled from."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, str] = OrderedDict()

    def apply(self, config: Json) -> str:
        """Add the annotation when the filter is known.

        :returns: the key under which to ``keep`` the filter, "" when there is nothing to keep.
        """
        profile = cast(Json, config["linux"]).get("seccomp")
        # The data carries no flags, and a listener is no part of it.
        if not isinstance(profile, dict) or "flags" in profile or "listenerPath" in profile:
            return ""
        annotations = cast(dict[str, str], config.get("annotations", {}))
        if ANNOTATION in annotations:
            return ""  # the user's own filter, which must not be kept as that of the profile
        key = hashlib.sha256(msgspec.json.encode(profile)).hexdigest()
        data = self._kept.get(key)
        if data is None:
            return key
        self._kept.move_to_end(key)
        config["annotations"] = {**annotations, ANNOTATION: data}
        return ""

    def keep(self, key: str, state: Path) -> None:
        """Take the filter that the runtime has compiled, from its state directory."""
        try:
            data = (state / FILE).read_bytes()
        except OSError:
            return
        if data and len(data) % 8 == 0 and len(data) <= MAX_FILTER_BYTES:
            self._kept[key] = base64.b64encode(data).decode()
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
