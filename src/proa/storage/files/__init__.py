# SPDX-License-Identifier: Apache-2.0
"""Trees of files as tar streams, and back: copying into and out of containers, export, layers, changes.

``trees`` is the face of the package; all else runs in its child program, which is confined to the tree it
works in. ``docs/reference/files.md`` tells how to use it.
"""
