# SPDX-License-Identifier: Apache-2.0
"""Routes and messages of the Engine API, shared by client and server.

Nothing here does input or output. Messages that the engine stores as they come (container configuration)
live in ``proa.model.config``; this package has the rest: what wraps them, what answers them, the framing of
streams, and the notation of times and filters.
"""
