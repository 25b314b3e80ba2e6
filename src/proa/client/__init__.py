# SPDX-License-Identifier: Apache-2.0
"""A client of the Engine API, for the command line, compare and tests."""
