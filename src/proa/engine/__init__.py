# SPDX-License-Identifier: Apache-2.0
"""The use cases of the Engine API, the state machine and the events."""
