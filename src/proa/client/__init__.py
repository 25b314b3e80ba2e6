# SPDX-License-Identifier: Apache-2.0
"""A client of the Engine API, for the command line, compare and tests.

``Client`` makes typed calls, ``connection`` carries bytes, ``terminal`` streams belong to the command line.
Synchronous, and light to import: the command line starts a process for every call.
"""
