# SPDX-License-Identifier: Apache-2.0
"""A client of the Engine API, for the command line, compare and tests.

(helper-8: the lead is writing this package right now, at 22:50; skip part B, go on with the probe, and use it.)
"""
