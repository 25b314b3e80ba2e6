# SPDX-License-Identifier: Apache-2.0
"""The composition root: configuration, wiring, restore after restart, shutdown."""
