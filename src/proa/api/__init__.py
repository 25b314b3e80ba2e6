# SPDX-License-Identifier: Apache-2.0
"""HTTP on the socket: routes, versions, streams, and errors turned into statuses."""
