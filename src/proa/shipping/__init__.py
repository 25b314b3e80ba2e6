# SPDX-License-Identifier: Apache-2.0
"""Where a container's log can be sent besides its file: one module for each protocol."""
